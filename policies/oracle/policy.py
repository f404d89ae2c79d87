"""Scripted experts that read the simulator itself: what the robot and the controller allow, not what can be seen.

How it works: a task is read off the environment (LIBERO's goal predicates, robosuite's class) as wishes, each wish is
fulfilled by skills, and skills are generators of actions, each action computed from the simulator as it is at that
moment, so the loop is closed. Where there is a choice (which grasp, which place) the candidates are tried in a copy of
the simulator first. No randomness: the same scene gives the same actions. docs/oracle.md tells more.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, Episode, Observation, PolicySpec, Suite

from .arm import CLOSE, OPEN, Actions, Arm, Pose, Script

__all__ = ["CLOSE", "OPEN", "Arm", "Oracle", "Pose"]


class Family(NamedTuple):
    """Suites whose tasks one module knows how to solve."""

    suites: str
    """How their names begin."""
    module: str
    """Sibling with `script_of(task) -> Script | None`."""


FAMILIES = (
    Family("robosuite", "robosuite"),
    Family("libero", "libero"),
    Family("calvin", "calvin"),
    Family("tiny", "tiny"),
)


class Oracle:
    """The upper bound of a task: solves it from privileged state, one action per inference."""

    def __init__(self, suite: Suite) -> None:
        if not any(script_of(suite.name, task) for task in suite.names):
            raise _cannot(f"any task of {suite.name}")
        self.spec = PolicySpec(name="oracle", action=suite.action, privileged=True)
        self._env: Any = None
        self._actions: Actions = iter(())

    def attach(self, env: Any) -> None:
        """Use this environment from the next reset on."""
        self._env = env

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Begin the script of the episode's task. Raises UsageError for a task it has no script for."""
        (episode,) = episodes  # a privileged policy runs beside one environment
        script = script_of(episode.suite, episode.task)
        if script is None:
            raise _cannot(f"{episode.task} of {episode.suite}")
        self._actions = script(self._env, self.spec.action)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        (_,) = observations
        return [ActionChunk(next(self._actions)[None])]


def script_of(suite: str, task: str) -> Script | None:
    """How to solve the task, None if nobody knows."""
    for family in FAMILIES:
        if suite.startswith(family.suites):
            script: Script | None = importlib.import_module(f"{__package__}.{family.module}").script_of(task)
            return script
    return None


def _cannot(what: str) -> UsageError:
    known = ", ".join(family.suites for family in FAMILIES)
    return UsageError(f"The oracle cannot do {what}; it knows tasks of the suites whose names begin with: {known}.")
