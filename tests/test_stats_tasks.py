from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from vla_bench.stats.rates import Interval, clopper_pearson, wilson
from vla_bench.stats.tasks import (
    between_tasks,
    cluster_bootstrap,
    clustered_rate,
    improvement_bootstrap,
    probability_of_improvement,
    stratified_bootstrap,
    stratified_error,
)

Floats = NDArray[np.float64]


def suite(successes: list[int], n: int) -> list[Floats]:
    return [np.r_[np.ones(k), np.zeros(n - k)] for k in successes]


ONE_BAD_TASK = suite([50, 49, 48, 50, 47, 45, 50, 49, 50, 31], 50)


def test_one_bad_task_gives_the_published_errors_and_intervals() -> None:
    assert wilson(469, 500) == pytest.approx((0.91334, 0.95598), abs=5e-6)
    assert stratified_error(ONE_BAD_TASK) == pytest.approx(0.0096848, abs=5e-8)
    mean, error, interval = between_tasks(ONE_BAD_TASK, limits=(-9, 9))
    assert mean == pytest.approx(0.938)
    assert error == pytest.approx(0.0368118, abs=5e-8)
    assert interval == pytest.approx((0.85473, 1.02127), abs=5e-6)
    assert between_tasks(ONE_BAD_TASK).interval.high == 1.0
    assert error / np.sqrt(0.938 * 0.062 / 500) == pytest.approx(3.4, abs=0.05)  # the pooled error is so much too small


def test_cluster_bootstrap_gives_the_published_interval() -> None:
    drawn = cluster_bootstrap(ONE_BAD_TASK, np.random.default_rng(0), draws=20_000)
    assert drawn == pytest.approx((0.860, 0.988), abs=0.0021)  # the means lie 0.002 apart


def test_stratified_error_is_what_repeating_the_episodes_shows() -> None:
    rng = np.random.default_rng(0)
    rates, trials = np.array([0.2, 0.5, 0.95]), [30, 10, 60]
    runs = [[(rng.random(n) < p).astype(float) for p, n in zip(rates, trials, strict=True)] for _ in range(2000)]
    means = [np.mean([task.mean() for task in run]) for run in runs]
    variances = [stratified_error(run) ** 2 for run in runs]
    assert np.sqrt(np.mean(variances)) == pytest.approx(np.std(means), rel=0.05)


def test_stratified_bootstrap_is_as_wide_as_the_stratified_error() -> None:
    low, high = stratified_bootstrap(ONE_BAD_TASK, np.random.default_rng(0))
    assert (high - low) / (2 * 1.96) == pytest.approx(stratified_error(ONE_BAD_TASK), rel=0.05)
    assert low < 0.938 < high


def test_every_task_weighs_the_same() -> None:
    tasks = [np.ones(2), np.zeros(200)]
    rng = np.random.default_rng(0)
    assert between_tasks(tasks).mean == clustered_rate(tasks).mean == 0.5
    assert stratified_bootstrap(tasks, rng) == (0.5, 0.5)
    assert cluster_bootstrap(tasks, rng) == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0, 1])
def test_a_suite_solved_completely_or_never_still_has_a_width(rate: int) -> None:
    tasks = suite([50 * rate] * 10, 50)
    assert clustered_rate(tasks) == (rate, 0.0, clopper_pearson(500 * rate, 500))
    assert between_tasks(tasks).interval == (rate, rate)


def test_clustered_rate_is_clopper_and_pearsons_of_the_effective_episodes() -> None:
    mean, error, interval = clustered_rate(ONE_BAD_TASK)
    few = 1.964729390987682 / 2.2621571627409915  # t quantiles with 499 and 9 degrees of freedom
    effective = mean * (1 - mean) / error**2 * few**2
    above = clopper_pearson(round(effective * mean) - 1, round(effective))
    below = clopper_pearson(round(effective * mean) + 1, round(effective))
    assert above.low < interval.low < below.low
    assert above.high < interval.high < below.high
    even = suite([25] * 10, 50)
    assert clustered_rate(even).interval == pytest.approx(clopper_pearson(250, 500))


def test_clustered_rate_stays_within_bounds_where_tasks_are_few_and_far_apart() -> None:
    low, high = clustered_rate([[0.0], [1.0]]).interval
    assert 0 <= low < 0.01
    assert 0.99 < high <= 1


def test_only_intervals_for_tasks_like_these_cover_other_tasks() -> None:
    """400 suites of ten tasks whose rates are drawn from Beta(8, 2), 50 episodes each; true mean 0.8."""
    rng = np.random.default_rng(0)
    covered = {"pooled": 0, "bootstrap": 0, "t": 0, "clustered": 0}
    for _ in range(400):
        tasks = [(rng.random(50) < p).astype(float) for p in rng.beta(8, 2, 10)]
        for name, (low, high) in {
            "pooled": wilson(int(np.sum(tasks)), 500),
            "bootstrap": cluster_bootstrap(tasks, rng, draws=500),
            "t": between_tasks(tasks).interval,
            "clustered": clustered_rate(tasks).interval,
        }.items():
            covered[name] += low <= 0.8 <= high
    assert covered["pooled"] < 0.75 * 400
    assert 0.85 * 400 < covered["bootstrap"] < 0.94 * 400  # the docstring's "about 90 %"
    assert covered["t"] > 0.91 * 400
    assert covered["clustered"] > 0.93 * 400


def test_stratified_bootstrap_covers_these_tasks() -> None:
    rng = np.random.default_rng(0)
    rates = [0.3, 0.6, 0.9, 0.8]
    suites = [[(rng.random(50) < p).astype(float) for p in rates] for _ in range(400)]
    intervals = [stratified_bootstrap(tasks, rng, draws=500) for tasks in suites]
    assert 0.91 < np.mean([low <= 0.65 <= high for low, high in intervals]) < 0.98


def test_differences_of_paired_episodes_may_be_negative() -> None:
    tasks = [np.array([-1, 0, 0, 1.0]), np.array([-1.0, -1, 0, 0])]
    mean, _, interval = between_tasks(tasks, limits=(-1, 1))
    assert mean == -0.25
    assert interval == (-1.0, 1.0)
    with pytest.raises(ValueError, match="0 to 1"):
        clustered_rate(tasks)


def test_same_seed_same_interval() -> None:
    for draw in (cluster_bootstrap, stratified_bootstrap):
        assert draw(ONE_BAD_TASK, np.random.default_rng(5)) == draw(ONE_BAD_TASK, np.random.default_rng(5))


def test_probability_of_improvement_of_success_is_half_the_difference_above_a_half() -> None:
    a, b = suite([45, 20, 50], 50), suite([30, 25, 50], 50)
    assert probability_of_improvement(a, b) == pytest.approx(0.5 + (45 + 20 - 30 - 25) / 150 / 2)
    assert probability_of_improvement(b, a) == pytest.approx(1 - probability_of_improvement(a, b))
    assert probability_of_improvement(a, a) == 0.5


def test_probability_of_improvement_counts_pairs_of_scores() -> None:
    assert probability_of_improvement([[5, 3]], [[4, 3, 1]]) == pytest.approx((3 + 1.5) / 6)
    assert probability_of_improvement([[1], [0, 0]], [[0], [1]]) == 0.5


def test_improvement_bootstrap_covers_and_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    a, b = suite([40, 30], 50), suite([30, 35], 50)
    low, high = improvement_bootstrap(a, b, rng, draws=10_000)
    error = np.sqrt(sum(k * (50 - k) / 50**3 for k in (40, 30, 30, 35))) / 2 / 2
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    assert low < probability_of_improvement(a, b) < high
    assert improvement_bootstrap(a, b, np.random.default_rng(1)) == improvement_bootstrap(
        a, b, np.random.default_rng(1)
    )


@pytest.mark.parametrize(
    "answer",
    [
        stratified_error,
        between_tasks,
        clustered_rate,
        lambda tasks: stratified_bootstrap(tasks, np.random.default_rng(0)),
        lambda tasks: cluster_bootstrap(tasks, np.random.default_rng(0)),
        lambda tasks: probability_of_improvement(tasks, tasks),
    ],
)
def test_what_is_no_suite_is_refused(answer: Callable[[object], float | Interval]) -> None:
    for bad, message in [
        ([], "at least one task"),
        ([[1.0, 0.0], []], "task 1"),
        ([[1.0, np.nan], [1.0, 1.0]], "finite"),
        ([[[1.0, 0.0]], [[1.0]]], "flat"),
    ]:
        with pytest.raises(ValueError, match=message):
            answer(bad)


def test_too_little_to_see_a_spread_is_refused() -> None:
    rng = np.random.default_rng(0)
    one_task, one_episode = [[1.0, 0.0]], [[1.0, 0.0], [1.0]]
    with pytest.raises(ValueError, match="at least 2 tasks"):
        between_tasks(one_task)
    with pytest.raises(ValueError, match="at least 2 tasks"):
        clustered_rate(one_task)
    with pytest.raises(ValueError, match="at least 2 tasks"):
        cluster_bootstrap(one_task, rng)
    with pytest.raises(ValueError, match="at least 2 values"):
        stratified_error(one_episode)
    with pytest.raises(ValueError, match="at least 2 values"):
        stratified_bootstrap(one_episode, rng)
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement([[1.0]], [[1.0], [0.0]])
    with pytest.raises(ValueError, match="draws"):
        cluster_bootstrap(ONE_BAD_TASK, rng, draws=0)
    with pytest.raises(ValueError, match="Confidence"):
        cluster_bootstrap(ONE_BAD_TASK, rng, confidence=95)
