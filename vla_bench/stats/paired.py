"""Two policies on the same episodes. For success or failure only the discordant pairs speak: A alone, or B alone."""

from __future__ import annotations

from math import comb, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vla_bench.stats.rates import Alternative, Interval, known, normal_quantile


def mcnemar(a_only: int, b_only: int, alternative: Alternative = "two-sided") -> float:
    """p-value of McNemar's exact test that A-alone and B-alone are equally likely; 1 without a discordant pair.

    McNemar 1947, Psychometrika 12:153: Binomial(a_only + b_only, 1/2). "greater" means that A is better.
    """
    discordant(a_only, b_only)
    known(alternative)
    if a_only + b_only == 0:
        return 1.0
    if alternative == "two-sided":
        return min(2 * _half(min(a_only, b_only), a_only + b_only), 1.0)
    return _half(a_only if alternative == "less" else b_only, a_only + b_only)


def mcnemar_midp(a_only: int, b_only: int, alternative: Alternative = "two-sided") -> float:
    """p-value of McNemar's mid-p test: what was seen counts half, so it may exceed its level by a hair.

    Fagerland, Lydersen & Laake 2013, BMC Medical Research Methodology 13:91, who recommend it over the exact test.
    """
    discordant(a_only, b_only)
    known(alternative)
    pairs = a_only + b_only
    seen = comb(pairs, a_only) / (1 << pairs)
    if alternative == "two-sided":
        return min(2 * _half(min(a_only, b_only), pairs) - seen, 1.0)
    return _half(a_only if alternative == "less" else b_only, pairs) - seen / 2


def paired_difference(a_only: int, b_only: int, pairs: int, confidence: float = 0.95) -> Interval:
    """Interval of the rate of A minus the rate of B over the same episodes; (-1, 1) when there are none.

    Tango 1998, Statistics in Medicine 17:891: every difference that the score test does not reject. It may hold 0 where
    `mcnemar` rejects, and the other way round, when the p-value is near 1 - confidence.
    """
    discordant(a_only, b_only, pairs)
    z = normal_quantile(confidence)
    if pairs == 0:
        return Interval(-1.0, 1.0)
    return Interval(_tango_low(a_only, b_only, pairs, z), -_tango_low(b_only, a_only, pairs, z))


def sign_flip(differences: ArrayLike, rng: np.random.Generator, draws: int = 9999) -> float:
    """Two-sided p-value that paired scores (A minus B, one per episode) are as likely positive as negative.

    For scores that are no successes: subgoals done, progress. Fisher 1935, The Design of Experiments, section 21; the
    p-value counts what was seen as one more draw (Phipson & Smyth 2010, SAGMB 9:39) and so is never 0. 1 for no pairs.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"Differences must be a flat list of finite numbers, got shape {values.shape}.")
    if draws < 1:
        raise ValueError(f"The number of draws must be at least 1, got {draws}.")
    values = values[values != 0]
    seen = abs(values.sum())
    sums = np.array([np.abs((rng.integers(0, 2, len(values)) * 2 - 1) @ values) for _ in range(draws)])
    return float((1 + np.count_nonzero(sums >= seen * (1 - 1e-12))) / (1 + draws))


def discordant(a_only: int, b_only: int, pairs: int | None = None) -> None:
    """Raises ValueError unless both counts are at least 0 and together at most `pairs`."""
    if min(a_only, b_only) < 0:
        raise ValueError(f"Counts of discordant pairs must not be negative, got {a_only} and {b_only}.")
    if pairs is not None and a_only + b_only > pairs:
        raise ValueError(f"There cannot be more discordant pairs than pairs, got {a_only} + {b_only} of {pairs}.")


def tango_score(a_only: int, b_only: int, pairs: int, difference: float) -> tuple[float, float]:
    """Numerator and denominator of Tango's score statistic for a true difference; their ratio is near N(0, 1).

    At difference 0 its square is McNemar's chi-squared without correction. The denominator vanishes at -1 and 1.
    """
    quadratic = -(a_only + b_only) + (2 * pairs - a_only + b_only) * difference
    root = sqrt(max(quadratic**2 + 8 * pairs * b_only * difference * (1 - difference), 0.0))
    b_alone = (root - quadratic) / (4 * pairs)  # likeliest probability of B alone, given the difference
    variance = pairs * (2 * b_alone + difference * (1 - difference))
    return a_only - b_only - pairs * difference, sqrt(max(variance, 0.0))


def _half(most: int, n: int) -> float:
    """The chance of at most that many of n where each has a chance of 1/2, to the last digit."""
    ways = total = 1
    for k in range(most):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return total / (1 << n)


def _tango_low(a_only: int, b_only: int, pairs: int, z: float) -> float:
    from scipy.optimize import brentq

    def excess(difference: float) -> Any:
        numerator, denominator = tango_score(a_only, b_only, pairs, difference)
        return numerator - z * denominator

    just_below = (a_only - b_only) / pairs - 1e-12  # at an estimate of 1 the excess is 0 as well, and no root
    return float(brentq(excess, -1.0, just_below, xtol=1e-13)) if just_below > -1 else -1.0
