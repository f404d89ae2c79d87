"""Two runs on the same episodes: what pairs, what is said about it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_runs import INFO, as_before, made_run, other_protocol

from vla_bench.cli import main
from vla_bench.compare.comparison import (
    Comparison,
    compare,
    compare_rows,
    exit_code,
    render_markdown,
    render_text,
    to_json,
)
from vla_bench.compare.pairing import pair_rows
from vla_bench.errors import UsageError
from vla_bench.stats.many import holm
from vla_bench.stats.paired import mcnemar, paired_difference
from vla_bench.tables import load


def compared(tmp_path: Path, a: dict[str, str], b: dict[str, str], **options: object) -> Comparison:
    run_a, run_b = made_run(tmp_path / "a", a), made_run(tmp_path / "b", b)
    return compare(run_a, run_b, **options)  # type: ignore[arg-type]


def everything_said(comparison: Comparison) -> str:
    json.dumps(to_json(comparison), allow_nan=False)
    return render_text(comparison) + render_markdown(comparison)


# Pairing


def test_only_the_same_episodes_with_two_verdicts_on_one_scene_are_pairs(tmp_path: Path) -> None:
    found = compared(tmp_path, {"lift": "111x-", "door": "1"}, {"lift": "10x11"})
    assert (found.pairing.paired, found.pairing.unjudged) == (2, 2)
    assert (found.pairing.only_a, found.pairing.only_b) == (1, 1)
    assert "2 paired episodes; 1 only in A; 1 only in B; 2 without a verdict." in everything_said(found)


def test_rows_of_another_seed_or_perturbation_are_no_pairs(tmp_path: Path) -> None:
    rows = load(made_run(tmp_path / "a", {"lift": "11"}))
    assert pair_rows(rows, rows).pairing.paired == 2
    assert pair_rows(rows, rows.assign(seed=1)).pairing.paired == 0
    assert pair_rows(rows, rows.assign(perturbation="dark")).pairing.paired == 0


def test_duplicate_rows_count_once_and_the_last_one_holds(tmp_path: Path) -> None:
    rows = load(made_run(tmp_path / "a", {"lift": "10"}))
    twice = pd.concat([rows, rows.assign(success=True)], ignore_index=True)
    pairs = pair_rows(twice, rows)
    assert pairs.pairing.paired == 2
    assert pairs.rows["success_a"].all()


def test_a_pair_on_two_scenes_is_no_pair_and_makes_the_runs_incomparable(tmp_path: Path) -> None:
    a = load(made_run(tmp_path / "a", {"lift": "1111", "door": "1"}))
    b = a.assign(scene_fingerprint=["scene", "moved", "scene", "scene", "scene"])
    found = compare_rows(a, b)
    assert (found.verdict, found.pairing.paired, found.pairing.mismatched) == ("not comparable", 4, ("lift trial 1",))
    assert found.overall is None
    assert "1 episode did not start from the same scene in both: lift trial 1." in everything_said(found)
    forced = compare_rows(a, b, force=True)
    assert (forced.verdict, forced.overall.pairs if forced.overall else 0) == ("undecided", 4)
    assert "NOT COMPARABLE, compared only because --force said so." in everything_said(forced)


def test_a_scene_that_settled_to_other_last_digits_is_still_the_same(tmp_path: Path) -> None:
    a = load(made_run(tmp_path / "a", {"lift": "11", "door": "1"})).assign(start_fingerprint="laid out")
    b = a.assign(scene_fingerprint="settled on another CPU")
    assert pair_rows(a, b).pairing.paired == 3
    assert pair_rows(a, a.assign(start_fingerprint="")).pairing.paired == 3, "a run from before it was told"
    moved = b.assign(start_fingerprint=["moved", "laid out", "laid out"])
    assert pair_rows(a, moved).pairing.mismatched == ("lift trial 0",)


def test_an_unknown_scene_proves_nothing(tmp_path: Path) -> None:
    rows = load(made_run(tmp_path / "a", {"lift": "11"}, scene=""))
    assert len(pair_rows(rows, rows).pairing.mismatched) == 2


# Numbers


def test_the_numbers_are_those_of_the_statistics(tmp_path: Path) -> None:
    a, b = {"lift": "1" * 13 + "0" * 7, "door": "1" * 20}, {"lift": "0" * 11 + "11" + "11" + "0" * 5, "door": "1" * 20}
    found = compared(tmp_path, a, b)
    row = found.overall
    assert row is not None
    assert (row.pairs, row.successes_a, row.successes_b, row.a_only, row.b_only) == (40, 33, 24, 11, 2)
    assert row.p == pytest.approx(0.02246094, abs=5e-9)
    assert row.mid_p == pytest.approx(0.01293945, abs=5e-9)
    assert row.e_value == pytest.approx(7.50183, abs=5e-6)
    assert row.difference == pytest.approx(9 / 40)
    assert (row.low, row.high) == paired_difference(11, 2, 40)
    assert [task.p_holm for task in found.tasks] == pytest.approx(list(holm([mcnemar(11, 2), 1.0])))
    assert [task.verdict for task in found.tasks] == ["A better", "undecided"]
    assert (found.verdict, exit_code(found)) == ("A better", 0)
    assert len(found.discordant) == 13


def test_changing_sides_changes_the_sign_and_nothing_else(tmp_path: Path) -> None:
    a, b = made_run(tmp_path / "a", {"lift": "1" * 9}), made_run(tmp_path / "b", {"lift": "000000011"})
    there, back = compare(a, b).overall, compare(b, a).overall
    assert there is not None
    assert back is not None
    assert (there.verdict, back.verdict) == ("A better", "B better")
    assert there.difference == -(back.difference or 0)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == back.p


def test_alpha_decides(tmp_path: Path) -> None:
    a, b = made_run(tmp_path / "a", {"lift": "111111"}), made_run(tmp_path / "b", {"lift": "000000"})
    assert compare(a, b, alpha=0.05).verdict == "A better"  # p = 2 / 64
    assert compare(a, b, alpha=0.03).verdict == "undecided"


def test_discordant_episodes_come_with_their_films(tmp_path: Path) -> None:
    found = compared(tmp_path, {"lift": "10"}, {"lift": "11"})
    (episode,) = found.discordant
    assert (episode.trial, episode.better, episode.video_b) == (1, "B", "")
    assert episode.video_a == str(tmp_path / "a" / "videos/lift_1.mp4")
    assert f"lift trial 1: only B succeeded, A {episode.video_a}" in everything_said(found)


def test_a_long_list_of_discordant_episodes_is_cut_in_texts_only(tmp_path: Path) -> None:
    found = compared(tmp_path, {"lift": "1" * 60}, {"lift": "0" * 60})
    assert len(found.discordant) == 60
    assert "and 10 more, which --json lists" in everything_said(found)


@pytest.mark.parametrize(("unjudged", "said"), [(1, "holds"), (9, "may not hold")])
def test_a_verdict_says_whether_unjudged_episodes_could_turn_it(tmp_path: Path, unjudged: int, said: str) -> None:
    a = {"lift": "1" * 12, "door": "x" * unjudged}
    found = compared(tmp_path, a, {"lift": "0" * 12, "door": "1" * unjudged})
    assert found.verdict == "A better"
    assert f"The verdict {said} if all {unjudged} without a verdict went against it." in found.notes


def test_an_undecided_comparison_says_how_many_episodes_would_do(tmp_path: Path) -> None:
    found = compared(tmp_path, {"lift": "1" * 20}, {"lift": "1" * 17 + "000"})
    assert found.notes == ("If the difference is as large as it looks, about 52 paired episodes show it (80% power).",)


# Latency


def test_latency_is_the_ratio_of_medians_with_an_interval(tmp_path: Path) -> None:
    a = made_run(tmp_path / "a", {"lift": "1" * 9}, latency_ms=30.0)
    b = made_run(tmp_path / "b", {"lift": "1" * 9}, latency_ms=20.0)
    latency = compare(a, b).latency
    assert latency is not None
    assert (latency.n_a, latency.n_b) == (9, 9)
    assert (latency.median_a_ms, latency.median_b_ms) == pytest.approx((30.12, 20.08))
    assert latency.ratio == pytest.approx(1.5)
    assert latency.low == pytest.approx(1.5, rel=0.01)
    assert latency == compare(a, b).latency
    assert "A 30.1 ms (9 calls), B 20.1 ms (9 calls); A / B 1.50" in everything_said(compare(a, b))


def test_latency_of_one_episode_has_no_interval_and_without_calls_there_is_none(tmp_path: Path) -> None:
    a, b = (made_run(tmp_path / name, {"lift": "1"}, latency_ms=20.0) for name in "ab")
    latency = compare(a, b).latency
    assert latency is not None
    assert (latency.ratio, latency.low) == (1.0, None)
    assert compare(a, made_run(tmp_path / "c", {"lift": "1"})).latency is None


def test_latencies_of_two_machines_are_marked(tmp_path: Path) -> None:
    a = made_run(tmp_path / "a", {"lift": "1"}, latency_ms=20.0)
    other = replace(INFO, provenance={"machine": {"cpu": "quipu", "cores": 1}}, plan={**INFO.plan, "workers": "4"})
    found = compare(a, made_run(tmp_path / "b", {"lift": "1"}, info=other, latency_ms=20.0))
    assert "Latencies differ for another reason too, machine: A abacus, 2, B quipu, 1." in found.notes
    assert "Latencies differ for another reason too, workers: A 1, B 4." in found.notes


# Little and nothing


@pytest.mark.parametrize(
    ("a", "b", "verdict", "reason"),
    [
        ("1", "1", "undecided", "No pair tells them apart: the only one ended alike."),
        ("1", "0", "undecided", "Only A succeeded in 1 of 1 paired episodes, only B in 0: McNemar's exact p is 1"),
        ("0000", "0000", "undecided", "No pair tells them apart: all 4 ended alike."),
        ("1111", "1111", "undecided", "No pair tells them apart: all 4 ended alike."),
        ("1" * 9, "0" * 9, "A better", "McNemar's exact p is 0.0039, at most 0.05."),
        ("xx", "11", "undecided", "No episode has a verdict in both runs."),
        ("xx", "xx", "undecided", "No episode has a verdict in both runs."),
        (
            "1--",
            "-11",
            "not comparable",
            "No episode is in both (trial 0 in A, 1, 2 in B): run both with the same suite",
        ),
    ],
)
def test_few_or_no_pairs_end_in_a_sentence(tmp_path: Path, a: str, b: str, verdict: str, reason: str) -> None:
    found = compared(tmp_path, {"lift": a}, {"lift": b})
    assert found.verdict == verdict
    assert reason in found.reason
    assert reason in everything_said(found)


def test_runs_that_ended_in_the_same_states_are_called_so(tmp_path: Path) -> None:
    a, b = (made_run(tmp_path / name, {"lift": "10"}, end="same") for name in "ab")
    assert "all 2 ended alike and in the same state, bit for bit" in compare(a, b).reason


def test_empty_tables_are_not_comparable(tmp_path: Path) -> None:
    rows = load(made_run(tmp_path / "a", {"lift": "11"}))
    for a, b in ((rows, rows[:0]), (rows[:0], rows), (rows[:0], pd.DataFrame(columns=list(rows)))):
        found = compare_rows(a, b)
        assert (found.verdict, found.overall, found.tasks) == ("not comparable", None, ())
        assert "No episode is in both: run both" in everything_said(found)


def test_forcing_nothing_gives_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, {"lift": "1"}, {"door": "1"}, force=True)
    assert (found.verdict, found.forced) == ("not comparable", False)


# The command


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made_run(Path("good"), {"lift": "1" * 10})
    made_run(Path("bad"), {"lift": "0" * 10})
    made_run(Path("other"), {"lift": "1" * 10}, info=other_protocol())
    made_run(Path("seeded"), {"lift": "1" * 10}, seed=7)
    made_run(Path("empty"), {})
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["good", "bad"], 0, "A better."),
        (["--alpha", "0.1", "bad", "good"], 0, "B better."),
        (["good", "good"], 2, "in the same state, bit for bit"),
        (["good", "other"], 3, "chunking.execute is null in A and 4 in B"),
        (["good", "other", "--force"], 2, "compared only because --force said so"),
        (["good", "seeded"], 3, "(seed 0 in A, 7 in B)"),
        (["good", "bad", "--markdown"], 0, "| lift | 10/10 | 0/10 |"),
    ],
)
def test_the_exit_code_tells_the_verdict(
    runs: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) == code
    assert said in capsys.readouterr().out


def test_compare_speaks_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "good", "bad", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["overall"]["a_only"], said["b"]["path"]) == ("A better", 10, "bad")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["good", "empty"], "empty holds no finished episode yet"),
        (["good", "god"], "Did you mean good"),
        (["good"], "Missing from vla-bench compare: RUN_B"),
        (["good", "bad", "other"], "Unrecognized options: other"),
        (["good", "bad", "--alpha", "1"], "--alpha should be above 0 and below 1, got 1.0."),
        (["good", "torn"], "episodes.jsonl line 2 is corrupt"),
    ],
)
def test_a_mistake_is_one_sentence(runs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (as_before(made_run(Path("torn"), {"lift": "111"})) / "episodes.jsonl").read_text().splitlines()
    (runs / "torn" / "episodes.jsonl").write_text("\n".join([lines[0], lines[1][:50], lines[2], ""]))
    assert main(["compare", *words]) == 64
    printed = capsys.readouterr()
    assert (said in printed.err, printed.err.count("\n"), printed.out) == (True, 1, "")


def test_alpha_is_checked_before_anything_is_computed() -> None:
    with pytest.raises(UsageError, match="--alpha"):
        compare_rows(pd.DataFrame(), pd.DataFrame(), alpha=0.0)


@pytest.mark.parametrize("command", ["compare", "duel", "check"])
def test_the_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "--alpha" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["good", "bad", "--alpha", "0.1"], ["--alpha", "0.1", "good", "bad"], ["good", "--alpha=0.1", "--force", "bad"]],
)
def test_positional_words_may_stand_anywhere_among_the_flags(runs: Path, words: list[str]) -> None:
    assert main(["compare", *words]) == 0


def test_a_value_that_equals_a_word_is_not_taken_for_it(runs: Path) -> None:
    assert main(["check", "good", "--baseline", "good", "--update"]) == 64  # a directory, not one word too many
