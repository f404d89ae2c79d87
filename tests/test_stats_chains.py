"""Means of chain lengths: intervals that cover, tests that are exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chi2

from vla_bench.stats.chains import exact_sign_flip, mean_interval, unpaired_interval, unpaired_permutation
from vla_bench.stats.paired import mcnemar, sign_flip
from vla_bench.stats.tasks import stratified_bootstrap

LIMITS = (0, 5)


def chains(share, n, rng):
    """(n,) lengths when every instruction succeeds with that chance."""
    return (rng.random((n, 5)) < share).cumprod(axis=1).sum(axis=1)


@pytest.mark.parametrize("share", [0.05, 0.6, 0.95])
@pytest.mark.parametrize("n", [10, 50])
def test_the_interval_covers_the_mean_also_where_the_bootstrap_does_not(share, n):
    rng = np.random.default_rng(1)
    truth = sum(share**k for k in range(1, 6))
    hits = [low <= truth <= high for low, high in (mean_interval(chains(share, n, rng), LIMITS) for _ in range(150))]
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_with_a_thousand_chains_it_is_the_bootstraps(share):
    rng = np.random.default_rng(2)
    lengths = chains(share, 1000, rng)
    np.testing.assert_allclose(mean_interval(lengths, LIMITS), stratified_bootstrap([lengths], rng), atol=0.02)


def test_lengths_that_are_all_alike_still_leave_doubt():
    for n in (1, 10, 100):
        reach = 5 * (1 - np.exp(-chi2.ppf(0.95, 1) / 2 / n))  # the likelihood of no other outcome at all
        assert mean_interval(np.zeros(n), LIMITS) == pytest.approx((0, reach), abs=1e-6)
        assert mean_interval(np.full(n, 5), LIMITS) == pytest.approx((5 - reach, 5), abs=1e-6)


def test_no_chains_tell_nothing():
    assert mean_interval([], LIMITS) == LIMITS


@pytest.mark.parametrize("lengths", [[0, 1, 5], [3] * 7, [0, 5], [2, 3, 3, 4, 1, 0, 5, 5]])
def test_the_interval_holds_the_mean_mirrors_and_grows_with_confidence(lengths):
    low, high = mean_interval(lengths, LIMITS)
    assert 0 <= low < np.mean(lengths) < high <= 5
    assert mean_interval(5 - np.array(lengths), LIMITS) == pytest.approx((5 - high, 5 - low), abs=1e-6)
    wider = mean_interval(lengths, LIMITS, 0.99)
    assert wider.low < low
    assert wider.high > high


def test_every_mean_inside_is_less_unlikely_than_every_mean_outside():
    """Against a brute-force likelihood over all distributions on a grid."""
    lengths = np.array([0, 0, 1, 2, 2, 2])
    grid = np.array([p for p in itertools.product(np.linspace(0, 1, 41), repeat=2) if sum(p) <= 1])
    chances = np.column_stack([grid, 1 - grid.sum(axis=1)])  # of 0, 1, 2
    with np.errstate(divide="ignore"):
        fit = np.log(chances)[:, lengths].sum(axis=1)
    best = np.log(np.array([2, 1, 3]) / 6)[lengths].sum()
    kept = (chances @ [0, 1, 2])[2 * (best - fit) <= chi2.ppf(0.95, 1)]
    low, high = mean_interval(lengths, (0, 2))
    assert kept.min() == pytest.approx(low, abs=0.05)
    assert kept.max() == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize("values", [[6], [-1], [[1, 2]], [np.nan]])
def test_values_outside_the_limits_are_refused(values):
    with pytest.raises(ValueError, match="from 0 to 5"):
        mean_interval(values, LIMITS)


# --- tests ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_the_sign_flip_test_counts_every_assignment_of_signs(seed, alternative):
    apart = np.random.default_rng(seed).integers(-4, 6, 9)
    sums = np.array([np.dot(signs, np.abs(apart)) for signs in itertools.product((-1, 1), repeat=9)])
    seen = apart.sum()
    as_far = {"two-sided": abs(sums) >= abs(seen), "less": sums <= seen, "greater": sums >= seen}[alternative]
    assert exact_sign_flip(apart, alternative) == pytest.approx(as_far.mean())


def test_the_sign_flip_test_of_success_is_mcnemars():
    for a_only, b_only in ((7, 2), (0, 9), (4, 4), (30, 11)):
        apart = [1] * a_only + [-1] * b_only + [0] * 5
        for alternative in ("two-sided", "less", "greater"):
            assert exact_sign_flip(apart, alternative) == pytest.approx(mcnemar(a_only, b_only, alternative))


def test_the_sign_flip_test_is_what_drawing_signs_approaches():
    apart = np.random.default_rng(5).integers(-5, 6, 200) + (np.arange(200) % 9 == 0)
    drawn = sign_flip(apart, np.random.default_rng(0))
    assert exact_sign_flip(apart) == pytest.approx(drawn, abs=0.015)


def test_no_difference_is_no_evidence():
    assert exact_sign_flip([]) == 1
    assert exact_sign_flip([0, 0]) == 1


@pytest.mark.parametrize("apart", [[0.5], [[1]]])
def test_differences_must_be_whole_numbers_in_a_flat_list(apart):
    with pytest.raises(ValueError, match="flat list of whole numbers"):
        exact_sign_flip(apart)


def test_the_permutation_test_divides_all_lengths_anew():
    a, b = [5, 4, 4], [1, 0, 3, 2]
    pool = np.array(a + b)
    seen = np.mean(a) - np.mean(b)
    apart = []
    for chosen in itertools.combinations(range(7), 3):
        inside = np.isin(np.arange(7), chosen)
        apart.append(abs(pool[inside].mean() - pool[~inside].mean()))
    exact = np.mean(np.array(apart) >= seen - 1e-9)
    assert unpaired_permutation(a, b, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)
    assert unpaired_permutation(b, a, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)


def test_equal_lengths_are_not_told_apart_and_the_level_is_kept():
    rng = np.random.default_rng(3)
    assert unpaired_permutation([3, 3], [3, 3, 3], rng) == 1
    assert unpaired_permutation([], [1], rng) == 1
    found = [unpaired_permutation(chains(0.8, 20, rng), chains(0.8, 30, rng), rng, draws=199) for _ in range(300)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def test_the_unpaired_interval_holds_the_difference_and_mirrors():
    rng = np.random.default_rng(4)
    a, b = chains(0.9, 80, rng), chains(0.6, 50, rng)
    low, high = unpaired_interval(a, b, LIMITS)
    assert low < a.mean() - b.mean() < high
    assert unpaired_interval(b, a, LIMITS) == pytest.approx((-high, -low))
    assert low > 0.5
