from fractions import Fraction
from math import comb, factorial
from typing import get_args

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import binom

from vla_bench.stats.anytime import (
    anytime_p_values,
    confidence_sequence,
    confidence_sequences,
    paired_confidence_sequence,
    paired_e_value,
    paired_e_values,
    unpaired_e_values,
)
from vla_bench.stats.planning import fisher_p_values
from vla_bench.stats.rates import Alternative

E_VALUES = [(7, 0, 16.000), (8, 0, 28.444), (13, 0, 585.143), (11, 2, 7.50183), (20, 8, 2.97815), (0, 0, 1)]


@pytest.mark.parametrize(("a_only", "b_only", "e_value"), E_VALUES)
def test_paired_e_value_gives_the_published_numbers(a_only: int, b_only: int, e_value: float) -> None:
    digits = 5e-6 if e_value < 10 else 5e-4
    assert paired_e_value(a_only, b_only) == pytest.approx(e_value, abs=digits)
    assert paired_e_value(b_only, a_only) == pytest.approx(e_value, abs=digits)


def test_eight_to_nothing_is_the_first_clean_sweep_to_pass_twenty() -> None:
    assert paired_e_value(7, 0) < 20 < paired_e_value(8, 0)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (0, 1), (5, 3), (3, 5), (60, 40), (40, 60), (0, 200)])
def test_e_values_equal_exact_fractions(a: int, b: int) -> None:
    both = Fraction(2 ** (a + b) * factorial(a) * factorial(b), factorial(a + b + 1))
    ahead = sum(Fraction(comb(a + b + 1, k), 2 ** (a + b + 1)) for k in range(a + 1))  # P(Beta(a + 1, b + 1) > 1/2)
    assert paired_e_value(a, b) == pytest.approx(float(both), rel=1e-10)
    assert paired_e_value(a, b, "greater") == pytest.approx(float(2 * both * ahead), rel=1e-10)
    assert paired_e_value(b, a, "less") == pytest.approx(float(2 * both * ahead), rel=1e-10)


def test_e_values_survive_counts_beyond_floats() -> None:
    assert paired_e_value(5000, 0) == np.inf
    assert paired_e_value(0, 5000, "greater") == pytest.approx(1 / 5001)
    assert paired_e_value(5000, 5000) == pytest.approx(np.exp(10000 * np.log(2) + betaln(5001, 5001)), rel=1e-9)


@pytest.mark.parametrize("alternative", get_args(Alternative))
@pytest.mark.parametrize("m", [1, 2, 7, 30])
def test_without_a_difference_e_values_stay_one_on_average(m: int, alternative: Alternative) -> None:
    a = np.arange(m + 1)
    e_values = [paired_e_value(int(k), int(m - k), alternative) for k in a]
    assert binom.pmf(a, m, 0.5) @ e_values == pytest.approx(1.0)


@pytest.mark.parametrize("alternative", get_args(Alternative))
def test_running_e_values_are_those_of_the_counts_so_far_and_ties_change_nothing(alternative: Alternative) -> None:
    counts = [(0, 0), (1, 0), (2, 0), (2, 0), (2, 1), (3, 1), (3, 1)]
    expected = [paired_e_value(a, b, alternative) for a, b in counts]
    np.testing.assert_allclose(paired_e_values([0, 1, 1, 0, -1, 1, 0], alternative), expected)
    assert paired_e_values([], alternative).shape == (0,)


def test_anytime_p_values_never_rise() -> None:
    p_values = anytime_p_values(paired_e_values([1] * 8 + [-1] * 8))
    assert p_values[7] == pytest.approx(1 / 28.444, rel=1e-4)
    assert (np.diff(p_values) <= 0).all()
    assert p_values[-1] == p_values[7]
    assert (anytime_p_values([0.0, 0.5, 2.0]) == [1.0, 1.0, 0.5]).all()
    with pytest.raises(ValueError, match="negative"):
        anytime_p_values([1.0, np.nan])


def test_looking_after_every_pair_keeps_the_e_values_level_but_not_mcnemars() -> None:
    """2000 duels without a difference, 300 discordant pairs each, both tests looked at after every one."""
    rng = np.random.default_rng(0)
    differences = rng.choice([-1, 1], size=(2000, 300))
    by_e_value = (paired_e_values(differences) >= 20).any(axis=1).mean()
    a_only = np.cumsum(differences == 1, axis=1)
    pairs = np.arange(1, 301)
    by_mcnemar = (2 * binom.cdf(np.minimum(a_only, pairs - a_only), pairs, 0.5) <= 0.05).any(axis=1).mean()
    assert by_e_value < 0.05
    assert by_mcnemar > 0.15


def test_looking_every_ten_episodes_costs_fisher_its_level() -> None:
    """16 % false positives, not 5 %; 4000 repeats, rate 1/2, up to 200 episodes an arm."""
    rng = np.random.default_rng(0)
    a, b = np.cumsum(rng.integers(0, 2, (2, 4000, 200)), axis=2)
    looks = range(10, 201, 10)
    rejected = [fisher_p_values(n)[a[:, n - 1], b[:, n - 1]] <= 0.05 for n in looks]
    assert np.any(rejected, axis=0).mean() == pytest.approx(0.16, abs=0.02)
    assert rejected[-1].mean() < 0.05


def test_e_values_do_see_a_difference() -> None:
    differences = np.random.default_rng(0).choice([-1, 0, 1], p=[0.05, 0.8, 0.15], size=(200, 500))
    assert (paired_e_values(differences, "greater") >= 20).any(axis=1).mean() > 0.9
    assert (paired_e_values(differences, "less") >= 20).any(axis=1).mean() < 0.05


def test_unpaired_e_values_give_the_published_numbers() -> None:
    # all fail v all succeed, priors Beta(1, 2) and Beta(2, 1); p = 1/e .09765625 and .03515625
    e_values = unpaired_e_values([0] * 4, [1] * 4, prior_a=(1, 2), prior_b=(2, 1))
    assert e_values[2:] == pytest.approx([10.24, 28.444], abs=5e-4)
    assert anytime_p_values(e_values)[2:] == pytest.approx([0.09765625, 0.03515625])


def test_without_a_difference_unpaired_e_values_are_at_most_one_on_average_and_keep_their_level() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.1, 0.5, 0.9):
        e_values = unpaired_e_values(*(rng.random((2, 1000, 200)) < rate))
        assert (e_values >= 20).any(axis=1).mean() < 0.05
    e_values = unpaired_e_values(rng.random((200, 100)) < 0.8, rng.random((200, 100)) < 0.4)
    assert (e_values[:, -1] >= 20).mean() > 0.9


# The ends solve log B(x + 1/2, n - x + 1/2) - log B(1/2, 1/2) = x log p + (n - x) log(1 - p) - log alpha.
@pytest.mark.parametrize(("successes", "n"), [(1, 2), (3, 7), (25, 50), (499, 500), (5000, 10_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_ends_of_a_confidence_sequence_solve_its_equation(successes: int, n: int, confidence: float) -> None:
    low, high = confidence_sequence(successes, n, confidence)
    assert 0 < low < successes / n < high < 1
    mixed = betaln(successes + 0.5, n - successes + 0.5) - betaln(0.5, 0.5)
    for p in (low, high):
        likelihood = successes * np.log(p) + (n - successes) * np.log1p(-p)
        assert mixed - likelihood == pytest.approx(-np.log(1 - confidence), abs=1e-8)


def test_confidence_sequence_of_little() -> None:
    assert confidence_sequence(0, 0) == (0.0, 1.0)
    assert confidence_sequence(0, 1) == pytest.approx((0.0, 0.975))  # mixture 1/2 against (1 - p) / 0.05
    assert confidence_sequence(1, 1) == pytest.approx((0.025, 1.0))
    low, high = confidence_sequence(30, 50)
    assert confidence_sequence(20, 50) == pytest.approx((1 - high, 1 - low))


def test_running_confidence_sequence_is_that_of_the_counts_so_far() -> None:
    outcomes = np.random.default_rng(0).integers(0, 2, (3, 40))
    band = confidence_sequences(outcomes)
    for row in range(3):
        for n in (1, 2, 17, 40):
            expected = confidence_sequence(int(outcomes[row, :n].sum()), n)
            assert (band.low[row, n - 1], band.high[row, n - 1]) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.9])
def test_confidence_sequence_holds_at_all_times_at_once(rate: float) -> None:
    outcomes = np.random.default_rng(0).random((600, 300)) < rate
    low, high = confidence_sequences(outcomes)
    assert ((low <= rate) & (rate <= high)).all(axis=1).mean() >= 0.95


def test_paired_confidence_sequence_holds_at_all_times_at_once() -> None:
    rng = np.random.default_rng(0)
    differences = rng.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(400, 150))
    a, b = confidence_sequences(differences == 1, 0.975), confidence_sequences(differences == -1, 0.975)
    assert ((a.low - b.high <= 0.2) & (a.high - b.low >= 0.2)).all(axis=1).mean() >= 0.95
    low, high = paired_confidence_sequence(60, 20, 200)
    assert low < 0.2 < high
    assert paired_confidence_sequence(20, 60, 200) == pytest.approx((-high, -low))
    assert paired_confidence_sequence(0, 0, 0) == (-1.0, 1.0)


def test_what_is_no_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        paired_e_values([0, 2])
    with pytest.raises(ValueError, match="from 0 to 1"):
        confidence_sequences([0.5])
    with pytest.raises(ValueError, match="from 0 to 1"):
        unpaired_e_values([np.nan], [1])
    with pytest.raises(ValueError, match="same number"):
        unpaired_e_values([0, 1], [1])
    with pytest.raises(ValueError, match="positive"):
        unpaired_e_values([0], [1], prior_a=(0, 1))
    with pytest.raises(ValueError, match="negative"):
        paired_e_value(-1, 0)
    with pytest.raises(ValueError, match="two-sided"):
        paired_e_value(1, 0, "better")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and"):
        confidence_sequence(3, 2)
    with pytest.raises(ValueError, match="Confidence"):
        confidence_sequence(1, 2, 1.0)
    with pytest.raises(ValueError, match="discordant pairs"):
        paired_confidence_sequence(2, 2, 3)
