"""What README.md and docs/ tell to type works: the commands, their flags, files and names, and the Python."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import fakes
import pytest

from vla_bench import cli
from vla_bench.cli import main
from vla_bench.compare.duel import DuelConfig
from vla_bench.config import RunConfig
from vla_bench.data.collect import CollectConfig
from vla_bench.doctor.fsck import FsckConfig
from vla_bench.errors import UsageError
from vla_bench.pytest_plugin import verdict
from vla_bench.registry import find_policy, make_suite
from vla_bench.runner import plan, select_tasks
from vla_bench.shipped import all_shipped
from vla_bench.stats.paired import paired_difference
from vla_bench.training.convert import ConvertConfig
from vla_bench.training.train import TrainConfig

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


def test_the_readmes_numbers_of_what_fifty_episodes_exclude_are_true() -> None:
    said = (
        "50 equally good ones exclude a loss of 5.2 points at best, so with a margin of 10 it may lose three and gain"
    )
    assert said in " ".join(README.split())
    excluded = [-100 * paired_difference(changed, changed, 50, 0.9).low for changed in (0, 3, 4)]
    assert excluded[0] <= 5.2 < excluded[0] + 0.1
    assert excluded[1] < 10 < excluded[2]


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


# Every command


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"(?:\.venv/bin/)?(?:vla-bench|make|python|pip)"
OTHERS = {"my_policy:MyPolicy", "mine:Policy", "old:Policy", "new:Policy", "openpi_server:OpenpiServer"}
"""Policies of the reader's own."""


def commands(page: Path) -> list[str]:
    """Whole command lines of a page: indented, after `- run:`, and between backticks; without prompt and comment."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    blocks = re.findall(rf"^(?: {{4}}|\s*- run: )({PROGRAMS} .*)$", text, re.MULTILINE)
    inline = re.findall(rf"(?<!`)`({PROGRAMS} [^`]+)`(?!`)", text)
    lines = [one.strip() for line in [*blocks, *inline] for one in line.split("&&")]
    return [" ".join(line.split()) for line in lines if re.match(PROGRAMS, line)]


ALL = sorted({(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)})


def test_the_commands_of_the_pages_are_found() -> None:
    assert len(ALL) > 60
    assert (
        "README.md",
        "vla-bench check results/pr --baseline results/baselines/lift.jsonl --margin 0.1 --junit gate.xml",
    ) in ALL
    assert any("--suite-args resolution=64" in command for _, command in ALL), "a continued line is one command"


@pytest.mark.parametrize(("page", "command"), ALL)
def test_every_command_of_the_pages_can_be_typed(page: str, command: str) -> None:
    program, *words = shlex.split(command, comments=True)
    {"vla-bench": vla_bench, "make": make, "python": python, "pip": pip}[Path(program).name](words)


def vla_bench(words: list[str]) -> None:
    if words[0].isupper() or words[0].startswith("-"):
        return  # COMMAND, --help
    kinds = {
        "run": RunConfig, "show": cli.ShowConfig, "compare": cli.CompareConfig, "duel": DuelConfig,
        "check": cli.CheckConfig, "leaderboard": cli.LeaderboardConfig, "report": cli.ReportConfig,
        "collect": CollectConfig, "train": TrainConfig, "convert": ConvertConfig, "list": cli.ListConfig,
        "doctor": cli.DoctorConfig, "fsck": FsckConfig,
    }  # fmt: skip
    command, *given = words
    assert command in kinds
    cli._refuse_unknown_flags(kinds[command], command, given)
    if not given or "--help" in given or "help" in given or not is_whole(command, given):
        return  # its name or a flag is spoken of
    config = cli._parse(kinds[command], command, given)
    names(config)


def is_whole(command: str, given: list[str]) -> bool:
    """Whether the line has what the command cannot do without, or only speaks of a flag."""
    needed = {"run": ["--policy", "--suite"], "collect": ["--suite", "--out"], "train": ["--policy", "--data", "--out"]}
    needed |= {
        "convert": ["--policy", "--checkpoint", "--suite", "--out"],
        "check": ["--baseline"],
        "duel": ["--suite"],
    }
    needed |= {"report": ["--out"]}
    return set(needed.get(command, [])) <= set(given)


def names(config: object) -> None:
    """Suites, tasks, trials, policies and checkpoints that come along exist."""
    asked = {name: value for name, value in vars(config).items() if value is not None}
    suite = asked.get("suite")
    for side in ("", "_a", "_b"):
        policy = asked.get(f"policy{side}")
        if policy is not None and not policy.isupper() and policy not in OTHERS:
            find_policy(policy)
        checkpoint = str(asked.get(f"checkpoint{side}", ""))
        owner, _, name = checkpoint.partition("/")
        assert not name or owner in {"checkpoints", "data"}, f"{checkpoint} reads like a name on a hub"
        if checkpoint.startswith("shipped:"):
            assert checkpoint.removeprefix("shipped:") in {one.name for one in all_shipped()}
    if suite and not suite.isupper():
        made = make_suite(suite, asked.get("suite_args", ()))
        if isinstance(config, RunConfig):
            plan(made, config)
        else:
            select_tasks(made, asked.get("task", ()))


def make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word and word.islower()} <= targets


def python(words: list[str]) -> None:
    script = ROOT / words[0]
    assert script.is_file()
    source = script.read_text(encoding="utf-8")
    assert all(
        word in source or word.lstrip("-").replace("-", "_") in source for word in words if word.startswith("--")
    )


def pip(words: list[str]) -> None:
    """Only the clone or its wheel, with extras that there are."""
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.*)"', project, re.MULTILINE)
    extras = set(re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1], re.MULTILINE))
    for target in words[1:]:
        place, _, asked = target.partition("[")
        assert set(filter(None, asked.rstrip("]").split(","))) <= extras
        if "vla_bench" in place:
            assert Path(place).name == f"vla_bench-{version}-py3-none-any.whl"
        assert place != "vla-bench"


@pytest.mark.parametrize(
    "wrong",
    [
        "vla-bench run --policy pi0 --suite libero_10 --episode 5",
        "vla-bench run --policy pi0 --suite libero_11",
        "vla-bench run --policy pi0 --suite libero_10 --episodes 51",
        "vla-bench run --policy pi0 --suite robosuite --task lift",
        "vla-bench run --policy pi1 --suite libero_10",
        "vla-bench run --policy pi0 --suite libero_10 --checkpoint lerobot/pi0_libero",
        "vla-bench run --policy pi0 --suite tiny --checkpoint shipped:pi0_gone",
        "make demos",
        "python benchmarks/gone.py",
        "python benchmarks/step_rate.py --quicker",
        "pip install '.[libero,robotics]'",
        "pip install 'vla-bench[libero]'",
        "pip install 'dist/vla_bench-0.0.1-py3-none-any.whl'",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, UsageError)):
        test_every_command_of_the_pages_can_be_typed("", wrong)


@pytest.mark.parametrize(
    "command",
    [
        "vla-bench list suites",
        "vla-bench list tasks libero_long",
        "vla-bench list policies",
        "vla-bench list checkpoints",
        "vla-bench run --help",
        "vla-bench run --policy pi0 --policy-args help",
    ],
)
def test_short_commands_of_the_pages_run(command: str) -> None:
    assert command in {known for _, known in ALL} | {shown.partition(" #")[0] for _, shown in ALL}
    with contextlib.suppress(SystemExit):
        assert main(shlex.split(command)[1:]) == 0


# Python


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_policy_answers() -> None:
    (code,) = [block for block in blocks(ROOT / "README.md") if "class MyPolicy" in block]
    space: dict[str, Any] = {}
    exec(code, space)
    suite = fakes.suite()
    policy = space["MyPolicy"](suite)
    env = suite.make_env(suite.tasks[0], [camera.name for camera in policy.spec.cameras])
    (chunk,) = policy.infer([env.reset_trial(0, 0)])
    assert chunk.actions.shape == (policy.spec.chunk, suite.action.dim) == (8, 2)


@pytest.mark.sim
def test_the_readmes_gymnasium_environment_resets() -> None:
    (code,) = [block for block in blocks(ROOT / "README.md") if "gymnasium.make" in block]
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["observation"]["instruction"]
    space["env"].close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_python_of_the_pages_compiles_and_imports(page: Path) -> None:
    for code in blocks(page):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vla_bench"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
