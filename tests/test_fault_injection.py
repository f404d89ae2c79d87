"""Every call into the operating system that a run makes fails once, and a crash comes after every one of them.

Whatever failed: the exit code tells, what was announced is stored, and the same command again ends as if nothing had
been.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import fakes
import pytest
from faulty_disk import ERRORS, Failing, Left, Short, System, Tape, Unsynced, lay_out, use
from test_runner import rows

from vla_bench import cli, pool, runner
from vla_bench.config import RunConfig
from vla_bench.errors import Interrupted
from vla_bench.inference import LocalPolicy
from vla_bench.store import files, lock
from vla_bench.store import runs as store
from vla_bench.store.runs import read_actions, read_episodes, read_inferences
from vla_bench.types import Episode, EpisodeResult

NAMES = ("fakes:Walker", "fakes:suite")
PLANNED = 2
TIMES = ["latency_ms", "queue_ms", "cold", "batch"]


TOLD: list[EpisodeResult] = []


class Announced:
    """A progress bar that only remembers what it was told."""

    def __enter__(self) -> Announced:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, path: Path, total: int, rows: Sequence[EpisodeResult], notes: Sequence[str]) -> None:
        TOLD[:] = rows

    def row(self, row: EpisodeResult) -> None:
        TOLD.append(row)


class Ended(NamedTuple):
    code: int
    said: str
    announced: dict[Episode, EpisodeResult]


class Bench:
    """Runs of two episodes, each in a folder of its own, which holds `begun` at first."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.begun = Left(())
        self.more: dict[str, Any] = {}
        """Flags."""
        self.made_up = set[Left]()
        """What was left of runs that came out right when they were resumed."""

    def start(self) -> None:
        """Plays an undisturbed run, for what it leaves and what it calls."""
        system = System()
        assert self.play("undisturbed", system).code == 0
        self.calls, self.undisturbed = system.calls, self.outcome("undisturbed")
        gc.collect()
        gc.freeze()  # the runner collects garbage whenever a scene is dropped: what was imported is none

    def folder(self, name: object) -> Path:
        folder = self.root / str(name)
        if not folder.exists():
            folder.mkdir()
            lay_out(self.begun, folder)
        return folder

    def play(self, name: object, system: System | None = None) -> Ended:
        system = system or System()
        with pytest.MonkeyPatch.context() as patch:
            use(system, patch)
            ended = self._play(name)
            system.end()
            return ended

    def _play(self, name: object) -> Ended:
        folder = self.folder(name)
        TOLD.clear()
        self.capsys.readouterr()
        out = {"record_actions": str(folder / "actions.jsonl"), "out": str(folder / "run")}
        self.config = RunConfig(*NAMES, episodes=1, **out, **self.more)
        code = cli.main(["run"])
        return Ended(code, self.capsys.readouterr().err, {row.episode: row for row in TOLD})

    def stored(self, name: object) -> dict[Episode, EpisodeResult]:
        run = self.folder(name) / "run"
        begun = [*store.stored_lines(run / "episodes.jsonl")]  # a line in which sectors are missing is none
        return {row.episode: row for row in read_episodes(run)} if begun else {}

    def left(self, name: object) -> Left:
        """What the folder holds but who last held the lock."""
        found = [file for file in sorted(self.folder(name).rglob("*")) if file.name not in (lock.LOCK, lock.STAND_IN)]
        inside = [str(file.relative_to(self.folder(name))) for file in found]
        return Left(tuple(zip(inside, [None if file.is_dir() else file.read_bytes() for file in found], strict=True)))

    def outcome(self, name: object) -> tuple[Any, ...]:
        """All that a run leaves but times."""
        folder = self.folder(name)
        calls = read_inferences(folder / "run").drop(columns=TIMES).sort_values(["task", "trial", "inference"])
        actions = {episode: played.tolist() for episode, played in read_actions(folder / "actions.jsonl").items()}
        inside = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.parent.name != "videos"}
        names = sorted(inside - {"run/errors.log"})  # of films that failed, which are not made again
        played = [{**row, "video": "", "message": ""} for row in rows(folder / "run")]
        return played, calls.to_dict("records"), actions, names


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs as fast as can be: what comes before the store is made once, and no table is printed."""
    bench = Bench(tmp_path, capsys)
    job = runner.prepare(RunConfig(*NAMES, episodes=1))

    def quickly(config: RunConfig, keeper: None = None) -> runner.Job:
        policy = fakes.Walker(job.suite)
        made = job._replace(config=runner.anchored(config), policy=policy, workers=int(config.workers))
        return made._replace(answers=LocalPolicy(policy))

    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)  # so that equal states are equal to the bit
    monkeypatch.setattr(cli, "_Progress", Announced)
    monkeypatch.setattr(cli, "_parse", lambda *_: bench.config)
    monkeypatch.setattr(cli, "_print_run", lambda *_: None)
    monkeypatch.setattr(runner, "prepare", quickly)
    forking = SimpleNamespace(get_context=lambda _: multiprocessing.get_context("fork"))
    monkeypatch.setattr(pool, "multiprocessing", forking)  # a spawned worker takes a second to import everything
    return bench


def insist(bench: Bench, name: object, ended: Ended, codes: Sequence[int]) -> None:
    """The exit code is one of those, what was announced is stored, and the same command again makes up for all."""
    assert ended.code in codes, ended
    assert "Traceback" not in ended.said
    stored = bench.stored(name)
    assert ended.announced.items() <= stored.items(), ended
    assert (ended.code == 4) == ("could not be rendered" in ended.said)
    assert all((bench.folder(name) / "run" / row.video).stat().st_size for row in stored.values() if row.video)
    if ended.code == 0:
        assert len(stored) == len(ended.announced) == PLANNED
    if (left := bench.left(name)) not in bench.made_up:
        again = bench.play(name)
        films_lost = any(row.message for row in bench.stored(name).values())
        assert again.code == 4 * films_lost, again
        assert bench.outcome(name) == bench.undisturbed
        bench.made_up.add(left)
    shutil.rmtree(bench.folder(name))


def insist_on_sentence(ended: Ended, code: int) -> None:
    """One that says why, and advises what fits."""
    if ended.code == 64:
        assert ended.said.count("\n") == 1, ended
        assert (os.strerror(code) if code != errno.EMFILE else "ulimit -n") in ended.said
    assert ("free some space" in ended.said) <= (code == errno.ENOSPC)


SLOW = pytest.mark.slow
BEGINNINGS = ("nothing", "a killed run", "a run to overwrite")


def begin(bench: Bench, beginning: str, **more: Any) -> None:
    """An undisturbed run from that beginning, with those flags."""
    if beginning == "a killed run":
        tape = Tape(bench.folder("killed"), lambda: len(TOLD))
        assert bench.play("killed", tape).code == 0
        bench.begun = next(crash.left["the process alone"] for crash in tape.crashes if crash.told == 1)
    elif beginning == "a run to overwrite":
        assert bench.play("old").code == 0
        bench.begun = bench.left("old")
        more["overwrite"] = True
    bench.more = more
    bench.start()


@pytest.mark.parametrize(
    ("beginning", "more", "every"),
    [
        ("nothing", {}, 1),
        ("nothing", {"workers": "2"}, 13),
        ("a killed run", {}, 3),
        ("a run to overwrite", {}, 5),
        *(pytest.param(b, {"workers": "2"}, 1, marks=SLOW) for b in BEGINNINGS),
        *(pytest.param(b, {"video": "all"}, 1, marks=SLOW) for b in BEGINNINGS),
    ],
)
def test_any_call_may_fail_once(bench: Bench, beginning: str, more: dict[str, Any], every: int) -> None:
    begin(bench, beginning, **more)
    for at in range(0, len(bench.calls), every):
        possible = ERRORS[bench.calls[at]]
        code = possible[at // every % len(possible)]
        ended = bench.play(at, Failing(at, code))
        insist_on_sentence(ended, code)
        insist(bench, at, ended, (0, 64, 4) if "video" in more else (0, 64))


@SLOW
def test_any_call_may_fail_with_any_error(bench: Bench) -> None:
    bench.start()
    for at, name in enumerate(bench.calls):
        for code in ERRORS[name]:
            ended = bench.play(f"{at} {code}", Failing(at, code))
            insist_on_sentence(ended, code)
            insist(bench, f"{at} {code}", ended, (0, 64))


@pytest.mark.parametrize("every", [pytest.param(1, marks=SLOW), 5])
def test_a_disk_may_stay_full_from_any_call_on(bench: Bench, every: int) -> None:
    bench.start()
    for at in range(0, len(bench.calls), every):
        ended = bench.play(at, Failing(at, errno.ENOSPC, for_good=True))
        insist_on_sentence(ended, errno.ENOSPC)
        insist(bench, at, ended, (0, 64))


def test_a_finished_run_on_a_disk_that_can_only_be_read_is_complete_and_is_shown(bench: Bench) -> None:
    bench.start()
    before = bench.left("undisturbed")
    again = bench.play("undisturbed", Failing(0, errno.EROFS, for_good=True))
    assert (again.code, again.said.count("2 of 2 episodes are stored")) == (0, 1), again
    assert bench.outcome("undisturbed") == bench.undisturbed
    assert bench.left("undisturbed") == before


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_folders_that_cannot_be_synced_are_no_matter(bench: Bench, code: int) -> None:
    bench.start()
    ended = bench.play(code, Unsynced(code))
    assert (ended.code, ended.said.count("\n")) == (0, 1)
    assert bench.outcome(code) == bench.undisturbed


def test_writes_that_take_seven_bytes_at_a_time_change_nothing(bench: Bench) -> None:
    bench.start()
    assert bench.play("short", Short()).code == 0
    assert bench.outcome("short") == bench.undisturbed


class Stop:
    """Raises that at the given line of those which run in the store, as a lack of memory or Ctrl-C may anywhere."""

    FILES = tuple(module.__file__ for module in (store, files, lock))

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.lines = at, error, 0

    def __enter__(self) -> Stop:
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename in self.FILES else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        self.lines += event == "line"
        if event == "line" and self.lines == self.at:
            raise self.error
        return self._line


@pytest.mark.parametrize(("error", "code"), [(MemoryError, 64), (Interrupted, 130)])
@pytest.mark.parametrize("every", [pytest.param(1, marks=SLOW), 97])
def test_the_store_stops_at_any_line(bench: Bench, error: type[BaseException], code: int, every: int) -> None:
    bench.start()
    with Stop(-1, error) as counted:
        bench.play("counted")
    for at in range(1, counted.lines, every):
        with Stop(at, error):
            ended = bench.play(at)
        insist(bench, at, ended, (0, code))


def test_a_crash_after_any_call_loses_nothing_announced(bench: Bench) -> None:
    bench.start()
    tape = Tape(bench.folder("taped"), lambda: len(TOLD))
    assert bench.play("taped", tape).code == 0
    announced, seen = {row.episode: row for row in TOLD}, set[tuple[int, Left]]()
    for number, (told, left) in enumerate((crash.told, left) for crash in tape.crashes for left in crash.left.values()):
        if (told, left) in seen:
            continue
        seen.add((told, left))
        lay_out(left, bench.folder(number))
        ended = Ended(64, "", dict(list(announced.items())[:told]))
        insist(bench, number, ended, (64,))
