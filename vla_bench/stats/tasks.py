"""Means over the tasks of a suite. Say which question is asked, the answers differ several times over:

These tasks: other episodes of the same tasks (`stratified_*`). Tasks like these: other tasks of the same kind
(`between_tasks`, `clustered_rate`, `cluster_bootstrap`). Everywhere `tasks` holds one list of values per task (0 and 1,
scores, or differences A minus B over the same episodes) and every task weighs the same, however many episodes it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_bench.stats.rates import Interval, within_0_1

Floats = NDArray[np.float64]


class TaskMean(NamedTuple):
    """Mean of the task means, its standard error and interval."""

    mean: float
    error: float
    interval: Interval


def stratified_error(tasks: Sequence[ArrayLike]) -> float:
    """Standard error of the mean of task means, for these tasks: sqrt(sum of each task's variance / episodes) / tasks.

    Cochran 1977, Sampling Techniques, 3rd edition, chapter 5; a success rate's variance is p (1 - p) n / (n - 1).
    Needs two episodes of every task. It is 0 where each task always gave the same: no promise, only too few episodes.
    With equally many episodes per task, `wilson` of the pooled counts is an interval for these tasks, a little wide.
    """
    values = _values(tasks, least=2)
    return sqrt(sum(task.var(ddof=1) / len(task) for task in values)) / len(values)


def between_tasks(
    tasks: Sequence[ArrayLike], confidence: float = 0.95, limits: tuple[float, float] = (0.0, 1.0)
) -> TaskMean:
    """The mean over tasks like these: spread of the task means / sqrt(tasks), Student's t, cut off at the limits.

    Student 1908, Biometrika 6:1. Needs two tasks. Differences have limits (-1, 1). A rate near 0 or 1 is better served
    by `clustered_rate`: here a suite solved completely has an interval of no width.
    """
    from scipy.special import stdtrit

    means = _means(_values(tasks), least=2)
    mean, error = float(means.mean()), float(means.std(ddof=1)) / sqrt(len(means))
    half = float(stdtrit(len(means) - 1, (1 + within_0_1("Confidence", confidence)) / 2)) * error
    return TaskMean(mean, error, Interval(max(mean - half, limits[0]), min(mean + half, limits[1])))


def clustered_rate(tasks: Sequence[ArrayLike], confidence: float = 0.95) -> TaskMean:
    """The success rate over tasks like these, values from 0 to 1: never outside (0, 1), never of no width.

    Korn & Graubard 1998, Survey Methodology 24:193: Clopper and Pearson's interval with as many episodes as would give
    the spread seen between tasks, corrected for the few tasks and at most those there are (so NCHS). Needs two tasks.
    """
    from scipy.special import betaincinv, stdtrit

    values = _values(tasks)
    if min(task.min() for task in values) < 0 or max(task.max() for task in values) > 1:
        raise ValueError("A success rate needs values from 0 to 1; give differences to between_tasks.")
    mean, error, _ = between_tasks(tasks, confidence)
    upper = (1 + within_0_1("Confidence", confidence)) / 2
    episodes = sum(len(task) for task in values)
    effective = float(episodes)
    if error > 0:
        few = float(stdtrit(episodes - 1, upper) / stdtrit(len(values) - 1, upper))
        effective = min(effective, mean * (1 - mean) / error**2 * few**2)
    good, bad = effective * mean, effective * (1 - mean)
    low = float(betaincinv(good, bad + 1, 1 - upper)) if good > 0 else 0.0
    return TaskMean(mean, error, Interval(low, float(betaincinv(good + 1, bad, upper)) if bad > 0 else 1.0))


def stratified_bootstrap(
    tasks: Sequence[ArrayLike], rng: np.random.Generator, confidence: float = 0.95, draws: int = 10_000
) -> Interval:
    """Percentile interval of the mean over these tasks: episodes drawn again within every task, as rliable does.

    Agarwal et al. 2021, NeurIPS (arXiv 2108.13264). Needs two episodes of every task. Like all bootstraps it cannot see
    beyond the sample: a suite solved completely has an interval of no width.
    """
    values = _values(tasks, least=2)
    means = np.zeros(_count(draws))
    for task in values:
        scores, seen = np.unique(task, return_counts=True)
        means += _shares(seen, rng, draws) @ scores
    return _percentiles(means / len(values), confidence)


def cluster_bootstrap(
    tasks: Sequence[ArrayLike], rng: np.random.Generator, confidence: float = 0.95, draws: int = 10_000
) -> Interval:
    """Percentile interval of the mean over tasks like these: whole tasks drawn again, with all their episodes.

    Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8. Needs two tasks; with ten
    it is too narrow (covers about 90 % for 95 %), and of no width when all task means are equal.
    """
    means = _means(_values(tasks), least=2)
    drawn = rng.integers(0, len(means), (_count(draws), len(means)))
    return _percentiles(means[drawn].mean(axis=1), confidence)


def probability_of_improvement(tasks_a: Sequence[ArrayLike], tasks_b: Sequence[ArrayLike]) -> float:
    """Chance that A scores higher than B in an episode each of the same task, ties half; mean over the tasks.

    Agarwal et al. 2021 (arXiv 2108.13264), from Mann & Whitney 1947. For success it is 1/2 + (rate A - rate B) / 2.
    """
    a, b = _same_tasks(tasks_a, tasks_b)
    return float(np.mean([_wins(x, y).mean() for x, y in zip(a, b, strict=True)]))


def improvement_bootstrap(
    tasks_a: Sequence[ArrayLike],
    tasks_b: Sequence[ArrayLike],
    rng: np.random.Generator,
    confidence: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """Percentile interval of `probability_of_improvement` for these tasks: episodes of A and of B drawn again apart.

    As rliable does (arXiv 2108.13264). Takes no account of A and B sharing episodes.
    """
    a, b = _same_tasks(tasks_a, tasks_b)
    chances = np.zeros(_count(draws))
    for x, y in zip(a, b, strict=True):
        scores_a, seen_a = np.unique(x, return_counts=True)
        scores_b, seen_b = np.unique(y, return_counts=True)
        shares_a, shares_b = _shares(seen_a, rng, draws), _shares(seen_b, rng, draws)
        chances += np.sum(shares_a @ _wins(scores_a, scores_b) * shares_b, axis=1)
    return _percentiles(chances / len(a), confidence)


def _wins(a: Floats, b: Floats) -> Floats:
    """(scores of A, scores of B): 1 where A's is higher, 1/2 where equal."""
    return (1 + np.sign(a[:, None] - b[None, :])) / 2


def _shares(seen: NDArray[np.intp], rng: np.random.Generator, draws: int) -> Floats:
    """(draws, scores): how often each score comes up, of 1, when as many episodes as seen are drawn from those seen."""
    n = int(seen.sum())
    return np.asarray(rng.multinomial(n, seen / n, draws) / n)


def _same_tasks(tasks_a: Sequence[ArrayLike], tasks_b: Sequence[ArrayLike]) -> tuple[list[Floats], list[Floats]]:
    a, b = _values(tasks_a), _values(tasks_b)
    if len(a) != len(b):
        raise ValueError(f"A and B must have the same tasks, got {len(a)} and {len(b)}.")
    return a, b


def _values(tasks: Sequence[ArrayLike], least: int = 1) -> list[Floats]:
    values = [np.asarray(task, dtype=np.float64) for task in tasks]
    if not values:
        raise ValueError("There must be at least one task.")
    for i, task in enumerate(values):
        if task.ndim != 1 or len(task) < least:
            raise ValueError(f"Every task needs at least {least} values in a flat list, task {i} has {task.shape}.")
        if not np.isfinite(task).all():
            raise ValueError(f"Values must be finite numbers, task {i} has others; leave out what was not judged.")
    return values


def _means(values: list[Floats], least: int) -> Floats:
    if len(values) < least:
        raise ValueError(f"What holds for tasks like these takes at least {least} tasks to see, got {len(values)}.")
    return np.array([task.mean() for task in values])


def _percentiles(drawn: Floats, confidence: float) -> Interval:
    tail = (1 - within_0_1("Confidence", confidence)) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _count(draws: int) -> int:
    if draws < 1:
        raise ValueError(f"The number of draws must be at least 1, got {draws}.")
    return draws
