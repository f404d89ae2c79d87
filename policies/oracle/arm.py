"""The hand of robosuite's Panda: where it is, and the action that brings it nearer to where it should be.

What is not obvious, all of robosuite 1.4.0 with OSC_POSE at 20 Hz:

- An action sets the goal relative to where the hand *is*, and the arm trails it: a full +1 (0.05 m) moves it about
  0.012 m per control step (measured). So errors are asked for `GAIN` times over (1.5 to 4 do equally well).
- The hand's frame is the site `grip_site`: z points out of the hand, the fingers open along x (measured at the pads).
- The gripper command is a ramp: -1 to +1 takes 8 control steps (speed 0.01 per 2 ms substep), the fingers themselves
  about 6 from full width to a 4 cm cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_bench.types import ActionSpec, Float32

Vector = NDArray[np.float64]  # (3,) metres, world frame
Matrix = NDArray[np.float64]  # (3, 3) rotation, columns are the axes of the frame in the world
Points = NDArray[np.float64]  # (n, 3) metres

OPEN, CLOSE = -1.0, 1.0  # of a close_positive gripper, the only kind robosuite's Panda has
GAIN = 2.5
POSITION_TOLERANCE_M = 0.006
ROTATION_TOLERANCE_RAD = 0.06

Actions = Iterator[Float32]
"""(7,) each; when the generator goes on, the simulator has executed it."""

Script = Callable[[Any, ActionSpec], Actions]
"""(environment, meaning of its actions) -> the actions that solve its present episode, without end."""


@dataclass(frozen=True)
class Pose:
    """A frame in the world, or in another frame."""

    position: Vector
    rotation: Matrix

    def shifted(self, by: Vector) -> Pose:
        return Pose(self.position + by, self.rotation)

    def of(self, inner: Pose) -> Pose:
        """`inner`, given in this frame, in the frame that this one is given in."""
        return Pose(self.position + self.rotation @ inner.position, self.rotation @ inner.rotation)

    def inverse(self) -> Pose:
        return Pose(-self.rotation.T @ self.position, self.rotation.T)

    def place(self, points: Points) -> Points:
        """Points given in this frame, in the frame that this one is given in."""
        placed: Points = self.position + points @ self.rotation.T
        return placed


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

    @property
    def opening_m(self) -> float:
        """Distance between the finger pads: 0 to 0.08."""
        left, right = self.raw.sim.data.qpos[self.raw.robots[0]._ref_gripper_joint_pos_indexes]
        return float(left - right)

    def off_by(self, goal: Pose) -> tuple[Vector, Vector]:
        """Translation (m) and rotation (axis times angle, rad) from the hand to `goal`, both in the world frame."""
        hand = self.pose
        return goal.position - hand.position, Rotation.from_matrix(goal.rotation @ hand.rotation.T).as_rotvec()

    def towards(self, goal: Pose, gripper: float, speed: float = 1.0) -> Float32:
        """One action, (7,), of at most `speed` times the full translation and rotation."""
        move, turn = self.off_by(goal)
        moves = speed * _limited(GAIN * move / self.action.scale_m / speed)
        turns = speed * _limited(GAIN * turn / self.action.scale_rad / speed)
        return np.concatenate([moves, turns, [gripper]]).astype(np.float32)

    def is_at(
        self, goal: Pose, position_m: float = POSITION_TOLERANCE_M, rotation_rad: float = ROTATION_TOLERANCE_RAD
    ) -> bool:
        move, turn = (float(np.linalg.norm(error)) for error in self.off_by(goal))
        return move < position_m and turn < rotation_rad


def _limited(command: Vector) -> Vector:
    """The same direction, no longer than 1: a straight line instead of one bent by clipping each axis."""
    return command / max(1.0, float(np.linalg.norm(command)))
