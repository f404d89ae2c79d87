"""Figures: a table and an `ax` go in, the `ax` comes out. Nothing is computed here; intervals and shares are columns.

Policies and tasks are drawn in the order in which the table first names them. A `policy` column that is a pandas
category fixes the order of policies, and with it their colours and markers unless `looks` gives these, so that several
figures agree. Colours of ink, paper and policies are unique: `inline_svg` exchanges them for CSS variables, and a page
shows the same drawing on a dark ground.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vla_bench.text import for_html, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1c2128", "#5b6570", "#dfe3e8", "#fefefe"
SERIES = ("#0b6fb8", "#d4570a", "#12916b", "#b8437f", "#b07c00", "#6a51a3", "#2a93bb", "#7d7468")
"""One per policy: after Okabe and Ito (2008), for all kinds of colour vision; darker where white would eat them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PARTS = ("#3f689f", "#b97a1c", "#2f8378", "#b04a62", "#7a6bb3", "#66863a", "#94694a", "#7b858f")
"""Stages and shares of time: not to be taken for policies."""
ON_DARK_CELL, ON_LIGHT_CELL = "#fcfcfc", "#10161e"
VARIABLES = (
    {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}
    | {colour: f"--series-{n}" for n, colour in enumerate(SERIES)}
    | {colour: f"--part-{n}" for n, colour in enumerate(PARTS)}
)
"""Colour -> the CSS variable that stands for it inline."""
WIDTH = 6.6  # inches: both columns of a paper
HALF_WIDTH = 4.4
MOST_BANDS = 3  # more would only cover each other
NAME_WIDTH = 46  # characters of a task's name
DPI = 180


Looks = Mapping[str, int]
"""Policy -> number of its colour and marker."""


class Size(NamedTuple):
    """Inches."""

    width: float
    height: float


def new_axes(size: Size) -> Axes:
    """Empty axes of their own figure, in the style of all figures."""
    with _no_backend():
        import matplotlib as mpl
        from matplotlib.figure import Figure

    with mpl.rc_context(_style()):
        return Figure(figsize=size, layout="constrained", facecolor=PAPER).add_subplot()


@contextmanager
def _no_backend() -> Iterator[None]:
    """Matplotlib is imported inside: files are drawn by Agg, and a notebook's MPLBACKEND may name a module that is not
    installed here, at which the import fails."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def save(ax: Axes, stem: Path) -> str:
    """The figure as SVG text, also written to `stem`.svg and `stem`.png."""
    import matplotlib as mpl

    figure = ax.get_figure(root=True)
    assert figure is not None
    with mpl.rc_context(_style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the PNG, right in the SVG
        text = io.StringIO()
        figure.savefig(stem.with_suffix(".png"), dpi=_dpi(figure))
        figure.set_layout_engine("none")  # as laid out for the PNG: the second time takes as long as the first
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = _rounded(text.getvalue())
    stem.with_suffix(".svg").write_text(svg, encoding="utf-8")
    return svg


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """The drawing for use inside a page: colours are CSS variables, the font is the page's, ids begin with `prefix`."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = _own_ids(body, prefix)
    width = re.search(r'width="([\d.]+)pt"', body)
    label = f'role="img" aria-label="{for_html(title)}" style="--natural: {width.group(1) if width else 0}pt"'
    return re.sub(
        r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', lambda m: f"<svg {label} {m.group(1)}", body, count=1
    )


# --- figures ---


def forest(rates: pd.DataFrame, ax: Axes, looks: Looks | None = None) -> Axes:
    """Success rates with intervals per task. Columns: policy, task, rate, low, high, overall (rows to set apart, last).

    `rate` is NaN where nothing was judged: then the interval is drawn without its point.
    """
    tasks, places = _order(rates, "task"), _places(rates, looks)
    row = {task: n for n, task in enumerate(tasks)}
    overall = set(rates.loc[rates["overall"], "task"])
    spread = min(0.78, 0.19 * len(places))
    handles = list[Any]()
    for level, (policy, n) in enumerate(places.items()):
        own = rates[rates["policy"] == policy]
        offset = spread * ((level + 0.5) / len(places) - 0.5)
        y = [row[task] + offset for task in own["task"]]
        colour, marker = _look(n)
        ax.hlines(y, 100 * own["low"], 100 * own["high"], color=colour, linewidth=1.3)
        handles += ax.plot(100 * own["rate"], y, marker, color=colour, markersize=4.2, markeredgewidth=0)
    for band in range(0, len(tasks), 2):
        ax.axhspan(band - 0.5, band + 0.5, color=RULE, alpha=0.35, linewidth=0, zorder=0)
    if overall and len(overall) < len(tasks):
        ax.axhline(len(tasks) - len(overall) - 0.5, color=MUTED, linewidth=0.8)
    _task_ticks(ax, tasks)
    _percent_axis(ax, "success rate")
    return _legend(ax, handles, list(places), room=52)


def forest_size(tasks: int, policies: int) -> Size:
    """Room for every interval; the more there are, the closer they come."""
    pitch = 0.11 if tasks * policies <= 60 else 0.085 if tasks * policies <= 200 else 0.065
    return Size(WIDTH, 0.8 + tasks * max(0.21, pitch * policies + 0.06))


def heatmap(rates: pd.DataFrame, ax: Axes) -> Axes:
    """Success rates as a table of colours, tasks by policies. Columns: policy, task, rate (NaN leaves a dash)."""
    tasks, policies = _order(rates, "task"), list(_places(rates))
    table = (
        rates.astype({"policy": "str"})
        .pivot(index="task", columns="policy", values="rate")
        .reindex(index=tasks, columns=policies)
    )
    cells = table.to_numpy(float)
    ax.pcolormesh(cells, cmap="cividis", vmin=0, vmax=1, edgecolor=PAPER, linewidth=1.2)
    size = 7.5 if len(tasks) <= 40 else 6.5
    for (y, x), rate in _cells(cells):
        known = not math.isnan(rate)
        colour = MUTED if not known else ON_DARK_CELL if rate < 0.55 else ON_LIGHT_CELL
        text = f"{100 * rate:.0f}" if known else "–"
        ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=colour, fontsize=size)
    ax.set_xticks([n + 0.5 for n in range(len(policies))], _names(policies, 16))
    ax.set_yticks([n + 0.5 for n in range(len(tasks))], _names(tasks, NAME_WIDTH))
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    if len(policies) > 5:
        ax.tick_params(axis="x", rotation=30)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("left")
            label.set_rotation_mode("anchor")
    ax.set_xlabel("success rate, %")
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    return ax


def heatmap_size(tasks: int, policies: int) -> Size:
    """Cells of one height; few policies make a narrow table."""
    return Size(min(WIDTH, 3.6 + 0.75 * policies), 0.8 + 0.22 * tasks)


def latency_ecdf(latencies: pd.DataFrame, ax: Axes, looks: Looks | None = None) -> Axes:
    """Share of policy calls answered in a time. Columns: policy, latency_ms, share, mark ("" or "p95" and so on)."""
    places, handles = _places(latencies, looks), list[Any]()
    for policy, n in places.items():
        own = latencies[latencies["policy"] == policy].sort_values(["latency_ms", "share"])
        line, marks = own[own["mark"] == ""], own[own["mark"] != ""]
        colour, marker = _look(n)
        ax.plot(line["latency_ms"], 100 * line["share"], color=colour, linewidth=1.6, drawstyle="steps-post")
        handles += ax.plot([], [], marker, color=colour, linestyle="-", markersize=5)
        ax.plot(
            *(marks["latency_ms"], 100 * marks["share"]),
            marker,
            color=colour,
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
        )
    for mark, share in dict(latencies.loc[latencies["mark"] != "", ["mark", "share"]].to_numpy().tolist()).items():
        ax.axhline(100 * share, color=MUTED, linewidth=0.6, linestyle=(0, (2, 3)), zorder=1)
        level = "bottom" if share > 0.97 else "top" if share > 0.9 else "center"  # p95 and p99 are close
        ax.text(1.008, 100 * share, mark, transform=ax.get_yaxis_transform(), va=level, color=MUTED, fontsize=7)
    if len(latencies) and latencies["latency_ms"].min() > 0:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(_plain_number)
        ax.xaxis.set_minor_formatter(_sparse_number(latencies["latency_ms"].min(), latencies["latency_ms"].max()))
    ax.set_ylim(0, 101)
    ax.set_xlabel("time per policy call, ms")
    ax.set_ylabel("calls answered, %")
    return _legend(ax, handles, list(places), room=54)


def stage_bars(stages: pd.DataFrame, ax: Axes) -> Axes:
    """Mean milliseconds of a policy call, stage after stage. Columns: policy, stage, ms."""
    _stacked(stages.rename(columns={"stage": "part", "ms": "value"}), ax, "{:.3g}")
    ax.set_xlabel("mean time per policy call, ms")
    return ax


def wall_split(split: pd.DataFrame, ax: Axes) -> Axes:
    """Where the wall time of episodes went. Columns: policy, part, share."""
    _stacked(split.assign(value=100 * split["share"]), ax, "{:.0f} %")
    ax.set_xlim(0, 100)
    ax.set_xlabel("share of wall time, %")
    return ax


def bars_size(policies: int) -> Size:
    """One bar per policy."""
    return Size(HALF_WIDTH, 0.95 + 0.3 * policies)


def success_over_steps(solved: pd.DataFrame, ax: Axes, looks: Looks | None = None) -> Axes:
    """Share of episodes solved within so many control steps. Columns: policy, step, share, low, high."""
    places, handles = _places(solved, looks), list[Any]()
    for policy, n in places.items():
        own, (colour, _) = solved[solved["policy"] == policy], _look(n)
        handles += ax.step(own["step"], 100 * own["share"], where="post", color=colour, linewidth=1.6)
        if len(places) <= MOST_BANDS:
            low, high = 100 * own["low"], 100 * own["high"]
            ax.fill_between(own["step"], low, high, step="post", color=colour, alpha=0.13, linewidth=0)
    ax.set_xlim(left=0)
    ax.set_ylim(0, 101)
    ax.set_xlabel("control steps")
    ax.set_ylabel("episodes solved, %")
    return _legend(ax, handles, list(places), room=54)


def grounding_over_steps(told: pd.DataFrame, ax: Axes, looks: Looks | None = None) -> Axes:
    """Attention within what is manipulated, chance dotted. Columns: policy, step, share, chance, low, high."""
    places, handles = _places(told, looks), list[Any]()
    for policy, n in places.items():
        own, (colour, marker) = told[told["policy"] == policy], _look(n)
        handles += ax.plot(own["step"], 100 * own["share"], f"{marker}-", color=colour, linewidth=1.6, markersize=3.2)
        ax.plot(own["step"], 100 * own["chance"], color=colour, linewidth=1.0, linestyle=":")
        if len(places) <= MOST_BANDS:
            low, high = 100 * own["low"], 100 * own["high"]
            ax.fill_between(own["step"], low, high, color=colour, alpha=0.13, linewidth=0)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("control steps")
    ax.set_ylabel("attention within it, %")
    return _legend(ax, handles, list(places), room=54)


CURVE_SIZE = Size(HALF_WIDTH, 2.9)


# --- parts ---


def _stacked(parts: pd.DataFrame, ax: Axes, form: str) -> None:
    """Horizontal bars of the columns policy, part, value; values are written where they have room."""
    policies, names = list(_places(parts)), _order(parts, "part")
    widest = max([parts.loc[parts["policy"] == policy, "value"].sum() for policy in policies], default=0.0)
    ends, handles = dict.fromkeys(policies, 0.0), list[Any]()
    for n, name in enumerate(names):
        own = parts[parts["part"] == name]
        lefts = [ends[policy] for policy in own["policy"]]
        rows = [policies.index(policy) for policy in own["policy"]]
        colour = PARTS[n % len(PARTS)]
        bars = ax.barh(rows, own["value"], left=lefts, height=0.62, color=colour, edgecolor=PAPER, linewidth=0.8)
        handles.append(bars)
        for policy, row, left, value in zip(own["policy"], rows, lefts, own["value"], strict=True):
            ends[policy] = left + value
            if value > 0.07 * widest:
                middle = left + value / 2
                text = form.format(value)
                ax.text(middle, row, text, ha="center", va="center", color=ON_DARK_CELL, fontsize=7.5)
    ax.set_yticks(range(len(policies)), _names(policies, 22))
    ax.set_ylim(len(policies) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    _legend(ax, handles, names, room=46)


def _order(table: pd.DataFrame, column: str) -> list[str]:
    return [str(name) for name in dict.fromkeys(table[column])]


def _places(table: pd.DataFrame, looks: Looks | None = None) -> dict[str, int]:
    """Policy -> number of its colour and marker, for the policies that have rows."""
    import pandas as pd

    order = present = _order(table, "policy")
    if isinstance(table["policy"].dtype, pd.CategoricalDtype):
        order = list(map(str, table["policy"].cat.categories))
    numbers = looks or {policy: n for n, policy in enumerate(order)}
    return {policy: numbers[policy] for policy in order if policy in present}


def _look(number: int) -> tuple[str, str]:
    """Colour and marker; the marker moves on where the colours begin again."""
    return SERIES[number % len(SERIES)], MARKERS[(number + number // len(SERIES)) % len(MARKERS)]


def _names(names: Sequence[str], width: int) -> list[str]:
    """Short names in letters that can be seen; a dollar is no beginning of mathematics."""
    return [name.replace("$", r"\$") for name in shorten(names, width)]


def _cells(values: object) -> list[tuple[tuple[int, int], float]]:
    import numpy as np

    return [((y, x), float(value)) for (y, x), value in np.ndenumerate(np.asarray(values))]


def _task_ticks(ax: Axes, tasks: list[str]) -> None:
    ax.set_yticks(range(len(tasks)), _names(tasks, NAME_WIDTH))
    ax.set_ylim(len(tasks) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)


def _percent_axis(ax: Axes, label: str) -> None:
    ax.set_xlim(-1.5, 101.5)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel(f"{label}, %")


def _legend(ax: Axes, handles: Sequence[Any], names: Sequence[str], room: int) -> Axes:
    """Above the axes, to the left, in as many columns as fit into `room` characters."""
    if names:
        short = _names(names, 40)
        columns = max(1, min(len(names), room // (max(map(len, short)) + 5)))
        rows = -(-len(names) // columns)
        columns = -(-len(names) // rows)
        by_rows = [n for column in range(columns) for n in range(column, len(names), columns)]
        ax.legend(
            *([handles[n] for n in by_rows], [short[n] for n in by_rows]),
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=columns,
            fontsize=8,
            labelcolor=INK,
            frameon=False,
            handlelength=1.5,
            columnspacing=1.4,
            handletextpad=0.5,
            borderaxespad=0.2,
        )
    return ax


def _plain_number(value: float, _: object = None) -> str:
    return f"{value:g}"


def _sparse_number(low: float, high: float) -> Callable[[float, object], str]:
    """Labels for minor ticks of a log axis: more of them the fewer decades there are."""
    if high / low > 100:
        wanted: tuple[int, ...] = ()
    elif high / low > 12:
        wanted = (2, 5)
    else:
        wanted = (2, 3, 4, 5, 6, 7, 8, 9) if high / low < 4 else (2, 3, 5, 7)

    def label(value: float, _: object = None) -> str:
        digit = round(float(f"{value:.6e}".split("e")[0]))
        return _plain_number(value) if digit in wanted else ""

    return label


def _style() -> dict[Any, Any]:
    return {
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 8.5,
        "axes.labelsize": 8.5,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.facecolor": "none",
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "xtick.major.width": 0.7,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "svg.fonttype": "none",
        "svg.hashsalt": "vla-bench",
    }


def _dpi(figure: Figure) -> float:
    """Fewer dots for pictures so tall that they would not open."""
    return min(DPI, 16_000 / figure.get_figheight())


# --- SVG ---


def _rounded(svg: str) -> str:
    """Coordinates to a hundredth of a point."""
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)


def _own_ids(svg: str, prefix: str) -> str:
    """Ids that are referred to get the prefix; the others go."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m.group(1)}"' if m.group(1) in used else "", svg)
    return re.sub(r"(url\(#|href=\"#)", rf"\1{prefix}-", svg)
