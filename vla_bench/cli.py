"""The command line: flags in, sentences and tables out. The only file that prints."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from vla_bench import secrets
from vla_bench.errors import (
    EXIT_BROKEN,
    EXIT_BUG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    LITTLE_MEMORY,
    WHERE_IT_RUNS,
    PolicyFailure,
    UsageError,
    check_ending,
    lacks_memory,
    too_many_files,
    unknown_name,
    unwritable,
)
from vla_bench.process import foreign, screen, watch
from vla_bench.process.paths import TakesPaths, UserPath, returning
from vla_bench.text import for_log, for_terminal, terminal_text, widths
from vla_bench.types import EpisodeResult

if TYPE_CHECKING:
    from vla_bench.config import RunConfig
    from vla_bench.doctor.machine import Check
    from vla_bench.runner import Outcome

T = TypeVar("T")
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

HELP = """usage: vla-bench COMMAND [...]

Find out how good a vision-language-action policy is, on your own machine.

  run          play a policy on a suite's episodes; the same command again resumes
  show         the table of a run: success with intervals, latency, where the time went
  compare      two runs on the same episodes: who is better, and how sure is that
  duel         play two policies on the same episodes until it is clear who is better
  check        is a run as good as the baseline? for CI
  leaderboard  all runs of a folder: one table per suite and protocol, letters for ranks
  report       a web page with tables, figures and films of runs
  collect      demonstrations by the scripted expert, as LeRobotDataset and HDF5
  train        a small policy from demonstrations
  convert      an official checkpoint to a directory of ours, proved to answer the same
  list         suites, tasks of a suite, policies, the checkpoints that come with it
  doctor       what this machine can run, and what to type where it cannot; which fault a policy's adapter has
  fsck         are runs as they were written? what is not, and how to save the rest

  vla-bench run --policy random --suite libero_long --task 0 --episodes 2
  vla-bench COMMAND --help tells the rest.
"""


@dataclass(frozen=True)
class ShowConfig(TakesPaths):
    """Print the table of a run."""

    run: Positional[Annotated[UserPath, arg(metavar="RUN")]]
    """Run directory."""
    json: bool = False
    """Print everything as JSON."""
    markdown: bool = False
    """Print the task table as Markdown, to paste."""


@dataclass(frozen=True)
class CompareConfig(TakesPaths):
    """Compare two runs episode by episode. Exit code 0: one is better, 2: undecided, 3: not comparable."""

    run_a: Positional[Annotated[UserPath, arg(metavar="RUN_A")]]
    """Run directory of A."""
    run_b: Positional[Annotated[UserPath, arg(metavar="RUN_B")]]
    """Run directory of B."""
    alpha: float = 0.05
    """Chance of naming a better one where there is none; intervals have confidence 1 - alpha."""
    force: bool = False
    """Compare although protocols or scenes differ, and say so."""
    strict_renderer: bool = False
    """Refuse runs whose pictures are not known to have the same pixels; they are compared and marked when absent."""
    json: bool = False
    """Print everything as JSON."""
    markdown: bool = False
    """Print as Markdown, to paste."""


@dataclass(frozen=True)
class CheckConfig(TakesPaths):
    """Hold a run against a baseline. Exit code 0: pass, 1: regression, 2: undecided, 3: not comparable."""

    run: Positional[Annotated[UserPath, arg(metavar="RUN")]]
    """Run directory."""
    baseline: UserPath
    """The baseline's file (results/baselines/NAME.jsonl)."""
    margin: float = 0.05
    """The loss of success rate that is accepted: 0.05 is five points."""
    alpha: float = 0.05
    """Chance of passing a greater loss, and of a false alarm."""
    max_latency_ratio: float | None = None
    """How many times the baseline's median latency per inference is accepted; any when absent."""
    undecided: Literal["pass", "fail"] = "fail"
    """What an undecided verdict counts as: fail exits with 2, pass with 0 if the baseline's episodes are all judged."""
    junit: UserPath | None = None
    """Also write the verdict to this file (NAME.xml) as JUnit XML, one test case per task."""
    update: bool = False
    """Make this run the baseline instead of checking it."""
    strict_renderer: bool = False
    """Refuse a baseline whose pictures are not known to have the same pixels; it is compared and marked when absent."""
    json: bool = False
    """Print everything as JSON."""


@dataclass(frozen=True)
class LeaderboardConfig(TakesPaths):
    """Rank all runs of a folder, one table per suite and protocol, beside published numbers."""

    results: Positional[Annotated[UserPath, arg(metavar="RESULTS")]] = "results"
    """Folder that holds run directories."""
    json: bool = False
    """Print everything as JSON."""
    markdown: bool = False
    """Print as Markdown, to paste."""
    out: UserPath | None = None
    """Write to this file instead, in the format of its ending: .csv, .html, .json, .md, .tex or .txt."""
    strict_renderer: bool = False
    """Give runs whose pictures may have other pixels tables of their own; they are marked in one table when absent."""


@dataclass(frozen=True)
class ReportConfig(TakesPaths):
    """Write a folder with a web page (index.html), Markdown, CSV and the figures of runs."""

    runs: Positional[Annotated[tuple[UserPath, ...], arg(metavar="RUN ...")]]
    """Run directories, or folders of them."""
    out: UserPath
    """The folder to write, such as reports/NAME."""
    strict_renderer: bool = False
    """Give runs whose pictures are not known to have the same pixels sections of their own; they are marked when
    absent."""


@dataclass(frozen=True)
class ListConfig:
    """List what can be run."""

    what: Positional[Annotated[str, arg(metavar="WHAT")]]
    """suites, tasks, policies, or checkpoints that come with vla-bench."""
    suite: Positional[Annotated[str, arg(metavar="SUITE")]] = ""
    """With tasks: the suite."""
    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True)
class DoctorConfig(TakesPaths):
    """Check this machine: GL backends, packages, versions, disk; print fixes.

    With --policy and --suite: check that policy's adapter. It is shown what an expert saw, never acts, and its answers
    are held against the expert's: gripper sign, pictures upside down or mirrored, orientation and quaternion order,
    axes and frames, un-normalisation, length and order of chunks, NaN, repeatability, batches, ignored inputs.
    Exit code 0: no fault found, 4: a fault.
    """

    policy: str | None = None
    """The policy to examine: a name from `vla-bench list policies`, or an import path module:Class."""
    suite: str | None = None
    """The suite whose expert it is held against."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this task, by name or index; may be given again. Three tasks of the suite when absent."""
    checkpoint: UserPath | None = None
    """Where the policy's weights are."""
    policy_args: tuple[str, ...] = ()
    """name=value ... for the policy's constructor."""
    suite_args: tuple[str, ...] = ()
    """name=value ... for the suite."""
    recording: UserPath | None = None
    """The expert's actions: what `run --record-actions` or `collect` wrote. The suite's oracle when absent."""
    episodes: int = 8
    """Expert episodes to go along."""
    json: bool = False
    """Print as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.policy is None) != (self.suite is None):
            raise UsageError(
                "vla-bench doctor examines a policy with both --policy and --suite, the machine with neither."
            )
        if self.episodes < 1:
            raise UsageError(f"--episodes should be at least 1, got {self.episodes}.")


class _Told(Exception):
    """What was asked for is printed; nothing is left to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without `argv` it is that of this process, and another one watches."""
    if argv is None:
        return watch.command(lambda: _main(sys.argv[1:], for_good=True), _aftermath)
    return _main(list(argv), for_good=False)


def _aftermath(end: watch.End) -> int:
    from vla_bench.store.aftermath import tell

    return tell(end)


def _main(arguments: list[str], for_good: bool) -> int:
    watch.stops_interrupt(foreign.interrupt)
    secrets.remember(arguments)
    with screen.own_streams(for_good) as stdout, foreign.contained(), _drawing_on_files():
        code = _guarded(arguments)
        if (said := _lost(stdout)) and code != EXIT_USAGE:
            _say(said)
        return code


def _lost(stdout: screen.Screen) -> str:
    """Why not all that was printed has arrived; empty when it has, or the reader has read enough, as `head` does."""
    stdout.flush()
    if stdout.lost is None or stdout.lost.errno == errno.EPIPE:
        return ""
    return f"standard output took no more: {stdout.lost.strerror}."


def _guarded(arguments: list[str]) -> int:
    try:
        if sys.platform == "win32":
            raise UsageError(WHERE_IT_RUNS)
        with returning():
            return _dispatch(arguments)
    except _Told:
        return EXIT_DONE
    except BaseException as error:  # some are no Exception, and Python's own exit code for them means a regression here
        return _ended_by(error)


def _ended_by(error: BaseException) -> int:
    """Tells what ended the command and returns the exit code; what nobody expected keeps its traceback."""
    if isinstance(error, UsageError):
        code, said = EXIT_USAGE, str(error)
    elif foreign.is_ctrl_c(error):
        code, said = EXIT_INTERRUPTED, "interrupted."
    elif limit := _limit_of_the_machine(error.__cause__ if isinstance(error, PolicyFailure) else error):
        code, said = EXIT_USAGE, str(limit)
    elif watch.was_asked_to_stop() and watch.board().told().get("said"):
        return EXIT_INTERRUPTED
    elif watch.was_asked_to_stop():  # in the midst of an import, say
        code, said = EXIT_INTERRUPTED, "interrupted."
    elif isinstance(error, PolicyFailure):
        _print_trace(error.__cause__)
        code, said = EXIT_BROKEN, str(error)
    else:
        _print_trace(error)
        return EXIT_BUG
    _say(said)
    return code


def _limit_of_the_machine(error: BaseException | None) -> UsageError | None:
    """What a user can do about the error, where it is one that any call into the system may raise."""
    if lacks_memory(error):
        return UsageError(LITTLE_MEMORY)
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return too_many_files(error)
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"The path {str(error.filename)[:40]!r}... is too long for this file system: give another.")
    if error.errno in _OF_THE_DISK:
        return unwritable(error.filename or "the disk", error)
    return None


@contextlib.contextmanager
def _drawing_on_files() -> Iterator[None]:
    """Whoever imports matplotlib inside draws on files: the backend of a notebook may not be installed here."""
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        del os.environ["MPLBACKEND"]
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "show": _show,
        "compare": _compare,
        "duel": _duel,
        "check": _check,
        "leaderboard": _leaderboard,
        "report": _report,
        "collect": _collect,
        "train": _train,
        "convert": _convert,
        "list": _list,
        "doctor": _doctor,
        "fsck": _fsck,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _tell(HELP)
        _insist_told()
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        from importlib.metadata import version

        _tell(f"vla-bench {version('vla-bench')}")
        _insist_told()
        return EXIT_DONE
    if arguments[0] not in commands:
        raise unknown_name("command", arguments[0], commands)
    return commands[arguments[0]](arguments[1:])


# Commands


def _run(arguments: list[str]) -> int:
    from vla_bench.config import RunConfig
    from vla_bench.runner import run

    config = _parse(RunConfig, "run", arguments)
    with _Progress() as progress:
        outcome = run(config, progress)
    for note in outcome.notes:
        _say(note)
    if outcome.interrupted:  # who is in a hurry is told first: a table takes a second
        _say_interrupted(_done(outcome))
    if outcome.judged or outcome.broken:
        _print_run(str(outcome.path), config.json)
    if outcome.judged and config.policy == "replay":
        _print_replay(config, outcome)
    return EXIT_INTERRUPTED if outcome.interrupted else _ending(outcome)


def _print_replay(config: RunConfig, outcome: Outcome) -> None:
    """How the replayed episodes ended, beside how they had ended when they were recorded."""
    from vla_bench.data.recorded import read_recorded
    from vla_bench.data.recording import compare_outcomes
    from vla_bench.registry import make_suite
    from vla_bench.store.runs import read_episodes

    recorded = read_recorded(str(config.checkpoint), make_suite(config.suite, config.suite_args))
    if said := compare_outcomes(read_episodes(outcome.path), recorded):
        _say(said)


def _done(outcome: Outcome) -> str:
    return f"{outcome.judged} of {outcome.planned} episodes are stored in {outcome.path}"


def _ending(outcome: Outcome) -> int:
    """The last sentences and the exit code of a run."""
    if outcome.interrupted:
        return _say_interrupted(_done(outcome))
    if outcome.films_lost:
        _say(outcome.films_lost)
    done = _done(outcome)
    if outcome.failure:
        trace = f"the traceback is in {outcome.path / 'errors.log'}"
        _say(f"{outcome.failure} {done}; {trace}.")
        return EXIT_BROKEN
    if outcome.broken:
        plural = "episode" if outcome.broken == 1 else "episodes"
        _say(
            f"{outcome.broken} {plural} could not be judged: {outcome.cause}; "
            f"traceback in {outcome.path / 'errors.log'}; the same command tries again."
        )
        return EXIT_BROKEN
    _say(f"{done}.")
    return EXIT_BROKEN if outcome.films_lost else EXIT_DONE


def _show(arguments: list[str]) -> int:
    config = _parse(ShowConfig, "show", arguments)
    _print_run(config.run, config.json, config.markdown)
    _insist_told()
    return EXIT_DONE


def _print_run(path: str, as_json: bool, as_markdown: bool = False) -> None:
    from vla_bench import tables

    summary = tables.load_summary(path)
    if as_json:
        _tell_json(tables.to_json(summary))
    else:
        _tell(tables.render_markdown(summary) if as_markdown else tables.render_text(summary))


def _compare(arguments: list[str]) -> int:
    from vla_bench.compare import comparison as compare

    config = _parse(CompareConfig, "compare", arguments)
    result = compare.compare(config.run_a, config.run_b, config.alpha, config.force, config.strict_renderer)
    if config.json:
        _tell_json(compare.to_json(result))
    else:
        _tell(compare.render_markdown(result) if config.markdown else compare.render_text(result))
    return compare.exit_code(result)


def _duel(arguments: list[str]) -> int:
    from vla_bench.compare import duel

    config = _parse(duel.DuelConfig, "duel", arguments)
    with _DuelProgress() as progress:
        result = duel.duel(config, progress.score)
    for note in result.notes:
        _say(note)
    if result.interrupted:
        _say_interrupted(f"{result.played} of {result.planned} planned rollouts are stored in {result.path}")
    if config.json:
        _tell_json(duel.to_json(result))
    else:
        _tell(duel.render_text(result))
    if result.films_lost:
        _say(result.films_lost)
    if result.failure:
        _say(f"{result.failure} The tracebacks are in errors.log of the runs.")
    return duel.exit_code(result)


def _check(arguments: list[str]) -> int:
    from vla_bench.compare import ci, regression

    config = _parse(CheckConfig, "check", arguments)
    check_ending("--junit", config.junit, [".xml"])
    if config.update:
        return _update_baseline(config)
    gate = regression.check(
        config.run,
        config.baseline,
        config.margin,
        config.alpha,
        config.max_latency_ratio,
        undecided=config.undecided,
        strict_renderer=config.strict_renderer,
    )
    if config.junit is not None:
        _write(Path(config.junit), ci.junit(gate), "w")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _write(Path(summary), regression.render_markdown(gate), "a")
    if config.json:
        _tell_json(regression.to_json(gate))
    else:
        _tell(regression.render_text(gate))
    if os.environ.get("GITHUB_ACTIONS"):
        print("\n".join(ci.github_annotations(gate)), file=screen.messages() if config.json else screen.results())
    return regression.exit_code(gate)


def _update_baseline(config: CheckConfig) -> int:
    from vla_bench.compare import baseline

    check_ending("--baseline", config.baseline, [".jsonl"])
    new, file = baseline.make_baseline(config.run), Path(config.baseline)
    before = ""
    with contextlib.suppress(UsageError):  # there is none, or none that can be read
        before = f" It was {baseline.describe(baseline.read_baseline(file))}."
    baseline.write_baseline(new, file)
    _tell(for_terminal(f"The baseline {file} is now {baseline.describe(new)}.{before}"))
    return EXIT_DONE


def _write(file: Path, text: str, mode: str) -> None:
    """Replaces the file, all at once, or with "a" appends to it. Raises UsageError."""
    from vla_bench.store.files import make_folder, write_whole

    try:
        make_folder(file.parent)
        if mode == "w" and (file.is_file() or not file.exists()):
            write_whole(file.resolve(), text.encode("utf-8", "backslashreplace"))  # of a link, what it leads to
            return
        with file.open(mode, encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as error:
        raise unwritable(file, error) from error


def _leaderboard(arguments: list[str]) -> int:
    from vla_bench.report import leaderboard
    from vla_bench.report.leaderboard_files import FORMATS

    config = _parse(LeaderboardConfig, "leaderboard", arguments)
    check_ending("--out", config.out, FORMATS)
    ending = ".json" if config.json else ".md" if config.markdown else Path(config.out or "leaderboard.txt").suffix
    if config.out is not None and Path(config.out).suffix != ending:
        raise UsageError(f"--out {config.out} and {'--json' if config.json else '--markdown'} ask for two formats.")
    text = FORMATS[ending](leaderboard.load_leaderboard(config.results, config.strict_renderer))
    if config.out is not None:
        _write(Path(config.out), text + "\n", "w")
        _tell(for_terminal(config.out))
        return EXIT_DONE
    if ending == ".json":
        _tell_json(json.loads(text))
    else:
        _tell(text)
    _insist_told()
    return EXIT_DONE


def _report(arguments: list[str]) -> int:
    from vla_bench.report import page as report

    config = _parse(ReportConfig, "report", arguments)
    if Path(config.out).suffix in (".html", ".md", ".csv", ".json", ".pdf", ".svg", ".png"):
        raise UsageError(f"--out should name the folder that the report is written into, got {config.out}.")
    page = report.write_report(config.runs, config.out, config.strict_renderer, _say)
    _tell(for_terminal(str(page)))
    return EXIT_DONE


def _fsck(arguments: list[str]) -> int:
    from vla_bench.doctor import fsck

    config = _parse(fsck.FsckConfig, "fsck", arguments)
    folders = fsck.run_folders(config.runs)
    if config.recover is None:
        found = [fsck.examine(folder)[0] for folder in folders]
    elif len(folders) == 1:
        found = [fsck.recover(folders[0], Path(config.recover))]
    else:
        raise UsageError(f"--recover takes one run, got {len(folders)}: name the one to save.")
    if config.json:
        _tell_json(fsck.to_json(found, config.recover))
    else:
        _tell(fsck.render_text(found, config.recover))
    _insist_told()
    return EXIT_DONE if config.recover else fsck.exit_code(found)


def _collect(arguments: list[str]) -> int:
    from vla_bench.data.collect import CollectConfig, collect

    config = _parse(CollectConfig, "collect", arguments)
    with _Progress() as progress:
        collected = collect(config, progress)
    for note in (note for outcome in collected.outcomes for note in outcome.notes):
        _say(note)
    if code := _ending(collected.outcomes[-1]):
        return code
    if not collected.kept:
        _say(f"none of the {collected.played} episodes succeeded; nothing is written.")
        return EXIT_BROKEN
    _tell(f"{collected.kept} of {collected.played} episodes succeeded: {collected.frames} frames in")
    _tell(terminal_text([[f"  {path}" for path in collected.written]]))
    return EXIT_DONE


def _train(arguments: list[str]) -> int:
    from vla_bench.training.train import TrainConfig, train

    config = _parse(TrainConfig, "train", arguments)
    with _TrainProgress() as progress:
        trained = train(config, progress)
    if trained.done < trained.steps:
        return _say_interrupted(f"{trained.done} of {trained.steps} steps are kept in {config.folder}")
    _tell(for_terminal(f"{trained.path}: {trained.steps} steps; the losses are in {trained.log}"))
    return EXIT_DONE


def _convert(arguments: list[str]) -> int:
    from vla_bench.training.convert import ConvertConfig, convert

    config = _parse(ConvertConfig, "convert", arguments)
    done = convert(config)
    proof = f"answers a probe of {done.actions} actions bit for bit like the original"
    _tell(for_terminal(f"{done.path}: sha256 {done.sha256}; {proof}."))
    return EXIT_DONE


def _list(arguments: list[str]) -> int:
    config = _parse(ListConfig, "list", arguments)
    listings: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "suites": _suites,
        "tasks": _tasks,
        "policies": _policies,
        "checkpoints": _checkpoints,
    }
    if config.what not in listings:
        raise unknown_name("thing to list", config.what, listings)
    rows = listings[config.what](config.suite)
    if config.json:
        _tell_json(rows)
    else:
        _tell(_paragraphs(rows) if config.what == "policies" else _aligned(rows))
    _insist_told()
    return EXIT_DONE


def _paragraphs(policies: Sequence[dict[str, Any]]) -> str:
    """Each policy with what it is and takes below one another."""
    import textwrap

    lines, indent = [], 2 + max(len(row["policy"]) for row in policies)
    for row in policies:
        lines.append(f"{row['policy']:<{indent}}{row['about']}")
        takes = f"--policy-args {', '.join(row['--policy-args'])}" if row["--policy-args"] else ""
        lines += textwrap.wrap(takes, 110, initial_indent=" " * indent, subsequent_indent=" " * (indent + 14))
    return terminal_text([lines, ["vla-bench run --policy NAME --policy-args help says more of each."]])


def _suites(_: str) -> list[dict[str, Any]]:
    from vla_bench.config import ALIASES
    from vla_bench.registry import broken_plugins, suite_names

    aliases = {name: [alias for alias, target in ALIASES.items() if target == name] for name in suite_names()}
    rows = [_suite_row(name, ", ".join(aliases[name])) for name in suite_names()]
    return rows + [_unusable("suite", name, why) for name, why in broken_plugins("suite").items()]


def _suite_row(name: str, alias: str) -> dict[str, Any]:
    from vla_bench.registry import SUITES, make_suite

    try:
        suite = make_suite(name)
    except UsageError as error:
        if name in SUITES:
            raise
        return _unusable("suite", name, str(error))
    return {
        "suite": name,
        "alias": alias,
        "tasks": len(suite.tasks),
        "trials": suite.tasks[0].trials,
        "max_steps": max(task.max_steps for task in suite.tasks),
        "control_hz": suite.control_hz,
        "about": suite.about,
    }


def _unusable(kind: str, name: str, why: str) -> dict[str, Any]:
    """The row of a plug-in that is broken."""
    about = f"broken plug-in: {' '.join(why.split())}"
    if kind == "policy":
        return {"policy": name, "about": about, "--policy-args": []}
    numbers = dict.fromkeys(("tasks", "trials", "max_steps", "control_hz"))
    return {"suite": name, "alias": "", **numbers, "about": about}


def _tasks(suite_name: str) -> list[dict[str, Any]]:
    from vla_bench.registry import make_suite, suite_names

    if not suite_name:
        raise UsageError(
            f"Say of which suite: vla-bench list tasks SUITE, with SUITE one of {', '.join(suite_names())}."
        )
    return [
        {
            "index": index,
            "task": task.name,
            "instruction": " / ".join(task.instructions),
            "max_steps": task.max_steps,
            "trials": task.trials,
        }
        for index, task in enumerate(make_suite(suite_name).tasks)
    ]


def _policies(_: str) -> list[dict[str, Any]]:
    from vla_bench.registry import broken_plugins, policy_names

    rows = [_policy_row(name) for name in policy_names()]
    return rows + [_unusable("policy", name, why) for name, why in broken_plugins("policy").items()]


def _policy_row(name: str) -> dict[str, Any]:
    from vla_bench.registry import POLICIES, sketch_policy

    try:
        sketch = sketch_policy(name)
    except UsageError as error:
        if name in POLICIES:
            raise
        return _unusable("policy", name, str(error))
    return {"policy": name, "about": sketch.about, "--policy-args": list(sketch.takes)}


def _checkpoints(_: str) -> list[dict[str, Any]]:
    from vla_bench.shipped import PREFIX, all_shipped

    return [
        {
            "checkpoint": PREFIX + one.name,
            "policy": one.policy,
            "suites": ", ".join(one.suites),
            "default": "yes" if one.default else "no",
            "M parameters": round(one.parameters / 1e6, 1),
            "MB": round(one.bytes / 1e6, 1),
            "trained on": one.trained_on,
        }
        for one in all_shipped()
    ]


def _doctor(arguments: list[str]) -> int:
    from vla_bench.doctor import machine as doctor

    config = _parse(DoctorConfig, "doctor", arguments)
    checks = doctor.diagnose() if config.policy is None else _examine(config)
    if config.json:
        _tell_json(doctor.to_json(checks))
    else:
        _tell(doctor.render_text(checks))
    return doctor.exit_code(checks)


def _examine(config: DoctorConfig) -> list[Check]:
    from vla_bench.doctor.adapter import Examination, examine

    fields = dataclasses.asdict(config)
    del fields["json"]
    return examine(Examination(**fields), _say)


# Parsing


def _parse(config: type[T], command: str, arguments: list[str]) -> T:
    """The command's flags as its dataclass. Raises UsageError in one sentence.

    Raises _Told once it has printed what `--help`, `--policy-args help` or `--suite-args help` asks for.
    """
    _refuse_unknown_flags(config, command, arguments)
    if "help" in (*_values(arguments, "--policy-args"), *_values(arguments, "--suite-args")):
        _print_arguments(_values(arguments, "--policy"), _values(arguments, "--suite"))
        raise _Told
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(screen.results()):
            return tyro.cli(config, args=arguments, prog=f"vla-bench {command}", config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as ending:
        if not ending.code:
            raise _Told from None
        raise UsageError(f"{_first_sentence(errors.getvalue())} See vla-bench {command} --help.") from None


def _print_arguments(policies: Sequence[str], suites: Sequence[str]) -> None:
    """What --policy-args and --suite-args take; nothing else of the command need be there."""
    from vla_bench import registry

    if not policies and not suites:
        raise UsageError("--policy-args help needs --policy NAME, --suite-args help needs --suite NAME.")
    for policy in policies:
        _tell(registry.describe_policy_arguments(policy))
    for suite in suites:
        _tell(registry.describe_suite_arguments(suite))


def _flag(argument: str) -> str:
    """`--suite-args` of `--suite_args=help`."""
    return argument.partition("=")[0].replace("_", "-")


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """What stands after a flag, before the next one."""
    values, reading = [], False
    for argument in arguments:
        if argument.startswith("--"):
            reading = _flag(argument) == flag
            values += [argument.partition("=")[2]] if reading and "=" in argument else []
        elif reading:
            values.append(argument)
    return values


def _refuse_unknown_flags(config: type[Any], command: str, arguments: Sequence[str]) -> None:
    known = {_flag("--" + field.name) for field in dataclasses.fields(config)} | {"--help"}
    for argument in arguments:
        if argument.startswith("--") and _flag(argument) not in known:
            raise unknown_name(f"flag of vla-bench {command}", argument, known)


def _first_sentence(box: str) -> str:
    """What a tyro error says first, without its title, its box (drawn or blank) and its rules."""
    said = " ".join(line.strip("│ ") for line in box.splitlines()[1:]).lstrip("-─╭╮ ")
    said = re.split(r"[─-]{4}|Got errors:", said)[0]
    said = re.sub(r"no type matching \S+ could be instantiated from", "cannot read", said)
    return re.sub(r"\s+", " ", said).strip().rstrip(".") + "."


# Screen


def _tell(text: str) -> None:
    """Prints lines of a result; names in them have been made safe to print, where they could break a line."""
    print(for_log(text), file=screen.results())


def _tell_json(value: object) -> None:
    """Prints the value as JSON in ASCII: a terminal may lack letters. `##[` is a command to the logs of some CI."""
    print(json.dumps(value, indent=2).replace("##", "#\\u0023"), file=screen.results())


def _insist_told() -> None:
    """Raises UsageError when what was printed did not arrive, for commands that come to nothing without it."""
    stdout = screen.results()
    if isinstance(stdout, screen.Screen) and (said := _lost(stdout)):
        raise UsageError(said)


def _say(sentence: str) -> None:
    """Tells the user something on standard error, in one line."""
    print(f"vla-bench: {for_terminal(sentence)}", file=screen.messages(), flush=True)


def _say_interrupted(done: str) -> int:
    """Says so, once, and how far the command has come; the exit code."""
    _say(f"interrupted; {done}. The same command resumes.")
    watch.board().tell(said=True)
    return EXIT_INTERRUPTED


def _print_trace(error: BaseException | None) -> None:
    print(for_log("".join(traceback.format_exception(error))), file=screen.messages())


class _Progress:
    """A progress bar with the running success rate and its interval, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._rows: dict[Any, EpisodeResult] = {}

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, path: Path, total: int, rows: Sequence[EpisodeResult], notes: Sequence[str]) -> None:
        from tqdm import tqdm

        for note in notes:
            _say(note)
        judged = [row for row in rows if row.success is not None]
        if judged:
            _say(f"resuming {path}: {len(judged)} of {total} episodes are done.")
        self._bar = tqdm(
            total=total, initial=len(judged), unit="episode", dynamic_ncols=True, file=screen.messages(), mininterval=0
        )
        for row in judged:
            self._rows[row.episode] = row
        self._say()

    def row(self, row: EpisodeResult) -> None:
        self._rows[row.episode] = row
        self._bar.update(row.success is not None)
        self._say()

    def _say(self) -> None:
        judged = [row for row in self._rows.values() if row.success is not None]
        unjudged = len(self._rows) - len(judged)
        if judged:
            self._bar.set_postfix_str(f"{_score(judged)}{f', {unjudged} broken' if unjudged else ''}")


def _score(judged: Sequence[EpisodeResult]) -> str:
    """The success rate, of chains the average length, with its interval."""
    from vla_bench.stats.chains import mean_interval
    from vla_bench.stats.rates import wilson

    links = max(len(row.subgoals) for row in judged)
    if links > 1:
        done = [row.subgoals_done for row in judged]
        low, high = mean_interval(done, (0, max(links, *done)))  # not all rows may name their instructions
        return f"average length {sum(done) / len(done):.2f} of {links} [{low:.2f}, {high:.2f}]"
    solved = sum(bool(row.success) for row in judged)
    low, high = wilson(solved, len(judged))
    return f"success {solved / len(judged):.0%} [{low:.0%}, {high:.0%}]"


class _DuelProgress:
    """A progress bar of a duel's pairs with both rates and the evidence, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _DuelProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def score(self, score: Any, pairs: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=pairs, initial=score.seen, unit="pair", dynamic_ncols=True, file=screen.messages(), mininterval=0
            )
        self._bar.update(score.seen - self._bar.n)
        evidence = f"evidence {score.e_value:.3g} of {1 / score.alpha:.3g}"
        self._bar.set_postfix_str(f"A {score.successes_a}, B {score.successes_b} of {score.pairs}, {evidence}")


class _TrainProgress:
    """A progress bar of a training's steps with its losses, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _TrainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, note: str, done: int, steps: int) -> None:
        from tqdm import tqdm

        _say(note)
        self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, file=screen.messages())

    def step(self, losses: Mapping[str, float], validation: Mapping[str, float]) -> None:
        said = {**losses, **({"validation": validation["loss"]} if validation else {})}
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in said.items()}, refresh=False)
        self._bar.update()


def _cell(value: object) -> str:
    return "-" if value is None else for_terminal(str(value))


def _aligned(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as columns; a column without values is left out."""
    names = [name for name in rows[0] if any(row[name] not in ("", None) for row in rows)]
    table = [names] + [
        [f"{row[name]:g}" if isinstance(row[name], float) else _cell(row[name]) for name in names] for row in rows
    ]
    room = widths(table)
    return "\n".join("  ".join(map(str.ljust, line, room)).rstrip() for line in table)


if __name__ == "__main__":
    sys.exit(main())
