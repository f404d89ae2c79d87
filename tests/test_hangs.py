"""A worker that hangs or dies costs its episode an attempt, and the row says what happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fakes
import pytest

from vla_bench import pool
from vla_bench.chunking import RecedingHorizon
from vla_bench.config import RunConfig
from vla_bench.errors import PolicyFailure
from vla_bench.inference import LocalPolicy
from vla_bench.pool import Pool, WorkerSetup
from vla_bench.process import watch
from vla_bench.rollout import Filming, Rollout
from vla_bench.runner import run
from vla_bench.store.runs import read_episodes
from vla_bench.types import Episode

EAST = Episode("fakes:suite", "east", 1, 0)


def setup(tmp_path: Path, times: int = 0, break_with: str = "") -> WorkerSetup:
    """A worker that breaks so many times in the episode."""
    marker = tmp_path / "marker"
    if times:
        marker.write_text(f"east 1 {times}")
    arguments = (f"break_marker={marker}", f"break_with={break_with}")
    cameras, chunking = (fakes.CAMERA,), RecedingHorizon(None)
    return WorkerSetup(
        "fakes:suite", arguments, cameras, 1, chunking, Filming(), 0, str(Path.cwd()), None, episode_timeout_s=2.0
    )


def played(one: WorkerSetup, attempts: int = 2) -> Rollout:
    (rollout,) = Pool([one], LocalPolicy(fakes.Walker(fakes.suite())), 1, attempts).rollouts([EAST])
    return rollout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole")
    run(RunConfig("fakes:Walker", "fakes:suite", task=("0",), first_trial=1, episodes=1, out=str(out)))
    return read_episodes(out)[0].final_fingerprint


@pytest.mark.parametrize(
    ("break_with", "attempts"),
    [
        ("hang", 2),
        ("SIGTERM", 2),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("SIGKILL", 2), ("SIGINT", 1))),
    ],
)
def test_a_worker_that_hangs_or_is_killed_once_costs_an_attempt(
    tmp_path: Path, undisturbed: str, break_with: str, attempts: int
) -> None:
    result = played(setup(tmp_path, 1, break_with)).result
    assert (result.final_fingerprint, result.attempts) == (undisturbed, attempts)


def test_an_episode_whose_simulator_always_hangs_says_so_and_where(tmp_path: Path) -> None:
    rollout = played(setup(tmp_path, 1, "hang"), attempts=1)
    assert (rollout.result.success, rollout.result.error) == (None, "SimulatorHung")
    assert rollout.result.message == "it took longer than --episode-timeout 2 s"
    assert "in hold_the_lock" in rollout.trace


def test_a_policy_beside_its_simulator_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GRACE_S", 0.2)
    beside = replace(setup(tmp_path), privileged=("fakes:Beside", None, (), 0.3))
    with pytest.raises(
        PolicyFailure, match=r"'beside' took longer than --timeout 0\.3 s in infer and could"
    ) as failure:
        played(beside)
    assert "in hold_the_lock" in str(failure.value.__cause__)


NEVER_READY = """
import multiprocessing
import fakes

if multiprocessing.parent_process():
    fakes.hold_the_lock()

def suite(name):
    return fakes.suite("toy")
"""


def test_a_worker_that_never_gets_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "START_S", 1.0)
    (tmp_path / "never_ready.py").write_text(NEVER_READY, encoding="utf-8")
    hanging = {"suite": str(tmp_path / "never_ready.py"), "suite_args": (), "episode_timeout_s": 1.0}
    result = played(replace(setup(tmp_path), **hanging), attempts=1).result  # type: ignore[arg-type]
    assert (result.error, result.message) == ("SimulatorHung", "its worker was not ready after 1 s")


def test_a_scene_that_cannot_be_closed_ends_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_LEAVING_S", 0.5)
    assert played(setup(tmp_path, 0, "hang in close")).result.success is not None
