"""Every command in every way to end: its exit code is the one in the table of docs/reliability.md, read here."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from faulty_disk import Failing, use
from made_runs import made_run, other_protocol
from rude import hurry

from vla_bench.cli import main
from vla_bench.compare.baseline import make_baseline, write_baseline

pytest.importorskip("h5py", reason="needs vla-bench[data]")

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
COMMANDS: Mapping[str, str] = {
    "run": "--policy rude:Rude --suite rude:suite --task east --episodes 2 --out {out}",
    "duel": "fakes:Walker rude:Rude --suite rude:suite --task east --episodes 10 --out {out}",
    "collect": "--policy {expert} --suite rude_recorder:suite --task east --episodes 2 --format hdf5 --out {out}",
    "train": "--policy rude:Pupil --suite rude_recorder:suite --data {data} --out {out}",
    "convert": "--policy rude:Pupil --suite rude:suite --checkpoint {weights} --out {out}",
    "doctor": "--policy rude:Rude --suite rude:suite --recording {recording} --task east --episodes 1",
    "check": "{good} --baseline {baseline} --margin 0.1",
    "compare": "{good} {worse}",
    "show": "{good}",
    "leaderboard": "{runs}",
    "report": "{good} --out {out}",
    "list": "tasks rude:suite",
    "fsck": "{good}",
}
WORKS: Mapping[str, str] = {
    "run": "runner.make_suite",
    "duel": "runner.make_suite",
    "collect": "data.collect.make_suite",
    "train": "training.train.read_training_data",
    "convert": "training.convert.make_suite",
    "doctor": "doctor.adapter.make_suite",
    "check": "compare.regression.check",
    "compare": "compare.comparison.compare",
    "show": "tables.load_summary",
    "leaderboard": "report.leaderboard.load_leaderboard",
    "report": "report.page.write_report",
    "list": "registry.make_suite",
    "fsck": "doctor.fsck.examine",
}
"""What each command calls first of its own work."""


class World(NamedTuple):
    """Files that commands read, and where they write."""

    folder: Path
    out: Path
    patch: pytest.MonkeyPatch

    def argv(self, command: str, *more: str, **instead: str) -> list[str]:
        """The command on files that are sound, but for those `instead`, with more arguments."""
        names = ("data", "weights", "recording", "good", "worse", "runs", "baseline")
        places = {name: str(self.folder / name) for name in names} | {"out": str(self.out)} | instead
        places["expert"] = "test_collect:Expert"
        return [command, *COMMANDS[command].format(**places).split(), *more]


Provoked = Callable[[World, str], Sequence[str]]
"""(files, command) -> the arguments with which it ends so."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of fifty episodes, a baseline, a recording, demonstrations and weights."""
    root = tmp_path_factory.mktemp("world")
    for name, outcomes in (("good", "1" * 50), ("worse", "0" * 50), ("few", "11")):
        made_run(root / "runs" / name, {"lift": outcomes}, end="same")
        (root / name).symlink_to(root / "runs" / name)
    made_run(root / "other", {"lift": "11"}, info=other_protocol())
    write_baseline(make_baseline(root / "good"), root / "baseline")
    (root / "weights").write_text("12345", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        recorded = ["--record-actions", str(root / "recording.jsonl")]
        assert main([*World(root, root / "run", patch).argv("run"), *recorded]) == 0
        (root / "recording").symlink_to(root / "recording.jsonl")
        assert main(World(root, root / "data", patch).argv("collect")) == 0
    return root


@pytest.fixture
def world(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    hurry(monkeypatch)
    monkeypatch.setattr("vla_bench.training.log.LossLog.plot", lambda _: None)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return World(folder, tmp_path / "out", monkeypatch)


def done(world: World, command: str) -> list[str]:
    return world.argv(command, *(["--policy-args-b", "speed=0"] if command == "duel" else []))


def regression(world: World, command: str) -> list[str]:
    return world.argv(command, good=str(world.folder / "worse"))


def undecided(world: World, command: str) -> list[str]:
    return world.argv(command, good=str(world.folder / "few"), worse=str(world.folder / "few"))


def not_comparable(world: World, command: str) -> list[str]:
    if command == "duel":
        scenes = iter(range(1000))
        world.patch.setattr("rude.RudeEnv.fingerprint", lambda _: str(next(scenes)))
    return world.argv(command, good=str(world.folder / "other"))


def a_fault(world: World, command: str) -> list[str]:
    return world.argv(command, "--policy-args", "how=short")


def no_success(world: World, command: str) -> list[str]:
    return world.argv(command, "--suite-args", "max_steps=2")


def policy_leaves(world: World, command: str) -> list[str]:
    where = {"train": "step", "convert": "save"}.get(command, "infer")
    if command == "collect":
        return world.argv(command, "--policy", "rude:Leaver")
    return world.argv(command, f"--policy-args{'-b' * (command == 'duel')}", "how=exit 0", f"where={where}")


def policy_answers_nan(world: World, command: str) -> list[str]:
    return world.argv(command, f"--policy-args{'-b' * (command == 'duel')}", "how=nan")


def no_policy(world: World, command: str) -> list[str]:
    if command == "collect":
        return world.argv(command, "--policy", "fakes:Unmade")
    return world.argv(command, f"--policy-args{'-b' * (command == 'duel')}", "how=_exit 0", "where=make")


def simulator_leaves(world: World, command: str) -> list[str]:
    return world.argv(command, "--suite-args", "how=exit 0")


def no_suite(world: World, command: str) -> list[str]:
    if command == "list":
        return ["list", "tasks", "fakes:Unmade"]
    return [argument.replace(":suite", ":Unmade") for argument in world.argv(command)]


def no_film(world: World, command: str) -> list[str]:
    return world.argv(command, "--video", "all", "--suite-args", "how=exit 0", "where=film")


def a_mistake(world: World, command: str) -> list[str]:
    return world.argv(command, "--no-such-flag")


def damaged(world: World, command: str) -> list[str]:
    broken = world.out.with_name("broken")
    for run in (broken, broken / "a", broken / "b"):
        run.mkdir()
        (run / "run.json").write_text("{", encoding="utf-8")
    inputs = ("data", "weights", "recording", "good", "baseline", "out")
    there = {name: str(broken) for name in inputs if f"{{{name}}}" in COMMANDS[command]}
    if command in ("convert", "report"):
        there |= {"out": str(world.out), "weights": str(world.out / "gone")}
    return world.argv(command, **there)


def disk_full(world: World, command: str) -> list[str]:
    use(Failing(0, errno.ENOSPC, for_good=True), world.patch)
    full = world.out.with_name("full.xml" if command == "check" else "full.md")
    full.symlink_to("/dev/full")
    if command in ("check", "leaderboard"):
        return world.argv(command, "--junit" if command == "check" else "--out", str(full))
    if command == "convert":
        return world.argv(command, "--policy-args", "how=full", "where=save")
    if command == "report":
        world.patch.setattr(Path, "mkdir", lambda *_, **__: no_space())
    return world.argv(command)


def no_space() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")


def working(ends: Callable[[], object]) -> Provoked:
    """In the midst of its work."""

    def provoked(world: World, command: str) -> list[str]:
        world.patch.setattr(f"vla_bench.{WORKS[command]}", lambda *_, **__: ends())
        return world.argv(command)

    return provoked


def too_many_files() -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def bug() -> NoReturn:
    raise AssertionError("unreachable")


def printing_to(file: Callable[[], io.TextIOBase]) -> Provoked:
    def provoked(world: World, command: str) -> list[str]:
        world.patch.setattr("sys.stdout", file())
        world.patch.setattr("vla_bench.report.page.write_report", lambda *_: world.out)
        return (regression if command == "check" else done)(world, command)

    return provoked


def nobody() -> io.TextIOBase:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


def full_terminal() -> io.TextIOBase:
    return open("/dev/full", "w", encoding="utf-8")


ENDINGS: Mapping[str, Provoked] = {
    "done": done,
    "regression": regression,
    "undecided": undecided,
    "not comparable": not_comparable,
    "fault found": a_fault,
    "no episode succeeded": no_success,
    "policy raises, exits or panics": policy_leaves,
    "policy answers what cannot be played": policy_answers_nan,
    "policy cannot be made": no_policy,
    "simulator raises, exits or panics": simulator_leaves,
    "suite cannot be made": no_suite,
    "film cannot be made": no_film,
    "mistake in the command": a_mistake,
    "input missing or damaged": damaged,
    "disk full": disk_full,
    "no more open files": working(too_many_files),
    "a bug of ours": working(bug),
    "Ctrl-C": working(lambda: signal.raise_signal(signal.SIGINT)),
    "reader leaves": printing_to(nobody),
    "standard output full": printing_to(full_terminal),
}
"""The rows of the table."""
SAID: Mapping[str, str] = {
    "regression": "Regression:",
    "undecided": "ndecided",
    "not comparable": "ot comparable",
    "fault found": "PROBLEM",
    "no episode succeeded": "none of the 2 episodes succeeded",
    "policy raises, exits or panics": "raised SystemExit in",
    "policy answers what cannot be played": "returned nan in action 0",
    "policy cannot be made": "could not be made",
    "simulator raises, exits or panics": "SystemExit: 0",
    "suite cannot be made": "Unmade",
    "film cannot be made": "videos could not be rendered",
    "mistake in the command": "Unknown flag",
    "disk full": "No space left on device",
    "no more open files": "may open no more files",
    "a bug of ours": "AssertionError: unreachable",
    "Ctrl-C": "vla-bench: interrupted.",
    "standard output full": "took no more: No space left on device",
}
"""What is printed with it."""


def table() -> dict[str, dict[str, int]]:
    """Ending to command to exit code, as the page has it; what cannot happen is left out."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition("## Exit codes\n")
    lines = [line.strip("| ").split("|") for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip(" `*") for cell in line] for line in lines]
    tables = [row for row in cells if len(row) == len(COMMANDS) + 1]
    commands, rule, *rows = tables
    assert set("".join(rule)) == {"-", ":"}
    codes = {ending: dict(zip(commands[1:], row, strict=True)) for ending, *row in rows}
    return {ending: {c: int(code) for c, code in row.items() if code != "–"} for ending, row in codes.items()}


TABLE = table() if PAGE.exists() else {}


def test_the_table_has_every_command_and_every_ending() -> None:
    assert list(TABLE) == list(ENDINGS)
    help_lists = re.findall(r"^  (\w+)  +", told_by(["--help"]), re.MULTILINE)
    assert set(help_lists) - {"vla"} == set(COMMANDS)
    assert list(TABLE["done"]) == list(COMMANDS)


def told_by(argv: Sequence[str]) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        assert main(argv) == 0
    return said.getvalue()


def cells() -> Iterator[tuple[str, str, int]]:
    yield from ((ending, command, code) for ending, row in TABLE.items() for command, code in row.items())


@pytest.mark.parametrize(("ending", "command", "code"), cells())
def test_every_command_ends_with_the_code_of_the_table(
    ending: str, command: str, code: int, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ENDINGS[ending](world, command)
    assert main(argv) == code
    printed = capsys.readouterr()
    assert SAID.get(ending, "") in printed.out + printed.err


@pytest.mark.parametrize("command", ["run", "duel", "collect", "train", "convert", "doctor"])
def test_wherever_the_code_of_others_goes_files_are_read_and_written_where_the_command_was_given(
    command: str, world: World, tmp_path: Path
) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "world").symlink_to(world.folder)
    world.patch.chdir(tmp_path)
    here = World(Path("world"), Path("out"), world.patch)
    argv = done(here, command) + (["--record-actions", "a.jsonl", "--video", "all"] if command == "run" else [])
    leaves = "policy" if command == "train" else "suite"
    where = "where=make" if leaves == "policy" else "where=suite"
    assert main([*argv, f"--{leaves}-args", "how=leave", where]) == 0
    assert Path.cwd() == tmp_path
    made = {"away", "world"} | ({"out"} if command != "doctor" else set())
    made |= {"run": {"a.jsonl"}, "train": {"out.training"}}.get(command, set())
    assert {entry.name for entry in tmp_path.iterdir()} == made
    assert list((tmp_path / "away").iterdir()) == []


def test_one_is_the_code_of_a_regression_and_of_nothing_else() -> None:
    ones = {(ending, command) for ending, row in TABLE.items() for command, code in row.items() if code == 1}
    assert {command for _, command in ones} == {"check"}
    assert {ending for ending, _ in ones} == {"regression", "reader leaves", "standard output full"}
