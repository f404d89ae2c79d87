"""Another policy with noise on its actions: how well it recovers, and demonstrations that show mistakes.

The noise is Gaussian, independent per step and per entry of translation and rotation; the gripper's command stays. It
is drawn from the seed that the engine gives every inference, so for a policy of one action per inference it depends on
the episode and the step alone, whatever ran before or beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, Episode, Float32, Observation, Privileged, Suite


class Noisy:
    """Another policy, the oracle by default, with Gaussian noise on translation and rotation."""

    def __init__(self, suite: Suite, expert: str = "oracle", sigma: float = 0.1, checkpoint: str | None = None) -> None:
        """
        Args:
            expert: name or import path of the policy that acts.
            sigma: standard deviation of the noise; 1 is the largest translation or rotation of one step.
        """
        from vla_bench.registry import make_policy

        if not 0 <= sigma < np.inf:
            raise UsageError(f"sigma should be a finite number of at least 0, got {sigma}.")
        self._expert = make_policy(expert, suite, checkpoint)
        self._sigma = sigma
        self._moved = suite.action.dim - (suite.action.gripper != "none")
        self.spec = replace(self._expert.spec, name="noisy")

    def attach(self, env: Any) -> None:
        """Let the expert look into the simulator, if it does."""
        if isinstance(self._expert, Privileged):
            self._expert.attach(env)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        self._expert.reset(slots, episodes)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = self._expert.infer(observations)
        return [
            replace(chunk, actions=self._disturbed(chunk.actions, seen.seed), intended=chunk.actions)
            for chunk, seen in zip(chunks, observations, strict=True)
        ]

    def _disturbed(self, actions: Float32, seed: int) -> Float32:
        """The actions with noise, never beyond the full step that the expert itself may take."""
        if self._sigma == 0:
            return actions
        disturbed: Float32 = np.array(actions, dtype=np.float32)
        moves = disturbed[:, : self._moved]
        limit = np.maximum(1.0, np.abs(moves))
        noise = np.random.default_rng(seed).normal(0.0, self._sigma, moves.shape)
        disturbed[:, : self._moved] = np.clip(moves + noise, -limit, limit)
        return disturbed
