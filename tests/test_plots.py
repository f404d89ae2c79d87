"""Figures draw what their tables say, for one to eight policies and one to ninety tasks, in light and in dark."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from marks import slow

from vla_bench.report import plots
from vla_bench.text import visible

CSS = (Path(plots.__file__).parents[1] / "assets" / "report.css").read_text()
LONG = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_{}_and_place_it_on_the_plate"
ODD_NAMES = [
    "<b>&\"'",
    "cost $x^2$",
    "_hidden",
    "two\nlines",
    "日本 ünïcode",
    "bell\x07",
    "%s {0} \\alpha",
]


def rates(tasks: int, policies: Sequence[str], overall: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(tasks)
    rows = [(policy, LONG.format(n), rng.random(), False) for n in range(tasks) for policy in policies]
    rows += [(policy, "all tasks", rng.random(), True) for policy in policies] if overall else []
    frame = pd.DataFrame(rows, columns=["policy", "task", "rate", "overall"])
    return frame.assign(low=frame["rate"] * 0.8, high=1 - (1 - frame["rate"]) * 0.8)


def latencies(policies: Sequence[str]) -> pd.DataFrame:
    rows = [(policy, 10.0 * n + ms, ms / 9, "") for n, policy in enumerate(policies, 1) for ms in range(10)]
    rows += [(policy, 10.0 * n + 5, 0.5, "p50") for n, policy in enumerate(policies, 1)]
    return pd.DataFrame(rows, columns=["policy", "latency_ms", "share", "mark"])


def stages(policies: Sequence[str]) -> pd.DataFrame:
    rows = [(policy, stage, 5.0) for policy in policies for stage in ("vision", "flow", "rest")]
    return pd.DataFrame(rows, columns=["policy", "stage", "ms"])


def split(policies: Sequence[str]) -> pd.DataFrame:
    rows = [(policy, part, 0.25) for policy in policies for part in ("set-up", "render", "physics", "policy")]
    return pd.DataFrame(rows, columns=["policy", "part", "share"])


def solved(policies: Sequence[str]) -> pd.DataFrame:
    rows = [(policy, step, step / 400, step / 500, step / 300) for policy in policies for step in (0, 50, 200)]
    return pd.DataFrame(rows, columns=["policy", "step", "share", "low", "high"])


def names(number: int) -> list[str]:
    return [f"policy_{n}" for n in range(number)]


def inline(ax: object, folder: Path, title: str = "a figure") -> str:
    return plots.inline_svg(plots.save(ax, folder / "figure"), "x", title)  # type: ignore[arg-type]


# Every shape and name can be drawn


@pytest.mark.parametrize("policies", [1, 2, slow(8), slow(11)])
def test_every_figure_returns_its_axes_and_becomes_png_and_svg(tmp_path: Path, policies: int) -> None:
    who = names(policies)
    figures = [
        (plots.forest, rates(3, who), plots.forest_size(4, policies)),
        (plots.heatmap, rates(3, who), plots.heatmap_size(4, policies)),
        (plots.latency_ecdf, latencies(who), plots.CURVE_SIZE),
        (plots.stage_bars, stages(who), plots.bars_size(policies)),
        (plots.wall_split, split(who), plots.bars_size(policies)),
        (plots.success_over_steps, solved(who), plots.CURVE_SIZE),
    ]
    for draw, table, size in figures:
        before, ax = table.copy(), plots.new_axes(size)
        assert draw(table, ax) is ax
        pd.testing.assert_frame_equal(table, before)
        svg = plots.save(ax, tmp_path / draw.__name__)
        ET.fromstring(svg)
        assert (tmp_path / f"{draw.__name__}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{draw.__name__}.svg").read_text() == svg


@pytest.mark.parametrize(("tasks", "policies"), [(1, 1), slow(10, 8), slow(90, 2)])
def test_forests_and_heat_maps_grow_with_their_rows_and_keep_long_names_apart(
    tmp_path: Path, tasks: int, policies: int
) -> None:
    table = rates(tasks, names(policies))
    for draw, size in (
        (plots.forest, plots.forest_size(tasks + 1, policies)),
        (plots.heatmap, plots.heatmap_size(tasks + 1, policies)),
    ):
        assert size.width <= plots.WIDTH
        assert size.height >= 0.2 * tasks
        ax = draw(table, plots.new_axes(size))
        plots.save(ax, tmp_path / "figure")
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert len(set(labels)) == tasks + 1
        assert max(map(len, labels)) <= plots.NAME_WIDTH
        boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert all(box.x0 >= 0 for box in boxes), "a name is cut off"
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes)), "names cover each other"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [ODD_NAMES[0], *map(slow, ODD_NAMES[1:])])
def test_names_that_mean_something_to_matplotlib_or_xml_are_only_text(tmp_path: Path, name: str) -> None:
    who = [name, "other"]
    table = rates(1, who).replace({"task": {LONG.format(0): name}})
    for ax in (
        plots.forest(table, plots.new_axes(plots.forest_size(2, 2))),
        plots.heatmap(table, plots.new_axes(plots.heatmap_size(2, 2))),
        plots.latency_ecdf(latencies(who), plots.new_axes(plots.CURVE_SIZE)),
        plots.stage_bars(stages(who).replace({"stage": {"flow": name}}), plots.new_axes(plots.bars_size(2))),
    ):
        root = ET.fromstring(inline(ax, tmp_path, title=name))
        texts = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")}
        assert visible(name) in texts


def test_nothing_to_draw_makes_empty_figures(tmp_path: Path) -> None:
    plots.save(plots.latency_ecdf(latencies([]), plots.new_axes(plots.CURVE_SIZE)), tmp_path / "a")
    plots.save(plots.success_over_steps(solved([]), plots.new_axes(plots.CURVE_SIZE)), tmp_path / "b")


# What is drawn is what the table says


def test_a_forest_draws_the_rates_and_intervals_of_its_columns() -> None:
    table = rates(5, names(3))
    ax = plots.forest(table, plots.new_axes(plots.forest_size(6, 3)))
    for policy, bars, points in zip(names(3), ax.collections, ax.lines, strict=False):
        own = table[table["policy"] == policy]
        ends = np.array([segment[:, 0] for segment in bars.get_segments()])  # type: ignore[attr-defined]
        np.testing.assert_allclose(ends, 100 * own[["low", "high"]].to_numpy())
        np.testing.assert_allclose(np.asarray(points.get_xdata(), float), 100 * own["rate"])


def test_a_forest_without_a_rate_still_shows_the_interval(tmp_path: Path) -> None:
    table = rates(2, ["a"]).assign(rate=np.nan, low=0.0, high=1.0)
    ax = plots.forest(table, plots.new_axes(plots.forest_size(3, 1)))
    plots.save(ax, tmp_path / "figure")
    assert len(ax.collections[0].get_segments()) == 3  # type: ignore[attr-defined]


def test_a_heat_map_writes_the_rate_of_every_cell_and_a_dash_for_none() -> None:
    table = rates(2, ["a", "b"], overall=False).assign(rate=[0.0, 0.336, np.nan, 1.0])
    ax = plots.heatmap(table, plots.new_axes(plots.heatmap_size(2, 2)))
    assert [text.get_text() for text in ax.texts] == ["0", "34", "–", "100"]
    missing = plots.heatmap(table.iloc[:3], plots.new_axes(plots.heatmap_size(2, 2)))
    assert [text.get_text() for text in missing.texts] == ["0", "34", "–", "–"]


def test_curves_draw_their_columns_and_mark_the_percentiles_given() -> None:
    ax = plots.latency_ecdf(latencies(["a"]), plots.new_axes(plots.CURVE_SIZE))
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_xdata(), float), 10 + np.arange(10.0))
    assert [text.get_text() for text in ax.texts] == ["p50"]
    curve = plots.success_over_steps(solved(["a"]), plots.new_axes(plots.CURVE_SIZE))
    np.testing.assert_allclose(np.asarray(curve.lines[0].get_ydata(), float), [0, 12.5, 50])


def test_bars_end_where_their_parts_add_up() -> None:
    ax = plots.stage_bars(stages(["a", "b"]), plots.new_axes(plots.bars_size(2)))
    ends = {round(bar.get_x() + bar.get_width(), 6) for bar in ax.patches}  # type: ignore[attr-defined]
    assert ends == {5.0, 10.0, 15.0}


# Colours


def colours_of(table: pd.DataFrame) -> list[str]:
    ax = plots.success_over_steps(table, plots.new_axes(plots.CURVE_SIZE))
    return [str(line.get_color()) for line in ax.lines]


def test_a_category_keeps_every_policys_colour_also_when_one_is_missing() -> None:
    table = solved(["b", "a", "c"])
    fixed = table.assign(policy=pd.Categorical(table["policy"], categories=["a", "b", "c"]))
    assert colours_of(fixed) == list(plots.SERIES[:3])
    assert colours_of(fixed[fixed["policy"] != "a"]) == list(plots.SERIES[1:3])


def test_inline_drawings_take_all_colours_of_the_theme_from_the_page(tmp_path: Path) -> None:
    svg = inline(plots.forest(rates(3, names(8)), plots.new_axes(plots.forest_size(4, 8))), tmp_path)
    assert not [colour for colour in plots.VARIABLES if colour in svg]
    assert "#000000" not in svg  # black that nobody asked for would vanish on a dark ground
    used = set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert {"--ink", "--series-0", "--series-7"} <= used
    light, dark = CSS.split("@media screen and (prefers-color-scheme: dark)")
    for variable in set(plots.VARIABLES.values()):
        assert f"{variable}:" in light
        assert f"{variable}:" in dark


def test_the_page_shows_the_light_colours_of_the_png() -> None:
    light = CSS.split("@media screen and (prefers-color-scheme: dark)")[0]
    for colour, variable in plots.VARIABLES.items():
        if variable != "--paper":
            assert f"{variable}: {colour};" in light


def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(scheme: int) -> None:
    """WCAG 2.2: 4.5 for text, 3 for graphics."""
    block = CSS.split("@media screen and (prefers-color-scheme: dark)")[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block.split("}")[0]))
    paper = luminance(colours["paper"])
    for name, colour in colours.items():
        high, low = sorted((luminance(colour), paper), reverse=True)
        needed = {"ink": 4.5, "muted": 4.5, "link": 4.5, "good": 4.5, "bad": 4.5, "odd": 4.5}.get(name, 3.0)
        if name not in ("paper", "raised", "rule"):
            assert (high + 0.05) / (low + 0.05) >= needed, f"{name} {colour}"


# SVG


def test_drawings_in_one_page_do_not_share_ids(tmp_path: Path) -> None:
    ax = plots.latency_ecdf(latencies(names(2)), plots.new_axes(plots.CURVE_SIZE))
    svg = plots.save(ax, tmp_path / "figure")
    first, second = (plots.inline_svg(svg, prefix, "t") for prefix in ("one", "two"))
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text)) <= own
    assert "<style" not in first
    assert "<metadata" not in first


def test_the_same_table_gives_the_same_drawing(tmp_path: Path) -> None:
    drawn = {plots.save(plots.wall_split(split(["a"]), plots.new_axes(plots.bars_size(1))), tmp_path / f) for f in "ab"}
    assert len(drawn) == 1
