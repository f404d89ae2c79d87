"""The policy as the engine calls it: timed, checked, and stopped when it takes too long."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from vla_bench.errors import PolicyFailure, UsageError, message_of
from vla_bench.grounding.scoring import inside_total
from vla_bench.process.foreign import foreign_code, insist_on_process, is_theirs
from vla_bench.process.watch import board
from vla_bench.rollout import Answer
from vla_bench.types import ActionChunk, Attention, Episode, Float32, Observation, Policy, PolicySpec, Suite

COLD_CALLS = 2  # openpi's simple_client leaves out two warm-up calls as well
_ATTENTION_TOLERANCE = 1e-3  # bfloat16 softmaxes
T = TypeVar("T")


class LocalPolicy:
    """A policy in this process, for any number of episodes at once."""

    def __init__(self, policy: Policy, timeout_s: float | None = None) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._calls = 0
        self._thread = _Thread()
        self._owner = os.getpid()

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
        checked = check_chunks(chunks, len(observations), self._policy.spec)
        return [
            Answer(
                actions=chunk.actions,
                intended=chunk.intended,
                stages=dict(chunk.stages),
                attention=chunk.attention,
                latency_ms=latency_ms,
                queue_ms=1e3 * (started - moment),
                batch=len(observations),
                cold=self._calls <= COLD_CALLS,
            )
            for chunk, moment in zip(checked, asked, strict=True)
        ]

    def _guard(self, method: str, call: Callable[[], T]) -> T:
        insist_on_process(self._owner)
        name = self._policy.spec.name
        with blaming(name, method, self._timeout_s):
            if self._timeout_s is None:
                return call()
            try:
                return self._thread.result(call, self._timeout_s)
            except _Overran:
                board().give_up()
                raise PolicyFailure(
                    f"The policy {name!r} took longer than --timeout {self._timeout_s:g} s in {method}."
                ) from None


@contextmanager
def blaming(policy: str, method: str, limit_s: float | None = None) -> Iterator[None]:
    """Runs a policy's code. Whatever it raises is a PolicyFailure, but for a UsageError."""
    try:
        with board().policy(policy, method, limit_s), foreign_code():
            yield
    except BaseException as error:  # argparse in a checkpoint loader exits, a tokenizer in Rust panics
        if not is_theirs(error):
            raise
        said = f": {text}" if (text := message_of(error)) else ""
        raise PolicyFailure(f"The policy {policy!r} raised {type(error).__name__} in {method}{said}.") from error


class _Overran(Exception):
    """A call took longer than it may. A TimeoutError may be the policy's own, of a server it asks."""


class _Thread:
    """One thread for all timed calls of a policy, so that what a model keeps per thread stays; a hung one is left."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def result(self, call: Callable[[], T], seconds: float) -> T:
        """What `call` returns or raises. Raises _Overran."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._calls.put(call)
        try:
            value, error = self._results.get(timeout=seconds)
        except queue.Empty:
            raise _Overran from None
        if error is not None:
            raise error
        returned: T = value
        return returned

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            try:
                with foreign_code():
                    result = call()
                self._results.put((result, None))
            except BaseException as error:
                self._results.put((None, error))


def check_chunks(chunks: Any, asked: int, spec: PolicySpec) -> list[ActionChunk]:
    """The chunks, known to be `asked` ActionChunks of what that policy may answer. Raises UsageError."""
    name = spec.name
    expected = f"expected one ActionChunk per observation ({asked})"
    if not isinstance(chunks, Sequence):
        raise UsageError(f"The policy {name!r} returned {_kind(chunks)} from infer, {expected}; return a list.")
    if len(chunks) != asked:
        raise UsageError(f"The policy {name!r} returned {len(chunks)} chunks from infer, {expected}.")
    for chunk in chunks:
        if not isinstance(chunk, ActionChunk):
            raise UsageError(f"The policy {name!r} returned a list of {_kind(chunk)}, {expected}.")
    return [
        ActionChunk(
            _checked_actions(chunk.actions, spec.action.dim, name),
            _checked_stages(chunk.stages, name),
            _checked_attention(chunk.attention, spec),
            _checked_intention(chunk, spec),
        )
        for chunk in chunks
    ]


def _checked_intention(chunk: ActionChunk, spec: PolicySpec) -> Float32 | None:
    if chunk.intended is None:
        return None
    intended = _checked_actions(chunk.intended, spec.action.dim, spec.name)
    if len(intended) != len(chunk.actions):
        raise UsageError(
            f"The policy {spec.name!r} returned {len(chunk.actions)} actions and {len(intended)} intended ones, "
            "expected one for each."
        )
    return intended


def _checked_attention(given: Any, spec: PolicySpec) -> dict[str, Attention]:
    said = f"The policy {spec.name!r} returned an attention"
    if not isinstance(given, Mapping) or not all(isinstance(one, Attention) for one in given.values()):
        raise UsageError(f"{said} that is {_kind(given)}, expected a mapping of camera names to Attention.")
    cameras = [camera.name for camera in spec.cameras]
    if unknown := [name for name in given if name not in cameras]:
        raise UsageError(f"{said} to {unknown[0]!r}, expected cameras it reads: {', '.join(cameras) or 'none'}.")
    checked = {name: _checked_grid(one, f"{said} to {name}") for name, one in given.items()}
    total = sum(inside_total(one) for one in checked.values())
    if total > 1 + _ATTENTION_TOLERANCE:
        raise UsageError(f"{said} that sums to {total:g} over its pictures, expected at most 1; divide by the sum.")
    return checked


def _checked_grid(given: Attention, said: str) -> Attention:
    """`said` opens the sentence."""
    weights, box = np.asarray(given.weights), np.asarray(given.box)
    if weights.ndim != 2 or 0 in weights.shape or weights.dtype.kind != "f":
        raise UsageError(f"{said} of {_kind(weights)} and dtype {weights.dtype}, expected float32 (rows, columns).")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise UsageError(f"{said} with the weight {wrong:g}, expected finite numbers of at least 0.")
    if box.shape != (4,) or box.dtype.kind not in "fi" or not np.isfinite(box).all() or (box[:2] >= box[2:]).any():
        raise UsageError(f"{said} with the box {given.box}, expected left < right and top < bottom as (l, t, r, b).")
    left, top, right, bottom = map(float, box)
    return Attention(weights.astype(np.float32), (left, top, right, bottom))


def _checked_stages(stages: Any, name: str) -> dict[str, float]:
    try:
        checked = {str(stage): float(milliseconds) for stage, milliseconds in stages.items()}
    except (AttributeError, TypeError, ValueError):
        checked = {"": math.nan}
    if not all(math.isfinite(milliseconds) for milliseconds in checked.values()):
        raise UsageError(
            f"The policy {name!r} returned the stages {stages!r}, expected a name and milliseconds for each."
        )
    return checked


def _checked_actions(given: Any, dim: int, name: str) -> Float32:
    """The actions as float32, known to be finite as such."""
    expected = f"expected float32 (H >= 1, {dim})"
    try:
        actions = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU or with a gradient
        raise UsageError(
            f"The policy {name!r} returned actions that are no array ({' '.join(str(error).split())}), {expected}."
        ) from None
    if actions.dtype.kind != "f":
        raise UsageError(f"The policy {name!r} returned actions of dtype {actions.dtype}, {expected}.")
    if actions.ndim != 2 or actions.shape[1] != dim or len(actions) == 0:
        raise UsageError(f"The policy {name!r} returned actions of shape {actions.shape}, {expected}.")
    with np.errstate(over="ignore"):
        played = actions.astype(np.float32)
    if not np.isfinite(played).all():
        step, entry = np.argwhere(~np.isfinite(played))[0]
        value = actions[step, entry]
        raise UsageError(f"The policy {name!r} returned {value} in action {step}, entry {entry}: not a number to play.")
    return played


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
    if spec.execute is not None and not 1 <= spec.execute <= spec.chunk:
        raise UsageError(
            f"The policy {spec.name!r} answers {spec.chunk} actions and has {spec.execute} of them played; mend its "
            "spec.execute."
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
