"""Chunking against dense tables written from the papers' formulas, and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vla_bench.chunking import CHUNKINGS, AdaptiveEnsemble, Chunking, RecedingHorizon, TemporalEnsemble
from vla_bench.errors import UsageError
from vla_bench.types import Float32

HORIZON, DIM, INFERENCES = 6, 7, 20


def random_chunks(seed: int) -> list[Float32]:
    return list(np.random.default_rng(seed).uniform(-1, 1, (INFERENCES, HORIZON, DIM)).astype(np.float32))


def played(chunking: Chunking, chunks: list[Float32]) -> Float32:
    """Every action of an episode in which these chunks were predicted one after the other."""
    past: tuple[Float32, ...] = ()
    actions = []
    for chunk in chunks:
        now, past = chunking.play(past, chunk)
        actions.append(now)
    return np.concatenate(actions)


def dense_predictions(chunks: list[Float32], execute: int, step: int) -> np.ndarray:
    """All predictions of control step `step` that existed then, oldest first, read off a table over all time (ACT)."""
    table = np.full((len(chunks), len(chunks) * execute + HORIZON, DIM), np.nan)
    for inference, chunk in enumerate(chunks):
        table[inference, inference * execute : inference * execute + HORIZON] = chunk
    known = ~np.isnan(table[:, step, 0]) & (np.arange(len(chunks)) <= step // execute)
    column: np.ndarray = table[known, step]
    return column


def dense_temporal(chunks: list[Float32], execute: int, decay: float) -> np.ndarray:
    actions = []
    for step in range(len(chunks) * execute):
        column = dense_predictions(chunks, execute, step)
        weights = np.array([np.exp(-decay * i) for i in range(len(column))])
        actions.append(sum(w * row for w, row in zip(weights / weights.sum(), column, strict=True)))
    return np.array(actions)


def dense_adaptive(chunks: list[Float32], execute: int, alpha: float, window: int) -> np.ndarray:
    actions = []
    for step in range(len(chunks) * execute):
        newest = step // execute
        first = max(0, newest - window + 1)
        column = dense_predictions(chunks[first : newest + 1], execute, step - first * execute)
        ref = column[-1]
        weights = np.array(
            [np.exp(alpha * (row @ ref) / (np.linalg.norm(row) * np.linalg.norm(ref) + 1e-7)) for row in column]
        )
        actions.append((weights / weights.sum()) @ column)
    return np.array(actions)


@pytest.mark.parametrize("execute", [1, 2, 3, HORIZON])
@pytest.mark.parametrize("decay", [0.0, 0.01, 0.5, -0.5])
def test_temporal_ensemble_equals_the_dense_table(execute: int, decay: float) -> None:
    chunks = random_chunks(seed=1)
    expected = dense_temporal(chunks, execute, decay)
    np.testing.assert_allclose(played(TemporalEnsemble(decay, execute), chunks), expected, atol=1e-6)


@pytest.mark.parametrize("execute", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_adaptive_ensemble_equals_the_dense_table(execute: int, window: int) -> None:
    chunks = random_chunks(seed=2)
    expected = dense_adaptive(chunks, execute, 0.7, window)
    np.testing.assert_allclose(played(AdaptiveEnsemble(0.7, window, execute), chunks), expected, atol=1e-6)


def test_temporal_ensemble_weighs_the_oldest_most() -> None:
    chunks = [np.array([[0.0], [1.0], [1.0]], np.float32), np.array([[0.0], [0.0], [0.0]], np.float32)]
    half = TemporalEnsemble(decay=float(np.log(2)))  # weights 1, 1/2: normalised 2/3, 1/3
    np.testing.assert_allclose(played(half, chunks)[:, 0], [0.0, 2 / 3], atol=1e-7)


def test_adaptive_ensemble_of_orthogonal_predictions_by_hand() -> None:
    chunks = [np.array([[9.0, 9.0], [0.0, 1.0]], np.float32), np.array([[1.0, 0.0], [9.0, 9.0]], np.float32)]
    action = played(AdaptiveEnsemble(alpha=float(np.log(3))), chunks)[1]  # cosines 0 and 1: weights 1/4, 3/4
    np.testing.assert_allclose(action, [0.75, 0.25], atol=1e-6)


def test_adaptive_ensemble_survives_all_zero_actions() -> None:
    zeros = [np.zeros((HORIZON, DIM), np.float32)] * 3
    assert not played(AdaptiveEnsemble(), zeros).any()


def test_adaptive_window_of_one_plays_the_newest_prediction() -> None:
    chunks = random_chunks(seed=3)
    np.testing.assert_array_equal(played(AdaptiveEnsemble(window=1), chunks), played(RecedingHorizon(1), chunks))


def test_no_decay_is_the_mean_of_all_predictions() -> None:
    chunks = random_chunks(seed=4)
    fifth = np.mean([chunks[i][4 - i] for i in range(5)], axis=0)
    np.testing.assert_allclose(played(TemporalEnsemble(decay=0.0), chunks)[4], fifth, atol=1e-6)


@pytest.mark.parametrize("ensemble", [TemporalEnsemble(0.3), TemporalEnsemble(0.0), AdaptiveEnsemble(0.9)])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_weights_sum_to_one(ensemble: TemporalEnsemble | AdaptiveEnsemble, count: int) -> None:
    weights = ensemble.weights(random_chunks(seed=5)[0].repeat(2, axis=0)[:count])
    assert weights.shape == (count,)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights > 0).all()


@pytest.mark.parametrize("name", CHUNKINGS)
def test_equal_predictions_come_out_unchanged(name: str) -> None:
    plan = np.random.default_rng(6).uniform(-1, 1, (40, DIM)).astype(np.float32)
    chunks = [plan[2 * i : 2 * i + HORIZON] for i in range(10)]  # every inference sees the same future
    np.testing.assert_allclose(played(CHUNKINGS[name](execute=2), chunks), plan[:20], atol=1e-6)


@pytest.mark.parametrize("execute", [1, 4, HORIZON])
def test_receding_horizon_plays_the_first_actions_of_every_chunk(execute: int) -> None:
    chunks = random_chunks(seed=7)
    expected = np.concatenate([chunk[:execute] for chunk in chunks])
    np.testing.assert_array_equal(played(RecedingHorizon(execute), chunks), expected)


def test_receding_horizon_without_execute_plays_chunks_of_any_length_whole() -> None:
    chunks = [np.ones((n, DIM), np.float32) for n in (1, 5, 3)]
    assert len(played(RecedingHorizon(), chunks)) == 9


@pytest.mark.parametrize("chunking", [RecedingHorizon(2), TemporalEnsemble(execute=2), AdaptiveEnsemble(execute=2)])
def test_playing_mutates_nothing(chunking: Chunking) -> None:
    first, second = random_chunks(seed=8)[:2]
    _, past = chunking.play((), first)
    before = [array.copy() for array in (first, second, *past)]
    chunking.play(past, second)
    for array, then in zip((first, second, *past), before, strict=True):
        np.testing.assert_array_equal(array, then)


@pytest.mark.parametrize("chunking", [RecedingHorizon(2), TemporalEnsemble(execute=2), AdaptiveEnsemble(execute=2)])
def test_a_policy_may_reuse_its_buffer(chunking: Chunking) -> None:
    buffer = random_chunks(seed=8)[0]
    actions, past = chunking.play((), buffer)
    assert not any(np.shares_memory(array, buffer) for array in (actions, *past))


@pytest.mark.parametrize("chunking", [RecedingHorizon(3), TemporalEnsemble(execute=3), AdaptiveEnsemble(execute=3)])
def test_actions_are_float32_and_the_past_stays_short(chunking: Chunking) -> None:
    past: tuple[Float32, ...] = ()
    for chunk in random_chunks(seed=9):
        actions, past = chunking.play(past, chunk)
        assert actions.dtype == np.float32
        assert actions.shape == (3, DIM)
        assert len(past) <= HORIZON // 3
        assert all(0 < len(tail) <= HORIZON - 3 for tail in past)


@pytest.mark.parametrize("name", CHUNKINGS)
def test_executing_more_than_the_chunk_is_a_usage_error_with_both_numbers(name: str) -> None:
    with pytest.raises(UsageError, match=r"execute 9 .* answers with 6"):
        CHUNKINGS[name](execute=9).play((), random_chunks(seed=0)[0])


@pytest.mark.parametrize("name", CHUNKINGS)
def test_executing_nothing_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="at least 1, got 0"):
        CHUNKINGS[name](execute=0)


def test_an_empty_window_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="window must be at least 1"):
        AdaptiveEnsemble(window=0)
