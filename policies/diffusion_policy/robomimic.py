"""Robomimic's names for what a Panda of robosuite observes and does, in the suites' terms.

The suites' state is robosuite's own reading with the orientation as axis times angle. `axis_angle_from_quat` keeps the
sign of the quaternion (angles up to 2 pi), so the quaternion that a checkpoint was trained on can be had back, sign
included; only (0, 0, 0, -1) comes back as (0, 0, 0, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_bench.errors import UsageError, unknown_name
from vla_bench.types import ActionSpec, Float32, Suite

from ..torch.conventions import LIBERO_STATE

Float64 = NDArray[np.float64]
ABSOLUTE_ARM = 10
"""Numbers of an absolute action for one arm: position, the first two rows of the rotation matrix, gripper."""


def absolute_action(arms: int) -> ActionSpec:
    """What absolute actions mean once their rotations are axis times angle: robosuite's `control_delta=False`."""
    return ActionSpec(7 * arms, "absolute_pose", "axis_angle", "close_positive", scale_m=1.0, scale_rad=1.0)


def quat_from_axis_angle(axis_angle: Float64) -> Float64:
    """Unit quaternions (..., 4) (x, y, z, w) of axes times angles (..., 3), rad; an angle a gives w = cos(a / 2)."""
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    half_sinc = 0.5 * np.sinc(angle / (2 * np.pi))  # sin(a / 2) / a, also at 0
    return np.concatenate([axis_angle * half_sinc, np.cos(angle / 2)], axis=-1)


def rotation_from_rows(rows: Float64) -> Float64:
    """Rotation matrices (..., 3, 3) of the first two rows (..., 6), made orthonormal by Gram and Schmidt."""
    first, second = rows[..., :3], rows[..., 3:]
    first = first / np.linalg.norm(first, axis=-1, keepdims=True)
    second = second - (first * second).sum(axis=-1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def axis_angle_actions(actions: Float32) -> Float32:
    """Absolute actions (..., 10 per arm) -> (..., 7 per arm): position, axis times angle in [0, pi], gripper."""
    from scipy.spatial.transform import Rotation

    arms = actions.astype(np.float64).reshape(*actions.shape[:-1], -1, ABSOLUTE_ARM)
    matrices = rotation_from_rows(arms[..., 3:9])
    turned = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec().reshape(*arms.shape[:-1], 3)
    whole = np.concatenate([arms[..., :3], turned, arms[..., 9:]], axis=-1)
    return whole.reshape(*actions.shape[:-1], -1).astype(np.float32)


OBSERVATIONS: Mapping[str, Callable[[Float64], Float64]] = {
    "robot0_eef_pos": lambda state: state[..., :3],
    "robot0_eef_quat": lambda state: quat_from_axis_angle(state[..., 3:6]),
    "robot0_gripper_qpos": lambda state: state[..., 6:8],
}
"""Robomimic's name to its numbers, of the state (..., 8) of a suite with `LIBERO_STATE`."""


def observed(names: Sequence[str], suite: Suite) -> Callable[[Float32], Float32]:
    """The function from the suite's state (..., S) to the numbers of these observations, joined. `state` is all of it.

    Raises UsageError for what the suite does not give.
    """
    if tuple(names) == ("state",):
        return lambda state: state
    if absent := [name for name in names if name not in OBSERVATIONS]:
        raise UsageError(
            f"The checkpoint reads {', '.join(absent)}, which the suite {suite.name!r} does not give; there are "
            f"{', '.join(OBSERVATIONS)}."
        )
    if suite.state != LIBERO_STATE:
        raise UsageError(
            f"The checkpoint reads {', '.join(names)} of robosuite's Panda; the suite {suite.name!r} has the state "
            f"{suite.state}."
        )

    def read(state: Float32) -> Float32:
        given = state.astype(np.float64)
        return np.concatenate([OBSERVATIONS[name](given) for name in names], axis=-1).astype(np.float32)

    return read


def camera_of(picture: str, suite: Suite) -> str:
    """The suite's camera with which a checkpoint's picture was taken, by the names robomimic and lerobot's LIBERO use.

    Raises UsageError for a name that says nothing.
    """
    short = picture.removeprefix("observation.images.").removesuffix("_image")
    cameras = [camera.name for camera in suite.cameras]
    usual = dict(zip((("image",), ("image2", "wrist")), cameras, strict=False))
    for names, camera in [((camera,), camera) for camera in cameras] + list(usual.items()):
        if short in names:
            return camera
    raise UsageError(
        f"{unknown_name('camera', short, cameras)} Pass --policy-args cameras=NAME,NAME, the suite's cameras in the "
        "order of the checkpoint's pictures."
    )
