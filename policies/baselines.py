"""Sanity rows of a table: what doing nothing and what noise achieve. A suite where either succeeds is broken.

Neither looks at anything (`cameras=()`), so nothing is rendered for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, ActionSpec, Episode, Float32, Observation, PolicySpec, Suite


def standing_still(action: ActionSpec) -> Float32:
    """The action (A,) that keeps the hand where it is and opens the gripper.

    Open, because zero is no neutral gripper command: robosuite's Panda starts half open and its command is a ramp that
    a zero leaves there. LIBERO's own settle action is [0, 0, 0, 0, 0, 0, -1] as well (openpi and OpenVLA use it).
    Raises UsageError when actions are not deltas: zeros then mean a place.
    """
    if action.control != "delta_pose":
        raise UsageError(f"Zeros stand still only where actions are delta_pose; this suite's are {action.control}.")
    still = np.zeros(action.dim, np.float32)
    if action.gripper != "none":
        still[-1] = {"close_positive": -1.0, "close_negative": 1.0}[action.gripper]
    return still


class Zero:
    """Stands still with the gripper open."""

    def __init__(self, suite: Suite) -> None:
        self.spec = PolicySpec(name="zero", action=suite.action)
        self._action = standing_still(suite.action)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing to forget."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(self._action[None].copy()) for _ in observations]


class Random:
    """Uniform in [-1, 1], every component of `chunk` actions, drawn from the observation's seed and nothing else."""

    def __init__(self, suite: Suite, chunk: int = 8) -> None:
        if chunk < 1:
            raise UsageError(f"random needs a chunk of at least 1, got {chunk}.")
        self.spec = PolicySpec(name="random", action=suite.action, chunk=chunk)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing to forget."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(self._draw(observation.seed)) for observation in observations]

    def _draw(self, seed: int) -> Float32:
        shape = self.spec.chunk, self.spec.action.dim
        return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)
