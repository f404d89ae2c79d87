"""The gate of CI: the rule, the baseline's file, and what CI gets to read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import episode, made_run, other_protocol

from vla_bench.cli import main
from vla_bench.compare.baseline import FORMAT, Baseline, BaselineEpisode, make_baseline, read_baseline, write_baseline
from vla_bench.compare.ci import github_annotations, junit
from vla_bench.compare.regression import (
    Gate,
    _more_needed,
    check,
    check_rows,
    exit_code,
    render_markdown,
    render_text,
    to_json,
)
from vla_bench.errors import UsageError
from vla_bench.stats.paired import mcnemar, paired_difference
from vla_bench.types import EpisodeResult


def gate(tmp_path: Path, baseline: dict[str, str], run: dict[str, str], **limits: float) -> Gate:
    write_baseline(make_baseline(made_run(tmp_path / "before", baseline)), tmp_path / "baseline.jsonl")
    return check(made_run(tmp_path / "now", run), tmp_path / "baseline.jsonl", **limits)


def everything_said(found: Gate) -> str:
    json.dumps(to_json(found), allow_nan=False)
    ElementTree.fromstring(junit(found))
    return "\n".join([render_text(found), render_markdown(found), junit(found), *github_annotations(found)])


# The rule


def test_an_identical_rerun_passes_however_few_episodes_it_has(tmp_path: Path) -> None:
    for number, outcomes in enumerate(["1", "0", "10"]):
        before, now = (made_run(tmp_path / f"{n}{number}", {"lift": outcomes}, end="same") for n in ("a", "b"))
        write_baseline(make_baseline(before), tmp_path / "baseline.jsonl")
        found = check(now, tmp_path / "baseline.jsonl")
        assert (found.verdict, found.passed, exit_code(found)) == ("pass", True, 0)
        assert "ended in the same state as in the baseline, bit for bit" in everything_said(found)


def test_the_same_outcomes_on_other_ways_need_enough_episodes(tmp_path: Path) -> None:
    few = gate(tmp_path / "few", {"lift": "1" * 51}, {"lift": "1" * 51})
    enough = gate(tmp_path / "enough", {"lift": "1" * 52}, {"lift": "1" * 52})
    assert (few.verdict, enough.verdict) == ("undecided", "pass")
    assert "At 95 % confidence the loss is below 5.1 points, more than the 5 accepted" in few.message
    assert "The loss is below 5 points at 95 % confidence." in enough.message
    assert "51 episodes can exclude a loss of 5.1 points at best; if they go on like this, about 1 more" in few.message


@pytest.mark.parametrize(
    ("before", "now", "margin"),
    [
        ("1" * 20, "1" * 20, 0.1),
        ("1" * 15 + "0" * 5, "0" * 3 + "1" * 15 + "0" * 2, 0.1),
        ("1" * 20, "1" * 16 + "0000", 0.05),
    ],
)
def test_as_many_more_episodes_as_it_says_decide(tmp_path: Path, before: str, now: str, margin: float) -> None:
    few = gate(tmp_path / "few", {"lift": before}, {"lift": now}, margin=margin)
    assert few.verdict == "undecided"
    assert few.overall
    assert few.overall.more_needed

    pairs = sorted(zip(before, now, strict=True))
    n = 20 + few.overall.more_needed
    drawn = [pairs[k * 20 // n] for k in range(n)]
    enough = gate(tmp_path / "n", *({"lift": "".join(side)} for side in zip(*drawn, strict=True)), margin=margin)
    assert enough.verdict == ("pass" if margin == 0.1 else "regression")


@pytest.mark.parametrize(("lost", "more"), [(618, 4875), (624, None)])
def test_what_is_said_not_to_decide_has_been_looked_at(lost: int, more: int | None) -> None:
    """Twice 2600 pairs are only 2600 more: that these do not decide says nothing about 5000 more."""
    apart = np.repeat([-1, 0, 1], [lost, 2600 - lost - 600, 600])
    assert _more_needed(apart, links=0, margin=0.02, alpha=0.05) == more


def test_the_least_margin_is_what_lets_equal_outcomes_pass(tmp_path: Path) -> None:
    few = gate(tmp_path / "few", {"lift": "1" * 20}, {"lift": "1" * 20})
    assert few.overall
    assert few.overall.least_margin == pytest.approx(0.1192, abs=1e-4)
    least = few.overall.least_margin
    verdicts = [
        check(tmp_path / "few" / "now", tmp_path / "few" / "baseline.jsonl", least + d).verdict for d in (-1e-6, 1e-6)
    ]
    assert verdicts == ["undecided", "pass"]


@pytest.mark.parametrize(("run", "code"), [("again", 0), ("bad", 1), ("worse", 0), ("broken", 2), ("other", 3)])
def test_undecided_pass_lets_only_an_undecided_gate_through_that_judged_every_episode(
    runs: Path, run: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", run, "--baseline", "base.jsonl", "--undecided", "pass", "--junit", "j.xml"]) == code
    failed = ElementTree.parse(runs / "j.xml").getroot()[0].findall(".//testcase[@name='overall']/failure")
    assert bool(failed) == (code in (1, 2))
    if run == "worse":
        assert "Undecided, which counts as passed: The run lost 1" in capsys.readouterr().out
    assert main(["check", "worse", "--baseline", "base.jsonl", "--undecided", "maybe"]) == 64


@pytest.mark.parametrize(
    ("lost", "gained", "alike", "verdict"),
    [
        (5, 0, 15, "regression"),  # one-sided p = 1 / 32
        (4, 0, 16, "undecided"),  # 1 / 16, although the interval of the difference lies below 0
        (0, 10, 10, "pass"),
        (6, 6, 8, "undecided"),
        (8, 1, 11, "regression"),
    ],
)
def test_gains_and_losses_decide(tmp_path: Path, lost: int, gained: int, alike: int, verdict: str) -> None:
    before, now = "1" * lost + "0" * gained + "1" * alike, "0" * lost + "1" * gained + "1" * alike
    found = gate(tmp_path, {"lift": before}, {"lift": now})
    assert found.verdict == verdict
    row = found.overall
    assert row is not None
    assert (row.lost, row.gained, row.pairs, row.missing) == (lost, gained, 20, 0)
    assert row.p_worse == mcnemar(gained, lost, "less")
    assert (row.low, row.high) == paired_difference(gained, lost, 20, 0.9)
    assert verdict in everything_said(found).lower()


def test_a_certain_loss_within_the_margin_passes_and_is_named(tmp_path: Path) -> None:
    before, now = {"lift": "1" * 60}, {"lift": "0" * 6 + "1" * 54}
    assert gate(tmp_path / "a", before, now).verdict == "regression"
    found = gate(tmp_path / "b", before, now, margin=0.3)
    assert found.passed
    assert "a loss that is certain but within the margin" in found.message


def test_a_task_that_collapses_is_not_hidden_by_the_others(tmp_path: Path) -> None:
    others = {f"task {number}": "1" * 20 for number in range(9)}
    found = gate(tmp_path, {"door": "1" * 10, **others}, {"door": "0" * 10, **others}, margin=0.12)
    assert found.overall is not None
    assert (found.overall.verdict, found.verdict) == ("pass", "regression")
    assert [row.task for row in found.tasks if row.verdict == "regression"] == ["door"]
    assert "Worse in door." in found.message


def test_the_tasks_p_values_are_adjusted_for_their_number(tmp_path: Path) -> None:
    others = {f"task {number}": "10" * 3 for number in range(9)}
    found = gate(tmp_path, {"door": "1" * 5, **others}, {"door": "0" * 5, **others})
    door = found.tasks[0]
    assert (door.p_worse, door.p_holm, door.verdict) == (1 / 32, 10 / 32, "undecided")
    assert found.verdict == "regression"  # all together: 5 lost, none gained


@pytest.mark.parametrize("now", ["1" * 99 + "x", "1" * 99 + "-", "1" * 50])
def test_a_pass_takes_every_episode_of_the_baseline(tmp_path: Path, now: str) -> None:
    found = gate(tmp_path, {"lift": "1" * 100}, {"lift": now})
    missing = 100 - now.count("1")
    assert found.verdict == "undecided"
    assert f"has no verdict on {missing}. A pass takes all of them: run the missing ones." in found.message


def test_a_regression_must_hold_if_the_missing_ones_had_succeeded(tmp_path: Path) -> None:
    before = {"lift": "1" * 6 + "0" * 4}
    assert gate(tmp_path / "a", before, {"lift": "0" * 6}).verdict == "undecided"
    assert gate(tmp_path / "b", before, {"lift": "0" * 10}).verdict == "regression"
    assert gate(tmp_path / "c", {"lift": "1" * 10}, {"lift": "0" * 6}).verdict == "regression"


def test_another_protocol_scene_or_seed_is_not_comparable(tmp_path: Path) -> None:
    write_baseline(make_baseline(made_run(tmp_path / "a", {"lift": "11"})), file := tmp_path / "baseline.jsonl")
    protocol = check(made_run(tmp_path / "b", {"lift": "11"}, info=other_protocol()), file)
    scene = check(made_run(tmp_path / "c", {"lift": "11"}, scene="moved"), file)
    seed = check(made_run(tmp_path / "d", {"lift": "11"}, seed=3), file)
    assert [exit_code(found) for found in (protocol, scene, seed)] == [3, 3, 3]
    assert "chunking.execute is null in the baseline and 4 in the run" in everything_said(protocol)
    assert "Not on the scene of the baseline: lift trial 0, lift trial 1." in everything_said(scene)
    assert "No episode of the baseline is in the run" in everything_said(seed)


def test_episodes_that_the_baseline_lacks_are_left_out(tmp_path: Path) -> None:
    found = gate(tmp_path, {"lift": "1" * 60}, {"lift": "1" * 60, "door": "000"})
    assert found.passed
    assert "3 episodes only in the run, not in the baseline: left out." in everything_said(found)


def test_a_run_with_only_broken_episodes_is_undecided(tmp_path: Path) -> None:
    found = gate(tmp_path, {"lift": "11"}, {"lift": "xx"})
    assert (found.verdict, found.overall.difference if found.overall else 0) == ("undecided", None)
    assert "has no verdict on 2" in everything_said(found)


@pytest.mark.slow
def test_false_alarms_and_false_passes_stay_near_alpha() -> None:
    """Two tasks of 30: policies of the same rate, and one that is worse by exactly the margin, drawn independently."""
    rng = np.random.default_rng(0)

    def verdicts(rate: float, margin: float) -> list[str]:
        def drawn(success: float) -> list[EpisodeResult]:
            won = rng.random((2, 30)) < success
            rows = (
                episode(f"task {t}", i, bool(won[t, i]), final=f"{rng.random()}") for t in (0, 1) for i in range(30)
            )
            return list(rows)

        return [_judged(drawn(0.7), drawn(rate), margin) for _ in range(60)]

    assert verdicts(0.7, 0.2).count("regression") <= 5
    assert verdicts(0.5, 0.2).count("pass") <= 5
    assert verdicts(0.2, 0.2).count("regression") == 60


def _judged(before: list[EpisodeResult], now: list[EpisodeResult], margin: float) -> str:
    import pandas as pd

    names = list(BaselineEpisode.__dataclass_fields__)
    lines = tuple(BaselineEpisode(*(getattr(row, name) for name in names)) for row in before)
    baseline = Baseline("toy", "pi0", "", {}, None, "", 0, lines)
    return check_rows(pd.DataFrame([row.__dict__ for row in now]), baseline, margin).verdict


# Latency


@pytest.mark.parametrize(
    ("now_ms", "limit", "verdict"),
    [(19.0, 2.0, "pass"), (21.0, 2.0, "regression"), (21.0, None, "pass"), (0.0, 2.0, "undecided")],
)
def test_latency_has_a_limit_of_its_own(tmp_path: Path, now_ms: float, limit: float | None, verdict: str) -> None:
    before = made_run(tmp_path / "a", {"lift": "1"}, end="same", latency_ms=10.0)
    now = made_run(tmp_path / "b", {"lift": "1"}, end="same", latency_ms=now_ms)
    write_baseline(make_baseline(before), tmp_path / "baseline.jsonl")
    found = check(now, tmp_path / "baseline.jsonl", max_latency_ratio=limit)
    assert (found.verdict, found.latency.verdict) == (verdict, verdict)
    if verdict == "regression":
        assert "is 21 ms, 2.10 times the baseline's 10 ms (accepted: 2)." in everything_said(found)
    if verdict == "undecided":
        assert "The latency cannot be checked (accepted: 2): no inference of the run was timed." in found.message


# The baseline's file


def test_a_baseline_survives_its_file_and_is_the_same_for_any_order_of_rows(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", {"lift": "10", "door": "1"}, latency_ms=5.0)
    baseline = make_baseline(run)
    write_baseline(baseline, tmp_path / "deep" / "baseline.jsonl")
    assert read_baseline(tmp_path / "deep" / "baseline.jsonl") == baseline
    assert [(row.task, row.trial) for row in baseline.episodes] == [("door", 0), ("lift", 0), ("lift", 1)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["baseline.jsonl"]
    assert baseline.latency_p50_ms == pytest.approx(5.0)


def test_broken_episodes_make_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 episode without a verdict, so it is no baseline"):
        make_baseline(made_run(tmp_path / "a", {"lift": "1x"}))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([""], "is no baseline"),
        (["{}"], "is no baseline"),
        (["[1]"], "is no baseline"),
        (["HEADER", "{"], "line 2 is corrupt"),
        (["HEADER", "LINE", "LINE"], "holds lift trial 0 twice"),
        (["HEADER", "LINE".replace("LINE", "NULL")], "success is null, expected true or false"),
        (["HEADER"], "holds no episodes"),
        (["NEWER", "LINE"], f"written by a newer vla-bench (format {FORMAT + 1})"),
    ],
)
def test_a_strange_baseline_is_refused_in_one_sentence(tmp_path: Path, lines: list[str], said: str) -> None:
    write_baseline(make_baseline(made_run(tmp_path / "a", {"lift": "1"})), file := tmp_path / "baseline.jsonl")
    header, line = file.read_text().splitlines()
    parts = {
        "HEADER": header,
        "LINE": line,
        "NULL": line.replace("true", "null"),
        "NEWER": header.replace(f'"baseline":{FORMAT}', f'"baseline":{FORMAT + 1}'),
    }
    file.write_text("\n".join(parts.get(name, name) for name in lines))
    with pytest.raises(UsageError) as caught:
        read_baseline(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


# CI


def test_junit_has_a_case_per_task_and_failures_list_the_episodes(tmp_path: Path) -> None:
    found = gate(tmp_path, {"lift": "1" * 12, "<door>": "1" * 6}, {"lift": "0" * 12, "<door>": "1" * 6})
    suite = ElementTree.fromstring(junit(found))[0]
    assert [case.get("name") for case in suite] == ["<door>", "lift", "overall"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    failure = suite[1].find("failure")
    assert failure is not None
    assert f"lost: lift trial 3, {tmp_path}/now/videos/lift_3.mp4" in (failure.text or "")
    assert suite[1].get("time") == "24.000"
    assert suite[0].find("failure") is None


def test_what_is_not_comparable_is_an_error_in_junit(tmp_path: Path) -> None:
    write_baseline(make_baseline(made_run(tmp_path / "a", {"lift": "1"})), file := tmp_path / "baseline.jsonl")
    found = check(made_run(tmp_path / "b", {"lift\x00": "1"}), file)
    (case,) = ElementTree.fromstring(junit(found))[0]
    assert case.find("error") is not None


def test_annotations_are_escaped_for_github(tmp_path: Path) -> None:
    found = gate(tmp_path, {"a,b: 100%": "1" * 9}, {"a,b: 100%": "0" * 9})
    verdict, task = github_annotations(found)
    assert verdict.startswith("::error title=vla-bench%3A regression::Regression: The run lost 9")
    assert task.startswith("::error title=vla-bench%3A a%2Cb%3A 100%25::Of this task the run lost 9")
    assert "%0Alost: a,b: 100%25 trial 0" in task
    assert "\n" not in task


def test_a_pass_annotates_nothing_and_undecided_warns(tmp_path: Path) -> None:
    assert github_annotations(gate(tmp_path / "a", {"lift": "1" * 60}, {"lift": "1" * 60})) == []
    (line,) = github_annotations(gate(tmp_path / "b", {"lift": "1"}, {"lift": "0"}))
    assert line.startswith("::warning ")


# The command


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GITHUB_")]:
        monkeypatch.delenv(name)
    made_run(Path("good"), {"lift": "1" * 10}, end="same")
    made_run(Path("again"), {"lift": "1" * 10}, end="same")
    made_run(Path("bad"), {"lift": "0" * 10})
    made_run(Path("worse"), {"lift": "1" * 9 + "0"})
    made_run(Path("broken"), {"lift": "1" * 9 + "x"})
    made_run(Path("other"), {"lift": "1" * 10}, info=other_protocol())
    assert main(["check", "good", "--baseline", "base.jsonl", "--update"]) == 0
    return tmp_path


@pytest.mark.parametrize(("run", "code"), [("again", 0), ("bad", 1), ("worse", 2), ("broken", 2), ("other", 3)])
def test_the_exit_code_tells_the_verdict(runs: Path, run: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", run, "--baseline", "base.jsonl"]) == code
    assert "::" not in capsys.readouterr().out
    assert main(["check", "--json", "--baseline", "base.jsonl", run]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == ["pass", "regression", "undecided", "not comparable"][code]


def test_ci_gets_junit_annotations_and_a_step_summary(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(runs / "summary.md"))
    (runs / "summary.md").write_text("before\n")
    assert main(["check", "bad", "--baseline", "base.jsonl", "--junit", "deep/junit.xml"]) == 1
    assert "::error title=vla-bench%3A regression::" in capsys.readouterr().out
    summary = (runs / "summary.md").read_text()
    assert summary.startswith("before\n### vla-bench check: regression")
    assert "| lift | 10/10 | 0/10 | -100.0 pp |" in summary
    assert ElementTree.parse(runs / "deep/junit.xml").getroot()[0].get("failures") == "2"
    assert main(["check", "bad", "--baseline", "base.jsonl", "--json"]) == 1
    json.loads(capsys.readouterr().out)


def test_update_says_what_it_replaces(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["check", "bad", "--baseline", "base.jsonl", "--update"]) == 0
    said = capsys.readouterr().out
    assert "The baseline base.jsonl is now pi0: 0 of 10 on toy, protocol 3fdcd6ce3cdf." in said
    assert "It was pi0: 10 of 10 on toy" in said
    assert main(["check", "bad", "--baseline", "base.jsonl"]) == 0
    (runs / "base.jsonl").write_text("no baseline\n")
    assert main(["check", "good", "--baseline", "base.jsonl", "--update"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["good"], "--baseline"),
        (["good", "--baseline", "none.jsonl"], "write it with vla-bench check RUN --baseline none.jsonl --update"),
        (["broken", "--baseline", "base.jsonl", "--update"], "broken has 1 episode without a verdict"),
        (["good", "--baseline", "base.jsonl", "--margin", "1"], "--margin should be at least 0 and below 1, got 1.0."),
        (["good", "--baseline", "base.jsonl", "--alpha", "0.5"], "--alpha should be below 0.5, got 0.5."),
        (["good", "--baseline", "base.jsonl", "--max-latency-ratio", "0"], "--max-latency-ratio should be more than 0"),
        (
            ["good", "--baseline", "base.jsonl", "--junit", "good/run.json/x.xml"],
            "Could not write to good/run.json/x.xml (Not a directory): ",
        ),
    ],
)
def test_a_mistake_is_one_sentence(runs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    before = (runs / "base.jsonl").read_text()
    assert main(["check", *words]) == 64
    printed = capsys.readouterr()
    assert (said in printed.err, printed.err.count("\n")) == (True, 1)
    assert (runs / "base.jsonl").read_text() == before
