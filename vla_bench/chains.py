"""Episodes that are chains of instructions -> how many were done in a row, and how often each was done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_bench.stats.chains import exact_sign_flip, mean_interval, unpaired_interval, unpaired_permutation
from vla_bench.stats.rates import Interval, wilson
from vla_bench.stats.tasks import stratified_bootstrap

if TYPE_CHECKING:
    import pandas as pd

Lengths = NDArray[np.int64]
LEAST_FOR_BOOTSTRAP = 2


@dataclass(frozen=True)
class Share:
    """How many of those that could did."""

    name: str
    n: int
    done: int
    rate: float | None
    """done / n; None when n is 0."""
    low: float
    """Ends of the 95 % Wilson interval of the rate."""
    high: float


@dataclass(frozen=True)
class ChainSummary:
    """What CALVIN's papers print, with intervals."""

    chains: int
    """Judged ones."""
    links: int
    """Instructions per chain."""
    at_least: tuple[Share, ...]
    """Chains with at least 1, 2, ... instructions done."""
    mean_length: float | None
    """Instructions done in a row, on average; None when no chain has a verdict."""
    low: float
    """Ends of its 95 % interval, by `stats.chains.mean_interval`."""
    high: float
    bootstrap: tuple[float, float] | None
    """The percentile bootstrap's interval, as others print it; None below two chains."""
    if_broken_fail: float | None
    """The mean length if every chain without a verdict had done nothing, and if it had done everything."""
    if_broken_succeed: float | None
    subtasks: tuple[Share, ...]
    """Every instruction by name: how often it was attempted (its predecessors were done) and done."""


@dataclass(frozen=True)
class LengthComparison:
    """Mean lengths of A and B, on the same chains if `pairs` is not 0."""

    links: int
    pairs: int
    mean_a: float
    mean_b: float
    longer_a: int
    """Pairs in which A did more than B."""
    longer_b: int
    difference: float
    low: float
    """Ends of the difference's interval."""
    high: float
    p: float
    """Two-sided; exact sign-flip test of pairs, else a permutation test."""
    apart: tuple[int, ...] = ()
    """Length of A minus that of B, pair by pair."""


def are_chains(episodes: pd.DataFrame) -> bool:
    """Whether any of these episodes had several instructions."""
    return "subgoals" in episodes and any(len(names) > 1 for names in episodes["subgoals"])


def lengths(episodes: pd.DataFrame) -> Lengths:
    """(n,) instructions done, of the judged episodes."""
    return episodes.loc[episodes["success"].notna(), "subgoals_done"].to_numpy(np.int64)


def links_of(episodes: pd.DataFrame) -> int:
    """Instructions per chain: those of the longest, or as many as were done where a row does not name all; 0 where none
    names any."""
    named = max(map(len, episodes["subgoals"]), default=0)
    return max(named, int(episodes["subgoals_done"].max())) if named else 0


def chain_summary(episodes: pd.DataFrame, beside: int = 0) -> ChainSummary | None:
    """The summary of a table of episodes (columns as in episodes.jsonl); None when they are no chains.

    Its `links` are at least `beside`, those of what it is printed beside.
    """
    if not are_chains(episodes):
        return None
    links, done = max(links_of(episodes), beside), lengths(episodes)
    n, broken = len(done), len(episodes) - len(done)
    low, high = mean_interval(done, (0, links))
    several = len(done) >= LEAST_FOR_BOOTSTRAP
    everything = (float(done.sum()) + broken * links) / (n + broken)
    return ChainSummary(
        chains=n,
        links=links,
        at_least=tuple(share(f"at least {k}", n, int((done >= k).sum())) for k in range(1, links + 1)),
        mean_length=float(done.mean()) if n else None,
        low=low,
        high=high,
        bootstrap=tuple(stratified_bootstrap([done], np.random.default_rng(0))) if several else None,  # type: ignore[arg-type]
        if_broken_fail=float(done.sum()) / (n + broken),
        if_broken_succeed=everything,
        subtasks=subtasks(episodes),
    )


def subtasks(episodes: pd.DataFrame) -> tuple[Share, ...]:
    """Every instruction that was attempted in a judged chain, in alphabetical order."""
    judged = episodes[episodes["success"].notna()]
    attempted, done = Counter[str](), Counter[str]()
    for names, count in zip(judged["subgoals"], judged["subgoals_done"], strict=True):
        attempted.update(names[: count + 1])
        done.update(names[:count])
    return tuple(share(name, attempted[name], done[name]) for name in sorted(attempted))


def share(name: str, n: int, done: int) -> Share:
    """The share with its interval."""
    return Share(name, n, done, done / n if n else None, *wilson(done, n))


def compare_pairs(a: Lengths, b: Lengths, links: int, confidence: float = 0.95) -> LengthComparison:
    """A against B on the same chains, position by position; there must be some."""
    apart = a - b
    interval = mean_interval(apart, (-links, links), confidence)
    return LengthComparison(
        links,
        len(apart),
        float(a.mean()),
        float(b.mean()),
        int((apart > 0).sum()),
        int((apart < 0).sum()),
        float(apart.mean()),
        *interval,
        p=exact_sign_flip(apart),
        apart=tuple(apart.tolist()),
    )


def compare_apart(a: Lengths, b: Lengths, links: int, confidence: float = 0.95) -> LengthComparison:
    """A against B on different chains; both must have some."""
    interval = unpaired_interval(a, b, (0, links), confidence)
    p = unpaired_permutation(a, b, np.random.default_rng(0))
    means = float(a.mean()), float(b.mean())
    return LengthComparison(links, 0, *means, 0, 0, means[0] - means[1], *interval, p=p)


def broken_sentence(summary: ChainSummary, broken: int) -> str:
    """What the chains without a verdict could have made of the mean length."""
    worst, best = (_number(value) for value in (summary.if_broken_fail, summary.if_broken_succeed))
    return (
        f"{broken} broken, so without a verdict: the average length is {worst} if all of them fail at once, {best} if "
        "all succeed."
    )


def length_text(summary: ChainSummary) -> str:
    """`3.06 of 5`."""
    return f"{_number(summary.mean_length)} of {summary.links}"


def span_text(low: float, high: float) -> str:
    """Both ends, two digits after the point."""
    return f"{low:.2f} – {high:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def interval_of(summary: ChainSummary) -> Interval:
    """Of the mean length."""
    return Interval(summary.low, summary.high)
