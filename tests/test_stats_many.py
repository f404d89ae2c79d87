import numpy as np
import pytest
from numpy.typing import NDArray

from vla_bench.stats.many import bradley_terry, holm, letters

# American League 1987 (Agresti), 13 games a pair, rows beat columns.
# MIL DET TOR NYY BOS CLE BAL
LEAGUE = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]


def test_holm_gives_the_published_numbers() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_equals_statsmodels() -> None:
    p_values = [0.011, 0.0004, 0.2, 0.049, 0.049, 0.73, 0.0081]
    theirs = [0.055, 0.0028, 0.4, 0.196, 0.196, 0.73, 0.0486]  # statsmodels 0.15.0, multipletests(method="holm")
    assert holm(p_values) == pytest.approx(theirs)
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for seed in range(20):
        drawn = np.random.default_rng(seed).random(seed + 1) ** 3
        np.testing.assert_allclose(holm(drawn), multitest.multipletests(drawn, method="holm")[1])


def test_holm_of_one_changes_nothing_and_never_exceeds_one() -> None:
    assert holm([0.03]) == [0.03]
    assert holm([]).shape == (0,)
    assert (holm([0.9, 0.8, 1.0]) == 1.0).all()


def test_holm_keeps_the_family_wise_level() -> None:
    p_values = np.random.default_rng(0).random((4000, 10))
    assert np.mean([holm(family).min() <= 0.05 for family in p_values]) == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize("bad", [[0.5, np.nan], [-0.1], [1.1], [[0.5]]])
def test_holm_refuses_what_is_no_p_value(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm(bad)


def drawn_differences(rng: np.random.Generator, n: int, share: float) -> NDArray[np.bool_]:
    upper = np.triu(rng.random((n, n)) < share, 1)
    return upper | upper.T


def assert_shared_exactly_where_not_different(differs: NDArray[np.bool_]) -> None:
    given = letters(differs)
    assert all(given)
    for i in range(len(differs)):
        for j in range(len(differs)):
            assert bool(set(given[i]) & set(given[j])) != differs[i, j]


@pytest.mark.parametrize("seed", range(100))
def test_two_policies_share_a_letter_exactly_if_they_do_not_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert_shared_exactly_where_not_different(drawn_differences(rng, int(rng.integers(1, 20)), rng.random()))


def test_letters_of_simple_cases() -> None:
    far_apart = np.abs(np.subtract.outer(np.arange(4), np.arange(4))) > 1
    assert letters(far_apart) == ["a", "ab", "bc", "c"]
    assert letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]
    assert letters([[False]]) == ["a"]
    assert letters(np.zeros((0, 0), dtype=bool)) == []


@pytest.mark.parametrize("seed", range(20))
def test_no_letter_could_be_left_out(seed: int) -> None:
    differs = drawn_differences(np.random.default_rng(seed), 9, 0.4)
    given = letters(differs)
    for letter in set("".join(given)):
        fewer = [set(signs) - {letter} for signs in given]
        shared = np.array([[bool(a & b) for a in fewer] for b in fewer])
        assert (shared == differs).any(), "without it the display would still be right"


def test_letters_do_not_double_with_every_pair() -> None:
    """Twenty pairs that differ, all else alike: insert and absorb has a million columns there."""
    differs = np.zeros((40, 40), dtype=bool)
    for i in range(0, 40, 2):
        differs[i, i + 1] = differs[i + 1, i] = True
    assert_shared_exactly_where_not_different(differs)
    assert len(set("".join(letters(differs)))) < 20


@pytest.mark.parametrize(
    "bad", [[[False, True], [False, False]], [[True]], [[0, 1], [1, 0]], [[False, True]], [], [[[False]]]]
)
def test_letters_refuse_what_is_no_table_of_differences(bad: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="Differences must be"):
        letters(bad)


def test_bradley_terry_gives_the_published_strengths() -> None:
    strength, error, covariance = bradley_terry(LEAGUE)
    assert strength == pytest.approx([1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0], abs=5e-5)
    assert error == pytest.approx([0.3433, 0.3396, 0.3367, 0.3359, 0.3339, 0.3319, 0], abs=5e-5)
    assert covariance.diagonal() == pytest.approx(error**2)


def test_bradley_terry_agrees_with_hunters_mm_and_expects_the_wins_seen() -> None:
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 30, (5, 5))
    np.fill_diagonal(wins, 0)
    skill = np.ones(5)
    for _ in range(5000):  # Hunter 2004, Annals of Statistics 32:384
        skill = wins.sum(axis=1) / ((wins + wins.T) / (skill[:, None] + skill[None, :])).sum(axis=1)
    assert bradley_terry(wins, reference=0).strength == pytest.approx(np.log(skill / skill[0]))


def test_bradley_terry_of_two_is_their_log_odds() -> None:
    strength, error, _ = bradley_terry([[0, 30], [10, 0]])
    assert strength == pytest.approx([np.log(3), 0])
    assert error == pytest.approx([np.sqrt(1 / 30 + 1 / 10), 0])


def test_the_reference_only_moves_the_strengths() -> None:
    last, first = bradley_terry(LEAGUE), bradley_terry(LEAGUE, reference=0)
    assert first.strength == pytest.approx(last.strength - last.strength[0])
    variance = [c[1, 1] + c[4, 4] - 2 * c[1, 4] for c in (last.covariance, first.covariance)]
    assert variance[0] == pytest.approx(variance[1])


def test_bradley_terry_stands_lopsided_duels() -> None:
    wins = [[0, 10**6, 0], [1, 0, 10**6], [0, 1, 0]]
    assert bradley_terry(wins).strength == pytest.approx([2 * np.log(10**6), np.log(10**6), 0])


@pytest.mark.parametrize(
    ("wins", "named"),
    [
        ([[0, 5], [0, 0]], "policies 0 "),
        ([[0, 0], [0, 0]], "policies 0 "),
        ([[0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1], [0, 0, 4, 0]], "policies 0, 1 "),
        ([[0, 3, 0], [2, 0, 0], [1, 7, 0]], "policies 2 "),
    ],
)
def test_strengths_that_are_not_finite_are_refused_with_names(wins: list[list[int]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        bradley_terry(wins)


@pytest.mark.parametrize(
    ("wins", "message"),
    [
        ([[0, 1.5], [2.5, 0]], "ties"),
        ([[0, -1], [2, 0]], "whole"),
        ([[0, np.nan], [2, 0]], "whole"),
        ([[1, 1], [2, 0]], "diagonal"),
        ([[0, 1]], "square"),
        ([[0]], "two policies"),
    ],
)
def test_what_is_no_table_of_wins_is_refused(wins: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry(wins)


def test_a_reference_that_is_no_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        bradley_terry(LEAGUE, reference=7)
