"""The command line: what it prints, and one sentence with the right exit code for everything a user may get wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vla_bench.cli import main
from vla_bench.config import ALIASES, RunConfig, parse_arguments
from vla_bench.errors import MissingPackage, install_command
from vla_bench.registry import POLICIES, SUITES, find_policy, make_suite

RUN = ["run", "--policy", "zero", "--suite", "robosuite"]
TOY = ["run", "--policy", "fakes:Walker", "--suite", "fakes:suite", "--episodes", "1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*RUN[:-1], "libero_lonng"], "Unknown suite 'libero_lonng'. Did you mean 'libero_long'"),
        (["run", "--policy", "rndom", "--suite", "robosuite"], "Unknown policy 'rndom'. Did you mean 'random'"),
        ([*RUN, "--task", "Lft"], "Unknown task of robosuite 'Lft'. Did you mean 'Lift'"),
        ([*RUN, "--episods", "3"], "Unknown flag of vla-bench run '--episods'. Did you mean '--episodes'"),
        ([*RUN, "--episodes", "three"], "--episodes: cannot read ['three']"),
        ([*RUN, "--episodes", "0"], "--episodes should be at least 1, got 0."),
        ([*RUN, "--episodes", "51"], "Lift has trials 0 to 49, got --first-trial 0 --episodes 51."),
        ([*RUN, "--first-trial", "-1"], "--first-trial should be at least 0, got -1."),
        ([*RUN, "--seed", "-1"], "--seed should be at least 0 and below 2^63, got -1."),
        ([*RUN, "--seed", "99999999999999999999"], "--seed should be at least 0 and below 2^63"),
        ([*RUN, "--timeout", "inf"], "--timeout should be more than 0 and at most 1e+06 seconds, got inf."),
        ([*RUN, "--timeout", "1e10"], "--timeout should be more than 0 and at most 1e+06 seconds, got 1"),
        ([*RUN, "--ensemble-decay", "nan"], "--ensemble-decay should be within ±1e+06, got nan."),
        ([*RUN, "--workers", "²"], "--workers should be a number"),
        (
            [*RUN, "--suite-args", "resolution=8", "resolution=9"],
            "--suite-args resolution is given twice; give it once.",
        ),
        ([*RUN, "--timeout", "0"], "--timeout should be more than 0 and at most 1e+06 seconds, got 0.0."),
        ([*RUN, "--batch-size", "0"], "--batch-size should be at least 1, got 0."),
        ([*RUN, "--workers", "many"], "--workers should be a number of at least 1, or auto; got 'many'."),
        ([*RUN, "--execute", "0"], "--execute must be at least 1, got 0."),
        ([*RUN, "--chunking", "magic"], "--chunking"),
        ([*RUN, "--checkpoint", "x"], "The policy 'zero' has no checkpoint, got --checkpoint x."),
        ([*RUN, "--policy-args", "speed"], "--policy-args takes name=value, got 'speed'."),
        ([*RUN, "--policy-args", "speed=1"], "Unknown argument of --policy-args 'speed'."),
        ([*RUN, "--suite-args", "resolution=big"], "--suite-args resolution should be int, got 'big'."),
        (
            ["run", "--policy", "random", "--suite", "robosuite", "--policy-args", "chunk=x"],
            "chunk should be int, got 'x'",
        ),
        (["run", "--policy", "replay", "--suite", "robosuite"], "The policy 'replay' needs --checkpoint PATH."),
        (["run", "--policy", "no.such:Thing", "--suite", "robosuite"], "there is no module 'no'"),
        (["run", "--policy", "fakes:Wlker", "--suite", "robosuite"], "Did you mean 'Walker'"),
        (["run", "--policy", "random"], "Missing from vla-bench run: --suite"),
        (["run", "--policy-args", "help"], "--policy-args help needs --policy NAME"),
        (["collect", "--suite", "robosiute", "--suite-args", "help"], "Did you mean 'robosuite'"),
        (
            ["duel", "a", "b", "--suite", "tiny", "--policy-args", "help"],
            "Unknown flag of vla-bench duel '--policy-args'",
        ),
        (
            ["run", "--policy", "fakes:Unmade", "--suite", "robosuite"],
            "could not be made: FileNotFoundError: no such weights (",
        ),
        (["walk"], "Unknown command 'walk'."),
        (["list", "suits"], "Unknown thing to list 'suits'. Did you mean 'suites'"),
        (["list", "tasks"], "vla-bench list tasks SUITE"),
        (["list", "tasks", "libero_lnog"], "Did you mean 'libero_long'"),
        (["show", "nowhere"], "nowhere"),
        (["show", "a", "b"], "Unrecognized options: b"),
        (["show"], "Missing from vla-bench show: RUN"),
        (["list"], "Missing from vla-bench list: WHAT"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_64(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 64
    assert said in printed.err
    assert printed.err.startswith("vla-bench: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--policy", "fakes:Walker", "--suite", "robosuite", "--policy-args", "help"], {"speed", "resolution"}),
        (["collect", "--suite=robosuite", "--suite_args=help"], {"resolution"}),
        (["train", "--policy", "fakes:Walker", "--policy-args", "help"], {"speed"}),
    ],
)
def test_arguments_are_listed_without_the_rest_of_the_command(
    arguments: list[str], said: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    lines = {"speed": "speed: float = 0.5", "resolution": "resolution: int = 256"}
    assert {name for name, line in lines.items() if line in printed} == said
    assert {name for name in lines if f"{name}: " in printed} == said


def test_run_prints_its_table_and_show_prints_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TOY, "--out", str(tmp_path / "run")]) == 0
    table = capsys.readouterr().out
    assert "east" in table
    assert "2/2" in table
    assert main(["show", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == table


def test_run_and_show_speak_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TOY, "--json", "--out", str(tmp_path / "run")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["overall"]["successes"], said["overall"]["episodes"]) == (2, 2)
    assert main(["show", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == said


def test_a_run_without_out_gets_the_same_directory_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TOY, "--task", "0"]) == main([*TOY, "--task", "0", "--task", "1"]) == 0
    assert main([*TOY, "--seed", "1"]) == 0
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_an_alias_names_the_same_run() -> None:
    assert ALIASES["libero_long"] == "libero_10"
    assert make_suite("libero_long").name == "libero_10"
    assert RunConfig("zero", "libero_long").path() == RunConfig("zero", "libero_10").path()


@pytest.mark.parametrize("what", [["suites"], ["policies"], *(["tasks", name] for name in SUITES)])
def test_lists_speak_json(what: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *what, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 0


def test_lists_name_everything_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "suites"])
    main(["list", "policies"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*SUITES, *POLICIES, *ALIASES])


@pytest.mark.parametrize(("given", "value"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_policy_arguments_take_true_and_false_in_any_case(given: str, value: bool) -> None:
    def policy(loud: bool = False) -> None: ...

    assert parse_arguments(policy, [f"loud={given}"], "--policy-args", ()) == {"loud": value}


@pytest.mark.parametrize("command", ["run", "show", "list", "convert", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert ("--json" in capsys.readouterr().out) == (command != "convert")


def test_every_policy_says_in_one_line_what_it_is() -> None:
    assert all((find_policy(name).__doc__ or "").splitlines()[0].endswith((".", ":")) for name in POLICIES)


def test_help_and_lists_import_no_simulator_and_no_pandas() -> None:
    code = (
        "import sys; from vla_bench.cli import main; main(['--help']); main(['list', 'tasks', 'libero_90']);"
        "main(['list', 'policies']);"
        "heavy = {'pandas', 'torch', 'mujoco', 'robosuite', 'matplotlib', 'pyarrow'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_simulator_is_named_with_the_pip_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> str:
        raise MissingPackage(package, "robosuite")

    monkeypatch.setattr("vla_bench.envs.robosuite.version", missing)
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 64
    assert "robosuite is not installed; install it with: pip install 'robosuite==1.4.0'\n" in capsys.readouterr().err


def test_the_advice_names_packages_and_versions_for_every_extra() -> None:
    """There is no distribution called vla-bench to take an extra from; what is said comes from what is installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    extras = metadata.metadata("vla-bench").get_all("Provides-Extra") or []
    assert {"robosuite", "libero", "vla", "data", "all"} <= set(extras)
    for extra in extras:
        command, *packages = shlex.split(install_command(extra, anew=["robosuite", "torch"]))
        assert (command, packages.pop(0)) == ("pip", "install")
        assert packages
        assert all(Requirement(package).name != "vla-bench" for package in packages)
    assert "'robosuite==1.4.0'" in install_command("all", anew=["robosuite"])


def test_nothing_tells_to_install_vla_bench_from_an_index() -> None:
    root = Path(__file__).parent.parent
    folders = ("*.md", "docs/**/*.md", "vla_bench/*.py", "envs/*.py", "policies/*.py", "scripts/*.sh")
    files = [file for folder in folders for file in root.glob(folder)]
    assert [file.name for file in files if re.search(r"pip install '?vla-bench", file.read_text("utf-8"))] == []
