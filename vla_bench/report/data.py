"""A section -> the tables that its figures and pages show; what is computed is computed here or further down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_bench import tables
from vla_bench.chains import Share, chain_summary
from vla_bench.grounding.table import GroundingRow
from vla_bench.report.sections import Entrant, Section
from vla_bench.stats.rates import wilson
from vla_bench.stats.tasks import between_tasks
from vla_bench.store.runs import KEY
from vla_bench.tables import LatencySummary

if TYPE_CHECKING:
    import pandas as pd

POINTS = 200
"""Most points of a curve: more cannot be seen and make the page heavy."""
REST = "not timed apart"
STRETCHES = 20
"""Of the longest episode, in which attention is averaged."""


def entrants_in(section: Section, labels: Sequence[str]) -> list[Entrant]:
    """The section's entrants in the order of those labels."""
    by_label = {entrant.label: entrant for entrant in section.entrants}
    return [by_label[label] for label in labels if label in by_label]


def task_rates(entrants: Sequence[Entrant], tasks: Sequence[str]) -> pd.DataFrame:
    """Columns of `tables.summarize` with `policy` and `overall`; every task, then, of several, all of them pooled.

    Of chains: every instruction, then, set apart, the chains with at least 1, 2, ... of them done.
    """
    import pandas as pd

    frames = []
    for entrant in entrants:
        if chains := chain_summary(entrant.episodes):
            frames.append(_share_rates(chains.subtasks).assign(policy=entrant.label, overall=False))
            frames.append(_share_rates(chains.at_least).assign(policy=entrant.label, overall=True))
            continue
        by_task = tables.summarize(entrant.episodes).set_index("task")
        own = by_task.loc[[task for task in tasks if task in by_task.index]].reset_index()
        frames.append(own.assign(policy=entrant.label, overall=False))
        if len(tasks) > 1:
            pooled = tables.overall(entrant.episodes)
            frames.append(pooled.assign(task=f"all {len(tasks)} tasks", policy=entrant.label, overall=True))
    rates = pd.concat(frames, ignore_index=True)
    rank = {task: n for n, task in enumerate(tasks)}
    order = rates["task"].map(lambda task: rank.get(task, len(rank))) + rates["overall"]
    return _by_policy(rates.iloc[order.argsort(kind="stable")].reset_index(drop=True), entrants)


def _share_rates(shares: Sequence[Share]) -> pd.DataFrame:
    """Columns of `tables.summarize`; broken chains and steps belong to no instruction."""
    import pandas as pd

    rows = [(own.name, own.n, own.done, own.rate, own.low, own.high, None, 0) for own in shares]
    columns = ["task", "episodes", "successes", "rate", "low", "high", "mean_steps", "broken"]
    return pd.DataFrame(rows, columns=columns).astype({"rate": "float64", "mean_steps": "float64"})


def latency_curves(entrants: Sequence[Entrant], control_hz: float) -> pd.DataFrame:
    """Columns policy, latency_ms, share, mark: the distribution without cold calls, and the percentiles it allows."""
    rows = list[tuple[str, float, float, str]]()
    for entrant in entrants:
        warm = entrant.inferences.loc[~entrant.inferences["cold"].astype(bool), "latency_ms"].to_numpy(float)
        if not len(warm):
            continue
        shares = np.linspace(0, 1, POINTS + 1) if len(warm) > POINTS else np.arange(len(warm) + 1) / len(warm)
        times = np.quantile(warm, shares, method="inverted_cdf")
        rows += [(entrant.label, float(ms), float(share), "") for ms, share in zip(times, shares, strict=True)]
        found = tables.latency(entrant.inferences, entrant.episodes, control_hz).inference_ms
        rows += [(entrant.label, ms, float(mark[1:]) / 100, mark) for mark, ms in found.items() if ms is not None]
    return _frame(rows, ("policy", "latency_ms", "share", "mark"), entrants)


def stage_means(entrants: Sequence[Entrant], control_hz: float) -> pd.DataFrame:
    """Columns policy, stage, ms: mean time per stage of a call, cold ones left out, and the rest of the mean call."""
    rows = list[tuple[str, str, float]]()
    for entrant in entrants:
        warm = entrant.inferences.loc[~entrant.inferences["cold"].astype(bool), "latency_ms"]
        stages = tables.latency(entrant.inferences, entrant.episodes, control_hz).stages_ms
        rest = float(warm.mean()) - sum(stages.values()) if len(warm) else 0.0
        rows += [(entrant.label, stage, ms) for stage, ms in stages.items()]
        rows += [(entrant.label, REST, rest)] if rest > 0 else []
    rows.sort(key=lambda row: row[1] == REST)
    return _frame(rows, ("policy", "stage", "ms"), entrants)


def solved_curves(entrants: Sequence[Entrant]) -> pd.DataFrame:
    """Columns policy, step, share, low, high: judged episodes solved within so many steps, with Wilson intervals."""
    rows = list[tuple[str, int, float, float, float]]()
    last = max((int(entrant.episodes["steps"].max()) for entrant in entrants), default=0)
    for entrant in entrants:
        judged = entrant.episodes[entrant.episodes["success"].notna()]
        if not len(judged):
            continue
        solved = np.sort(judged.loc[judged["success"].astype(bool), "steps"].to_numpy(int))
        for step in _grid(solved, last):
            k, n = int(np.searchsorted(solved, step, side="right")), len(judged)
            rows.append((entrant.label, step, k / n, *wilson(k, n)))
    return _frame(rows, ("policy", "step", "share", "low", "high"), entrants)


def grounding_rows(entrants: Sequence[Entrant]) -> list[tuple[str, GroundingRow]]:
    """(label, row) of every task and of all, for entrants that told their attention."""
    found = [(entrant.label, tables.grounding(entrant.inferences, entrant.episodes)) for entrant in entrants]
    return [(label, row) for label, rows in found for row in rows]


def grounding_curves(entrants: Sequence[Entrant]) -> pd.DataFrame:
    """Columns policy, step, share, chance, low, high: attention within the region in stretches of the episode.

    Means over episodes with Student's t interval, empty below two episodes; `step` is the middle of the stretch.
    """
    rows = list[tuple[str, float, float, float, float, float]]()
    told = [(entrant.label, _grounded(entrant.inferences)) for entrant in entrants]
    last = max((int(calls["step"].max()) for _, calls in told if len(calls)), default=0)
    width = (last + 1) / STRETCHES
    for label, calls in told:
        for place, own in calls.groupby((calls["step"] // width).astype(int)):
            means = own.groupby(list(KEY), sort=False)[["grounding_share", "grounding_chance"]].mean()
            share, chance = means.mean()
            low = high = np.nan
            if len(means) > 1:
                low, high = between_tasks([[value] for value in means["grounding_share"]]).interval
            rows.append((label, (int(str(place)) + 0.5) * width, share, chance, low, high))
    return _frame(rows, ("policy", "step", "share", "chance", "low", "high"), entrants)


def _grounded(inferences: pd.DataFrame) -> pd.DataFrame:
    """The inferences with a share, and `step`, the control step of the episode at which each was made."""
    if "grounding_share" not in inferences:
        return inferences[:0].assign(step=0)
    ordered = inferences.sort_values("inference", kind="stable", ignore_index=True)
    before = ordered.groupby(list(KEY), sort=False)["executed"].cumsum() - ordered["executed"]
    return ordered.assign(step=before)[ordered["grounding_share"].notna()]


def wall_shares(entrants: Sequence[Entrant]) -> pd.DataFrame:
    """Columns policy, part, share, seconds."""
    rows = list[tuple[str, str, float, float]]()
    for entrant in entrants:
        split = tables.wall_split(entrant.episodes)
        rows += [(entrant.label, part, split.shares[part], split.seconds[part]) for part in split.shares]
    return _frame(rows, ("policy", "part", "share", "seconds"), entrants)


def latency_rows(entrants: Sequence[Entrant], control_hz: float) -> list[tuple[str, LatencySummary]]:
    """(label, latency) of every entrant."""
    return [(entrant.label, tables.latency(entrant.inferences, entrant.episodes, control_hz)) for entrant in entrants]


def _grid(solved: np.ndarray[tuple[int], np.dtype[np.int_]], last: int) -> list[int]:
    """Steps at which the curve changes, at most POINTS of them, with both ends."""
    steps = np.unique(solved)
    if len(steps) > POINTS:
        steps = steps[np.linspace(0, len(steps) - 1, POINTS).round().astype(int)]
    return sorted({0, *map(int, steps), last})


def _frame(rows: Sequence[tuple[object, ...]], columns: Sequence[str], entrants: Sequence[Entrant]) -> pd.DataFrame:
    import pandas as pd

    return _by_policy(pd.DataFrame(rows, columns=list(columns)), entrants)


def _by_policy(frame: pd.DataFrame, entrants: Sequence[Entrant]) -> pd.DataFrame:
    """With `policy` as a category: figures take order and colours from it, also where a policy has no row."""
    import pandas as pd

    labels = [entrant.label for entrant in entrants]
    return frame.assign(policy=pd.Categorical(frame["policy"], categories=labels))
