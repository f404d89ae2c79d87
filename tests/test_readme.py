"""What README.md and docs/ tell to type works: the commands, their flags, files and names, and the Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vla_bench.cli import main
from vla_bench.pytest_plugin import verdict

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# The gate


def as_fake(words: list[str], speed: str) -> list[str]:
    """The command with a fake policy on a fake Lift."""
    swapped = {"my_policy:MyPolicy": "fakes:Walker", "robosuite": "fakes:lift"}
    extra = ["--policy-args", f"speed={speed}"] if words[0] == "run" else []
    return [*(swapped.get(word, word) for word in words), *extra]


def test_the_readmes_gate_lets_an_equally_good_policy_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = re.findall(r"- run: vla-bench (.*)", README)
    play, check = map(shlex.split, recipe)
    assert main(as_fake(play, "0.5")) == 0
    assert main([*check, "--update"]) == 0
    assert main([*as_fake(play, "0.6"), "--overwrite"]) == 0
    capsys.readouterr()
    assert main(check) == 0
    said = capsys.readouterr().out
    assert "Pass: The run lost 0 and gained" in said
    assert "The loss is below 10 points" in said


def test_the_readmes_pytest_marker_lets_an_equally_good_policy_pass(tmp_path: Path) -> None:
    (arguments,) = re.findall(r"@pytest.mark.vla_bench\((.*?)\)\n", README, re.DOTALL)
    asked = eval(f"dict({arguments})")
    asked |= {"policy": "fakes:Walker", "suite": "fakes:lift"}
    baseline = {**asked, "policy_args": "speed=0.5", "out": str(tmp_path / "before")}
    del baseline["margin"], baseline["baseline"]
    assert main(["run", *flags(baseline)]) == 0
    assert main(["check", str(tmp_path / "before"), "--baseline", str(tmp_path / asked["baseline"]), "--update"]) == 0
    found = verdict({**asked, "policy_args": "speed=0.6"}, tmp_path, tmp_path / "now")
    assert found.passed, found.message
    assert found.overall
    assert found.overall.unchanged == 0


def flags(asked: dict[str, object]) -> list[str]:
    values = {name: value[0] if isinstance(value, list) else value for name, value in asked.items()}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
