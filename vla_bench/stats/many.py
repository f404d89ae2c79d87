"""Many policies at once: p-values that bear many looks, letters instead of ranks, strengths from duels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from string import ascii_letters
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class BradleyTerry(NamedTuple):
    """Log strengths: policy i beats j with probability 1 / (1 + exp(strength j - strength i))."""

    strength: Floats
    """(policies,), 0 for the reference."""
    error: Floats
    """(policies,) standard error of the strength above the reference, 0 for the reference."""
    covariance: Floats
    """(policies, policies); the variance of strength i - strength j is c_ii + c_jj - 2 c_ij."""


def holm(p_values: ArrayLike) -> Floats:
    """The p-values adjusted so that comparing each with alpha errs at all with probability alpha; same order.

    Holm 1979, Scandinavian Journal of Statistics 6:65: valid however the tests depend on each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a flat list of numbers from 0 to 1.")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def letters(differs: ArrayLike) -> list[str]:
    """Letters for every policy: two share one exactly if they do not differ. Give the best first, it gets "a".

    `differs` is (policies, policies), symmetric: True where the pair differs significantly. Compact letter display
    (Piepho 2004, Journal of Computational and Graphical Statistics 13:456) found by growing cliques (Gramm et al.
    2007, Computational Statistics & Data Analysis 52:725): Piepho's own insert-and-absorb doubles its columns with
    every pair in bad cases. After z come A to Z, then letters of other alphabets.
    """
    differ = np.asarray(differs)
    if differ.dtype != np.bool_ or differ.ndim != 2 or differ.shape[0] != differ.shape[1]:
        raise ValueError(f"Differences must be a square of booleans, got {differ.dtype} of shape {differ.shape}.")
    if (differ != differ.T).any() or differ.diagonal().any():
        raise ValueError("Differences must be symmetric, and no policy may differ from itself.")
    groups = sorted(_needed(_cliques(~differ), ~differ))
    signs = dict(zip(groups, _alphabet(), strict=False))
    return ["".join(signs[group] for group in groups if policy in group) for policy in range(len(differ))]


def bradley_terry(wins: ArrayLike, reference: int = -1) -> BradleyTerry:
    """Strengths of all policies by maximum likelihood from (policies, policies) counts: how often row beat column.

    Bradley & Terry 1952, Biometrika 39:324, by Newton's method; errors from the observed information. Leave ties out
    (the model has none) and report them beside it. Finite strengths exist only if no group of policies has won all, or
    none, of its duels with the rest (Ford 1957, American Mathematical Monthly 64 no. 8 part 2:28): else ValueError.
    """
    won = _duels(wins)
    if not -len(won) <= reference < len(won):
        raise ValueError(f"The reference must be one of the {len(won)} policies, got number {reference}.")
    _all_connected(won)
    kept = np.delete(np.arange(len(won)), reference)
    strength = np.zeros(len(won))
    for _ in range(100):
        gradient, information = _slopes(won, strength)
        step = np.zeros(len(won))
        step[kept] = np.linalg.solve(information[np.ix_(kept, kept)], gradient[kept])
        while _log_likelihood(won, strength + step) < _log_likelihood(won, strength) - 1e-9:
            step /= 2
        strength = strength + step
        if np.abs(step).max() < 1e-10:
            break
    covariance = np.zeros_like(won)
    covariance[np.ix_(kept, kept)] = np.linalg.inv(_slopes(won, strength)[1][np.ix_(kept, kept)])
    return BradleyTerry(strength, np.sqrt(covariance.diagonal()), covariance)


def _cliques(agree: NDArray[np.bool_]) -> Iterator[tuple[int, ...]]:
    """Groups in which all agree, so that every pair that agrees is in one: each grown from a pair still without,
    always by the policy that brings most such pairs, the best one if several do.
    """
    missing = agree.copy()
    for i, j in np.argwhere(np.triu(agree)):
        if not missing[i, j]:
            continue
        group = sorted({int(i), int(j)})
        while True:
            others = np.setdiff1d(np.flatnonzero(agree[group].all(axis=0)), group)
            if len(others) == 0:
                break
            group.append(int(others[missing[others][:, group].sum(axis=1).argmax()]))
        missing[np.ix_(group, group)] = False
        yield tuple(sorted(group))


def _needed(cliques: Iterator[tuple[int, ...]], agree: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Without the groups all of whose pairs are together in others as well."""
    groups = list(cliques)
    times = np.zeros(agree.shape, dtype=int)
    for group in groups:
        times[np.ix_(group, group)] += 1
    needed = []
    for group in groups:
        inside = np.ix_(group, group)
        if (times[inside] > 1).all():
            times[inside] -= 1
        else:
            needed.append(group)
    return needed


def _alphabet() -> Iterator[str]:
    return chain(ascii_letters, filter(str.isalpha, map(chr, count(0xC0))))


def _duels(wins: ArrayLike) -> Floats:
    won = np.asarray(wins, dtype=np.float64)
    if won.ndim != 2 or won.shape[0] != won.shape[1] or len(won) < 2:
        raise ValueError(f"Wins must be a square table of at least two policies, got shape {won.shape}.")
    if not (np.isfinite(won) & (won >= 0) & (won == np.floor(won))).all():
        raise ValueError("Wins must be whole numbers from 0; leave ties out instead of halving them.")
    if won.diagonal().any():
        raise ValueError("No policy can beat itself: the diagonal of the wins must be 0.")
    return won


def _all_connected(won: Floats) -> None:
    from scipy.sparse.csgraph import connected_components

    groups, member = connected_components(won > 0, directed=True, connection="strong")
    for group in range(groups if groups > 1 else 0):
        inside = member == group
        if not won[~inside][:, inside].any():
            names = ", ".join(map(str, np.flatnonzero(inside)))
            raise ValueError(
                f"Strengths are not finite: policies {names} (counted from 0) never lost to the others, or never met "
                "them; add duels or compare the groups apart."
            )


def _chances(strength: Floats) -> Floats:
    """(policies, policies): how likely row beats column."""
    from scipy.special import expit

    return np.asarray(expit(strength[:, None] - strength[None, :]))


def _slopes(won: Floats, strength: Floats) -> tuple[Floats, Floats]:
    """Gradient of the log-likelihood, and its observed information (minus the second derivatives)."""
    games, chance = won + won.T, _chances(strength)
    weight = games * chance * (1 - chance)
    return won.sum(axis=1) - (games * chance).sum(axis=1), np.diag(weight.sum(axis=1)) - weight


def _log_likelihood(won: Floats, strength: Floats) -> float:
    return float(-np.sum(won * np.logaddexp(0, strength[None, :] - strength[:, None])))
