"""Grounding per task: means over episodes with intervals, as rows and as text.

The inferences of an episode look at one scene, so episodes are what is counted as independent: every one weighs the
same, with the mean over its inferences. Intervals of share, chance and their ratio are Student's t over the episodes'
means (the ratio of the two means is linearised: Cochran 1977, Sampling Techniques, 3rd edition, chapter 6); that of the
hit rate is Korn and Graubard's with episodes as clusters; where all episodes have the same rate, they count as single
points, so that all hits, or none, in a few episodes do not look sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

from vla_bench.stats.tasks import TaskMean, between_tasks, clustered_rate
from vla_bench.store.runs import KEY

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

COLUMNS = tuple(f"grounding_{name}" for name in ("share", "chance", "hit"))
TITLE = "attention within what is being manipulated, %"
HEADER = ("task", "share", "chance", "share / chance", "hits", "calls")


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float | None
    """None for a single episode, as is `high`."""
    high: float | None


@dataclass(frozen=True)
class GroundingRow:
    """One line of the table of grounding. Estimates are None where nothing was in view, ever."""

    task: str
    episodes: int
    """With at least one inference that has a value."""
    inferences: int
    """With a value."""
    without: int
    """Inferences with attention but nothing of the region in view: left out."""
    share: Estimate | None
    chance: Estimate | None
    ratio: Estimate | None
    """Mean share / mean chance."""
    hits: Estimate | None


@dataclass(frozen=True)
class GroundingDifference:
    """One policy's attention against another's, in the episodes that both played and have a value in."""

    task: str
    measure: Literal["share", "hit"]
    pairs: int
    mean_a: float
    mean_b: float
    difference: float
    """Of A's mean and B's."""
    low: float | None
    """Ends of its Student interval over the pairs, at confidence 1 - alpha; None for a single pair."""
    high: float | None


def grounding_differences(
    calls_a: pd.DataFrame, calls_b: pd.DataFrame, pairs: pd.DataFrame, alpha: float
) -> tuple[GroundingDifference, ...]:
    """Shares and hits of every task, then, of several, of all; empty where one of the two told no attention."""
    if not all(set(COLUMNS) <= set(calls) for calls in (calls_a, calls_b)):
        return ()
    a, b = (
        calls[calls["grounding_share"].notna()].groupby(list(KEY))[["grounding_share", "grounding_hit"]].mean()
        for calls in (calls_a, calls_b)
    )
    told = a.merge(b, left_index=True, right_index=True, suffixes=("_a", "_b")).reset_index()
    told = pairs[list(KEY)].merge(told, on=list(KEY))
    of_task = [(str(task), own) for task, own in told.groupby("task", sort=False)]
    parts = [*of_task, ("overall", told)] if len(of_task) > 1 else of_task
    measures: tuple[Literal["share", "hit"], ...] = ("share", "hit")
    return tuple(_difference(task, measure, own, alpha) for measure in measures for task, own in parts)


def _difference(task: str, measure: Literal["share", "hit"], told: pd.DataFrame, alpha: float) -> GroundingDifference:
    a, b = (told[f"grounding_{measure}_{side}"].to_numpy(float) for side in "ab")
    low, high = None, None
    if len(told) > 1:
        low, high = between_tasks([[one] for one in a - b], 1 - alpha, limits=(-1.0, 1.0)).interval
    return GroundingDifference(
        task, measure, len(told), float(a.mean()), float(b.mean()), float((a - b).mean()), low, high
    )


def grounding_rows(inferences: pd.DataFrame, tasks: Sequence[str]) -> tuple[GroundingRow, ...]:
    """Every task in that order, then, of several, all of them pooled; empty where no policy told its attention."""
    if not set(COLUMNS) <= set(inferences):
        return ()
    told = inferences[inferences["grounding_chance"].notna()]
    of_task = {task: told[told["task"] == task] for task in tasks}
    rows = [_row(task, own) for task, own in of_task.items() if len(own)]
    return (*rows, _row("overall", told)) if len(rows) > 1 else tuple(rows)


def grounding_text(row: GroundingRow) -> tuple[str, ...]:
    """The cells of `HEADER`, percentages, intervals in brackets."""
    without = f" (+{row.without})" if row.without else ""
    return (
        row.task,
        estimate_text(row.share, 100),
        "-" if row.chance is None else f"{100 * row.chance.mean:.2f}",
        estimate_text(row.ratio, 1),
        estimate_text(row.hits, 100),
        f"{row.inferences}{without}",
    )


def estimate_text(estimate: Estimate | None, scale: float) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{scale * estimate.mean:.2f}"
    return f"{scale * estimate.mean:.2f} ({scale * estimate.low:.2f}–{scale * estimate.high:.2f})"


def _row(task: str, told: pd.DataFrame) -> GroundingRow:
    known = told[told["grounding_share"].notna()]
    episodes = [own for _, own in known.groupby(list(KEY), sort=False)]
    share, chance, hits = ([own[column].to_numpy(float) for own in episodes] for column in COLUMNS)
    if not episodes:
        return GroundingRow(task, 0, 0, len(told), None, None, None, None)
    pairs = [(float(s.mean()), float(c.mean())) for s, c in zip(share, chance, strict=True)]
    return GroundingRow(
        task=task,
        episodes=len(episodes),
        inferences=len(known),
        without=len(told) - len(known),
        share=_mean([s for s, _ in pairs]),
        chance=_mean([c for _, c in pairs]),
        ratio=_ratio(pairs),
        hits=_hits(hits),
    )


def _hits(episodes: Sequence[NDArray[np.float64]]) -> Estimate:
    if len(episodes) == 1:
        return Estimate(float(episodes[0].mean()), None, None)
    rates = [[float(own.mean())] for own in episodes]
    return _estimate(clustered_rate(rates if rates.count(rates[0]) == len(rates) else episodes))


def _mean(values: Sequence[float]) -> Estimate:
    if len(values) == 1:
        return Estimate(values[0], None, None)
    return _estimate(between_tasks([[value] for value in values]))


def _ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Of the mean share to the mean chance."""
    below = sum(chance for _, chance in pairs) / len(pairs)
    ratio = sum(share for share, _ in pairs) / len(pairs) / below
    if len(pairs) == 1:
        return Estimate(ratio, None, None)
    rest = between_tasks([[(share - ratio * chance) / below] for share, chance in pairs], limits=(-inf, inf))
    return Estimate(ratio, max(0.0, ratio + rest.interval.low), ratio + rest.interval.high)


def _estimate(found: TaskMean) -> Estimate:
    return Estimate(found.mean, *found.interval)
