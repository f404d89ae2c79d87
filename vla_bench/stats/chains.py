"""How many of a chain's instructions were done: a whole number from 0 to the chain's length, and means of it.

Everything takes a flat list of such lengths (or of differences of two) and what the least and the greatest can be.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_bench.stats.rates import Alternative, Interval, known, within_0_1

Floats = NDArray[np.float64]


def mean_interval(values: ArrayLike, limits: tuple[float, float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of values that lie within the limits; the limits themselves when there are no values.

    Every mean that the likelihood ratio does not reject (Owen 1988, Biometrika 75:237), where unseen values within the
    limits may have had a chance too: so it has width, as a bootstrap has not, when all values are alike. With a
    thousand chains it is the bootstrap's interval to the second digit.
    """
    scores, seen = np.unique(_checked(values, limits), return_counts=True)
    low, high = limits
    if not len(scores):
        return Interval(low, high)
    from scipy.optimize import brentq
    from scipy.stats import chi2

    allowed = float(chi2.ppf(within_0_1("Confidence", confidence), 1))
    mean = float(scores @ seen / seen.sum())
    hair = 1e-9 * (high - low)

    def excess(candidate: float) -> float:
        return 2 * _log_ratio(scores - candidate, seen, candidate - low, high - candidate) - allowed

    inside = min(max(mean, low + hair), high - hair)
    return Interval(
        float(brentq(excess, low + hair, inside)) if inside > low + hair else low,
        float(brentq(excess, inside, high - hair)) if inside < high - hair else high,
    )


def exact_sign_flip(differences: ArrayLike, alternative: Alternative = "two-sided") -> float:
    """p-value that paired whole-numbered scores (A minus B, one per episode) are as likely positive as negative.

    Fisher 1935, The Design of Experiments, section 21, over all assignments of signs: the sum of the differences of
    each size is that size times a shifted binomial. "greater" means that A is better. 1 for no pairs.
    """
    from scipy.stats import binom

    values = np.asarray(differences)
    whole = values.astype(np.int64)
    if values.ndim != 1 or (values != whole).any():
        raise ValueError(f"Differences must be a flat list of whole numbers, got shape {values.shape}.")
    sizes, counts = np.unique(np.abs(whole[whole != 0]), return_counts=True)
    chances = np.ones(1)  # of every sum from -total to total in steps of 1
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    total = int(sizes @ counts)
    sums = np.arange(-total, total + 1)
    seen = int(whole.sum())
    as_far = {"two-sided": np.abs(sums) >= abs(seen), "less": sums <= seen, "greater": sums >= seen}
    return min(1.0, float(chances[as_far[known(alternative)]].sum()))


def unpaired_permutation(a: ArrayLike, b: ArrayLike, rng: np.random.Generator, draws: int = 9999) -> float:
    """Two-sided p-value that the lengths of A and of B, of different episodes, have the same distribution.

    Pitman 1937, Supplement to the JRSS 4:119: the difference of means among random divisions of all lengths; what was
    seen counts as one more draw, so it is never 0 (Phipson & Smyth 2010, SAGMB 9:39). 1 when either has none.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not len(first) or not len(second):
        return 1.0
    scores, counts = np.unique(np.concatenate([first, second]), return_counts=True)
    share = 1 / len(first) + 1 / len(second)
    centre = share * len(first) * float(scores @ counts) / counts.sum()
    drawn = rng.multivariate_hypergeometric(counts, len(first), draws) @ scores
    seen = abs(share * float(first.sum()) - centre)
    return float((1 + np.count_nonzero(np.abs(share * drawn - centre) >= seen - 1e-9)) / (1 + draws))


def unpaired_interval(a: ArrayLike, b: ArrayLike, limits: tuple[float, float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of A minus the mean of B, from the interval of each.

    Zou & Donner 2008, Statistics in Medicine 27:1693: as Newcombe's for two rates is made from Wilson's.
    """
    (mean_a, (low_a, high_a)), (mean_b, (low_b, high_b)) = (
        (float(_checked(own, limits).mean()), mean_interval(own, limits, confidence)) for own in (a, b)
    )
    difference = mean_a - mean_b
    return Interval(
        difference - sqrt((mean_a - low_a) ** 2 + (high_b - mean_b) ** 2),
        difference + sqrt((high_a - mean_a) ** 2 + (mean_b - low_b) ** 2),
    )


def _log_ratio(apart: Floats, seen: NDArray[np.intp], below: float, above: float) -> float:
    """Greatest log-likelihood without a known mean minus that with it.

    `apart` are the scores minus that mean, `below` and `above` its distances to the limits. The weights n / (n + t
    apart) solve it, and stay chances as long as t / n is between -1 / above and 1 / below, unseen scores included.
    """
    from scipy.optimize import brentq

    def slope(tilt: float) -> float:
        return float(seen @ (apart / (1 + tilt * apart)))

    least, most = (-1 + 1e-12) / above, (1 - 1e-12) / below
    tilt = _root(slope, least, most, brentq)
    return float(seen @ np.log1p(tilt * apart))


def _root(falling: Callable[[float], float], low: float, high: float, solver: Callable[..., float]) -> float:
    """Where a falling function is 0; the end that is nearer to it when that is outside."""
    if falling(low) <= 0:
        return low
    return high if falling(high) >= 0 else float(solver(falling, low, high))


def _checked(values: ArrayLike, limits: tuple[float, float]) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not ((array >= limits[0]) & (array <= limits[1])).all():
        raise ValueError(f"Values must be a flat list of numbers from {limits[0]:g} to {limits[1]:g}.")
    return array
