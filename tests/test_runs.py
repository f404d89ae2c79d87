"""Whole runs on the real simulators: the same command gives the same rows, whatever plays them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_runner import rows

from vla_bench.config import RunConfig
from vla_bench.runner import run

TASKS = {"robosuite": ("Lift",), "libero_goal": ("put_the_bowl_on_the_stove",)}


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("suite", TASKS)
def test_the_same_command_twice_and_with_two_workers_gives_the_same_rows(tmp_path: Path, suite: str) -> None:
    for name, workers in (("one", "1"), ("again", "1"), ("two", "2")):
        out = str(tmp_path / name)
        run(RunConfig("fakes:Looker", suite, task=TASKS[suite], episodes=2, workers=workers, out=out))
    assert rows(tmp_path / "one") == rows(tmp_path / "again") == rows(tmp_path / "two")
    assert len({row["scene_fingerprint"] for row in rows(tmp_path / "one")}) == 2


@pytest.mark.slow
@pytest.mark.sim
def test_filming_a_real_episode_changes_nothing(tmp_path: Path) -> None:
    for name, video in (("plain", "none"), ("filmed", "all")):
        settings = {"task": ("Lift",), "episodes": 2, "video": video, "out": str(tmp_path / name)}
        run(RunConfig("oracle", "robosuite", **settings))  # type: ignore[arg-type]
    plain, filmed = ([{**row, "video": ""} for row in rows(tmp_path / name)] for name in ("plain", "filmed"))
    assert plain == filmed
    assert len(list((tmp_path / "filmed" / "videos").glob("*.mp4"))) == 2
