"""What the hand can do: skills are generators of actions, each action computed from the simulator as it is then.

Which statement a generator stands at is the phase of the skill. Skills give up after `PATIENCE` control steps and leave
it to their caller to look at what came of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from .arm import CLOSE, OPEN, Actions, Points, Pose, Vector
from .grasps import Grasp
from .scene import Scene, Thing

PATIENCE = 60  # control steps after which a skill gives up and leaves it to its caller
UP: Vector = np.array([0.0, 0.0, 1.0])
BACK_OFF_M = 0.08
LIFT_M = 0.06
_PASSING_M, _PASSING_RAD = 0.02, 0.25  # near enough to a pose on the way
_NEAR_M, _NEAR_RAD = 0.01, 0.1  # near enough to where an exact motion begins
_STUCK_STEPS = 8
_STALLED_M = 0.0008  # per control step
_LOST_STEPS = 3
_STEP_ASIDE_M = 0.1
_RISES_M = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # above the higher of start and goal
_STEPS_TO_CLOSE = 14
_STEPS_TO_OPEN = 6


def reach(
    scene: Scene, goal: Callable[[], Pose], gripper: float, speed: float = 1.0, patience: int = PATIENCE
) -> Actions:
    """Move the hand to `goal`, asked anew at every step because things get pushed. Gives up when it no longer moves."""
    track: list[Vector] = []
    for _ in range(patience):
        track.append(np.concatenate(scene.arm.off_by(goal())))
        if scene.arm.is_at(goal()) or _stuck(track):
            return
        yield scene.arm.towards(goal(), gripper, speed)


def travel(scene: Scene, way: Sequence[Pose], gripper: float) -> Actions:
    """Past all poses of `way`, near to the last."""
    nearness = [*itertools.repeat((_PASSING_M, _PASSING_RAD), len(way) - 1), (_NEAR_M, _NEAR_RAD)]
    for pose, near in zip(way, nearness, strict=True):
        track: list[Vector] = []
        while not scene.arm.is_at(pose, *near) and not _stuck(track) and len(track) < PATIENCE:
            track.append(np.concatenate(scene.arm.off_by(pose)))
            yield scene.arm.towards(pose, gripper)


def _stuck(track: Sequence[Vector]) -> bool:
    """Whether the errors (m, rad) have not become less lately."""
    if len(track) <= _STUCK_STEPS:
        return False
    now, then = (
        [np.linalg.norm(error[:3]), np.linalg.norm(error[3:])] for error in (track[-1], track[-1 - _STUCK_STEPS])
    )
    return bool(now[0] > then[0] - 0.003 and now[1] > then[1] - 0.03)


def still(scene: Scene, gripper: float, steps: int) -> Actions:
    here = scene.arm.pose
    for _ in range(steps):
        yield scene.arm.towards(here, gripper)


def close_on(scene: Scene, thing: Thing) -> Actions:
    """Close the fingers where they are until they hold the thing or are shut."""
    here = scene.arm.pose
    for step in range(_STEPS_TO_CLOSE):
        if step >= 5 and thing.held:
            break
        yield scene.arm.towards(here, CLOSE)
    yield scene.arm.towards(here, CLOSE)


def release(scene: Scene, thing: Thing) -> Actions:
    here = scene.arm.pose
    for step in range(_STEPS_TO_OPEN + 6):
        if step >= _STEPS_TO_OPEN and not scene.touching(thing.geoms, scene.robot_geoms):
            return
        yield scene.arm.towards(here, OPEN)


def back_off(scene: Scene, by: Vector, gripper: float = OPEN, speed: float = 1.0) -> Actions:
    goal = scene.arm.pose.shifted(by)
    for _ in range(20):
        if scene.arm.is_at(goal, _PASSING_M, 1.0):
            return
        yield scene.arm.towards(goal, gripper, speed)


def pick(scene: Scene, thing: Thing, grasp: Grasp) -> Actions:
    """Take the thing by `grasp`, coming along the hand's own axis, and lift it off."""

    def at_grasp() -> Pose:
        return thing.pose.of(grasp.hand)

    goal = at_grasp()
    before = goal.shifted(-BACK_OFF_M * goal.rotation[:, 2])
    yield from travel(scene, route(scene, before, scene.hand_points, scene.obstacles()), OPEN)
    yield from reach(scene, at_grasp, OPEN)
    yield from close_on(scene, thing)
    if thing.held:
        yield from back_off(scene, LIFT_M * UP, CLOSE)


@dataclass(frozen=True)
class Placement:
    """Where a held thing should go."""

    pose: Pose
    """Of the thing, in the world, when it is let go."""
    enter: Vector
    """From there to where the last straight move begins, metres, world."""
    leave: Vector
    """Where the hand goes after it has let go, metres, world."""


def place(scene: Scene, thing: Thing, placement: Placement) -> Actions:
    """Bring the thing that the hand holds to `placement` and let go of it."""
    grip = thing.pose.inverse().of(scene.arm.pose)  # the hand in the thing's frame, however it slipped
    final = placement.pose.of(grip)
    load = np.concatenate([scene.hand_points, grip.inverse().place(thing.points())])
    way = route(scene, final.shifted(placement.enter), load, scene.obstacles(thing.geoms))
    yield from unless_lost(scene, thing, travel(scene, way, CLOSE))
    yield from unless_lost(scene, thing, lower(scene, thing, final))
    yield from release(scene, thing)
    yield from back_off(scene, placement.leave)


def unless_lost(scene: Scene, thing: Thing, actions: Actions) -> Actions:
    """The actions as long as the hand has the thing, or lost touch of it just now."""
    lost = 0
    for action in actions:
        lost = 0 if scene.touching(thing.geoms, scene.robot_geoms) else lost + 1
        if lost > _LOST_STEPS:
            return
        yield action


def lower(scene: Scene, thing: Thing, final: Pose) -> Actions:
    """Straight to `final`, stopping early where the thing meets something and the hand no longer moves."""
    around = scene.obstacles(thing.geoms)
    for _ in range(PATIENCE):
        if scene.arm.is_at(final, 0.004):
            return
        before = scene.arm.pose.position
        yield scene.arm.towards(final, CLOSE, speed=0.6)
        moved = float(np.linalg.norm(scene.arm.pose.position - before))
        if moved < _STALLED_M and scene.touching(thing.geoms, around):
            return


def route(scene: Scene, goal: Pose, load: Points, obstacles: Sequence[int]) -> list[Pose]:
    """Poses to pass on the way from the hand to `goal`: straight if the load fits through, else over the top.

    `load`: points that must stay clear, in the hand's frame. Where no way is clear, the least obstructed.
    """
    start = scene.arm.pose
    chosen, fewest = [start, goal], np.inf
    for legs in _ways(scene, start, goal):
        hits = _hits(scene, legs, load, obstacles, fewest)
        if hits < fewest:
            chosen, fewest = legs, hits
        if hits == 0:
            break
    return chosen[1:]


def _ways(scene: Scene, start: Pose, goal: Pose) -> Iterator[list[Pose]]:
    """Up, across and down at several heights; then the same after a step back or aside, out from under something."""
    back = -scene.outwards(start.position)
    aside = np.cross(UP, back)
    for step in (None, back, aside, -aside):
        for rise in _RISES_M if step is None else _RISES_M[1::2]:
            begin = [start] if step is None else [start, start.shifted(_STEP_ASIDE_M * step)]
            top = max(start.position[2], goal.position[2]) + rise
            over = [
                Pose(_at_height(begin[-1].position, top), start.rotation),
                Pose(_at_height(goal.position, top), goal.rotation),
            ]
            if not all(scene.reachable(pose) for pose in [*begin[1:], *over]):
                break
            yield [*begin, *over, goal] if rise or start.position[2] != top else [*begin, goal]


def _at_height(position: Vector, height: float) -> Vector:
    return np.array([position[0], position[1], height])


def _hits(scene: Scene, legs: Sequence[Pose], load: Points, obstacles: Sequence[int], most: float) -> float:
    """How many points of the load get into an obstacle on the way, counted up to `most`.

    The beginning of the first leg is not asked: the load may still touch what it left.
    """
    hits = 0.0
    for number, (a, b) in enumerate(itertools.pairwise(legs)):
        count = max(2, int(np.linalg.norm(b.position - a.position) / 0.03) + 1)
        turns = Slerp([0.0, 1.0], Rotation.from_matrix([a.rotation, b.rotation]))
        for part in np.linspace(0.0, 1.0, count)[1:]:
            if number == 0 and part * np.linalg.norm(b.position - a.position) < 0.03:
                continue
            pose = Pose(a.position + part * (b.position - a.position), turns(part).as_matrix())
            hits += float(scene.solids.inside(scene.data, pose.place(load), obstacles).sum())
            if hits >= most:
                return hits
    return hits
