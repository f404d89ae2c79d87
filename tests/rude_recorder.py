"""The toy that can be recorded, misbehaving as `rude` does; on its own, as a run hashes all that its code imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import test_collect
from rude import misbehave

from vla_bench.types import Env, Suite, Task, Transition


def suite(name: str = "recorded", how: str = "", where: str = "advance", max_steps: int = 40) -> Suite:
    """A toy that can be recorded, and misbehaves as a suite or in advance."""
    misbehave(how, "suite", where)

    class RudeRecorder(test_collect.RecordingToy):
        def advance(self, actions: np.ndarray) -> Transition:
            misbehave(how, "advance", where)
            return super().advance(actions)

    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        return RudeRecorder(task, cameras, None, "")

    return dataclasses.replace(test_collect.suite(name, max_steps), make_env=make_env)
