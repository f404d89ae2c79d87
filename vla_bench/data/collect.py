"""Demonstrations by a privileged policy, with noise that it has to recover from, as data sets to train on.

The episodes are played by the one engine (`runner.run`) as the policy `noisy`, so a collection is also a run, in
OUT/runs/seed_<seed>; of every success a part is kept in OUT/parts, and the data sets are put together from the parts
once all episodes are played.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from vla_bench.config import EPISODE_TIMEOUT_S, RunConfig
from vla_bench.data import hdf5 as dataset_hdf5
from vla_bench.data import lerobot as dataset_lerobot
from vla_bench.data.demonstrations import Demonstration, PartKeeper, load_part, part_file
from vla_bench.data.recorded import HDF5, LEROBOT
from vla_bench.errors import UsageError
from vla_bench.process.foreign import contained
from vla_bench.process.paths import TakesPaths, UserPath, home, returning
from vla_bench.registry import make_suite
from vla_bench.runner import Outcome, Watcher, run, select_tasks
from vla_bench.store.runs import EPISODES, read_episodes, read_info
from vla_bench.types import EpisodeResult, Suite, Task

RUNS, PARTS = "runs", "parts"


@dataclass(frozen=True)
class CollectConfig(TakesPaths):
    """Play a privileged policy with noise and write its successes as LeRobotDataset and HDF5, with the gaze region of
    every frame. The same command again resumes."""

    suite: str
    """A name from `vla-bench list suites`, or an import path module:function."""
    episodes: int
    """Episodes played per task; the successful ones are kept. Beyond the suite's trials they begin again from trial 0,
    with the next seed."""
    out: UserPath
    """The folder to write."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this task, by name or index; may be given again. All tasks of the suite when absent."""
    policy: str = "oracle"
    """Who demonstrates: a name from `vla-bench list policies`, or an import path module:Class."""
    checkpoint: UserPath | None = None
    """Where its weights are, if it has any."""
    noise: Annotated[float, tyro.conf.arg(metavar="SIGMA")] = 0.1
    """Standard deviation of the noise on every action's translation and rotation; 1 is a full step."""
    suite_args: tuple[str, ...] = ()
    """name=value ... for the suite, such as resolution=128; `--suite-args help` lists them."""
    seed: int = 0
    """Of the noise and, where a suite draws its scenes, of the scenes."""
    workers: str = "1"
    """Simulator processes: a number, or auto for one per CPU core."""
    episode_timeout: float = EPISODE_TIMEOUT_S
    """Seconds a simulator may take for one attempt at an episode before it is ended."""
    format: Literal["lerobot", "hdf5", "both"] = "both"
    """What to write."""
    overwrite: bool = False
    """Delete what an earlier collection left in the folder and start again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise UsageError(f"--episodes should be at least 1, got {self.episodes}.")
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"--noise should be a finite number of at least 0, got {self.noise}.")

    @property
    def formats(self) -> tuple[str, ...]:
        return (LEROBOT, HDF5) if self.format == "both" else (self.format,)


class Collected(NamedTuple):
    """What came of it."""

    outcomes: Sequence[Outcome]
    """One per seed."""
    played: int
    """Episodes in the folder, those of earlier commands included."""
    kept: int
    frames: int
    written: Sequence[Path]
    """The data sets; none while episodes are missing."""


def collect(config: CollectConfig, watcher: Watcher | None = None) -> Collected:
    """Play what is not yet played, then write the data sets. Raises UsageError for what the user can mend."""
    with returning(), contained():
        return _collect(config, watcher, Path(home(), config.out))


def _collect(config: CollectConfig, watcher: Watcher | None, out: Path) -> Collected:
    """`out` is absolute: suite and policy may change the working folder."""
    suite = make_suite(config.suite, config.suite_args)
    tasks = select_tasks(suite, config.task)
    if HDF5 in config.formats:
        dataset_hdf5.import_h5py()  # before hours of work
    _make_room(out, config.overwrite)
    planned = list(rounds(config, tasks))
    _insist_on_suite(out, planned[0])
    outcomes = []
    for each in planned:
        outcomes.append(run(each, watcher, PartKeeper(out / PARTS)))
        if outcomes[-1].judged < outcomes[-1].planned:
            return Collected(outcomes, len(_rows(out)), 0, 0, ())
    rows = _rows(out)
    parts = _parts(out, rows)
    written = write(out, suite, parts, config.formats) if parts else ()
    told = [Path(config.out, folder.relative_to(out)) for folder in written]
    return Collected(outcomes, len(rows), len(parts), sum(row.steps for row, _ in parts), told)


def rounds(config: CollectConfig, tasks: Sequence[Task]) -> Iterator[RunConfig]:
    """One run per pass over the trials, of the task that has fewest, each with its own seed."""
    trials = min(task.trials for task in tasks)
    for number, first in enumerate(range(0, config.episodes, trials)):
        seed = config.seed + number
        yield RunConfig(
            policy="noisy",
            suite=config.suite,
            checkpoint=config.checkpoint,
            policy_args=(f"expert={config.policy}", f"sigma={config.noise}"),
            suite_args=config.suite_args,
            task=config.task,
            episodes=min(trials, config.episodes - first),
            seed=seed,
            workers=config.workers,
            episode_timeout=config.episode_timeout,
            out=str(Path(config.out) / RUNS / f"seed_{seed}"),
        )


def _make_room(out: Path, overwrite: bool) -> None:
    """Raises UsageError when the folder holds something that is no collection."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder: choose another --out.")
    ours = (RUNS, PARTS, HDF5, LEROBOT, dataset_lerobot.half_written(out / LEROBOT).name)
    strangers = {entry.name for entry in out.iterdir()} - set(ours) if out.exists() else set()
    if strangers:
        raise UsageError(f"{out} holds {sorted(strangers)[0]}, so it is no collection: choose another --out.")
    if overwrite:
        for name in ours:
            shutil.rmtree(out / name, ignore_errors=True)


def _insist_on_suite(out: Path, planned: RunConfig) -> None:
    """Raises UsageError when the folder holds episodes of another suite, or of other pictures or states of it."""
    wanted = planned.identity()
    for earlier in _runs(out):
        found = read_info(earlier).identity
        if any(found[name] != wanted[name] for name in ("suite", "suite_args")):
            raise UsageError(
                f"{out} holds episodes of {found['suite']} with the arguments {found['suite_args']}, not of "
                f"{wanted['suite']} with {wanted['suite_args']}: choose another --out, or --overwrite."
            )


def _runs(out: Path) -> list[Path]:
    """Of this and earlier commands, as far as they have episodes."""
    return [file.parent for file in sorted((out / RUNS).glob(f"*/{EPISODES}"))]


def _rows(out: Path) -> list[EpisodeResult]:
    """All judged episodes of the folder."""
    return [row for run in _runs(out) for row in read_episodes(run) if row.success is not None]


def _parts(out: Path, rows: Sequence[EpisodeResult]) -> list[tuple[EpisodeResult, Path]]:
    """The successes in a fixed order, and their files. Raises UsageError if one is missing."""
    rows = sorted((row for row in rows if row.success), key=lambda row: (row.task, row.seed, row.trial))
    parts = [(row, part_file(out / PARTS, row.episode)) for row in rows]
    if lost := [file for _, file in parts if not file.is_file()]:
        raise UsageError(f"{lost[0]} is missing: restore it, or --overwrite to collect everything again.")
    return parts


def write(out: Path, suite: Suite, parts: Sequence[tuple[EpisodeResult, Path]], formats: Sequence[str]) -> list[Path]:
    """The data sets in those formats, an episode at a time. Raises UsageError when the disk is full."""
    try:
        return _write(out, suite, parts, formats)
    except OSError as error:
        raise UsageError(
            f"Could not write the data sets to {out} ({error.strerror or error}): mend that and give the same command "
            "again; all episodes are kept."
        ) from error


def _write(out: Path, suite: Suite, parts: Sequence[tuple[EpisodeResult, Path]], formats: Sequence[str]) -> list[Path]:
    written = []
    if LEROBOT in formats:
        written.append(dataset_lerobot.write_lerobot(out / LEROBOT, suite, _load(parts)))
    if HDF5 in formats:
        for task in suite.tasks:
            of_task = [part for part in parts if part[0].task == task.name]
            if of_task:
                _need(out, dataset_hdf5.space_needed(suite, len(of_task), sum(row.steps for row, _ in of_task)))
                dataset_hdf5.write_hdf5(out / HDF5, suite, task, _load(of_task))
        written.append(out / HDF5)
    return written


def _need(out: Path, space: int) -> None:
    """Raises OSError when the disk has no such space, in bytes: the HDF5 library may crash when it runs full."""
    if shutil.disk_usage(out).free < space:
        raise OSError(errno.ENOSPC, f"{space / 2**20:.0f} MiB are needed, there is less")


def _load(parts: Sequence[tuple[EpisodeResult, Path]]) -> Iterator[Demonstration]:
    for _, file in parts:
        yield load_part(file)
