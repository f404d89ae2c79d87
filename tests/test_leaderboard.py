"""The leaderboard: every number is what the statistics say, and nothing is mixed that must not be."""

from __future__ import annotations

import csv
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import INFO, as_before, episode, made_run, of_protocol, other_protocol

from vla_bench.cli import main
from vla_bench.report import leaderboard, published
from vla_bench.report.leaderboard import (
    Board,
    Standing,
    load_leaderboard,
    p_text,
    render_markdown,
    render_text,
    to_json,
)
from vla_bench.report.sections import differences, find_runs, sections_of
from vla_bench.stats.many import holm
from vla_bench.stats.paired import mcnemar, paired_difference
from vla_bench.stats.rates import bounds, wilson
from vla_bench.stats.tasks import clustered_rate
from vla_bench.stats.unpaired import boschloo, fisher, newcombe_difference
from vla_bench.store.runs import RunInfo, RunStore

POLICIES = ("alpha", "beta", "gamma")


def of_policy(policy: str, info: RunInfo = INFO, **identity: object) -> RunInfo:
    return replace(info, identity={**info.identity, "policy": policy, **identity})


def started(info: RunInfo, when: str) -> RunInfo:
    return replace(info, provenance={**info.provenance, "started": when})


def run_of(folder: Path, policy: str, outcomes: dict[str, str], **options: Any) -> Path:
    info = options.pop("info", INFO)
    identity = options.pop("identity", {})
    return made_run(folder, outcomes, info=of_policy(policy, info, **identity), **options)


def boards_of(results: Path) -> tuple[Board, ...]:
    found = load_leaderboard(results)
    json.dumps(to_json(found), allow_nan=False)
    assert "nan" not in (render_text(found) + render_markdown(found)).lower()
    return found.boards


def only_board(results: Path) -> Board:
    (board,) = boards_of(results)
    return board


def standing_of(board: Board, label: str) -> Standing:
    return {standing.label: standing for standing in board.standings}[label]


def everything_said(results: Path) -> str:
    found = load_leaderboard(results)
    return render_text(found) + render_markdown(found)


# Numbers


@pytest.mark.parametrize("seed", range(4))
def test_every_number_is_what_the_statistics_say(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    played = {
        policy: {task: "".join(rng.choice(list("0011x"), 9)) for task in ("door", "lift", "stack")}
        for policy in POLICIES
    }
    for policy, outcomes in played.items():
        run_of(tmp_path / policy, policy, outcomes, latency_ms=8.0)
    board = only_board(tmp_path)
    for policy, outcomes in played.items():
        text, standing = "".join(outcomes.values()), standing_of(board, policy)
        k, broken = text.count("1"), text.count("x")
        n = len(text) - broken
        assert (standing.successes, standing.episodes, standing.broken) == (k, n, broken)
        assert standing.rate == k / n
        assert standing.interval == wilson(k, n)
        assert standing.bounds == bounds(k, n - k, broken)
        by_task = [[int(verdict) for verdict in line if verdict != "x"] for line in outcomes.values()]
        assert standing.like_these is not None
        assert standing.like_these.interval == pytest.approx(clustered_rate(by_task).interval)
        assert standing.like_these.mean == pytest.approx(clustered_rate(by_task).mean)
        assert standing.latency_p50_ms == pytest.approx(8.0, rel=0.02)
    rates = [standing.rate for standing in board.standings]
    assert rates == sorted(rates, reverse=True)
    for found in board.comparisons:
        a, b = ("".join(played[label].values()) for label in (found.a, found.b))
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if "x" not in (x, y)]
        a_only, b_only = pairs.count(("1", "0")), pairs.count(("0", "1"))
        assert (found.pairs, found.a_only, found.b_only) == (len(pairs), a_only, b_only)
        assert found.p == mcnemar(a_only, b_only)
        assert found.interval == paired_difference(a_only, b_only, len(pairs))
        assert found.difference == pytest.approx((a_only - b_only) / len(pairs))
    adjusted = holm([found.p for found in board.comparisons])
    assert [found.p_holm for found in board.comparisons] == pytest.approx(list(adjusted))


def test_policies_share_a_letter_exactly_when_holm_does_not_tell_them_apart(tmp_path: Path) -> None:
    for policy, solved in {"strong": 40, "close": 37, "middle": 21, "weak": 3}.items():
        run_of(tmp_path / policy, policy, {"lift": "1" * solved + "0" * (40 - solved)})
    board = only_board(tmp_path)
    for found in board.comparisons:
        shared = set(standing_of(board, found.a).letters) & set(standing_of(board, found.b).letters)
        assert bool(shared) == (found.p_holm >= leaderboard.ALPHA), found
    assert [standing.letters for standing in board.standings] == ["a", "a", "b", "c"]


@pytest.mark.parametrize(
    ("verdicts", "rate", "interval"),
    [("0" * 20, "0.0 %", "0.0 – 16.1 %"), ("1" * 20, "100.0 %", "83.9 – 100.0 %"), ("1", "100.0 %", "20.7 – 100.0 %")],
)
def test_none_all_and_one_episode_have_honest_intervals(
    tmp_path: Path, verdicts: str, rate: str, interval: str
) -> None:
    run_of(tmp_path / "run", "alpha", {"lift": verdicts})
    said = everything_said(tmp_path)
    assert f" {rate} | {interval} | - | a |" in said  # one task: nothing is said about tasks like these


def test_a_policy_whose_episodes_all_broke_is_last_without_rate_or_letter(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "000"})
    run_of(tmp_path / "b", "broken", {"lift": "xxx"})
    board = only_board(tmp_path)
    last = board.standings[-1]
    assert (last.label, last.rate, last.letters, last.bounds) == ("broken", None, "", (0.0, 1.0))
    assert board.comparisons == ()
    assert "broken: 3 broken episodes without a verdict; the rate is 0.0 % if all of them fail, 100.0 % if all" in (
        everything_said(tmp_path)
    )


def test_bounds_of_broken_episodes_are_shown(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1111x"})
    assert "1 broken episode without a verdict; the rate is 80.0 % if all of them fail, 100.0 % if all succeed." in (
        everything_said(tmp_path)
    )


def test_p_values_are_never_printed_as_0_nor_rounded_onto_alpha() -> None:
    assert [p_text(p) for p in (1.0, 0.03125, 0.04999, 0.05001, 1e-9)] == [
        "= 1.0000", "= 0.0312", "= 0.049990", "= 0.050010", "< 0.0001",
    ]  # fmt: skip


# What may be compared


def test_protocols_get_tables_of_their_own_that_say_what_differs(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1111"})
    run_of(tmp_path / "b", "beta", {"lift": "0000"}, info=other_protocol(execute=4))
    boards = boards_of(tmp_path)
    assert [[standing.label for standing in board.standings] for board in boards] == [["alpha"], ["beta"]]
    assert [board.protocol_hash for board in boards] == ["3fdcd6ce3cdf", "5bbc791a8d9b"]
    assert boards[0].notes == ("Not comparable with protocol 5bbc791a8d9b: chunking.execute is null here, 4 there.",)
    assert all(board.comparisons == () for board in boards)


def test_perturbed_episodes_are_a_section_of_their_own(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "run", INFO) as store:
        store.append(episode("lift", 0, success=True), [])
        store.append(replace(episode("lift", 0, success=False), perturbation="dark"), [])
    plain, dark = boards_of(tmp_path)
    assert (plain.title, plain.standings[0].successes, plain.standings[0].episodes) == ("toy", 1, 1)
    assert (dark.title, dark.standings[0].successes, dark.standings[0].episodes) == ("toy / dark", 0, 1)


def test_without_common_scenes_the_test_is_unpaired(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1" * 17 + "000"}, scene="here")
    run_of(tmp_path / "b", "beta", {"lift": "1" * 14 + "0" * 6}, scene="there")
    board = only_board(tmp_path)
    (found,) = board.comparisons
    assert (found.test, found.pairs, found.unequal_scenes) == ("Boschloo", 0, 20)
    assert found.p == boschloo(17, 20, 14, 20) == pytest.approx(0.287145, abs=1e-6)
    assert found.interval == newcombe_difference(17, 20, 14, 20)
    assert "1 of 1 comparisons leave out episodes whose scenes are not shown to be equal." in board.notes


def test_many_unpaired_episodes_get_fishers_test(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1" * 100 + "0" * 5})
    run_of(tmp_path / "b", "beta", {"door": "1" * 80 + "0" * 25})
    (found,) = only_board(tmp_path).comparisons
    assert (found.test, found.p) == ("Fisher", fisher(100, 105, 80, 105))


def test_pairs_on_unequal_scenes_are_left_out_of_a_paired_test(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1111"})
    with RunStore.open(tmp_path / "b", of_policy("beta")) as store:
        for trial in range(4):
            store.append(episode("lift", trial, success=False, scene="scene" if trial else "moved"), [])
    (found,) = only_board(tmp_path).comparisons
    assert (found.test, found.pairs, found.unequal_scenes, found.a_only) == ("McNemar", 3, 1, 3)


def test_scenes_that_settled_to_other_last_digits_are_paired(tmp_path: Path) -> None:
    for name, success in (("alpha", True), ("beta", False)):
        with RunStore.open(tmp_path / name, of_policy(name)) as store:
            for trial in range(3):
                row = episode("lift", trial, success=success, scene=f"{name} {trial}")
                store.append(replace(row, start_fingerprint=f"laid out {trial}"), [])
    (found,) = only_board(tmp_path).comparisons
    assert (found.test, found.pairs, found.unequal_scenes) == ("McNemar", 3, 0)


def test_who_played_fewer_episodes_is_named(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1111", "door": "1111"})
    run_of(tmp_path / "b", "beta", {"lift": "1100"})
    notes = only_board(tmp_path).notes
    assert notes == ("beta has 4 of the 8 episodes seen here; its rate is over those alone.",)


def test_latencies_of_several_machines_are_marked(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1"})
    elsewhere = replace(INFO, provenance={"machine": {"cpu": "slide rule", "cores": 1}})
    run_of(tmp_path / "b", "beta", {"lift": "1"}, info=elsewhere)
    assert only_board(tmp_path).notes == ("Latencies come from 2 different machines: do not compare them.",)


# Several runs of one policy


def test_runs_with_different_episodes_are_taken_together(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1110"}, latency_ms=4.0)
    run_of(tmp_path / "b", "alpha", {"door": "00"}, latency_ms=4.0)
    board = only_board(tmp_path)
    (standing,) = board.standings
    assert (standing.successes, standing.episodes, standing.tasks, len(standing.runs)) == (3, 6, 2, 2)
    assert board.notes == ("alpha: 2 runs with different episodes, taken together.",)


def test_of_an_episode_in_several_runs_the_newest_verdict_counts_and_it_is_said(tmp_path: Path) -> None:
    run_of(tmp_path / "z_old", "alpha", {"lift": "0000"}, info=started(INFO, "2026-01-01T10:00:00+00:00"))
    run_of(tmp_path / "a_new", "alpha", {"lift": "11x-1"}, info=started(INFO, "2026-01-02T09:00:00+02:00"))
    board = only_board(tmp_path)
    (standing,) = board.standings
    assert (standing.successes, standing.episodes, standing.broken) == (3, 5, 0)  # 1 1 0 0 1: broken is no verdict
    assert standing.date == "2026-01-02"
    said = "alpha: 3 of 5 episodes are in several of its runs, the newest verdict counts; 2 of them ended differently"
    assert board.notes == (f"{said} before.",)


def test_inferences_of_replaced_episodes_do_not_count(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "11"}, info=started(INFO, "2026-01-01"), latency_ms=100.0)
    run_of(tmp_path / "b", "alpha", {"lift": "11"}, info=started(INFO, "2026-01-02"), latency_ms=5.0)
    (standing,) = only_board(tmp_path).standings
    assert standing.latency_p50_ms == pytest.approx(5.0, rel=0.01)


def test_checkpoints_and_arguments_are_policies_of_their_own(tmp_path: Path) -> None:
    shas = ("a" * 64, "b" * 64)
    for name, sha in zip("xy", shas, strict=True):
        run_of(tmp_path / name, "alpha", {"lift": "1"}, identity={"weights": sha})
    run_of(tmp_path / "z", "alpha", {"lift": "1"}, identity={"weights": shas[1], "policy_args": ["steps=5"]})
    labels = [standing.label for standing in only_board(tmp_path).standings]
    assert sorted(labels) == ["alpha aaaaaaaa", "alpha bbbbbbbb", "alpha bbbbbbbb steps=5"]


def test_a_run_given_twice_through_a_link_is_not_counted_twice_in_a_report(tmp_path: Path) -> None:
    run = run_of(tmp_path / "runs" / "a", "alpha", {"lift": "10"})
    (tmp_path / "again").symlink_to(run)
    from vla_bench.report.sections import load_runs

    assert len(load_runs([run, tmp_path / "again", tmp_path / "runs"]).runs) == 1


# Files that are not as they should be


def corrupt(run: Path) -> Path:
    lines = (as_before(run) / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:20] + b"\n"
    (run / "episodes.jsonl").write_bytes(b"".join(lines))
    return run


def test_runs_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    run_of(tmp_path / "good", "alpha", {"lift": "111"})
    corrupt(run_of(tmp_path / "torn", "beta", {"lift": "111"}))
    RunStore.open(tmp_path / "empty", of_policy("gamma")).close()
    found = load_leaderboard(tmp_path)
    assert [standing.label for standing in found.boards[0].standings] == ["alpha"]
    empty, torn = sorted(found.unreadable)
    assert "empty holds no finished episode yet" in empty
    assert "torn/episodes.jsonl line 2 is corrupt" in torn
    assert "Left out: " in render_text(found)


@pytest.mark.parametrize("kind", ["nothing there", "no runs", "empty run", "corrupt run", "a file"])
def test_no_run_to_read_is_one_sentence_and_exit_64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = tmp_path / "results"
    if kind == "a file":
        folder.write_text("")
    elif kind != "nothing there":
        folder.mkdir()
    if kind == "empty run":
        RunStore.open(folder / "run", INFO).close()
    if kind == "corrupt run":
        corrupt(run_of(folder / "run", "alpha", {"lift": "111"}))
    assert main(["leaderboard", str(folder)]) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vla-bench: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


# Output


def test_the_command_prints_and_writes_text_markdown_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "results" / "a", "alpha", {"lift": "1110"})
    results = str(tmp_path / "results")
    assert main(["leaderboard", results]) == 0
    assert "=== toy, protocol 3fdcd6ce3cdf ===" in capsys.readouterr().out
    assert main(["leaderboard", "--json", results]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["sections"][0]["standings"][0]["interval"] == wilson(3, 4)._asdict()
    for ending, expected in {"md": "| alpha | - | 3/4 | 75.0 % |", "json": '"successes": 3', "txt": "  75.0 %"}.items():
        file = tmp_path / "new" / f"board.{ending}"
        assert main(["leaderboard", results, "--out", str(file)]) == 0
        assert expected in file.read_text()


@pytest.fixture
def two_boards(tmp_path: Path) -> Path:
    """Two policies with names that LaTeX, HTML and CSV would read otherwise, and one with another protocol."""
    for name, outcomes in {'50%_a&b <i>"x", y': "1110", "π{0}#~^$\\": "0010"}.items():
        run_of(tmp_path / "results" / str(len(name)), name, {"lift": outcomes})
    info = replace(other_protocol(), identity={**INFO.identity, "policy": "there"})
    made_run(tmp_path / "results" / "other", {"lift": "11"}, info=info)
    return tmp_path


def written(folder: Path, ending: str) -> str:
    file = folder / f"board.{ending}"
    assert main(["leaderboard", str(folder / "results"), "--out", str(file)]) == 0
    return file.read_text(encoding="utf-8")


def test_csv_has_a_row_per_policy_and_suite(two_boards: Path) -> None:
    rows = list(csv.DictReader(written(two_boards, "csv").splitlines()))
    assert [(row["policy"], row["successes"], row["episodes"]) for row in rows] == [
        ('50%_a&b <i>"x", y', "3", "4"),
        ("π{0}#~^$\\", "1", "4"),
        ("there", "2", "2"),
    ]
    assert float(rows[0]["low"]) == wilson(3, 4).low
    assert len({row["protocol_hash"] for row in rows}) == 2


def test_latex_is_a_table_per_board_with_nothing_left_to_misread(two_boards: Path) -> None:
    text = written(two_boards, "tex")
    assert text.count(r"\begin{tabular}{lrr") == text.count(r"\end{tabular}") == 2
    assert r"50\%\_a\&b \textless{}i\textgreater{}" in text
    assert r"$\pi$\{0\}\#\textasciitilde{}\textasciicircum{}\$\textbackslash{}" in text
    assert text.isascii()
    for table in re.findall(r"\\begin\{tabular\}.*?\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        cells = [len(re.findall(r"(?<!\\)&", line)) for line in table.splitlines() if line != r"\hline"]
        assert len(set(cells)) == 1
        assert not re.findall(r"(?<!\\)[%#_]", table)


def test_html_is_a_page_of_tables_with_names_as_text(two_boards: Path) -> None:
    text = written(two_boards, "html")
    assert text.startswith("<!doctype html>")
    assert text.count("<table>") == text.count("</table>") == 2
    assert "50%_a&amp;b &lt;i&gt;&quot;x&quot;, y" in text
    assert "<i>" not in text


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["leaderboard", "nowhere", "--out", "t.pdf"], "in .csv, .html, .json, .md, .tex or .txt, got t.pdf."),
        (["leaderboard", "nowhere", "--out", "t"], "--out should name a file that ends in"),
        (["leaderboard", "nowhere", "--json", "--out", "t.md"], "--out t.md and --json ask for two formats."),
        (
            ["check", "nowhere", "--baseline", "b.jsonl", "--junit", "t.json"],
            "--junit should name a file that ends in .xml",
        ),
        (["check", "nowhere", "--baseline", "b.csv", "--update"], "--baseline should name a file that ends in .jsonl"),
        (["report", "nowhere", "--out", "t.html"], "--out should name the folder that the report is written into"),
        (
            ["run", "--policy", "p", "--suite", "s", "--record-actions", "a.npz"],
            "--record-actions should name a file that",
        ),
    ],
)
def test_a_file_whose_name_promises_something_else_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 64
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_protocols_that_differ_only_far_inside_a_long_list_still_differ() -> None:
    tasks = [[f"task {n}", 100] for n in range(30)]
    (said,) = differences({"tasks": tasks}, {"tasks": [*tasks[:-1], ["task 29", 200]]})
    here, there = said.split(" here, ")
    assert here != there
    assert len(said) < 200
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []


def test_sections_know_the_suites_order_of_tasks(tmp_path: Path) -> None:
    info = of_protocol({"tasks": [["stack", "do", 9, 9], ["lift", "do", 9, 9]]})
    run_of(tmp_path / "a", "alpha", {"lift": "1", "other": "1", "stack": "1"}, info=info)
    (section,) = sections_of(find_runs(tmp_path).runs)
    assert section.tasks == ["stack", "lift", "other"]


# Published numbers


def test_published_numbers_appear_only_with_their_family_and_apart(tmp_path: Path) -> None:
    run_of(tmp_path / "a", "alpha", {"lift": "1"})
    assert published.NOTICE not in everything_said(tmp_path)
    with RunStore.open(tmp_path / "b", INFO) as store:
        store.append(replace(episode("x", 0, success=True), suite="libero_10"), [])
    said = render_markdown(load_leaderboard(tmp_path))
    reference = said.index(f"## Reference: {published.NOTICE}")
    assert reference > said.index("## toy, protocol")
    assert said.count("Korn") == 1  # of two boards
    assert "OpenVLA-OFT (a model per suite) | 97.6 | 98.4 | 97.9 | 94.5 | 97.1 | source |" in said[reference:]
    assert "CALVIN" not in said


def test_published_rows_are_whole_and_their_means_fit() -> None:
    for libero in published.LIBERO:
        assert libero.source
        four = [value for value in libero[1:5] if isinstance(value, float)]
        assert all(0 <= value <= 100 for value in four)
        if len(four) == 4:
            assert libero.mean == pytest.approx(float(np.mean(four)), abs=0.2), libero
    for calvin in published.CALVIN:
        assert calvin.source
        known = [value for value in calvin.at_least if value is not None]
        assert known == sorted(known, reverse=True)
        if len(known) == 5:
            assert calvin.length == pytest.approx(sum(known) / 100, abs=0.03), calvin


def test_no_published_row_is_there_twice() -> None:
    rows = [*published.LIBERO, *published.CALVIN]
    assert all(a != b for a, b in itertools.combinations(rows, 2))
