"""Demonstrations in memory, as batches to learn from: what `vla-bench collect` wrote, LeRobotDataset or HDF5.

Pictures stay uint8, an array per episode: 300 episodes of 100 steps with two cameras of 128 pixels are 2.9 GB, of 64
pixels 0.7 GB. Both formats give the same arrays, and the same sha256.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.data import hdf5 as dataset_hdf5
from vla_bench.data import lerobot as dataset_lerobot
from vla_bench.data.demonstrations import decode
from vla_bench.data.hdf5 import ENDINGS, image_key, import_h5py
from vla_bench.data.lerobot import DATA_PATH, INFO
from vla_bench.data.recorded import HDF5, LEROBOT
from vla_bench.errors import UsageError
from vla_bench.registry import make_suite
from vla_bench.training.learning import Samples
from vla_bench.types import Camera, Episode, Float32, Image, Suite

if TYPE_CHECKING:
    import h5py

WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The gaze box where the region is hidden: the picture itself."""


@dataclass(frozen=True)
class Trajectory:
    """One successful episode of T control steps."""

    episode: Episode
    images: Mapping[str, Image]
    """Camera name to (T, height, width, 3)."""
    states: Float32
    """(T, S)."""
    actions: Float32
    """(T, A) to learn: as the expert intended them, before noise was put on them; as executed where only that is said.
    """
    boxes: Mapping[str, Float32]
    """Camera name to (T, 4): x0, y0, x1, y1 of the gaze region as shares of the picture's sides."""
    instructions: tuple[str, ...]
    """(T,)."""

    def __len__(self) -> int:
        return len(self.actions)

    def instruction_of(self, step: int) -> tuple[int, int]:
        """The first step of the instruction that is followed at that step, and the one after its last."""
        first = bisect.bisect_right(self._beginnings, step) - 1
        return self._beginnings[first], [*self._beginnings, len(self)][first + 1]

    @cached_property
    def _beginnings(self) -> tuple[int, ...]:
        pairs = enumerate(itertools.pairwise(self.instructions), 1)
        return (0, *(step for step, (before, now) in pairs if before != now))

    def content(self) -> Iterator[bytes]:
        """Everything that is learnt from."""
        yield json.dumps([asdict(self.episode), self.instructions]).encode()
        yield self.states.tobytes()
        yield self.actions.tobytes()
        for view in (self.boxes, self.images):
            yield from (view[name].tobytes() for name in sorted(view))


@dataclass(frozen=True)
class TrainingData:
    """Demonstrations of one robot."""

    suite: Suite
    """Whose actions, state and cameras they have; the cameras' sizes are those of the pictures."""
    trajectories: tuple[Trajectory, ...]

    @property
    def frames(self) -> int:
        return sum(map(len, self.trajectories))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.episode.task for one in self.trajectories))

    @property
    def sha256(self) -> str:
        """Of everything that is learnt from, whatever the format of the files."""
        digest = hashlib.sha256()
        for part in itertools.chain.from_iterable(one.content() for one in self.trajectories):
            digest.update(part)
        return digest.hexdigest()

    def split(self, share: float) -> tuple[Moments, Moments]:
        """Moments to learn from and to validate on. Of every task that share of its episodes is held out, one at
        least where the task has two and the share is not zero, evenly spread over them."""
        held = {index for task in self.tasks for index in _held_out(self._of(task), share)}
        numbered = list(enumerate(self.trajectories))
        learnt = tuple(one for index, one in numbered if index not in held)
        cameras = tuple(camera.name for camera in self.suite.cameras)
        return Moments(learnt, cameras), Moments(tuple(one for index, one in numbered if index in held), cameras)

    def _of(self, task: str) -> list[int]:
        return [index for index, one in enumerate(self.trajectories) if one.episode.task == task]


def _held_out(indices: Sequence[int], share: float) -> list[int]:
    count = min(len(indices) - 1, max(1, round(share * len(indices)))) if share > 0 else 0
    return [indices[(2 * number + 1) * len(indices) // (2 * count)] for number in range(count)]


@dataclass(frozen=True)
class Moments:
    """Control steps of some trajectories, numbered one after the other."""

    trajectories: tuple[Trajectory, ...]
    cameras: tuple[str, ...]
    """The first of them is the one whose gaze region is told."""

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(one) for one in self.trajectories[:-1])], dtype=np.int64)

    def __len__(self) -> int:
        return sum(map(len, self.trajectories))

    def draw(self, step: int, size: int, seed: int, history: int, horizon: int) -> Samples:
        """The batch of that step of training: independent draws, by seed and step alone."""
        numbers = np.random.default_rng([seed, step]).integers(len(self), size=size)
        return self.samples(numbers, history, horizon)

    def spread(self, most: int, size: int, history: int, horizon: int) -> Iterator[Samples]:
        """At most `most` moments, evenly spread, in batches of `size`."""
        numbers = np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(np.int64)
        for first in range(0, len(numbers), size):
            yield self.samples(numbers[first : first + size], history, horizon)

    def samples(self, numbers: NDArray[np.int64], history: int, horizon: int) -> Samples:
        """Those moments, `history` control steps back, with `horizon` actions from the oldest of them on.

        Windows end where the instruction does, as at the ends of an episode, for a policy's history and chunk are
        dropped there: before its beginning it stands at its first step; beyond its end its last action is repeated.
        """
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        moments = [(self.trajectories[one], int(n - self._starts[one])) for one, n in zip(which, numbers, strict=True)]
        windows = [(one, t, *one.instruction_of(t)) for one, t in moments]
        past = [(one, np.maximum(np.arange(t - history + 1, t + 1), first)) for one, t, first, _ in windows]
        future = [(one, np.arange(horizon) + t - history + 1, first, end) for one, t, first, end in windows]
        return Samples(
            images={name: np.stack([one.images[name][steps] for one, steps in past]) for name in self.cameras},
            state=np.stack([one.states[steps] for one, steps in past]),
            instructions=[one.instructions[t] for one, t in moments],
            actions=np.stack([one.actions[np.clip(steps, first, end - 1)] for one, steps, first, end in future]),
            valid=np.stack([steps < end for _, steps, _, end in future]),
            gaze=np.stack([one.boxes[self.cameras[0]][t] for one, t in moments]),
        )

    def numbers(self) -> tuple[Float32, Float32]:
        """(N, S) states and (N, A) actions."""
        trajectories = self.trajectories
        return np.concatenate([t.states for t in trajectories]), np.concatenate([t.actions for t in trajectories])


# Reading


class _Source(NamedTuple):
    """A data set that was read."""

    path: Path
    suite: Suite
    trajectories: tuple[Trajectory, ...]


def read_training_data(paths: Sequence[str], suite_name: str | None = None) -> TrainingData:
    """All demonstrations of those folders. Raises UsageError for what is none, or does not fit together.

    The suite is the one they were recorded in, unless said.
    """
    if not paths:
        raise UsageError("There is nothing to learn from; name a folder that vla-bench collect wrote with --data.")
    said = make_suite(suite_name) if suite_name else None
    sources = [_read(Path(path), said) for path in paths]
    suite = replace(said or sources[0].suite, cameras=sources[0].suite.cameras)
    for source in sources:
        _check_fit(source, suite, suite_name or str(sources[0].path))
    trajectories = tuple(one for source in sources for one in source.trajectories)
    if twice := _doubled(suite, trajectories):
        raise UsageError(f"{twice} episodes are there twice; name every collection once.")
    return TrainingData(suite, trajectories)


def _doubled(suite: Suite, trajectories: Sequence[Trajectory]) -> int:
    """How many are copies of others. An episode's name alone does not tell: other arguments of the suite, or other
    noise, make other demonstrations of it."""
    named = Counter(one.episode for one in trajectories)
    again = [one for one in trajectories if named[one.episode] > 1]
    return len(again) - len({TrainingData(suite, (one,)).sha256 for one in again})


def _check_fit(source: _Source, wanted: Suite, whose: str) -> None:
    has = source.suite
    for what, got, expected in (
        ("actions", has.action, wanted.action),
        ("states", has.state, wanted.state),
        ("cameras", has.cameras, wanted.cameras),
    ):
        if got != expected:
            raise UsageError(f"{source.path} has other {what} than {whose}: {got}, expected {expected}.")


def _read(path: Path, said: Suite | None) -> _Source:
    trajectories = _trajectories(path)
    suite = _suite_of(trajectories[0].episode, said)
    for one in trajectories:
        widths = one.states.shape[1], one.actions.shape[1], set(one.images)
        if widths != (len(suite.state), suite.action.dim, {camera.name for camera in suite.cameras}):
            raise UsageError(
                f"{path} has states of {widths[0]}, actions of {widths[1]} numbers and the cameras "
                f"{', '.join(sorted(widths[2]))}, which are not those of the suite {suite.name!r}."
            )
    pictures = trajectories[0].images
    cameras = tuple(Camera(camera.name, *pictures[camera.name].shape[1:3]) for camera in suite.cameras)
    return _Source(path, replace(suite, cameras=cameras), trajectories)


def _suite_of(episode: Episode, said: Suite | None) -> Suite:
    """Where the episode was recorded."""
    if said is not None and said.name == episode.suite:
        return said
    return make_suite(episode.suite)


def _trajectories(path: Path) -> tuple[Trajectory, ...]:
    """All successes of the folder, in an order that does not depend on the format. Raises UsageError."""
    try:
        found = sorted(_found(path), key=lambda one: (one.episode.task, one.episode.seed, one.episode.trial))
    except (OSError, KeyError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is not what vla-bench collect writes ({type(error).__name__}: {said}).") from error
    if not found:
        raise UsageError(f"{path} has no successful episode to learn from; collect some first.")
    return tuple(found)


def _found(path: Path) -> Iterator[Trajectory]:
    """HDF5 before LeRobot, whose pictures have to be decoded."""
    for folder in (path / HDF5, path / LEROBOT, path):
        if (folder / INFO).is_file():
            return _read_lerobot(folder)
        if folder.is_dir() and any(file.suffix in ENDINGS for file in folder.iterdir()):
            return _read_hdf5(folder)
    raise UsageError(f"There are no demonstrations in {path}; --data takes a folder that vla-bench collect wrote.")


def _read_hdf5(folder: Path) -> Iterator[Trajectory]:
    for file in sorted(one for one in folder.iterdir() if one.suffix in ENDINGS):
        with import_h5py().File(file, "r") as archive:
            yield from (_hdf5_trajectory(demo) for demo in archive["data"].values() if demo.attrs["success"])


def _hdf5_trajectory(demo: h5py.Group) -> Trajectory:
    said, gaze = demo.attrs, demo["gaze"]
    names = [name.removesuffix("_box") for name in gaze if name.endswith("_box")]
    images = {name: np.asarray(demo[f"obs/{image_key(name)}"]) for name in names}
    return Trajectory(
        episode=Episode(str(said["suite"]), str(said["task"]), int(said["trial"]), int(said["seed"])),
        images=images,
        states=np.asarray(demo["obs/state"], np.float32),
        actions=np.asarray(demo.get(dataset_hdf5.INTENDED, demo["actions"]), np.float32),
        boxes={name: _shares(np.asarray(gaze[f"{name}_box"]), images[name]) for name in names},
        instructions=tuple(str(sentence) for sentence in demo["instruction"].asstr()[:]),
    )


def _read_lerobot(folder: Path) -> Iterator[Trajectory]:
    import pandas as pd
    import pyarrow.parquet as pq

    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    sentences = dict(zip(tasks["task_index"].tolist(), tasks.index.tolist(), strict=True))
    for file in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            only = [("episode_index", "=", row["episode_index"])]
            if row["vla_bench/success"]:
                frames = pq.read_table(folder / DATA_PATH.format(**place), filters=only).sort_by("frame_index")
                yield _lerobot_trajectory(row, frames, sentences)


def _lerobot_trajectory(row: Mapping[str, Any], frames: Any, sentences: Mapping[int, str]) -> Trajectory:
    shown = "observation.images."
    names = [name.removeprefix(shown) for name in frames.column_names if name.startswith(shown)]
    action = dataset_lerobot.INTENDED if dataset_lerobot.INTENDED in frames.column_names else "action"
    images = {
        name: np.stack([decode(cell["bytes"]) for cell in frames[f"{shown}{name}"].to_pylist()]) for name in names
    }
    return Trajectory(
        episode=Episode(*(row[f"vla_bench/{name}"] for name in ("suite", "task", "trial", "seed"))),
        images=images,
        states=np.array(frames["observation.state"].to_pylist(), np.float32),
        actions=np.array(frames[action].to_pylist(), np.float32),
        boxes={name: _shares(np.array(frames[f"gaze.box.{name}"].to_pylist()), images[name]) for name in names},
        instructions=tuple(sentences[number] for number in frames["task_index"].to_pylist()),
    )


def _shares(boxes: NDArray[np.int64], images: Image) -> Float32:
    """(T, 4) boxes in pixels, -1 where nothing is seen, as shares of the sides of the pictures (T, h, w, 3)."""
    height, width = images.shape[1:3]
    shares: Float32 = (boxes / np.array([width, height, width, height])).astype(np.float32)
    shares[boxes[:, 0] < 0] = WHOLE
    return shares
