import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_store import INFO, calls, result  # type: ignore[import-not-found]

from vla_bench import tables
from vla_bench.errors import UsageError
from vla_bench.store.runs import RunStore
from vla_bench.tables import RunSummary, render_markdown, render_text, summary_of
from vla_bench.text import shorten
from vla_bench.types import EpisodeResult, Inference

SPATIAL = [
    f"pick_up_the_black_bowl_{place}_and_place_it_on_the_plate"
    for place in (
        "between_the_plate_and_the_ramekin",
        "next_to_the_ramekin",
        "from_table_center",
        "on_the_cookie_box",
        "in_the_top_drawer_of_the_wooden_cabinet",
        "on_the_ramekin",
        "next_to_the_cookie_box",
        "on_the_stove",
        "next_to_the_plate",
        "on_the_wooden_cabinet",
    )
]


def saved(path: Path, rows: list[EpisodeResult], inferences: list[Inference] | None = None) -> Path:
    with RunStore.open(path, INFO) as run:
        for row in rows:
            run.append(row, calls(row.trial, task=row.task) if inferences is None else inferences)
    return path


def timed(latencies_ms: list[float], executed: int = 4, cold: int = 0) -> pd.DataFrame:
    rows = [
        {"latency_ms": ms, "queue_ms": 0.0, "batch": 1, "executed": executed, "cold": number < cold}
        for number, ms in enumerate(latencies_ms)
    ]
    return pd.DataFrame(rows, columns=["latency_ms", "queue_ms", "batch", "executed", "cold"])


def episodes_of(rows: list[EpisodeResult]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(EpisodeResult.__dataclass_fields__)).astype({"success": "boolean"})


def mixed() -> list[EpisodeResult]:
    rows = [result(trial, success=trial < 17, steps=10 + trial, task="stack") for trial in range(20)]
    return [*rows, result(20, None, task="stack"), result(0, True, task="door"), result(1, None, task="door")]


# --- tables ---


def test_tasks_come_in_first_seen_order_with_wilson_intervals(tmp_path: Path) -> None:
    table = tables.summarize(tables.load(saved(tmp_path, mixed())))
    assert list(table) == ["task", "episodes", "successes", "rate", "low", "high", "mean_steps", "broken"]
    assert table["task"].tolist() == ["stack", "door"]
    stack = table.iloc[0]
    assert (stack.episodes, stack.successes, stack.rate, stack.broken) == (20, 17, 0.85, 1)
    assert (stack.low, stack.high) == pytest.approx((0.63958, 0.94763), abs=1e-5)
    assert stack.mean_steps == 19.5


def test_broken_episodes_are_neither_failures_nor_forgotten(tmp_path: Path) -> None:
    whole = tables.overall(tables.load(saved(tmp_path, mixed()))).iloc[0]
    assert (whole.task, whole.episodes, whole.successes, whole.broken) == ("overall", 21, 18, 2)


def test_a_task_with_only_broken_episodes_has_no_rate() -> None:
    table = tables.summarize(episodes_of([result(0, None)]))
    assert table["rate"].isna().all()
    assert table["mean_steps"].isna().all()
    assert (table.low[0], table.high[0], table.broken[0]) == (0.0, 1.0, 1)


def test_no_episodes_make_empty_tables_of_the_same_columns() -> None:
    nothing = episodes_of([])
    assert list(tables.summarize(nothing)) == list(tables.overall(nothing))
    assert len(tables.summarize(nothing)) == 0
    assert tables.overall(nothing).episodes.tolist() == [0]


def test_loading_what_is_no_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run"):
        tables.load(tmp_path)
    with pytest.raises(UsageError, match="not a run"):
        tables.load_summary(tmp_path)


def test_actions_out_of_bounds_are_a_column_and_a_sentence_where_there_were_any(tmp_path: Path) -> None:
    old = [result(0, steps=10), result(1, steps=10)]
    within = [replace(row, out_of_bounds=0) for row in old]
    some = [old[0], replace(old[1], out_of_bounds=4), replace(result(2, steps=30), out_of_bounds=0)]
    for rows in (old, within):
        assert "bounds" not in render_text(summary_of(INFO, episodes_of(rows), timed([])))
    path = saved(tmp_path, some)
    frame = tables.load(path)
    assert frame["out_of_bounds"].tolist() == [pd.NA, 4, 0]
    for text in (render_text(tables.load_summary(path)), render_markdown(tables.load_summary(path))):
        assert "4 of 40 control steps (10.0 %) had an action outside the bounds" in text


# --- latency ---


def test_percentiles_leave_out_cold_calls_and_wait_for_enough_samples() -> None:
    latency = tables.latency(timed([900.0, 500.0, *[10.0] * 458], cold=2), episodes_of([]), 20.0)
    assert (latency.n, latency.cold, latency.cold_max_ms) == (458, 2, 900.0)
    assert latency.inference_ms == {"p50": 10.0, "p95": 10.0, "p99": None}
    assert latency.action_ms == {"p50": 2.5, "p95": 2.5, "p99": None}
    assert latency.needed == {"p50": 1, "p95": 90, "p99": 459}
    assert tables.latency(timed([10.0] * 459), episodes_of([]), 20.0).inference_ms["p99"] == 10.0


def test_time_per_action_is_divided_inference_by_inference() -> None:
    frame = pd.concat([timed([10.0] * 2, executed=10), timed([10.0], executed=1)])
    latency = tables.latency(frame, episodes_of([]), 20.0)
    assert latency.action_ms["p50"] == 1.0
    assert latency.mean_executed == 7.0
    assert latency.attainable_hz == pytest.approx(21 / 0.030)


def test_calls_that_played_nothing_do_not_make_infinite_times() -> None:
    latency = tables.latency(timed([10.0], executed=0), episodes_of([]), 20.0)
    assert latency.action_ms["p50"] is None
    assert latency.attainable_hz == 0.0


def test_calls_whose_timings_were_lost_are_counted() -> None:
    rows = [result(0), result(1), result(2, None)]  # each row counts two inferences; a broken one keeps no timings
    assert tables.latency(timed([1.0] * 3), episodes_of(rows), 20.0).missing == 1


def test_no_inferences_give_nothing_instead_of_nan() -> None:
    latency = tables.latency(timed([]), episodes_of([]), 20.0)
    assert (latency.n, latency.mean_batch, latency.attainable_hz, latency.cold_max_ms) == (0, None, None, None)
    assert set(latency.inference_ms.values()) == {None}


def test_stages_are_averaged_over_the_calls_that_timed_them() -> None:
    frame = timed([1.0, 1.0, 1.0]).assign(stage_vision_ms=[2.0, 4.0, np.nan], stage_flow_ms=np.nan)
    assert tables.latency(frame, episodes_of([]), 20.0).stages_ms == {"vision": 3.0}


# --- time ---


def test_shares_of_wall_time_sum_to_one_with_the_rest_as_other() -> None:
    split = tables.wall_split(episodes_of([result(0), result(1, None)]))
    assert split.seconds == pytest.approx({"set-up": 0.2, "render": 0.6, "physics": 0.4, "policy": 0.8, "other": 0.2})
    assert sum(split.shares.values()) == pytest.approx(1.0)
    assert set(tables.wall_split(episodes_of([])).shares.values()) == {0.0}


def test_parts_longer_than_the_wall_time_leave_no_negative_rest() -> None:
    split = tables.wall_split(episodes_of([replace(result(0), wall_s=0.5)]))
    assert split.seconds["other"] == 0.0
    assert sum(split.shares.values()) == pytest.approx(1.0)


def test_pace_counts_judged_episodes_over_the_wall_time_of_the_run() -> None:
    episodes = episodes_of([result(0), result(1), result(2, None)])
    assert tables.throughput(episodes, 60.0) == tables.Throughput(2.0, per_worker=False)
    alone = tables.throughput(episodes, None)
    assert alone.per_worker
    assert alone.episodes_per_minute == pytest.approx(2 / 3.3 * 60)
    assert tables.throughput(episodes_of([]), None).episodes_per_minute is None


# --- output ---


def summary(path: Path) -> RunSummary:
    return tables.load_summary(saved(path, mixed()))


def test_the_cause_is_the_first_error_in_one_short_line_with_how_many_it_hit() -> None:
    assert tables.cause([]) == ""
    assert tables.cause([("KeyError", "it\x1b[2J fell.")]) == r"KeyError: it\x1b[2J fell"
    assert tables.cause([("A", "x 1"), ("B", "y"), ("A", "x 2")]) == "A: x 1 (2 of 3)"
    assert tables.cause([("", "")]) == "no error was noted"
    assert len(tables.cause([("A", "x" * 10_000)])) == tables.LONGEST_CAUSE


def test_the_text_says_all_there_is_to_say(tmp_path: Path) -> None:
    text = render_text(summary(tmp_path))
    assert "zero on tiny, protocol 363dd9d83ba7" in text
    assert "stack   |     17/20 |  85.0 % |  64.0 – 94.8 % |       19.5 |      1\n" in text
    assert "overall |     18/21 |  85.7 %" in text
    assert "2 broken, so without a verdict: the rate is 78.3 % if all of them fail, 87.0 % if all succeed." in text
    assert "per inference | 5.00 |   - |   -\n" in text
    assert "per action    | 1.25 |   - |   -\n" in text
    assert "p99: needs 459 inferences, have 21\n" in text
    assert "left out: 21 cold inferences, the slowest 5.00 ms" in text
    assert "per inference, mean: 4.00 actions, batch of 2.00\n" in text
    assert "attainable control rate: 800.0 Hz; the suite's: 20 Hz\n" in text
    assert (
        "vision |     1.50 |  30 %\ndecode |     3.00 |  60 %\nrest   |     0.50 |  10 %\nwhole  |     5.00 | 100 %"
        in text
    )
    assert "episodes per minute per worker" in text
    assert "wall time: set-up 9 %, render 27 %, physics 18 %, policy 36 %, other 9 %" in text


def test_nothing_is_said_about_what_did_not_happen(tmp_path: Path) -> None:
    text = render_text(tables.load_summary(saved(tmp_path, [replace(result(0), inferences=0)], [])))
    assert "No inference was timed." in text
    assert "broken, so" not in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_a_run_without_episodes_and_inferences_reads_as_sentences() -> None:
    text = render_text(summary_of(INFO, episodes_of([]), timed([])))
    assert text.splitlines() == [
        "zero on tiny, protocol 363dd9d83ba7",
        "",
        "No episode has finished yet.",
        "",
        "No inference was timed.",
    ]


def test_a_run_whose_episodes_all_broke_shows_them_and_the_full_bound() -> None:
    text = render_text(summary_of(INFO, episodes_of([result(0, None)]), timed([])))
    assert "0/0 |    - | 0.0 – 100.0 % |          - |      1" in text
    assert "the rate is 0.0 % if all of them fail, 100.0 % if all succeed" in text


def test_the_pace_of_the_whole_run_is_used_when_it_was_recorded() -> None:
    info = replace(INFO, provenance={"run_seconds": 30})
    text = render_text(summary_of(info, episodes_of([result(0)]), timed([])))
    assert "speed: 2.00 episodes per minute\n" in text


def test_the_text_fits_100_columns_and_keeps_long_task_names_apart() -> None:
    rows = [result(trial, task=task, steps=520) for task in SPATIAL for trial in range(50)]
    lines = render_text(summary_of(INFO, episodes_of(rows), timed([1.0] * 500, cold=1))).splitlines()
    assert max(map(len, lines)) <= 100
    table = [line.split("|")[0].strip() for line in lines if line.startswith("pick")]
    assert len(set(table)) == len(SPATIAL)
    assert all("…" in name for name in table if len(name) > 40)


def test_short_names_stay_as_they_are_and_long_ones_keep_both_ends() -> None:
    assert shorten(["lift", "stack"], 5) == ["lift", "stack"]
    assert shorten(["abcdefghij"], 5) == ["ab…ij"]
    assert shorten([], 5) == []


def test_json_holds_the_full_names_and_survives_a_strict_parser(tmp_path: Path) -> None:
    long = [result(0, None, task=SPATIAL[0]), result(0, task=SPATIAL[1])]
    found = json.loads(json.dumps(tables.to_json(tables.load_summary(saved(tmp_path, long))), allow_nan=False))
    assert [row["task"] for row in found["tasks"]] == SPATIAL[:2]
    assert found["tasks"][0]["rate"] is None
    assert found["bounds"] == {"low": 0.5, "high": 1.0}
    assert found["latency"]["inference_ms"]["p99"] is None
    assert found["latency"]["needed"]["p99"] == 459
    assert set(found["wall"]["shares"]) == {"set-up", "render", "physics", "policy", "other"}


def test_markdown_is_a_table_with_every_task_and_the_overall_row(tmp_path: Path) -> None:
    lines = render_markdown(tables.load_summary(saved(tmp_path, [*mixed(), result(0, task="a|b")]))).splitlines()
    assert lines[0] == "| task | successes | rate | 95 % interval | mean steps | broken |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| stack | 17/20 | 85.0 % | 64.0 – 94.8 % | 19.5 | 1 |"
    assert lines[4].startswith("| a\\|b | ")
    assert lines[5].startswith("| **overall** | **19/22** |")


def test_a_notebook_gets_the_functions_and_shows_the_table(tmp_path: Path) -> None:
    import vla_bench

    run = saved(tmp_path / "run", mixed())
    assert len(vla_bench.load(run)) == len(mixed())
    assert list(vla_bench.summarize(vla_bench.load(run)).columns) == list(tables.TaskRow.__dataclass_fields__)
    summary = vla_bench.load_summary(run)
    assert summary._repr_markdown_() == render_markdown(summary)


def test_half_a_surrogate_in_a_message_does_not_stop_the_table(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", [replace(result(0, success=None), message="\udc80 broke")])
    assert tables.load(run).message[0] == "? broke"
