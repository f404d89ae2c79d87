from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import beta

from vla_bench.stats.unpaired import barnard, boschloo, fisher, newcombe_difference, probability_better

# the first three from Newcombe 1998 (Statistics in Medicine 17:873).
NEWCOMBE = [
    ((56, 70, 48, 80), 0.05243, 0.33387),
    ((9, 10, 3, 10), 0.17052, 0.80902),
    ((10, 10, 0, 10), 0.60751, 1.0),
    ((74, 80, 91, 120), 0.06247, 0.25963),
    ((17, 20, 14, 20), -0.11106, 0.38975),
    ((7, 20, 14, 20), -0.57885, -0.04161),
]

# statsmodels 0.15.0, confint_proportions_2indep(..., method="newcomb", compare="diff")
NEWCOMBE_STATSMODELS = [
    ((5, 9, 3, 11), -0.1285919938072208, 0.5928016259053127),
    ((0, 5, 0, 8), -0.32440756488388034, 0.43448246478317487),
    ((500, 500, 493, 500), 0.0035117971334199354, 0.028613069137785274),
]

P_VALUES = [
    (boschloo, (74, 80, 91, 120), 0.001961, 5e-7),
    (barnard, (74, 80, 91, 120), 0.002375, 5e-7),
    (fisher, (74, 80, 91, 120), 0.002232, 5e-7),
    (boschloo, (17, 20, 14, 20), 0.287145, 5e-7),
    (fisher, (17, 20, 14, 20), 0.450576, 5e-7),
    (fisher, (7, 20, 14, 20), 0.056161, 5e-7),
    (barnard, (7, 20, 14, 20), 0.038483, 5e-7),
    (boschloo, (7, 20, 14, 20), 0.038483, 5e-7),
    (fisher, (0, 20, 7, 20), 0.008316, 5e-7),
    (barnard, (0, 20, 7, 20), 0.003960, 5e-7),  # .009984 with samples as rows
    (boschloo, (0, 20, 7, 20), 0.003359, 5e-7),  # .002665 with samples as rows
    (fisher, (0, 50, 13, 50), 9.981e-5, 5e-9),
]
TESTS = [fisher, barnard, boschloo]
Test = Callable[..., float]
Counts = tuple[int, int, int, int]
"""Successes and episodes of A, then of B."""


@pytest.mark.parametrize(("counts", "low", "high"), NEWCOMBE)
def test_newcombe_gives_the_published_intervals(counts: Counts, low: float, high: float) -> None:
    assert newcombe_difference(*counts) == pytest.approx((low, high), abs=5e-6)


@pytest.mark.parametrize(("counts", "low", "high"), NEWCOMBE_STATSMODELS)
def test_newcombe_equals_statsmodels(counts: Counts, low: float, high: float) -> None:
    assert newcombe_difference(*counts) == pytest.approx((low, high), rel=1e-10)


def test_newcombe_changes_sign_with_the_arms_and_stays_within_one() -> None:
    low, high = newcombe_difference(17, 20, 14, 25)
    assert newcombe_difference(14, 25, 17, 20) == pytest.approx((-high, -low))
    assert newcombe_difference(1, 1, 0, 1).high == 1.0
    assert newcombe_difference(0, 1, 1, 1).low == -1.0
    assert newcombe_difference(0, 0, 3, 5) == newcombe_difference(3, 5, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(("test", "counts", "p_value", "digits"), P_VALUES)
def test_exact_tests_give_the_right_p_values(test: Test, counts: Counts, p_value: float, digits: float) -> None:
    assert test(*counts) == pytest.approx(p_value, abs=digits)
    assert test(*counts[2:], *counts[:2]) == pytest.approx(p_value, abs=digits)


def test_one_sided_tests_look_at_a_as_scipys_examples_do() -> None:
    assert barnard(7, 15, 12, 15, "less") == pytest.approx(0.0340767, abs=5e-8)  # [[7, 12], [8, 3]]
    assert boschloo(74, 117, 31, 63, "greater") == pytest.approx(0.0355641, abs=5e-8)  # [[74, 31], [43, 32]]


@pytest.mark.parametrize("test", TESTS)
def test_greater_means_that_a_is_better(test: Test) -> None:
    assert test(9, 10, 2, 10, "greater") < 0.05
    assert test(9, 10, 2, 10, "less") > 0.9
    assert test(9, 10, 2, 10, "greater") == pytest.approx(test(2, 10, 9, 10, "less"), rel=1e-6)


def test_three_against_three_is_the_least_that_barnard_decides() -> None:
    assert barnard(0, 3, 3, 3, "less") < 0.05 < barnard(0, 2, 2, 2, "less")


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    ("a", "n_a", "b", "n_b"), [(0, 0, 3, 5), (3, 5, 0, 0), (0, 5, 0, 9), (5, 5, 9, 9), (0, 1, 0, 1)]
)
def test_what_cannot_differ_has_p_value_one(test: Test, a: int, n_a: int, b: int, n_b: int) -> None:
    for alternative in ("two-sided", "less", "greater"):
        assert test(a, n_a, b, n_b, alternative) == 1.0


@pytest.mark.parametrize("test", [*TESTS, newcombe_difference, probability_better])
def test_counts_that_cannot_be_are_refused(test: Test) -> None:
    for counts in [(6, 5, 0, 5), (0, 5, -1, 5), (0, -1, 0, 5)]:
        with pytest.raises(ValueError, match="between 0 and"):
            test(*counts)


@pytest.mark.parametrize("test", TESTS)
def test_unknown_alternatives_are_refused(test: Test) -> None:
    with pytest.raises(ValueError, match="two-sided"):
        test(1, 5, 2, 5, "better")


def test_probability_better_gives_the_published_numbers() -> None:
    assert probability_better(17, 20, 14, 20) == pytest.approx(0.861421, abs=5e-7)
    assert probability_better(7, 20, 0, 20) == pytest.approx(0.998276, abs=5e-7)


def test_probability_better_of_nothing_is_a_half_and_of_both_ways_is_one() -> None:
    assert probability_better(0, 0, 0, 0) == pytest.approx(0.5)
    assert probability_better(500, 500, 0, 500) == pytest.approx(1.0)
    for counts in [(3, 7, 5, 9), (480, 500, 490, 500), (0, 1, 1, 1)]:
        a, n_a, b, n_b = counts
        assert probability_better(a, n_a, b, n_b) + probability_better(b, n_b, a, n_a) == pytest.approx(1)


def test_probability_better_agrees_with_an_integral() -> None:
    p = np.linspace(0, 1, 20001)
    for a, n_a, b, n_b in [(3, 7, 5, 9), (45, 50, 40, 50)]:
        integrand = beta.pdf(p, a + 1, n_a - a + 1) * beta.cdf(p, b + 1, n_b - b + 1)
        assert probability_better(a, n_a, b, n_b) == pytest.approx(trapezoid(integrand, p), abs=1e-6)
