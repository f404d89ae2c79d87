"""Before the run: how many episodes show a difference, and which difference a number of episodes can show."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.stats.rates import within_0_1

Floats = NDArray[np.float64]


MOST_PAIRS = 10**7
"""Where `pairs_needed` gives up."""


class Detectable(NamedTuple):
    """The nearest rates above and below that a comparison would tell apart; None where no rate is far enough."""

    above: float | None
    below: float | None


def episodes_needed(rate_a: float, rate_b: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Episodes per arm to tell two rates apart on different episodes, two-sided.

    Fleiss, Levin & Paik 2003, Statistical Methods for Rates and Proportions, 3rd edition, chapter 4: the pooled
    score test without continuity correction. An exact test takes a few more.
    """
    if not (0 <= rate_a <= 1 and 0 <= rate_b <= 1) or rate_a == rate_b:
        raise ValueError(f"Rates must be two different numbers from 0 to 1, got {rate_a} and {rate_b}.")
    return ceil((_spread(rate_a, rate_b, power, alpha) / (rate_a - rate_b)) ** 2 - 1e-9)


def detectable(rate: float, n: int, power: float = 0.8, alpha: float = 0.05) -> Detectable:
    """The nearest rates that n episodes per arm, different ones, tell apart from this: `episodes_needed` reversed."""
    if not 0 <= rate <= 1 or n < 1:
        raise ValueError(f"The rate must be from 0 to 1 and n at least 1, got {rate} and {n}.")

    def missing(other: float) -> float:
        return _spread(rate, other, power, alpha) - sqrt(n) * abs(other - rate)

    return Detectable(_first(missing, rate, 1.0), _first(missing, rate, 0.0))


def fisher_power(rate_a: float, rate_b: float, n: int, alpha: float = 0.05) -> float:
    """Exact chance that `fisher` rejects, with n episodes per arm, different ones."""
    if not (0 <= rate_a <= 1 and 0 <= rate_b <= 1):
        raise ValueError(f"Rates must be from 0 to 1, got {rate_a} and {rate_b}.")
    from scipy.stats import binom

    rejects = fisher_p_values(n) <= within_0_1("Alpha", alpha)
    successes = np.arange(n + 1)
    return float(binom.pmf(successes, n, rate_a) @ rejects @ binom.pmf(successes, n, rate_b))


def fisher_p_values(n: int) -> Floats:
    """(n + 1, n + 1) two-sided p-values of Fisher's test for all successes of A (rows) and B (columns) of n each."""
    if n < 1:
        raise ValueError(f"The number of episodes must be at least 1, got {n}.")
    from scipy.stats import hypergeom

    p_values = np.ones((n + 1, n + 1))
    for total in range(1, 2 * n):
        a = np.arange(max(0, total - n), min(n, total) + 1)
        chances = hypergeom.pmf(a, 2 * n, total, n)
        no_likelier = chances[None, :] <= chances[:, None] * (1 + 1e-7)  # scipy's tolerance for equally likely tables
        p_values[a, total - a] = np.minimum(no_likelier @ chances, 1.0)
    return p_values


def pairs_needed(a_only: float, b_only: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Episodes, the same for A and B, until `mcnemar` (exact, two-sided) rejects with that power.

    `a_only` and `b_only` are the chances that one episode is solved by that policy alone. Independent policies of rates
    p and q have p (1 - q) and q (1 - p); policies that share their failures have less, and need fewer episodes.
    The power of an exact test is a fine saw-tooth in the number: this is its first tooth high enough, a few larger
    numbers may fall short by a hair.
    """
    if a_only == b_only:
        raise ValueError(f"No number of pairs shows a difference that is not there, got {a_only} twice.")
    within_0_1("Power", power)
    enough = 1
    while mcnemar_power(a_only, b_only, enough, alpha) < power:
        if enough > MOST_PAIRS:
            raise ValueError(f"More than {MOST_PAIRS} pairs would be needed to tell {a_only} and {b_only} apart.")
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (enough + short) // 2
        reached = mcnemar_power(a_only, b_only, middle, alpha) >= power
        short, enough = (short, middle) if reached else (middle, enough)
    earlier = range(max(1, enough - 100), enough)
    return next((n for n in earlier if mcnemar_power(a_only, b_only, n, alpha) >= power), enough)


def mcnemar_power(a_only: float, b_only: float, pairs: int, alpha: float = 0.05) -> float:
    """Exact chance that `mcnemar`, two-sided, rejects after that many pairs; chances as in `pairs_needed`.

    Unconditional: over all numbers of discordant pairs (Duffy 1984, Biometrics 40:1005).
    """
    _chances(a_only, b_only)
    if pairs < 0:
        raise ValueError(f"The number of pairs must not be negative, got {pairs}.")
    tail = within_0_1("Alpha", alpha) / 2
    either = a_only + b_only
    if either == 0 or pairs == 0:
        return 0.0
    from scipy.stats import binom

    likely = binom.ppf([1e-13, 1 - 1e-13], pairs, either)
    m = np.arange(max(int(likely[0]), 0), int(likely[1]) + 1)
    few = binom.ppf(tail, m, 0.5)
    few = np.where(binom.cdf(few, m, 0.5) <= tail, few, few - 1)  # the most that the lesser count may be to reject
    share = a_only / either
    rejects = np.where(few >= 0, binom.cdf(few, m, share) + binom.cdf(few, m, 1 - share), 0.0)
    return float(min(binom.pmf(m, pairs, either) @ rejects, 1.0))


def detectable_paired(either: float, pairs: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest difference of rates that so many pairs tell apart; None if even `either` itself is too small.

    `either` is the chance that one episode is solved by only one of both. Normal approximation: Connor 1987, Biometrics
    43:207, (z_alpha sqrt(either) + z_power sqrt(either - difference^2))^2 / difference^2 pairs.
    """
    if not 0 < either <= 1 or pairs < 1:
        raise ValueError(f"The chance must be above 0 and at most 1 and pairs at least 1, got {either} and {pairs}.")
    z_alpha, z_power = _quantiles(power, alpha)

    def missing(difference: float) -> float:
        spread = z_alpha * sqrt(either) + z_power * sqrt(max(either - difference**2, 0.0))
        return spread - sqrt(pairs) * difference

    return _first(missing, 0.0, either)


def _spread(rate_a: float, rate_b: float, power: float, alpha: float) -> float:
    z_alpha, z_power = _quantiles(power, alpha)
    mean = (rate_a + rate_b) / 2
    return z_alpha * sqrt(2 * mean * (1 - mean)) + z_power * sqrt(rate_a * (1 - rate_a) + rate_b * (1 - rate_b))


def _quantiles(power: float, alpha: float) -> tuple[float, float]:
    quantile = NormalDist().inv_cdf
    return quantile(1 - within_0_1("Alpha", alpha) / 2), quantile(within_0_1("Power", power))


def _first(missing: Callable[[float], float], start: float, end: float) -> float | None:
    """Where `missing` falls to 0 between start and end; None where it stays above."""
    if start == end or missing(end) > 0:
        return None
    from scipy.optimize import brentq

    root: Any = brentq(missing, start + (end - start) * 1e-9, end, xtol=1e-12)
    return float(root)


def _chances(a_only: float, b_only: float) -> None:
    if not (a_only >= 0 and b_only >= 0 and a_only + b_only <= 1):
        raise ValueError(f"Chances must be at least 0 and together at most 1, got {a_only} and {b_only}.")
