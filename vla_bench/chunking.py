"""Chunk in, actions out: which of a policy's predictions are played, and how overlapping ones are blended.

A strategy is a frozen value with one pure method. What it must remember between two inferences, the not yet played
tails of earlier chunks, goes in and comes out as `past`; the engine keeps it per episode and starts it at `()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_bench.errors import UsageError
from vla_bench.types import Float32

_SAFE_EXPONENT = 600.0
"""The exponential of it, thousands of times, is a float64, and so is its reciprocal."""

Past = tuple[Float32, ...]
"""Tails of earlier chunks, oldest first: float32 (h >= 1, A) each, row 0 the prediction for the coming step."""

Weights = NDArray[np.float64]
Weigh = Callable[[Float32], Weights]
"""Predictions of one step, (n, A) oldest first -> n weights that sum to 1."""


class Played(NamedTuple):
    """What one inference led to."""

    actions: Float32
    """(n >= 1, A) to execute open loop before the next inference."""
    past: Past
    """To hand in with the next chunk of the same episode."""


class Chunking(Protocol):
    """A way to turn chunks into actions."""

    def play(self, past: Past, chunk: Float32) -> Played:
        """Actions to play now, and the past as it is after them. `chunk` is float32 (H >= 1, A); nothing is mutated.

        Raises UsageError when more actions are asked for than a chunk has.
        """


@dataclass(frozen=True)
class RecedingHorizon:
    """Play the first `execute` actions of every chunk, all of them when None (Diffusion Policy, arXiv 2303.04137)."""

    execute: int | None = None

    def __post_init__(self) -> None:
        if self.execute is not None:
            _at_least("execute", self.execute, 1)

    def play(self, past: Past, chunk: Float32) -> Played:
        return Played(chunk[: _within(self.execute or len(chunk), chunk)].copy(), ())


@dataclass(frozen=True)
class TemporalEnsemble:
    """Average all predictions of a step, the i-th oldest weighing exp(-decay * i) (ACT, arXiv 2304.13705, m = 0.01).

    The oldest counts most. ACT infers at every step (`execute=1`); `decay=0` is Octo's plain mean.
    """

    decay: float = 0.01
    execute: int = 1

    def __post_init__(self) -> None:
        _at_least("execute", self.execute, 1)

    def weights(self, predictions: Float32) -> Weights:
        """(n,) summing to 1, for the (n, A) predictions of one step, oldest first."""
        return _softmax(-self.decay * np.arange(len(predictions), dtype=np.float64))

    def play(self, past: Past, chunk: Float32) -> Played:
        return _ensemble((*past, chunk), _within(self.execute, chunk), self.weights)


@dataclass(frozen=True)
class AdaptiveEnsemble:
    """Average the `window` newest predictions of a step, those alike the newest weighing more.

    Weight exp(alpha * cosine(prediction, newest prediction)), over the whole action vector, gripper included (CogACT,
    arXiv 2411.19650: alpha 0.1, window 7 on WidowX and 2 on the Google Robot).
    """

    alpha: float = 0.1
    window: int = 7
    """Chunks that take part, the newest included."""
    execute: int = 1

    def __post_init__(self) -> None:
        _at_least("execute", self.execute, 1)
        _at_least("ensemble-window", self.window, 1)

    def weights(self, predictions: Float32) -> Weights:
        """(n,) summing to 1, for the (n, A) predictions of one step, oldest first."""
        vectors = predictions.astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        cosines = vectors @ vectors[-1] / (norms * norms[-1] + 1e-7)  # eps as in CogACT: all-zero actions are legal
        return _softmax((self.alpha * cosines).astype(np.float64, copy=False))

    def play(self, past: Past, chunk: Float32) -> Played:
        return _ensemble((*past, chunk)[-self.window :], _within(self.execute, chunk), self.weights)


CHUNKINGS: Mapping[str, type[RecedingHorizon | TemporalEnsemble | AdaptiveEnsemble]] = {
    "receding": RecedingHorizon,
    "temporal": TemporalEnsemble,
    "adaptive": AdaptiveEnsemble,
}


def _ensemble(predictions: Past, execute: int, weigh: Weigh) -> Played:
    """Each of the next `execute` steps blended from the predictions that reach it; the newest reaches all of them."""
    covering = (np.stack([tail[step] for tail in predictions if step < len(tail)]) for step in range(execute))
    actions = np.stack([weigh(rows) @ rows for rows in covering]).astype(np.float32)
    return Played(actions, tuple(tail[execute:].copy() for tail in predictions if len(tail) > execute))


def _softmax(exponents: Weights) -> Weights:
    """exp(exponents), (n,), divided by their sum. Shifted only where the largest would over- or underflow, so that
    ordinary weights are to the bit what the papers' formulas give."""
    largest = float(exponents.max())
    weights = np.exp(exponents - (largest - float(np.clip(largest, -_SAFE_EXPONENT, _SAFE_EXPONENT))))
    weights /= float(weights.sum())
    return weights


def _within(execute: int, chunk: Float32) -> int:
    if execute > len(chunk):
        raise UsageError(
            f"Asked to execute {execute} actions per inference, but the policy answers with {len(chunk)}; "
            f"use --execute {len(chunk)} or less."
        )
    return execute


def _at_least(name: str, got: int, least: int) -> None:
    if got < least:
        raise UsageError(f"--{name} must be at least {least}, got {got}.")
