"""Rotations, as values in and values out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def axis_angle_from_quat(quat_xyzw: Float64) -> Float64:
    """Axis times angle, radians, (3,) of a unit quaternion (x, y, z, w); the angle lies in [0, 2 pi].

    The sign of the quaternion is kept: q and -q give different vectors (angle a and 2 pi - a), as in
    robosuite's `transform_utils.quat2axisangle`, with which the LIBERO training data of OpenVLA and openpi
    were made. The shorter rotation instead took OpenVLA-OFT from 97 to 83 on Goal and from 95 to 56 on Long
    (vla-evaluation-harness, common pitfalls).
    """
    w = min(max(float(quat_xyzw[3]), -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return (quat_xyzw[:3] * 2.0 * math.acos(w)) / sine
