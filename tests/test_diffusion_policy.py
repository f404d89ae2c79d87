"""Diffusion Policy: its networks against upstream's, its formats against upstream's files, its sampling by property."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import slow
from scipy.spatial.transform import Rotation

from vla_bench.errors import UsageError
from vla_bench.geometry import axis_angle_from_quat
from vla_bench.inference import check_compatible
from vla_bench.types import ActionSpec, Camera, Observation, Suite, Task

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402
from vla_bench.policies.diffusion_policy import robomimic  # noqa: E402
from vla_bench.policies.diffusion_policy.formats import read_official  # noqa: E402
from vla_bench.policies.diffusion_policy.model import DiffusionModel, Schedule, Sizes  # noqa: E402
from vla_bench.policies.diffusion_policy.policy import DiffusionPolicy, _looked_back  # noqa: E402
from vla_bench.policies.torch.conventions import CALVIN_ACTION, CALVIN_STATE, LIBERO_ACTION, LIBERO_STATE  # noqa: E402
from vla_bench.policies.torch.restricted_pickle import Archive  # noqa: E402
from vla_bench.policies.torch.training import Batch  # noqa: E402

DATA = Path(__file__).parent / "data" / "diffusion_policy"
LEROBOT = runpy.run_path(str(DATA / "make_lerobot.py"))
OFFICIAL = runpy.run_path(str(DATA / "make_official.py"))

SAMPLED = 5e-5
"""Tolerance of sampled actions of lerobot's case: two float32 roundings apart, but the first DDIM step (t = 90) divides
by sqrt(alpha_bar) = 0.15 and a random network of gain above 1 is applied ten to a hundred times. One application of
the network agrees to 1e-5."""


def suite(
    name: str = "robosuite",
    side: int = 84,
    action: ActionSpec = LIBERO_ACTION,
    state: tuple[str, ...] = LIBERO_STATE,
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand"),
) -> Suite:
    """A suite that only says what it is."""

    def nothing(*_: object) -> Any:
        raise AssertionError("no simulator is needed here")

    views = tuple(Camera(camera, side, side) for camera in cameras)
    return Suite(name, "1", (Task("t", ("go",), 10, 1),), action, views, state, 20.0, nothing, dict)


def noisy(suite: Suite, seed: int, history: int = 2) -> Observation:
    """An observation of noise."""
    rng = np.random.default_rng(seed)

    def one(earlier: tuple[Observation, ...] = ()) -> Observation:
        images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in suite.cameras}
        return Observation(images, rng.normal(size=len(suite.state)).astype(np.float32), "go", seed, seed, earlier)

    return one(tuple(one() for _ in range(history - 1)))


def actions_of(policy: DiffusionPolicy, observations: list[Observation]) -> np.ndarray:
    return np.stack([chunk.actions for chunk in policy.infer(observations)])


def tiny(where: Suite | None = None, **options: Any) -> DiffusionPolicy:
    return DiffusionPolicy(where or suite(), size="tiny", device="cpu", **options)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Against lerobot


def lerobot_weights(case: str) -> dict[str, Any]:
    shapes = json.loads((DATA / f"lerobot_{case}" / "shapes.json").read_text())
    grids = {name: value for name, value in answers(f"lerobot_{case}").items() if name.endswith("pos_grid")}
    return {name: torch.tensor(LEROBOT["weights"](name, tuple(shape))) for name, shape in shapes.items()} | grids


def answers(folder: str) -> dict[str, Any]:
    stored: dict[str, Any] = load_file(DATA / folder / "answers.safetensors")
    return stored


def lerobot_folder(case: str, into: Path) -> Path:
    """What lerobot wrote, with the weights."""
    names = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")
    processors = (DATA / f"lerobot_{case}").glob("policy_*.safetensors")
    folder = into / case
    folder.mkdir()
    for file in [*(DATA / f"lerobot_{case}" / name for name in names), *processors]:
        shutil.copy(file, folder)
    save_file(lerobot_weights(case), folder / "model.safetensors")
    return folder


def lerobot_observations(mirrored: bool) -> list[Observation]:
    seen = LEROBOT["observed"]()

    def one(row: int, step: int, earlier: tuple[Observation, ...] = ()) -> Observation:
        pictures = [seen[name][row, step] for name in LEROBOT["CAMERAS"]]
        images = [picture[:, ::-1] if mirrored else picture for picture in pictures]
        state = seen["observation.state"][row, step]
        named = dict(zip(("agentview", "robot0_eye_in_hand"), images, strict=True))
        return Observation(named, state, "go", row, row, earlier)

    return [one(row, 1, (one(row, 0),)) for row in range(LEROBOT["ROWS"])]


@pytest.mark.parametrize("case", list(LEROBOT["CASES"]))
def test_a_lerobot_directory_answers_as_in_lerobot(case: str, tmp_path: Path) -> None:
    folder, expected = lerobot_folder(case, tmp_path), answers(f"lerobot_{case}")
    where, seen = suite("libero_10", 64), lerobot_observations(mirrored=True)
    ddim = DiffusionPolicy(where, str(folder), device="cpu", scheduler="ddim", steps=10)
    with torch.no_grad():
        features = ddim.model.features(ddim._observed(*_looked_back(seen, 2)))
        predicted = ddim.model(expected["noise"], torch.tensor([3, 70]), expected["features"].view(2, 2, -1))
    torch.testing.assert_close(features.flatten(1), expected["features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(predicted, expected["predicted"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(actions_of(ddim, seen), expected["DDIM"][:, 1:], atol=SAMPLED)
    ddpm = DiffusionPolicy(where, str(folder), device="cpu")
    assert ddpm.schedule == Schedule("ddpm", 100)
    np.testing.assert_allclose(actions_of(ddpm, seen), expected["DDPM"][:, 1:], atol=SAMPLED)
    check_compatible(ddpm, where)
    assert ddpm.spec.chunk == 15
    assert "taken to be the suite's" in ddpm.spec.note


def test_statistics_among_the_weights_are_read_as_before_lerobot_0_4(tmp_path: Path) -> None:
    folder = lerobot_folder("group_shared", tmp_path)
    where, seen = suite("libero_10", 64), lerobot_observations(mirrored=True)
    now = DiffusionPolicy(where, str(folder), device="cpu", scheduler="ddim", steps=2)
    for file in folder.glob("policy_*"):
        file.unlink()
    old = {}
    for key, numbers in LEROBOT["statistics"]().items():
        prefix = "unnormalize_outputs" if key == "action" else "normalize_inputs"
        old |= {f"{prefix}.buffer_{key.replace('.', '_')}.{n}": torch.tensor(v) for n, v in numbers.items()}
    save_file({**lerobot_weights("group_shared"), **old}, folder / "model.safetensors")
    then = DiffusionPolicy(where, str(folder), device="cpu", scheduler="ddim", steps=2)
    np.testing.assert_array_equal(actions_of(then, seen), actions_of(now, seen))


def test_a_kind_of_input_that_lerobots_mapping_leaves_out_is_not_normalised(tmp_path: Path) -> None:
    folder = lerobot_folder("group_shared", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["input_features"]["observation.environment_state"] = {"type": "ENV", "shape": [5]}
    (folder / "config.json").write_text(json.dumps(config))
    map_ = read_official(folder).maps["observation.environment_state"]
    np.testing.assert_array_equal(map_.apply(np.arange(5.0)), np.arange(5.0))
    for file in folder.glob("policy_*"):
        file.unlink()
    del config["normalization_mapping"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"normalises observation\.state by None"):
        read_official(folder)


def test_pictures_are_mirrored_for_lerobot_on_libero_and_where_asked(tmp_path: Path) -> None:
    folder = str(lerobot_folder("group_shared", tmp_path))
    libero, other = suite("libero_10", 64), suite("robosuite", 64)
    options: dict[str, Any] = {"device": "cpu", "scheduler": "ddim", "steps": 2}
    plain, turned = lerobot_observations(mirrored=False), lerobot_observations(mirrored=True)
    expected = actions_of(DiffusionPolicy(libero, folder, **options), turned)
    np.testing.assert_array_equal(actions_of(DiffusionPolicy(libero, folder, mirror=False, **options), plain), expected)
    np.testing.assert_array_equal(actions_of(DiffusionPolicy(other, folder, **options), plain), expected)
    np.testing.assert_array_equal(actions_of(DiffusionPolicy(other, folder, mirror=True, **options), turned), expected)


def test_cameras_can_be_named(tmp_path: Path) -> None:
    folder = str(lerobot_folder("batch_separate", tmp_path))
    odd, usual = suite("x", 64, cameras=("left", "agentview", "robot0_eye_in_hand")), suite("x", 64)
    options: dict[str, Any] = {"device": "cpu", "scheduler": "ddim", "steps": 2}
    named = DiffusionPolicy(odd, folder, cameras="agentview,robot0_eye_in_hand", **options)
    seen = lerobot_observations(mirrored=False)
    np.testing.assert_array_equal(actions_of(named, seen), actions_of(DiffusionPolicy(usual, folder, **options), seen))
    assert [camera.name for camera in named.spec.cameras] == ["agentview", "robot0_eye_in_hand"]
    with pytest.raises(UsageError, match=r"cameras should name 2, .*; got 'agentview'"):
        DiffusionPolicy(odd, folder, cameras="agentview", **options)
    with pytest.raises(UsageError, match="sees 'wrist'; the suite 'x' has left, agentview"):
        DiffusionPolicy(odd, folder, cameras="agentview,wrist", **options)


# Against real-stanford/diffusion_policy


def official_observations() -> list[Observation]:
    seen = OFFICIAL["observed"]()

    def one(row: int, step: int, earlier: tuple[Observation, ...] = ()) -> Observation:
        turned = axis_angle_from_quat(seen["robot0_eef_quat"][row, step].astype(np.float64))
        parts = [seen["robot0_eef_pos"][row, step], turned, seen["robot0_gripper_qpos"][row, step]]
        images = {"agentview": seen["agentview_image"][row, step]}
        return Observation(images, np.concatenate(parts).astype(np.float32), "go", row, row, earlier)

    return [one(row, 1, (one(row, 0),)) for row in range(OFFICIAL["ROWS"])]


def payload_of(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """cfg and the ema_model's tensors, weights included."""
    folder = DATA / f"official_{case}"
    with Archive(folder / "latest.ckpt") as archive:
        payload = archive.payload()
        tensors = {name: stored.load() for name, stored in payload["state_dicts"]["ema_model"].items()}
    for name, shape in json.loads((folder / "shapes.json").read_text()).items():
        tensors.setdefault(name, torch.tensor(OFFICIAL["weights"](OFFICIAL["once"](name), tuple(shape))))
    return payload["cfg"], tensors


def write_ckpt(path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Any], **more: Any) -> str:
    torch.save({"cfg": cfg, "state_dicts": {"ema_model": dict(tensors), **more}, "pickles": {}}, path)
    return str(path)


def changed(cfg: Mapping[str, Any], *keys: str, value: Any) -> dict[str, Any]:
    """The same configuration with another value at that place."""
    first, *rest = keys
    return {**cfg, first: changed(cfg.get(first, {}), *rest, value=value) if rest else value}


@pytest.mark.parametrize("case", ["unet_low_dim", "transformer_low_dim"])
def test_a_ckpt_of_dill_and_omegaconf_answers_as_in_the_official_code(case: str) -> None:
    policy = DiffusionPolicy(suite(), str(DATA / f"official_{case}" / "latest.ckpt"), device="cpu")
    expected = answers(f"official_{case}")["actions"].numpy()
    np.testing.assert_allclose(actions_of(policy, official_observations()), expected[:, 1:], atol=1e-5)
    assert (policy.spec.history, policy.spec.chunk, policy.spec.execute) == (2, 7, 4)
    assert policy.spec.note.endswith("ema_model")
    assert not policy.spec.cameras
    check_compatible(policy, suite())


@pytest.mark.parametrize("case", ["unet_hybrid", "transformer_hybrid"])
def test_a_hybrid_ckpt_answers_as_official_code_on_robomimics_encoder(case: str, tmp_path: Path) -> None:
    policy = DiffusionPolicy(suite(), write_ckpt(tmp_path / "x.ckpt", *payload_of(case)), device="cpu")
    expected = answers(f"official_{case}")["actions"].numpy()
    np.testing.assert_allclose(actions_of(policy, official_observations()), expected[:, 1:], atol=1e-5)
    assert [one.name for one in policy.sizes.inputs] == list(OFFICIAL["SHAPES"]["obs"])


def test_the_hybrid_ckpt_as_written_by_dill_says_the_same_as_the_one_rewritten_here() -> None:
    for case in ("unet_hybrid", "transformer_hybrid"):
        assert payload_of(case)[0] == OFFICIAL["config"](case)


def test_without_use_ema_the_model_is_evaluated(tmp_path: Path) -> None:
    cfg, average = payload_of("unet_low_dim")
    other = {name: value + 0.1 for name, value in average.items()}
    with_ema = write_ckpt(tmp_path / "a.ckpt", cfg, average, model=other)
    without = write_ckpt(tmp_path / "b.ckpt", changed(cfg, "training", "use_ema", value=False), average, model=other)
    swapped = write_ckpt(tmp_path / "c.ckpt", cfg, other, model=average)
    a, b, c = (actions_of(DiffusionPolicy(suite(), p), official_observations()) for p in (with_ema, without, swapped))
    np.testing.assert_array_equal(b, c)
    assert not np.allclose(a, b)


def test_the_first_executed_action_follows_the_low_dimensional_conventions(tmp_path: Path) -> None:
    cfg, tensors = payload_of("unet_low_dim")
    usual = DiffusionPolicy(suite(), write_ckpt(tmp_path / "a.ckpt", cfg, tensors))
    late_cfg = changed(cfg, "policy", "oa_step_convention", value=False)
    late = DiffusionPolicy(suite(), write_ckpt(tmp_path / "b.ckpt", late_cfg, tensors))
    seen = official_observations()
    np.testing.assert_array_equal(actions_of(late, seen), actions_of(usual, seen)[:, 1:])
    only = DiffusionPolicy(
        suite(), write_ckpt(tmp_path / "c.ckpt", changed(cfg, "policy", "pred_action_steps_only", value=True), tensors)
    )
    assert actions_of(only, seen).shape == (2, 4, 7)


def test_a_converted_official_checkpoint_answers_the_same_with_its_chosen_sampler(tmp_path: Path) -> None:
    given = DiffusionPolicy(
        suite(), str(DATA / "official_transformer_low_dim" / "latest.ckpt"), scheduler="ddim", steps=4, device="cpu"
    )
    given.save(tmp_path / "ours", {})
    read = DiffusionPolicy(suite(), str(tmp_path / "ours"), device="cpu")
    seen = official_observations()
    np.testing.assert_array_equal(actions_of(read, seen), actions_of(given, seen))
    assert read.schedule == Schedule("ddim", 4)


# Sampling


@pytest.mark.parametrize(
    ("network", "scheduler"),
    [("unet", "ddpm"), slow("unet", "ddim"), slow("transformer", "ddpm"), slow("transformer", "ddim")],
)
def test_answers_and_their_noise_do_not_depend_on_the_batch(scheduler: Any, network: Any) -> None:
    policy = tiny(network=network, scheduler=scheduler, steps=10, batching="together")
    three = [noisy(suite(), seed) for seed in (1, 2, 3)]
    together = actions_of(policy, three)
    singly = np.concatenate([actions_of(policy, [one]) for one in three[::-1]])[::-1]
    np.testing.assert_allclose(together, singly, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1
    exact = tiny(network=network, scheduler=scheduler, steps=10)
    np.testing.assert_array_equal(actions_of(exact, three), actions_of(exact, three[::-1])[::-1])


def test_ddpm_draws_new_noise_at_every_step() -> None:
    one = [noisy(suite(), 1)]
    ddpm, ddim = (tiny(scheduler=kind, steps=50) for kind in ("ddpm", "ddim"))
    assert np.abs(actions_of(ddpm, one) - actions_of(ddim, one)).max() > 0.1


# What is refused


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (
            ("policy", "_target_"),
            "x.DiffusionUnetImagePolicy",
            "is a DiffusionUnetImagePolicy; supported: DiffusionUnetHybrid",
        ),
        (("policy", "obs_as_global_cond"), False, "policy.obs_as_global_cond False; supported: True"),
        (("policy", "horizon"), "${horizon}", "unresolved, for policy.horizon"),
        (("policy", "noise_scheduler", "variance_type"), "learned", "'learned'; supported: 'fixed_small'"),
        (("policy", "noise_scheduler", "_target_"), "x.EulerScheduler", "samples with EulerScheduler"),
        (("n_latency_steps",), 2, "n_latency_steps 2; supported: 0"),
        (("task", "obs_keys"), ["object", "robot0_eef_pos"], "reads object, which the suite 'robosuite' does not give"),
        (("task", "obs_keys"), ["robot0_eef_pos"], "reads 9 numbers as obs; the suite 'robosuite' gives 3"),
        (("policy", "action_dim"), 2, "answers 2 numbers per action"),
        (("policy", "model", "down_dims"), [8, 16, 32], "is no checkpoint of this architecture: .* missing"),
    ],
)
def test_an_unsupported_configuration_is_one_sentence(keys: Any, value: Any, said: str, tmp_path: Path) -> None:
    cfg, tensors = payload_of("unet_low_dim")
    path = write_ckpt(tmp_path / "x.ckpt", changed(cfg, *keys, value=value), tensors)
    with pytest.raises(UsageError, match=said) as error:
        DiffusionPolicy(suite(), path, device="cpu")
    assert "\n" not in str(error.value)


def test_absolute_actions_load_and_are_refused_by_a_suite_of_deltas(tmp_path: Path) -> None:
    cfg, tensors = payload_of("unet_low_dim")
    wide = changed(changed(cfg, "policy", "action_dim", value=10), "task", "abs_action", value=True)
    for name in ("model.down_modules.0.0.blocks.0.block.0.weight", "model.down_modules.0.0.residual_conv.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:, :3]], dim=1)
    for name in ("model.final_conv.1.weight", "model.final_conv.1.bias"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:3]])
    for part in ("scale", "offset"):
        key = f"normalizer.params_dict.action.{part}"
        tensors[key] = torch.cat([tensors[key], tensors[key][:3]])
    policy = DiffusionPolicy(suite(), write_ckpt(tmp_path / "x.ckpt", wide, tensors), device="cpu")
    answered = actions_of(policy, official_observations())
    assert answered.shape == (2, 7, 7)
    assert np.linalg.norm(answered[..., 3:6], axis=-1).max() <= np.pi + 1e-6
    with pytest.raises(UsageError, match=r"absolute_pose.*the suite 'robosuite' expects .*delta_pose") as error:
        check_compatible(policy, suite())
    assert "\n" not in str(error.value)
    check_compatible(policy, suite(action=robomimic.absolute_action(1)))


def test_what_the_suite_lacks_is_one_sentence(tmp_path: Path) -> None:
    official = str(DATA / "official_unet_low_dim" / "latest.ckpt")
    with pytest.raises(UsageError, match="robosuite's Panda; the suite 'calvin_d' has the state"):
        DiffusionPolicy(suite("calvin_d", action=CALVIN_ACTION, state=CALVIN_STATE), official)
    folder = str(lerobot_folder("group_shared", tmp_path))
    with pytest.raises(UsageError, match=r"reads 8 numbers as observation.state; the suite 'calvin_d' gives 15"):
        DiffusionPolicy(suite("calvin_d", action=CALVIN_ACTION, state=CALVIN_STATE), folder)
    with pytest.raises(UsageError, match=r"Unknown camera 'image2'.* Pass --policy-args cameras="):
        DiffusionPolicy(suite(cameras=("agentview",)), folder)
    with pytest.raises(UsageError, match="answers 7 numbers per action; the suite 'robosuite' expects"):
        DiffusionPolicy(suite(action=ActionSpec(4, "joint", "none", "none", 1.0, 1.0)), folder)


def edited(folder: Path, file: str, old: str, new: str) -> str:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    return str(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("config.json", '"diffusion"', '"act"', "checkpoint of type 'act'; it reads an official .ckpt"),
        ("config.json", '"resnet18"', '"resnet34"', "has a resnet34 for vision; only resnet18"),
        ("config.json", '"DDPM"', '"EULER"', r"a whole diffusion configuration \(KeyError"),
        ("config.json", '"horizon"', '"length"', r"a whole diffusion configuration \(KeyError"),
        ("config.json", "32,", "48,", "is no checkpoint of this architecture: .*of another shape"),
        (
            "policy_preprocessor.json",
            '"MIN_MAX"',
            '"LOG"',
            "normalises observation.state by 'LOG'; supported: MEAN_STD",
        ),
        ("policy_preprocessor.json", '"MIN_MAX"', '"QUANTILES"', "has no q01 and no q99 of observation.state"),
        ("policy_preprocessor.json", '"normalizer_processor"', '"device_processor"', "has no normalizer_processor"),
        (
            "policy_preprocessor.json",
            '"to_batch_processor"',
            '"sharpen"',
            "has the step 'sharpen'",
        ),
        ("policy_postprocessor.json", '"policy_postprocessor_step', '"../policy', "is not a file beside it"),
    ],
)
def test_a_damaged_lerobot_directory_is_one_sentence(file: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = lerobot_folder("group_shared", tmp_path)
    with pytest.raises(UsageError, match=said) as error:
        DiffusionPolicy(suite(side=64), edited(folder, file, old, new), device="cpu")
    assert "\n" not in str(error.value)


def test_a_damaged_or_foreign_ckpt_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match=r"has no cfg, .*it reads an official \.ckpt"):
        DiffusionPolicy(suite(), str(tmp_path / "x.ckpt"))
    cfg, tensors = payload_of("unet_low_dim")
    torch.save({"cfg": cfg, "state_dicts": {"model": tensors}}, tmp_path / "y.ckpt")
    with pytest.raises(UsageError, match="has no ema_model"):
        DiffusionPolicy(suite(), str(tmp_path / "y.ckpt"))
    scale = tensors.pop("normalizer.params_dict.obs.scale")
    with pytest.raises(
        UsageError, match=r"no normalizer.params_dict.obs.scale, without which obs cannot be normalised"
    ):
        DiffusionPolicy(suite(), write_ckpt(tmp_path / "z.ckpt", cfg, tensors))
    tensors |= {"normalizer.params_dict.obs.scale": scale, "model.extra": scale}
    with pytest.raises(UsageError, match=r"network\.extra not expected"):
        DiffusionPolicy(suite(), write_ckpt(tmp_path / "u.ckpt", cfg, tensors))
    (tmp_path / "v.ckpt").write_bytes((DATA / "official_unet_low_dim" / "latest.ckpt").read_bytes()[:5000])
    with pytest.raises(UsageError, match="is it truncated"):
        DiffusionPolicy(suite(), str(tmp_path / "v.ckpt"))


def test_options_that_cannot_be_are_one_sentence() -> None:
    official = str(DATA / "official_unet_low_dim" / "latest.ckpt")
    for steps in (0, 101):
        with pytest.raises(UsageError, match=f"steps must be from 1 to the 100 trained with, got {steps}"):
            DiffusionPolicy(suite(), official, steps=steps)
    with pytest.raises(UsageError, match="network is a unet, network=transformer was asked for"):
        DiffusionPolicy(suite(), official, network="transformer")
    assert DiffusionPolicy(suite(), official, network="unet").schedule.steps == 10


def test_an_observation_without_its_past_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="looks back on 2 control steps, got an observation with 1"):
        tiny().infer([noisy(suite(), 1, history=1)])


# Training


SEEN_SIDE = 36
ONE_CAMERA = suite(side=SEEN_SIDE, cameras=("agentview",))


def learner(network: Any, folder: Path) -> DiffusionPolicy:
    """The tiny network behind a narrow encoder of one small camera, which would cost most of a step."""
    tiny(ONE_CAMERA, network=network).save(folder, {})
    config = json.loads((folder / "config.json").read_text())
    config["sizes"]["vision"] |= {"resize": None, "crop": None, "widths": [16, 16, 16, 32], "keypoints": 16}
    torch.manual_seed(0)
    save_file(DiffusionModel(Sizes.from_json(config["sizes"])).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return DiffusionPolicy(ONE_CAMERA, str(folder), device="cpu")


def demonstrations(size: int = 16) -> Batch:
    """Pictures and states of noise, each with its own waves as actions."""
    draw = torch.Generator().manual_seed(0)
    shape = (size, 2, SEEN_SIDE, SEEN_SIDE, 3)
    phase, rate = torch.rand((2, size, 1, 7), generator=draw) * torch.tensor([2 * np.pi, 0.6]).view(2, 1, 1, 1)
    return Batch(
        images={"agentview": torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)},
        state=torch.rand((size, 2, 8), generator=draw) * 2 - 1,
        instructions=["go"] * size,
        actions=0.9 * torch.sin(phase + rate * torch.arange(16.0)[:, None]),
        valid=torch.ones((size, 16), dtype=torch.bool),
    )


def recalled(policy: DiffusionPolicy, batch: Batch) -> float:
    """Mean distance of the sampled actions from the demonstrated ones."""

    def one(row: int, step: int, earlier: tuple[Observation, ...] = ()) -> Observation:
        images = {name: pictures[row, step].numpy() for name, pictures in batch.images.items()}
        return Observation(images, batch.state[row, step].numpy(), "go", row, row, earlier)

    found = actions_of(policy, [one(row, 1, (one(row, 0),)) for row in range(len(batch.actions))])
    return float(np.abs(found - batch.actions[:, 1:].numpy()).mean())


def learn(policy: DiffusionPolicy, batch: Batch, steps: int, rate: float) -> float:
    """Mean loss of the last tenth."""
    draw = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = policy.losses(batch, draw)["loss"]
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-steps // 10 :]))


def twice(batch: Batch) -> Batch:
    """Every sample twice, so that a step sees each demonstration at two noise levels."""
    images = {name: pictures.repeat(2, 1, 1, 1, 1) for name, pictures in batch.images.items()}
    state, actions = batch.state.repeat(2, 1, 1), batch.actions.repeat(2, 1, 1)
    return Batch(images, state, list(batch.instructions) * 2, actions, batch.valid.repeat(2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("network", "rate", "steps"), [("unet", 4e-3, 80), ("transformer", 3e-3, 240)])
def test_sixteen_demonstrations_are_learned_by_heart(network: str, rate: float, steps: int, tmp_path: Path) -> None:
    """Seen after 120 and 200 steps: losses 0.001 and 0.03, distances 0.02 and 0.12, of 0.7, where actions reach 0.9."""
    policy, batch = learner(network, tmp_path / "start"), demonstrations()
    assert recalled(policy, batch) > 0.6
    assert learn(policy, twice(batch), steps, rate) < 0.05
    assert recalled(policy, batch) < 0.15


def test_actions_from_now_on_are_padded_in_front_with_the_first(tmp_path: Path) -> None:
    policy, batch = learner("unet", tmp_path / "start"), demonstrations(4)
    now = batch.actions[:, 1:]
    padded = torch.cat([now[:, :1], now], dim=1)
    a, b = (
        policy.losses(replace(batch, actions=given), torch.Generator().manual_seed(0))["loss"]
        for given in (now, padded)
    )
    assert a == b
    with pytest.raises(UsageError, match=r"learns from 16 actions .*, or 15 from now on; got 9"):
        policy.losses(replace(batch, actions=now[:, :9]), torch.Generator())


class OnADevice(torch.Tensor):
    """Numbers that numpy cannot see before `cpu()`, as those of a GPU."""

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of a device to numpy; use Tensor.cpu() first")

    def cpu(self, *_: Any, **__: Any) -> Any:
        return self.as_subclass(torch.Tensor)


def test_batches_on_a_device_are_learned_from_like_others(tmp_path: Path) -> None:
    policy, batch = learner("unet", tmp_path / "start"), demonstrations(2)
    placed = replace(
        batch, state=batch.state.as_subclass(OnADevice), actions=batch.actions[:, 1:].as_subclass(OnADevice)
    )
    losses = [
        policy.losses(one, torch.Generator().manual_seed(0))["loss"]
        for one in (placed, replace(batch, actions=batch.actions[:, 1:]))
    ]
    assert losses[0] == losses[1]


# Rotations


def test_a_quaternion_comes_back_from_axis_and_angle_with_its_sign() -> None:
    quats = Rotation.random(200, random_state=0).as_quat()
    quats[::2] *= -1
    back = robomimic.quat_from_axis_angle(np.stack([axis_angle_from_quat(quat) for quat in quats]))
    np.testing.assert_allclose(back, quats, atol=1e-7)
    assert (quats[:, 3] < 0).any()
    np.testing.assert_array_equal(robomimic.quat_from_axis_angle(np.zeros((1, 3))), [[0, 0, 0, 1]])


def test_the_first_two_rows_of_a_matrix_become_axis_and_angle() -> None:
    turned = Rotation.random(100, random_state=1)
    rows = turned.as_matrix()[:, :2].reshape(100, 6)
    place, gripper = np.random.default_rng(0).normal(size=(100, 3)), np.ones((100, 1))
    absolute = np.concatenate([place, rows * 1.7, gripper], axis=1).astype(np.float32)
    expected = np.concatenate([place, turned.as_rotvec(), gripper], axis=1)
    np.testing.assert_allclose(robomimic.axis_angle_actions(absolute), expected, atol=2e-6)
    two_arms = robomimic.axis_angle_actions(np.concatenate([absolute, absolute[::-1]], axis=1))
    np.testing.assert_allclose(two_arms, np.concatenate([expected, expected[::-1]], axis=1), atol=2e-6)


def test_rows_that_are_not_orthonormal_are_made_so() -> None:
    rows = np.random.default_rng(2).normal(size=(50, 6))
    made = robomimic.rotation_from_rows(rows)
    np.testing.assert_allclose(made @ made.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(made), 1.0)
    np.testing.assert_allclose(made[:, 0], rows[:, :3] / np.linalg.norm(rows[:, :3], axis=1, keepdims=True))
    assert (np.einsum("bi,bi->b", made[:, 1], rows[:, 3:]) > 0).all()
