"""One success rate: intervals, bounds, percentiles. Numbers in, numbers out; nothing here draws at random.

Two arms are compared in `paired` (same episodes) and `unpaired`, at any time in `anytime`, over tasks
in `tasks`, among many policies in `many`; `planning` says beforehand how many episodes that takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Alternative = Literal["two-sided", "less", "greater"]
"""What a test looks for: any difference, A worse than B, or A better than B."""


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate; (0, 1) when nothing was tried. Not symmetric: never print it as +-.

    Wilson 1927, JASA 22:209; equal to scipy's `binomtest(successes, n).proportion_ci(confidence, "wilson")`.
    """
    counted(successes, n)
    z = normal_quantile(confidence)
    if n == 0:
        return Interval(0.0, 1.0)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(centre - half if successes > 0 else 0.0, centre + half if successes < n else 1.0)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a success rate: covers what it promises, mostly more; (0, 1) when nothing was tried.

    Clopper & Pearson 1934, Biometrika 26:404, through quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k). Each end
    alone holds with 1 - (1 - confidence) / 2, also at 0 and n successes: ask for 0.9 to get a 95 % bound on one side.
    """
    counted(successes, n)
    tail = (1 - within_0_1("Confidence", confidence)) / 2
    from scipy.special import betainccinv, betaincinv  # as scipy.stats.beta has them, which takes a second to import

    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    return Interval(low, float(betainccinv(successes + 1, n - successes, tail)) if successes < n else 1.0)


def jeffreys(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The equal-tailed posterior interval of a success rate, prior Beta(1/2, 1/2); (0, 1) when nothing was tried.

    Brown, Cai & DasGupta 2001, Statistical Science 16:101, without their modification at the edges: the interval of
    0/n does not hold 0 itself, nor that of n/n 1.
    """
    return _posterior(successes, n, confidence, prior=0.5)


def uniform_posterior(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The equal-tailed posterior interval of a success rate, prior Beta(1, 1); (0, 1) when nothing was tried.

    What RoboLab and others print as a credible interval. It does not hold 0 for 0/n, nor 1 for n/n.
    """
    return _posterior(successes, n, confidence, prior=1.0)


def bounds(successes: int, failures: int, broken: int) -> Interval:
    """The success rate if all broken episodes had failed, and if all had succeeded; (0, 1) when there are none."""
    if min(successes, failures, broken) < 0:
        raise ValueError(f"Counts must not be negative, got {successes}, {failures} and {broken}.")
    n = successes + failures + broken
    return Interval(successes / n, (successes + broken) / n) if n else Interval(0.0, 1.0)


def samples_needed(percentile: float, confidence: float = 0.99, over_limit: int = 0) -> int:
    """How many samples, `over_limit` of them above a limit, show that the percentile (0..100) is below that limit.

    MLPerf's early-stopping rule (mlcommons/inference_policies, ac93e89): the smallest n for which so few over-limit
    samples have a chance of at most 1 - confidence.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"A percentile must be above 0 and below 100, got {percentile}.")
    if over_limit < 0:
        raise ValueError(f"The number of samples above the limit must not be negative, got {over_limit}.")
    accepted, above = 1 - within_0_1("Confidence", confidence), 1 - percentile / 100
    n, chance = over_limit, 1.0
    while chance > accepted:  # one sample more makes it one too many where it is above and there were `over_limit`
        chance -= above * _binomial(over_limit, n, above)
        n += 1
    return n


def percentile(values: Sequence[float] | NDArray[np.floating[Any]], p: float) -> float | None:
    """The p-th percentile (0..100), linearly interpolated as numpy and pandas do; None when samples are too few.

    The median describes the samples and needs one; any other is read as a promise and needs `samples_needed(p)`.
    """
    needed = 1 if p == 50 else samples_needed(p)
    return float(np.percentile(values, p)) if len(values) >= needed else None


def counted(successes: int, n: int) -> None:
    """Raises ValueError unless 0 <= successes <= n."""
    if not 0 <= successes <= n:
        raise ValueError(f"Successes must be between 0 and the number of trials, got {successes} of {n}.")


def known(alternative: Alternative) -> Alternative:
    """That alternative. Raises ValueError for any other word."""
    if alternative not in get_args(Alternative):
        raise ValueError(f'The alternative must be "two-sided", "less" or "greater", got {alternative!r}.')
    return alternative


def within_0_1(name: str, value: float) -> float:
    """The value. Raises ValueError unless 0 < value < 1; `name` opens the sentence."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value}.")
    return value


def normal_quantile(confidence: float) -> float:
    """How many standard errors reach that far to both sides: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + within_0_1("Confidence", confidence)) / 2)


def _binomial(k: int, n: int, p: float) -> float:
    """The chance of k out of n."""
    ways = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return exp(ways + k * log(p) + (n - k) * log1p(-p))


def _posterior(successes: int, n: int, confidence: float, prior: float) -> Interval:
    counted(successes, n)
    tail = (1 - within_0_1("Confidence", confidence)) / 2
    if n == 0:
        return Interval(0.0, 1.0)
    from scipy.special import betainccinv, betaincinv

    a, b = successes + prior, n - successes + prior
    return Interval(float(betaincinv(a, b, tail)), float(betainccinv(a, b, tail)))
