"""Policies and a suite that end, leave or fork where they should answer; importable as rude:Rude, rude:suite, ..."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest

from vla_bench.registry import PlugIns
from vla_bench.training.learning import Recipe, Samples, Scales
from vla_bench.types import ActionChunk, Env, Episode, Frame, Observation, Suite, Task, Transition


class Panic(BaseException):
    """As pyo3 raises it for a panic in Rust."""


def raising(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def rude() -> None:
        raise error

    return rude


def leave_from_a_thread() -> None:
    """As the watchdog of a client that has lost its server."""
    threading.Thread(target=os._exit, args=(0,)).start()
    time.sleep(30)


def fork_and_go_on() -> None:
    """The child comes back to whoever called, as the parent does."""
    if os.fork() == 0:
        print("from the child")
    else:
        os.wait()


def close_everything() -> None:
    """As who turns into a daemon."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.close()
    os.closerange(0, 3)
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


EARLY = sys.stdout
"""As a logger keeps it that was made before anything else."""


def print_everywhere() -> None:
    print("in Python")
    EARLY.write("to an early copy\n")
    os.write(1, b"below Python\n")
    subprocess.run(["echo", "in a child"], check=True)


def swallow() -> None:
    """Ctrl-C comes, and is taken for an error of its own."""
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


WAYS: Mapping[str, Callable[[], object]] = {
    "raise": raising(RuntimeError("it fell")),
    "exit 0": lambda: sys.exit(0),
    "exit 1": lambda: sys.exit(1),
    "exit": sys.exit,
    "exit text": lambda: sys.exit("no such gripper"),
    "_exit 0": lambda: os._exit(0),
    "_exit 1": lambda: os._exit(1),
    "cancel": raising(asyncio.CancelledError()),
    "generator": raising(GeneratorExit()),
    "interrupt": raising(KeyboardInterrupt()),
    "panic": raising(Panic("called `Option::unwrap()` on a `None` value")),
    "timeout": raising(TimeoutError("the server does not answer")),
    "thread": leave_from_a_thread,
    "fork": fork_and_go_on,
    "nan": lambda: [ActionChunk(np.full((4, 2), np.nan, np.float32))],
    "short": lambda: [ActionChunk(np.ones((1, 2), np.float32))],
    "full": raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")),
    "abort": os.abort,
    "exec": lambda: os.execvp("true", ["true"]),
    "close": close_everything,
    "print": print_everywhere,
    "leave": lambda: os.chdir("away"),
    "swallow": swallow,
}


def misbehave(how: str, place: str, where: str) -> Any:
    return WAYS[how]() if how and place == where else None


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes longer than a run of toys: metadata of two hundred packages, hashes of code, cycles."""
    patch.setattr("vla_bench.store.provenance._versions", lambda: {})
    patch.setattr("vla_bench.registry._plugins", lambda _: PlugIns({}, {}))
    patch.setattr("vla_bench.registry.imports_hash", lambda _: "")
    patch.setattr("gc.collect", lambda: 0)


class Rude(fakes.Walker):
    """A Walker that misbehaves at a place: import, make, reset, infer, or one of those of training."""

    def __init__(
        self, suite: Suite, how: str = "", where: str = "infer", checkpoint: str = "", speed: float = 0.5
    ) -> None:
        self.how, self.where = how, where
        self.misbehave("make")
        super().__init__(suite, speed, checkpoint=checkpoint)

    def misbehave(self, place: str) -> Any:
        return misbehave(self.how, place, self.where)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        self.misbehave("reset")
        super().reset(slots, episodes)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        wrong = self.misbehave("infer") if self.batches else None  # one answer is good
        return wrong or super().infer(observations)


class Leaver(Rude):
    """A Rude that leaves without having been told to."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite, "exit 0")


class Pupil(Rude):
    """A Rude that can be taught and kept; it also misbehaves in recipe, learner, step, validate, keep and save."""

    done = 0

    def __init__(
        self,
        suite: Suite,
        *,
        checkpoint: str = "",
        how: str = "",
        where: str = "infer",
        size: str = "",
        weights_seed: int = 0,
        device: str = "",
        dtype: str = "",
    ) -> None:
        del size, weights_seed, device, dtype
        super().__init__(suite, how, where, str(Path(checkpoint).stat().st_size) if checkpoint else "")

    def recipe(self) -> Recipe:
        self.misbehave("recipe")
        return Recipe(steps=2, batch_size=2, learning_rate=0.1, warmup=0)

    def learner(self, recipe: Recipe, state: Scales, action: Scales, seed: int, threads: int) -> Pupil:
        self.misbehave("learner")
        return self

    def step(self, samples: Samples) -> Mapping[str, float]:
        self.misbehave("step")
        self.done += 1
        return {"loss": 1.0}

    def validate(self, batches: Iterable[Samples]) -> Mapping[str, float]:
        self.misbehave("validate")
        return {"loss": float(sum(len(batch.state) for batch in batches))}

    def keep(self, file: Path) -> None:
        self.misbehave("keep")
        file.write_text(str(self.done), encoding="utf-8")

    def resume(self, file: Path) -> None:
        self.done = int(file.read_text(encoding="utf-8"))

    def save(self, path: str | Path, provenance: Mapping[str, str], weights: str = "") -> None:
        self.misbehave("save")
        Path(path).write_text("weights", encoding="utf-8")


def suite(name: str = "rude", how: str = "", where: str = "advance") -> Suite:
    """The toy, whose environments misbehave: make_env, reset_trial, advance, fingerprint, film or close."""

    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        misbehave(how, "make_env", where)
        return RudeEnv(task, cameras, how, where)

    def provenance() -> dict[str, str]:
        misbehave(how, "provenance", where)
        return {"toy": "1"}

    misbehave(how, "suite", where)
    return dataclasses.replace(fakes.suite("rude"), make_env=make_env, provenance=provenance)


class RudeEnv(fakes.ToyEnv):
    def __init__(self, task: Task, cameras: Sequence[str], how: str, where: str) -> None:
        super().__init__(task, cameras, None, "")
        self.how, self.where = how, where

    def misbehave(self, place: str) -> None:
        misbehave(self.how, place, self.where)

    def reset_trial(self, trial: int, seed: int) -> Observation:
        self.misbehave("reset_trial")
        return super().reset_trial(trial, seed)

    def advance(self, actions: np.ndarray) -> Transition:
        self.misbehave("advance")
        return super().advance(actions)

    def fingerprint(self) -> str:
        self.misbehave("fingerprint")
        return super().fingerprint()

    def film(self) -> Iterator[Frame]:
        self.misbehave("film")
        return super().film()

    def close(self) -> None:
        self.misbehave("close")
