"""Plays recorded actions again: proves that a suite is reproducible, and turns any run into a policy.

The recording is what `vla-bench run --record-actions FILE` wrote: the executed actions of every episode. What is not
obvious:

- One action per inference. A policy is not told how much of its chunk was played, so a longer chunk under `--execute K`
  would lose its place; with one, every chunking strategy plays exactly the recording, the ensembles included, and
  `--execute 8` is a usage error. It costs nothing but calls: no camera is read, so nothing is rendered.
- The recorded run's own chunk boundaries do not matter: the simulator sees the same actions one after the other.
- When the recording ends before the episode does (a longer step limit, or a success that did not come again) the hand
  stands still and the gripper keeps its last command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from itertools import chain, repeat
from pathlib import Path

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, ActionSpec, Episode, Float32, Observation, PolicySpec, Suite

from .baselines import standing_still


class Replay:
    """The actions recorded for the same episode: same suite, task, trial, seed and perturbation."""

    def __init__(self, suite: Suite, checkpoint: str) -> None:
        self._recorded = _read(checkpoint, suite.action)
        digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        self.spec = PolicySpec(name="replay", action=suite.action, checkpoint=digest)
        self._running: dict[int, Iterator[Float32]] = {}

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Start each slot at the first action of its episode. Raises UsageError for one that was not recorded."""
        for slot, episode in zip(slots, episodes, strict=True):
            self._running[slot] = self._play(episode)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(next(self._running[observation.slot])[None]) for observation in observations]

    def _play(self, episode: Episode) -> Iterator[Float32]:
        if episode not in self._recorded:
            raise _missing(episode, self._recorded)
        actions = self._recorded[episode]
        return chain(actions, repeat(_hold(actions, self.spec.action)))


def _hold(actions: Float32, spec: ActionSpec) -> Float32:
    """The action (A,) that changes nothing after the (n, A) ones: no motion, the gripper as last commanded."""
    if len(actions) == 0:
        return standing_still(spec)
    hold: Float32 = actions[-1].copy()
    if spec.control == "delta_pose":  # otherwise an action is a place: to stay is to ask for it again
        hold[: spec.dim - (spec.gripper != "none")] = 0.0
    return hold


def _read(path: str, action: ActionSpec) -> Mapping[Episode, Float32]:
    from vla_bench.store import read_actions

    if not Path(path).is_file():
        raise UsageError(f"replay needs --checkpoint FILE, written by vla-bench run --record-actions; got {path!r}.")
    recorded: dict[Episode, Float32] = read_actions(Path(path))
    widths = {actions.shape[1] for actions in recorded.values() if len(actions)}
    if wrong := sorted(widths - {action.dim}):
        raise UsageError(f"{path} has actions of {wrong} numbers, the suite's have {action.dim}.")
    return recorded


def _missing(episode: Episode, recorded: Iterable[Episode]) -> UsageError:
    """Says how many episodes there are and which of them is most like `episode`, its fields compared in order."""

    def likeness(other: Episode) -> list[bool]:
        return [a == b for a, b in zip(astuple(episode), astuple(other), strict=True)]

    others = sorted(recorded, key=likeness)
    nearest = f", the nearest of them {_label(others[-1])}" if others else ""
    return UsageError(f"No actions were recorded for {_label(episode)}; the file has {len(others)} episodes{nearest}.")


def _label(episode: Episode) -> str:
    return " ".join(f"{name} {value}" for name, value in asdict(episode).items() if value != "")
