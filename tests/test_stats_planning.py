import numpy as np
import pytest
from scipy.stats import binom, fisher_exact

from vla_bench.stats.paired import mcnemar
from vla_bench.stats.planning import (
    detectable,
    detectable_paired,
    episodes_needed,
    fisher_p_values,
    fisher_power,
    mcnemar_power,
    pairs_needed,
)


def test_episodes_needed_gives_the_published_numbers() -> None:
    assert episodes_needed(0.75, 0.85) == 250
    assert episodes_needed(0.70, 0.85) == 121
    assert episodes_needed(0.85, 0.70) == 121


def test_detectable_gives_the_published_numbers() -> None:
    above, below = detectable(0.7, 40)  # +23.8 and -30.7 points
    assert above == pytest.approx(0.7 + 0.238, abs=5e-4)
    assert below == pytest.approx(0.7 - 0.307, abs=5e-4)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("n", [20, 50, 500])
def test_detectable_is_what_episodes_needed_asks_for(rate: float, n: int) -> None:
    for other in detectable(rate, n, power=0.9, alpha=0.01):
        if other is not None:
            assert episodes_needed(rate, other, power=0.9, alpha=0.01) == n


def test_what_no_rate_is_far_enough_for_is_none() -> None:
    above, below = detectable(0.97, 20)
    assert above is None
    assert below == pytest.approx(0.624, abs=5e-4)
    assert detectable(1.0, 500).above is None
    assert detectable(0.5, 1) == (None, None)


@pytest.mark.parametrize(("n", "power"), [(20, 0.4677), (31, 0.7414), (37, 0.8064)])
def test_fisher_power_gives_the_published_numbers(n: int, power: float) -> None:
    assert fisher_power(0.35, 0.70, n) == pytest.approx(power, abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 9, 20])
def test_fisher_p_values_equal_scipys(n: int) -> None:
    ours = fisher_p_values(n)
    theirs = [[fisher_exact([[a, b], [n - a, n - b]]).pvalue for b in range(n + 1)] for a in range(n + 1)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_without_a_difference_fisher_rejects_at_most_alpha() -> None:
    assert max(fisher_power(p, p, 25) for p in (0.1, 0.5, 0.9)) <= 0.05


@pytest.mark.parametrize(
    ("a_only", "b_only", "pairs"), [(0.3, 0.1, 25), (0.2, 0.0, 40), (0.6, 0.4, 12), (0.05, 0.2, 8)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_mcnemar_power_is_the_chance_that_mcnemar_rejects(
    a_only: float, b_only: float, pairs: int, alpha: float
) -> None:
    power = 0.0
    for m in range(pairs + 1):
        rejects = sum(binom.pmf(a, m, a_only / (a_only + b_only)) for a in range(m + 1) if mcnemar(a, m - a) <= alpha)
        power += binom.pmf(m, pairs, a_only + b_only) * rejects
    assert mcnemar_power(a_only, b_only, pairs, alpha) == pytest.approx(power, abs=1e-11)
    assert mcnemar_power(b_only, a_only, pairs, alpha) == pytest.approx(power, abs=1e-11)


def test_mcnemar_power_is_what_simulation_shows() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(100, [0.2, 0.08, 0.72], size=3000)
    assert mcnemar_power(0.2, 0.08, 100) == pytest.approx(
        np.mean([mcnemar(a, b) <= 0.05 for a, b, _ in drawn]), abs=0.025
    )


@pytest.mark.parametrize(
    ("a_only", "b_only", "power", "alpha"),
    [
        (0.3, 0.1, 0.8, 0.05),
        (0.15, 0.0, 0.8, 0.05),
        (0.9, 0.1, 0.8, 0.05),
        (1.0, 0.0, 0.8, 0.05),
        (0.7, 0.3, 0.9, 0.01),
    ],
)
def test_pairs_needed_is_the_first_number_with_the_power(
    a_only: float, b_only: float, power: float, alpha: float
) -> None:
    n = pairs_needed(a_only, b_only, power, alpha)
    first = next(k for k in range(1, 1000) if mcnemar_power(a_only, b_only, k, alpha) >= power)
    assert n == first


def test_six_to_nothing_is_the_least_that_mcnemar_decides() -> None:
    assert pairs_needed(1.0, 0.0) == 6
    assert mcnemar_power(1.0, 0.0, 5) == 0.0


def test_policies_that_share_their_failures_need_fewer_episodes() -> None:
    independent = pairs_needed(0.85 * 0.25, 0.75 * 0.15)
    sharing = pairs_needed(0.12, 0.02)
    assert sharing < independent
    assert sharing < episodes_needed(0.75, 0.85)


def test_pairs_needed_is_near_connors_formula_for_many_pairs() -> None:
    either, difference = 0.3, 0.03
    connor = ((1.959964 * either**0.5 + 0.841621 * (either - difference**2) ** 0.5) / difference) ** 2
    assert pairs_needed(0.165, 0.135) == pytest.approx(connor, rel=0.03)


def test_detectable_paired_is_what_pairs_needed_asks_for() -> None:
    difference = detectable_paired(0.3, 800)
    assert difference is not None
    needed = pairs_needed((0.3 + difference) / 2, (0.3 - difference) / 2)
    assert needed == pytest.approx(800, rel=0.06)
    assert detectable_paired(0.05, 20) is None
    assert detectable_paired(1.0, 1) is None


def test_without_pairs_or_discordance_there_is_no_power() -> None:
    assert mcnemar_power(0.3, 0.1, 0) == mcnemar_power(0.0, 0.0, 50) == 0.0


@pytest.mark.parametrize(
    ("question", "values", "message"),
    [
        (episodes_needed, (0.5, 0.5), "different"),
        (episodes_needed, (0.5, 1.1), "from 0 to 1"),
        (episodes_needed, (0.5, 0.6, 1.0), "Power"),
        (episodes_needed, (0.5, 0.6, 0.8, 0.0), "Alpha"),
        (detectable, (1.2, 10), "from 0 to 1"),
        (detectable, (0.5, 0), "at least 1"),
        (fisher_power, (-0.1, 0.5, 10), "from 0 to 1"),
        (fisher_power, (0.1, 0.5, 0), "at least 1"),
        (mcnemar_power, (0.6, 0.5, 10), "together at most 1"),
        (mcnemar_power, (-0.1, 0.5, 10), "at least 0"),
        (mcnemar_power, (0.1, float("nan"), 10), "at least 0"),
        (mcnemar_power, (0.1, 0.5, -1), "negative"),
        (pairs_needed, (0.1, 0.1), "not there"),
        (pairs_needed, (0.1, 0.2, 1.5), "Power"),
        (pairs_needed, (0.2, 0.2000001), "More than"),
        (detectable_paired, (0.0, 10), "above 0"),
        (detectable_paired, (0.1, 0), "at least 1"),
    ],
)
def test_impossible_questions_are_refused(question, values, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        question(*values)
