"""Plays recorded actions again: proves that a suite is reproducible, and turns any run into a policy.

The recording is what `vla-bench run --record-actions FILE` wrote (the executed actions of every episode), a data set of
`vla-bench collect`, or a file of LIBERO's published demonstrations. What is not obvious:

- One action per inference. A policy is not told how much of its chunk was played, so a longer chunk under `--execute K`
  would lose its place; with one, every chunking strategy plays exactly the recording, the ensembles included, and
  `--execute 8` is a usage error. It costs nothing but calls: no camera is read, so nothing is rendered.
- The recorded run's own chunk boundaries do not matter: the simulator sees the same actions one after the other.
- When the recording ends before the episode does (a longer step limit, or a success that did not come again) the hand
  stands still and the gripper keeps its last command.
- Published demonstrations begin in states of their own: demonstration k is played as trial k of seed 0, whose scene is
  first put into that state. The scene's fingerprint in the row is that of the trial.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, ActionSpec, Episode, Float32, Observation, PolicySpec, Suite

from .baselines import standing_still


class Replay:
    """The actions recorded for the same episode: same suite, task, trial, seed and perturbation."""

    def __init__(self, suite: Suite, checkpoint: str) -> None:
        from vla_bench.data.recorded import read_recorded

        self.recorded = read_recorded(checkpoint, suite)
        """By episode, what the files say."""
        elsewhere = any(recorded.beginning is not None for recorded in self.recorded.values())
        digest = _digest(Path(checkpoint))
        self.spec = PolicySpec(name="replay", action=suite.action, checkpoint=digest, privileged=elsewhere)
        self._env: Any = None
        self._running: dict[int, Iterator[Float32]] = {}

    def attach(self, env: Any) -> None:
        """Recordings that begin in a state of their own are begun in this environment."""
        self._env = env

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Start each slot at the first action of its episode. Raises UsageError for one that was not recorded."""
        for slot, episode in zip(slots, episodes, strict=True):
            self._running[slot] = self._play(episode)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(next(self._running[observation.slot])[None]) for observation in observations]

    def _play(self, episode: Episode) -> Iterator[Float32]:
        if episode not in self.recorded:
            raise _missing(episode, self.recorded)
        recorded = self.recorded[episode]
        if recorded.beginning is not None:
            if not hasattr(self._env, "start_from"):
                raise UsageError(f"{episode.suite} cannot begin in a recorded state: replay what vla-bench collected.")
            self._env.start_from(*recorded.beginning)
        return chain(recorded.actions, repeat(_hold(recorded.actions, self.spec.action)))


def _hold(actions: Float32, spec: ActionSpec) -> Float32:
    """The action (A,) that changes nothing after the (n, A) ones: no motion, the gripper as last commanded."""
    if len(actions) == 0:
        return standing_still(spec)
    hold: Float32 = actions[-1].copy()
    if spec.control == "delta_pose":  # otherwise an action is a place: to stay is to ask for it again
        hold[: spec.dim - (spec.gripper != "none")] = 0.0
    return hold


def _digest(path: Path) -> str:
    """SHA-256 of the file, of a folder's files by name."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _missing(episode: Episode, recorded: Iterable[Episode]) -> UsageError:
    """Says how many episodes there are and which of them is most like `episode`, its fields compared in order."""

    def likeness(other: Episode) -> list[bool]:
        return [a == b for a, b in zip(astuple(episode), astuple(other), strict=True)]

    others = sorted(recorded, key=likeness)
    nearest = f", the nearest of them {_label(others[-1])}" if others else ""
    return UsageError(f"No actions were recorded for {_label(episode)}; the file has {len(others)} episodes{nearest}.")


def _label(episode: Episode) -> str:
    return " ".join(f"{name} {value}" for name, value in asdict(episode).items() if value != "")
