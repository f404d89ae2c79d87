"""The nouns of training: what the loop says to a policy that can learn, and what it hears. Imports numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import Float32, Image, PolicySpec

Weights = Literal["float16", "float32"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training."""

    steps: int
    batch_size: int
    learning_rate: float
    """The highest."""
    warmup: int
    """Steps in which the rate rises from 0."""
    final_share: float = 0.0
    """Of the highest rate, where the cosine ends."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    """Of matrices and kernels; vectors (biases, norms) have none."""
    clip: float = 1.0
    """Longest gradient."""
    ema_power: float = 0.75
    ema_max: float = 0.999
    draws: int = 1
    """Noise levels drawn per sample, where there is noise: what was seen is encoded once for all of them."""
    jitter: float = 0.0
    """Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter."""

    def changed(self, **wanted: float | None) -> Recipe:
        """With these values where they are not None; the warm-up is a tenth of the steps at most."""
        changed = replace(self, **{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]
        return replace(changed, warmup=min(changed.warmup, changed.steps // 10))

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: a line up to `learning_rate`, then half a cosine."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        falling = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * (self.final_share + (1.0 - self.final_share) * falling)

    def ema_decay(self, step: int) -> float:
        """What is kept of the average at step 0, 1, ...: Diffusion Policy's 1 - (1 + step)^-power, up to a bound."""
        return min(self.ema_max, 1.0 - math.pow(1.0 + step, -self.ema_power))


@dataclass(frozen=True)
class Scales:
    """Statistics of one kind of numbers over all control steps of the training data, float64 (D,) each."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, values: Float32) -> Scales:
        """Of (N, D) values."""
        wide = values.astype(np.float64)
        q01, q99 = np.quantile(wide, [0.01, 0.99], axis=0)
        return cls(wide.min(0), wide.max(0), q01, q99, wide.mean(0), wide.std(0))


class Samples(NamedTuple):
    """B moments to learn from, T control steps of history (the last is now)."""

    images: Mapping[str, Image]
    """Camera name to uint8 (B, T, height, width, 3), upright RGB."""
    state: Float32
    """(B, T, S)."""
    instructions: Sequence[str]
    actions: Float32
    """(B, H, A), the first of them the action of the oldest step of the history."""
    valid: NDArray[np.bool_]
    """(B, H): False where the episode or its instruction had ended and the last action is repeated."""
    gaze: Float32
    """(B, 4): x0, y0, x1, y1 of the gaze region in the first camera, as shares of its sides."""


class Learner(Protocol):
    """A policy in training: weights, their average, and the optimiser."""

    @property
    def done(self) -> int:
        """Steps taken."""

    def step(self, samples: Samples) -> Mapping[str, float]:
        """One step of the optimiser; the losses before it."""

    def validate(self, batches: Iterable[Samples]) -> Mapping[str, float]:
        """Mean losses of the averaged weights; the same noise every time."""

    def keep(self, file: Path) -> None:
        """Write everything that going on needs."""

    def resume(self, file: Path) -> None:
        """Go on from there. Raises UsageError for what is no such file."""

    def save(self, path: Path, provenance: Mapping[str, str], weights: Weights) -> None:
        """Write the averaged weights as a checkpoint that `--checkpoint` reads."""


@runtime_checkable
class Teachable(Protocol):
    """A policy that can be trained."""

    @property
    def spec(self) -> PolicySpec: ...

    def recipe(self) -> Recipe:
        """What its family is trained with by default at this size."""

    def learner(self, recipe: Recipe, state: Scales, action: Scales, seed: int, threads: int) -> Learner:
        """Itself in training, its numbers normalised by these statistics. Its weights change in place."""
