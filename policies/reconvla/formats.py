"""Where a ReconVLA comes from: its released directory, one of ours, or no file at all.

The released directory is LLaVA's: config.json with Qwen2's keys and LLaVA's own, sharded safetensors, and Qwen2's
tokenizer files. It holds the frozen autoencoder and the reconstruction head too, which acting does not need. What it
does not say is fixed: SigLIP has 16 heads and its last hidden state but one is read, the chunk is five steps of CALVIN.
Its contents were not seen by us: names and shapes are those of the released code (047ccd9), and sizes are taken from
the shapes, so that anything else is refused with its name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.types import ActionSpec, Suite
from vla_bench.untrusted import reading

from ..torch.checkpoints import is_ours, read_json, read_ours, read_tensors, sha256_of
from ..torch.conventions import CALVIN_ACTION, CALVIN_STATE
from ..torch.folders import insist_on_checkpoint
from ..torch.normalisation import Affine
from ..torch.plain_llm import rope_theta
from ..torch.plausible import insist_on_sizes
from ..torch.reads import noting_reads
from ..torch.recipes import CROP
from ..torch.tokens import EOS, TINY_VOCABULARY, JsonTokenizer, tiny_tokenizer
from .language import LanguageSizes
from .model import HeadSizes, LatentSizes, ReconModel, ReconSizes, VisionSizes
from .pictures import Stack
from .prompt import Wording, qwen_tokenizer

NAME = "reconvla"
Choice = Literal["auto", "yes", "no"]
MODEL_TYPE = "recon_qwen2"
CHUNK = 5
BINS = 256
STACKED_SIDE = 334
CALVIN_MEAN = (
    *(0.039233, -0.118554, 0.507826, 1.079174, -0.083069, 1.579753, 0.054622, -0.736859),
    *(1.017769, 1.792879, -2.099604, -0.993738, 1.790842, 0.586534, 0.095367),
)
CALVIN_STD = (
    *(0.150769, 0.1104, 0.06253, 2.883517, 0.126405, 0.377196, 0.030152, 0.334392),
    *(0.172714, 0.240513, 0.3842, 0.198596, 0.158712, 0.346865, 0.995442),
)
"""Of CALVIN's robot_obs in the training data."""
_STD_EPS, _DEVIATIONS = 1e-5, 3.0
"""A state three standard deviations from the mean becomes 1."""
_END = "<|im_end|>"
_SELECTED = -2
_TOWER = "model.vision_tower.vision_tower.vision_model."
_NET = "model.mm_inv_projector.net."
_AUTOENCODER = "model.pixel_decoder.pixel_decoder."
_HEAD_PARTS = ("model.mm_inv_projector.", "model.pixel_decoder.")
_NEVER_READ = (f"{_TOWER}head.", f"{_TOWER}embeddings.position_ids")
"""SigLIP's pooling head, and a buffer that old versions of transformers saved."""

TINY = ReconSizes(
    VisionSizes(side=144, patch=24, width=128, depth=2, heads=4, mlp=256, select=-1, stem="residual"),
    LanguageSizes(TINY_VOCABULARY + 256, 128, depth=3, heads=4, kv_heads=2, mlp=256),
    HeadSizes(depth=2, width=64, heads=4, latents=LatentSizes(autoencoder=(), patch=4)),
)


@dataclass(frozen=True)
class Facts:
    """How a model's tokens and pictures relate to a suite; part of the checkpoint."""

    stack: Stack
    wording: Wording
    bins_end: int
    """One more than the id of the action token of -1."""
    end_id: int
    """Ends an answer."""
    chunk: int
    action: ActionSpec
    state: tuple[str, ...]
    crop: float = 1.0
    """Share of the views' sides that is read: the middle."""
    tower_frozen: bool = False
    """The vision tower does not learn, as in the released training."""


@dataclass(frozen=True)
class Loaded:
    """A policy but for its settings; `tensors` is None for weights that are to be drawn."""

    sizes: ReconSizes
    facts: Facts
    tokenizer: JsonTokenizer
    state_map: Affine
    action_map: Affine
    tensors: Mapping[str, Tensor] | None = None
    sha256: str = ""


def untrained(suite: Suite, head: bool) -> Loaded:
    """A tiny model for that suite."""
    vision = TINY.vision
    facts = Facts(
        Stack(vision.side, vision.side, vision.grid, "rows"),
        Wording(system="", roles=False),
        bins_end=TINY_VOCABULARY + 256,
        end_id=EOS,
        chunk=CHUNK,
        action=suite.action,
        state=suite.state,
        crop=CROP,
    )
    sizes = TINY if head else replace(TINY, head=None)
    identities = Affine.identity(len(suite.state)), Affine.identity(suite.action.dim)
    return Loaded(sizes, facts, tiny_tokenizer(), *identities)


def read(path: str, head: bool) -> Loaded:
    """The checkpoint in that directory, with its reconstruction head or without. Raises UsageError."""
    insist_on_checkpoint(path)
    folder = Path(path)
    with reading(folder, "a checkpoint of ReconVLA"):
        loaded = _read_own(folder, head) if is_ours(folder) else _read_released(folder, head)
        for said in (loaded.sizes, loaded.facts):
            insist_on_sizes(said, loaded.tensors or {}, folder)
        for one in (loaded.facts.bins_end - 1, loaded.facts.bins_end - BINS, loaded.facts.end_id):
            if not 0 <= one < loaded.sizes.language.vocabulary:
                raise ValueError(f"it uses the id {one} of {loaded.sizes.language.vocabulary}")
        stack, vision = loaded.facts.stack, loaded.sizes.vision
        if (stack.model_side, stack.grid) != (vision.side, vision.grid):
            raise UsageError(
                f"{folder} stacks pictures of {stack.model_side} pixels and {stack.grid} patches per side for a vision "
                f"tower of {vision.side} and {vision.grid}."
            )
        return loaded


# Ours


def saved(sizes: ReconSizes, facts: Facts) -> dict[str, Any]:
    """What our config.json says."""
    return {"sizes": asdict(sizes), "facts": asdict(facts)}


def _read_own(folder: Path, head: bool) -> Loaded:
    stored = read_ours(folder, NAME)
    sizes, facts = _sizes(stored.config["sizes"]), _facts(stored.config["facts"])
    maps = (
        stored.normalisation["state"].within(len(facts.state), "state"),
        stored.normalisation["action"].within(facts.action.dim, "action"),
    )
    if stored.tokenizer is None:
        raise UsageError(f"{folder} has no tokenizer.json, which ReconVLA needs to read instructions.")
    if not head:
        sizes = replace(sizes, head=None)
    elif sizes.head is None:
        raise UsageError(f"{folder} was saved without a reconstruction head; leave head=keep out.")
    tensors = _without_head(stored.tensors) if not head else stored.tensors
    return Loaded(sizes, facts, stored.tokenizer, *maps, tensors, stored.sha256)


def _sizes(given: Mapping[str, Any]) -> ReconSizes:
    head = given["head"]
    if head is not None:
        latents = {**head["latents"], "autoencoder": tuple(head["latents"]["autoencoder"])}
        head = HeadSizes(**{**head, "latents": LatentSizes(**latents)})
    return ReconSizes(VisionSizes(**given["vision"]), LanguageSizes(**given["language"]), head)


def _facts(given: Mapping[str, Any]) -> Facts:
    return Facts(
        **{
            **given,
            "stack": Stack(**given["stack"]),
            "wording": Wording(**given["wording"]),
            "action": ActionSpec(**given["action"]),
            "state": tuple(given["state"]),
        }
    )


# The released form


@noting_reads()
def _read_released(folder: Path, head: bool) -> Loaded:
    config = read_json(folder / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise UsageError(
            f"{folder} holds a model of type {config.get('model_type')!r}; ReconVLA reads its released directory "
            f"(model_type {MODEL_TYPE!r}) and directories that vla-bench wrote."
        )
    tensors = {name: tensor for name, tensor in read_tensors(folder).items() if not name.startswith(_NEVER_READ)}
    try:
        vision, language = _vision(config, tensors), _language(config)
        parts = _head(tensors) if head else None
    except KeyError as error:
        raise UsageError(f"{folder} is no whole ReconVLA: it has no {error.args[0]}.") from None
    tokenizer = qwen_tokenizer(folder)
    facts = Facts(
        Stack(STACKED_SIDE, vision.side, vision.grid, "halves"),
        Wording(),
        bins_end=tokenizer.base_size,
        end_id=_end_id(tokenizer, folder),
        chunk=CHUNK,
        action=CALVIN_ACTION,
        state=CALVIN_STATE,
        tower_frozen=True,
    )
    return Loaded(
        ReconSizes(vision, language, parts),
        facts,
        tokenizer,
        calvin_state(),
        Affine.identity(CALVIN_ACTION.dim),
        tensors if head else _without_head(tensors),
        sha256_of(folder),
    )


def calvin_state() -> Affine:
    """CALVIN's robot_obs as the released model reads it."""
    plain = Affine.from_mean_std(CALVIN_MEAN, CALVIN_STD, _STD_EPS)
    return Affine(plain.scale / _DEVIATIONS, plain.offset / _DEVIATIONS)


def _language(config: Mapping[str, Any]) -> LanguageSizes:
    return LanguageSizes(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        mlp=config["intermediate_size"],
        theta=rope_theta(config),
        eps=config["rms_norm_eps"],
    )


def _vision(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VisionSizes:
    if (layer := config.get("mm_vision_select_layer", _SELECTED)) != _SELECTED:
        raise UsageError(f"mm_vision_select_layer is {layer}; ReconVLA reads SigLIP's last layer but one, {_SELECTED}.")
    width, _, patch, _ = tensors[f"{_TOWER}embeddings.patch_embedding.weight"].shape
    tower = str(config["mm_vision_tower"])
    named = re.search(r"patch\d+-(\d+)", tower)
    if named is None:
        raise UsageError(f"mm_vision_tower is {tower!r}; expected a SigLIP with its picture size, as in patch14-384.")
    layers = _count(tensors, f"{_TOWER}encoder.layers.{{}}.layer_norm1.weight")
    mlp = len(tensors[f"{_TOWER}encoder.layers.0.mlp.fc1.weight"])
    return VisionSizes(int(named.group(1)), patch, width, layers, VisionSizes.heads, mlp)


def _head(tensors: Mapping[str, Tensor]) -> HeadSizes:
    levels = _count(tensors, f"{_AUTOENCODER}encoder.down_blocks.{{}}.resnets.0.conv1.weight")
    first = f"{_AUTOENCODER}encoder.down_blocks"
    latents = LatentSizes(
        tuple(len(tensors[f"{first}.{level}.resnets.0.conv1.weight"]) for level in range(levels)),
        _count(tensors, f"{first}.0.resnets.{{}}.conv1.weight"),
        tensors[f"{_AUTOENCODER}decoder.conv_in.weight"].shape[1],
    )
    depth = _count(tensors, f"{_NET}blocks.{{}}.attn.qkv.weight")
    return HeadSizes(depth, len(tensors[f"{_NET}x_embedder.proj.weight"]), HeadSizes.heads, latents)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the names of that pattern there are, from 0."""
    return next(number for number in itertools.count() if pattern.format(number) not in tensors)


def _without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD_PARTS)}


def _end_id(tokenizer: JsonTokenizer, folder: Path) -> int:
    found = tokenizer.id_of(_END)
    if found is None:
        raise UsageError(f"The tokenizer of {folder} has no {_END}, with which ReconVLA ends its answers.")
    return found


# Weights


def drawn(sizes: ReconSizes, seed: int) -> ReconModel:
    """Random weights: the same for a seed with a reconstruction head and without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ReconModel(sizes)


# Wishes


def overridden(
    facts: Facts, stacking: Literal["auto", "rows", "halves"], jpeg: Choice, twice: Choice, stray_ids: Choice
) -> Facts:
    """The facts with what was asked for otherwise."""
    stack = facts.stack if stacking == "auto" else replace(facts.stack, stacking=stacking)
    wording = facts.wording
    return replace(
        facts,
        stack=replace(stack, jpeg=_chosen(jpeg, stack.jpeg)),
        wording=replace(wording, twice=_chosen(twice, wording.twice), stray_ids=_chosen(stray_ids, wording.stray_ids)),
    )


def _chosen(choice: Choice, otherwise: bool) -> bool:
    return otherwise if choice == "auto" else choice == "yes"
