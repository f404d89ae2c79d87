"""The policy as the engine calls it: timed, checked, and stopped when it takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from vla_bench.errors import PolicyFailure, UsageError
from vla_bench.rollout import Answer
from vla_bench.types import ActionChunk, Episode, Observation, Policy, Suite

COLD_CALLS = 2  # openpi's simple_client leaves out two warm-up calls as well
T = TypeVar("T")


class LocalPolicy:
    """A policy in this process, for any number of episodes at once."""

    def __init__(self, policy: Policy, timeout_s: float | None = None) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._calls = 0

    def begin(self, episode: Episode, slot: int = 0) -> None:
        self._guard("reset", lambda: self._policy.reset([slot], [episode]))

    def answer(self, observation: Observation) -> Answer:
        return self.answer_all([observation], [time.perf_counter()])[0]

    def answer_all(self, observations: Sequence[Observation], asked: Sequence[float]) -> list[Answer]:
        """One answer per observation; `asked` are the `perf_counter` times of the requests.

        Raises UsageError for an answer no simulator should see, PolicyFailure when the policy raises or is too slow.
        """
        started = time.perf_counter()
        chunks = self._guard("infer", lambda: self._policy.infer(observations))
        latency_ms = 1e3 * (time.perf_counter() - started)
        self._calls += 1
        checked = check_chunks(chunks, len(observations), self._policy.spec.action.dim, self._policy.spec.name)
        return [
            Answer(
                actions=np.asarray(chunk.actions, dtype=np.float32),
                stages=dict(chunk.stages),
                latency_ms=latency_ms,
                queue_ms=1e3 * (started - moment),
                batch=len(observations),
                cold=self._calls <= COLD_CALLS,
            )
            for chunk, moment in zip(checked, asked, strict=True)
        ]

    def _guard(self, method: str, call: Callable[[], T]) -> T:
        name = self._policy.spec.name
        try:
            return call() if self._timeout_s is None else _within(self._timeout_s, call)
        except UsageError:
            raise
        except TimeoutError:
            raise PolicyFailure(
                f"The policy {name!r} took longer than --timeout {self._timeout_s:g} s in {method}."
            ) from None
        except Exception as error:
            text = " ".join(str(error).split())
            raise PolicyFailure(f"The policy {name!r} raised {type(error).__name__} in {method}: {text}") from error


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, run in a thread of its own; one that hangs dies with the process. Raises TimeoutError."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def check_chunks(chunks: Any, asked: int, dim: int, name: str) -> list[ActionChunk]:
    """The chunks, known to be `asked` ActionChunks of finite float (H >= 1, dim) actions. Raises UsageError."""
    expected = f"expected one ActionChunk per observation ({asked})"
    if not isinstance(chunks, Sequence):
        raise UsageError(f"The policy {name!r} returned {_kind(chunks)} from infer, {expected}; return a list.")
    if len(chunks) != asked:
        raise UsageError(f"The policy {name!r} returned {len(chunks)} chunks from infer, {expected}.")
    for chunk in chunks:
        if not isinstance(chunk, ActionChunk):
            raise UsageError(f"The policy {name!r} returned a list of {_kind(chunk)}, {expected}.")
        _check_actions(np.asarray(chunk.actions), dim, name)
    return list(chunks)


def _check_actions(actions: np.ndarray[Any, np.dtype[Any]], dim: int, name: str) -> None:
    expected = f"expected float32 (H >= 1, {dim})"
    if actions.dtype.kind != "f":
        raise UsageError(f"The policy {name!r} returned actions of dtype {actions.dtype}, {expected}.")
    if actions.ndim != 2 or actions.shape[1] != dim or len(actions) == 0:
        raise UsageError(f"The policy {name!r} returned actions of shape {actions.shape}, {expected}.")
    if not np.isfinite(actions).all():
        step, entry = np.argwhere(~np.isfinite(actions))[0]
        value = actions[step, entry]
        raise UsageError(f"The policy {name!r} returned {value} in action {step}, entry {entry}: not a number to play.")


def _kind(value: object) -> str:
    return f"{type(value).__name__} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def check_compatible(policy: Policy, suite: Suite) -> None:
    """Stop before the first episode when the policy and the suite mean different things. Raises UsageError."""
    spec = policy.spec
    if spec.action != suite.action:
        raise UsageError(
            f"The policy {spec.name!r} acts with {spec.action}, the suite {suite.name!r} expects {suite.action}; "
            "convert in the policy's own file."
        )
    known = {camera.name: camera for camera in suite.cameras}
    for camera in spec.cameras:
        if known.get(camera.name) != camera:
            offered = ", ".join(f"{c.name} {c.height}x{c.width}" for c in suite.cameras)
            raise UsageError(
                f"The policy {spec.name!r} reads camera {camera.name} {camera.height}x{camera.width}, "
                f"the suite {suite.name!r} has {offered}."
            )
    if spec.state and spec.state != suite.state:
        raise UsageError(
            f"The policy {spec.name!r} reads the state {spec.state}, the suite {suite.name!r} has {suite.state}."
        )
