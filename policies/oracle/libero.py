"""LIBERO's tasks as wishes: each predicate of the goal in the task's BDDL file says what has to come where, or which
joint has to move.

What is not obvious:

- Where a thing may lie is asked of LIBERO's own predicates with positions that the thing does not have yet, so their
  peculiarities (facts in docs/oracle.md) are right by construction.
- `In` a closed drawer needs it open first; nothing in the goal says so.
- A region that something goes into is closed after that, any other one before: its front would be in the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arm import OPEN, Actions, Pose, Script, Vector
from .joints import Joint, Motion, plan_motions, stays_clear
from .put import Put, plan_put, turned
from .scene import Scene, Thing
from .skills import still

_QUARTERS = (0.0, np.pi / 2, -np.pi / 2, np.pi)
_PITCH_M = 0.02
_MOST_SPOTS = 60
_BEYOND = {True: 0.02, False: 0.15}  # m, rad: how far past its end a slide, a hinge is driven


@dataclass(frozen=True)
class Goal:
    """One predicate of the task's goal."""

    scene: Scene
    predicate: str
    names: tuple[str, ...]

    def holds(self) -> bool:
        return bool(self.scene.raw._eval_predicate([self.predicate, *self.names]))

    @property
    def moves_thing(self) -> bool:
        return self.predicate in ("on", "in")


def solve(scene: Scene) -> Actions:
    """Fulfil the predicates one by one; whatever was undone or failed is planned again."""
    goals = _ordered([Goal(scene, state[0], tuple(state[1:])) for state in scene.raw.parsed_problem["goal_state"]])
    while True:
        open_goals = [goal for goal in goals if not goal.holds()]
        idle = scene.given_up or not open_goals
        yield from still(scene, OPEN, 1) if idle else _plan(scene, open_goals[0], goals)()


def _ordered(goals: Sequence[Goal]) -> list[Goal]:
    filled = {goal.names[1] for goal in goals if goal.predicate == "in"}
    moved = {goal.names[0] for goal in goals if goal.moves_thing}

    def rank(goal: Goal) -> int:
        if goal.predicate == "close":
            return 5 if any(name.startswith(goal.names[0]) for name in filled) else 0
        if goal.moves_thing:
            return 4 if goal.names[1] in moved else 3
        return 1 if goal.predicate == "open" else 2

    return sorted(goals, key=rank)


def _plan(scene: Scene, goal: Goal, goals: Sequence[Goal]) -> Callable[[], Actions]:
    keep = [other for other in goals if other.holds()]

    if not goal.moves_thing:
        return _plan_joint(scene, goal.names[0], goal.predicate, goal.holds)
    container = _closed_container(scene, goal.names[1]) if goal.predicate == "in" else None
    if container:
        state = scene.raw.object_states_dict[container]
        return _plan_joint(scene, container, "open", state.is_open)
    thing = scene.thing(scene.raw.obj_body_id[goal.names[0]])
    spots, allowed = _spots(scene, goal, thing, _share(goal, goals))
    harmless = _harmless(scene, goal, thing, goals)
    middle = scene.raw.sim.data.get_site_xpos(goal.names[1]).copy() if goal.predicate == "in" else None

    def done() -> bool:
        fulfilled = goal.holds() and all(other.holds() for other in keep)
        return fulfilled and (harmless is None or harmless(thing.pose))

    return plan_put(scene, Put(thing, spots, done, allowed, harmless, middle))


# Joints


def _plan_joint(scene: Scene, name: str, predicate: str, done: Callable[[], bool]) -> Callable[[], Actions]:
    joint = _joint(scene, name)
    motion = Motion(joint, _end(scene, joint, name, predicate), done)
    return plan_motions(scene, [[motion]], shut=predicate == "close")


def _parent(scene: Scene, name: str) -> Any:
    site = scene.raw.object_sites_dict.get(name)
    return scene.raw.get_object(site.parent_name if site is not None else name)


def _joint(scene: Scene, name: str) -> Joint:
    site = scene.raw.object_sites_dict.get(name)
    names = list(site.joints) if site is not None and site.joints else list(_parent(scene, name).joints)
    return Joint(scene, scene.raw.sim.model.joint_name2id(names[0]))


def _end(scene: Scene, joint: Joint, name: str, predicate: str) -> float:
    """The joint's end that lies in the range which the predicate wants, and a little beyond."""
    low, high = scene.model.jnt_range[joint.number]
    wanted = np.mean(_parent(scene, name).object_properties["articulation"][f"default_{predicate}_ranges"])
    beyond = _BEYOND[joint.slides]
    return float(low - beyond if wanted < (low + high) / 2 else high + beyond)


def _closed_container(scene: Scene, region: str) -> str | None:
    """The drawer or microwave that must be opened before anything can go into the region."""
    site = scene.raw.object_sites_dict[region]
    if not site.object_properties.get("articulation", {}).get("default_open_ranges"):
        return None
    name = region if site.joints else site.parent_name
    return None if scene.raw.object_states_dict[name].is_open() else name


def _harmless(scene: Scene, goal: Goal, thing: Thing, goals: Sequence[Goal]) -> Callable[[Pose], bool] | None:
    """Whether the thing, lying in a pose, lets the drawer it goes into be closed; None if that is no goal.

    Not asked of doors: they push what sticks out back in.
    """
    closing = [other for other in goals if other.predicate == "close" and goal.names[1].startswith(other.names[0])]
    if goal.predicate != "in" or not closing:
        return None
    name = closing[0].names[0]
    joint = _joint(scene, name)
    if not joint.slides:
        return None
    low, high = scene.model.jnt_range[joint.number]
    shut = float(np.clip(_end(scene, joint, name, "close"), low, high))
    return lambda pose: stays_clear(joint, shut, thing, pose)


# Places

Spots = Callable[[], Sequence[Pose]]


def _share(goal: Goal, goals: Sequence[Goal]) -> float:
    """Where across a region the thing should go so that the others that come to lie on it have room: -1 to 1."""
    sharing = [other for other in goals if other.predicate == "on" and other.names[1:] == goal.names[1:]]
    return 0.0 if len(sharing) < 2 else 2.0 * sharing.index(goal) / (len(sharing) - 1) - 1.0


def _spots(scene: Scene, goal: Goal, thing: Thing, share: float) -> tuple[Spots, Callable[[Vector], bool]]:
    """Poses worth trying, best first, and whether LIBERO would have the thing's origin at a position."""
    site = scene.raw.object_sites_dict.get(goal.names[1])
    if site is None:
        return _spots_on_thing(scene, goal, thing)
    data = scene.raw.sim.data
    centre, matrix = data.get_site_xpos(goal.names[1]).copy(), data.get_site_xmat(goal.names[1]).copy()
    inside = site.in_box if goal.predicate == "in" else site.under

    def allowed(position: Vector) -> bool:
        return bool(inside(centre, matrix, position))

    reach = np.abs(matrix @ np.asarray(site.size))
    xs, ys = (np.arange(-np.floor(r / _PITCH_M), np.floor(r / _PITCH_M) + 1) * _PITCH_M for r in reach[:2])

    def spots() -> list[Pose]:
        found = []
        for dx, dy, yaw in itertools.product(xs, ys, _QUARTERS):
            cost = float(np.hypot(dx, dy - share * reach[1])) + 0.03 * abs(yaw)
            found.append((cost, Pose(centre + np.array([dx, dy, 0.0]), turned(thing.pose.rotation, yaw))))
        found.sort(key=lambda pair: pair[0])
        return [pose for _, pose in found[:_MOST_SPOTS]]

    return spots, allowed


def _spots_on_thing(scene: Scene, goal: Goal, thing: Thing) -> tuple[Spots, Callable[[Vector], bool]]:
    below = scene.thing(scene.raw.obj_body_id[goal.names[1]])
    top = below.pose.position

    def allowed(position: Vector) -> bool:
        return bool(np.linalg.norm(position[:2] - top[:2]) < 0.03 and position[2] >= top[2])

    def spots() -> list[Pose]:
        offsets = [(0.0, 0.0), (0.012, 0.0), (-0.012, 0.0), (0.0, 0.012), (0.0, -0.012)]
        return [
            Pose(top + np.array([dx, dy, 0.0]), turned(thing.pose.rotation, yaw))
            for dx, dy in offsets
            for yaw in _QUARTERS
        ]

    return spots, allowed


def script_of(task: str) -> Script:
    """The same for every task: what is to be done stands in the environment's BDDL problem."""
    del task
    return lambda env, action: solve(Scene(env, action))
