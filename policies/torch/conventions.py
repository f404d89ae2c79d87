"""What checkpoints of the field were trained to read and to answer, in this harness's terms.

Equal to what the suites declare (a test compares them); a checkpoint says which of them it was made for.
"""

from __future__ import annotations

from vla_bench.types import ActionSpec

LIBERO_ACTION = ActionSpec(7, "delta_pose", "axis_angle", "close_positive", scale_m=0.05, scale_rad=0.5)
"""robosuite's OSC_POSE, which LIBERO's demonstrations and every policy trained on them use."""
LIBERO_STATE = (
    *(f"end effector {axis}, m, world" for axis in "xyz"),
    *(f"end effector axis-angle {axis}, rad, world" for axis in "xyz"),
    "left finger joint, m",
    "right finger joint, m",
)
CALVIN_ACTION = ActionSpec(7, "delta_pose", "euler_xyz", "close_negative", scale_m=0.02, scale_rad=0.05)
"""CALVIN's `rel_actions`: they add up on the commanded pose, and +1 opens the gripper."""
CALVIN_STATE = (
    *(f"tool {axis}, m, world" for axis in "xyz"),
    *(f"tool euler {axis} (fixed axes xyz), rad, world" for axis in "xyz"),
    "gripper opening, m",
    *(f"arm joint {number}, rad" for number in range(1, 8)),
    "last gripper action, 1 open, -1 closed",
)
"""CALVIN's `robot_obs`."""
