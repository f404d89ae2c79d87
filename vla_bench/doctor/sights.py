"""What an expert's hand comes past: observations along its episodes, shown to a policy that does not act.

The expert plays first, without a picture; then its actions are played again, a few at a time, and only what a policy
will be shown is painted. The simulator is bit-reproducible, so both are the same episode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_bench.chunking import RecedingHorizon
from vla_bench.data.recorded import read_recorded
from vla_bench.data.recording import Recorded
from vla_bench.errors import UsageError
from vla_bench.inference import LocalPolicy, blaming
from vla_bench.registry import make_policy, telling
from vla_bench.rollout import Actor, Stage, attach, inference_seed
from vla_bench.types import Env, Episode, Float32, Observation, PolicySpec, Suite, Task

PER_EPISODE = 20  # most moments at which a policy that looks is asked
PATIENCE_S = 15.0  # between two words about how far it is
Change = Callable[[Observation], Observation]
Tell = Callable[[str], None]
"""Takes one sentence about what is being done."""


class Sight(NamedTuple):
    """One moment of an expert's episode."""

    episode: Episode
    number: int
    """Of the episode, from 0."""
    step: int
    begins: bool
    """The first of its episode, or of its instruction."""
    observation: Observation


class Expert(NamedTuple):
    """Who shows how it is done."""

    name: str
    tried: int
    """Episodes it played."""
    solved: Mapping[Episode, Recorded]
    """Those worth showing: known to have succeeded, or of unknown outcome."""


def oracle_expert(suite: Suite, tasks: Sequence[Task], count: int, tell: Tell, seed: int = 0) -> Expert:
    """The suite's oracle in `count` episodes, spread over the tasks. Raises UsageError when it solves none."""
    oracle = make_policy("oracle", suite)
    stage = Stage(suite, (), Actor(LocalPolicy(oracle), RecedingHorizon()), attach(oracle))
    episodes = _spread(suite, tasks, count, seed)
    solved: dict[Episode, Recorded] = {}
    reason = "it failed in all of them."
    try:
        for number, episode in enumerate(episodes, 1):
            try:
                rollout = stage.play(episode)
            except UsageError as error:  # it has no script for this task
                reason = str(error)
                continue
            result = rollout.result
            if result.success:
                solved[episode] = Recorded(rollout.actions, True, result.final_fingerprint)
            elif result.error:
                reason = f"{result.error}: {result.message}"
            ended = "solved" if result.success else "not solved"
            tell(f"the oracle, episode {number} of {len(episodes)}: {episode.task}, {ended} in {result.steps} steps")
    finally:
        stage.close()
    if not solved:
        said = f"The oracle solved none of {len(episodes)} episodes of {suite.name}: {reason}"
        raise UsageError(f"{said} Choose another --task, or give --recording FILE.")
    return Expert("the oracle", len(episodes), solved)


def _spread(suite: Suite, tasks: Sequence[Task], count: int, seed: int) -> list[Episode]:
    each = ceil(count / len(tasks))
    every = [Episode(suite.name, task.name, k, seed) for task in tasks for k in range(min(each, task.trials))]
    return every[:count]


def recorded_expert(file: str, suite: Suite, tasks: Sequence[Task], count: int) -> Expert:
    """The first `count` recorded episodes of those tasks. Raises UsageError when there are none to use."""
    if not Path(file).exists():
        raise UsageError(f"--recording takes what run --record-actions or collect wrote; there is no {file!r}.")
    names = {task.name for task in tasks}
    fitting = {e: r for e, r in read_recorded(file, suite).items() if e.suite == suite.name and e.task in names}
    if not fitting:
        raise UsageError(f"{file} holds no episode of {suite.name} with the task {' or '.join(sorted(names))}.")
    ordered = sorted(fitting, key=lambda e: (suite.names.index(e.task), e.trial))[:count]
    solved = {e: fitting[e] for e in ordered if fitting[e].success is not False and len(fitting[e].actions)}
    if not solved:
        raise UsageError(f"None of the first {len(ordered)} episodes in {file} succeeded: record an expert's.")
    if any(recorded.beginning is not None for recorded in solved.values()):
        raise UsageError(
            f"The episodes in {file} begin in states of their own, the doctor's in the suite's trials: "
            "give what vla-bench collect or vla-bench run --record-actions wrote, or no --recording."
        )
    return Expert(file, len(ordered), solved)


class Ending(NamedTuple):
    """How an episode ended that was played again."""

    success: bool
    fingerprint: str


@dataclass
class Tour:
    """The expert's episodes played again; iterating yields the sights, the simulator standing at each."""

    suite: Suite
    spec: PolicySpec
    """Of the policy that will be asked: its cameras are painted, its history is kept."""
    expert: Expert
    watch: Callable[[Env], None] | None = None
    ended: dict[Episode, Ending] = field(default_factory=dict)
    """Filled while iterating."""

    def __iter__(self) -> Iterator[Sight]:
        for task in dict.fromkeys(episode.task for episode in self.expert.solved):
            with self._telling("make_env"):
                env = self.suite.make_env(self.suite.task(task), [camera.name for camera in self.spec.cameras])
                if self.spec.history > 1:
                    env.look_back(self.spec.history)
            try:
                for number, episode in enumerate(self.expert.solved):
                    if episode.task == task:
                        yield from self._episode(env, number, episode)
            finally:
                with self._telling("close"):
                    env.close()

    def _telling(self, method: str) -> AbstractContextManager[None]:
        return telling(f"The environment of the suite {self.suite.name!r} failed in {method}")

    def _episode(self, env: Env, number: int, episode: Episode) -> Iterator[Sight]:
        if self.watch is not None:
            with blaming(self.spec.name, "attach"):
                self.watch(env)
        actions = self.expert.solved[episode].actions
        stride = ceil(len(actions) / PER_EPISODE) if self.spec.cameras else 1
        step, begins, success = 0, True, False
        with self._telling("reset_trial"):
            observation = env.reset_trial(episode.trial, episode.seed)
        while step < len(actions):
            yield Sight(episode, number, step, begins, observation)
            with self._telling("advance"):
                observation, steps, success, truncated, _, begins, *_ = env.advance(actions[step : step + stride])
            step += steps
            if success or truncated:
                break
        with self._telling("fingerprint"):
            self.ended[episode] = Ending(bool(success), env.fingerprint())


def ask(
    policy: LocalPolicy, sights: Iterable[Sight], change: Change | None = None, tell: Tell | None = None
) -> list[Float32]:
    """The policy's chunk (H, A) at every sight, in order, as in an episode of its own; `change` alters what it sees."""
    answers, calls = [], 0
    previous, spoke = -1, time.monotonic()
    for sight in sights:
        if sight.begins or sight.number != previous:
            policy.begin(sight.episode)
            calls = 0 if sight.number != previous else calls
            previous = sight.number
        seen = sight.observation if change is None else change(sight.observation)
        answers.append(policy.answer(replace(seen, seed=inference_seed(sight.episode, calls))).actions)
        calls += 1
        if tell is not None and time.monotonic() > spoke + PATIENCE_S:
            spoke = time.monotonic()
            tell(f"{len(answers)} answers so far")
    return answers


def ask_alone(policy: LocalPolicy, sight: Sight, seen: Observation, seed: int = 1) -> Float32:
    """(H, A): its answer to one observation as the first of an episode."""
    policy.begin(sight.episode)
    return policy.answer(replace(seen, seed=seed, slot=0)).actions


def ask_together(policy: LocalPolicy, sights: Sequence[Sight], seed: int = 1) -> list[Float32]:
    """Its answers to several observations in one call, each in a slot of its own."""
    for slot, sight in enumerate(sights):
        policy.begin(sight.episode, slot)
    asked = [replace(sight.observation, slot=slot, seed=seed) for slot, sight in enumerate(sights)]
    return [answer.actions for answer in policy.answer_all(asked, [0.0] * len(asked))]


def stacked(chunks: Sequence[Float32]) -> np.ndarray:
    """(N, H, A) float64, cut to the shortest chunk."""
    length = min(map(len, chunks))
    return np.stack([chunk[:length] for chunk in chunks]).astype(np.float64)
