"""`vla-bench convert`: what is written answers the same, or nobody is told it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_bench.cli import main


def command(out: Path, policy: str = "fakes:Keeper", checkpoint: str = "") -> list[str]:
    words = ["convert", "--policy", policy, "--suite", "fakes:suite", "--out", str(out)]
    return [*words, "--checkpoint", checkpoint or str(original(out.parent))]


def original(folder: Path) -> Path:
    file = folder / "weights"
    file.write_text("0.75")
    return file


def test_a_converted_checkpoint_is_read_by_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "new")) == 0
    assert "answers a probe of 4 actions bit for bit like the original" in capsys.readouterr().out
    kept = (tmp_path / "new").read_text()
    assert kept.startswith("0.75")
    assert "converted from: weights" in kept
    run = [
        "run",
        "--policy",
        "fakes:Keeper",
        "--suite",
        "fakes:suite",
        "--episodes",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*run, "--checkpoint", str(tmp_path / "new")]) == 0


def test_a_copy_that_answers_otherwise_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "new", "fakes:BadKeeper")) == 64
    assert "does not answer like" in capsys.readouterr().err


def test_what_cannot_be_converted_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "new", "fakes:Walker", "x")) == 64
    assert "cannot be converted: it has no save" in capsys.readouterr().err
    (tmp_path / "new").write_text("mine")
    assert main(command(tmp_path / "new")) == 64
    assert "exists already; name a new directory" in capsys.readouterr().err
    assert (tmp_path / "new").read_text() == "mine"
