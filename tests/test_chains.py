"""From rows of chains to the numbers that papers print; compare, check, leaderboard and report read them as chains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import made_runs
import numpy as np
import pytest

from vla_bench.chains import are_chains, chain_summary, compare_pairs
from vla_bench.cli import _score, main
from vla_bench.compare.baseline import make_baseline, read_baseline, write_baseline
from vla_bench.compare.comparison import compare, render_markdown, render_text
from vla_bench.compare.regression import check
from vla_bench.report.leaderboard import load_leaderboard, to_json
from vla_bench.report.leaderboard import render_markdown as board_markdown
from vla_bench.report.leaderboard import render_text as board_text
from vla_bench.report.page import write_report
from vla_bench.stats.chains import exact_sign_flip, mean_interval
from vla_bench.stats.rates import wilson
from vla_bench.store.runs import RunStore, read_episodes
from vla_bench.tables import load, load_summary
from vla_bench.tables import render_markdown as summary_markdown
from vla_bench.tables import render_text as summary_text
from vla_bench.tables import to_json as summary_json

CHAIN = ("open", "push", "lift", "place", "close")
OTHER = ("push", "open", "turn", "lift", "stack")


def chain_run(path: Path, done, policy="pi0", scene="scene", end=None) -> Path:
    """A run of chains: how many instructions each trial did, None for a broken one."""
    info = replace(made_runs.INFO, identity={**made_runs.INFO.identity, "policy": policy, "suite": "calvin_d"})
    with RunStore.open(path, info) as store:
        for trial, count in enumerate(done):
            verdict = None if count is None else count == 5
            row = made_runs.episode("chains", trial, verdict, scene=scene, final=end or f"{path}/{trial}")
            names = () if count is None else (CHAIN, OTHER)[trial % 2]
            store.append(replace(row, suite="calvin_d", subgoals_done=count or 0, subgoals=names), [])
    return path


def test_a_row_keeps_the_names_of_its_chain_and_old_rows_have_none(tmp_path):
    run = chain_run(tmp_path / "run", [2, None])
    first, second = read_episodes(run)
    assert (first.subgoals, first.subgoals_done, second.subgoals) == (CHAIN, 2, ())
    lines = [json.loads(line) for line in (made_runs.as_before(run) / "episodes.jsonl").read_text().splitlines()]
    for line in lines:
        del line["subgoals"]
    (run / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row.subgoals for row in read_episodes(run)] == [(), ()]
    assert not are_chains(load(run))


def test_the_summary_counts_chains_with_at_least_so_many_done(tmp_path):
    summary = chain_summary(load(chain_run(tmp_path / "run", [0, 2, 5, 5, 1, None])))
    assert summary is not None
    assert [(row.name, row.done, row.n) for row in summary.at_least] == [
        ("at least 1", 4, 5),
        ("at least 2", 3, 5),
        ("at least 3", 2, 5),
        ("at least 4", 2, 5),
        ("at least 5", 2, 5),
    ]
    assert all((row.low, row.high) == wilson(row.done, row.n) for row in summary.at_least)
    assert (summary.chains, summary.links, summary.mean_length) == (5, 5, 13 / 5)
    assert (summary.low, summary.high) == mean_interval([0, 2, 5, 5, 1], (0, 5))
    assert summary.bootstrap is not None
    assert summary.bootstrap[0] < 13 / 5 < summary.bootstrap[1]
    assert (summary.if_broken_fail, summary.if_broken_succeed) == (13 / 6, 18 / 6)


def test_an_instruction_is_attempted_when_all_before_it_are_done(tmp_path):
    summary = chain_summary(load(chain_run(tmp_path / "run", [0, 2, 5, None, 3])))
    assert summary is not None
    counts = {row.name: (row.done, row.n) for row in summary.subtasks}
    # chain, done: CHAIN 0, OTHER 2, CHAIN 5, CHAIN 3
    assert counts == {"open": (3, 4), "push": (3, 3), "lift": (2, 2), "place": (1, 2), "close": (1, 1), "turn": (0, 1)}


def test_single_instructions_have_no_chain_summary(tmp_path):
    run = made_runs.made_run(tmp_path / "run", {"lift": "1101"})
    assert chain_summary(load(run)) is None
    assert load_summary(run).chains is None
    assert "average length" not in summary_text(load_summary(run))


def test_only_broken_chains_say_so(tmp_path):
    assert "0/0" in summary_text(load_summary(chain_run(tmp_path / "run", [None, None])))


def test_show_prints_the_chains_and_every_instruction(tmp_path, capsys):
    run = chain_run(tmp_path / "run", [0, 2, 5, 5, 1, None])
    text, markdown = summary_text(load_summary(run)), summary_markdown(load_summary(run))
    low, high = mean_interval([0, 2, 5, 5, 1], (0, 5))
    for said in ("2.60 of 5", f"{low:.2f} – {high:.2f}", "80.0 %"):
        assert said in text
        assert said in markdown
    assert "1 broken, so without a verdict: the average length is 2.17 if all of them fail at once, 3.00 if" in text
    assert summary_json(load_summary(run))["chains"]["mean_length"] == 2.6
    assert main(["show", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chains"]["at_least"][0]["done"] == 4


def test_the_progress_bar_shows_the_average_length_of_chains_and_the_rate_of_others(tmp_path):
    rows = read_episodes(chain_run(tmp_path / "run", [1, 5, 3]))
    low, high = mean_interval([1, 5, 3], (0, 5))
    assert _score(rows) == f"average length 3.00 of 5 [{low:.2f}, {high:.2f}]"
    single = [made_runs.episode("lift", trial, bool(trial)) for trial in range(4)]
    assert _score(single) == "success 75% [30%, 95%]"


# --- compare ---

BETTER = [3, 4, 2, 5, 3, 4, 2, 3, 4, 5, 3, 2]
WORSE = [1, 2, 2, 3, 1, 4, 1, 0, 2, 3, 1, 1]


def test_lengths_decide_where_success_of_all_five_would_not(tmp_path):
    a, b = chain_run(tmp_path / "a", BETTER), chain_run(tmp_path / "b", WORSE)
    found = compare(a, b)
    apart = np.subtract(BETTER, WORSE)
    assert found.verdict == "A better"
    assert found.lengths is not None
    assert (found.lengths.longer_a, found.lengths.longer_b, found.lengths.pairs) == (10, 0, 12)
    assert found.lengths.p == exact_sign_flip(apart) < 0.01
    assert (found.lengths.low, found.lengths.high) == mean_interval(apart, (-5, 5))
    assert found.overall is not None
    assert found.overall.p > 0.05  # all five: 2 of 12 against none
    assert [(row.task, row.successes_a, row.successes_b) for row in found.tasks][:2] == [
        ("at least 1", 12, 11),
        ("at least 2", 12, 6),
    ]
    for text in (render_text(found), render_markdown(found)):
        assert "average length of 5: A 3.33, B 1.75; A - B +1.58" in text
        assert "A got further in 10 of 12 paired chains, B in 0" in text
    assert compare(b, a).verdict == "B better"


def test_equal_chains_are_undecided(tmp_path):
    a, b = chain_run(tmp_path / "a", BETTER), chain_run(tmp_path / "b", BETTER)
    assert compare(a, b).verdict == "undecided"
    assert compare(a, b).lengths.p == 1


def test_chains_without_a_verdict_are_left_out_and_may_weaken_the_verdict(tmp_path):
    a = chain_run(tmp_path / "a", [*BETTER * 2, None])
    b = chain_run(tmp_path / "b", [*WORSE * 2, 2])
    found = compare(a, b)
    assert found.lengths.pairs == 24
    assert "The verdict holds if all 1 without a verdict went against it." in found.notes
    a = chain_run(tmp_path / "c", [*BETTER, *[None] * 6])
    b = chain_run(tmp_path / "d", [*WORSE, *[2] * 6])
    assert "The verdict may not hold if all 6 without a verdict went against it." in compare(a, b).notes


def test_single_instructions_are_compared_by_success(tmp_path):
    a = made_runs.made_run(tmp_path / "a", {"lift": "1111111111"})
    b = made_runs.made_run(tmp_path / "b", {"lift": "0000000000"})
    found = compare(a, b)
    assert found.lengths is None
    assert found.verdict == "A better"


# --- check ---


def checked(tmp_path, baseline, run, **limits):
    file = tmp_path / "baseline.jsonl"
    write_baseline(make_baseline(chain_run(tmp_path / "before", baseline)), file)
    return check(chain_run(tmp_path / "now", run), file, **limits)


def test_a_baseline_of_chains_keeps_their_lengths_and_others_stay_as_they_were(tmp_path):
    made = make_baseline(chain_run(tmp_path / "run", WORSE))
    write_baseline(made, tmp_path / "chains.jsonl")
    assert read_baseline(tmp_path / "chains.jsonl") == made
    assert [row.subgoals_done for row in made.episodes] == WORSE
    single = make_baseline(made_runs.made_run(tmp_path / "single", {"lift": "110"}))
    write_baseline(single, tmp_path / "single.jsonl")
    assert "subgoals" not in (tmp_path / "single.jsonl").read_text()
    assert read_baseline(tmp_path / "single.jsonl") == single


def test_the_gate_finds_shorter_chains_worse(tmp_path):
    gate = checked(tmp_path, BETTER, WORSE)
    assert gate.verdict == "regression"
    assert gate.overall.difference == pytest.approx(np.subtract(WORSE, BETTER).mean() / 5)
    assert (gate.overall.lost, gate.overall.gained) == (10, 0)
    assert "did less in 10 and more in 0 of 12 chains" in gate.message
    assert "sign-flip" in gate.message


def test_the_gate_passes_longer_chains_and_is_undecided_about_few(tmp_path):
    assert checked(tmp_path / "1", WORSE * 4, BETTER * 4).verdict == "pass"
    assert checked(tmp_path / "2", [3, 2, 4, 1], [2, 3, 4, 1]).verdict == "undecided"


def test_a_chain_without_a_verdict_cannot_pass_and_counts_as_done_wholly_before_it_fails(tmp_path):
    gate = checked(tmp_path / "1", WORSE, [*BETTER[:-1], None])
    assert gate.verdict == "undecided"
    gate = checked(tmp_path / "2", BETTER, [*WORSE[:6], *[None] * 6])
    assert gate.verdict == "undecided"
    assert gate.overall.p_worse > exact_sign_flip(np.subtract(WORSE[:6], BETTER[:6]), "less")


# --- leaderboard, report ---


def test_the_leaderboard_ranks_by_average_length(tmp_path):
    chain_run(tmp_path / "runs" / "a", BETTER, "steady")  # 3.33, two whole chains
    chain_run(tmp_path / "runs" / "b", [5, 5, 5, *[0] * 9], "gambler")  # 1.25, three whole chains
    board = load_leaderboard(tmp_path / "runs")
    (section,) = board.boards
    assert [standing.label for standing in section.standings] == ["steady", "gambler"]
    (pair,) = section.comparisons
    assert (pair.test, pair.a, pair.links) == ("sign-flip", "steady", 5)
    assert pair.p == exact_sign_flip(np.subtract(BETTER, [5, 5, 5, *[0] * 9]))
    text = board_text(board)
    assert "average length" in text
    assert "3.33 of 5" in text
    pasted = board_markdown(board)
    assert "likelihood ratio" in pasted
    assert "Korn" not in pasted  # rates are explained where there are some
    json.dumps(to_json(board), allow_nan=False)


def test_chains_of_other_scenes_are_compared_unpaired(tmp_path):
    chain_run(tmp_path / "runs" / "a", BETTER, "steady")
    chain_run(tmp_path / "runs" / "b", WORSE, "shaky", scene="elsewhere")
    (section,) = load_leaderboard(tmp_path / "runs").boards
    (pair,) = section.comparisons
    assert (pair.test, pair.pairs) == ("permutation", 0)
    assert pair.p < 0.01
    assert pair.difference == pytest.approx(np.mean(BETTER) - np.mean(WORSE))


def test_an_entrant_without_a_verdict_is_last_and_breaks_nothing(tmp_path):
    chain_run(tmp_path / "runs" / "a", [None, None], "broken")
    chain_run(tmp_path / "runs" / "b", [0, 1], "poor")
    (section,) = load_leaderboard(tmp_path / "runs").boards
    assert [standing.label for standing in section.standings] == ["poor", "broken"]
    page = write_report([tmp_path / "runs"], tmp_path / "out")
    assert "0.50 of 5" in page.read_text()


def test_the_report_speaks_of_lengths_and_shows_every_instruction(tmp_path):
    chain_run(tmp_path / "runs" / "a", BETTER, "steady")
    chain_run(tmp_path / "runs" / "b", WORSE, "shaky")
    page = write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    markdown = (tmp_path / "out" / "report.md").read_text()
    low, high = mean_interval(BETTER, (0, 5))
    for text in (page, markdown):
        assert (
            f"steady does 3.33 of 5 instructions in a row in 12 chains, 95 % interval {low:.2f} – {high:.2f}." in text
        )
        assert "They differ: +1.58" in text
        assert "average length" in text
        assert "nan |" not in text
        assert ">nan<" not in text
    tasks = (tmp_path / "out" / "tasks.csv").read_text()
    for name in ("open", "stack", "at least 5"):
        assert f",{name}," in tasks
    assert "open push lift place close" in (tmp_path / "out" / "episodes.csv").read_text()


def test_pairs_keep_every_difference():
    found = compare_pairs(np.array([5, 0, 2]), np.array([1, 0, 3]), 5)
    assert (found.apart, found.difference, found.longer_a, found.longer_b) == ((4, 0, -1), 1.0, 1, 1)
