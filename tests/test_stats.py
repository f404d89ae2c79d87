import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from vla_bench.stats import bounds, percentile, samples_needed, wilson

# facts/field.md 2b: recomputed with scipy 1.17.1 and statsmodels; the last two from Newcombe 1998, table I.
WILSON = [
    (0, 10, 0.0, 0.27753),
    (0, 20, 0.0, 0.16113),
    (20, 20, 0.83887, 1.0),
    (6, 10, 0.31267, 0.83182),
    (60, 100, 0.50200, 0.69060),
    (17, 20, 0.63958, 0.94763),
    (14, 20, 0.48103, 0.85452),
    (7, 20, 0.18119, 0.56715),
    (74, 80, 0.84588, 0.96517),
    (91, 120, 0.67450, 0.82614),
    (32, 40, 0.65243, 0.89500),
    (484, 500, 0.94866, 0.98021),
    (493, 500, 0.97139, 0.99320),
    (0, 500, 0.0, 0.00762),
    (81, 263, 0.25529, 0.36621),
    (15, 148, 0.06239, 0.16049),
]

# facts/field.md 4: MLPerf's rule; 459 and 662 are confirmed by mlcommons/endpoints pull request 417.
SAMPLES = {
    90: {0: 44, 1: 64, 2: 81, 5: 127, 10: 197, 100: 1246},
    95: {0: 90, 1: 130, 2: 165, 5: 259, 10: 398, 100: 2504},
    97: {0: 152, 1: 219, 2: 277, 5: 433, 10: 667, 100: 4182},
    99: {0: 459, 1: 662, 2: 838, 5: 1307, 10: 2010, 100: 12571},
}


@pytest.mark.parametrize(("successes", "n", "low", "high"), WILSON)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-6)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 2, 10, 50, 500])
def test_wilson_equals_scipy(n: int, confidence: float) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 20, 500, 10**6])
def test_wilson_of_a_clean_sweep_ends_exactly_at_the_edge(n: int) -> None:
    assert wilson(0, n).low == 0.0
    assert wilson(n, n).high == 1.0
    assert 0 < wilson(1, n).low <= wilson(1, n).high <= 1


def test_wilson_mirrors_when_successes_and_failures_swap() -> None:
    low, high = wilson(17, 20)
    assert wilson(3, 20) == pytest.approx((1 - high, 1 - low))


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, -1, 0.9), (1, 2, 0), (1, 2, 1)]
)
def test_wilson_refuses_what_is_no_count_or_no_confidence(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        wilson(successes, n, confidence)


def test_bounds_count_the_broken_as_failures_and_as_successes() -> None:
    assert bounds(6, 2, 2) == (0.6, 0.8)
    assert bounds(6, 4, 0) == (0.6, 0.6)
    assert bounds(0, 0, 3) == (0.0, 1.0)
    assert bounds(0, 0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="negative"):
        bounds(1, 1, -1)


@pytest.mark.parametrize(("p", "over"), [(p, over) for p, row in SAMPLES.items() for over in row])
def test_samples_needed_gives_mlperf_numbers(p: int, over: int) -> None:
    assert samples_needed(p, over_limit=over) == SAMPLES[p][over]


@pytest.mark.parametrize("p", [50, 90, 99, 99.9])
@pytest.mark.parametrize("over", [0, 3])
def test_samples_needed_is_the_smallest_number_that_will_do(p: float, over: int) -> None:
    n = samples_needed(p, over_limit=over)
    assert binom.cdf(over, n, 1 - p / 100) <= 0.01 < binom.cdf(over, n - 1, 1 - p / 100)


def test_fewer_samples_will_do_for_less_confidence() -> None:
    assert samples_needed(99, confidence=0.95) == math.ceil(math.log(0.05) / math.log(0.99))


@pytest.mark.parametrize(("p", "confidence", "over"), [(0, 0.9, 0), (100, 0.9, 0), (99, 1.0, 0), (99, 0.9, -1)])
def test_samples_needed_refuses_impossible_questions(p: float, confidence: float, over: int) -> None:
    with pytest.raises(ValueError, match="must"):
        samples_needed(p, confidence, over)


def test_a_percentile_is_given_only_when_samples_suffice() -> None:
    samples = np.random.default_rng(0).gamma(2.0, size=459)
    assert percentile(samples, 99) == np.percentile(samples, 99)
    assert percentile(samples[:458], 99) is None
    assert percentile(samples[:90], 95) is not None
    assert percentile([7.0], 50) == 7.0
    assert percentile([], 50) is None
