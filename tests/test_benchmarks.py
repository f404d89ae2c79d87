"""Every benchmark and every Python script runs, at its smallest size. Nothing here asks how fast anything was."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs h5py")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module at that path, importable by its name in child processes too."""
    path = ROOT / str(request.param)
    monkeypatch.syspath_prepend(str(path.parent))
    return importlib.import_module(path.stem)


def of(path: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("script", [path], indirect=True, ids=[path])


def test_every_one_has_a_test() -> None:
    """train_shipped.py has its own in test_shipped.py, docs/examples in test_docs.py."""
    here = {path.name for folder in ("benchmarks", "scripts") for path in (ROOT / folder).glob("*.py")}
    tested = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in here if f'/{name}")' not in tested} == {"train_shipped.py"}


@of("benchmarks/report_speed.py")
def test_reports_of_invented_runs_are_timed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(["--policies", "2", "--suites", "1", "--episodes", "20", "--repeats", "1", "--keep", str(tmp_path)])
    said = capsys.readouterr().out
    assert "2 runs, 40 episodes" in said
    for line in ("leaderboard", "report", "index.html"):
        assert f"\n{line} " in said


@of("benchmarks/policy_latency.py")
def test_every_policys_inference_is_timed(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--threads", "1", "--calls", "1"]) in (0, 1)
    said = capsys.readouterr().out
    for policy in script.POLICIES:
        assert f"\n  {policy} " in said
    assert "vision" in said


@pytest.mark.sim
@of("benchmarks/calvin_speed.py")
def test_calvins_table_is_timed(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--blocks", "1"]) in (0, 1)
    assert "s per failing chain with 2 workers" in capsys.readouterr().out


@pytest.mark.sim
@pytest.mark.slow
@of("benchmarks/step_rate.py")
def test_every_row_of_the_comparison_with_upstream_is_measured(script: ModuleType) -> None:
    smallest = script.Effort({1: (1, 1)}, 1, 1, 1, 1, 1)
    rows = [script.line(row) for row in script.measure(smallest)]
    for what in (
        "step, both",
        "set-up",
        "memory",
        "step, no cameras",
        "engine, chunk 1, 2 workers",
        "30-step episodes",
    ):
        assert [row for row in rows if row.startswith(what)], what


@pytest.mark.sim
@pytest.mark.slow
@of("benchmarks/step_rate.py")
def test_the_engine_is_measured_with_two_workers(script: ModuleType, tmp_path: Path) -> None:
    pooled = script.Pooled(tmp_path, steps=3)
    pooled.play(2)
    assert script.outside_ms(pooled.log) > 0
    pooled.close()


@of("scripts/find_the_cube.py")
def test_the_cube_is_looked_for(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "lift_the_cube_demo.hdf5", "w") as archive:
        for number in range(6):
            demo = archive.create_group(f"data/demo_{number}")
            for name in ("view", "wrist"):
                demo[f"obs/{name}_rgb"] = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
            demo["states"], demo["obs/ee_pos"] = rng.normal(size=(3, 20)), rng.normal(size=(3, 3))
    script.main([str(tmp_path), "--steps", "2"])
    assert capsys.readouterr().out.count(" cm, 90 % within") == len(script.STEMS)
