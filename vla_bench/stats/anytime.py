"""Evidence that stays valid however often one looks and whenever one stops: e-values and confidence sequences.

An e-value of 1/alpha or more rejects at level alpha, at any time (Ville 1939). The price: more data than a test that
looks once. E-values of the same hypothesis may be averaged.
"""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_bench.stats.paired import discordant
from vla_bench.stats.rates import Alternative, Interval, counted, known, within_0_1

Floats = NDArray[np.float64]


class Band(NamedTuple):
    """Ends of the intervals after every look, same shape each."""

    low: Floats
    high: Floats


def paired_e_value(a_only: int, b_only: int, alternative: Alternative = "two-sided") -> float:
    """Evidence against A-alone and B-alone being equally likely: 2^m a! b! / (m + 1)! of m = a + b discordant pairs.

    Binomial likelihood mixed over a uniform probability that A is the one, against 1/2 (Robbins 1970, Annals of
    Mathematical Statistics 41:1397); one-sided: uniform over (1/2, 1] for "greater" (A is better), [0, 1/2) for "less".
    1 without a discordant pair; inf beyond the largest float.
    """
    discordant(a_only, b_only)
    return float(_paired(np.array([a_only]), np.array([b_only]), alternative)[0])


def paired_e_values(differences: ArrayLike, alternative: Alternative = "two-sided") -> Floats:
    """The e-value after every pair: `differences` (..., n) holds 1 for A alone, -1 for B alone, 0 for a tie."""
    pairs = _whole("Differences", differences, -1, 1)
    return _paired(np.cumsum(pairs == 1, axis=-1), np.cumsum(pairs == -1, axis=-1), alternative)


def anytime_p_values(e_values: ArrayLike) -> Floats:
    """The p-value after every look, (..., n) as the e-values: 1 over the largest so far, at most 1. Never rises."""
    running = np.maximum.accumulate(np.asarray(e_values, dtype=np.float64), axis=-1)
    if running.size and not running.min() >= 0:
        raise ValueError("E-values must not be negative or NaN.")
    return np.asarray(1 / np.maximum(running, 1.0))


def unpaired_e_values(
    successes_a: ArrayLike,
    successes_b: ArrayLike,
    prior_a: tuple[float, float] = (0.18, 0.18),
    prior_b: tuple[float, float] = (0.18, 0.18),
) -> Floats:
    """Evidence against equal rates after every block of one episode of A and one of B, each (..., n) of 0 and 1.

    Turner, Ly & Grünwald 2024 (Journal of Statistical Planning and Inference 230:106116; arXiv 2106.02693): each arm's
    posterior mean, learned from the blocks before, against their average. Priors are (successes, failures) of a Beta;
    0.18 is what safestats found to have the least regret. For the same episodes take `paired_e_values`.
    """
    a, b = _whole("Outcomes", successes_a, 0, 1), _whole("Outcomes", successes_b, 0, 1)
    if a.shape != b.shape:
        raise ValueError(f"Both arms must have the same number of outcomes, got shapes {a.shape} and {b.shape}.")
    if min(*prior_a, *prior_b) <= 0:
        raise ValueError(f"Both numbers of a Beta prior must be positive, got {prior_a} and {prior_b}.")
    rate_a, rate_b = _rates_before(a, prior_a), _rates_before(b, prior_b)
    both = (rate_a + rate_b) / 2
    factors = _chance(a, rate_a) * _chance(b, rate_b) / (_chance(a, both) * _chance(b, both))
    return _exp(np.cumsum(np.log(factors), axis=-1))


def confidence_sequence(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of a success rate that holds at all n at once, so one may stop when it looks good; (0, 1) at n = 0.

    Beta-binomial mixture: every rate p whose likelihood is above (1 - confidence) times the likelihood mixed over
    Beta(1/2, 1/2) (Robbins 1970, Annals of Mathematical Statistics 41:1397; as prior-posterior ratio in Waudby-Smith &
    Ramdas 2020, arXiv 2006.04347). It always holds successes / n. Needs episodes that are independent, of one rate.
    """
    counted(successes, n)
    low, high = _mixture_band(np.array([float(successes)]), np.array([float(n)]), confidence)
    return Interval(float(low[0]), float(high[0]))


def confidence_sequences(outcomes: ArrayLike, confidence: float = 0.95) -> Band:
    """The `confidence_sequence` after every episode: `outcomes` (..., n) of 0 and 1."""
    successes = np.cumsum(_whole("Outcomes", outcomes, 0, 1), axis=-1, dtype=np.float64)
    n = np.broadcast_to(np.arange(1.0, successes.shape[-1] + 1), successes.shape)
    return _mixture_band(successes, n, confidence)


def paired_confidence_sequence(a_only: int, b_only: int, pairs: int, confidence: float = 0.95) -> Interval:
    """Interval of the rate of A minus the rate of B over the same episodes that holds at all numbers of pairs at once.

    The rates of A-alone and of B-alone each have a `confidence_sequence` that errs half as often (union bound): simple
    and wide, what a comparison that stopped early may print. (-1, 1) when there are no pairs.
    """
    discordant(a_only, b_only, pairs)
    each = 1 - (1 - within_0_1("Confidence", confidence)) / 2
    a, b = confidence_sequence(a_only, pairs, each), confidence_sequence(b_only, pairs, each)
    return Interval(a.low - b.high, a.high - b.low)


def _paired(a: NDArray[Any], b: NDArray[Any], alternative: Alternative) -> Floats:
    from scipy.special import betaln

    if known(alternative) == "less":
        a, b = b, a
    log_e = (a + b) * log(2) + betaln(a + 1, b + 1)
    return _exp(log_e) if alternative == "two-sided" else _upper_half(a, b, log_e)


def _upper_half(a: NDArray[Any], b: NDArray[Any], log_e: Floats) -> Floats:
    """The mixture over (1/2, 1] alone: twice the two-sided one times the posterior chance of that half."""
    from scipy.special import betainc, hyp2f1

    with np.errstate(divide="ignore"):
        ahead = _exp(log_e + np.log(2 * betainc(b + 1.0, a + 1.0, 0.5)))
    fewer = np.minimum(a, b)  # where A is behind that chance can underflow; there a series of positive terms is exact
    return np.where(a >= b, ahead, hyp2f1(-fewer, 1, b + 2, -1) / (b + 1))


def _mixture_band(successes: Floats, n: Floats, confidence: float) -> Band:
    from scipy.special import betaln, xlog1py, xlogy

    mixed = betaln(successes + 0.5, n - successes + 0.5) - betaln(0.5, 0.5)
    least = mixed + np.log1p(-within_0_1("Confidence", confidence))

    def inside(rate: Floats) -> NDArray[np.bool_]:
        return np.asarray(xlogy(successes, rate) + xlog1py(n - successes, -rate) >= least)

    rate = successes / np.maximum(n, 1)
    low = np.where(successes > 0, _edge(inside, np.zeros_like(rate), rate), 0.0)
    high = np.where(successes < n, _edge(inside, np.ones_like(rate), rate), 1.0)
    return Band(low, np.where(n > 0, high, 1.0))


def _edge(inside: Any, outer: Floats, inner: Floats) -> Floats:
    """Where `inside` turns true between `outer` and `inner`, to the last digit, on the outer side."""
    for _ in range(60):
        middle = (outer + inner) / 2
        is_inside = inside(middle)
        outer, inner = np.where(is_inside, outer, middle), np.where(is_inside, middle, inner)
    return outer


def _rates_before(outcomes: NDArray[np.int64], prior: tuple[float, float]) -> Floats:
    before = np.cumsum(outcomes, axis=-1) - outcomes
    return np.asarray((prior[0] + before) / (sum(prior) + np.arange(outcomes.shape[-1])))


def _chance(outcomes: NDArray[np.int64], rate: Floats) -> Floats:
    return np.where(outcomes == 1, rate, 1 - rate)


def _exp(log_values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(log_values))


def _whole(name: str, values: ArrayLike, least: int, most: int) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.ndim == 0 or not np.isin(found, np.arange(least, most + 1)).all():
        raise ValueError(f"{name} must be a list of whole numbers from {least} to {most}.")
    return found.astype(np.int64)
