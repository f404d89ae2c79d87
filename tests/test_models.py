"""What holds for every policy that is a model, whichever it is: the contract of the engine, and of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_bench.cli import main
from vla_bench.errors import UsageError
from vla_bench.inference import check_chunks, check_compatible
from vla_bench.registry import make_policy, make_suite
from vla_bench.store.runs import read_episodes, read_inferences
from vla_bench.training.convert import ConvertConfig, convert
from vla_bench.types import ActionSpec, Camera, Episode, Observation, Suite, Task

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from vla_bench.policies.torch import conventions  # noqa: E402
from vla_bench.policies.torch.policy import Settings  # noqa: E402
from vla_bench.policies.torch.training import Batch  # noqa: E402

MODELS = ("pi0", "reconvla", "openvla", "diffusion_policy")
NOISY = ("pi0", "diffusion_policy")
SOON = 60
"""Control steps: several chunks of every model."""
STAGES = {"vision", "prefill", "decode", "denoise", "post"}


def arm(
    name: str = "arm", action: ActionSpec = conventions.LIBERO_ACTION, state: tuple[str, ...] = conventions.LIBERO_STATE
) -> Suite:
    """A suite that only says what it is."""
    cameras = Camera("front", 64, 64), Camera("wrist", 48, 48)

    def nothing(*_: object) -> Any:
        raise AssertionError("no simulator is needed here")

    task = Task("reach", ("reach for the red block",), 20, 10)
    return Suite(name, "1", (task,), action, cameras, state, 20.0, nothing, dict)


def seen(suite: Suite, seeds: Sequence[int], history: int = 1) -> list[Observation]:
    """One observation of noise for every seed."""
    return [observation(suite, np.random.default_rng(seed), seed, history) for seed in seeds]


def observation(suite: Suite, rng: np.random.Generator, seed: int, history: int) -> Observation:
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in suite.cameras}
    state = rng.normal(size=len(suite.state)).astype(np.float32)
    past = tuple(observation(suite, rng, seed, 1) for _ in range(history - 1))
    words = rng.choice(["push the red block", "open the drawer and close it again", "lift"])
    return Observation(images, state, str(words), slot=seed, seed=seed, earlier=past)


def tiny(name: str, suite: Suite | None = None, *arguments: str) -> Any:
    return make_policy(name, suite or arm(), None, ["size=tiny", "device=cpu", *arguments])


def answers(policy: Any, observations: Sequence[Observation]) -> np.ndarray:
    policy.reset([o.slot for o in observations], [Episode("arm", "reach", 0, 0)] * len(observations))
    return np.stack([chunk.actions for chunk in policy.infer(observations)])


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# The engine's contract


def test_a_tiny_model_answers_for_any_suite(name: str) -> None:
    for suite in (arm(), arm("table", conventions.CALVIN_ACTION, conventions.CALVIN_STATE)):
        policy = tiny(name, suite)
        check_compatible(policy, suite)
        chunks = policy.infer(seen(suite, [1, 2], policy.spec.history))
        check_chunks(chunks, 2, policy.spec)
        assert {len(chunk.actions) for chunk in chunks} == {policy.spec.chunk}
        assert re.match(r"untrained random weights, size tiny, \d+\.\d M parameters", policy.spec.note)
        assert 0.3e6 < sum(p.numel() for p in policy.model.parameters()) < 6e6


def test_every_stage_is_timed_and_named_as_everywhere(name: str) -> None:
    policy = tiny(name)
    (chunk,) = policy.infer(seen(arm(), [1], policy.spec.history))
    assert set(chunk.stages) <= STAGES
    assert {"vision"} < set(chunk.stages)
    assert all(milliseconds >= 0 for milliseconds in chunk.stages.values())


def test_the_answer_depends_on_the_observation_and_its_seed_and_nothing_else(name: str) -> None:
    policy = tiny(name)
    four = seen(arm(), [1, 2, 3, 4], policy.spec.history)
    together = answers(policy, four)
    backwards = answers(policy, four[::-1])[::-1]
    singly = np.concatenate([answers(policy, [one]) for one in four])
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together, singly)
    np.testing.assert_array_equal(together, answers(tiny(name), four))
    assert policy.spec.deterministic


def test_sharing_a_forward_pass_changes_nothing_but_rounding(name: str) -> None:
    policy, batched = tiny(name), tiny(name, None, "batching=together")
    four = seen(arm(), [1, 2, 3, 4], policy.spec.history)
    np.testing.assert_allclose(answers(batched, four), answers(policy, four), atol=1e-5)
    assert not batched.spec.deterministic


def test_noise_comes_from_the_observations_seed(name: str) -> None:
    policy = tiny(name)
    (one,) = seen(arm(), [1], policy.spec.history)
    other = dataclasses.replace(one, seed=2)
    equal = np.array_equal(answers(policy, [one]), answers(policy, [other]))
    assert equal == (name not in NOISY)


def test_every_camera_it_asks_for_is_looked_at(name: str) -> None:
    """In one of eight observations at least: tokens round small changes away."""
    policy = tiny(name)
    eight = seen(arm(), range(8), policy.spec.history)
    for camera in policy.spec.cameras:
        black = np.zeros((camera.height, camera.width, 3), np.uint8)
        dark = [dataclasses.replace(one, images={**one.images, camera.name: black}) for one in eight]
        assert not np.array_equal(answers(policy, eight), answers(policy, dark))


# Training


def batch(suite: Suite, policy: Any, size: int, seed: int = 0) -> Batch:
    """Noise to learn by heart."""
    rng, history = np.random.default_rng(seed), policy.spec.history
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        images={
            c.name: torch.randint(0, 256, (size, history, c.height, c.width, 3), generator=draw, dtype=torch.uint8)
            for c in suite.cameras
        },
        state=torch.rand((size, history, len(suite.state)), generator=draw) * 2 - 1,
        instructions=[str(rng.choice(["push the red block", "lift"])) for _ in range(size)],
        actions=torch.rand((size, chunk_to_learn(policy), suite.action.dim), generator=draw) * 2 - 1,
        valid=torch.ones((size, chunk_to_learn(policy)), dtype=torch.bool),
        gaze=torch.tensor([0.2, 0.3, 0.6, 0.7]).repeat(size, 1),
    )


def chunk_to_learn(policy: Any) -> int:
    """Actions that a sample brings: from the first observation's instant on."""
    return int(policy.spec.chunk + policy.spec.history - 1)


def test_the_loss_is_a_number_that_gradients_flow_from(name: str) -> None:
    policy = tiny(name)
    losses = policy.losses(batch(arm(), policy, 4), torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    still = [n for n, p in policy.model.named_parameters() if p.requires_grad and p.grad is None]
    assert len(still) < 0.3 * len(list(policy.model.parameters())), still


def test_the_loss_draws_from_its_generator_alone(name: str) -> None:
    policy = tiny(name)
    given = batch(arm(), policy, 4)
    first, again = (policy.losses(given, torch.Generator().manual_seed(7))["loss"].item() for _ in range(2))
    assert first == again


# Checkpoints


def test_a_saved_model_answers_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    suite, policy = arm(), tiny(name)
    policy.save(tmp_path / "ckpt", {"trained on": "nothing"})
    read = make_policy(name, suite, str(tmp_path / "ckpt"), ["device=cpu"])
    four = seen(suite, [1, 2, 3, 4], policy.spec.history)
    np.testing.assert_array_equal(answers(read, four), answers(policy, four))
    assert re.fullmatch("[0-9a-f]{64}", read.spec.checkpoint)
    assert not read.spec.note
    whole = ("device=cpu", *(["head=keep"] if name == "reconvla" else []))  # it acts without its reconstruction head
    done = convert(ConvertConfig(name, str(tmp_path / "ckpt"), "test_models:arm", str(tmp_path / "copy"), whole))
    assert done.sha256 == read.spec.checkpoint


def test_no_weights_and_no_size_is_one_sentence(name: str) -> None:
    with pytest.raises(
        UsageError, match=f"{name} comes without weights .*give --checkpoint DIR, or --policy-args size=tiny"
    ):
        make_policy(name, arm())


def test_both_weights_and_tiny_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave one out"):
        make_policy(name, arm(), str(tmp_path), ["size=tiny"])


@pytest.mark.parametrize("damage", ["missing", "empty", "foreign", "truncated", "another policy", "a tensor less"])
def test_a_bad_checkpoint_is_one_sentence(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    tiny(name).save(folder, {})
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "missing":
        folder = tmp_path / "nowhere"
    elif damage == "empty":
        (folder := tmp_path / "other").mkdir()
    elif damage == "foreign":
        config.write_text(json.dumps({"model_type": "bert"}))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "another policy":
        config.write_text(config.read_text().replace(f'"{name}"', '"act"'))
    else:
        tensors = __import__("safetensors.torch").torch.load_file(weights)
        tensors.pop(sorted(tensors)[0])
        __import__("safetensors.torch").torch.save_file(tensors, weights)
    with pytest.raises(UsageError) as error:
        make_policy(name, arm(), str(folder), ["device=cpu"])
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
    assert "could not be made" not in str(error.value)


def test_a_checkpoint_made_for_another_robot_is_refused(name: str, tmp_path: Path) -> None:
    tiny(name).save(tmp_path / "ckpt", {})
    other = arm("table", conventions.CALVIN_ACTION, conventions.CALVIN_STATE)
    with pytest.raises(UsageError) as error:
        check_compatible(make_policy(name, other, str(tmp_path / "ckpt"), ["device=cpu"]), other)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match=r"The device 'tpu9' cannot be used .*use device=cpu"):
        make_policy(name, arm(), None, ["size=tiny", "device=tpu9"])


def test_settings_decide_where_and_how(name: str) -> None:
    policy = tiny(name, None, "dtype=bfloat16")
    assert policy.settings == Settings(torch.device("cpu"), torch.bfloat16)
    chunk = policy.infer(seen(arm(), [1], policy.spec.history))[0]
    assert np.isfinite(chunk.actions).all()


# The whole way


def cut_short(name: str, of: str) -> Suite:
    """The first task of that suite, ended soon, seen in pictures of 64 pixels, which are soon painted."""
    suite = make_suite(of, ["resolution=64"])
    return dataclasses.replace(suite, name=name, tasks=(dataclasses.replace(suite.tasks[0], max_steps=SOON),))


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("suite", ["robosuite", "libero_object"])
@pytest.mark.parametrize("name", MODELS)
def test_an_episode_is_completed(name: str, suite: str, tmp_path: Path) -> None:
    command = ["run", "--policy", name, "--policy-args", "size=tiny", "--suite", "test_models:cut_short"]
    assert main([*command, "--suite-args", f"of={suite}", "--episodes", "1", "--out", str(tmp_path / "run")]) == 0
    (row,) = read_episodes(tmp_path / "run")
    assert (row.success, row.steps) == (False, SOON)
    calls = read_inferences(tmp_path / "run")
    assert calls.executed.sum() == SOON
    assert calls.stage_vision_ms.gt(0).all()


@pytest.mark.parametrize(
    ("suite", "action", "state"),
    [
        ("libero_10", conventions.LIBERO_ACTION, conventions.LIBERO_STATE),
        ("robosuite", conventions.LIBERO_ACTION, conventions.LIBERO_STATE),
        ("calvin_d", conventions.CALVIN_ACTION, conventions.CALVIN_STATE),
    ],
)
def test_conventions_are_what_the_suites_declare(suite: str, action: ActionSpec, state: tuple[str, ...]) -> None:
    made = make_suite(suite)
    assert (made.action, made.state) == (action, state)
