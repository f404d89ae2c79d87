from math import comb

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, multinomial

from vla_bench.stats.paired import mcnemar, mcnemar_midp, paired_difference, sign_flip, tango_score

# 6 v 16 (of 161 pairs) is Cavo 2012 as printed by R's contingencytables 3.0.0 (tests of chapter 8).
EXACT = [
    (11, 2, 0.02246094),
    (13, 0, 0.00024414),
    (20, 8, 0.03569814),
    (8, 0, 0.0078125),
    (7, 0, 0.015625),
    (6, 16, 0.05247879),
]


@pytest.mark.parametrize(("a_only", "b_only", "p_value"), EXACT)
def test_mcnemar_gives_the_published_p_values(a_only: int, b_only: int, p_value: float) -> None:
    assert mcnemar(a_only, b_only) == pytest.approx(p_value, abs=5e-9)
    assert mcnemar(b_only, a_only) == pytest.approx(p_value, abs=5e-9)


def test_midp_gives_the_published_p_values() -> None:
    assert mcnemar_midp(11, 2) == pytest.approx(0.01293945, abs=5e-9)
    assert mcnemar_midp(6, 16) == pytest.approx(0.034690, abs=5e-7)


def test_mcnemar_equals_statsmodels() -> None:
    assert mcnemar(37, 21) == pytest.approx(0.047940324071666984, rel=1e-12)  # statsmodels 0.15.0
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for a_only, b_only in [(11, 2), (5, 5), (0, 6), (1, 0)]:
        assert mcnemar(a_only, b_only) == pytest.approx(tables.mcnemar([[1, a_only], [b_only, 1]]).pvalue)


def test_without_discordant_pairs_nothing_differs() -> None:
    assert mcnemar(0, 0) == mcnemar_midp(0, 0) == mcnemar(4, 4) == mcnemar_midp(4, 4) == 1.0


@pytest.mark.parametrize(("a_only", "b_only"), [(0, 1), (5, 1), (11, 2), (6, 6), (0, 40)])
def test_midp_is_exact_less_the_chance_of_what_was_seen(a_only: int, b_only: int) -> None:
    m = a_only + b_only
    seen = comb(m, a_only) / 2**m
    if a_only != b_only:
        assert mcnemar_midp(a_only, b_only) == pytest.approx(mcnemar(a_only, b_only) - seen)
    assert mcnemar_midp(a_only, b_only, "greater") == pytest.approx(mcnemar(a_only, b_only, "greater") - seen / 2)
    assert mcnemar_midp(a_only, b_only, "less") == pytest.approx(mcnemar(b_only, a_only, "greater") - seen / 2)


def test_greater_means_that_a_is_better() -> None:
    assert mcnemar(8, 0, "greater") == pytest.approx(1 / 256)
    assert mcnemar(8, 0, "less") == pytest.approx(1.0)


def test_squared_tango_score_of_no_difference_is_mcnemars_chi_squared() -> None:
    numerator, denominator = tango_score(150, 86, 1600, 0.0)  # Agresti's 794/150/86/570
    assert (numerator / denominator) ** 2 == pytest.approx(17.3559, abs=5e-5)


def test_paired_difference_gives_the_published_interval() -> None:
    # Cavo 2012, 59/6/16/80; contingencytables prints -0.1240 to -0.0054, estimate -0.0621.
    assert paired_difference(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize("n", [1, 14, 500])
def test_paired_difference_without_discordant_pairs_or_with_nothing_else_has_a_closed_form(n: int) -> None:
    z2 = 1.959963984540054**2
    assert paired_difference(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    assert paired_difference(n, 0, n) == pytest.approx(((n - z2) / (n + z2), 1.0))
    assert paired_difference(0, n, n) == pytest.approx((-1.0, -(n - z2) / (n + z2)))


@pytest.mark.parametrize(
    "counts", [(7, 0, 14), (3, 2, 14), (1, 0, 14), (13, 1, 14), (10, 3, 50), (1, 1, 2), (25, 12, 200)]
)
def test_ends_of_the_paired_difference_solve_the_score_equation(counts: tuple[int, int, int]) -> None:
    a_only, b_only, n = counts
    low, high = paired_difference(a_only, b_only, n)
    assert -1 <= low < (a_only - b_only) / n < high <= 1
    for end, score in [(low, 1.959963984540054), (high, -1.959963984540054)]:
        b_alone = _likeliest(a_only, b_only, n, end)  # found by search, not by Tango's quadratic
        denominator = np.sqrt(n * (2 * b_alone + end * (1 - end)))
        assert (a_only - b_only - n * end) / denominator == pytest.approx(score, abs=1e-4)


def test_paired_difference_changes_sign_with_the_arms() -> None:
    low, high = paired_difference(10, 3, 50, 0.9)
    assert paired_difference(3, 10, 50, 0.9) == pytest.approx((-high, -low))
    assert paired_difference(0, 0, 0) == (-1.0, 1.0)


def test_paired_difference_covers_what_it_promises() -> None:
    n, a_only, b_only = 40, 0.2, 0.08
    covered = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            chance = multinomial.pmf([a, b, n - a - b], n, [a_only, b_only, 1 - a_only - b_only])
            if chance > 1e-7:
                low, high = paired_difference(a, b, n)
                covered += chance * (low <= a_only - b_only <= high)
    assert 0.94 < covered < 0.97


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_pairs_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="discordant pairs"):
        paired_difference(*counts)


def test_unknown_alternatives_and_negative_counts_are_refused() -> None:
    for test in (mcnemar, mcnemar_midp):
        with pytest.raises(ValueError, match="two-sided"):
            test(1, 2, "better")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="negative"):
            test(-1, 2)


def test_sign_flip_of_success_is_mcnemar() -> None:
    differences = [1] * 11 + [-1] * 2 + [0] * 37
    p_value = sign_flip(differences, np.random.default_rng(0), draws=20_000)
    assert p_value == pytest.approx(mcnemar(11, 2), abs=0.004)
    assert sign_flip(differences, np.random.default_rng(0), draws=20_000) == p_value


def test_sign_flip_keeps_its_level_and_sees_a_difference() -> None:
    rng = np.random.default_rng(0)
    equal = [sign_flip(rng.normal(size=12), rng, draws=99) for _ in range(400)]
    assert binomtest(sum(p <= 0.05 for p in equal), 400, 0.05).pvalue > 0.01
    assert sign_flip(rng.normal(1.5, 1, size=30), rng, draws=999) == 0.001


def test_sign_flip_of_ties_or_nothing_is_one_and_bad_input_is_refused() -> None:
    rng = np.random.default_rng(0)
    assert sign_flip([], rng) == sign_flip([0.0, 0.0], rng) == 1.0
    for bad in ([[1.0]], [np.nan], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="finite"):
            sign_flip(bad, rng)
    with pytest.raises(ValueError, match="draws"):
        sign_flip([1.0], rng, draws=0)


def _likeliest(a_only: int, b_only: int, n: int, difference: float) -> float:
    def unlikely(b_alone: float) -> float:
        chances = np.array([b_alone + difference, b_alone, 1 - 2 * b_alone - difference])
        counts = np.array([a_only, b_only, n - a_only - b_only])
        return float(-np.sum(counts[counts > 0] * np.log(np.maximum(chances[counts > 0], 1e-300))))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    return float(minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)
