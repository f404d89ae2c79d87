"""ReconVLA's network against independent ones: transformers' own, and a DiT and a diffusion written from the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="ReconVLA's vision tower is transformers'")

from reconvla_cases import SMALL, random_model
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel
from vla_bench.policies.reconvla.denoiser import REPEATS, STEPS, DenoiserSizes, Diffusion, ReconDenoiser, positions
from vla_bench.policies.reconvla.model import Prompt, ReconModel, ReconSizes

PROMPTS = (Prompt([5, 6, 7], [8, 9]), Prompt([11], [12, 13, 14, 15]), Prompt([21, 22, 23, 24], [25]))
COUNT = 35


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


# The path from picture to tokens


def their_tower(model):
    sizes = SMALL.vision
    config = SiglipVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        image_size=sizes.side,
        patch_size=sizes.patch,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config).eval()
    tower.load_state_dict(model.model.vision_tower.vision_tower.vision_model.state_dict())
    return tower


def their_language_model(model):
    sizes = SMALL.language
    config = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        rms_norm_eps=sizes.eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )
    language = Qwen2ForCausalLM(config).eval()
    known = language.state_dict()
    language.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in known})
    return language


def their_embeddings(model, language, picture, prompt):
    hidden = their_tower(model)(picture[None], output_hidden_states=True).hidden_states[-2]
    first, second = model.model.mm_projector[0], model.model.mm_projector[2]
    inner = F.gelu(hidden @ first.weight.T + first.bias)
    patches = (inner @ second.weight.T + second.bias)[0]
    words = language.model.embed_tokens
    return torch.cat([words(torch.tensor(prompt.before)), patches, words(torch.tensor(prompt.after))])[None]


@torch.no_grad()
@pytest.mark.parametrize("index", range(3))
def test_logits_equal_those_of_transformers_siglip_and_qwen2(model, pictures, index):
    language = their_language_model(model)
    embeds = their_embeddings(model, language, pictures[index], PROMPTS[index])
    start = model.prefill(model.look(pictures[index : index + 1]), [PROMPTS[index]], COUNT)
    torch.testing.assert_close(start.logits, language(inputs_embeds=embeds).logits[:, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("index", range(3))
def test_greedy_tokens_equal_those_of_transformers_generate(model, pictures, index):
    language = their_language_model(model)
    embeds = their_embeddings(model, language, pictures[index], PROMPTS[index])
    theirs = language.generate(inputs_embeds=embeds, max_new_tokens=COUNT, do_sample=False)
    ours = model.decode(model.prefill(model.look(pictures[index : index + 1]), [PROMPTS[index]], COUNT)).ids
    assert len(set(ours[0].tolist())) > 5, "a model that repeats itself would prove little"
    assert torch.equal(ours, theirs[:, -COUNT:])


@torch.no_grad()
def test_attention_equals_what_transformers_eager_attention_says(model, pictures):
    language, prompt = their_language_model(model), PROMPTS[0]
    patches = model.look(pictures[:1])
    decoded = model.decode(model.prefill(patches, [prompt], COUNT), attention=True)
    embeds = their_embeddings(model, language, pictures[0], prompt)
    whole = torch.cat([embeds, language.model.embed_tokens(decoded.ids)], 1)
    weights = torch.stack(language(inputs_embeds=whole, output_attentions=True).attentions)  # layers, B, heads, L, L
    mean = weights[:, 0, :, -COUNT:].mean((0, 1, 2))[len(prompt.before) :][:16]
    torch.testing.assert_close(decoded.attention[0].flatten(), mean / mean.sum(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decoding_with_kept_keys_equals_reading_everything_again(model, pictures):
    patches, prompt = model.look(pictures[:1]), PROMPTS[1]
    start = model.prefill(patches, [prompt], COUNT)
    ids = []
    for _ in range(COUNT):
        ids.append(int(model.prefill(patches, [Prompt(prompt.before, [*prompt.after, *ids])], 1).logits.argmax()))
    assert model.decode(start).ids[0].tolist() == ids


@torch.no_grad()
def test_prompts_of_several_lengths_are_answered_together_as_alone(model, pictures):
    patches = model.look(pictures)
    together = model.prefill(patches, PROMPTS, COUNT)
    alone = [model.prefill(patches[i : i + 1], [PROMPTS[i]], COUNT) for i in range(3)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=1e-5)
    answers = model.decode(together, attention=True)
    for i, one in enumerate(alone):
        single = model.decode(one, attention=True)
        assert torch.equal(answers.ids[i], single.ids[0])
        torch.testing.assert_close(answers.attention[i], single.attention[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pinned_memory_forgets_the_prompt_before_it_and_follows_the_weights(pictures):
    model, fresh = random_model(), random_model()
    model.model.pinned = True
    for scale in (1.0, 0.5):
        for part in (model, fresh):
            part.model.layers[0].self_attn.q_proj.weight.mul_(scale)
        for picture, prompt in zip(pictures, PROMPTS, strict=True):
            pinned = model.decode(model.prefill(model.look(picture[None]), [prompt], COUNT))
            plain = fresh.decode(fresh.prefill(fresh.look(picture[None]), [prompt], COUNT))
            assert torch.equal(pinned.ids, plain.ids)
    assert len(model.model._memories) == 1


# Losses


def test_action_loss_is_the_mean_cross_entropy_of_the_answers(model, pictures):
    answers = torch.randint(0, 500, (3, 36), generator=torch.Generator().manual_seed(2))
    loss = model.losses(pictures, PROMPTS, answers, None, torch.Generator()).action
    language, terms = their_language_model(model), []
    for picture, prompt, answer in zip(pictures, PROMPTS, answers, strict=True):
        embeds = their_embeddings(model, language, picture, prompt)
        whole = torch.cat([embeds, language.model.embed_tokens(answer)[None]], 1)
        chances = language(inputs_embeds=whole).logits[0].log_softmax(-1)
        length = embeds.shape[1]
        terms += [-chances[length - 1 + place, token] for place, token in enumerate(answer)]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


def test_reconstruction_reads_the_last_states_at_the_patches(model, pictures):
    answers = torch.randint(0, 500, (3, 36), generator=torch.Generator().manual_seed(2))
    ours = model.losses(pictures, PROMPTS, answers, pictures.flip(0), torch.Generator().manual_seed(3)).reconstruction
    language, states = their_language_model(model), []
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        embeds = their_embeddings(model, language, picture, prompt)
        last = language.model(inputs_embeds=embeds).last_hidden_state[0]
        states.append(last[len(prompt.before) : len(prompt.before) + 16])
    draw = torch.Generator().manual_seed(3)
    head, latents = model.model.mm_inv_projector, model.latents(pictures.flip(0), draw)
    expected = head.loss(latents, torch.stack(states), draw)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_losses_reach_every_weight_but_the_frozen_and_unused_ones(pictures):
    model = random_model()
    answers = torch.randint(0, 500, (3, 36))
    parts = model.losses(pictures, PROMPTS, answers, pictures, torch.Generator())
    (parts.action + parts.reconstruction).backward()
    untouched = {name for name, weight in model.named_parameters() if weight.grad is None}
    unused = {name for name in untouched if "encoder.layers.2." in name or "post_layernorm" in name}
    assert all("pixel_decoder" in name or name.endswith("pos_embed") for name in untouched - unused)
    assert len(unused) == 18  # SigLIP's last layer and the norm after it


def test_autoencoder_latents_are_those_of_diffusers_scaled_and_folded(model, pictures):
    big = F.interpolate(pictures, (16, 16), mode="bilinear", antialias=True)
    known = model.model.pixel_decoder.pixel_decoder.encode(big).latent_dist
    latents = model.latents(pictures, torch.Generator().manual_seed(1))
    drawn = known.mean + known.std * torch.randn(known.mean.shape, generator=torch.Generator().manual_seed(1))
    assert latents.shape == (3, 16, 4, 4)
    folded = latents.unflatten(1, (4, 2, 2))  # channel, row, column within a patch
    torch.testing.assert_close(folded[:, 1, 1, 0, 2, 3], (drawn[:, 1, 5, 6] - 0.1159) * 0.3611)


def test_autoencoder_latents_have_the_mean_and_deviation_that_the_encoder_answers(model, pictures):
    big = F.interpolate(pictures[:1], (16, 16), mode="bilinear", antialias=True)
    known = model.model.pixel_decoder.pixel_decoder.encode(big).latent_dist
    draw = torch.Generator().manual_seed(0)
    many = torch.stack([F.pixel_shuffle(model.latents(pictures[:1], draw), 2) for _ in range(400)]) / 0.3611 + 0.1159
    error = (many.mean(0) - known.mean) / known.std * 20  # of the mean of 400, in its own deviations
    assert error.abs().max() < 5
    torch.testing.assert_close(many.std(0) / known.std, torch.ones_like(known.std), atol=0.2, rtol=0)
    again = model.latents(pictures[:1], torch.Generator().manual_seed(0))
    assert torch.equal(again, model.latents(pictures[:1], torch.Generator().manual_seed(0)))
    assert not torch.equal(again, model.latents(pictures[:1], torch.Generator().manual_seed(1)))


def test_pixel_latents_turn_back_into_the_picture():
    from vla_bench.policies.reconvla.formats import TINY

    tiny = ReconModel(TINY)
    pictures = torch.rand(2, 3, 24, 24)
    draw = torch.Generator().manual_seed(0)
    before = draw.get_state()
    assert tiny.latents(pictures, draw).shape == (2, 48, 6, 6)
    torch.testing.assert_close(tiny.picture(tiny.latents(pictures, draw)), pictures)
    assert torch.equal(draw.get_state(), before), "what learnt before draws as it did"


# The denoiser


def dit(weights, noisy, time, states, heads):
    """DiT with adaLN-Zero from the paper, token by token condition, in plain products."""

    def affine(name, x):
        return x @ weights[f"net.{name}.weight"].flatten(1).T + weights[f"net.{name}.bias"]

    def layer_norm(x, eps):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()

    def silu(x):
        return x / (1 + (-x).exp())

    batch, channels, grid, _ = noisy.shape
    frequency = torch.tensor([10000 ** (-k / 128) for k in range(128)])
    angle = time[:, None] * frequency
    step = affine("t_embedder.mlp.2", silu(affine("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))
    condition = step[:, None] + affine("z_embedder.1", silu(layer_norm(states, 1e-5)))
    x = affine("x_embedder.proj", noisy.permute(0, 2, 3, 1).reshape(batch, grid * grid, channels))
    x = x + weights["net.pos_embed"]
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("net.blocks."))
    for number in range(depth):
        block = f"blocks.{number}"
        parts = affine(f"{block}.adaLN_modulation.1", silu(condition)).chunk(6, -1)
        inner = layer_norm(x, 1e-6) * (1 + parts[1]) + parts[0]
        query, key, value = affine(f"{block}.attn.qkv", inner).chunk(3, -1)
        outs = []
        for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
            outs.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
        x = x + parts[2] * affine(f"{block}.attn.proj", torch.cat(outs, -1))
        inner = affine(f"{block}.mlp.fc1", layer_norm(x, 1e-6) * (1 + parts[4]) + parts[3])
        gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + parts[5] * affine(f"{block}.mlp.fc2", gelu)
    shift, scale = affine("final_layer.adaLN_modulation.1", silu(condition)).chunk(2, -1)
    out = affine("final_layer.linear", layer_norm(x, 1e-6) * (1 + scale) + shift)
    return out.reshape(batch, grid, grid, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def test_denoiser_equals_a_dit_written_from_the_paper(model):
    head = model.model.mm_inv_projector
    noisy, states, time = torch.randn(4, 16, 4, 4), torch.randn(4, 16, 64), torch.tensor([0, 7, 500, 999])
    expected = dit(head.state_dict(), noisy, time, states, heads=16)
    torch.testing.assert_close(head(noisy, time, states), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_untrained_denoiser_answers_zero():
    head = ReconDenoiser(DenoiserSizes(2, 32, 4, 12, 20, 3))
    assert not head(torch.randn(2, 12, 3, 3), torch.tensor([1, 2]), torch.randn(2, 9, 20)).any()


def test_positions_are_waves_of_column_then_row():
    codes = positions(8, 3)  # 2 frequencies, 1 and 1/100; sines before cosines
    expected = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02), math.sin(1), math.sin(0.01)]
    np.testing.assert_allclose(codes[5, :6], expected, atol=1e-6)  # token 5: row 1, column 2


def test_schedule_is_the_cosine_one_of_improved_ddpm():
    schedule = Diffusion.on(torch.device("cpu"))
    left = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(STEPS + 1)]
    signal = 1.0
    for t in range(STEPS):
        beta = min(1 - left[t + 1] / left[t], 0.999)
        signal *= 1 - beta
        assert float(schedule.beta[t]) == pytest.approx(beta, abs=1e-12)
        assert float(schedule.signal[t]) == pytest.approx(signal, rel=1e-9)
        assert float(schedule.sigma[t]) == pytest.approx(math.sqrt(beta), rel=1e-9)
    assert float(schedule.signal[-2]) == pytest.approx(left[-2] / left[0], rel=1e-9)


@pytest.mark.parametrize("step", [1, 2, 400, 998, 999])
def test_an_ancestral_step_is_that_of_diffusers(step):
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_ddpm", reason="a second opinion")
    theirs = schedulers.DDPMScheduler(
        STEPS, beta_schedule="squaredcos_cap_v2", variance_type="fixed_large", clip_sample=False
    )
    noisy, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    out = theirs.step(noise, step, noisy, generator=torch.Generator().manual_seed(5)).prev_sample
    fresh = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(5))
    schedule = Diffusion.on(torch.device("cpu"))
    ours = schedule.previous_mean(noisy, noise, step) + schedule.sigma[step].float() * fresh
    torch.testing.assert_close(ours, out, atol=2e-5, rtol=2e-4)  # theirs keeps 1 - alpha in float32


class Knowing(ReconDenoiser):
    """Knows the one picture there is, so that it tells the noise in anything exactly."""

    def forward(self, noisy, time, states):
        signal = Diffusion.on(noisy.device).signal[time].view(-1, 1, 1, 1)
        return ((noisy.double() - signal.sqrt() * self.truth) / (1 - signal).sqrt()).to(noisy)


def test_sampling_with_a_denoiser_that_knows_the_answer_gives_the_answer():
    head = Knowing(DenoiserSizes(1, 16, 4, 3, 8, 2))
    head.truth = torch.randn(1, 3, 2, 2)
    out = head.sample(torch.zeros(5, 4, 8), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, head.truth.expand(5, -1, -1, -1), atol=1e-3, rtol=1e-3)


def test_reconstruction_loss_is_the_noise_error_at_uniform_steps(model):
    head = model.model.mm_inv_projector
    latents, states = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 64)
    ours = head.loss(latents, states, torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(9)
    time = torch.randint(1000, (8,), generator=generator)
    noise = torch.randn(8, 16, 4, 4, generator=generator)
    terms = []
    for row in range(2 * REPEATS):
        left = math.cos(((time[row] + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
        signal = left / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        clean = latents[row % 2]
        noisy = math.sqrt(signal) * clean + math.sqrt(1 - signal) * noise[row]
        told = dit(dict(head.state_dict()), noisy[None], time[row : row + 1], states[row % 2][None], 16)
        terms.append((told[0] - noise[row]).square().mean())
    torch.testing.assert_close(ours, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


# Full size


def released_table():
    """Name to shape of the released checkpoint's weights (facts, section 2.6), autoencoder left out."""
    table = {
        "model.embed_tokens.weight": (152064, 3584),
        "lm_head.weight": (152064, 3584),
        "model.norm.weight": (3584,),
    }
    for layer in (f"model.layers.{number}" for number in range(28)):
        for part, rows in (("q", 3584), ("k", 512), ("v", 512)):
            table[f"{layer}.self_attn.{part}_proj.weight"] = (rows, 3584)
            table[f"{layer}.self_attn.{part}_proj.bias"] = (rows,)
        table[f"{layer}.self_attn.o_proj.weight"] = (3584, 3584)
        table[f"{layer}.mlp.gate_proj.weight"] = table[f"{layer}.mlp.up_proj.weight"] = (18944, 3584)
        table[f"{layer}.mlp.down_proj.weight"] = (3584, 18944)
        table[f"{layer}.input_layernorm.weight"] = table[f"{layer}.post_attention_layernorm.weight"] = (3584,)
    tower = "model.vision_tower.vision_tower.vision_model"
    pairs = {
        f"{tower}.embeddings.patch_embedding": (1152, 3, 14, 14),
        f"{tower}.post_layernorm": (1152,),
        "model.mm_projector.0": (3584, 1152),
        "model.mm_projector.2": (3584, 3584),
    }
    for layer in (f"{tower}.encoder.layers.{number}" for number in range(27)):
        pairs |= {f"{layer}.self_attn.{part}": (1152, 1152) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        pairs |= {f"{layer}.layer_norm1": (1152,), f"{layer}.layer_norm2": (1152,)}
        pairs |= {f"{layer}.mlp.fc1": (4304, 1152), f"{layer}.mlp.fc2": (1152, 4304)}
    net = "model.mm_inv_projector.net"
    pairs |= {
        f"{net}.x_embedder.proj": (1024, 64, 1, 1),
        f"{net}.t_embedder.mlp.0": (1024, 256),
        f"{net}.t_embedder.mlp.2": (1024, 1024),
        f"{net}.z_embedder.1": (1024, 3584),
        f"{net}.final_layer.adaLN_modulation.1": (2048, 1024),
        f"{net}.final_layer.linear": (64, 1024),
    }
    for block in (f"{net}.blocks.{number}" for number in range(3)):
        pairs |= {f"{block}.attn.qkv": (3072, 1024), f"{block}.attn.proj": (1024, 1024)}
        pairs |= {f"{block}.mlp.fc1": (4096, 1024), f"{block}.mlp.fc2": (1024, 4096)}
        pairs[f"{block}.adaLN_modulation.1"] = (6144, 1024)
    for name, shape in pairs.items():
        table[f"{name}.weight"], table[f"{name}.bias"] = shape, shape[:1]
    table[f"{tower}.embeddings.position_embedding.weight"] = (729, 1152)
    table[f"{net}.pos_embed"] = (1, 729, 1024)
    return table


def on_meta(sizes):
    with torch.device("meta"):
        return ReconModel(sizes).to(torch.bfloat16)


def test_every_name_and_shape_at_full_size_is_the_released_one():
    model = on_meta(ReconSizes())
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    autoencoder = {name: shape for name, shape in shapes.items() if name.startswith("model.pixel_decoder.")}
    assert {name: shape for name, shape in shapes.items() if name not in autoencoder} == released_table()
    assert sum(math.prod(shape) for shape in autoencoder.values()) == 83_819_683  # FLUX.1's
    assert autoencoder["model.pixel_decoder.pixel_decoder.encoder.conv_out.weight"] == (32, 512, 3, 3)


def test_full_size_has_as_many_parameters_as_its_parts():
    model = on_meta(ReconSizes())
    count = sum(weight.numel() for name, weight in model.named_parameters() if name.startswith(("model.layers", "lm_")))
    count += model.model.embed_tokens.weight.numel() + 3584
    assert count == 7_615_616_512  # Qwen2-7B's
