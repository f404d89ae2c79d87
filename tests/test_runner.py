"""A run: planning, storing, resuming, workers, and everything that can go wrong on the way."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import fakes
import pandas as pd
import pytest

from vla_bench.cli import main
from vla_bench.config import RunConfig
from vla_bench.errors import UsageError
from vla_bench.runner import Outcome, plan, run, select_tasks
from vla_bench.store.runs import read_actions, read_episodes, read_inferences, read_info
from vla_bench.tables import load_summary
from vla_bench.types import EpisodeResult

TESTS = Path(__file__).parent
TIMINGS = {"latency_mean_ms", "latency_max_ms", "wall_s", "setup_s", "physics_s", "render_s", "policy_s"}


def config(out: Path, **changes: object) -> RunConfig:
    settings = {"policy": "fakes:Walker", "suite": "fakes:suite", "episodes": 3, "out": str(out), **changes}
    return RunConfig(**settings)  # type: ignore[arg-type]


def rows(out: Path) -> list[dict[str, object]]:
    stored = sorted(read_episodes(out), key=lambda row: (row.task, row.trial))
    return [{key: value for key, value in asdict(row).items() if key not in TIMINGS} for row in stored]


def broken_config(out: Path, times: int, break_with: str, **changes: object) -> RunConfig:
    marker = out.parent / "marker"
    marker.write_text(f"farther 1 {times}")
    arguments = (f"break_marker={marker}", f"break_with={break_with}")
    return config(out, suite_args=arguments, **changes)


# Planning


def test_the_plan_holds_every_trial_of_every_task_before_anything_runs() -> None:
    episodes = plan(fakes.suite(), config(Path("x"), episodes=None, first_trial=8))
    assert [(e.task, e.trial) for e in episodes] == [("east", 8), ("east", 9), ("farther", 8), ("farther", 9)]


def test_tasks_are_chosen_by_name_or_index_in_the_suites_order() -> None:
    assert [task.name for task in select_tasks(fakes.suite(), ["1", "east"])] == ["east", "farther"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": ("eastt",)}, "Did you mean 'east'"),
        ({"task": ("2",)}, "tasks 0 to 1, got 2"),
        ({"episodes": 11}, "trials 0 to 9, got --first-trial 0 --episodes 11"),
        ({"first_trial": 10, "episodes": None}, "trials 0 to 9, got --first-trial 10"),
    ],
)
def test_a_plan_of_what_does_not_exist_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(fakes.suite(), config(Path("x"), **changes))
    assert said in str(caught.value)


# Results


def test_the_same_command_twice_gives_the_same_rows(tmp_path: Path) -> None:
    run(config(tmp_path / "a"))
    run(config(tmp_path / "b"))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert len(rows(tmp_path / "a")) == 6


@pytest.mark.parametrize("changes", [{}, {"chunking": "temporal"}, {"execute": 2, "batch_size": 1}])
def test_two_workers_give_the_rows_of_one(tmp_path: Path, changes: dict[str, object]) -> None:
    run(config(tmp_path / "one", **changes))
    outcome = run(config(tmp_path / "two", workers="2", **changes))
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert (outcome.judged, outcome.broken) == (6, 0)


def test_two_workers_see_the_same_past_as_one(tmp_path: Path) -> None:
    run(config(tmp_path / "one", policy="fakes:Historian"))
    run(config(tmp_path / "two", policy="fakes:Historian", workers="2"))
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_another_seed_gives_other_episodes(tmp_path: Path) -> None:
    run(config(tmp_path / "a"))
    run(config(tmp_path / "b", seed=1))
    fingerprints = [{row["scene_fingerprint"] for row in rows(tmp_path / name)} for name in "ab"]
    assert not fingerprints[0] & fingerprints[1]


def test_every_inference_has_a_row(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    calls = read_inferences(tmp_path / "run")
    episodes = pd.DataFrame(rows(tmp_path / "run"))
    assert len(calls) == episodes.inferences.sum()
    assert calls.executed.sum() == episodes.steps.sum()
    assert (calls.stage_think_ms == 1.5).all()


def test_workers_share_one_policy_that_answers_them_together(tmp_path: Path) -> None:
    run(config(tmp_path / "run", workers="2", episodes=10))
    calls = read_inferences(tmp_path / "run")
    assert calls.batch.max() <= 2
    assert (calls.queue_ms >= 0).all()


def test_run_json_tells_where_the_numbers_come_from(tmp_path: Path) -> None:
    run(config(tmp_path / "run", policy_args=("speed=0.4",), checkpoint="weights-1"))
    info = read_info(tmp_path / "run")
    assert info.identity["policy_args"] == ["speed=0.4"]
    assert info.identity["weights"] == "weights-1"
    assert {"versions", "machine", "command", "git", "started", "run_seconds"} <= set(info.provenance)
    assert info.protocol["simulator"] == {"toy": "1"}


def test_the_protocol_hash_knows_the_chunking_but_not_the_policy(tmp_path: Path) -> None:
    run(config(tmp_path / "a", episodes=1))
    run(config(tmp_path / "b", episodes=1, policy_args=("speed=1",), workers="2", task=("0",)))
    run(config(tmp_path / "c", episodes=1, execute=1))
    run(config(tmp_path / "d", episodes=1, suite_args=("max_steps=19",)))
    hashes = [read_info(tmp_path / name).protocol_hash for name in "abcd"]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_as_many_actions_are_played_as_the_policys_authors_play_unless_told_otherwise(
    tmp_path: Path, workers: str
) -> None:
    usual = run(config(tmp_path / "usual", policy="fakes:Stroller", workers=workers))
    told = run(config(tmp_path / "told", policy="fakes:Stroller", workers=workers, execute=4))
    assert read_inferences(usual.path)["executed"].max() == 2
    assert read_inferences(told.path)["executed"].max() == 4


def test_a_policy_that_usually_plays_more_than_it_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="answers 4 actions and has 5 of them played"):
        run(config(tmp_path, policy="fakes:Stroller", policy_args=("usual=5",)))


def test_recorded_actions_replay_to_the_same_end(tmp_path: Path) -> None:
    run(config(tmp_path / "run", record_actions=str(tmp_path / "actions.jsonl")))
    run(config(tmp_path / "again", policy="replay", checkpoint=str(tmp_path / "actions.jsonl")))
    ends = [
        [(row["success"], row["steps"], row["final_fingerprint"]) for row in rows(tmp_path / n)]
        for n in ("run", "again")
    ]
    assert ends[0] == ends[1]
    assert {episode.trial for episode in read_actions(tmp_path / "actions.jsonl")} == {0, 1, 2}


def test_tables_list_tasks_in_the_suites_order_whatever_finished_first(tmp_path: Path) -> None:
    run(config(tmp_path / "run", task=("farther",)))
    run(config(tmp_path / "run", workers="2"))
    assert [row.task for row in load_summary(tmp_path / "run").tasks] == ["east", "farther"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_films_that_fail_are_said_with_their_cause_and_exit_4_and_the_rows_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    asked = ["--policy", "fakes:Walker", "--policy-args", "speed=-1", "--suite", "fakes:suite", "--episodes", "2"]
    asked += ["--suite-args", "break_with=film", "--workers", workers, "--out", str(tmp_path / "run")]
    assert main(["run", *asked, "--video", "all"]) == 4
    said = capsys.readouterr().err
    lost = "4 videos could not be rendered: RuntimeError: the camera fell (4 of 4); traceback in"
    assert f"vla-bench: {lost} {tmp_path / 'run' / 'errors.log'}. The episodes are stored" in said
    assert "4 of 4 episodes are stored" in said
    assert [row["success"] for row in rows(tmp_path / "run")] == [False] * 4
    assert main(["run", *asked]) == 0, "no film is asked for"


def test_a_duel_says_the_films_it_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["duel", "fakes:Walker", "fakes:Walker", "--suite", "fakes:suite", "--episodes", "1", "--video", "all"]
    assert main([*asked, "--suite-args", "break_with=film", "--out", str(tmp_path)]) == 4
    assert capsys.readouterr().err.count("2 videos could not be rendered: RuntimeError: the camera fell (2 of 2)") == 2


def test_filming_that_fails_costs_the_film_and_not_the_verdict(tmp_path: Path) -> None:
    settings = {"policy_args": ("speed=-1",), "suite_args": ("break_with=film",), "workers": "1"}
    outcome = run(config(tmp_path / "run", video="failures", **settings))
    assert (outcome.judged, outcome.broken) == (6, 0)
    assert {(row["success"], row["video"]) for row in rows(tmp_path / "run")} == {(False, "")}
    assert all("Not filmed. RuntimeError" in str(row["message"]) for row in rows(tmp_path / "run"))
    assert "the camera fell" in (tmp_path / "run" / "errors.log").read_text()


# Resuming


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    before = (tmp_path / "run" / "episodes.jsonl").read_text()
    outcome = run(config(tmp_path / "run"))
    assert (tmp_path / "run" / "episodes.jsonl").read_text() == before
    assert outcome.judged == 6


def test_more_episodes_extend_a_run(tmp_path: Path) -> None:
    run(config(tmp_path / "run", episodes=1))
    run(config(tmp_path / "run", episodes=3))
    run(config(tmp_path / "whole", episodes=3))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_another_configuration_is_refused_with_the_fields_named(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"seed is 0 .* 1 here|seed") as caught:
        run(config(tmp_path / "run", seed=1))
    assert "--overwrite" in str(caught.value)
    assert run(config(tmp_path / "run", seed=1, overwrite=True)).judged == 6


def test_a_policy_whose_file_has_changed_is_another_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from fakes import Walker\n\n\nclass Mine(Walker):\n    pass\n"
    (tmp_path / "mine_a.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    run(config(tmp_path / "run", policy="mine_a:Mine"))
    (tmp_path / "mine_a.py").write_text(source + "# changed\n")
    importlib.reload(sys.modules["mine_a"])
    with pytest.raises(UsageError, match="code is"):
        run(config(tmp_path / "run", policy="mine_a:Mine"))


def test_a_command_that_plays_nothing_leaves_the_provenance_alone(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    before = read_info(tmp_path / "run").provenance
    run(config(tmp_path / "run"))
    assert read_info(tmp_path / "run").provenance == before
    run(config(tmp_path / "run", episodes=4))
    after = read_info(tmp_path / "run").provenance
    assert after["earlier"] == [before]
    assert float(str(after["run_seconds"])) > float(str(before["run_seconds"]))


def test_an_interrupted_run_resumes_to_the_rows_of_a_whole_one(tmp_path: Path) -> None:
    class Impatient:
        def start(self, *_: object) -> None:
            self.seen = 0

        def row(self, _: EpisodeResult) -> None:
            self.seen += 1
            if self.seen == 2:
                raise KeyboardInterrupt

    stopped = run(config(tmp_path / "run"), Impatient())
    assert stopped.interrupted
    assert stopped.judged == 2
    assert run(config(tmp_path / "run")).judged == 6
    run(config(tmp_path / "whole"))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


# Breaking


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_error_of_the_simulator_is_retried_and_counted(tmp_path: Path, workers: str) -> None:
    outcome = run(broken_config(tmp_path / "run", 2, "raise", workers=workers))
    assert (outcome.judged, outcome.broken) == (6, 0)
    assert {row["attempts"] for row in rows(tmp_path / "run") if (row["task"], row["trial"]) == ("farther", 1)} == {3}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_episode_that_always_breaks_stays_unjudged_and_is_tried_again_next_time(
    tmp_path: Path, workers: str
) -> None:
    settings = broken_config(tmp_path / "run", 3, "raise", workers=workers)
    outcome = run(settings)
    assert (outcome.judged, outcome.broken) == (5, 1)
    row = next(row for row in rows(tmp_path / "run") if row["success"] is None)
    assert (row["error"], row["message"], row["attempts"]) == ("RuntimeError", "the toy fell off the table", 3)
    assert "Traceback" in (tmp_path / "run" / "errors.log").read_text()
    assert run(settings).broken == 0


def test_a_worker_killed_mid_episode_costs_nothing(tmp_path: Path) -> None:
    outcome = run(broken_config(tmp_path / "run", 1, "SIGKILL", workers="2"))
    assert (outcome.judged, outcome.broken) == (6, 0)
    lines = (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    assert len(lines) == len({(json.loads(line)["task"], json.loads(line)["trial"]) for line in lines}) == 6
    run(config(tmp_path / "whole"))
    ends = [[(r["task"], r["trial"], r["final_fingerprint"]) for r in rows(tmp_path / n)] for n in ("run", "whole")]
    assert ends[0] == ends[1]


def test_a_worker_that_always_dies_leaves_its_episode_unjudged(tmp_path: Path) -> None:
    outcome = run(broken_config(tmp_path / "run", 3, "SIGKILL", workers="2"))
    assert (outcome.judged, outcome.broken) == (5, 1)
    row = next(row for row in rows(tmp_path / "run") if row["success"] is None)
    assert row["error"] == "WorkerDied"
    assert row["message"] == "the worker was killed by signal 9 (SIGKILL, as when memory runs out)"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_simulator_that_never_works_stops_the_run(tmp_path: Path, workers: str) -> None:
    settings = broken_config(tmp_path / "run", 999, "raise", workers=workers)
    (tmp_path / "marker").write_text("any 0 999")
    outcome = run(settings)
    assert (outcome.judged, outcome.broken) == (0, 3)
    assert "3 episodes in a row could not be judged, the last for RuntimeError: the toy fell" in outcome.failure


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("how", "timeout", "said"), [("raise", None, "raised KeyError"), ("slow", 0.3, "longer than --timeout")]
)
def test_a_failing_policy_stops_the_run_and_keeps_what_is_done(
    tmp_path: Path, workers: str, how: str, timeout: float | None, said: str
) -> None:
    run(config(tmp_path / "run", policy="fakes:Faulty", policy_args=(f"how={how}",), workers=workers, timeout=timeout))
    outcome = run(
        config(tmp_path / "run", policy="fakes:Faulty", policy_args=(f"how={how}",), workers=workers, timeout=timeout)
    )
    assert isinstance(outcome, Outcome)
    assert said in outcome.failure
    assert "Traceback" in (tmp_path / "run" / "errors.log").read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_wrong_answer_is_a_usage_error_with_any_number_of_workers(tmp_path: Path, workers: str) -> None:
    with pytest.raises(UsageError, match=r"shape \(4, 3\)"):
        run(config(tmp_path / "run", policy="fakes:Faulty", policy_args=("how=width",), workers=workers))


def test_executing_more_than_a_chunk_is_a_usage_error_from_a_worker_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--execute 4 or less"):
        run(config(tmp_path / "run", execute=5, workers="2"))


# The command


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vla_bench.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=120,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_says_what_is_done_exits_130_and_resumes(tmp_path: Path, workers: str) -> None:
    arguments = ["run", "--policy", "fakes:Faulty", "--policy-args", "how=slow", "seconds=60", "--suite", "fakes:suite"]
    arguments += ["--episodes", "2", "--workers", workers, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_bench.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 a CI in the background ignores it
    )
    while not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.05)
    time.sleep(2.0 if workers == "2" else 0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; 0 of 4 episodes are stored" in errors
    assert "The same command resumes." in errors
    assert "Traceback" not in errors


def test_broken_episodes_make_the_command_exit_4(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("east 0 9")
    done = command(
        "run", "--policy", "fakes:Walker", "--suite", "fakes:suite", "--suite-args", f"break_marker={marker}",
        "--episodes", "2", "--task", "0", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 4
    cause = f"RuntimeError: the toy fell off the table; traceback in {tmp_path / 'run' / 'errors.log'}"
    assert f"1 episode could not be judged: {cause}; the same command tries again." in done.stderr
    assert "1/1" in done.stdout
    assert f"  {cause}.\n" in command("show", str(tmp_path / "run")).stdout


def test_an_environment_that_cannot_be_closed_is_told_and_costs_no_verdict(tmp_path: Path) -> None:
    done = command(
        "run", "--policy", "fakes:Walker", "--suite", "fakes:suite", "--suite-args", "break_with=close",
        "--episodes", "1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0
    assert "vla-bench: the environment of east raised in close: RuntimeError: the lid is stuck\n" in done.stderr
    assert "2 of 2 episodes are stored" in done.stderr


def test_a_script_without_a_main_guard_can_use_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from vla_bench.config import RunConfig\nfrom vla_bench.runner import run\n"
        "config = RunConfig('fakes:Walker', 'fakes:suite', episodes=1, workers='2', "
        f"out={str(tmp_path / 'run')!r})\nprint(run(config).judged)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=60,
    )
    assert done.stdout.strip() == "2", done.stderr
