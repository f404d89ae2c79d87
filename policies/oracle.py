"""Scripted solutions that read the simulator itself: what the robot and the controller allow, not what can be seen.

How it works: a task is a generator of actions (`lift`), composed of skills (`reach`, `grasp`) that are generators too.
Each action is computed from the simulator as it is at that moment, so the loop is closed; which statement a generator
stands at is the phase of the episode. No randomness: the same scene gives the same actions.

What is not obvious, all of robosuite 1.4.0 with OSC_POSE at 20 Hz:

- An action sets the goal relative to where the hand *is*, and the arm trails it: a full +1 (0.05 m) moves it about
  0.012 m per control step (measured). So errors are asked for `GAIN` times over (1.5 to 4 do equally well).
- The hand's frame is the site `grip_site`: z points out of the hand, the fingers open along x (measured at the pads).
- The gripper command is a ramp: -1 to +1 takes 8 control steps (speed 0.01 per 2 ms substep), the fingers themselves
  about 6 from full width to Lift's cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, ActionSpec, Episode, Float32, Observation, PolicySpec, Suite

Vector = NDArray[np.float64]  # (3,) metres, world frame
Matrix = NDArray[np.float64]  # (3, 3) rotation, columns are the axes of the frame in the world

OPEN, CLOSE = -1.0, 1.0  # of a close_positive gripper, the only kind robosuite's Panda has
GAIN = 2.5
POSITION_TOLERANCE_M = 0.006
ROTATION_TOLERANCE_RAD = 0.06
PATIENCE = 60  # control steps after which a skill gives up and leaves it to its caller
HOVER_M = np.array([0.0, 0.0, 0.08])
RAISE_M = np.array([0.0, 0.0, 0.15])


@dataclass(frozen=True)
class Pose:
    """Where the hand is or should be, in the world."""

    position: Vector
    rotation: Matrix

    def shifted(self, by: Vector) -> Pose:
        return Pose(self.position + by, self.rotation)


@dataclass(frozen=True)
class Arm:
    """The robot of a robosuite environment, and the action that brings its hand nearer to a pose."""

    raw: Any
    """The upstream environment."""
    action: ActionSpec

    @property
    def pose(self) -> Pose:
        data, site = self.raw.sim.data, self.raw.robots[0].eef_site_id
        return Pose(data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy())

    def off_by(self, goal: Pose) -> tuple[Vector, Vector]:
        """Translation (m) and rotation (axis times angle, rad) from the hand to `goal`, both in the world frame."""
        hand = self.pose
        return goal.position - hand.position, Rotation.from_matrix(goal.rotation @ hand.rotation.T).as_rotvec()

    def towards(self, goal: Pose, gripper: float) -> Float32:
        """One action, (7,)."""
        move, turn = self.off_by(goal)
        parts = _limited(GAIN * move / self.action.scale_m), _limited(GAIN * turn / self.action.scale_rad), [gripper]
        return np.concatenate(parts).astype(np.float32)

    def is_at(self, goal: Pose) -> bool:
        move, turn = (float(np.linalg.norm(error)) for error in self.off_by(goal))
        return move < POSITION_TOLERANCE_M and turn < ROTATION_TOLERANCE_RAD

    def holds(self, thing: Any) -> bool:
        """Whether both finger pads touch the robosuite object."""
        return bool(self.raw._check_grasp(gripper=self.raw.robots[0].gripper, object_geoms=thing))


Actions = Iterator[Float32]
"""(7,) each; when the generator goes on, the simulator has executed it."""


def reach(arm: Arm, goal: Callable[[], Pose], gripper: float) -> Actions:
    """Move the hand to `goal`, asked anew at every step because things get pushed."""
    for _ in range(PATIENCE):
        if arm.is_at(goal()):
            return
        yield arm.towards(goal(), gripper)


def grasp(arm: Arm, thing: Any, pose: Callable[[], Pose]) -> Actions:
    """From above, open: hover over `pose`, go down to it, close the fingers on `thing`."""
    yield from reach(arm, lambda: pose().shifted(HOVER_M), OPEN)
    yield from reach(arm, pose, OPEN)
    for _ in range(PATIENCE):
        if arm.holds(thing):
            return
        yield arm.towards(pose(), CLOSE)


def lift(arm: Arm) -> Actions:
    """robosuite's Lift: the cube 0.04 m above the table. Starts over when the cube slips out."""
    raw = arm.raw

    def at_cube() -> Pose:
        data, cube = raw.sim.data, raw.cube_body_id
        return Pose(data.body_xpos[cube].copy(), _downwards(data.body_xmat[cube].reshape(3, 3), arm.pose.rotation))

    while True:
        yield from grasp(arm, raw.cube, at_cube)
        raised = arm.pose.shifted(RAISE_M)
        while arm.holds(raw.cube):
            yield arm.towards(raised, CLOSE)


SCRIPTS: dict[str, Callable[[Arm], Actions]] = {"Lift": lift}


class Oracle:
    """The upper bound of a task: solves it from privileged state, one action per inference."""

    def __init__(self, suite: Suite) -> None:
        if not SCRIPTS.keys() & set(suite.names):
            raise _cannot(f"any task of {suite.name}")
        self.spec = PolicySpec(name="oracle", action=suite.action, privileged=True)
        self._raw: Any = None
        self._actions: Actions = iter(())

    def attach(self, env: Any) -> None:
        """Use `env.raw`, the upstream robosuite environment, from the next reset on."""
        self._raw = env.raw

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Begin the script of the episode's task. Raises UsageError for a task it has no script for."""
        (episode,) = episodes  # a privileged policy runs beside one environment
        if episode.task not in SCRIPTS:
            raise _cannot(episode.task)
        self._actions = SCRIPTS[episode.task](Arm(self._raw, self.spec.action))

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        (_,) = observations
        return [ActionChunk(next(self._actions)[None])]


def _cannot(task: str) -> UsageError:
    return UsageError(f"The oracle cannot do {task}; the oracle can do: {', '.join(SCRIPTS)}.")


def _limited(command: Vector) -> Vector:
    """The same direction, no longer than 1: a straight line instead of one bent by clipping each axis."""
    return command / max(1.0, float(np.linalg.norm(command)))


def _downwards(box: Matrix, hand: Matrix) -> Matrix:
    """The rotation with z down and x normal to that side face of `box` which the hand has to turn least for."""
    normals = np.concatenate([box.T, -box.T])
    sides = normals[np.argsort(np.abs(normals[:, 2]))[:4]] * [1.0, 1.0, 0.0]  # the other two are top and bottom
    sides /= np.linalg.norm(sides, axis=1, keepdims=True)
    x, z = sides[np.argmax(sides @ hand[:, 0])], np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)
