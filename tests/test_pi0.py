"""π0 and π0.5 as policies: official directories, prompts, pictures, units, determinism, learning, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_bench.errors import UsageError
from vla_bench.types import ActionSpec, Camera, Observation, Suite, Task

torch = pytest.importorskip("torch", reason="policies need the extra vla")
pytest.importorskip("transformers", reason="policies need the extra vla")

from safetensors.torch import load_file, save_file  # noqa: E402
from vla_bench.policies.pi0.formats import LerobotModel, read_official  # noqa: E402
from vla_bench.policies.pi0.inputs import cleaned, padded, pillow_resize_with_pad, state_prompt  # noqa: E402
from vla_bench.policies.pi0.model import Pi0Model, tiny  # noqa: E402
from vla_bench.policies.pi0.names import official_name  # noqa: E402
from vla_bench.policies.pi0.policy import Pi0  # noqa: E402
from vla_bench.policies.torch.conventions import LIBERO_ACTION, LIBERO_STATE  # noqa: E402
from vla_bench.policies.torch.policy import noise  # noqa: E402
from vla_bench.policies.torch.tokens import tiny_tokenizer  # noqa: E402
from vla_bench.policies.torch.training import Batch  # noqa: E402

DATA = Path(__file__).parent / "data"
VARIANTS = ("pi0", "pi05")
CAMERAS = (Camera("agentview", 64, 64), Camera("robot0_eye_in_hand", 64, 64))


def suite(
    cameras: tuple[Camera, ...] = CAMERAS,
    action: ActionSpec = LIBERO_ACTION,
    state: tuple[str, ...] = LIBERO_STATE,
) -> Suite:
    """A suite that only says what it is."""

    def no_environment(task, wanted):
        raise AssertionError("these tests need no environment")

    tasks = (Task("t", ("pick up the cube",), 10, 1),)
    return Suite("paper", "1", tasks, action, cameras, state, 20.0, no_environment, dict)


def observations(count: int = 1, cameras: tuple[Camera, ...] = CAMERAS) -> list[Observation]:
    rng = np.random.default_rng(5)
    return [
        Observation(
            {c.name: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in cameras},
            rng.normal(size=8).astype(np.float32),
            ("pick_up the cube", "open the drawer and put everything in it")[index % 2],
            slot=index,
            seed=100 + index,
        )
        for index in range(count)
    ]


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def edit_json(file: Path, **changes: object) -> None:
    write_json(file, {**json.loads(file.read_text()), **changes})


def lerobot_folder(folder: Path, variant: str = "pi0") -> Path:
    """A whole directory as lerobot writes it: the reference case's weights with the processors beside them."""
    shutil.copytree(DATA / f"{variant}_lerobot_case", folder)
    shutil.copytree(DATA / "pi0_lerobot_processors", folder, dirs_exist_ok=True)
    (folder / "io.safetensors").unlink()
    return folder


def openpi_folder(folder: Path, variant: str = "pi0", asset: str = "physical-intelligence/libero") -> Path:
    """A directory as openpi's converter writes it, at the tiny size."""
    folder.mkdir()
    torch.manual_seed(3)
    model = Pi0Model(replace(tiny(variant, 1024, horizon=10), image=56, patch=14, stem="patch", predicts="velocity"))
    save_file(
        {official_name(name): tensor for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    config = {"action_dim": 32, "action_horizon": 10, "paligemma_variant": "gemma_2b", "precision": "bfloat16"}
    write_json(folder / "config.json", config)
    rng = np.random.default_rng(0)
    stats = {
        name: {key: rng.uniform(low, low + 1, dim).tolist() for key, low in RANGES.items()}
        for name, dim in (("state", 8), ("actions", 7))
    }
    write_json(folder / "assets" / asset / "norm_stats.json", {"norm_stats": stats})
    (folder / "tokenizer.json").write_text(tiny_tokenizer().text)
    return folder


RANGES = {"mean": -0.5, "std": 0.5, "q01": -2.0, "q99": 1.0}


def openpi(folder: Path, **arguments: object) -> Pi0:
    given = {"tokenizer": str(folder / "tokenizer.json"), **arguments}
    return Pi0(suite(), str(folder), **given)  # type: ignore[arg-type]


# Answers


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_chunks_of_the_suites_actions(variant):
    policy = Pi0(suite(), size="tiny", variant=variant)
    first, second = policy.infer(observations(2))
    assert first.actions.shape == (policy.spec.chunk, 7)
    assert first.actions.dtype == np.float32
    assert not np.allclose(first.actions, second.actions)
    assert set(first.stages) == {"vision", "prefill", "denoise", "post"}
    assert "untrained" in policy.spec.note


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_do_not_depend_on_who_shares_the_batch(variant):
    seen = observations(4)
    policy = Pi0(suite(), size="tiny", variant=variant)
    together = [chunk.actions for chunk in policy.infer(seen)]
    alone = [policy.infer([one])[0].actions for one in reversed(seen)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    one_pass = Pi0(suite(), size="tiny", variant=variant, batching="together")
    assert policy.spec.deterministic
    assert not one_pass.spec.deterministic
    for chunk, expected in zip(one_pass.infer(seen), alone, strict=True):
        np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=1e-5)


def test_answers_depend_on_seed_state_picture_words_and_weights():
    (seen,) = observations()
    policy = Pi0(suite(), size="tiny")
    answer = policy.infer([seen])[0].actions
    assert np.array_equal(answer, policy.infer([seen])[0].actions)
    others = [
        replace(seen, seed=1),
        replace(seen, state=seen.state + 1),
        replace(seen, images={**seen.images, "robot0_eye_in_hand": seen.images["agentview"]}),
        replace(seen, instruction="open the drawer"),
    ]
    assert not any(np.array_equal(answer, policy.infer([other])[0].actions) for other in others)
    other_weights = Pi0(suite(), size="tiny", weights_seed=1)
    assert not np.allclose(answer, other_weights.infer([seen])[0].actions)


def test_making_a_tiny_policy_leaves_the_global_random_state_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    Pi0(suite(), size="tiny")
    assert torch.equal(torch.rand(1), expected)


def test_fewer_steps_are_another_answer():
    (seen,) = observations()
    answers = [Pi0(suite(), size="tiny", steps=steps).infer([seen])[0].actions for steps in (0, 10, 2)]
    assert np.array_equal(answers[0], answers[1])
    assert not np.allclose(answers[0], answers[2])


@pytest.mark.slow
def test_a_compiled_policy_answers_the_same():
    seen = observations(2)
    plain, compiled = (Pi0(suite(), size="tiny", steps=1, compile=choice) for choice in (False, True))
    for one, other in zip(plain.infer(seen), compiled.infer(seen), strict=True):
        np.testing.assert_allclose(one.actions, other.actions, rtol=0, atol=1e-5)


# lerobot's directories


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_lerobot_directory_acts_as_its_files_say(tmp_path, variant):
    """By hand: mirrored pictures, mean and deviation from the state file, prompt by words, chunk times deviation."""
    folder = lerobot_folder(tmp_path / "ckpt", variant)
    policy = Pi0(suite(), str(folder))
    (seen,) = observations()
    stats = load_file(folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    normal = (torch.from_numpy(seen.state) - stats["observation.state.mean"]) / (stats["observation.state.std"] + 1e-8)
    words = {"pick": 3, "up": 4}
    text = seen.instruction if variant == "pi0" else state_prompt(seen.instruction, normal.numpy())
    ids = [1, *(words.get(word, 2) for word in split_words(text))]
    start = noise([seen], (6, 32), torch.device("cpu"))
    pictures = {
        f"observation.images.{key}": torch.from_numpy(seen.images[camera.name][:, ::-1].copy())
        .permute(2, 0, 1)[None]
        .float()
        / 255
        for key, camera in zip(("image", "image2"), CAMERAS, strict=True)
    }
    batch = {
        **pictures,
        "observation.state": normal[None],
        "observation.language.tokens": torch.tensor([ids]),
        "observation.language.attention_mask": torch.ones(1, len(ids), dtype=torch.bool),
    }
    expected = LerobotModel.load(folder).sample(batch, start)[0, :, :7] * stats["action.std"] + stats["action.mean"]
    np.testing.assert_allclose(policy.infer([seen])[0].actions, expected.numpy(), rtol=0, atol=1e-5)


def split_words(text: str) -> list[str]:
    """As `tokenizers`' Whitespace: runs of word characters, runs of other ones."""
    import re

    return re.findall(r"\w+|[^\w\s]+", text)


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99"), ("IDENTITY", None, None)],
)
def test_the_norm_map_in_the_file_rules(tmp_path, mode, low, high):
    folder = lerobot_folder(tmp_path / "ckpt")
    for name in ("pre", "post"):
        file = folder / f"policy_{name}processor.json"
        said = json.loads(file.read_text())
        for step in said["steps"]:
            if "norm_map" in step.get("config", {}):
                step["config"]["norm_map"] = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
        write_json(file, said)
    official = read_official(folder)
    stats = load_file(folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    x = np.linspace(-3, 3, 8)
    expected = x
    if low is not None:
        bottom, top = (stats[f"observation.state.{key}"].double().numpy() for key in (low, high))
        span = np.where(top == bottom, 1e-8, top - bottom)
        expected = 2 * (x - bottom) / span - 1
    np.testing.assert_allclose(official.state.apply(x), expected, rtol=1e-5)
    np.testing.assert_allclose(official.action.invert(official.action.apply(x[:7])), x[:7], atol=1e-5)


def test_statistics_among_the_weights_are_read_where_there_are_no_processor_files(tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(DATA / "pi0_lerobot_case", folder)
    tensors = load_file(folder / "model.safetensors")
    mean, std = torch.arange(8.0), torch.full((8,), 0.5)
    for stats in ("normalize_inputs.buffer_observation_state", "normalize_targets.buffer_action"):
        tensors |= {f"{stats}.mean": mean.clone(), f"{stats}.std": std.clone()}
    tensors |= {"unnormalize_outputs.buffer_action.mean": mean[:7].clone()}
    tensors |= {"unnormalize_outputs.buffer_action.std": 2 * std[:7]}
    save_file(tensors, folder / "model.safetensors")
    official = read_official(folder)
    np.testing.assert_allclose(official.state.apply(np.ones(8)), (1 - np.arange(8)) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(official.action.invert(np.ones(7)), 1 + np.arange(7), rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "excluded", "relative"),
    [
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper"], "gripper", [1, 1, 1, 1, 1, 1, 0]),
        (["x", "y", "z", "roll", "pitch", "yaw", "Left_Gripper.pos"], "GRIPPER", [1, 1, 1, 1, 1, 1, 0]),
        (["gripper", "x"], "gripper", [0, 1, 1, 1, 1, 1, 1]),
        (None, "gripper", [1, 1, 1, 1, 1, 1, 1]),
    ],
    ids=["usual", "any case", "the rest unnamed", "all unnamed"],
)
def test_relative_actions_of_lerobot_leave_the_excluded_joints_out(tmp_path, names, excluded, relative):
    folder = lerobot_folder(tmp_path / "ckpt")
    for name, kind in (("pre", "relative"), ("post", "absolute")):
        file = folder / f"policy_{name}processor.json"
        said = json.loads(file.read_text())
        step = next(s for s in said["steps"] if s["registry_name"] == f"{kind}_actions_processor")
        names_too = {"action_names": names, "exclude_joints": [excluded]} if name == "pre" else {}
        step["config"] |= {"enabled": True} | names_too
        write_json(file, said)
    (seen,) = observations()
    whole = Pi0(suite(), str(folder)).infer([seen])[0].actions
    plain = Pi0(suite(), str(folder), relative="no").infer([seen])[0].actions
    np.testing.assert_allclose(whole - plain, np.tile(seen.state[:7] * relative, (6, 1)), atol=1e-5)


def edit_preprocessor(folder: Path, name: str, edit) -> None:
    """Change the steps of that name, or drop them where `edit` is None."""
    file = folder / "policy_preprocessor.json"
    said = json.loads(file.read_text())
    steps = [step for step in said["steps"] if edit is not None or step["registry_name"] != name]
    for step in steps:
        if step["registry_name"] == name:
            edit(step["config"])
    write_json(file, {**said, "steps": steps})


def test_states_may_be_wider_than_actions_and_stay_so_when_saved(tmp_path):
    folder = lerobot_folder(tmp_path / "ckpt")
    narrow = Pi0(suite(), str(folder)).infer(observations())[0].actions
    tensors = load_file(folder / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("state_proj.weight"))
    save_file({**tensors, name: torch.nn.functional.pad(tensors[name], (0, 8))}, folder / "model.safetensors")
    edit_json(folder / "config.json", max_state_dim=40)
    policy = Pi0(suite(), str(folder))
    assert (policy.model.sizes.state_dim, policy.model.sizes.action_dim) == (40, 32)
    np.testing.assert_allclose(policy.infer(observations())[0].actions, narrow, rtol=0, atol=1e-6)
    policy.save(tmp_path / "ours", {})
    again = Pi0(suite(), str(tmp_path / "ours"))
    assert np.array_equal(again.infer(observations())[0].actions, policy.infer(observations())[0].actions)
    edit_json(folder / "config.json", max_state_dim=24)
    with pytest.raises(UsageError, match="says max_state_dim 24, but the weights have 40"):
        Pi0(suite(), str(folder))


def test_padded_states_in_the_prompt_are_as_wide_as_the_config_says(tmp_path):
    folder = lerobot_folder(tmp_path / "ckpt", "pi05")
    (folder / "tokenizer/tokenizer.json").write_text(tiny_tokenizer().text)
    edit_json(folder / "config.json", max_state_dim=12)
    edit_preprocessor(folder, "tokenizer_processor", lambda said: said.update(max_length=200))
    policy = Pi0(suite(), str(folder), state_in_prompt="padded")
    ids = policy.prompt_ids("go", np.zeros(8, np.float32))
    assert ids == [1, *tiny_tokenizer().encode(f"Task: go, State: {' '.join(['128'] * 12)};\nAction: ")]


def test_lerobot_before_0_5_is_known_by_its_preprocessor_and_padded_the_state_of_pi05(tmp_path):
    folder = lerobot_folder(tmp_path / "ckpt", "pi05")
    now = Pi0(suite(), str(folder))
    assert now.reading.state_in_prompt == "real"
    assert "padded" not in now.spec.note
    edit_preprocessor(folder, "relative_actions_processor", None)
    before = Pi0(suite(), str(folder))
    assert before.reading.state_in_prompt == "padded"
    assert before.spec.note == "lerobot pi05; state padded in the prompt"
    assert "padded" not in Pi0(suite(), str(folder), state_in_prompt="real").spec.note
    old = lerobot_folder(tmp_path / "pi0")
    edit_preprocessor(old, "relative_actions_processor", None)
    assert Pi0(suite(), str(old)).reading.state_in_prompt == "no"


@pytest.mark.parametrize(("variant", "length"), [("pi0", 48), ("pi05", 200)])
def test_prompts_are_as_long_as_lerobots_defaults_where_nothing_is_said(tmp_path, variant, length):
    folder = lerobot_folder(tmp_path / "ckpt", variant)
    edit_preprocessor(folder, "tokenizer_processor", lambda said: said.pop("max_length"))
    config = json.loads((folder / "config.json").read_text())
    del config["tokenizer_max_length"]
    write_json(folder / "config.json", config)
    assert read_official(folder).reading.prompt_tokens == length


@pytest.mark.parametrize("named", ["{elsewhere}", "../elsewhere", "tokenizer/../../elsewhere"])
def test_a_tokenizer_outside_of_the_directory_is_not_read(tmp_path, named):
    folder = lerobot_folder(tmp_path / "ckpt")
    elsewhere = shutil.copytree(folder / "tokenizer", tmp_path / "elsewhere")
    name = named.format(elsewhere=elsewhere)
    edit_preprocessor(folder, "tokenizer_processor", lambda said: said.update(tokenizer_name=name))
    with pytest.raises(UsageError, match="no tokenizer; pass PaliGemma's"):
        Pi0(suite(), str(folder))
    Pi0(suite(), str(folder), tokenizer=str(elsewhere))


def test_empty_cameras_are_left_out_and_unknown_orders_must_be_said(tmp_path):
    folder = lerobot_folder(tmp_path / "ckpt")
    whole = Pi0(suite(), str(folder)).infer(observations())[0].actions
    edit_json(folder / "config.json", empty_cameras=1)
    assert np.array_equal(Pi0(suite(), str(folder)).infer(observations())[0].actions, whole)
    swapped = Pi0(suite(), str(folder), cameras="robot0_eye_in_hand,agentview,-")
    assert not np.allclose(swapped.infer(observations())[0].actions, whole)
    config = json.loads((folder / "config.json").read_text())
    features = config["input_features"]
    features["observation.images.wrist"] = features.pop("observation.images.image")
    order = ["observation.images.wrist", "observation.images.image2", "observation.state"]
    edit_json(folder / "config.json", input_features={key: features[key] for key in order})
    with pytest.raises(UsageError, match="cannot be told; say --policy-args cameras="):
        Pi0(suite(), str(folder))
    Pi0(suite(), str(folder), cameras="robot0_eye_in_hand,agentview,-")


@pytest.mark.parametrize(
    ("views", "order"),
    [
        (("image", "image2"), (0, 1)),
        (("image2", "image"), (1, 0)),
        (("agentview", "robot0_eye_in_hand"), (0, 1)),
        (("robot0_eye_in_hand", "agentview"), (1, 0)),
        (("rgb_static", "rgb_gripper"), (0, 1)),
        (("gripper", "static"), (1, 0)),
        (("wrist_image", "exterior_image_1_left"), (1, 0)),
        (("base_0_rgb",), (0,)),
        (("left_wrist_0_rgb",), (1,)),
    ],
)
def test_views_are_told_by_their_names(tmp_path, views, order):
    policy = Pi0(suite(), str(with_views(tmp_path, views)))
    assert policy.spec.cameras == tuple(CAMERAS[place] for place in order)


@pytest.mark.parametrize(
    "views", [("camera1", "camera2"), ("front", "side"), ("agentview", "other"), ("left", "wrist")]
)
def test_views_whose_names_do_not_tell_have_to_be_said(tmp_path, views):
    folder = with_views(tmp_path, views)
    with pytest.raises(UsageError, match="cannot be told; say --policy-args cameras="):
        Pi0(suite(), str(folder))
    assert Pi0(suite(), str(folder), cameras="robot0_eye_in_hand,agentview").spec.cameras == CAMERAS[::-1]


def with_views(tmp_path: Path, views: tuple[str, ...]) -> Path:
    folder = lerobot_folder(tmp_path / "ckpt")
    features = {f"observation.images.{view}": {"type": "VISUAL", "shape": [3, 56, 56]} for view in views}
    state = {"observation.state": {"type": "STATE", "shape": [8]}}
    edit_json(folder / "config.json", input_features={**features, **state})
    return folder


@pytest.mark.parametrize(("said", "played"), [(3, 3), (6, 6), (None, None)])
def test_as_many_actions_are_played_as_lerobots_config_says(tmp_path, said, played):
    folder = lerobot_folder(tmp_path / "ckpt")
    edit_json(folder / "config.json", n_action_steps=said)
    assert Pi0(suite(), str(folder)).spec.execute == played


@pytest.mark.parametrize("said", [0, 7, "3", 2.5])
def test_impossible_numbers_of_played_actions_are_one_sentence(tmp_path, said):
    folder = lerobot_folder(tmp_path / "ckpt")
    edit_json(folder / "config.json", n_action_steps=said)
    with pytest.raises(UsageError, match=r"says n_action_steps .*, expected a number from 1 to 6"):
        Pi0(suite(), str(folder))


def with_picture_statistics(folder: Path, mode: str) -> Path:
    file = folder / "policy_preprocessor.json"
    said = json.loads(file.read_text())
    for step in said["steps"]:
        if "norm_map" in step.get("config", {}):
            step["config"]["norm_map"]["VISUAL"] = mode
            numbers = load_file(folder / step["state_file"])
            mean = {"observation.images.image.mean": torch.full((3, 1, 1), 0.45)}
            save_file({**numbers, **mean}, folder / step["state_file"])
    write_json(file, said)
    return folder


def test_pictures_that_lerobot_would_normalise_are_refused(tmp_path):
    Pi0(suite(), str(with_picture_statistics(lerobot_folder(tmp_path / "plain"), "IDENTITY")))
    with pytest.raises(UsageError, match=r"normalises its pictures by MEAN_STD \(observation.images.image\)"):
        Pi0(suite(), str(with_picture_statistics(lerobot_folder(tmp_path / "normalised"), "MEAN_STD")))


@pytest.mark.parametrize("where", ["pre", "post"])
@pytest.mark.parametrize("step", [{"registry_name": "state_jitter"}, {"class": "mine.Crop"}])
def test_a_step_that_is_not_followed_is_refused_by_name(tmp_path, where, step):
    folder = lerobot_folder(tmp_path / "ckpt")
    file = folder / f"policy_{where}processor.json"
    said = json.loads(file.read_text())
    write_json(file, {**said, "steps": [*said["steps"], {**step, "config": {}}]})
    name = next(iter(step.values()))
    with pytest.raises(UsageError, match=f"policy_{where}processor.json has the step '{name}', which is not followed"):
        Pi0(suite(), str(folder))


@pytest.mark.parametrize("adapter", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_never_left_out_without_a_word(tmp_path, adapter, alone):
    folder = lerobot_folder(tmp_path / "ckpt")
    write_json(folder / adapter, {})
    if alone:
        (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=rf"holds an adapter \({adapter}\).*merge it"):
        Pi0(suite(), str(folder))


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("000100/pretrained_model", "000100/pretrained_model"),
        ("checkpoints/020000/pretrained_model", "checkpoints/020000/pretrained_model"),
        ("30000", "30000"),
    ],
)
def test_a_folder_above_a_checkpoint_names_the_one_inside(tmp_path, written, named):
    lerobot_folder(tmp_path / "run" / written)
    with pytest.raises(UsageError, match=f"run is no checkpoint itself; name the one inside: .*/run/{named}[.]$"):
        Pi0(suite(), str(tmp_path / "run"))


def test_the_newest_of_several_is_named(tmp_path):
    for step in ("9000", "10000"):
        lerobot_folder(tmp_path / "run" / step)
    with pytest.raises(UsageError, match=r"name the one inside: .*/run/10000, of 2 in it"):
        Pi0(suite(), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lerobot/pi0_libero", "nothing is downloaded.*hf download lerobot/pi0_libero --local-dir pi0_libero"),
        ("gs://openpi-assets/checkpoints/pi05_libero", "is an address, and nothing is downloaded"),
        ("./nowhere", "There is nothing at"),
    ],
)
def test_what_is_not_there_says_how_to_get_it(given, said):
    with pytest.raises(UsageError, match=said):
        Pi0(suite(), given)


# openpi's directories


def test_a_folder_of_openpis_own_training_is_played_once_its_horizon_is_said(tmp_path):
    whole = openpi(openpi_folder(tmp_path / "whole", "pi05"))
    folder = openpi_folder(tmp_path / "trained", "pi05")
    (folder / "config.json").unlink()
    torch.save({"global_step": 1000}, folder / "metadata.pt")
    torch.save({}, folder / "optimizer.pt")
    with pytest.raises(UsageError, match=r"nothing in it says how many actions it answers: .*horizon=10"):
        openpi(folder)
    seen = observations()
    policy = openpi(folder, horizon=10)
    assert policy.spec.chunk == 10
    np.testing.assert_array_equal(policy.infer(seen)[0].actions, whole.infer(seen)[0].actions)
    with pytest.raises(UsageError, match="leave horizon out"):
        openpi(tmp_path / "whole", horizon=10)
    with pytest.raises(UsageError, match="horizon should be at least 1, got -1"):
        openpi(folder, horizon=-1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_openpi_directory_acts_as_its_files_say(tmp_path, variant):
    folder = openpi_folder(tmp_path / "ckpt", variant, asset="somebody/kitchen")
    policy = openpi(folder)
    (seen,) = observations()
    stats = json.loads((folder / "assets/somebody/kitchen/norm_stats.json").read_text())["norm_stats"]
    state, action = ({k: np.array(v) for k, v in stats[name].items()} for name in ("state", "actions"))
    if variant == "pi0":
        normal = (seen.state - state["mean"]) / (state["std"] + 1e-6)
        prompt = tiny_tokenizer().encode("pick up the cube") + tiny_tokenizer().encode("\n")
    else:
        normal = 2 * (seen.state - state["q01"]) / (state["q99"] - state["q01"] + 1e-6) - 1
        prompt = tiny_tokenizer().encode(state_prompt("pick up the cube", normal))
    ids = torch.tensor([[1, *prompt]])
    model, ones = policy.model, torch.ones(1, dtype=torch.bool)
    with torch.inference_mode():
        chunk = model.sample(
            [
                torch.from_numpy(pillow_resize_with_pad(seen.images[c.name][:, ::-1].copy(), 56))
                .permute(2, 0, 1)[None]
                .float()
                / 255
                for c in CAMERAS
            ],
            [ones, ones],
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            torch.from_numpy(normal.astype(np.float32))[None],
            noise=noise([seen], (10, 32), torch.device("cpu")),
        )[0, :, :7].numpy()
    if variant == "pi0":
        expected = chunk * (action["std"] + 1e-6) + action["mean"]
    else:
        expected = (chunk + 1) / 2 * (action["q99"] - action["q01"] + 1e-6) + action["q01"]
    np.testing.assert_allclose(policy.infer([seen])[0].actions, expected, rtol=0, atol=2e-5)


def test_openpis_libero_configs_are_recognised_by_their_statistics(tmp_path):
    old = openpi(openpi_folder(tmp_path / "old", "pi0"))
    new = openpi(openpi_folder(tmp_path / "new", "pi05"))
    assert old.reading.relative == (True,) * 6 + (False,)
    assert new.reading.relative == ()
    assert new.reading.state_in_prompt == "no"
    assert old.spec.note == "openpi pi0, statistics libero; relative actions"
    assert new.spec.note == "openpi pi05, statistics libero"
    (seen,) = observations()
    plain = openpi(tmp_path / "old", relative="no")
    difference = old.infer([seen])[0].actions - plain.infer([seen])[0].actions
    np.testing.assert_allclose(difference, np.tile([*seen.state[:6], 0], (10, 1)), atol=1e-5)
    assert plain.spec.note == "openpi pi0, statistics libero"


@pytest.mark.parametrize(
    ("variant", "option", "value"), [("pi0", "relative", "arm"), ("pi05", "state_in_prompt", "no")]
)
def test_statistics_from_elsewhere_do_not_hide_whether_a_checkpoint_is_openpis_for_libero(
    tmp_path, variant, option, value
):
    folder = openpi_folder(tmp_path / "ckpt", variant)
    elsewhere = tmp_path / "mine.json"
    shutil.copy(folder / "assets/physical-intelligence/libero/norm_stats.json", elsewhere)
    known = openpi(folder)
    given = openpi(folder, statistics=str(elsewhere))
    assert given.reading == known.reading
    assert "statistics mine.json" in given.spec.note
    (folder / "assets/physical-intelligence/libero").rename(folder / "assets/kitchen")
    other = openpi(folder, statistics=str(elsewhere))
    assert getattr(other.reading, option) != getattr(known.reading, option)
    shutil.rmtree(folder / "assets")
    with pytest.raises(UsageError, match=f"say --policy-args {option}={value} .* or {option}=") as error:
        openpi(folder, statistics=str(elsewhere))
    assert "\n" not in str(error.value)
    assert openpi(folder, statistics=str(elsewhere), **{option: value}).reading == known.reading


def test_several_statistics_must_be_chosen_from(tmp_path):
    folder = openpi_folder(tmp_path / "ckpt")
    shutil.copytree(folder / "assets/physical-intelligence/libero", folder / "assets/trossen")
    with pytest.raises(UsageError, match=r"2 sets of statistics; choose one .* physical-intelligence/libero, trossen"):
        openpi(folder)
    with pytest.raises(UsageError, match="no statistics 'droid'"):
        openpi(folder, asset="droid")
    assert openpi(folder, asset="trossen").reading.relative == ()
    elsewhere = tmp_path / "mine.json"
    shutil.copy(folder / "assets/trossen/norm_stats.json", elsewhere)
    with pytest.raises(UsageError, match="2 sets of statistics; choose one"):
        openpi(folder, statistics=str(elsewhere))
    assert openpi(folder, asset="trossen", statistics=str(elsewhere)).reading.relative == ()


# Ours


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_policy_answers_bit_for_bit_the_same(tmp_path, variant):
    policy = openpi(openpi_folder(tmp_path / "official", variant))
    policy.save(tmp_path / "ours", {"from": "a test"})
    again = Pi0(suite(), str(tmp_path / "ours"))
    seen = observations(2)
    for one, other in zip(policy.infer(seen), again.infer(seen), strict=True):
        assert np.array_equal(one.actions, other.actions)
    assert again.reading == policy.reading
    assert again.spec.checkpoint
    assert again.spec.checkpoint != policy.spec.checkpoint


def test_a_damaged_directory_of_ours_is_named_in_a_sentence(tmp_path):
    Pi0(suite(), size="tiny").save(tmp_path / "ours", {})
    config = json.loads((tmp_path / "ours/config.json").read_text())
    with pytest.raises(UsageError, match="no camera 'robot0_eye_in_hand'"):
        Pi0(suite(cameras=CAMERAS[:1]), str(tmp_path / "ours"))
    write_json(tmp_path / "ours/config.json", {**config, "sizes": {"wings": 2}})
    with pytest.raises(UsageError, match="ours cannot be read as a checkpoint of π0"):
        Pi0(suite(), str(tmp_path / "ours"))
    write_json(tmp_path / "ours/config.json", config)
    (tmp_path / "ours/tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        Pi0(suite(), str(tmp_path / "ours"))


# Prompts and pictures


def test_openpi_cleans_what_lerobot_leaves(tmp_path):
    assert cleaned("  put_the mug\non it ") == "put the mug on it"
    text, state = "  put_the mug\non it ", np.zeros(8, np.float32)
    theirs = openpi(openpi_folder(tmp_path / "openpi"))
    encode = tiny_tokenizer().encode
    assert theirs.prompt_ids(text, state) == [1, *encode("put the mug on it"), *encode("\n")]
    ours = Pi0(suite(), size="tiny")
    assert ours.prompt_ids(text, state) == [1, *encode(text + "\n")]
    assert ours.prompt_ids("ends\n", state) == [1, *encode("ends\n")]


def test_states_are_written_in_256_bins_and_minus_one_below():
    edges = np.linspace(-1, 1, 257)
    middles = (edges[:-1] + edges[1:]) / 2
    bins = state_prompt("go", middles).removeprefix("Task: go, State: ").removesuffix(";\nAction: ").split()
    assert bins == [str(i) for i in range(256)]
    assert state_prompt(" go_on\n", [-1.01, -1.0, 0.0, 1.0, 7.0]) == "Task: go on, State: -1 0 128 255 255;\nAction: "


def test_the_state_is_left_out_or_padded_if_asked():
    state = np.zeros(8, np.float32)
    encode = tiny_tokenizer().encode
    prompts = {
        how: Pi0(suite(), size="tiny", variant="pi05", state_in_prompt=how).prompt_ids("go", state)
        for how in ("no", "real", "padded")
    }
    assert prompts["no"] == [1, *encode("go\n")]
    assert prompts["real"] == [1, *encode(f"Task: go, State: {' '.join(['128'] * 8)};\nAction: ")]
    assert prompts["padded"] == [1, *encode(f"Task: go, State: {' '.join(['128'] * 32)};\nAction: ")]


def test_long_prompts_lose_their_end_and_short_ones_are_padded():
    policy = Pi0(suite(), size="tiny")
    assert len(policy.prompt_ids("word " * 500, np.zeros(8, np.float32))) == policy.reading.prompt_tokens
    tokens, mask = padded([[1, 5], [1, 6, 7]])
    assert tokens.shape == (2, 16)
    assert mask.sum(1).tolist() == [2, 3]
    assert tokens[mask].tolist() == [1, 5, 1, 6, 7]


def test_pictures_are_mirrored_only_for_models_of_raw_libero_pictures(tmp_path):
    (seen,) = observations()
    flipped = replace(seen, images={name: image[:, ::-1].copy() for name, image in seen.images.items()})
    folder = openpi_folder(tmp_path / "ckpt")
    official, upright = openpi(folder), openpi(folder, mirror="no")
    assert np.array_equal(official.infer([seen])[0].actions, upright.infer([flipped])[0].actions)
    assert not np.allclose(official.infer([seen])[0].actions, upright.infer([seen])[0].actions)
    assert not Pi0(suite(), size="tiny").reading.mirror
    fine_tuned = openpi(folder, convention="suite")
    assert np.array_equal(fine_tuned.infer([seen])[0].actions, upright.infer([seen])[0].actions)
    asked = openpi(folder, convention="suite", mirror="yes")
    assert np.array_equal(asked.infer([seen])[0].actions, official.infer([seen])[0].actions)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (101, 40), (56, 56)])
def test_pillow_resizing_keeps_shape_and_centres_in_black(height, width):
    picture = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    resized = pillow_resize_with_pad(picture, 56)
    ratio = max(height, width) / 56
    rows, columns = int(height / ratio), int(width / ratio)
    top, left = (56 - rows) // 2, (56 - columns) // 2
    inside = resized[top : top + rows, left : left + columns]
    expected = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR))
    assert np.array_equal(inside, expected)
    assert resized.sum() == inside.sum(dtype=np.int64)


# Learning


def demonstrations(count: int, horizon: int) -> Batch:
    generator = torch.Generator().manual_seed(9)
    words = ["red cube", "blue bowl", "top drawer", "small mug"]
    return Batch(
        images={
            camera.name: torch.randint(0, 256, (count, 1, 64, 64, 3), generator=generator, dtype=torch.uint8)
            for camera in CAMERAS
        },
        state=torch.randn(count, 1, 8, generator=generator),
        instructions=[f"pick up the {words[index % 4]}" for index in range(count)],
        actions=torch.rand(count, horizon, 7, generator=generator) * 2 - 1,
        valid=torch.ones(count, horizon, dtype=torch.bool),
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_models_flow_loss_of_normalised_padded_actions(tmp_path, variant):
    policy = openpi(openpi_folder(tmp_path / "ckpt", variant))
    batch = demonstrations(3, 10)
    with torch.inference_mode():
        loss = policy.losses(batch, torch.Generator().manual_seed(4))["loss"]
        generator = torch.Generator().manual_seed(4)
        start = torch.randn(3, 10, 32, generator=generator)
        times = torch.rand(3, generator=generator) ** (2 / 3) * 0.999 + 0.001
        states = batch.state[:, 0].numpy()
        relative = batch.actions.numpy().copy()
        if variant == "pi0":
            relative[..., :6] -= states[:, None, :6]
        actions = torch.zeros(3, 10, 32)
        actions[..., :7] = torch.from_numpy(policy.action_map.apply(relative))
        features = policy.model.see([policy._pixels(batch.images[camera.name][:, 0]) for camera in CAMERAS])
        prefix = policy._prefix(features, states, batch.instructions)
        t = times[:, None, None]
        velocity = policy.model.answer(prefix, t * start + (1 - t) * actions, policy.model.moments(times))
    assert loss.item() == pytest.approx((velocity - (start - actions)).square().mean().item(), rel=1e-5)


def test_chunks_of_another_length_cannot_be_learnt():
    with pytest.raises(UsageError, match="chunks of 10 actions, got 4"):
        Pi0(suite(), size="tiny").losses(demonstrations(2, 4), torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "count", "steps"), [("pi0", 4, 80), *((variant, 16, 160) for variant in VARIANTS)])
def test_demonstrations_are_learnt_by_heart(variant, count, steps):
    policy = Pi0(suite(), size="tiny", variant=variant)
    policy.crop = 1.0  # `losses` takes pictures as they are to be shown
    policy.draws = 4
    batch, generator = demonstrations(count, policy.spec.chunk), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(policy.model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = policy.losses(batch, generator)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.05 * losses[0]
    seen = [
        Observation(
            {name: picture[index, 0].numpy() for name, picture in batch.images.items()},
            batch.state[index, 0].numpy(),
            batch.instructions[index],
            seed=index,
        )
        for index in range(count)
    ]
    answered = np.stack([chunk.actions for chunk in policy.infer(seen)])
    assert np.abs(answered - batch.actions.numpy()).mean() < 0.1


# What can be wrong


def test_neither_or_both_of_checkpoint_and_tiny_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="give --checkpoint DIR"):
        Pi0(suite())
    with pytest.raises(UsageError, match="leave one out"):
        Pi0(suite(), str(tmp_path), size="tiny")


def test_arguments_that_would_be_ignored_are_refused(tmp_path):
    for argument in ({"asset": "droid"}, {"convention": "suite"}, {"cameras": "agentview"}, {"vision_heads": 8}):
        with pytest.raises(UsageError, match=f"{next(iter(argument))} is for official checkpoints"):
            Pi0(suite(), size="tiny", **argument)
    with pytest.raises(UsageError, match="is of pi0, asked for variant=pi05"):
        Pi0(suite(), str(lerobot_folder(tmp_path / "ckpt")), variant="pi05")
    with pytest.raises(UsageError, match="steps should be at least 1"):
        Pi0(suite(), size="tiny", steps=-1)
    with pytest.raises(UsageError, match="7 numbers do not fit a suite with 7 actions and 2 states"):
        Pi0(suite(state=("x", "y")), size="tiny", relative="arm")
    Pi0(suite(state=LIBERO_STATE[:6]), size="tiny", relative="arm")


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without(ending: str):
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}
        save_file(kept, folder / "model.safetensors")

    return change


def with_extra(folder: Path) -> None:
    save_file({**load_file(folder / "model.safetensors"), "wings": torch.zeros(2)}, folder / "model.safetensors")


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("expert.model.layers.1.mlp.up_proj.weight"))
    save_file({**tensors, name: torch.zeros(3, 3)}, folder / "model.safetensors")


def config(**changes: object):
    return lambda folder: edit_json(folder / "config.json", **changes)


def action_of(dim: int):
    return config(output_features={"action": {"type": "ACTION", "shape": [dim]}})


def no_statistics(folder: Path) -> None:
    for file in folder.glob("*normalizer_processor.safetensors"):
        tensors = load_file(file)
        save_file({name: tensor for name, tensor in tensors.items() if ".mean" not in name}, file)


WRONG: Mapping[str, tuple[object, str]] = {
    "no config": (remove("config.json"), r"no config\.json"),
    "no weights": (remove("model.safetensors"), r"neither model\.safetensors"),
    "truncated": (truncate, "truncated"),
    "another policy": (config(type="smolvla"), "of type 'smolvla'; pi0 reads openpi's"),
    "another model": (config(type="pi05"), "says pi05, but the weights are of pi0"),
    "missing tensor": (without("expert.model.layers.1.mlp.up_proj.weight"), "missing"),
    "too many tensors": (with_extra, "wings not expected"),
    "another shape": (reshaped, r"another shape .*\(3, 3\), expected \(128, 32\)"),
    "another resolution": (config(image_resolution=[224, 224]), "says image_resolution 224, but the weights have 56"),
    "no chunk": (config(chunk_size=None), "should say chunk_size"),
    "another action": (action_of(14), "actions of 14 numbers, LIBERO has 7"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "no tokenizer; pass PaliGemma's"),
    "no statistics": (no_statistics, "no mean of observation.state"),
    "no state file": (
        remove("policy_preprocessor_step_6_normalizer_processor.safetensors"),
        "There is no file .*normalizer_processor",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_lerobot_directory_is_one_sentence(tmp_path, what):
    folder = lerobot_folder(tmp_path / "ckpt")
    damage, sentence = WRONG[what]
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UsageError, match=sentence):
        Pi0(suite(), str(folder))


def test_a_jax_checkpoint_is_told_how_to_be_converted(tmp_path):
    (tmp_path / "jax" / "params").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"convert_jax_model_to_pytorch\.py"):
        Pi0(suite(), str(tmp_path / "jax"))


def test_a_checkpoint_of_liberos_actions_says_so_whatever_the_suite(tmp_path):
    other = replace(LIBERO_ACTION, gripper="close_negative")
    folder = lerobot_folder(tmp_path / "ckpt")
    assert Pi0(suite(action=other), str(folder)).spec.action == LIBERO_ACTION  # which the engine then refuses
    assert Pi0(suite(action=other), str(folder), convention="suite").spec.action == other
    with pytest.raises(UsageError, match=r"states of 8 numbers, the suite 'paper' has 2"):
        Pi0(suite(state=("x", "y")), str(folder), convention="suite")


def test_too_wide_a_suite_is_refused():
    with pytest.raises(UsageError, match="states of 32 and actions of 7 numbers at most, asked for 40 and 7"):
        Pi0(suite(state=tuple(f"s{index}" for index in range(40))), size="tiny")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = lerobot_folder(tmp_path / "ckpt")
    said = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    large, deaf = tmp_path / "large.json", tmp_path / "deaf.json"
    words = said["model"]["vocab"] | {f"word{index}": index for index in range(6, 1001)}
    write_json(large, {**said, "model": {**said["model"], "vocab": words}})
    with pytest.raises(UsageError, match="1001 ids, the model's embedding 1000"):
        Pi0(suite(), str(folder), tokenizer=str(large))
    nothing = {**said, "added_tokens": [], "model": {**said["model"], "vocab": {"<unk>": 0, "pick": 1}}}
    write_json(deaf, nothing)
    with pytest.raises(UsageError, match="no <bos>"):
        Pi0(suite(), str(folder), tokenizer=str(deaf))


def test_paligemmas_image_token_behind_the_embedding_is_accepted_and_no_instruction_may_say_it(tmp_path):
    """Its official tokenizer has 257153 ids, `<image>` the last; π0's embedding has 257152 rows."""
    folder = lerobot_folder(tmp_path / "ckpt")
    said = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    taken = {*said["model"]["vocab"].values(), *(token["id"] for token in said["added_tokens"])}
    words = said["model"]["vocab"] | {f"word{index}": index for index in range(1000) if index not in taken}
    image = {**said["added_tokens"][0], "id": 1000, "content": "<image>"}
    full = {**said, "added_tokens": [*said["added_tokens"], image], "model": {**said["model"], "vocab": words}}
    write_json(tmp_path / "full.json", full)
    policy = Pi0(suite(), str(folder), tokenizer=str(tmp_path / "full.json"))
    assert policy.tokenizer.vocab_size == 1001
    assert policy.infer(observations())[0].actions.shape == (6, 7)
    with pytest.raises(UsageError, match="'look at <image>' has a token that the model does not know"):
        policy.infer([replace(seen, instruction="look at <image>") for seen in observations()])
