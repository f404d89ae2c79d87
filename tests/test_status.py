"""How far a run has come is in run.json, and whoever reads a run that is not complete is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import INFO, as_before, made_run

from vla_bench import runner
from vla_bench.cli import main
from vla_bench.compare.baseline import make_baseline, write_baseline
from vla_bench.compare.ci import github_annotations
from vla_bench.compare.comparison import compare
from vla_bench.compare.duel import DuelConfig, duel
from vla_bench.compare.regression import check
from vla_bench.config import RunConfig
from vla_bench.data.collect import CollectConfig, collect
from vla_bench.errors import UsageError
from vla_bench.report.leaderboard import load_leaderboard
from vla_bench.runner import run
from vla_bench.store.runs import RunInfo, RunStore, read_info
from vla_bench.store.status import Status, incomplete
from vla_bench.tables import load_summary
from vla_bench.types import Episode

TESTS = Path(__file__).parent
PLANNED = [Episode("toy", "lift", trial, 0) for trial in range(4)]


def config(out: Path, **changes: object) -> RunConfig:
    return replace(RunConfig("fakes:Walker", "fakes:suite", episodes=2, out=str(out)), **changes)  # type: ignore[arg-type]


def ended(path: Path, state: str, outcomes: str = "11--", info: RunInfo = INFO) -> Path:
    """A run of which so much was planned and came to be."""
    made_run(path, {"lift": outcomes}, info=info)
    with RunStore.open(path, info, planned=PLANNED) as store:
        if state != "started":
            store.finish(state)  # type: ignore[arg-type]
    return path


def status(run: Path) -> Status | None:
    return read_info(run).status


# --- what run.json says ---


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_came_to_its_end_is_complete(tmp_path: Path, workers: str) -> None:
    run(config(tmp_path, workers=workers))
    assert status(tmp_path) == Status("complete", 4, 4, 0)
    run(config(tmp_path, episodes=1))
    assert status(tmp_path) == Status("complete", 2, 2, 0)
    assert load_summary(tmp_path).notes == ()


def test_a_run_counts_what_it_has_while_it_goes_on(tmp_path: Path) -> None:
    seen = []

    class Watcher(runner.Silent):
        def row(self, row: object) -> None:
            del row
            seen.append((status(tmp_path), load_summary(tmp_path).notes))

    run(config(tmp_path), Watcher())
    assert [found for found, _ in seen] == [Status("started", 4, judged, 0) for judged in (1, 2, 3, 4)]
    said = [f"This run is going on: {judged} of 4 planned episodes have a verdict so far." for judged in (1, 2, 3)]
    assert [notes for _, notes in seen] == [*((one,) for one in said), ()]


def test_a_run_with_episodes_that_broke_has_failed_until_they_are_judged(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("east 1 9")
    broken = config(tmp_path / "run", suite_args=(f"break_marker={marker}",))
    run(broken)
    assert status(tmp_path / "run") == Status("failed", 4, 3, 1)
    marker.unlink()
    run(broken)
    assert status(tmp_path / "run") == Status("complete", 4, 4, 0)


def test_a_policy_that_fails_fails_the_run(tmp_path: Path) -> None:
    run(config(tmp_path / "raise", policy="fakes:Faulty"))
    assert status(tmp_path / "raise") == Status("failed", 4, 0, 0)
    with pytest.raises(UsageError, match="shape"):
        run(config(tmp_path / "width", policy="fakes:Faulty", policy_args=("how=width",)))
    assert status(tmp_path / "width") == Status("failed", 4, 0, 0)


def test_ctrl_c_interrupts_the_run_and_the_same_command_completes_it(tmp_path: Path) -> None:
    class Impatient(runner.Silent):
        def row(self, row: object) -> None:
            del row
            raise KeyboardInterrupt

    assert run(config(tmp_path), Impatient()).interrupted
    assert status(tmp_path) == Status("interrupted", 4, 1, 0)
    said = "This run was interrupted: 1 of 4 planned episodes have a verdict; its command goes on with it."
    assert load_summary(tmp_path).notes == (said,)
    run(config(tmp_path))
    assert status(tmp_path) == Status("complete", 4, 4, 0)


def test_a_run_that_was_killed_shows_as_started_and_not_as_going_on(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom test_status import config\n"
        "from vla_bench import runner\n"
        "class Killer(runner.Silent):\n"
        "    def row(self, row):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "runner.run(config(Path(sys.argv[1])), Killer())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, env={**os.environ, "PYTHONPATH": str(TESTS)}
    )
    assert done.returncode == -signal.SIGKILL
    assert status(tmp_path) == Status("started", 4, 1, 0)
    said = "This run ended without a word, as one does that is killed: 1 of 4 planned episodes have a verdict"
    assert load_summary(tmp_path).notes[0].startswith(said)


def test_a_row_that_takes_the_place_of_another_is_counted_once(tmp_path: Path) -> None:
    ended(tmp_path, "failed", "1x--")
    assert status(tmp_path) == Status("failed", 4, 1, 1)
    made_run(tmp_path, {"lift": "-1", "push": "1"})
    with RunStore.open(tmp_path, INFO, planned=PLANNED):
        assert status(tmp_path) == Status("started", 4, 2, 0)


# --- what readers say ---

INTERRUPTED = "was interrupted: 2 of 4 planned episodes have a verdict; its command goes on with it."


def test_every_reader_says_that_a_run_is_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = ended(tmp_path / "r" / "whole", "complete", "1111"), ended(tmp_path / "r" / "part", "interrupted")
    assert main(["show", str(part)]) == 0
    assert f"This run {INTERRUPTED}" in capsys.readouterr().out
    assert main(["show", str(part), "--markdown"]) == 0
    assert f"This run {INTERRUPTED}" in capsys.readouterr().out
    assert main(["show", str(part), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["status"]
    assert told == {"state": "interrupted", "planned": 4, "judged": 2, "errored": 0}
    assert f"B {INTERRUPTED}" in compare(whole, part).notes
    assert f"A {INTERRUPTED}" in compare(part, whole).notes
    assert main(["leaderboard", str(tmp_path / "r")]) == 0
    assert f"pi0: the run {part} {INTERRUPTED}" in capsys.readouterr().out
    assert main(["report", str(part), "--out", str(tmp_path / "page")]) == 0
    for name in ("index.html", "report.md"):
        text = " ".join((tmp_path / "page" / name).read_text().replace("\\", "").split())
        assert f"the run {part} {INTERRUPTED}" in text
    capsys.readouterr()
    for command in (["show", str(whole)], ["compare", str(whole), str(whole)]):
        main(command)
        assert not re.search("planned episodes|interrupted", capsys.readouterr().out)


def test_check_of_a_run_that_is_not_complete_says_so_and_calls_it_no_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_baseline(make_baseline(ended(tmp_path / "whole", "complete", "1111")), tmp_path / "four.jsonl")
    write_baseline(make_baseline(made_run(tmp_path / "two", {"lift": "11"})), tmp_path / "two.jsonl")
    part = ended(tmp_path / "part", "interrupted")
    of_four = check(part, tmp_path / "four.jsonl", 0.9)
    assert of_four.verdict == "undecided"
    assert of_four.message.startswith(f"Undecided: The run {INTERRUPTED} What it has not played counts neither")
    assert main(["check", str(part), "--baseline", str(tmp_path / "four.jsonl"), "--undecided", "pass"]) == 2
    of_two = check(part, tmp_path / "two.jsonl", 0.9)
    assert of_two.passed
    assert of_two.message.startswith(f"Pass: The run {INTERRUPTED} What it has not played counts neither")
    (annotation,) = github_annotations(of_two)
    assert annotation.startswith("::warning title=vla-bench%3A pass::Pass: The run was interrupted")
    assert github_annotations(check(tmp_path / "two", tmp_path / "two.jsonl", 0.9)) == []
    capsys.readouterr()
    assert main(["check", str(part), "--baseline", str(tmp_path / "new.jsonl"), "--update"]) == 64
    assert not (tmp_path / "new.jsonl").exists()


def test_a_run_of_an_older_version_is_told_by_its_plan(tmp_path: Path) -> None:
    planned = replace(INFO, plan={**INFO.plan, "planned": 4})
    run_ = as_before(made_run(tmp_path / "a", {"lift": "1x--"}, info=planned))
    said = "This run is not complete: 1 of 4 planned episodes have a verdict, 1 ended in an error; its command goes on"
    assert load_summary(run_).notes == (f"{said} with it.",)
    assert load_summary(as_before(made_run(tmp_path / "b", {"lift": "10--"}))).notes == ()


def test_a_run_whose_every_planned_episode_is_judged_is_complete_however_it_ended() -> None:
    for state in ("started", "interrupted", "failed", ""):
        assert incomplete(Status(state, 4, 4)) == ""  # type: ignore[arg-type]
        assert incomplete(Status(state, 4, 3)) != ""  # type: ignore[arg-type]
    assert incomplete(Status("complete", 4, 3)) == ""


def test_the_committed_runs_are_complete() -> None:
    found = load_leaderboard(TESTS.parent / "reports" / "leaderboard" / "runs")
    assert not [note for board in found.boards for note in board.notes if "planned episodes" in note]


# --- duels and collections ---


def test_a_duel_that_is_decided_is_complete_and_one_that_is_interrupted_is_not(tmp_path: Path) -> None:
    slow = DuelConfig(
        "fakes:Walker", "fakes:Walker", "fakes:suite", policy_args_b=("speed=0.0",), out=str(tmp_path / "decided")
    )
    assert duel(slow).score.decided
    for side in "ab":
        found = status(tmp_path / "decided" / side)
        assert found is not None
        assert (found.state, found.planned) == ("complete", 20)
        assert found.judged < 20
    stopped = DuelConfig(
        "fakes:Walker", "fakes:Faulty", "fakes:suite", policy_args_b=("how=interrupt",), out=str(tmp_path / "cut")
    )
    assert duel(stopped).interrupted
    a, b = (status(tmp_path / "cut" / side) for side in "ab")
    assert a is not None
    assert b is not None
    assert (a.state, a.judged, b.state, b.judged) == ("interrupted", 1, "interrupted", 0)
    said = load_summary(tmp_path / "cut" / "a").notes[0]
    assert said.startswith("This run was interrupted: 1 of 20 planned episodes have a verdict")


def test_the_runs_of_a_collection_say_how_they_ended(tmp_path: Path) -> None:
    collect(CollectConfig("test_collect:suite", policy="test_collect:Expert", episodes=2, out=str(tmp_path)))
    found = [status(file.parent) for file in sorted(tmp_path.glob("runs/*/run.json"))]
    assert [one.state if one else None for one in found] == ["complete"]
