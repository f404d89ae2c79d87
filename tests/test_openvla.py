"""OpenVLA and OFT: parts against timm, transformers, TensorFlow or a formula, files against the published tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from vla_bench.policies.openvla import (  # noqa: E402
    formats,
    images,
    vision,
)
from vla_bench.policies.openvla import model as net  # noqa: E402
from vla_bench.policies.openvla.policy import OpenVLA  # noqa: E402
from vla_bench.policies.torch.checkpoints import load_into  # noqa: E402
from vla_bench.policies.torch.conventions import CALVIN_ACTION, CALVIN_STATE, LIBERO_ACTION, LIBERO_STATE  # noqa: E402
from vla_bench.policies.torch.tokens import ActionBins, tiny_tokenizer  # noqa: E402
from vla_bench.policies.torch.training import Batch  # noqa: E402

from vla_bench.errors import UsageError  # noqa: E402
from vla_bench.inference import check_compatible  # noqa: E402
from vla_bench.types import Camera, Observation, Suite, Task  # noqa: E402

DATA = Path(__file__).parent / "data" / "openvla"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What the tests stand on


def suite(name="libero_spatial", action=LIBERO_ACTION, state=LIBERO_STATE, cameras=2) -> Suite:
    views = (Camera("front", 64, 64), Camera("wrist", 64, 64))[:cameras]
    task = Task("stack", ("stack the bowls",), 10, 1)
    return Suite(name, "1", (task,), action, views, state, 20.0, lambda task, cameras: None, dict)


def observation(seed=0, instruction="Pick up the Bowl", state=LIBERO_STATE) -> Observation:
    rng = np.random.default_rng(seed)
    pictures = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("front", "wrist")}
    return Observation(pictures, rng.normal(size=len(state)).astype(np.float32) / 4, instruction)


SMALL = net.Sizes(
    (
        vision.TowerSizes("dinov2", 32, 3, 16, 64, 42, registers=4),
        vision.TowerSizes("siglip", 48, 3, 16, 96, 42),
    ),
    net.LlmSizes(600, 48, 3, 6, 6, 80),
)
SMALL_OFT = net.Sizes(SMALL.towers, SMALL.llm, "l1", chunk=3, state_dim=8, views=2)


def model_of(sizes=SMALL, seed=0):
    """Weights so large that every part of the sequence matters to the answer."""
    torch.manual_seed(seed)
    model = net.OpenVLAModel(sizes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def pictures_of(model, batch=2, seed=0):
    shape = batch, model.sizes.views, 42, 42, 3
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


PROMPTS = [[1, 44, 310, 7, 9, 250], [1, 30, 31, 7, 8, 9]]
UNEVEN = [PROMPTS[0], [*PROMPTS[1], 77, 78, 79]]


def llama_of(model, attention="eager") -> LlamaForCausalLM:
    """transformers' own model with the same weights."""
    sizes = model.sizes.llm
    config = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        intermediate_size=sizes.intermediate_size,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        attn_implementation=attention,
    )
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(model.language_model.state_dict())
    return llama


def joined(model, llama, prompt, seen):
    """The documented rule, one row: BOS, what is seen, the rest of the prompt."""
    words = llama.get_input_embeddings()(torch.tensor([prompt]))
    return torch.cat([words[:, :1], seen[None], words[:, 1:]], dim=1)


# Eyes


def towers():
    """(timm's name, its state dict in the files' names, pixels, features of the second-to-last block)."""
    stored = load_file(DATA / "towers.safetensors")
    for name in ("vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"):
        mine = {key.partition("/")[2]: tensor for key, tensor in stored.items() if key.startswith(name)}
        features = mine.pop("features")
        yield name, mine, stored["pixels"], features


@pytest.mark.parametrize("which", [0, 1], ids=["dinov2", "siglip"])
def test_a_tower_gives_timms_second_to_last_features(which):
    name, tensors, pixels, expected = list(towers())[which]
    sizes = vision.sizes_of(tensors, name)
    tower = vision.tower(sizes).eval()
    load_into(tower, vision.from_timm(tensors, sizes.kind), name)
    with torch.no_grad():
        features = tower(pixels).last_hidden_state[:, -sizes.patches :]
    torch.testing.assert_close(features, expected, **CLOSE)


def test_two_towers_are_timms_towers_joined_by_channel_and_each_normalised_in_its_way():
    """Each tower alone equals timm's, by the test above."""
    names, stored, _, _ = zip(*towers(), strict=True)
    sizes = tuple(map(vision.sizes_of, stored, names))
    pictures = pictures_of(model_of())[:, 0]
    unit = pictures.permute(0, 3, 1, 2) / 255.0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (unit - mean[:, None, None]) / std[:, None, None], unit * 2 - 1
    expected, tensors = [], {}
    for place, name, mine, size, pixels in zip(
        ("featurizer", "fused_featurizer"), names, stored, sizes, inputs, strict=True
    ):
        alone = vision.tower(size).eval()
        load_into(alone, vision.from_timm(mine, size.kind), name)
        with torch.no_grad():
            expected.append(alone(pixels).last_hidden_state[:, -size.patches :])
        tensors |= {f"vision_backbone.{place}.{key}": tensor for key, tensor in mine.items()}
    model = model_of(net.Sizes(sizes, SMALL.llm))
    others = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision_backbone")}
    load_into(model, others | formats.renamed(tensors, names), "timm")
    with torch.no_grad():
        torch.testing.assert_close(model.vision_backbone(pictures), torch.cat(expected, dim=-1), **CLOSE)


def test_the_projector_has_three_layers_behind_two_towers_and_two_behind_one():
    torch.manual_seed(0)
    features = torch.randn(2, 9, 20)
    for fused in (True, False):
        projector = net.Projector(20, 12, fused)
        layers = [projector.fc1, projector.fc2, *([projector.fc3] if fused else [])]
        expected = features
        for layer in layers[:-1]:
            before = expected @ layer.weight.T + layer.bias
            expected = before * 0.5 * (1 + torch.erf(before / 2**0.5))
        expected = expected @ layers[-1].weight.T + layers[-1].bias
        torch.testing.assert_close(projector(features), expected, **CLOSE)
        assert projector.fc1.out_features == (80 if fused else 12)


# Language


def test_states_equal_transformers_llama_on_the_joined_sequence():
    model = model_of()
    llama = llama_of(model)
    with torch.no_grad():
        seen = model.look(pictures_of(model))
        logits = model.language_model.lm_head(model.read(model.sequences(seen, PROMPTS)))
        for row, prompt in enumerate(PROMPTS):
            expected = llama(inputs_embeds=joined(model, llama, prompt, seen[row])).logits[0]
            torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-4)  # logits are of the order of 30


@pytest.mark.parametrize("prompts", [PROMPTS, UNEVEN], ids=["even", "uneven"])
def test_greedy_decoding_with_memory_equals_a_full_pass_for_every_token(prompts):
    model = model_of()
    llama = llama_of(model)
    with torch.no_grad():
        seen = model.look(pictures_of(model))
        first, memory = model.prefill(model.sequences(seen, prompts), 7)
        ids = model.decode(first, memory, 7)
        for row, prompt in enumerate(prompts):
            grown = list(prompt)
            for _ in range(7):
                logits = llama(inputs_embeds=joined(model, llama, grown, seen[row])).logits
                grown.append(int(logits[0, -1].argmax()))
            assert ids[row].tolist() == grown[len(prompt) :]
    assert len(set(ids.flatten().tolist())) > 3, "the answers should depend on the sequence"


GROUPED = replace(SMALL, llm=replace(SMALL.llm, num_key_value_heads=2, rope_theta=500.0))


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("sizes", [SMALL, GROUPED], ids=["as many keys", "grouped"])
def test_a_left_padded_batch_is_decoded_as_by_transformers_generate(sizes, use_cache):
    model = model_of(sizes)
    llama = llama_of(model)
    with torch.no_grad():
        sequences = model.sequences(model.look(pictures_of(model)), UNEVEN)
        first, memory = model.prefill(sequences, 7)
        ids = model.decode(first, memory, 7)
        read = model.language_model.lm_head(model.read(sequences))
        whole = llama(
            inputs_embeds=sequences.embeddings,
            attention_mask=sequences.valid.long(),
            position_ids=(sequences.valid.cumsum(1) - 1).clamp(min=0),
            use_cache=use_cache,
        )
        torch.testing.assert_close(read[sequences.valid], whole.logits[sequences.valid], **CLOSE)
        made = llama.generate(
            inputs_embeds=sequences.embeddings,
            attention_mask=sequences.valid.long(),
            use_cache=use_cache,
            max_new_tokens=7,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert ids.tolist() == made.tolist()


def test_states_are_those_of_transformers_with_the_same_kernels_to_the_bit():
    model = model_of()
    llama = llama_of(model, "sdpa")
    with torch.no_grad():
        sequences = model.sequences(model.look(pictures_of(model)), PROMPTS)
        assert torch.equal(model.read(sequences), llama.model(inputs_embeds=sequences.embeddings).last_hidden_state)


def test_a_memory_used_before_gives_the_same_answer_again():
    model = model_of()
    with torch.no_grad():
        seen = model.look(pictures_of(model))
        answers = []
        for prompts in (PROMPTS, UNEVEN, PROMPTS):
            first, memory = model.prefill(model.sequences(seen, prompts), 7)
            answers.append(model.decode(first, memory, 7).clone())
    assert torch.equal(answers[0], answers[2])


def test_padding_in_front_changes_no_state():
    model = model_of()
    with torch.no_grad():
        seen = model.look(pictures_of(model))
        for causal in (True, False):
            together = model.read(model.sequences(seen, UNEVEN), causal)
            for row, prompt in enumerate(UNEVEN):
                alone = model.read(model.sequences(seen[row : row + 1], [prompt]), causal)[0]
                torch.testing.assert_close(together[row, -len(alone) :], alone, **CLOSE)
    assert torch.isfinite(together).all()


def test_the_loss_is_transformers_mean_cross_entropy_over_seven_actions_and_the_end():
    model = model_of()
    llama = llama_of(model)
    targets = torch.tensor([[500, 501, 502, 503, 504, 505, 506, 2], [599, 400, 401, 402, 403, 404, 405, 2]])
    rows = [[*prompt, *ids] for prompt, ids in zip(UNEVEN, targets.tolist(), strict=True)]
    with torch.no_grad():
        seen = model.look(pictures_of(model))
        losses = model.token_losses(model.sequences(seen, rows), targets)
        for row, ids in enumerate(rows):
            embeds = joined(model, llama, ids, seen[row])
            labels = torch.full((1, embeds.shape[1]), -100)
            labels[0, -8:] = targets[row]
            expected = llama(inputs_embeds=embeds, labels=labels).loss
            torch.testing.assert_close(losses[row].mean(), expected, **CLOSE)


def test_parallel_decoding_reads_one_place_before_each_zeroed_token_with_attention_both_ways():
    model = model_of(SMALL_OFT)
    llama = llama_of(model)
    state = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        seen = model.look(pictures_of(model), state)
        assert seen.shape[1] == 2 * 9 + 1
        token = model.proprio_projector(state)
        torch.testing.assert_close(seen[:, -1], token)
        actions = model.regress(model.sequences(seen, UNEVEN, model.placeholders(2, end=2)))
        for row, prompt in enumerate(UNEVEN):
            end = llama.get_input_embeddings()(torch.tensor([[2]]))
            embeds = torch.cat([joined(model, llama, prompt, seen[row]), torch.zeros(1, 21, 48), end], dim=1)
            length = embeds.shape[1]
            states = llama.model(inputs_embeds=embeds, attention_mask=torch.zeros(1, 1, length, length))[0]
            start = seen.shape[1] + len(prompt) - 1  # of the last prompt token: BOS 0, pictures and state, the prompt
            expected = _head(model.action_head, states[0, start : start + 21].reshape(3, 7 * 48))
            torch.testing.assert_close(actions[row], expected, atol=1e-5, rtol=1e-4)


def _head(head, x):
    """OFT's MLP-ResNet, by its definition."""
    parts = head.model
    x = (_norm(x, parts.layer_norm1) @ parts.fc1.weight.T + parts.fc1.bias).clamp(min=0)
    for block in parts.mlp_resnet_blocks:
        norm, linear = block.ffn[0], block.ffn[1]
        x = x + (_norm(x, norm) @ linear.weight.T + linear.bias).clamp(min=0)
    return _norm(x, parts.layer_norm2) @ parts.fc2.weight.T + parts.fc2.bias


def _norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


# Words and numbers


class Letters:
    """A tokenizer of one id per character."""

    vocab_size = 40000

    def encode(self, text):
        return [ord(letter) for letter in text]

    def id_of(self, token):
        return None


def facts(**changes):
    given = {
        "prompt": "v1",
        "bos": 1,
        "eos": 2,
        "space": 29871,
        "action_end": 32000,
        "pictures": images.PictureChain(42),
        "gripper": "open_is_one",
        "action": LIBERO_ACTION,
    }
    return formats.Facts(**{**given, **changes})


def test_the_prompt_is_lower_case_between_bos_and_the_empty_piece():
    text = "In: What action should the robot take to pick up the bowl?\nOut:"
    assert formats.prompt_ids("Pick up the Bowl", Letters(), facts()) == [1, *map(ord, text), 29871]


def test_the_older_prompt_is_a_conversation():
    text = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: What action should the robot take to open it? "
        "ASSISTANT:"
    )
    assert formats.prompt_ids("Open it", Letters(), facts(prompt="v0.1")) == [1, *map(ord, text), 29871]


def test_the_empty_piece_is_not_doubled():
    assert formats.prompt_ids("x", Letters(), facts(space=ord(":")))[-2:] == [ord("t"), ord(":")]


def test_all_256_action_ids_follow_the_closed_formulas():
    bins = ActionBins(32000)
    for number in range(1, 257):
        low = -1 + (number - 1) * 2 / 255
        assert bins.encode(min(low + 1e-9, 1.0)) == 32000 - number
        centre = -1 + (2 * min(number, 255) - 1) / 255
        assert bins.decode(32000 - number) == pytest.approx(centre, abs=1e-12)
    assert bins.decode(5) == bins.decode(31744), "what is no action clips to an edge"


STATISTICS = {
    "action": {
        "q01": [-0.9, -0.8, -0.7, -0.1, -0.2, -0.3, 0.0],
        "q99": [0.9, 0.7, 0.9, 0.1, 0.2, 0.4, 1.0],
        "mask": [True] * 6 + [False],
    },
    "proprio": {"q01": [-0.5] * 8, "q99": [0.5 + 0.1 * i for i in range(8)]},
}


def test_actions_are_unnormalised_by_quantiles_and_the_gripper_by_its_sign():
    action = formats.normalisation(STATISTICS, "action", "x")
    low, high = (np.array(STATISTICS["action"][key])[:6] for key in ("q01", "q99"))
    normalised = np.random.default_rng(0).uniform(-1, 1, (5, 3, 7)).astype(np.float32)
    normalised[..., 6] = np.linspace(-0.9, 1.2, 15).reshape(5, 3)
    got = formats.to_suite(normalised, action, facts())
    np.testing.assert_allclose(got[..., :6], 0.5 * (normalised[..., :6] + 1) * (high - low) + low, atol=1e-6)
    assert np.array_equal(got[..., 6], np.where(normalised[..., 6] > 0.5, -1.0, 1.0)), "+1 closes in LIBERO"
    calvin = formats.to_suite(normalised, action, facts(action=CALVIN_ACTION))
    assert np.array_equal(calvin[..., 6], -got[..., 6]), "-1 closes in CALVIN"


@pytest.mark.parametrize("spec", [LIBERO_ACTION, CALVIN_ACTION], ids=["libero", "calvin"])
def test_what_is_learnt_comes_back(spec):
    action = formats.normalisation(STATISTICS, "action", "x")
    actions = np.array([[0.3, -0.2, 0.6, 0.05, 0.1, -0.25, 1.0], [0.0, 0.1, 0.2, 0.0, 0.0, 0.0, -1.0]], np.float32)
    there = formats.to_model(actions, action, facts(action=spec))
    assert np.abs(there).max() <= 1
    assert set(there[:, 6]) == {0.0, 1.0}
    np.testing.assert_allclose(formats.to_suite(there, action, facts(action=spec)), actions, atol=1e-6)


def test_learnt_actions_beyond_the_quantiles_are_clipped():
    action = formats.normalisation(STATISTICS, "action", "x")
    assert formats.to_model(np.array([[5.0, -5.0, 0, 0, 0, 0, 1.0]], np.float32), action, facts())[0, :2].tolist() == [
        1.0,
        -1.0,
    ]


def test_what_never_changes_is_learnt_as_zero_and_answered_as_it_was(copied):
    same = {"min": [-1, -1, 0.25, -1, -1, -1, 1], "max": [1, 1, 0.25, 1, 1, 1, 1]}
    low, high = ([*STATISTICS["action"][key]] for key in ("q01", "q99"))
    low[2] = high[2] = 0.25
    action = {**STATISTICS["action"], **same, "q01": low, "q99": high}
    write(copied / "dataset_statistics.json", {"libero_10": {**STATISTICS, "action": action}})
    loaded = formats.read(copied, formats.Wishes("libero_10"))
    learnt = formats.to_model(np.array([[0, 0, 0.25, 0, 0, 0, -1]], np.float32), loaded.action, loaded.facts)
    assert learnt[0, 2] == 0, "the only value there is"
    assert learnt[0, 6] == 1, "the gripper is masked out"
    np.testing.assert_allclose(formats.to_suite(learnt, loaded.action, loaded.facts)[0, 2], 0.25, atol=1e-6)
    assert formats.Facts.from_json(loaded.facts.as_json()) == loaded.facts
    older = {name: value for name, value in loaded.facts.as_json().items() if name != "constant"}
    assert not any(formats.Facts.from_json(older).constant)
    write(copied / "dataset_statistics.json", {"libero_10": {**STATISTICS, "action": {**action, "max": [1, 1]}}})
    with pytest.raises(UsageError, match="7 minima and 2 maxima"):
        formats.read(copied, formats.Wishes("libero_10"))


# Pictures


@pytest.fixture(scope="module")
def tensorflow_made():
    with np.load(DATA / "pictures.npz") as stored:
        return dict(stored)


def differing(a, b) -> tuple[int, float]:
    """Largest difference of two uint8 pictures, and the share of the numbers that differ."""
    apart = np.abs(a.astype(int) - b.astype(int))
    return int(apart.max()), float((apart > 0).mean())


@pytest.mark.parametrize("name", ["wide", "square", "odd"])
def test_the_jpeg_round_trip_is_tensorflows_to_the_bit(name, tensorflow_made):
    assert np.array_equal(images.through_jpeg(tensorflow_made[name]), tensorflow_made[f"{name}_jpeg"])


def test_jpeg_with_pillows_decoder_would_be_another_picture(tensorflow_made):
    buffer = io.BytesIO()
    Pillow.fromarray(tensorflow_made["wide"]).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    worst, _ = differing(np.asarray(Pillow.open(buffer)), tensorflow_made["wide_jpeg"])
    assert worst > 3, "the reason for a round trip of our own"


@pytest.mark.parametrize("side", [28, 70], ids=["smaller", "larger"])
def test_lanczos_is_tensorflows(side, tensorflow_made):
    worst, share = differing(images.lanczos3(tensorflow_made["wide"], side), tensorflow_made[f"wide_{side}"])
    assert worst <= 1, "only halves may round to the other side"
    assert share < 1e-3


def test_the_centre_crop_is_tensorflows(tensorflow_made):
    worst, share = differing(images.centre_crop(tensorflow_made["square"], 0.9), tensorflow_made["square_crop"])
    assert worst <= 1
    assert share < 1e-3


def test_resizing_and_cropping_keep_a_plain_picture():
    plain = np.full((50, 40, 3), (10, 128, 255), np.uint8)
    for result in (images.lanczos3(plain, 28), images.bicubic(plain, 28), images.centre_crop(plain, 0.9)):
        assert (result == (10, 128, 255)).all()


def test_the_crop_takes_the_middle_sqrt_of_its_area():
    ramp = np.repeat(np.repeat(np.arange(0, 201, dtype=np.uint8)[None, :, None], 3, axis=2), 201, axis=0)
    cropped = images.centre_crop(ramp, 0.9)[0, :, 0]
    side = np.sqrt(0.9)
    expected = (1 - side) / 2 * 200 + np.arange(201) * side
    cut_off = np.floor(expected * 255.5 / 255)  # TensorFlow's conversion to uint8
    assert np.abs(cropped - cut_off).max() <= 1
    assert (cropped != cut_off).sum() <= 2, "only whole numbers may be cut to either side"


def test_the_chain_goes_jpeg_lanczos_crop_and_mirrors_first():
    picture = observation().images["front"]
    chain = images.PictureChain(42, mirror=True, jpeg=True, crop=True)
    expected = images.centre_crop(images.lanczos3(images.through_jpeg(picture[:, ::-1]), 42), 0.9)
    assert np.array_equal(chain(picture), expected)
    assert not np.array_equal(images.PictureChain(42, jpeg=True, crop=True)(picture), expected)


# Files


def official_table(width, depth, mlp, patches, prefix, registers):  # noqa: PLR0917
    """policies.md 4.5: timm's names and shapes of one tower."""
    table = {
        "pos_embed": (1, patches, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        table |= {"cls_token": (1, 1, width), "reg_token": (1, registers, width)}
    else:
        shapes = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
        shapes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
        table |= {"attn_pool.latent": (1, 1, width)}
        table |= {f"attn_pool.norm.{kind}": (width,) for kind in ("weight", "bias")}
        table |= _linears("attn_pool", shapes)
    for block in range(depth):
        name = f"blocks.{block}"
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
        table |= _linears(name, shapes)
        table |= {f"{name}.norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
        if registers:
            table |= {f"{name}.ls{n}.scale_factor": (width,) for n in (1, 2)}
    return {f"vision_backbone.{prefix}.{name}": shape for name, shape in table.items()}


def _linears(name, shapes):
    weights = {f"{name}.{part}.weight": shape for part, shape in shapes.items()}
    return weights | {f"{name}.{part}.bias": shape[:1] for part, shape in shapes.items()}


def official_llama(vocabulary, hidden, layers, mlp):
    table = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        name = f"model.layers.{layer}"
        table |= {f"{name}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        table |= {f"{name}.mlp.{part}_proj.weight": (mlp, hidden) for part in ("gate", "up")}
        table |= {f"{name}.mlp.down_proj.weight": (hidden, mlp)}
        table |= {f"{name}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    return {f"language_model.{name}": shape for name, shape in table.items()}


def official_projector(width, hidden):
    shapes = {"fc1": (4 * width, width), "fc2": (hidden, 4 * width), "fc3": (hidden, hidden)}
    return _linears("projector", shapes)


def official_oft(hidden, actions, state):
    """The tables of OFT's two files."""
    head = {"layer_norm1": (hidden * actions,), "layer_norm2": (hidden,)}
    head |= {f"mlp_resnet_blocks.{block}.ffn.0": (hidden,) for block in range(2)}
    table = {f"action_head.model.{name}.{kind}": shape for name, shape in head.items() for kind in ("weight", "bias")}
    shapes = {"fc1": (hidden, hidden * actions), "fc2": (actions, hidden)}
    shapes |= {f"mlp_resnet_blocks.{block}.ffn.1": (hidden, hidden) for block in range(2)}
    table |= _linears("action_head.model", shapes)
    return table | _linears("proprio_projector", {"fc1": (hidden, state), "fc2": (hidden, hidden)})


FULL = (
    official_table(1024, 24, 4096, 256, "featurizer", 4)
    | official_table(1152, 27, 4304, 256, "fused_featurizer", 0)
    | official_projector(2176, 4096)
    | official_llama(32064, 4096, 32, 11008)
)


def on_meta(sizes):
    with torch.device("meta"):
        return net.in_dtype(net.OpenVLAModel(sizes), torch.bfloat16)


TIMM_IDS = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"


@pytest.mark.parametrize("sizes", [net.OPENVLA_7B, net.OFT_LIBERO], ids=["openvla-7b", "oft"])
def test_at_full_size_every_official_tensor_has_its_place_and_shape(sizes):
    table = FULL | (official_oft(4096, 7, 8) if sizes.head == "l1" else {})
    given = {name: torch.empty(shape, device="meta") for name, shape in table.items()}
    named = {name: tuple(tensor.shape) for name, tensor in formats.renamed(given, TIMM_IDS).items()}
    model = on_meta(sizes)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == named
    for prefix, official in zip(("featurizer.", "fused_featurizer."), sizes.towers, strict=True):
        under = {n.partition(prefix)[2]: t for n, t in given.items() if n.startswith(f"vision_backbone.{prefix}")}
        assert vision.sizes_of(under, TIMM_IDS[prefix.startswith("fused")]) == official


def test_the_official_table_has_as_many_numbers_as_the_published_checkpoint():
    assert (
        sum(int(np.prod(shape)) for shape in FULL.values()) == 7_541_237_184
    )  # openvla/openvla-7b, 15.1 GB in bfloat16


def test_a_model_made_for_loading_has_float32_rotations_and_nothing_but_parameters_left_out():
    model = on_meta(SMALL)
    model.leave_meta()
    buffers = dict(model.named_buffers())
    assert not any(buffer.is_meta for buffer in buffers.values())
    assert buffers["frequencies"].dtype == torch.float32
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


HIDDEN = 32
SHRUNK = (
    official_table(32, 3, 64, 9, "featurizer", 4)
    | official_table(32, 3, 64, 9, "fused_featurizer", 0)
    | official_projector(64, HIDDEN)
    | official_llama(32064, HIDDEN, 2, 48)
)
CONFIG = {
    "model_type": "openvla",
    "architectures": ["OpenVLAForActionPrediction"],
    "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
    "n_action_bins": 256,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "llama2-7b-pure",
    "timm_model_ids": list(TIMM_IDS),
    "image_resize_strategy": "resize-naive",
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
    "norm_stats": {"bridge_orig": STATISTICS, "libero_goal": STATISTICS},
}


def random_tensors(table, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in table.items()}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A shrunken directory as on Hugging Face: config, two shards and their index, tokenizer, statistics."""
    folder = tmp_path_factory.mktemp("openvla-7b-finetuned-libero-spatial")
    tensors = random_tensors(SHRUNK)
    half = sorted(tensors)[: len(tensors) // 2]
    shards = {"model-00001-of-00002.safetensors": half, "model-00002-of-00002.safetensors": set(tensors) - set(half)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, names in shards.items() for name in names}
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": placed})
    write(folder / "config.json", CONFIG)
    write(folder / "dataset_statistics.json", {"libero_spatial_no_noops": STATISTICS, "libero_10": STATISTICS})
    (folder / "tokenizer.json").write_text(tiny_tokenizer().text)
    return folder


@pytest.fixture
def copied(official, tmp_path):
    """The same in a directory of this test's own."""
    for file in official.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def oft(copied):
    """With OFT's two files beside it."""
    tensors = random_tensors(official_oft(HIDDEN, 7, 8), seed=1)
    for part in ("action_head", "proprio_projector"):
        mine = {f"module.{n.partition('.')[2]}": t for n, t in tensors.items() if n.startswith(part)}
        torch.save(mine, copied / f"{part}--150000_checkpoint.pt")
    return copied


def write(path, value):
    path.write_text(json.dumps(value))


def change(folder, **changes):
    write(folder / "config.json", {**json.loads((folder / "config.json").read_text()), **changes})


def test_an_official_directory_answers_as_its_parts_put_together_by_hand(official):
    policy = OpenVLA(suite(), str(official), device="cpu")
    seen = observation()
    (chunk,) = policy.infer([seen])
    assert chunk.actions.shape == (1, 7)
    assert list(chunk.stages) == ["vision", "prefill", "decode", "post"]

    tensors = random_tensors(SHRUNK)
    llama = LlamaForCausalLM(LlamaConfig(**CONFIG["text_config"])).eval()
    prefix = "language_model."
    llama.load_state_dict({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
    chain = images.PictureChain(42, mirror=True, jpeg=True, crop=True)
    picture = torch.from_numpy(chain(seen.images["front"]))[None, None]
    text = "In: What action should the robot take to pick up the bowl?\nOut:"
    ids = [1, *tiny_tokenizer().encode(text), 29871]
    with torch.no_grad():
        features = policy.model.look(picture)[0]
        for _ in range(7):
            ids.append(int(llama(inputs_embeds=joined(None, llama, ids, features)).logits[0, -1].argmax()))
    centres = -1 + (2 * np.clip(32000 - np.array(ids[-7:]) - 1, 0, 254) + 1) / 255
    low, high = (np.array(STATISTICS["action"][key]) for key in ("q01", "q99"))
    expected = 0.5 * (centres + 1) * (high - low) + low
    expected[6] = -np.sign(2 * centres[6] - 1)
    np.testing.assert_allclose(chunk.actions[0], expected, atol=1e-6)
    assert policy.spec.cameras == suite().cameras[:1]
    assert len(policy.spec.checkpoint) == 64
    check_compatible(policy, suite())


def test_an_oft_directory_is_recognised_by_its_head_and_reads_two_pictures_and_the_state(oft):
    policy = OpenVLA(suite(), str(oft), device="cpu")
    assert (policy.spec.chunk, policy.spec.cameras, policy.spec.state) == (8, suite().cameras, LIBERO_STATE)
    seen = observation()
    (chunk,) = policy.infer([seen])
    assert chunk.actions.shape == (8, 7)
    assert set(np.abs(chunk.actions[:, 6])) == {1.0}
    moved = Observation(seen.images, seen.state + 0.2, seen.instruction)
    assert not np.allclose(policy.infer([moved])[0].actions, chunk.actions)
    check_compatible(policy, suite())


def test_an_oft_directory_answers_as_its_parts_put_together_by_hand(oft):
    policy = OpenVLA(suite(), str(oft), device="cpu")
    near = observation()
    seen = Observation(near.images, 3 * near.state, near.instruction)
    (chunk,) = policy.infer([seen])

    chain = images.PictureChain(42, mirror=True, jpeg=True, crop=True)
    pictures = torch.from_numpy(np.stack([chain(seen.images[name]) for name in ("front", "wrist")]))
    low, high = (np.array(STATISTICS["proprio"][key]) for key in ("q01", "q99"))
    state = np.clip(2 * (seen.state - low) / (high - low + 1e-8) - 1, -1, 1)
    assert 0 < (np.abs(state) == 1).sum() < 8, "some numbers are clipped, and not all"
    text = "In: What action should the robot take to pick up the bowl?\nOut:"
    ids = [1, *tiny_tokenizer().encode(text), 29871]
    model, llama = policy.model, llama_of(policy.model)
    with torch.no_grad():
        patches = model.projector(model.vision_backbone(pictures)).flatten(0, 1)
        token = model.proprio_projector(torch.tensor(state, dtype=torch.float32)[None])
        before = joined(model, llama, ids, torch.cat([patches, token]))
        end = llama.get_input_embeddings()(torch.tensor([[2]]))
        embeds = torch.cat([before, torch.zeros(1, 8 * 7, HIDDEN), end], dim=1)
        both_ways = torch.zeros(1, 1, embeds.shape[1], embeds.shape[1])
        states = llama.model(inputs_embeds=embeds, attention_mask=both_ways)[0][0]
        start = before.shape[1] - 1  # what stands one place before answers
        answered = _head(model.action_head, states[start : start + 56].reshape(8, 7 * HIDDEN)).numpy()
    low, high = (np.array(STATISTICS["action"][key]) for key in ("q01", "q99"))
    expected = 0.5 * (answered + 1) * (high - low + 1e-8) + low
    expected[:, 6] = -np.sign(2 * answered[:, 6] - 1)
    np.testing.assert_allclose(chunk.actions, expected, atol=2e-5)
    assert chunk.actions[:, :6].std() > 0.1, "the answers should depend on the sequence"


def test_the_state_is_clipped_at_its_quantiles(oft):
    policy = OpenVLA(suite(), str(oft), device="cpu")
    seen = observation()
    far, farther = (Observation(seen.images, np.full(8, value, np.float32), "go") for value in (3.0, 9.0))
    assert np.array_equal(policy.infer([far])[0].actions, policy.infer([farther])[0].actions)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("libero_spatial", "libero_spatial_no_noops"), ("libero_10", "libero_10")],
    ids=["without no-ops", "as it is"],
)
def test_the_suites_own_statistics_are_found(official, name, expected):
    wishes = formats.Wishes(name)
    key, _ = formats._statistics(official, CONFIG, wishes)
    assert key == expected


def test_libero_long_is_another_name_of_libero_10(copied):
    write(copied / "dataset_statistics.json", {"libero_long_no_noops": STATISTICS})
    assert formats._statistics(copied, CONFIG, formats.Wishes("libero_10"))[0] == "libero_long_no_noops"


def test_without_statistics_of_its_own_a_directory_has_those_of_its_config(copied):
    (copied / "dataset_statistics.json").unlink()
    assert OpenVLA(suite("libero_goal"), str(copied), device="cpu").infer([observation()])[0].actions.shape == (1, 7)


def test_only_libero_checkpoints_are_mirrored_unless_told(official):
    of = {m: OpenVLA(suite(), str(official), mirror=m, device="cpu") for m in ("auto", "yes", "no")}
    assert [policy._facts.pictures.mirror for policy in of.values()] == [True, True, False]


def test_a_checkpoint_on_vicuna_has_the_older_prompt(copied):
    change(copied, llm_backbone_id="vicuna-v15-7b")
    assert OpenVLA(suite(), str(copied), device="cpu")._facts.prompt == "v0.1"


def test_a_checkpoint_with_one_tower_is_read(copied):
    table = {n: s for n, s in SHRUNK.items() if not n.startswith(("vision_backbone", "projector"))}
    table |= official_table(32, 3, 64, 9, "featurizer", 0)
    table |= _linears("projector", {"fc1": (HIDDEN, 32), "fc2": (HIDDEN, HIDDEN)})
    (copied / "model.safetensors.index.json").unlink()
    save_file(random_tensors(table), copied / "model.safetensors")
    change(copied, timm_model_ids=["vit_so400m_patch14_siglip_224"], llm_backbone_id="vicuna-v15-7b")
    assert OpenVLA(suite(), str(copied), device="cpu").infer([observation()])[0].actions.shape == (1, 7)


@pytest.mark.parametrize("kind", ["tokens", "l1"])
def test_a_saved_policy_answers_the_same_bits(kind, official, oft, tmp_path_factory):
    policy = OpenVLA(suite(), str(official if kind == "tokens" else oft), device="cpu")
    folder = tmp_path_factory.mktemp("saved") / "ours"
    policy.save(folder, {"from": "a test"})
    again = OpenVLA(suite(), str(folder), device="cpu")
    assert np.array_equal(policy.infer([observation()])[0].actions, again.infer([observation()])[0].actions)
    assert again.spec.chunk == policy.spec.chunk


# Errors


def fails(folder, *said, on=None, **arguments):
    with pytest.raises(UsageError) as caught:
        OpenVLA(on or suite(), str(folder), device="cpu", **arguments)
    sentence = str(caught.value)
    assert all(text in sentence for text in said), sentence
    assert "\n" not in sentence


def test_nothing_there_says_what_is_read(tmp_path):
    fails(tmp_path / "absent", "There is nothing at")
    fails(tmp_path, "has no config.json")


def test_neither_checkpoint_nor_tiny_says_both():
    with pytest.raises(UsageError, match="size=tiny"):
        OpenVLA(suite())


def test_another_architecture_is_refused(copied):
    change(copied, model_type="llava")
    fails(copied, "'llava'", "openvla reads")


def test_another_language_model_is_refused(copied):
    change(copied, text_config={"model_type": "mistral", "vocab_size": 32064})
    fails(copied, "'mistral'", "plain Llama")


def llm_says(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "text_config": {**config["text_config"], **changes}})


@pytest.mark.parametrize(
    ("said", "theta"),
    [
        ({}, 1e4),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": {"type": "default"}}, 1e4),
    ],
)
def test_the_base_of_positions_is_read_as_transformers_4_and_5_write_it(copied, said, theta):
    llm_says(copied, **said)
    assert OpenVLA(suite(), str(copied), device="cpu")._net.sizes.llm.rope_theta == theta


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "scaled rotary positions"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "scaled rotary positions"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "scaled rotary positions"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_a_language_model_that_computes_otherwise_is_refused(copied, said, sentence):
    llm_says(copied, **said)
    fails(copied, sentence)


def test_an_adapter_beside_the_weights_is_refused(copied):
    (copied / "adapter_model.safetensors").write_bytes(b"")
    fails(copied, "holds an adapter (adapter_model.safetensors)", "merge")


def test_another_tower_is_refused(copied):
    change(copied, timm_model_ids=["vit_large_patch14_clip_336.openai", TIMM_IDS[1]])
    fails(copied, "clip_336", "siglip_224")


def test_a_truncated_shard_is_named(copied):
    shard = copied / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    fails(copied, shard.name, "truncated")


def test_missing_tensors_are_named(copied):
    change(copied, text_config={**CONFIG["text_config"], "num_hidden_layers": 3})
    fails(copied, "language_model.model.layers.2", "missing")


def test_wrong_shapes_are_named(copied):
    change(copied, text_config={**CONFIG["text_config"], "intermediate_size": 52})
    fails(copied, "mlp", "expected (")


def test_an_unknown_unnorm_key_lists_the_known_ones(official):
    fails(official, "'nowhere'", "libero_10, libero_spatial_no_noops", unnorm_key="nowhere")
    fails(official, "'libero_object' or 'libero_object_no_noops'", "libero_10", on=suite("libero_object"))


def test_statistics_of_an_unknown_robot_ask_what_they_mean(copied):
    (copied / "dataset_statistics.json").unlink()
    fails(copied, "'bridge_orig'", "actions=libero|calvin", unnorm_key="bridge_orig")
    told = OpenVLA(suite(), str(copied), device="cpu", unnorm_key="bridge_orig", actions="libero")
    assert told.spec.action == LIBERO_ACTION


def test_a_libero_checkpoint_does_not_run_on_calvin(official):
    calvin = suite("calvin_d", CALVIN_ACTION, CALVIN_STATE)
    policy = OpenVLA(calvin, str(official), unnorm_key="libero_10", device="cpu")
    with pytest.raises(UsageError, match="acts with"):
        check_compatible(policy, calvin)


def test_statistics_of_another_width_are_refused(copied):
    wide = {"action": {"q01": [-1.0] * 14, "q99": [1.0] * 14}}
    write(copied / "dataset_statistics.json", {"libero_spatial": wide})
    fails(copied, "14", "7", "another robot")


def test_damaged_statistics_are_refused(copied):
    write(copied / "dataset_statistics.json", {"libero_spatial": {"action": {"q01": [1.0]}}})
    fails(copied, "q99")


def test_oft_needs_two_cameras(oft):
    fails(oft, "wrist camera", on=suite(cameras=1))


def test_oft_with_film_or_diffusion_is_refused(oft):
    torch.save({}, oft / "vision_backbone--150000_checkpoint.pt")
    fails(oft, "FiLM")
    torch.save({}, oft / "noisy_action_projector--150000_checkpoint.pt")
    fails(oft, "diffusion head")


def test_two_heads_are_one_too_many(oft):
    torch.save({}, oft / "action_head--50000_checkpoint.pt")
    fails(oft, "several files")


def test_a_head_that_is_not_there_is_refused(official):
    fails(official, "head=l1", head="l1")


def test_arguments_that_would_not_be_used_are_refused(official, tmp_path):
    fails(official, "oft_views", "no action head", oft_views=1)
    policy = OpenVLA(suite(), size="tiny", device="cpu")
    policy.save(tmp_path / "ours", {})
    fails(tmp_path / "ours", "mirror, crop", "says it itself", mirror="yes", crop=False)
    with pytest.raises(UsageError, match="unnorm_key cannot be chosen for size=tiny"):
        OpenVLA(suite(), size="tiny", unnorm_key="libero_10")


def test_prismatics_own_runs_are_pointed_to_the_converter(copied):
    (copied / "checkpoints").mkdir()
    (copied / "checkpoints" / "step-000001-epoch-00-loss=1.0.pt").touch()
    fails(copied, "convert_openvla_weights_to_hf.py")


# The policy


@pytest.mark.parametrize("head", ["tokens", "l1"])
def test_a_tiny_policy_fits_any_suite(head):
    calvin = suite("calvin_d", CALVIN_ACTION, CALVIN_STATE)
    policy = OpenVLA(calvin, size="tiny", head=head, device="cpu")
    check_compatible(policy, calvin)
    (chunk,) = policy.infer([observation(state=CALVIN_STATE)])
    assert chunk.actions.shape == (policy.spec.chunk, 7)
    assert 1e6 < sum(parameter.numel() for parameter in policy.model.parameters()) < 3e6
    assert "untrained" in policy.spec.note


def test_the_seed_of_the_weights_decides_them():
    weights = [
        OpenVLA(suite(), size="tiny", weights_seed=seed, device="cpu").model.projector.fc1.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("head", ["tokens", "l1"])
def test_answers_do_not_depend_on_the_batch(head):
    seen = [observation(0), observation(1, "open the drawer of the cabinet on the left"), observation(2, "go")]
    each, together = (
        OpenVLA(suite(), size="tiny", head=head, batching=how, device="cpu") for how in ("each", "together")
    )
    alone = [each.infer([one])[0].actions for one in seen]
    for batched, one in zip(each.infer(seen), alone, strict=True):
        assert np.array_equal(batched.actions, one)
    for batched, one in zip(together.infer(seen), alone, strict=True):
        np.testing.assert_allclose(batched.actions, one, atol=1e-5)
    assert (each.spec.deterministic, together.spec.deterministic) == (True, False)


def batch_of(count, seed=0, chunk=8, valid=None) -> Batch:
    rng = np.random.default_rng(seed)
    words = ("push", "pull", "lift", "turn")
    actions = rng.uniform(-1, 1, (count, chunk, 7)).astype(np.float32)
    return Batch(
        images={
            name: torch.from_numpy(rng.integers(0, 256, (count, 1, 64, 64, 3), dtype=np.uint8))
            for name in ("front", "wrist")
        },
        state=torch.from_numpy(rng.uniform(-1, 1, (count, 1, 8)).astype(np.float32)),
        instructions=[f"{words[i % 4]} thing {i}" for i in range(count)],
        actions=torch.from_numpy(actions),
        valid=torch.ones(count, chunk, dtype=torch.bool) if valid is None else valid,
    )


def test_the_total_is_the_mean_over_seven_actions_and_one_end():
    losses = OpenVLA(suite(), size="tiny", device="cpu").losses(batch_of(3), torch.Generator())
    expected = (7 * losses["action_tokens"] + losses["end_token"]) / 8
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("head", ["tokens", "l1"])
def test_what_is_behind_the_end_of_an_episode_does_not_count(head):
    policy = OpenVLA(suite(), size="tiny", head=head, device="cpu")
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[1:], valid[0, 4:] = False, False
    batch = batch_of(3, valid=valid)
    spoilt = batch_of(3, valid=valid)
    spoilt.actions[1:], spoilt.actions[0, 4:] = 0.5, 0.5
    losses = [policy.losses(which, torch.Generator())["loss"] for which in (batch, spoilt)]
    torch.testing.assert_close(*losses)


def test_the_regression_loss_is_the_mean_absolute_error_of_what_is_answered():
    policy = OpenVLA(suite(), size="tiny", head="l1", device="cpu")
    policy.crop = 1.0  # `losses` takes pictures as they are to be shown
    batch = batch_of(2)
    with torch.no_grad():
        loss = policy.losses(batch, torch.Generator())["loss"]
    answers = [
        policy.infer(
            [
                Observation(
                    {name: pictures[i, 0].numpy() for name, pictures in batch.images.items()},
                    batch.state[i, 0].numpy(),
                    batch.instructions[i],
                )
            ]
        )[0].actions
        for i in range(2)
    ]
    assert float(loss) == pytest.approx(np.abs(np.stack(answers) - batch.actions.numpy()).mean(), abs=1e-5)


def test_a_batch_of_too_short_chunks_is_refused():
    policy = OpenVLA(suite(), size="tiny", head="l1", device="cpu")
    with pytest.raises(UsageError, match="chunks of 8"):
        policy.losses(batch_of(2, chunk=4), torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize(("head", "rate", "steps", "enough"), [("tokens", 2e-3, 80, 0.05), ("l1", 7e-4, 150, 0.05)])
def test_sixteen_demonstrations_are_learnt_by_heart(head, rate, steps, enough):
    policy = OpenVLA(suite(cameras=1), size="tiny", head=head, device="cpu")
    batch = batch_of(16)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.no_grad():
        before = float(policy.losses(batch, torch.Generator())["loss"])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10, (steps - step) / (steps / 2))
        loss = policy.losses(batch, torch.Generator())["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = float(policy.losses(batch, torch.Generator())["loss"])
    assert before > 0.4
    assert after < enough
