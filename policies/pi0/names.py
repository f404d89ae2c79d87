"""Official names of π0's tensors, and a model's sizes from their shapes.

Official: openpi's PyTorch export, and lerobot's, which is the same behind a leading `model.`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from vla_bench.errors import UsageError

from .model import Sizes

PALIGEMMA = "paligemma_with_expert.paligemma."
NAMES: Mapping[str, str] = {
    f"{PALIGEMMA}model.vision_tower.vision_model.": "vision.",
    f"{PALIGEMMA}model.multi_modal_projector.linear.": "projector.",
    f"{PALIGEMMA}model.language_model.embed_tokens.": "embedding.",
    f"{PALIGEMMA}model.language_model.layers.": "vlm.",
    "paligemma_with_expert.gemma_expert.model.layers.": "expert.",
    "paligemma_with_expert.gemma_expert.model.norm.": "expert_norm.",
}
"""Beginning of an official name to the beginning of ours; all other names are the same in both."""
LM_HEAD = f"{PALIGEMMA}lm_head.weight"
EMBEDDING = f"{PALIGEMMA}model.language_model.embed_tokens.weight"
UNUSED = (
    LM_HEAD,
    f"{PALIGEMMA}model.language_model.norm.weight",
    "paligemma_with_expert.gemma_expert.lm_head.weight",
)
"""Official tensors that reach no action: text is never generated, and the prefix is read before its final norm."""
BEFORE_TRANSFORMERS_4_52: Mapping[str, str] = {
    f"{PALIGEMMA}language_model.model.": f"{PALIGEMMA}model.language_model.",
    f"{PALIGEMMA}language_model.lm_head.": f"{PALIGEMMA}lm_head.",
    f"{PALIGEMMA}vision_tower.": f"{PALIGEMMA}model.vision_tower.",
    f"{PALIGEMMA}multi_modal_projector.": f"{PALIGEMMA}model.multi_modal_projector.",
}
"""Names that PaliGemma's parts had in lerobot checkpoints of early 2025 (lerobot pull request 1415)."""
SO400M_WIDTH, SO400M_HEADS, OTHER_HEADS = 1152, 16, 4


def our_name(official: str) -> str:
    """The name in `Pi0Model.state_dict()` of an official one, with or without lerobot's leading `model.`."""
    return _renamed(_renamed(official.removeprefix("model."), BEFORE_TRANSFORMERS_4_52), NAMES)


def official_name(ours: str) -> str:
    """openpi's name of a tensor of `Pi0Model.state_dict()`; lerobot puts `model.` before it."""
    return _renamed(ours, {new: old for old, new in NAMES.items()})


def our_tensors(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names, without what is unused.

    The prompt's embedding is `embed_tokens`; files that save tied tensors once may hold it as `lm_head` alone.
    """
    found = {our_name(name): tensor for name, tensor in official.items()}
    if our_name(EMBEDDING) not in found and LM_HEAD in found:
        found[our_name(EMBEDDING)] = found[LM_HEAD]
    return {name: tensor for name, tensor in found.items() if name not in map(our_name, UNUSED)}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def sizes_of(tensors: Mapping[str, Tensor], horizon: int, vision_heads: int = 0, kv_heads: int = 1) -> Sizes:
    """The sizes of a model from the shapes of its tensors (our names), whatever its config calls them.

    Shapes do not tell three numbers. π0.5 has no tensor as wide as its padded states, which are taken to be as wide as
    its actions. Key-value heads are 1 in every Gemma variant of openpi, and that gives the rest:
    head_dim = rows of k, heads = rows of q / rows of k. Vision heads, where 0 is given, are 16 at So400m's width of
    1152 and 4 at any other, as in the reference cases.

    Raises UsageError for tensors of another architecture.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        patches, vision_width = shape["vision.embeddings.position_embedding.weight"]
        patch = shape["vision.embeddings.patch_embedding.weight"][-1]
        vocabulary, width = shape["embedding.weight"]
        expert_width, action_dim = shape["action_in_proj.weight"]
        query, key = (shape[f"vlm.0.self_attn.{name}_proj.weight"][0] for name in "qk")
        state_dim = shape.get("state_proj.weight", (expert_width, action_dim))[1]
        return Sizes(
            variant="pi0" if "state_proj.weight" in shape else "pi05",
            horizon=horizon,
            action_dim=action_dim,
            state_dim=state_dim,
            image=math.isqrt(patches) * patch,
            patch=patch,
            vision_width=vision_width,
            vision_depth=_count(shape, "vision.encoder.layers."),
            vision_mlp=shape["vision.encoder.layers.0.mlp.fc1.weight"][0],
            vision_heads=vision_heads or (SO400M_HEADS if vision_width == SO400M_WIDTH else OTHER_HEADS),
            vocabulary=vocabulary,
            width=width,
            mlp=shape["vlm.0.mlp.gate_proj.weight"][0],
            expert_width=expert_width,
            expert_mlp=shape["expert.0.mlp.gate_proj.weight"][0],
            depth=_count(shape, "vlm."),
            heads=query * kv_heads // key,
            kv_heads=kv_heads,
            head_dim=key // kv_heads,
        )
    except KeyError as error:
        raise UsageError(f"These are no weights of π0 or π0.5: there is no {official_name(error.args[0])}.") from None


def _count(names: Mapping[str, object], beginning: str) -> int:
    return 1 + max(int(name.removeprefix(beginning).split(".")[0]) for name in names if name.startswith(beginning))
