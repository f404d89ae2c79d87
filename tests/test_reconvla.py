"""ReconVLA as a policy: what it reads, what it answers, where it comes from, how it learns."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

pytest.importorskip("transformers", reason="ReconVLA's vision tower is transformers'")

from reconvla_cases import FIRST, demonstrations, random_model, seen, toy_suite, write_released, write_tokenizer
from safetensors.torch import load_file, save_file
from vla_bench.policies.reconvla.formats import CALVIN_MEAN, CALVIN_STD, calvin_state
from vla_bench.policies.reconvla.pictures import Stack
from vla_bench.policies.reconvla.policy import ReconVLA
from vla_bench.policies.reconvla.prompt import SYSTEM, PromptWriter, Wording, qwen_tokenizer
from vla_bench.policies.torch.augmentation import kept
from vla_bench.policies.torch.tokens import ActionBins

from vla_bench.errors import UsageError
from vla_bench.grounding.scoring import inside_total, score

TOY, CALVIN = toy_suite(), toy_suite(calvin=True, name="calvin_toy")
INSTRUCTIONS = ("lift the red block", "close the drawer, then open it again", "push")


@pytest.fixture(scope="module")
def tiny():
    return ReconVLA(TOY, size="tiny")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released") / "ReconVLA", random_model())


def observations(suite=TOY):
    return [seen(suite, seed, text) for seed, text in enumerate(INSTRUCTIONS)]


# Tokens


def test_action_tokens_are_the_closed_formula_in_all_bins_of_qwen2():
    bins = ActionBins(151643)
    for number in range(1, 257):
        low = -1 + 2 * (number - 1) / 255
        inside = low + 1 / 255 if number < 256 else 1.0
        token = 151643 - number
        assert bins.encode(inside) == token
        assert bins.decode(token) == pytest.approx(min(low + 1 / 255, 1 - 1 / 255), abs=1e-12)
    assert bins.encode([-7.0, 7.0]).tolist() == [151642, 151387]
    assert bins.decode([0, 151645]) == pytest.approx([1 - 1 / 255, -1 + 1 / 255])


def test_state_is_three_standard_deviations_wide():
    mean, std = np.array(CALVIN_MEAN), np.array(CALVIN_STD)
    assert len(mean) == len(std) == len(CALVIN.state)
    np.testing.assert_allclose(calvin_state().apply(mean + 3 * (std + 1e-5)), np.ones(15), atol=1e-6)
    np.testing.assert_allclose(calvin_state().apply(mean - 1.5 * (std + 1e-5)), np.full(15, -0.5), atol=1e-6)


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    return qwen_tokenizer(tmp_path)


def test_prompt_is_the_released_templates_with_the_state_spliced_in(tokenizer):
    writer = PromptWriter(tokenizer, ActionBins(512), Wording())
    before, after = writer.write("lift it", [0.0, -1.0, 5.0])
    assert tokenizer.decode(before) == f"{SYSTEM} USER: lift it\n"
    assert tokenizer.decode(after[:9]) == "\nlift it\n"
    assert after[9:12] == [512 - 128, 511, 256]
    assert tokenizer.decode(after[12:]) == " ASSISTANT:"


def test_an_instruction_said_once_stands_behind_the_picture(tokenizer):
    once = PromptWriter(tokenizer, ActionBins(512), Wording(twice=False)).write("lift it", [0.0])
    twice = PromptWriter(tokenizer, ActionBins(512), Wording()).write("lift it", [0.0])
    assert tokenizer.decode(once.before) == f"{SYSTEM} USER: "
    assert once.after == twice.after


@pytest.mark.parametrize(
    ("character", "strays"), [(0x2D0, 0), (0x341, 0), (0x344, 1)], ids=["plain", "another", "splits in two"]
)
def test_stray_ids_are_left_where_nfc_splits_a_state_token(tokenizer, character, strays):
    """U+0341 becomes one other character under NFC, U+0344 two; the true ids are put over the last ones."""
    bins, token = ActionBins(512), 256 + character - FIRST
    state = np.array([0.0, float(bins.centres[512 - token - 1]), 0.0])
    clean = PromptWriter(tokenizer, bins, Wording()).write("lift it", state)
    detour = PromptWriter(tokenizer, bins, Wording(stray_ids=True)).write("lift it", state)
    assert detour.before == clean.before
    assert len(detour.after) == len(clean.after) + strays
    assert detour.after[:9] == clean.after[:9]
    assert detour.after[9 + strays :] == clean.after[9:]
    assert detour.after[9 : 9 + strays] == [384] * strays, "what is left over is the text's first id"


def test_tokenizer_of_vocabulary_and_merges_is_transformers_qwen2(tmp_path):
    from transformers import Qwen2Tokenizer

    write_tokenizer(tmp_path)
    ours, theirs = qwen_tokenizer(tmp_path), Qwen2Tokenizer.from_pretrained(tmp_path)
    assert ours.base_size == 512
    assert ours.id_of("<|im_end|>") == 514
    for text in (*INSTRUCTIONS, SYSTEM, "don't  stop\n\n at 12 Å\u0344ː ", "\nA\n\u0341\u02d0 ASSISTANT:"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


# Pictures


@pytest.mark.parametrize(("stacking", "above"), [("rows", 173), ("halves", 167)])
def test_views_meet_where_the_released_code_lets_them(stacking, above):
    static, wrist = np.full((200, 200, 3), 10, np.uint8), np.full((84, 84, 3), 200, np.uint8)
    stack = Stack(334, 334, 27, stacking)
    assert stack.above == above
    rows = (stack(static, wrist)[0, :, 5] + 1) * 127.5
    np.testing.assert_allclose(rows, [10] * above + [200] * (334 - above), atol=1e-3)


def test_picture_is_lanczos_then_bicubic_in_minus_one_to_one():
    random = np.random.default_rng(0)
    static, wrist = (random.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (200, 84))
    ours = Stack(334, 384, 27, "halves")(static, wrist)
    canvas = Pillow.new("RGB", (334, 334))
    canvas.paste(Pillow.fromarray(static).resize((334, 167), Pillow.LANCZOS), (0, 0))
    canvas.paste(Pillow.fromarray(wrist).resize((334, 167), Pillow.LANCZOS), (0, 167))
    expected = (np.asarray(canvas.resize((384, 384), Pillow.BICUBIC)) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(ours, expected.transpose(2, 0, 1), atol=1e-6)


def test_jpeg_changes_the_picture_as_pillow_does():
    random = np.random.default_rng(0)
    views = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2)]
    plain, jpeg = (Stack(64, 64, 8, "halves", jpeg)(*views) for jpeg in (False, True))
    file = io.BytesIO()
    Pillow.fromarray(((plain.transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)).save(file, "JPEG")
    np.testing.assert_allclose(jpeg.transpose(1, 2, 0), np.asarray(Pillow.open(file)) / 127.5 - 1, atol=1e-6)
    assert np.abs(jpeg - plain).max() > 0.1


def test_gaze_fills_the_upper_part_and_leaves_the_wrist_view():
    static, wrist = np.zeros((100, 100, 3), np.uint8), np.full((50, 50, 3), 255, np.uint8)
    static[20:40, 60:80] = [255, 0, 0]
    stack = Stack(80, 80, 10, "rows")
    target = stack.gaze(static, wrist, [0.6, 0.2, 0.8, 0.4])
    np.testing.assert_allclose(target[:, : stack.above], np.array([1, -1, -1])[:, None, None] * np.ones((3, 40, 80)))
    np.testing.assert_array_equal(target[:, stack.above :], stack(static, wrist)[:, stack.above :])


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1], [-1, -1, 0, 0]])
def test_a_gaze_of_no_size_is_one_pixel(box):
    static = np.arange(100, dtype=np.uint8).reshape(10, 10, 1).repeat(3, 2)
    target = Stack(20, 20, 10, "rows").gaze(static, static, box)
    assert len(np.unique(target[:, :10])) == 1


# Answers


def test_a_chunk_is_five_actions_within_the_suites_range(tiny):
    for chunk in tiny.infer(observations()):
        assert chunk.actions.shape == (5, 7)
        assert chunk.actions.dtype == np.float32
        assert np.abs(chunk.actions).max() <= 1
        assert set(np.unique(chunk.actions[:, -1])) <= {-1.0, 1.0}
        assert list(chunk.stages) == ["vision", "prefill", "decode", "post"]


def test_answers_are_bit_equal_whatever_the_batch(tiny):
    together, alone = tiny.infer(observations()), [tiny.infer([one])[0] for one in reversed(observations())]
    for one, other in zip(together, reversed(alone), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_observations_answered_in_one_pass_get_the_same_actions(tiny):
    policy = ReconVLA(TOY, size="tiny", batching="together")
    assert not policy.spec.deterministic
    for one, other in zip(policy.infer(observations()), tiny.infer(observations()), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_answers_depend_on_pictures_state_and_instruction(released):
    policy = ReconVLA(CALVIN, str(released))
    base = seen(CALVIN, 0)
    other = seen(CALVIN, 1, "another sentence")
    first = policy.infer([base])[0].actions
    for change in ("images", "state", "instruction"):
        changed = replace(base, **{change: getattr(other, change)})
        assert not np.array_equal(policy.infer([changed])[0].actions, first), change


def test_attention_is_told_for_both_views_and_changes_no_action(tiny):
    watching = ReconVLA(TOY, size="tiny", attention=True)
    for one, plain in zip(watching.infer(observations()), tiny.infer(observations()), strict=True):
        assert list(one.attention) == ["agentview", "hand"]
        assert min(given.weights.min() for given in one.attention.values()) > 0
        assert sum(map(inside_total, one.attention.values())) == pytest.approx(1, abs=1e-5)
        for camera in TOY.cameras:
            left, top, right, bottom = np.multiply(one.attention[camera.name].box, camera.width)
            side = kept(camera.width, watching.crop)
            assert left == pytest.approx((camera.width - side) // 2)
            assert right == pytest.approx(left + side)
            assert (top, bottom) == pytest.approx((left, right)), "an even grid, whole patches: no row is cut"
        assert plain.attention == {}
        np.testing.assert_array_equal(one.actions, plain.actions)


@pytest.mark.parametrize(("stacking", "above"), [("rows", 173), ("halves", 167)])
def test_patches_of_the_stacked_picture_are_told_apart_by_view(stacking, above):
    """Masks as tall as the views in the stacked picture, against every patch's rows there, one by one."""
    weights = np.random.default_rng(0).random((27, 27)).astype(np.float32)
    weights /= weights.sum()
    views = Stack(334, 384, 27, stacking).looked_at(weights, patch=14)
    borders = np.arange(28) * 14 * 334 / 384  # rows of the stacked picture
    rows = np.random.default_rng(1).random(334) < 0.3
    columns = np.arange(384) < 200
    expected = 0.0
    for row, (start, end) in enumerate(pairwise(borders)):
        covered = sum(max(0.0, min(end, y + 1) - max(start, y)) for y in np.flatnonzero(rows)) / (end - start)
        for column in range(27):
            expected += weights[row, column] * covered * np.clip((200 - 14 * column) / 14, 0, 1)
    masks = {"static": rows[:above, None] & columns, "wrist": rows[above:, None] & columns}
    found = score(dict(zip(masks, views, strict=True)), masks)
    assert sum(map(inside_total, views)) == pytest.approx(1, abs=1e-6)
    assert found.share == pytest.approx(expected, rel=1e-5)
    assert views[0].box[2] == pytest.approx(378 / 384), "the last six pixels are in no patch"
    np.testing.assert_array_equal(views[0].weights, weights[: len(views[0].weights)])
    np.testing.assert_array_equal(views[1].weights, weights[-len(views[1].weights) :])
    assert len(views[0].weights) + len(views[1].weights) == 28, "one row of patches is cut"


def test_numbers_after_an_early_end_are_zero_and_the_gripper_closes_in_calvin(released):
    policy = ReconVLA(CALVIN, str(released))
    ids = policy._bins.encode(np.full((1, 35), 0.5))
    ids[0, 13] = ids[0, 20] = policy.facts.end_id
    actions = policy.actions_of(ids)[0]
    np.testing.assert_allclose(actions[0], [*[0.5] * 6, 1], atol=1 / 255)
    np.testing.assert_allclose(actions[1], [*[0.5] * 6, -1], atol=1 / 255)
    np.testing.assert_array_equal(actions[2:], [[0, 0, 0, 0, 0, 0, -1]] * 3)


def test_actions_are_un_normalised_before_the_grippers_sign_is_taken(tmp_path, tiny):
    from vla_bench.policies.torch.normalisation import Affine

    policy = ReconVLA(TOY, size="tiny")
    policy.action_map = Affine(np.full(7, 2.0), np.full(7, 0.5))
    actions = policy.actions_of(policy._bins.encode(np.full((1, 35), 0.1)))[0, 0]
    np.testing.assert_allclose(actions, [*[-0.2] * 6, -1], atol=1 / 255)


def test_the_head_changes_nothing_of_the_weights_drawn_for_acting():
    with_head, without = ReconVLA(TOY, size="tiny"), ReconVLA(TOY, size="tiny", recon_weight=0)
    acting = without.model.state_dict()
    assert not any("mm_inv_projector" in name for name in acting)
    for name, weight in acting.items():
        assert torch.equal(weight, with_head.model.state_dict()[name]), name


def test_seeds_draw_weights_and_leave_the_global_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second = ReconVLA(TOY, size="tiny", weights_seed=1), ReconVLA(TOY, size="tiny", weights_seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first.model.lm_head.weight, second.model.lm_head.weight)
    assert "untrained" in first.spec.note
    assert 1e6 < sum(weight.numel() for weight in first.model.parameters()) < 3e6


# Learning


def test_losses_add_up_and_repeat_with_the_generator(tiny):
    batch = demonstrations(TOY, 4, 5)
    first, second = (tiny.losses(batch, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first["loss"] == first["action"] + first["reconstruction"]
    assert first["loss"] == second["loss"]
    assert first["reconstruction"] != tiny.losses(batch, torch.Generator().manual_seed(4))["reconstruction"]
    half = ReconVLA(TOY, size="tiny", recon_weight=0.5).losses(batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(half["loss"], first["action"] + 0.5 * first["reconstruction"])


def test_without_reconstruction_the_loss_is_the_action_loss_and_needs_no_gaze(tiny):
    batch = demonstrations(TOY, 4, 5)
    plain = ReconVLA(TOY, size="tiny", recon_weight=0).losses(replace(batch, gaze=None), torch.Generator())
    assert set(plain) == {"loss", "action"}
    torch.testing.assert_close(plain["loss"], tiny.losses(batch, torch.Generator())["action"])


def test_an_untrained_model_expects_every_token_alike(tiny):
    losses = tiny.losses(demonstrations(TOY, 4, 5), torch.Generator())
    assert losses["action"].item() == pytest.approx(np.log(1280), abs=0.3)
    assert losses["reconstruction"].item() == pytest.approx(1.0, abs=0.05)  # it answers zero to noise of variance one


@pytest.mark.slow
def test_it_overfits_sixteen_demonstrations():
    """The cross-entropy goes to zero. The denoiser's error cannot: at the least noisy steps the noise is no larger than
    what the head still misses of the picture. It falls from 1, the variance of the noise, to a quarter.
    """
    steps, policy, batch = 100, ReconVLA(TOY, size="tiny"), demonstrations(TOY, 16, 5)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator, history = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        losses = policy.losses(batch, generator)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append((losses["action"].item(), losses["reconstruction"].item()))
    action, reconstruction = np.mean(history[-10:], axis=0)
    assert action < 0.02
    assert reconstruction < 0.3


# Where it comes from


def test_the_released_layout_loads_whole_and_acts(released):
    policy = ReconVLA(CALVIN, str(released))
    assert policy.spec.action == CALVIN.action
    assert policy.spec.state == CALVIN.state
    assert len(policy.spec.checkpoint) == 64
    assert policy.infer([seen(CALVIN, 0)])[0].actions.shape == (5, 7)
    given = random_model().state_dict()
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, given[name])
    assert not any("pixel_decoder" in name or "mm_inv" in name for name in policy.model.state_dict())


def test_the_released_layout_keeps_its_head_on_request_and_reconstructs(released, monkeypatch):
    monkeypatch.setattr("vla_bench.policies.reconvla.denoiser.STEPS", 20)
    policy = ReconVLA(CALVIN, str(released), head="keep")
    assert set(policy.model.state_dict()) == set(random_model().state_dict())
    pictures = policy.reconstruct([seen(CALVIN, 0)], torch.Generator().manual_seed(0))
    again = policy.reconstruct([seen(CALVIN, 0)], torch.Generator().manual_seed(0))
    assert pictures.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(pictures, again)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert set(policy.losses(demonstrations(CALVIN, 2, 5), torch.Generator())) == {"loss", "action", "reconstruction"}


def test_the_released_tower_is_frozen_and_a_tiny_one_learns(released, tiny):
    for policy, learns in ((ReconVLA(CALVIN, str(released)), False), (tiny, True)):
        assert {weight.requires_grad for weight in policy.model.model.vision_tower.parameters()} == {learns}
        assert policy.model.lm_head.weight.requires_grad


def test_siglips_pooling_head_in_a_checkpoint_is_left_out(released, tmp_path):
    folder = copied(released, tmp_path / "pooled")
    edit_shard(
        folder,
        lambda tensors: tensors.update(
            {"model.vision_tower.vision_tower.vision_model.head.probe": torch.zeros(1, 1, 32)}
        ),
    )
    ReconVLA(CALVIN, str(folder))


def test_a_saved_policy_comes_back_the_same(tmp_path):
    policy = ReconVLA(TOY, size="tiny", stacking="halves", jpeg="yes", twice="no")
    policy.save(tmp_path / "own", {"data": "none"})
    back = ReconVLA(TOY, str(tmp_path / "own"))
    assert back.facts == policy.facts
    assert back.model.sizes.head is None, "it acts"
    kept = ReconVLA(TOY, str(tmp_path / "own"), head="keep")
    assert kept.model.sizes == policy.model.sizes
    for one, other in zip(back.infer(observations()), policy.infer(observations()), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    batch = demonstrations(TOY, 2, 5)
    losses = [model.losses(batch, torch.Generator().manual_seed(1))["loss"] for model in (policy, kept)]
    assert losses[0] == losses[1]


# What goes wrong


def copied(source, target):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def edit_shard(folder, change):
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = dict.fromkeys(tensors, shard.name)
    kept = {name: file for name, file in index["weight_map"].items() if file != shard.name}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**kept, **held}}))


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def truncate(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def drop(folder, name):
    (folder / name).unlink()


DAMAGES = {
    "another architecture": (lambda f: edit_config(f, model_type="llama"), "type 'llama'; ReconVLA reads"),
    "truncated": (truncate, "truncated"),
    "no shard": (lambda f: drop(f, "model-00002-of-00002.safetensors"), "which is not there"),
    "no config": (lambda f: drop(f, "config.json"), "has no config.json"),
    "no width": (lambda f: edit_config(f, hidden_size=None), "has no hidden_size"),
    "scaled positions": (
        lambda f: edit_config(f, rope_scaling={"type": "linear", "factor": 4.0}),
        "scaled rotary positions",
    ),
    "scaled positions of transformers 5": (
        lambda f: edit_config(f, rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}),
        "scaled rotary positions",
    ),
    "no base of positions": (lambda f: edit_config(f, rope_theta=None), "has no rope_theta"),
    "sliding window": (lambda f: edit_config(f, use_sliding_window=True), "use_sliding_window True"),
    "another layer": (lambda f: edit_config(f, mm_vision_select_layer=-1), "mm_vision_select_layer is -1"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "no tower size": (lambda f: edit_config(f, mm_vision_tower="clip-large"), "expected a SigLIP"),
    "no tokenizer": (lambda f: drop(f, "merges.txt"), "expected tokenizer.json, or vocab.json and merges.txt"),
    "damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), "cannot be read as a tokenizer"),
    "unknown weights": (
        lambda f: edit_shard(f, lambda t: t.update({"model.adapter.weight": torch.zeros(2)})),
        "not expected",
    ),
    "missing weights": (lambda f: edit_shard(f, lambda t: t.pop("lm_head.weight")), "lm_head.weight"),
    "other sizes": (lambda f: edit_config(f, intermediate_size=100), "of another shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_refused_in_one_sentence(released, tmp_path, damage):
    folder = copied(released, tmp_path / "damaged")
    change, said = DAMAGES[damage]
    change(folder)
    with pytest.raises(UsageError, match=said) as caught:
        ReconVLA(CALVIN, str(folder))
    assert "\n" not in str(caught.value)


def test_the_base_of_positions_is_read_as_transformers_5_writes_it(released, tmp_path):
    folder = copied(released, tmp_path / "new")
    edit_config(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert ReconVLA(CALVIN, str(folder)).model.sizes.language.theta == 5e5


def one_camera(suite):
    return replace(suite, cameras=suite.cameras[:1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: ReconVLA(TOY), "give --checkpoint"),
        (lambda folder: ReconVLA(TOY, str(folder), size="tiny"), "both"),
        (lambda folder: ReconVLA(TOY, str(folder)), "trained for CALVIN"),
        (lambda folder: ReconVLA(TOY, str(folder / "nowhere")), "There is nothing at"),
        (lambda folder: ReconVLA(one_camera(TOY), size="tiny"), "has 1"),
        (lambda folder: ReconVLA(TOY, size="tiny", stray_ids="yes"), "stray_ids=yes needs action tokens that are text"),
        (lambda folder: ReconVLA(TOY, size="tiny", device="cuda:77"), "device"),
    ],
    ids=["nothing", "both", "another suite", "no directory", "one camera", "stray ids", "device"],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(released, make, said):
    with pytest.raises(UsageError, match=said) as caught:
        make(released)
    assert "\n" not in str(caught.value)


def test_our_own_directory_without_its_tokenizer_is_refused(tmp_path, tiny):
    tiny.save(tmp_path / "own", {})
    drop(tmp_path / "own", "tokenizer.json")
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        ReconVLA(TOY, str(tmp_path / "own"))


def test_a_head_that_was_not_saved_cannot_be_kept(tmp_path):
    ReconVLA(TOY, size="tiny", recon_weight=0).save(tmp_path / "own", {})
    with pytest.raises(UsageError, match="without a reconstruction head"):
        ReconVLA(TOY, str(tmp_path / "own"), head="keep")


def test_batches_that_cannot_be_learnt_are_refused(tiny):
    batch = demonstrations(TOY, 2, 5)
    with pytest.raises(UsageError, match="chunks of 5 actions, got 4"):
        tiny.losses(replace(batch, actions=batch.actions[:, :4]), torch.Generator())
    with pytest.raises(UsageError, match="recon_weight=0"):
        tiny.losses(replace(batch, gaze=None), torch.Generator())


def test_reconstructing_without_a_head_says_how_to_get_one(released):
    with pytest.raises(UsageError, match="head=keep"):
        ReconVLA(CALVIN, str(released)).reconstruct([seen(CALVIN, 0)], torch.Generator())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": {}}, "own cannot be read as a checkpoint of ReconVLA"),
        ({"policy": "pi0"}, "not of 'reconvla'"),
        ({"facts": {"stack": 3}}, "own cannot be read as a checkpoint of ReconVLA"),
    ],
)
def test_our_own_directory_that_says_something_else_is_refused(tmp_path, tiny, change, said):
    tiny.save(tmp_path / "own", {})
    edit_config(tmp_path / "own", **change)
    with pytest.raises(UsageError, match=said):
        ReconVLA(TOY, str(tmp_path / "own"))
