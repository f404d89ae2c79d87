"""What Gymnasium asks of an environment, once for all of ours.

A subclass says how a trial starts (`reset_trial`) and plays actions open loop (`advance`); `reset`, `step` and `render`
are made of these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from vla_bench.errors import UsageError
from vla_bench.types import ActionSpec, Camera, Float32, Image, Observation, Task, Transition

_CHARSET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'\"()-/"
_LONGEST_INSTRUCTION = 512  # characters


class TaskEnv(gymnasium.Env[dict[str, Any], Float32]):
    """One task.

    Observation: {"images": {camera: uint8 (H, W, 3) upright RGB}, "state": float32 (S,), "instruction"}. Action:
    float32 (A,) in [-1, 1]. Reward: 1.0 for every instruction at the step that fulfils it, else 0.0. Termination:
    success, judged after every control step. Truncation: `task.max_steps`. `reset(options={"trial": k, "seed": s})`
    picks the initial state; without a trial one is drawn from the environment's own generator.
    """

    start_fingerprint = ""
    """Of the trial's scene before it settled; empty where nothing settles."""

    def __init__(self, task: Task, cameras: Sequence[Camera], state: Sequence[str], action: ActionSpec) -> None:
        self.task = task
        self.render_mode: str | None = None
        self._cameras = tuple(cameras)
        """Those that are rendered."""
        self._shown: Observation | None = None
        self._played = self._done = 0
        self._dim = action.dim
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action.dim,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Dict({camera.name: _image_space(camera) for camera in cameras}),
            state=gymnasium.spaces.Box(-np.inf, np.inf, (len(state),), np.float32),
            instruction=gymnasium.spaces.Text(max_length=_LONGEST_INSTRUCTION, charset=_CHARSET),
        )

    # What a subclass says

    def reset_trial(self, trial: int, seed: int) -> Observation:
        """The first observation of that trial, settling included."""
        raise NotImplementedError

    def advance(self, actions: Float32) -> Transition:
        """Play float32 (n, A) actions open loop, stopping early at success or at the step limit."""
        raise NotImplementedError

    # What Gymnasium calls

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        chosen = options or {}
        unknown = set(chosen) - {"trial", "seed"}
        if unknown:
            raise UsageError(
                f"reset takes the options 'trial' and 'seed', got {', '.join(sorted(map(repr, unknown)))}."
            )
        trial = int(chosen["trial"]) if "trial" in chosen else int(self.np_random.integers(self.task.trials))
        self._shown = self.reset_trial(trial, int(chosen.get("seed", 0)))
        self._played = self._done = 0
        return _as_dict(self._shown), {"trial": trial, "success": False, "subgoals_done": 0}

    def step(self, action: Float32) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        after = self.advance(np.asarray(action)[None])
        reward = float(after.subgoals_done - self._done)
        self._shown, self._done = after.observation, after.subgoals_done
        self._played += after.steps
        info = {"success": after.success, "steps": self._played, "subgoals_done": after.subgoals_done}
        return _as_dict(after.observation), reward, after.success, after.truncated, info

    def render(self) -> Image | None:
        if self.render_mode != "rgb_array" or self._shown is None:
            return None
        return next(iter(self._shown.images.values()))

    # Bad input

    def _insist_on_trial(self, trial: int) -> None:
        if not 0 <= trial < self.task.trials:
            raise UsageError(f"{self.task.name} has trials 0 to {self.task.trials - 1}, got {trial}.")

    def _insist_on_actions(self, actions: Float32) -> None:
        if np.ndim(actions) != 2 or np.shape(actions)[1] != self._dim:
            raise UsageError(f"{self.task.name} takes actions of shape (n, {self._dim}), got {np.shape(actions)}.")


def _image_space(camera: Camera) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)


def _as_dict(observation: Observation) -> dict[str, Any]:
    return {
        "images": dict(observation.images),
        "state": observation.state,
        "instruction": observation.instruction,
    }
