"""Intervals and sample sizes: numbers in, numbers out. Nothing here touches disk or draws at random."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate; (0, 1) when nothing was tried. Not symmetric: never print it as +-.

    Wilson 1927, JASA 22:209; equal to scipy's `binomtest(successes, n).proportion_ci(confidence, "wilson")`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"Successes must be between 0 and the number of trials, got {successes} of {n}.")
    z = NormalDist().inv_cdf((1 + _fraction(confidence)) / 2)
    if n == 0:
        return Interval(0.0, 1.0)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(centre - half if successes > 0 else 0.0, centre + half if successes < n else 1.0)


def bounds(successes: int, failures: int, broken: int) -> Interval:
    """The success rate if all broken episodes had failed, and if all had succeeded; (0, 1) when there are none."""
    if min(successes, failures, broken) < 0:
        raise ValueError(f"Counts must not be negative, got {successes}, {failures} and {broken}.")
    n = successes + failures + broken
    return Interval(successes / n, (successes + broken) / n) if n else Interval(0.0, 1.0)


def samples_needed(percentile: float, confidence: float = 0.99, over_limit: int = 0) -> int:
    """How many samples, `over_limit` of them above a limit, show that the percentile (0..100) is below that limit.

    MLPerf's early-stopping rule (mlcommons/inference_policies, ac93e89): the smallest n for which so few over-limit
    samples have a chance of at most 1 - confidence. That is a quantile of the negative binomial distribution, which
    counts the samples below the limit before the (over_limit + 1)-th above it.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"A percentile must be above 0 and below 100, got {percentile}.")
    if over_limit < 0:
        raise ValueError(f"The number of samples above the limit must not be negative, got {over_limit}.")
    from scipy.stats import nbinom

    over = over_limit + 1
    return over + int(nbinom.ppf(_fraction(confidence), over, 1 - percentile / 100))


def percentile(values: Sequence[float] | NDArray[np.floating[Any]], p: float) -> float | None:
    """The p-th percentile (0..100), linearly interpolated as numpy and pandas do; None when samples are too few.

    The median describes the samples and needs one; any other is read as a promise and needs `samples_needed(p)`.
    """
    needed = 1 if p == 50 else samples_needed(p)
    return float(np.percentile(values, p)) if len(values) >= needed else None


def _fraction(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"Confidence must be above 0 and below 1, got {confidence}.")
    return confidence
