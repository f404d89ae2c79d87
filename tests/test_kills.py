"""Commands that are killed at instants spread over their work end as they should, and resume to the same result."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from killing import Doom, Ended, count_instants, doomed

from vla_bench.cli import main
from vla_bench.compare.duel import DuelConfig, duel
from vla_bench.config import RunConfig
from vla_bench.runner import run
from vla_bench.store.provenance import gather
from vla_bench.store.runs import read_episodes, read_inferences, read_info
from vla_bench.training.train import TrainConfig, train

LIMIT_S = 15.0
MOST = 0.8
"""Of a run with workers, the policy answers two at once at times, and there are fewer instants."""
TIMINGS = {"latency_mean_ms", "latency_max_ms", "wall_s", "setup_s", "physics_s", "render_s", "policy_s", "attempts"}
KINDS = {
    "kill all": (signal.SIGKILL, True, -9, "started"),
    "Ctrl-C": (signal.SIGINT, True, 130, "interrupted"),
    "terminate": (signal.SIGTERM, True, 143, "interrupted"),
    "kill": (signal.SIGKILL, False, 4, "failed"),
}
"""Signal, whether the watching process gets it, the exit code, and what run.json then says."""


class Command(NamedTuple):
    """A command, what finishes it in this process, and what came of it."""

    arguments: Callable[[Path], list[str]]
    finish: Callable[[Path], object]
    outcome: Callable[[Path], object]


cached_gather = functools.cache(gather)


def rows(out: Path) -> list[dict[str, object]]:
    stored = sorted(read_episodes(out), key=lambda row: (row.task, row.trial, row.seed))
    return [{name: value for name, value in asdict(row).items() if name not in TIMINGS} for row in stored]


def calls(out: Path) -> list[tuple[object, ...]]:
    columns = ["task", "trial", "inference", "executed"]
    return sorted(read_inferences(out)[columns].itertuples(index=False, name=None))


def of_run(workers: str = "1") -> Command:
    given = {"policy": "fakes:Walker", "suite": "fakes:suite", "episodes": "2", "workers": workers}

    def arguments(out: Path) -> list[str]:
        return ["run", *(word for name, value in given.items() for word in (f"--{name}", value)), "--out", str(out)]

    def finish(out: Path) -> object:
        return run(RunConfig("fakes:Walker", "fakes:suite", episodes=2, out=str(out))).judged

    return Command(arguments, finish, lambda out: (rows(out), calls(out)))


def of_duel() -> Command:
    known: dict[str, Any] = {"suite": "fakes:suite", "policy_args_b": ("speed=0.3",), "max_episodes": 4}

    def arguments(out: Path) -> list[str]:
        given = ["--suite", "fakes:suite", "--policy-args-b", "speed=0.3", "--max-episodes", "4", "--out", str(out)]
        return ["duel", "fakes:Walker", "fakes:Walker", *given]

    def finish(out: Path) -> object:
        return duel(DuelConfig("fakes:Walker", "fakes:Walker", out=str(out), **known)).score

    return Command(arguments, finish, lambda out: [(rows(out / side), calls(out / side)) for side in "ab"])


def of_collect() -> Command:
    from test_collect import TOY, collect, config

    def arguments(out: Path) -> list[str]:
        return [*TOY, "--task", "east", "--episodes", "3", "--out", str(out)]

    files = ("lerobot/data/chunk-000/file-000.parquet", "lerobot/meta/stats.json")
    return Command(
        arguments,
        lambda out: collect(config(out, episodes=3)).kept,
        lambda out: [(out / name).read_bytes() for name in files],
    )


def of_train(folder: Path) -> Command:
    known: dict[str, Any] = {"policy": "fakes:Pupil", "data": (str(folder),), "log_every": 2, "threads": 1}

    def arguments(out: Path) -> list[str]:
        options = ["--log-every", "2", "--threads", "1", "--out", str(out)]
        return ["train", "--policy", "fakes:Pupil", "--data", str(folder), *options]

    return Command(arguments, lambda out: train(TrainConfig(out=str(out), **known)).done, lambda out: out.read_bytes())


def sweep(command: Command, folder: Path, count: int, kinds: Iterator[str], share: float = 1.0) -> None:
    """Kills the command at so many instants spread over that share of it, and finishes it each time."""
    whole = folder / "whole"
    assert main(command.arguments(whole)) in (0, 2)  # in this process, so that the others find all imported
    wanted, result = command.outcome(whole), command.finish(whole)
    total = count_instants(command.arguments(folder / "counted"))
    for instant in dict.fromkeys(np.linspace(1, share * total, count).round().astype(int).tolist()):
        kind = next(kinds)
        out = folder / str(instant) / kind.replace(" ", "_")
        out.parent.mkdir(parents=True, exist_ok=True)
        number, watching, code, state = KINDS[kind]
        ended = doomed(command.arguments(out), Doom(instant, number, watching))
        check(ended, code, f"{kind} at {instant} of {total}")
        assert states(out) <= {state, "complete"}, (kind, instant)
        assert command.finish(out) == result, (kind, instant)
        assert command.outcome(out) == wanted, (kind, instant)


def states(out: Path) -> set[str]:
    """How the sessions ended of all runs in that folder that were begun."""
    found = (read_info(file.parent).status for file in out.glob("**/run.json"))
    return {status.state for status in found if status}


def check(ended: Ended, code: int, where: str) -> None:
    """It ended in time, with that code and one sentence at most."""
    lines = [line for line in ended.said.replace("\r", "\n").splitlines() if line.startswith("vla-bench: ")]
    said = [line for line in lines if "nterrupted" in line or "was killed" in line]
    assert ended.code == code, (where, ended)
    assert ended.seconds < LIMIT_S, (where, ended)
    assert "Traceback" not in ended.said, (where, ended.said)
    assert len(said) == (code > 0), (where, ended.said)


def in_turn() -> Iterator[str]:
    while True:
        yield from KINDS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed is looked up once: it would take longer than all else these commands do."""
    known = cached_gather()
    for module in ("runner", "training.train"):
        monkeypatch.setattr(f"vla_bench.{module}.gather", lambda: known)


# A few instants of each command, each killed in another way


def test_a_run_that_is_killed_resumes_to_the_same_rows(tmp_path: Path) -> None:
    sweep(of_run(), tmp_path, 4, in_turn())


def test_a_run_with_workers_that_is_killed_resumes_to_the_same_rows(tmp_path: Path) -> None:
    sweep(of_run("2"), tmp_path, 2, iter(("terminate", "kill all")), MOST)


def test_a_duel_that_is_killed_resumes_to_the_same_verdict(tmp_path: Path) -> None:
    sweep(of_duel(), tmp_path, 2, iter(("kill", "Ctrl-C")))


def test_a_collection_that_is_killed_resumes_to_the_same_data(tmp_path: Path) -> None:
    sweep(of_collect(), tmp_path, 2, iter(("kill all", "terminate")))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_collect import collect, config

    out = tmp_path_factory.mktemp("data")
    collect(config(out, episodes=4))
    return out


def test_a_training_that_is_killed_resumes_to_the_same_weights(tmp_path: Path, demonstrations: Path) -> None:
    sweep(of_train(demonstrations), tmp_path, 2, iter(("Ctrl-C", "kill")), MOST)


# Fifty instants of each


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_run, of_duel, of_collect], ids=["run", "duel", "collect"])
def test_fifty_instants_of_a_command(tmp_path: Path, make: Callable[[], Command]) -> None:
    sweep(make(), tmp_path, 50, in_turn())


@pytest.mark.slow
def test_fifty_instants_of_a_training(tmp_path: Path, demonstrations: Path) -> None:
    sweep(of_train(demonstrations), tmp_path, 50, in_turn())


@pytest.mark.slow
def test_fifty_instants_of_a_run_with_workers(tmp_path: Path) -> None:
    sweep(of_run("2"), tmp_path, 50, in_turn(), MOST)


@pytest.mark.slow
def test_a_worker_that_gets_a_signal_at_any_step_costs_an_attempt_at_most(tmp_path: Path) -> None:
    known: dict[str, Any] = {"policy": "fakes:Walker", "suite": "fakes:suite", "episodes": 2}
    run(RunConfig(**known, out=str(tmp_path / "whole")))
    whole, signals = rows(tmp_path / "whole"), itertools.cycle(("SIGKILL", "SIGTERM", "SIGINT"))
    instants = [(row["task"], row["trial"], step) for row in whole for step in range(1, int(str(row["steps"])) + 1)]
    for number, ((task, trial, step), kind) in enumerate(zip(instants[:50], signals, strict=False)):
        marker, out = tmp_path / f"marker{number}", tmp_path / str(number)
        marker.write_text(f"{task} {trial} 1 {step}")
        arguments = (f"break_marker={marker}", f"break_with={kind}")
        assert run(RunConfig(**known, suite_args=arguments, workers="2", out=str(out))).judged == 4
        assert not marker.exists()
        assert (rows(out), calls(out)) == (whole, calls(tmp_path / "whole")), (task, trial, step, kind)


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.parametrize("part", range(10))
def test_fifty_instants_of_a_run_on_robosuite(tmp_path: Path, part: int) -> None:
    pytest.importorskip("robosuite")
    given = ["--policy", "fakes:Doomed", "--suite", "robosuite", "--task", "Lift", "--episodes", "2", "--execute", "16"]
    known: dict[str, Any] = {"policy": "fakes:Doomed", "suite": "robosuite", "task": ("Lift",), "execute": 16}
    assert run(RunConfig(**known, episodes=2, out=str(tmp_path / "whole"))).judged == 2
    for instant, kind in zip(range(1 + part, 51, 10), itertools.islice(in_turn(), part, None), strict=False):
        number, watching, code, state = KINDS[kind]
        out, workers = tmp_path / str(instant), str(1 + instant // 10 % 2)
        started = subprocess.run(
            [sys.executable, "-m", "vla_bench.cli", "run", *given, "--workers", workers, "--out", str(out)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "DOOM": f"{instant} {number} {watching}"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert started.returncode == code, (kind, instant, started.stderr)
        assert "Traceback" not in started.stderr
        assert states(out) == {state}
        assert run(RunConfig(**known, episodes=2, out=str(out))).judged == 2
        assert (rows(out), calls(out)) == (rows(tmp_path / "whole"), calls(tmp_path / "whole")), (kind, instant)
