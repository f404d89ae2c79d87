"""Where an episode begins: the official chains' initial states, and those in which a single task can be begun.

Upstream cuts the starts of single tasks out of its recordings, which are not at hand. Here they follow the chains: from
the 192 initial situations the fewest tasks are done symbolically until the one asked for applies, blocks lie in the
same slots with yaws of the same range, drawn from (seed, task, trial), and what such tasks leave behind is put there
directly: a block in the gripper at the neutral pose, on another block, or in the middle of the open drawer. These three
then settle for `SETTLE_STEPS` control steps, so that the contacts which the task's condition asks for are real.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .chains import (
    ROBOT_OBS,
    YAWS,
    Float64,
    Position,
    Rotation,
    Situation,
    apply,
    initial_scene,
    initial_situations,
    official_chains,
    positions,
    scene_obs,
    table_slots,
)
from .scene import BLOCK_SECTION, DRAWER_TRAVEL, Scene
from .tasks import COLOURS, TASKS

SETTLE_STEPS = 10
DRAWER_FLOOR = 0.36235
"""Height of a block's centre in the drawer, m, as measured on the real environment."""
_TRAY_Y = -0.07
"""Middle of the closed drawer's tray, m."""


class Start(NamedTuple):
    """All that decides an episode's first instant."""

    robot_obs: Float64
    """(15,)"""
    scene_obs: Float64
    """(24,) in the scene's own order of blocks."""
    tasks: tuple[str, ...]
    """To be done one after the other."""
    settle_steps: int = 0
    """Control steps without motion before the first record is taken."""
    gripper: float = 1.0
    """Gripper action of these steps: 1 opens, -1 closes."""


def chain_start(scene: Scene, trial: int) -> Start:
    """The start of that official chain."""
    chain = official_chains()[trial]
    return Start(np.array(ROBOT_OBS), initial_scene(chain.initial, scene), chain.tasks)


def task_start(scene: Scene, task: str, trial: int, seed: int) -> Start:
    """A start in which that task can be begun. Trials go through all fitting situations, in an order of the seed's."""
    own = [seed, TASKS.index(task)]
    choices = situations_for(task)
    order = np.random.default_rng(own).permutation(len(choices))
    situation = choices[order[trial % len(choices)]]
    rng = np.random.default_rng([*own, trial])
    slots = [table_slots(scene)[slot] for slot in rng.permutation(2)]
    yaws = {colour: float(yaw) for colour, yaw in zip(COLOURS, rng.uniform(*YAWS, len(COLOURS)), strict=True)}
    at, rotations = _arrange(situation, slots, yaws, scene)
    held = bool(situation.grasped)
    special = {situation.place(colour) for colour in COLOURS} & {"grasped", "stacked_top", "drawer"}
    return Start(
        _holding(np.array(ROBOT_OBS)) if held else np.array(ROBOT_OBS),
        scene_obs(situation, at, rotations, scene),
        (task,),
        settle_steps=SETTLE_STEPS if special else 0,
        gripper=-1.0 if held else 1.0,
    )


@functools.cache
def situations_for(task: str) -> tuple[Situation, ...]:
    """The situations in which that task applies, those that take the fewest tasks from an initial situation."""
    reached = dict.fromkeys(initial_situations())
    while True:
        fitting = tuple(situation for situation in reached if apply(task, situation) is not None)
        if fitting:
            return fitting
        after = [apply(other, situation) for situation in reached for other in TASKS]
        reached = dict.fromkeys(situation for situation in after if situation is not None)


def _arrange(
    situation: Situation, slots: list[Position], yaws: Mapping[str, float], scene: Scene
) -> tuple[dict[str, Position], dict[str, Rotation]]:
    """Position and euler xyz angles of every block."""
    below = next((colour for colour in COLOURS if situation.place(colour) == "stacked_bottom"), "")
    stacked: dict[str, Any] = {f"{below}_block": "table"} if below else {}
    at = positions(situation._replace(**stacked), slots, scene)
    rotations: dict[str, Rotation] = {colour: (0.0, 0.0, yaw) for colour, yaw in yaws.items()}
    for colour in COLOURS:
        place = situation.place(colour)
        if place == "drawer":
            at[colour] = (scene.drawer_x, _TRAY_Y - DRAWER_TRAVEL, DRAWER_FLOOR)
        elif place == "stacked_top":
            x, y, z = at[below]
            at[colour], rotations[colour] = (x, y, z + BLOCK_SECTION), rotations[below]
        elif place == "grasped":
            roll, pitch, yaw = ROBOT_OBS[3:6]
            at[colour] = (ROBOT_OBS[0], ROBOT_OBS[1], ROBOT_OBS[2])
            rotations[colour] = (roll - math.pi, pitch, yaw)  # the hand looks down, the block up
    return at, rotations


def _holding(robot_obs: Float64) -> Float64:
    """The same with the gripper closed on a block."""
    robot_obs[6], robot_obs[14] = BLOCK_SECTION, -1.0
    return robot_obs
