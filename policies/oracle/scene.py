"""What the scripted expert knows of a robosuite scene, and how it tries something out before doing it.

Looking ahead: inside `Scene.imagine()` the simulator's state is a copy, the real one lies untouched; controller and
gripper are put back afterwards. So whatever was tried, the real trajectory goes on bit for bit as if nothing had been.
In a copy actions have exactly the effect that they will have: the same control loop plays them.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vla_bench.types import ActionSpec, Float32

from .arm import Actions, Arm, Points, Pose, Vector
from .shapes import Solids

_LONGEST = 400  # control steps of one thing tried out
_MOST_IMAGINED = 3000  # control steps imagined in one episode: about 20 s of computing
_PLAN_STEPS = 100  # control steps that could be imagined in the time in which a plan's candidates are found
# Franka's DH parameters, with robosuite's grip site 0.204 m from the wrist's last axes: links of 0.316 and 0.384 m with
# elbow offsets of 0.0825 m reach 0.719 m from the shoulder to the wrist; at 0.70 the elbow still bends.
_FLANGE_M, _WRIST_M, _ARM_M = 0.204, 0.088, 0.70
HAND_MARGIN_M = 0.0025
_FINGER_PITCH_M, _PALM_PITCH_M = 0.006, 0.012
_OPEN_M = 0.04  # where each finger is in an open hand


class Memory(NamedTuple):
    """Everything that decides what happens next in a scene."""

    data: Any
    controller: dict[str, Any]
    gripper: Any
    ahead: int
    """Control steps after the real present."""


class Scene:
    """A robosuite environment as the expert sees it: the arm, the things, and a way to try things out."""

    def __init__(self, env: Any, action: ActionSpec) -> None:
        self.env = env
        self.raw = env.raw
        self.arm = Arm(env.raw, action)
        self.model = env.raw.sim.model._model
        self.solids = Solids(self.model)
        self.robot_geoms = self.solids.of_bodies(self.subtree(self._root(self.raw.robots[0].robot_model.root_body)))
        gripper = self.raw.robots[0].gripper
        self.finger_geoms = {
            side: {self.raw.sim.model.geom_name2id(name) for name in gripper.important_geoms[f"{side}_finger"]}
            for side in ("left", "right")
        }
        self._shoulder = self.raw.sim.model.body_name2id("robot0_link2")
        self.home = self.arm.pose
        self.hand_parts, self.fist_parts = self._hand_parts(_OPEN_M), self._hand_parts(0.0)
        self.hand_points, self.fist_points = np.concatenate(self.hand_parts), np.concatenate(self.fist_parts)
        self.steps_imagined = self._ahead = 0

    @property
    def data(self) -> Any:
        return self.raw.sim.data._data

    def thing(self, body: int) -> Thing:
        return Thing(self, body)

    def attend(self, thing: Thing) -> None:
        """Say that this is what is manipulated from now on: the gaze region of recorded demonstrations."""
        self.env.attended = (self.model.body(thing.body).name,)

    def patience(self, steps: int) -> int:
        """Up to which count of imagined steps a new plan may try things out, if it shall take at most so many."""
        self.steps_imagined += _PLAN_STEPS
        return min(self.steps_imagined + steps, _MOST_IMAGINED)

    @property
    def given_up(self) -> bool:
        """Whether so much was tried in vain in this episode that nothing more is planned."""
        return self.steps_imagined >= _MOST_IMAGINED

    @property
    def over(self) -> bool:
        """Whether the episode will have ended by now."""
        return bool(self.env._steps + self._ahead >= self.env.task.max_steps)

    def solved(self) -> bool:
        return bool(self.raw._check_success())

    # Bodies

    def subtree(self, body: int) -> list[int]:
        """The body and all that hangs on it."""
        members = {body}
        for child in range(body + 1, self.model.nbody):  # MuJoCo numbers parents before children
            if self.model.body_parentid[child] in members:
                members.add(child)
        return sorted(members)

    def _root(self, name: str) -> int:
        return int(self.model.body_rootid[self.raw.sim.model.body_name2id(name)])

    def obstacles(self, *without: Sequence[int]) -> list[int]:
        """Colliding geoms that are neither the robot's nor in `without`."""
        left_out = set(self.robot_geoms).union(*without)
        return [int(geom) for geom in np.flatnonzero(self.solids.colliding) if geom not in left_out]

    # Contacts

    def touching(self, geoms: Sequence[int], others: Sequence[int]) -> bool:
        first, second = set(geoms), set(others)
        pairs = self.data.contact.geom[: self.data.ncon]
        return any((a in first and b in second) or (b in first and a in second) for a, b in pairs.tolist())

    def held(self, geoms: Sequence[int]) -> bool:
        """Whether both fingers touch one of the geoms."""
        return all(self.touching(geoms, sorted(finger)) for finger in self.finger_geoms.values())

    # Where the hand would fit

    def _hand_parts(self, finger_m: float) -> list[Points]:
        """Points filling fingers and palm, the fingers so far from the middle, in the hand's frame; fingers first."""
        hand, parts = self.arm.pose.inverse(), []
        left, right = self.raw.robots[0]._ref_gripper_joint_pos_indexes
        outwards_m = {"left": finger_m - self.data.qpos[left], "right": finger_m + self.data.qpos[right]}
        sides = {geom: side for side, geoms in self.finger_geoms.items() for geom in geoms}
        name = self.raw.robots[0].gripper.root_body
        for geom in self.solids.of_bodies(self.subtree(self.raw.sim.model.body_name2id(name))):
            placed = Pose(self.data.geom_xpos[geom], self.data.geom_xmat[geom].reshape(3, 3))
            pitch = _FINGER_PITCH_M if geom in sides else _PALM_PITCH_M
            points = hand.place(placed.place(self.solids.samples(geom, pitch)))
            if geom in sides:
                points[:, 0] += np.sign(points[:, 0].mean()) * outwards_m[sides[geom]]
            parts.append(points)
        return sorted(parts, key=lambda part: float(np.ptp(part[:, 0])))

    def hand_fits(self, pose: Pose, parts: Sequence[Points], obstacles: Sequence[int]) -> bool:
        return all(self.fits(pose.place(part), obstacles) for part in parts)

    def fits(self, placed: Points, obstacles: Sequence[int], margin_m: float = HAND_MARGIN_M) -> bool:
        """Whether none of the points is in or near an obstacle. The margin keeps thin walls from slipping between."""
        return not self.solids.inside(self.data, placed, obstacles, margin_m).any()

    def reachable(self, pose: Pose) -> bool:
        """Whether the arm is long enough, elbow not quite stretched. Says nothing of the joints' limits."""
        shoulder = self.data.xpos[self._shoulder]
        inwards = shoulder - (flange := pose.position - _FLANGE_M * pose.rotation[:, 2])
        sideways = inwards - (inwards @ pose.rotation[:, 2]) * pose.rotation[:, 2]
        wrist = flange + _WRIST_M * sideways / max(1e-6, float(np.linalg.norm(sideways)))
        return float(np.linalg.norm(wrist - shoulder)) < _ARM_M

    def outwards(self, position: Vector) -> Vector:
        """Level unit vector from the arm's shoulder towards the position."""
        away = (position - self.data.xpos[self._shoulder]) * [1.0, 1.0, 0.0]
        unit: Vector = away / max(1e-6, float(np.linalg.norm(away)))
        return unit

    # Looking ahead

    def memory(self) -> Memory:
        robot = self.raw.robots[0]
        return Memory(
            copy.copy(self.data), _copied(vars(robot.controller)), np.array(robot.gripper.current_action), self._ahead
        )

    @contextlib.contextmanager
    def imagine(self, start: Memory | None = None) -> Iterator[Callable[[Float32], None]]:
        """Inside, nothing is real; what it yields plays one action. Begins at `start` or now. May be nested."""
        robot, wrapper, real = self.raw.robots[0], self.raw.sim.data, self.data
        controller, gripper, ahead = dict(vars(robot.controller)), robot.gripper.current_action, self._ahead
        begin = start or self.memory()
        wrapper._data = copy.copy(begin.data)
        vars(robot.controller).update(_copied(begin.controller))
        robot.gripper.current_action, self._ahead = begin.gripper.copy(), begin.ahead
        loop = copy.copy(self.env._loop)
        loop._data, loop._clock = wrapper._data, _NeverDue()

        def play(action: Float32) -> None:
            self.steps_imagined += 1
            self._ahead += 1
            loop.step(np.asarray(action, dtype=np.float64))

        try:
            yield play
        finally:
            wrapper._data = real
            vars(robot.controller).update(controller)
            robot.gripper.current_action, self._ahead = gripper, ahead


class _NeverDue:
    """In place of the clock of the sensors: what is imagined is not sensed."""

    def tick(self) -> bool:
        return False


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """With arrays copied in the memory order they have: BLAS rounds differently in another."""
    return {name: value.copy("K") if isinstance(value, np.ndarray) else value for name, value in values.items()}


@dataclass(frozen=True)
class Thing:
    """A body with all that hangs on it: an object, a drawer, a knob."""

    scene: Scene
    body: int

    @property
    def pose(self) -> Pose:
        data = self.scene.data
        return Pose(data.xpos[self.body].copy(), data.xmat[self.body].reshape(3, 3).copy())

    @property
    def geoms(self) -> list[int]:
        return self.scene.solids.of_bodies(self.scene.subtree(self.body))

    @property
    def held(self) -> bool:
        return self.scene.held(self.geoms)

    def points(self) -> Points:
        """(n, 3) filling it, in its own frame."""
        data, solids, parts = self.scene.data, self.scene.solids, []
        for geom in self.geoms:
            placed = Pose(data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3))
            parts.append(placed.place(solids.samples(geom)))
        return self.pose.inverse().place(np.concatenate(parts))

    @property
    def centre_of_mass(self) -> Vector:
        """In the world."""
        return np.array(self.scene.data.subtree_com[self.body])


def play_out(scene: Scene, actions: Actions, play: Callable[[Float32], None]) -> bool:
    """Play all actions, stopping at success or when time is up as a real episode does. Whether it succeeded."""
    for action in itertools.islice(actions, _LONGEST):
        play(action)
        if scene.solved():
            return True
        if scene.over:
            break
    return False
