"""Two policies in turn: the order, when it stops, and that neither workers nor interruptions change the verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import fakes
import pytest
from made_runs import as_before, episode
from marks import slow

from vla_bench.cli import main
from vla_bench.compare import duel as module
from vla_bench.compare.comparison import compare
from vla_bench.compare.duel import Duel, DuelConfig, Score, duel, exit_code, render_text, to_json, trial_major
from vla_bench.config import RunConfig
from vla_bench.errors import UsageError
from vla_bench.runner import plan, run
from vla_bench.stats.anytime import paired_e_value
from vla_bench.store.runs import read_episodes, read_inferences, read_info
from vla_bench.types import EpisodeResult

SLOW = ("speed=0.2",)
DUEL = ["duel", "fakes:Walker", "fakes:Walker", "--suite", "fakes:suite"]


def config(out: Path, **changes: object) -> DuelConfig:
    settings = {"policy_a": "fakes:Walker", "policy_b": "fakes:Walker", "suite": "fakes:suite", "out": str(out)}
    return DuelConfig(**{**settings, **changes})  # type: ignore[arg-type]


def everything_said(result: Duel) -> str:
    json.dumps(to_json(result), allow_nan=False)
    return render_text(result)


def identity(path: Path) -> list[tuple[object, ...]]:
    return [(row.task, row.trial, row.success, row.steps, row.final_fingerprint) for row in read_episodes(path)]


# Order and score


def test_the_order_takes_every_task_before_the_next_trial() -> None:
    order = trial_major(plan(fakes.suite(), RunConfig("fakes:Walker", "fakes:suite", episodes=2)))
    assert [(e.task, e.trial) for e in order] == [("east", 0), ("farther", 0), ("east", 1), ("farther", 1)]


def scored(a: str, b: str, alpha: float = 0.05) -> Score:
    score = Score(alpha)
    for trial, pair in enumerate(zip(a, b, strict=True)):
        rows = [episode("lift", trial, {"1": True, "0": False, "x": None}[outcome]) for outcome in pair]
        score = score.after(*rows)
    return score


def test_the_score_counts_pairs_and_weighs_the_discordant_ones() -> None:
    score = scored("11100x1", "10010x0")
    assert (score.seen, score.pairs, score.successes_a, score.successes_b) == (7, 6, 4, 2)
    assert (score.a_only, score.b_only, score.unjudged) == (3, 1, 1)
    assert score.e_value == paired_e_value(3, 1)


@pytest.mark.parametrize(("discordant", "alpha", "decided"), [(7, 0.05, False), (8, 0.05, True), (7, 0.1, True)])
def test_evidence_of_one_over_alpha_decides(discordant: int, alpha: float, decided: bool) -> None:
    assert scored("1" * discordant, "0" * discordant, alpha).decided == decided


def test_another_scene_calls_the_duel_off() -> None:
    score = Score(0.05).after(episode("lift", 3, True), episode("lift", 3, True, scene="moved"))
    assert (score.mismatched, score.over, score.pairs) == ("lift trial 3", True, 0)
    rows = [replace(episode("lift", 3, True, scene=cpu), start_fingerprint="laid out") for cpu in ("AVX2", "AVX512")]
    assert Score(0.05).after(*rows).pairs == 1


# Duels


def test_a_clear_difference_stops_early_and_says_what_it_saved(tmp_path: Path) -> None:
    result = duel(config(tmp_path, policy_args_b=SLOW))
    assert (result.verdict, exit_code(result)) == ("A better", 0)
    assert result.score.e_value >= 20 > paired_e_value(result.score.a_only - 1, result.score.b_only)
    assert (result.planned, result.played) == (40, 2 * result.score.pairs)
    said = everything_said(result)
    assert f"{result.played} of 40 planned rollouts were played: {40 - result.played} saved." in said
    assert "10/10  100.0 % [62.3, 100.0]  fakes:Walker" in said


def test_sides_may_change_and_the_verdict_with_them(tmp_path: Path) -> None:
    assert duel(config(tmp_path, policy_args_a=SLOW)).verdict == "B better"


def test_equal_policies_stay_undecided_to_the_end(tmp_path: Path) -> None:
    result = duel(config(tmp_path, episodes=3))
    assert (result.verdict, exit_code(result), result.played) == ("undecided", 2, 12)
    assert "saved" not in everything_said(result)


def test_max_episodes_counts_pairs(tmp_path: Path) -> None:
    result = duel(config(tmp_path, policy_args_b=SLOW, max_episodes=3))
    assert (result.verdict, result.score.pairs, result.played, result.planned) == ("undecided", 3, 6, 6)


@pytest.fixture(scope="module")
def by_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Duel]]:
    """The same duel with one worker and with two, and where its runs are."""
    folders = {workers: tmp_path_factory.mktemp("duel") / workers for workers in ("1", "2")}
    return {n: (folder, duel(config(folder, policy_args_b=SLOW, workers=n))) for n, folder in folders.items()}


def test_workers_change_how_much_is_played_but_not_the_verdict(
    by_workers: dict[str, tuple[Path, Duel]],
) -> None:
    (first, one), (second, two) = by_workers["1"], by_workers["2"]
    assert one.score == two.score
    assert one.played <= two.played <= 40
    assert set(identity(first / "a")) <= set(identity(second / "a"))


def test_only_the_complete_prefix_of_the_order_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finishes first must not decide: here the last pairs of the window come first."""

    def backwards(job: object, todo: list[object]) -> object:
        yield from real(job, todo[::-1])

    real = module.play
    monkeypatch.setattr(module, "play", backwards)
    monkeypatch.setattr(module._Fight, "_in_turn", module._Fight._in_windows)
    seen = list[int]()
    result = duel(config(tmp_path, policy_args_b=SLOW), lambda score, pairs: seen.append(score.seen))
    assert result.score.pairs == 10
    assert seen[:5] == [0, 0, 0, 0, 2]  # A's window of two, then B's backwards: both pairs complete at once


def test_the_runs_are_ordinary_ones_that_run_can_finish(tmp_path: Path) -> None:
    result = duel(config(tmp_path, policy_args_b=SLOW))
    before = identity(tmp_path / "b")
    whole = run(RunConfig("fakes:Walker", "fakes:suite", policy_args=SLOW, out=str(tmp_path / "b")))
    assert (whole.judged, identity(tmp_path / "b")[: len(before)]) == (20, before)
    run(RunConfig("fakes:Walker", "fakes:suite", policy_args=SLOW, out=str(tmp_path / "alone")))
    assert sorted(map(str, identity(tmp_path / "b"))) == sorted(map(str, identity(tmp_path / "alone")))
    assert duel(config(tmp_path, policy_args_b=SLOW)).score == result.score


def test_a_decided_duel_plays_nothing_again(tmp_path: Path) -> None:
    first = duel(config(tmp_path, policy_args_b=SLOW))
    lines = (tmp_path / "a" / "episodes.jsonl").read_text()
    assert duel(config(tmp_path, policy_args_b=SLOW)) == first
    assert (tmp_path / "a" / "episodes.jsonl").read_text() == lines


def test_an_interrupted_duel_resumes_to_the_same_verdict(tmp_path: Path) -> None:
    def impatient(score: Score, pairs: int) -> None:
        if score.pairs == 4:
            raise KeyboardInterrupt

    stopped = duel(config(tmp_path / "x", policy_args_b=SLOW), impatient)
    assert (stopped.interrupted, exit_code(stopped), stopped.played) == (True, 130, 8)
    whole = duel(config(tmp_path / "y", policy_args_b=SLOW))
    resumed = duel(config(tmp_path / "x", policy_args_b=SLOW))
    assert resumed.score == whole.score
    assert float(str(read_info(tmp_path / "x" / "a").provenance["run_seconds"])) > 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_calls_are_cold_only_at_the_start_of_a_policy(by_workers: dict[str, tuple[Path, Duel]], workers: str) -> None:
    assert 1 <= read_inferences(by_workers[workers][0] / "a")["cold"].sum() <= 4


# Breaking


def test_a_pair_without_a_verdict_does_not_count_and_exits_4(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("farther 1 3")
    settings = {"policy_args_b": SLOW, "suite_args": (f"break_marker={marker}",)}
    result = duel(config(tmp_path / "d", **settings))
    assert (result.score.unjudged, exit_code(result)) == (1, 4)
    said = "1 pair without a verdict did not count: RuntimeError: the toy fell off the table; traceback in"
    assert f"{said} {tmp_path / 'd' / 'a' / 'errors.log'}; the same command tries again." in everything_said(result)
    again = duel(config(tmp_path / "d", **settings))
    assert (again.score.unjudged, exit_code(again)) == (0, 0)


def test_a_simulator_that_never_works_ends_the_duel(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("any 0 999")
    result = duel(config(tmp_path / "d", suite_args=(f"break_marker={marker}",)))
    assert "3 episodes of fakes:Walker in a row could not be judged, the last for RuntimeError" in result.failure
    assert exit_code(result) == 4
    everything_said(result)


def test_a_failing_policy_ends_the_duel_and_leaves_its_traceback(tmp_path: Path) -> None:
    result = duel(config(tmp_path, policy_b="fakes:Faulty", policy_args_b=("how=raise",)))
    assert "raised KeyError" in result.failure
    assert exit_code(result) == 4
    assert "Traceback" in (tmp_path / "b" / "errors.log").read_text()
    assert len(read_episodes(tmp_path / "a")) >= 1


def test_a_wrong_answer_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"shape \(4, 3\)"):
        duel(config(tmp_path, policy_b="fakes:Faulty", policy_args_b=("how=width",)))


def test_scenes_that_differ_are_not_comparable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._Corner.take

    def moved(corner: object, rollout: object) -> None:
        result: EpisodeResult = rollout.result  # type: ignore[attr-defined]
        side = corner.job.config.out[-1]  # type: ignore[attr-defined]
        real(corner, rollout._replace(result=replace(result, scene_fingerprint=side)))  # type: ignore[attr-defined]

    monkeypatch.setattr(module._Corner, "take", moved)
    result = duel(config(tmp_path))
    assert (result.verdict, exit_code(result), result.played) == ("not comparable", 3, 2)
    assert "east trial 0 did not start from the same scene for both." in everything_said(result)


# The command


def test_duel_prints_the_verdict_and_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DUEL, "--policy-args-b", "speed=0.2", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "A better. Only A succeeded in 8 of 10 pairs" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["score"]["pairs"], said["saved"]) == ("A better", 10, 20)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_without_out_the_same_duel_gets_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*DUEL, "--episodes", "1"]) == main([*DUEL, "--max-episodes", "2"]) == 2
    assert main([*DUEL, "--episodes", "1", "--seed", "1"]) == 2
    names = [path.name for path in (tmp_path / "results").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("duel_fakes.Walker_fakes.Walker_fakes.suite_") for name in names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["duel", "fakes:Walker", "--suite", "fakes:suite"], "Missing from vla-bench duel: POLICY_B"),
        ([*DUEL[:-1], "fakes:suit"], "Did you mean 'suite'"),
        ([*DUEL, "--alpha", "0"], "--alpha should be above 0 and below 1, got 0.0."),
        ([*DUEL, "--max-episodes", "0"], "--max-episodes should be at least 1, got 0."),
        ([*DUEL, "--episodes", "11"], "trials 0 to 9, got --first-trial 0 --episodes 11"),
        ([*DUEL, "--task", "west"], "Unknown task of fakes:suite 'west'"),
        ([*DUEL, "--policy-args-b", "sped=1"], "Did you mean 'speed'"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 64
    printed = capsys.readouterr()
    assert (said in printed.err, printed.err.count("\n"), list(tmp_path.iterdir())) == (True, 1, [])


def test_every_option_of_a_run_that_changes_numbers_reaches_both(tmp_path: Path) -> None:
    asked = config(
        tmp_path, checkpoint_a="one", checkpoint_b="two", policy_args_a=("speed=1",), suite_args=("max_steps=9",),
        seed=3, chunking="temporal", execute=2, task=("0",), first_trial=1, episodes=2, timeout=5.0, video="all",
    )  # fmt: skip
    a, b = asked.configs()
    assert (a.checkpoint, b.checkpoint, a.policy_args, b.policy_args) == ("one", "two", ("speed=1",), ())
    sides = ("policy", "checkpoint", "policy_args", "out")
    assert {k: v for k, v in asdict(a).items() if k not in sides} == {
        k: v for k, v in asdict(b).items() if k not in sides
    }
    assert (a.seed, a.chunking, a.execute, a.task, a.first_trial, a.video) == (3, "temporal", 2, ("0",), 1, "all")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        slow(
            {"policy_args_b": SLOW},
            "ended as soon as they differed enough, after 10 of 20 pairs: p-values and intervals",
        ),
        (
            {"policy_args_b": SLOW, "max_episodes": 10},
            "was decided by the last of its 10 pairs: it stopped nothing early.",
        ),
        slow({"episodes": 3}, "ended undecided with all 6 pairs played: it stopped nothing early."),
    ],
)
def test_whatever_reads_the_runs_of_a_duel_says_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    duel(config(tmp_path, **changes))
    a, b, ways = str(tmp_path / "a"), str(tmp_path / "b"), []
    for command in (["compare", a, b], ["show", a], ["show", a, "--markdown"], ["leaderboard", str(tmp_path)]):
        main(command)
        ways.append(capsys.readouterr().out)
    main(["report", a, b, "--out", str(tmp_path / "page")])
    ways += [(tmp_path / "page" / name).read_text() for name in ("index.html", "report.md")]
    for text in ways:
        assert " ".join(text.split()).count(said) == 1, text
        assert ("look too sure" in text) == ("as soon as" in said)


def test_an_interrupted_duel_and_one_of_before_are_not_called_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_hopeless", lambda corner: "dark" * (corner.store.path.name == "b"))
    duel(config(tmp_path))
    assert compare(tmp_path / "a", tmp_path / "b").notes[-1].endswith("was broken off undecided after 1 of 20 pairs.")
    for side in "ab":
        file = as_before(tmp_path / side) / "run.json"
        told = json.loads(file.read_text())
        del told["provenance"]["duel"]
        file.write_text(json.dumps(told))
    assert compare(tmp_path / "a", tmp_path / "b").notes[-1].startswith("A duel played these runs. If it ended")
