"""π0 and π0.5 as mathematics: against lerobot's own results, a second implementation, and the definitions."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="policies need the extra vla")
pytest.importorskip("transformers", reason="policies need the extra vla")

from pi0_reference import Reference  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from vla_bench.policies.pi0.formats import LerobotModel, loaded  # noqa: E402
from vla_bench.policies.pi0.model import Pi0Model, Sizes, resize_with_pad, sample_times, time_features, tiny  # noqa: E402
from vla_bench.policies.pi0.names import UNUSED, official_name, our_name, our_tensors, sizes_of  # noqa: E402

from vla_bench.errors import UsageError  # noqa: E402

DATA = Path(__file__).parent / "data"
VARIANTS = ("pi0", "pi05")


def random_model(variant, **changes) -> Pi0Model:
    """Random weights with norms that matter."""
    torch.manual_seed(7)
    official = {
        "image": 56,
        "patch": 14,
        "stem": "patch",
        "vision_width": 64,
        "vision_mlp": 128,
        "predicts": "velocity",
    }
    model = Pi0Model(replace(tiny(variant, 50, horizon=5), **{**official, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if "norm" in name or "bias" in name else 0.08))
    return model


def reference(model: Pi0Model) -> Reference:
    weights = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    return Reference(weights, model.sizes.heads, model.sizes.vision_heads, model.sizes.image)


def inputs(model: Pi0Model, cameras: int = 2, length: int = 9, batch: int = 3, **shape):
    generator = torch.Generator().manual_seed(3)
    side = model.sizes.image
    height, width = shape.get("height", side), shape.get("width", side)
    pictures = [torch.rand(batch, 3, height, width, generator=generator) for _ in range(cameras)]
    shown = [torch.rand(batch, generator=generator) < 0.7 for _ in range(cameras)]
    tokens = torch.randint(0, model.sizes.vocabulary, (batch, length), generator=generator)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[:, 0] = True
    state = torch.randn(batch, 8, generator=generator)
    noise = torch.randn(batch, model.sizes.horizon, model.sizes.action_dim, generator=generator)
    return pictures, shown, tokens, mask, state, noise


# Agreement


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_equal_lerobots(variant):
    folder = DATA / f"{variant}_lerobot_case"
    batch = load_file(folder / "io.safetensors")
    sampled = LerobotModel.load(folder).sample(batch)
    torch.testing.assert_close(sampled, batch["actions"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("cameras", "length", "changes"),
    [
        (1, 4, {}),
        (3, 17, {"image": 42, "depth": 2, "vision_heads": 8}),
        (2, 9, {"heads": 4, "head_dim": 24, "width": 40, "expert_width": 56}),
        (2, 6, {"heads": 6, "kv_heads": 2}),
    ],
)
def test_samples_equal_the_joint_pass_under_any_masks_and_sizes(variant, cameras, length, changes):
    model = random_model(variant, **changes)
    pictures, shown, tokens, mask, state, noise = inputs(model, cameras, length)
    with torch.inference_mode():
        ours = model.sample(pictures, shown, tokens, mask, state, noise=noise)
        theirs = reference(model).sample([2 * p - 1 for p in pictures], shown, tokens, mask, state, noise=noise)
    assert (theirs - noise).abs().max() > 0.1, "weights so small that nothing was tested"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_missing_view_is_as_good_as_left_out(variant):
    model = random_model(variant)
    pictures, _, tokens, mask, state, noise = inputs(model, cameras=3)
    yes, no = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    with torch.inference_mode():
        masked = model.sample(
            [*pictures[:2], torch.zeros_like(pictures[2])], [yes, yes, no], tokens, mask, state, noise=noise
        )
        absent = model.sample(pictures[:2], [yes, yes], tokens, mask, state, noise=noise)
        shown = model.sample(pictures, [yes, yes, yes], tokens, mask, state, noise=noise)
    torch.testing.assert_close(masked, absent, rtol=0, atol=1e-5)
    assert not torch.allclose(shown, absent, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_of_the_prompt_changes_nothing(variant):
    model = random_model(variant)
    pictures, shown, tokens, mask, state, noise = inputs(model)
    longer, more = torch.nn.functional.pad(tokens, (0, 7), value=11), torch.nn.functional.pad(mask, (0, 7))
    with torch.inference_mode():
        short = model.sample(pictures, shown, tokens, mask, state, noise=noise)
        long = model.sample(pictures, shown, longer, more, state, noise=noise)
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)


def test_lerobot_cases_need_not_have_all_pictures_nor_whole_patches(tmp_path):
    """Pictures of 60 pixels: SigLIP's patches of 14 leave a rest of 4 unread; the second camera is absent."""
    folder = tmp_path / "case"
    shutil.copytree(DATA / "pi0_lerobot_case", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_resolution": [60, 60], "num_inference_steps": 4}))
    batch = load_file(folder / "io.safetensors")
    del batch["observation.images.image2"]
    case = LerobotModel.load(folder)
    picture = 2 * resize_with_pad(batch["observation.images.image"], 60)[..., :56, :56] - 1
    with torch.inference_mode():
        slow = reference(case.model).sample(
            [picture, -torch.ones_like(picture)],
            [torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)],
            batch["observation.language.tokens"],
            batch["observation.language.attention_mask"],
            batch["observation.state"],
            noise=batch["noise"],
            steps=4,
        )
    torch.testing.assert_close(case.sample(batch), slow, rtol=0, atol=1e-5)
    del batch["observation.images.image"]
    with pytest.raises(UsageError, match="none of the pictures"):
        case.sample(batch)


@pytest.mark.parametrize("kind", ["images", "state", "noise"])
def test_batches_of_half_precision_become_float32_before_anything_as_in_lerobot(kind):
    folder = DATA / "pi0_lerobot_case"
    batch = load_file(folder / "io.safetensors")
    half = {name: value.bfloat16() if kind in name else value for name, value in batch.items()}
    full = {name: value.float() if kind in name else value for name, value in half.items()}
    case = LerobotModel.load(folder)
    assert torch.equal(case.sample(half), case.sample(full))


def test_a_sample_that_sees_nothing_at_all_stays_finite():
    model = random_model("pi0")
    pictures, shown, tokens, mask, state, noise = inputs(model)
    with torch.inference_mode():
        sampled = model.sample(pictures, [torch.zeros_like(s) for s in shown], tokens, mask & False, state, noise=noise)
    assert sampled.isfinite().all()


def test_only_pi0_reads_the_state_token_and_it_insists():
    for variant in VARIANTS:
        model = random_model(variant)
        pictures, shown, tokens, mask, state, noise = inputs(model)
        with torch.inference_mode():
            one, other = (model.sample(pictures, shown, tokens, mask, s, noise=noise) for s in (state, -state))
        assert torch.equal(one, other) == (variant == "pi05")
    with pytest.raises(UsageError, match="reads a state"):
        random_model("pi0").sample(pictures, shown, tokens, mask, None, noise=noise)


# Flow


def test_euler_steps_of_a_straight_path_end_at_the_action(monkeypatch):
    model = random_model("pi0")
    noise, action = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    monkeypatch.setattr(model, "answer", lambda prefix, x, moment: noise - action)
    for steps in (1, 3, 10):
        torch.testing.assert_close(model.denoise(None, noise, steps), action, rtol=0, atol=1e-5)


def test_times_of_euler_run_from_one_to_a_tenth(monkeypatch):
    model, seen = random_model("pi05"), []
    monkeypatch.setattr(model, "moments", lambda times: seen.extend(times.tolist()) or times[:, None])
    monkeypatch.setattr(model, "answer", lambda prefix, x, moment: torch.zeros_like(x))
    model.denoise(None, torch.zeros(1, 5, 32))
    assert seen == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_the_papers_time_gives_the_same_sample():
    """τ = 1 - t, u = A - ε, τ from 0 up: the reference's velocity, integrated the paper's way."""
    model = random_model("pi0")
    pictures, shown, tokens, mask, state, noise = inputs(model)
    slow = reference(model)
    with torch.inference_mode():
        prefix, valid = slow.prefix([2 * p - 1 for p in pictures], shown, tokens, mask)
        x = noise
        for step in range(10):
            tau = torch.full((3,), step / 10)
            x = x + 0.1 * -slow.velocity(prefix, valid, state, x, 1 - tau)
        ours = model.sample(pictures, shown, tokens, mask, state, noise=noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_the_mean_squared_velocity_error_over_all_dimensions(variant):
    model = random_model(variant)
    pictures, shown, tokens, mask, state, noise = inputs(model)
    actions = torch.nn.functional.pad(torch.randn(3, 5, 7), (0, 25))
    times = torch.tensor([0.02, 0.4, 1.0])
    with torch.inference_mode():
        pixels = [2 * p - 1 for p in pictures]
        ours = model.flow_loss(model.prefill(model.see(pixels), shown, tokens, mask, state), actions, noise, times)
        slow = reference(model)
        prefix, valid = slow.prefix(pixels, shown, tokens, mask)
        tau = (1 - times)[:, None, None]
        noisy = tau * actions + (1 - tau) * noise
        error = -slow.velocity(prefix, valid, state, noisy, times) - (actions - noise)
    assert error.shape == (3, 5, 32)
    assert ours.item() == pytest.approx(error.square().mean().item(), abs=1e-5)


def test_a_model_that_answers_actions_moves_along_the_velocity_they_imply():
    model = random_model("pi0", predicts="sample")
    pictures, shown, tokens, mask, state, noise = inputs(model)
    slow, actions, times = reference(model), torch.randn(3, 5, 32), torch.tensor([0.02, 0.4, 1.0])
    with torch.inference_mode():
        pixels = [2 * p - 1 for p in pictures]
        ours = model.prefill(model.see(pixels), shown, tokens, mask, state)
        prefix, valid = slow.prefix(pixels, shown, tokens, mask)
        x = noise
        for t in (1.0, 0.75, 0.5, 0.25):
            answer = slow.velocity(prefix, valid, state, x, torch.full((3,), t))
            x = x - (x - answer) / t / 4
        tau = (1 - times)[:, None, None]
        learnt = slow.velocity(prefix, valid, state, tau * actions + (1 - tau) * noise, times)
        loss, sample = model.flow_loss(ours, actions, noise, times), model.denoise(ours, noise, steps=4)
    torch.testing.assert_close(sample, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(x, answer)
    assert loss.item() == pytest.approx((learnt - actions).square().mean().item(), abs=1e-5)


def test_training_times_follow_the_papers_beta():
    times = sample_times(200_000, torch.Generator().manual_seed(0)).double()
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    for t in (0.1, 0.3, 0.5, 0.9):
        u = (t - 0.001) / 0.999
        assert (times <= t).double().mean().item() == pytest.approx(u**1.5, abs=0.004)  # CDF of Beta(1.5, 1)
    assert times.mean().item() == pytest.approx(0.999 * 0.6 + 0.001, abs=0.003)  # nearer noise (1) than action (0)


def test_gradients_reach_every_parameter_but_those_beyond_the_last_keys():
    model = random_model("pi0")
    pictures, shown, tokens, mask, state, noise = inputs(model)
    prefix = model.prefill(model.see([2 * p - 1 for p in pictures]), shown, tokens, mask, state)
    model.flow_loss(prefix, torch.zeros_like(noise), noise, torch.full((3,), 0.5)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    without = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    tail = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    unread = {f"vlm.{model.sizes.depth - 1}.{part}.weight" for part in (*tail, "post_attention_layernorm")}
    assert without == unread


def test_time_features_are_sines_then_cosines_of_periods_from_4_ms_to_4():
    features = time_features(torch.tensor([0.0, 0.25]), replace(Sizes(), expert_width=8))
    assert features[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    periods = [0.004 * 10**k for k in range(4)]
    expected = [f(2 * math.pi * 0.25 / p) for f in (math.sin, math.cos) for p in periods]
    assert features[1].tolist() == pytest.approx(expected, abs=1e-5)


# Pictures


def test_resizing_keeps_shape_and_centres_in_black():
    wide = torch.ones(1, 3, 20, 40)
    resized = resize_with_pad(wide, 10)
    assert resized.shape == (1, 3, 10, 10)
    rows = resized[0, 0].mean(1).tolist()
    assert rows == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]  # 5 rows of picture; the odd row of padding is below
    columns = resize_with_pad(wide.mT, 10)[0, 0].mean(0).tolist()
    assert columns == rows


def test_resizing_is_bilinear_at_pixel_centres_without_antialiasing():
    ramp = torch.linspace(0, 1, 12).expand(1, 3, 12, 12)
    centres = (torch.arange(4) + 0.5) * 3 - 0.5
    expected = torch.stack(
        [(ramp[0, 0, 0, int(c)] * (1 - c % 1) + ramp[0, 0, 0, int(c) + 1] * (c % 1)) for c in centres]
    )
    torch.testing.assert_close(resize_with_pad(ramp, 4)[0, 0, 0], expected)
    spike = torch.zeros(1, 3, 12, 12)
    spike[..., 0, 0] = 1.0  # no output pixel's centre is next to it: antialiasing would still see it
    assert resize_with_pad(spike, 4).max() == 0


def test_a_picture_of_the_right_size_is_left_as_it_is():
    picture = torch.rand(1, 3, 56, 56)
    assert resize_with_pad(picture, 56) is picture


@pytest.mark.parametrize(("height", "width"), [(48, 80), (91, 37)])
def test_pictures_that_are_not_square_are_padded_with_minus_one_after_scaling(height, width):
    model = random_model("pi0")
    pictures, shown, tokens, mask, state, noise = inputs(model, height=height, width=width)
    side = model.sizes.image
    by_hand = []
    for picture in pictures:
        ratio = max(height / side, width / side)
        rows, columns = int(height / ratio), int(width / ratio)
        canvas = torch.full((3, 3, side, side), -1.0)
        top, left = (side - rows) // 2, (side - columns) // 2
        resized = torch.nn.functional.interpolate(picture, (rows, columns), mode="bilinear")
        canvas[..., top : top + rows, left : left + columns] = 2 * resized - 1
        by_hand.append(canvas)
    with torch.inference_mode():
        ours = model.sample(pictures, shown, tokens, mask, state, noise=noise)
        theirs = reference(model).sample(by_hand, shown, tokens, mask, state, noise=noise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# Names, shapes, precision


def official_table(variant: str) -> dict[str, tuple[int, ...]]:
    """Every tensor that lerobot saves at full size, without its leading `model.`."""
    paligemma, expert = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
    tower = f"{paligemma}model.vision_tower.vision_model."
    table = {
        f"{paligemma}lm_head.weight": (257152, 2048),
        f"{paligemma}model.language_model.embed_tokens.weight": (257152, 2048),
        f"{paligemma}model.language_model.norm.weight": (2048,),
        f"{paligemma}model.multi_modal_projector.linear.weight": (2048, 1152),
        f"{paligemma}model.multi_modal_projector.linear.bias": (2048,),
        f"{tower}embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        f"{tower}embeddings.patch_embedding.bias": (1152,),
        f"{tower}embeddings.position_embedding.weight": (256, 1152),
        f"{tower}post_layernorm.weight": (1152,),
        f"{tower}post_layernorm.bias": (1152,),
        f"{expert}lm_head.weight": (257152, 1024),
        "action_in_proj.weight": (1024, 32),
        "action_in_proj.bias": (1024,),
        "action_out_proj.weight": (32, 1024),
        "action_out_proj.bias": (32,),
    }
    for layer in range(27):
        name = f"{tower}encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            table |= {f"{name}{norm}.weight": (1152,), f"{name}{norm}.bias": (1152,)}
        for part in ("q", "k", "v", "out"):
            table |= {f"{name}self_attn.{part}_proj.weight": (1152, 1152), f"{name}self_attn.{part}_proj.bias": (1152,)}
        table |= {f"{name}mlp.fc1.weight": (4304, 1152), f"{name}mlp.fc1.bias": (4304,)}
        table |= {f"{name}mlp.fc2.weight": (1152, 4304), f"{name}mlp.fc2.bias": (1152,)}
    for layer in range(18):
        for owner, width, mlp in ((f"{paligemma}model.language_model", 2048, 16384), (f"{expert}model", 1024, 4096)):
            name = f"{owner}.layers.{layer}."
            table |= {
                f"{name}self_attn.q_proj.weight": (2048, width),
                f"{name}self_attn.k_proj.weight": (256, width),
                f"{name}self_attn.v_proj.weight": (256, width),
                f"{name}self_attn.o_proj.weight": (width, 2048),
                f"{name}mlp.gate_proj.weight": (mlp, width),
                f"{name}mlp.up_proj.weight": (mlp, width),
                f"{name}mlp.down_proj.weight": (width, mlp),
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                table |= norm_shapes(f"{name}{norm}", width, variant == "pi05" and width == 1024)
    table |= norm_shapes(f"{expert}model.norm", 1024, variant == "pi05")
    linears = {"time_mlp_in": 1024, "time_mlp_out": 1024}
    if variant == "pi0":
        linears = {"state_proj": 32, "action_time_mlp_in": 2048, "action_time_mlp_out": 1024}
    for name, width in linears.items():
        table |= {f"{name}.weight": (1024, width), f"{name}.bias": (1024,)}
    return table


def norm_shapes(name: str, width: int, adaptive: bool) -> dict[str, tuple[int, ...]]:
    if adaptive:
        return {f"{name}.dense.weight": (3 * width, width), f"{name}.dense.bias": (3 * width,)}
    return {f"{name}.weight": (width,)}


@pytest.mark.parametrize(
    ("variant", "tensors", "parameters"), [("pi0", 778, 4_028_019_472), ("pi05", 813, 4_143_404_816)]
)
def test_full_size_has_every_official_name_and_shape(variant, tensors, parameters):
    table = official_table(variant)
    assert len(table) == tensors
    assert sum(math.prod(shape) for shape in table.values()) == parameters
    with torch.device("meta"):
        model = Pi0Model(Sizes(variant=variant))
    ours = {official_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: shape for name, shape in table.items() if name not in UNUSED}


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_size_is_recognised_from_the_tensors_alone(variant):
    on_disk = {f"model.{name}": torch.empty(shape, device="meta") for name, shape in official_table(variant).items()}
    assert sizes_of(our_tensors(on_disk), horizon=50) == Sizes(variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_go_there_and_back(variant):
    model = random_model(variant)
    for name in model.state_dict():
        assert our_name(official_name(name)) == our_name(f"model.{official_name(name)}") == name


def test_names_of_early_2025_are_understood():
    old = "model.paligemma_with_expert.paligemma."
    assert our_name(f"{old}language_model.model.layers.3.mlp.up_proj.weight") == "vlm.3.mlp.up_proj.weight"
    assert our_name(f"{old}vision_tower.vision_model.post_layernorm.bias") == "vision.post_layernorm.bias"
    assert our_name(f"{old}multi_modal_projector.linear.bias") == "projector.bias"


@pytest.mark.parametrize("variant", VARIANTS)
def test_tied_embeddings_saved_once_are_found_under_either_name(variant):
    stored = load_file(DATA / f"{variant}_lerobot_case" / "model.safetensors")
    prefix = "model.paligemma_with_expert.paligemma."
    embedding = stored.pop(f"{prefix}model.language_model.embed_tokens.weight")
    stored[f"{prefix}lm_head.weight"] = embedding.clone()
    assert torch.equal(our_tensors(stored)["embedding.weight"], embedding)


def test_untied_files_use_the_embedding_and_not_the_head():
    stored = load_file(DATA / "pi0_lerobot_case" / "model.safetensors")
    prefix = "model.paligemma_with_expert.paligemma."
    stored[f"{prefix}lm_head.weight"] += 1.0
    embedding = stored[f"{prefix}model.language_model.embed_tokens.weight"]
    assert torch.equal(our_tensors(stored)["embedding.weight"], embedding)


def test_vision_heads_that_shapes_cannot_tell_can_be_given():
    tensors = random_model("pi0", vision_heads=8).state_dict()
    assert sizes_of(tensors, 5).vision_heads == 4
    assert sizes_of(tensors, 5, vision_heads=8).vision_heads == 8


def test_heads_and_their_width_are_read_from_queries_and_keys():
    sizes = sizes_of(random_model("pi05", heads=4, head_dim=24).state_dict(), 5)
    assert (sizes.variant, sizes.heads, sizes.head_dim, sizes.depth) == ("pi05", 4, 24, 3)


def test_weights_of_another_model_are_refused():
    with pytest.raises(UsageError, match=r"no weights of π0.*position_embedding"):
        sizes_of({"lm_head.weight": torch.zeros(2, 2)}, 50)


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_keeps_vision_norms_and_projections_in_float32_and_stays_near(variant):
    model = random_model(variant)
    arguments = inputs(model)
    with torch.inference_mode():
        full = model.sample(*arguments[:5], noise=arguments[5])
        half = loaded(model.sizes, model.state_dict(), "here", torch.bfloat16)
        near = half.sample(*arguments[:5], noise=arguments[5])
    official = {official_name(name): tensor.dtype for name, tensor in half.state_dict().items()}
    exceptions = ("vision_tower", "multi_modal_projector", "input_layernorm", "post_attention_layernorm", "model.norm")
    for name, dtype in official.items():
        in_float32 = any(part in name for part in exceptions) or not name.startswith("paligemma_with_expert")
        assert dtype == (torch.float32 if in_float32 else torch.bfloat16), name
    assert near.dtype == torch.float32
    assert 0 < (near - full).abs().max() < 0.1
