"""OpenVLA's eyes: DINOv2 (registers) and SigLIP side by side, from transformers, with the official names mapped.

Facts: openvla/openvla c8f03f4, prismatic/extern/hf/modeling_prismatic.py, which builds timm's towers.

- Features are the output of the second-to-last block (`get_intermediate_layers(n={depth - 2})`, timm's default
  `norm=False`): the last block, the final norm and SigLIP's pooling head are in the files and never used. They are left
  out here, so a tower has `depth - 1` blocks and no norm.
- DINOv2's class and register tokens are cut off the features. Positions belong to the patches alone (timm's
  `no_embed_class`); transformers has one for the class token too, which is zero here.
- timm's GELU is the exact one in both towers; transformers' SigLIP would take the tanh approximation.
- LayerScale's `gamma` is called `scale_factor` in the files, because transformers 4 renamed anything with gamma in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from vla_bench.errors import UsageError

from ..torch.stem import Stem, put_stem

Kind = Literal["dinov2", "siglip"]

PIXELS: Mapping[Kind, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of the pixels in [0, 1] that each tower was trained on (timm's data configs)."""
TIMM: Mapping[str, Kind] = {
    "vit_large_patch14_reg4_dinov2": "dinov2",
    "vit_so400m_patch14_siglip_224": "siglip",
    "vit_so400m_patch14_siglip_384": "siglip",
}
"""The towers of OpenVLA's family, by timm's names without the training tag."""
HEADS = 16  # of every tower in TIMM; the one size that no tensor's shape tells


@dataclass(frozen=True)
class TowerSizes:
    """One vision transformer."""

    kind: Kind
    width: int
    depth: int
    """Blocks of the official tower; the last one is not built."""
    heads: int
    mlp: int
    side: int
    """Pixels."""
    patch: int = 14
    registers: int = 0
    stem: Stem = "patch"
    """What makes tokens of pixels."""

    @property
    def patches(self) -> int:
        return (self.side // self.patch) ** 2


DINOV2_LARGE = TowerSizes("dinov2", 1024, 24, HEADS, 4096, 224, registers=4)
SIGLIP_SO400M = TowerSizes("siglip", 1152, 27, HEADS, 4304, 224)


def tower(sizes: TowerSizes) -> nn.Module:
    """The transformer up to the second-to-last block, with random weights."""
    common: dict[str, Any] = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth - 1,
        "num_attention_heads": sizes.heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": sizes.side,
        "patch_size": sizes.patch,
        "attn_implementation": "sdpa",
    }
    if sizes.kind == "siglip":
        siglip: Any = SiglipVisionModel(
            SiglipVisionConfig(intermediate_size=sizes.mlp, vision_use_head=False, **common)
        )
        siglip.post_layernorm = nn.Identity()
        put_stem(siglip.embeddings, "patch_embedding", sizes.stem, sizes.width, sizes.patch)
        return siglip  # type: ignore[no-any-return]
    ratio = sizes.mlp // sizes.width
    dino: Any = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(mlp_ratio=ratio, num_register_tokens=sizes.registers, **common)
    )
    dino.layernorm = nn.Identity()
    put_stem(dino.embeddings.patch_embeddings, "projection", sizes.stem, sizes.width, sizes.patch)
    return dino  # type: ignore[no-any-return]


class VisionBackbone(nn.Module):
    """One tower, or two whose features are joined channel by channel."""

    def __init__(self, towers: tuple[TowerSizes, ...]) -> None:
        super().__init__()
        self.sizes = towers
        self.featurizer = tower(towers[0])
        if len(towers) == 2:
            self.fused_featurizer = tower(towers[1])

    @property
    def width(self) -> int:
        return sum(sizes.width for sizes in self.sizes)

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N, side, side, 3) -> features (N, patches, width)."""
        return torch.cat([self._look(which, pictures) for which in range(len(self.sizes))], dim=-1)

    def _look(self, which: int, pictures: Tensor) -> Tensor:
        sizes, module = self.sizes[which], self.featurizer if which == 0 else self.fused_featurizer
        pixels = normalised(pictures, sizes.kind).to(next(module.parameters()).dtype)
        features: Tensor = module(pixels).last_hidden_state
        return features[:, features.shape[1] - sizes.patches :]


def normalised(pictures: Tensor, kind: Kind) -> Tensor:
    """uint8 (N, side, side, 3) -> float32 (N, 3, side, side) as that tower wants it."""
    mean, deviation = (torch.tensor(numbers, device=pictures.device).view(3, 1, 1) for numbers in PIXELS[kind])
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / deviation


# From timm's names to transformers'

_NAMES: Mapping[Kind, tuple[tuple[str, str], ...]] = {
    "dinov2": (
        (r"cls_token", "embeddings.cls_token"),
        (r"reg_token", "embeddings.register_tokens"),
        (r"pos_embed", "embeddings.position_embeddings"),
        (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
        (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"encoder.layer.\1.attention.{}_proj.\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.o_proj.\2"),
        (r"blocks\.(\d+)\.ls(\d)\.(?:gamma|scale_factor)", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (r"blocks\.(\d+)\.(norm\d|mlp\.fc\d)\.(\w+)", r"encoder.layer.\1.\2.\3"),
    ),
    "siglip": (
        (r"pos_embed", "embeddings.position_embedding.weight"),
        (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embedding.\1"),
        (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layers.\1.self_attn.out_proj.\2"),
        (r"blocks\.(\d+)\.norm(\d)\.(\w+)", r"encoder.layers.\1.layer_norm\2.\3"),
        (r"blocks\.(\d+)\.(mlp\.fc\d)\.(\w+)", r"encoder.layers.\1.\2.\3"),
    ),
}
"""Patterns of timm's names; {} stands for q, k and v, which timm keeps in one tensor."""


def from_timm(tensors: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """A timm tower's state dict as that of `tower`. Names no pattern knows are kept, for the loader to refuse."""
    unused = rf"blocks\.{_depth(tensors) - 1}\..*|norm\..*|attn_pool\..*"
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not re.fullmatch(unused, name):
            named |= _split(_renamed(name, kind), tensor)
    if kind == "siglip":
        position = "embeddings.position_embedding.weight"
        return named | ({position: named[position][0]} if position in named else {})
    position = "embeddings.position_embeddings"
    if position in named:
        no_position = torch.zeros_like(named[position][:, :1])
        named[position] = torch.cat([no_position, named[position]], dim=1)
        named["embeddings.mask_token"] = torch.zeros_like(no_position[0])  # of DINOv2's own training, never read
    return named


def _renamed(name: str, kind: Kind) -> str:
    for pattern, replacement in _NAMES[kind]:
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    return name


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if "{}" not in name:
        return {name: tensor}
    return {name.format(part): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}


def _depth(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max((int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))), default=-1)


def sizes_of(tensors: Mapping[str, Tensor], timm_id: str) -> TowerSizes:
    """What the shapes of a timm tower's state dict say. Raises UsageError for towers not known here or damaged."""
    architecture = timm_id.partition(".")[0]
    if architecture not in TIMM:
        raise UsageError(f"The checkpoint's vision tower is {timm_id!r}; openvla reads {', '.join(TIMM)}.")
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    if absent := [name for name in needed if name not in tensors]:
        raise UsageError(f"The checkpoint has no {absent[0]} for its vision tower {timm_id!r}; is a shard missing?")
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    return TowerSizes(
        kind=TIMM[architecture],
        width=width,
        depth=_depth(tensors),
        heads=HEADS,
        mlp=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        side=patch * round(tensors["pos_embed"].shape[1] ** 0.5),
        patch=patch,
        registers=tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
    )
