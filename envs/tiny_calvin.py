"""CALVIN's drawer as robosuite would have it: 20 Hz, robosuite's actions and its eight numbers of state.

Not obvious:

* An action's translation and rotation vector, metres and radians in the world, are what CALVIN's running target moves
  by. CALVIN adds Euler angles, so the increments that turn the target as the rotation vector does depend on how it is
  turned already. They are cut at CALVIN's own full step, 0.02 m and 0.05 rad per component: 0.4 of a translation.
* robosuite's controller steers from where the hand is, CALVIN's from where it was told to be. That is left as it is: an
  action asks for the same displacement, and the arms follow in their own ways.
* CALVIN's fingers are told to open or to close at every step: what is not above 0 opens them.
* A control step has 12 physics steps of 1/240 s instead of 8. Inverse kinematics, button and switch are evaluated once
  per control step, as ever.
* The arm starts at its neutral pose with the noise that robosuite and LIBERO start with, normal, 0.02 rad per joint.
  Everything else is a start of `calvin_tasks`: blocks that are drawn, the drawer closed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_bench.geometry import axis_angle_from_quat
from vla_bench.types import Camera, Float32, Task

from .calvin import env as calvin
from .calvin.scene import SCENES
from .calvin.starts import Start, task_start
from .robosuite_core import ACTION

Float64 = NDArray[np.float64]

SCENE = SCENES["D"]
SUBSTEPS = 12
"""Of 1/240 s: 20 Hz."""
ARM_NOISE_RAD = 0.02
"""robosuite's default `initialization_noise`; LIBERO's published states have the same spread."""
_ARM = slice(7, 14)
_OURS = np.repeat([ACTION.scale_m, ACTION.scale_rad], 3)
_THEIRS = np.repeat([calvin.ACTION.scale_m, calvin.ACTION.scale_rad], 3)


class TinyCalvinEnv(calvin.CalvinEnv):
    """One of CALVIN's tasks from its own starts, played with robosuite's actions and seen as robosuite's state."""

    def __init__(self, task: Task, sizes: Sequence[Camera], wanted: Sequence[str]) -> None:
        camera_px = {camera.name: (camera.height, camera.width) for camera in sizes}
        table = calvin.MujocoTable(SCENE, "head", substeps=SUBSTEPS, camera_px=camera_px)
        table.model.light_castshadow[:] = 0
        self._table = table
        super().__init__(task, wanted, table, lambda trial, seed: start(task.name, trial, seed))

    def action_of(self, relative: Float32) -> Float32:
        """(7,) our action that does now what that relative action of CALVIN does."""
        return from_relative(relative, self._table.target()[3:])

    def _step(self, action: Float64) -> None:
        super()._step(to_relative(action, self._table.target()[3:]))

    def _proprioception(self) -> Float32:
        """(8,) as robosuite's: the tool's axes are those of robosuite's hand, z out of it, the fingers along y."""
        position, quat_xyzw = self._table.tool()
        left, right = self._table.fingers()
        return np.concatenate([position, axis_angle_from_quat(quat_xyzw), [left, -right]]).astype(np.float32)


def start(task: str, trial: int, seed: int) -> Start:
    """A start of `calvin_tasks`, the arm a little off its neutral pose."""
    drawn = task_start(SCENE, task, trial, seed)
    noise = np.random.default_rng([seed, trial]).normal(0.0, ARM_NOISE_RAD, 7)
    robot_obs = drawn.robot_obs.copy()
    robot_obs[_ARM] += noise
    return drawn._replace(robot_obs=robot_obs)


# Actions


def to_relative(action: Float64, euler: Float64) -> Float64:
    """(7,) CALVIN's relative action that moves and turns a target as ours does, ours first cut at 1 as robosuite does,
    then at CALVIN's full steps.

    `euler` (3,) are the target's angles, rad, fixed axes xyz.
    """
    move, turn = np.split(np.clip(action[:6], -1.0, 1.0) * _OURS, 2)
    after = _euler(_turn(turn) @ _matrix(euler))
    change = (after - euler + math.pi) % (2 * math.pi) - math.pi
    relative = np.clip(np.concatenate([move, change]) / _THEIRS, -1.0, 1.0)
    return np.append(relative, -1.0 if action[6] > 0 else 1.0)


def from_relative(relative: Float32, euler: Float64) -> Float32:
    """(7,) our action for CALVIN's, the other way round."""
    move, change = np.split(relative[:6].astype(np.float64) * _THEIRS, 2)
    turn = _rotation_vector(_matrix(euler + change) @ _matrix(euler).T)
    ours = np.concatenate([move, turn]) / _OURS
    return np.append(ours, -1.0 if relative[6] > 0 else 1.0).astype(np.float32)


def _matrix(euler: Float64) -> Float64:
    """(3, 3) of rotations about the fixed axes x, then y, then z."""
    (a, b, c), (x, y, z) = np.cos(euler).tolist(), np.sin(euler).tolist()
    return np.array(
        [
            [c * b, c * y * x - z * a, c * y * a + z * x],
            [z * b, z * y * x + c * a, z * y * a - c * x],
            [-y, b * x, b * a],
        ]
    )


def _euler(matrix: Float64) -> Float64:
    """(3,) angles about the fixed axes x, y, z; the second within a quarter turn."""
    (xx, _, _), (yx, _, _), (zx, zy, zz) = matrix.tolist()
    return np.array([math.atan2(zy, zz), math.asin(max(-1.0, min(1.0, -zx))), math.atan2(yx, xx)])


def _turn(vector: Float64) -> Float64:
    """(3, 3) rotation about that axis by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = (vector / angle if angle > 0 else vector).tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    matrix: Float64 = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return matrix


def _rotation_vector(matrix: Float64) -> Float64:
    """(3,) axis times angle of a rotation by less than half a turn."""
    (_, xy, xz), (yx, _, yz), (zx, zy, _) = matrix.tolist()
    doubled = np.array([zy - yz, xz - zx, yx - xy])  # axis times twice the sine
    sine, cosine = float(np.linalg.norm(doubled)) / 2, (float(np.trace(matrix)) - 1) / 2
    return doubled / 2 * (math.atan2(sine, cosine) / sine if sine > 0 else 1.0)
