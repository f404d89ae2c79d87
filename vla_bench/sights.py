"""What an expert's hand comes past: observations along its episodes, shown to a policy that does not act.

The expert plays first, without a picture; then its actions are played again, a few at a time, and only what a policy
will be shown is painted. The simulator is bit-reproducible, so both are the same episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_bench.chunking import RecedingHorizon
from vla_bench.errors import UsageError
from vla_bench.inference import LocalPolicy
from vla_bench.registry import make_policy
from vla_bench.rollout import Actor, Stage, attach, inference_seed
from vla_bench.store import read_actions
from vla_bench.types import Env, Episode, Float32, Observation, PolicySpec, Suite, Task

PER_EPISODE = 20  # most moments at which a policy that looks is asked
Change = Callable[[Observation], Observation]


class Sight(NamedTuple):
    """One moment of an expert's episode."""

    episode: Episode
    number: int
    """Of the episode, from 0."""
    step: int
    begins: bool
    """The first of its episode, or of its instruction."""
    observation: Observation


def expert_episodes(suite: Suite, tasks: Sequence[Task], count: int, seed: int = 0) -> dict[Episode, Float32]:
    """The oracle's actions (T, A) in `count` episodes that it solves, spread over the tasks.

    Raises UsageError when it solves none.
    """
    oracle = make_policy("oracle", suite)
    stage = Stage(suite, (), Actor(LocalPolicy(oracle), RecedingHorizon()), attach(oracle))
    solved: dict[Episode, Float32] = {}
    reason = "it failed in all of them"
    try:
        for episode in _spread(suite, tasks, count, seed):
            try:
                rollout = stage.play(episode)
            except UsageError as error:
                reason = str(error)
                continue
            if rollout.result.success:
                solved[episode] = rollout.actions
    finally:
        stage.close()
    if not solved:
        raise UsageError(f"The oracle solved none of {count} episodes of {suite.name}: {reason} Give --recording FILE.")
    return solved


def _spread(suite: Suite, tasks: Sequence[Task], count: int, seed: int) -> list[Episode]:
    each = ceil(count / len(tasks))
    every = [Episode(suite.name, task.name, k, seed) for task in tasks for k in range(min(each, task.trials))]
    return every[:count]


def recorded_episodes(file: str, suite: Suite, tasks: Sequence[Task], count: int) -> dict[Episode, Float32]:
    """The first `count` recorded episodes of those tasks. Raises UsageError when there are none."""
    if not Path(file).is_file():
        raise UsageError(f"--recording takes a file written by vla-bench run --record-actions; there is no {file!r}.")
    names = {task.name for task in tasks}
    fitting = {e: a for e, a in read_actions(file).items() if e.suite == suite.name and e.task in names and len(a)}
    wrong = {a.shape[1] for a in fitting.values()} - {suite.action.dim}
    if wrong:
        raise UsageError(f"{file} has actions of {sorted(wrong)} numbers, the suite's have {suite.action.dim}.")
    if not fitting:
        raise UsageError(f"{file} holds no episode of {suite.name} with the task {' or '.join(sorted(names))}.")
    ordered = sorted(fitting, key=lambda e: (suite.names.index(e.task), e.trial))
    return {episode: fitting[episode] for episode in ordered[:count]}


@dataclass
class Tour:
    """The expert's episodes played again; iterating yields the sights, the simulator standing at each."""

    suite: Suite
    spec: PolicySpec
    """Of the policy that will be asked: its cameras are painted, its history is kept."""
    scripts: Mapping[Episode, Float32]
    watch: Callable[[Env], None] | None = None
    solved: list[Episode] = field(default_factory=list)
    """Episodes that succeeded again."""

    def __iter__(self) -> Iterator[Sight]:
        for task in dict.fromkeys(episode.task for episode in self.scripts):
            env = self.suite.make_env(self.suite.task(task), [camera.name for camera in self.spec.cameras])
            try:
                if self.spec.history > 1:
                    env.look_back(self.spec.history)
                for number, episode in enumerate(self.scripts):
                    if episode.task == task:
                        yield from self._episode(env, number, episode)
            finally:
                env.close()

    def _episode(self, env: Env, number: int, episode: Episode) -> Iterator[Sight]:
        if self.watch is not None:
            self.watch(env)
        actions = self.scripts[episode]
        stride = ceil(len(actions) / PER_EPISODE) if self.spec.cameras else 1
        observation, step, begins = env.reset_trial(episode.trial, episode.seed), 0, True
        while step < len(actions):
            yield Sight(episode, number, step, begins, observation)
            observation, steps, success, truncated, _, begins, *_ = env.advance(actions[step : step + stride])
            step += steps
            if success:
                self.solved.append(episode)
            if success or truncated or not steps:
                return


def ask(policy: LocalPolicy, sights: Iterator[Sight] | Sequence[Sight], change: Change | None = None) -> list[Float32]:
    """The policy's chunk (H, A) at every sight, in order, as in an episode of its own; `change` alters what it sees."""
    answers, calls = [], 0
    previous = -1
    for sight in sights:
        if sight.begins or sight.number != previous:
            policy.begin(sight.episode)
            calls = 0 if sight.number != previous else calls
            previous = sight.number
        seen = sight.observation if change is None else change(sight.observation)
        answers.append(policy.answer(replace(seen, seed=inference_seed(sight.episode, calls))).actions)
        calls += 1
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
