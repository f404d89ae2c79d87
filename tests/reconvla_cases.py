"""Small models, data and a directory in the released layout for the tests of ReconVLA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from vla_bench.policies.reconvla.language import LanguageSizes
from vla_bench.policies.reconvla.model import HeadSizes, LatentSizes, ReconModel, ReconSizes, VisionSizes
from vla_bench.policies.torch.conventions import CALVIN_ACTION, CALVIN_STATE, LIBERO_ACTION, LIBERO_STATE
from vla_bench.policies.torch.training import Batch

from vla_bench.types import Camera, Observation, Suite

FIRST = 0x250
"""Code point of the first action token of the small tokenizer: 256 characters of two bytes each follow."""
VOCABULARY = 512
SMALL = ReconSizes(
    VisionSizes(side=32, patch=8, width=32, depth=3, heads=16, mlp=48),
    LanguageSizes(VOCABULARY + 8, 64, depth=3, heads=4, kv_heads=2, mlp=96),
    HeadSizes(depth=2, width=64, heads=16, latents=LatentSizes((32, 64), layers=1, channels=4)),
)
"""As the released model, with heads, selected layer and autoencoder, but small."""


def toy_suite(calvin: bool = False, name: str = "toy") -> Suite:
    """No tasks, two cameras."""
    if calvin:
        cameras, action, state = (
            (Camera("rgb_static", 200, 200), Camera("rgb_gripper", 84, 84)),
            CALVIN_ACTION,
            CALVIN_STATE,
        )
    else:
        cameras, action, state = (Camera("agentview", 64, 64), Camera("hand", 48, 48)), LIBERO_ACTION, LIBERO_STATE
    return Suite(name, "1", (), action, cameras, state, 20.0, lambda task, wanted: None, dict)


def seen(suite: Suite, seed: int, instruction: str = "lift the red block") -> Observation:
    generator = np.random.default_rng(seed)
    images = {
        camera.name: generator.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        for camera in suite.cameras
    }
    state = generator.normal(size=len(suite.state)).astype(np.float32)
    return Observation(images, state, instruction, slot=seed, seed=seed)


def demonstrations(suite: Suite, count: int, chunk: int, seed: int = 0) -> Batch:
    """Random pictures, sentences, states, actions and gazes."""
    generator = np.random.default_rng(seed)
    things = [seen(suite, int(generator.integers(1 << 30)), f"move number {index % 5}") for index in range(count)]
    corner = generator.uniform(0, 0.6, (count, 2))
    actions = generator.uniform(-1, 1, (count, chunk, suite.action.dim))
    actions[..., -1] = np.sign(actions[..., -1])
    return Batch(
        images={
            camera.name: torch.from_numpy(np.stack([thing.images[camera.name] for thing in things]))[:, None]
            for camera in suite.cameras
        },
        state=torch.from_numpy(np.stack([thing.state for thing in things]))[:, None],
        instructions=[thing.instruction for thing in things],
        actions=torch.from_numpy(actions).float(),
        valid=torch.ones(count, chunk, dtype=torch.bool),
        gaze=torch.from_numpy(np.concatenate([corner, corner + 0.3], 1)).float(),
    )


def random_model(sizes: ReconSizes = SMALL, seed: int = 0) -> ReconModel:
    """All weights random, those that are born zero too."""
    torch.manual_seed(seed)
    model = ReconModel(sizes).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "pos_embed" not in name and "pixel_decoder" not in name:
                weight.copy_(torch.randn_like(weight) * 0.15 + (1.0 if "norm" in name and "weight" in name else 0.0))
    return model


def write_tokenizer(folder: Path) -> None:
    """Qwen2's vocab.json and merges.txt with 256 bytes, then 256 characters of two bytes."""
    byte = _bytes_as_text()
    pairs = [tuple(byte[value] for value in chr(FIRST + number).encode()) for number in range(256)]
    vocabulary = {byte[value]: value for value in range(256)}
    vocabulary |= {left + right: 256 + number for number, (left, right) in enumerate(pairs)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in pairs))


def _bytes_as_text() -> list[str]:
    """How byte-level tokenizers write byte b: printable ones as themselves, the others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    text = [chr(value) if value in plain else chr(next(rest)) for value in range(256)]
    assert set(text) == set(pre_tokenizers.ByteLevel.alphabet())
    return text


def write_released(folder: Path, model: ReconModel, **config: object) -> Path:
    """A directory as it is released, in two shards."""
    folder.mkdir()
    write_tokenizer(folder)
    language, tensors = model.sizes.language, {name: value.clone() for name, value in model.state_dict().items()}
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    placed = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    known = {
        "model_type": "recon_qwen2",
        "mm_vision_tower": f"local/siglip-small-patch{model.sizes.vision.patch}-{model.sizes.vision.side}",
        "vocab_size": language.vocabulary,
        "hidden_size": language.width,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "intermediate_size": language.mlp,
        "rope_theta": language.theta,
        "rms_norm_eps": language.eps,
    }
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    return folder
