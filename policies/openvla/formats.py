"""What OpenVLA's directories hold: the Hugging Face layout of OpenVLA and OFT, and our own.

- The Hugging Face directory is read without its remote code: config.json (sizes, `norm_stats`), safetensors shards,
  tokenizer.json or tokenizer.model. `dataset_statistics.json`, which fine-tuning adds, replaces `norm_stats`.
- An `action_head--*_checkpoint.pt` beside it makes it an OFT checkpoint; `proprio_projector--*` adds the state. Both
  are read with `weights_only`; names may carry DataParallel's `module.`.
- Nothing in the files says how long OFT's chunk is or how many pictures it reads (upstream guesses from the command
  line), so those are arguments: 8 and 2 for LIBERO.
- Ids: action tokens are the last 256 below `vocab_size - pad_to_multiple_of` (32000 of Llama's 32064 rows).
- v0.1 checkpoints (one SigLIP tower, Vicuna) have another prompt; upstream tells by the directory's name, here by the
  language model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.types import ActionSpec, Float32
from vla_bench.untrusted import reading

from ..torch.checkpoints import read_json, read_ours, read_tensors, sha256_of
from ..torch.conventions import CALVIN_ACTION, CALVIN_STATE, LIBERO_ACTION, LIBERO_STATE
from ..torch.folders import insist_on_checkpoint
from ..torch.normalisation import Affine
from ..torch.plain_llm import rope_theta
from ..torch.plausible import insist_on_sizes
from ..torch.reads import noting_reads
from ..torch.tokens import TextTokenizer, load_tokenizer
from .images import PictureChain
from .model import LlmSizes, Sizes
from .vision import from_timm, sizes_of

Prompt = Literal["v1", "v0.1", "plain"]
AnyPrompt = Literal["auto", "v1", "v0.1"]
Robot = Literal["libero", "calvin"]
Actions = Literal["auto", "libero", "calvin"]
Mirror = Literal["auto", "yes", "no"]
Gripper = Literal["suite", "open_is_one"]

READS = (
    "directories of Hugging Face with model_type openvla (config.json, safetensors, tokenizer; OpenVLA or OFT) and "
    "those that vla-bench saves"
)
ROBOTS: Mapping[Robot, tuple[ActionSpec, tuple[str, ...]]] = {
    "libero": (LIBERO_ACTION, LIBERO_STATE),
    "calvin": (CALVIN_ACTION, CALVIN_STATE),
}
ALIASES: Mapping[str, tuple[str, ...]] = {"libero_10": ("libero_long",)}
"""Other names a suite goes by in statistics."""
RANGE_EPS = 1e-8  # OFT's, and of both models' training; OpenVLA un-normalises without it, which float32 does not see
EMPTY_PIECE = 29871  # Llama's id of a lone space, which training left between `Out:` and the actions
BOS, EOS = 1, 2  # Llama's
BINS = 256
DINOSIGLIP = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
_TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


@dataclass(frozen=True)
class Facts:
    """What the weights were trained with, beyond their sizes."""

    prompt: Prompt
    bos: int
    eos: int
    space: int
    """The id between prompt and actions."""
    action_end: int
    """Action ids are the 256 below this one."""
    pictures: PictureChain
    gripper: Gripper
    """open_is_one: 0 closes and 1 opens, as in OpenVLA's data; suite: as the suite has it."""
    action: ActionSpec
    state: tuple[str, ...] = ()
    crop: float = 1.0
    """Share of the pictures' sides that is read, the middle: before the picture chain, and of our trainings only."""
    constant: tuple[bool, ...] = ()
    """Normalised dimensions of the action that never change in the data: they are learnt as 0. Empty: none."""
    execute: int | None = None
    """Actions of a chunk that are played before the next; None says nothing, as official checkpoints do."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Facts:
        return cls(
            **{
                **given,
                "pictures": PictureChain(**given["pictures"]),
                "action": ActionSpec(**given["action"]),
                "state": tuple(given["state"]),
                "constant": tuple(given.get("constant", ())),
            }
        )


@dataclass(frozen=True)
class Loaded:
    """A checkpoint, ready to be put into a model."""

    sizes: Sizes
    tensors: Mapping[str, Tensor]
    facts: Facts
    tokenizer: TextTokenizer
    action: Affine
    state: Affine
    """Identity of no dimension where the state is not read."""
    sha256: str


@dataclass(frozen=True)
class Wishes:
    """What official files do not say, or the user knows better; auto and None leave it to the files."""

    suite: str
    unnorm_key: str | None = None
    actions: Actions = "auto"
    prompt: AnyPrompt = "auto"
    mirror: Mirror = "auto"
    jpeg: bool = True
    crop: bool = True
    oft_chunk: int = 8
    oft_views: int = 2

    def none_for(self, what: str, only: str = "") -> None:
        """Raises UsageError if any was given whose name starts with `only`: it would not be used."""
        given = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default and f.name.startswith(only)]
        if given:
            raise UsageError(f"{', '.join(given)} cannot be chosen for {what}; leave {given[0]} out.")


@noting_reads()
def read(path: str | Path, wishes: Wishes) -> Loaded:
    """The checkpoint at that path. Raises UsageError for anything but the formats above."""
    folder = Path(path)
    if folder.suffix == ".pt" or any((folder / "checkpoints").glob("*.pt")):
        raise UsageError(
            f"{folder} is a run of Prismatic's own training, which lacks the tokenizer; convert it with OpenVLA's "
            "vla-scripts/extern/convert_openvla_weights_to_hf.py and name the directory that writes."
        )
    insist_on_checkpoint(path)
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; openvla reads {READS}.")
    config = read_json(folder / "config.json")
    with reading(folder, "a checkpoint of OpenVLA"):
        if str(config.get("format", "")).startswith("vla-bench"):
            wishes.none_for(f"{folder}, which says it itself")
            loaded = _ours(folder)
        elif config.get("model_type") != "openvla":
            raise UsageError(f"{folder} has the model_type {config.get('model_type')!r}; openvla reads {READS}.")
        else:
            loaded = _hugging_face(folder, config, wishes)
        for said in (loaded.sizes, loaded.facts):
            insist_on_sizes(said, loaded.tensors, folder)
        _insist_on_ids(loaded.facts, loaded.sizes)
        _same(loaded.facts.pictures.side, loaded.sizes.towers[0].side, "The pictures' sides are", "the vision tower")
        return loaded


def _insist_on_ids(facts: Facts, sizes: Sizes) -> None:
    """Raises ValueError unless the embedding has the ids that are put into prompts, and those of actions."""
    ids = (facts.bos, facts.eos, facts.space, facts.action_end - BINS, facts.action_end - 1)
    if beyond := [one for one in ids if not 0 <= one < sizes.llm.vocab_size]:
        raise ValueError(f"it uses the id {beyond[0]} of {sizes.llm.vocab_size}")


def _ours(folder: Path) -> Loaded:
    given = read_ours(folder, "openvla")
    if given.tokenizer is None:
        raise UsageError(f"{folder} has no tokenizer.json; save it again.")
    sizes, facts = Sizes.from_json(given.config["sizes"]), Facts.from_json(given.config["facts"])
    action = given.normalisation["action"].within(facts.action.dim, "action")
    state = given.normalisation["state"].within(len(facts.state), "state")
    return Loaded(sizes, given.tensors, facts, given.tokenizer, action, state, given.sha256)


def _hugging_face(folder: Path, config: Mapping[str, Any], wishes: Wishes) -> Loaded:
    key, statistics = _statistics(folder, config, wishes)
    robot = _robot(key) if wishes.actions == "auto" else wishes.actions
    action = normalisation(statistics, "action", folder)
    tensors = read_tensors(folder) | _oft(folder)
    sizes = _sizes(folder, config, tensors, wishes, len(action.scale))
    state = normalisation(statistics, "proprio", folder) if sizes.state_dim else Affine.identity(0)
    _check(sizes, state, key, robot)
    return Loaded(
        sizes,
        renamed(tensors, _timm_ids(config)),
        replace(_facts(config, sizes, robot, wishes), constant=constant(statistics["action"], sizes.action_dim)),
        load_tokenizer(folder),
        action,
        state,
        sha256_of(folder),
    )


def _sizes(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], wishes: Wishes, action_dim: int
) -> Sizes:
    ids = zip(_TOWERS, _timm_ids(config), strict=False)
    towers = tuple(sizes_of(_under(tensors, prefix), timm_id) for prefix, timm_id in ids)
    if not any(name.startswith("action_head.") for name in tensors):
        wishes.none_for(f"{folder}, which has no action head of OFT", only="oft_")
        return Sizes(towers, _llm(config), action_dim=action_dim)
    reader = tensors.get("proprio_projector.fc1.weight")
    state_dim = 0 if reader is None else reader.shape[1]
    return Sizes(towers, _llm(config), "l1", action_dim, wishes.oft_chunk, state_dim, wishes.oft_views)


def _facts(config: Mapping[str, Any], sizes: Sizes, robot: Robot, wishes: Wishes) -> Facts:
    action, state = ROBOTS[robot]
    mirror = robot == "libero" if wishes.mirror == "auto" else wishes.mirror == "yes"
    return Facts(
        prompt=_prompt(config) if wishes.prompt == "auto" else wishes.prompt,
        bos=BOS,
        eos=EOS,
        space=EMPTY_PIECE,
        action_end=sizes.llm.vocab_size - int(config.get("pad_to_multiple_of", 64)),
        pictures=PictureChain(sizes.towers[0].side, mirror, wishes.jpeg, crop=wishes.crop),
        gripper="open_is_one",
        action=action,
        state=state if sizes.state_dim else (),
    )


def _check(sizes: Sizes, state: Affine, key: str, robot: Robot) -> None:
    """Raises UsageError unless statistics, weights and robot speak of as many numbers."""
    action_spec, state_layout = ROBOTS[robot]
    _same(sizes.action_dim, action_spec.dim, f"The statistics {key!r} are of actions with", robot)
    if sizes.state_dim:
        _same(len(state.scale), sizes.state_dim, f"The statistics {key!r} are of a state with", "the state projector")
        _same(sizes.state_dim, len(state_layout), "The state projector reads", robot)


def renamed(tensors: Mapping[str, Tensor], timm_ids: tuple[str, ...]) -> dict[str, Tensor]:
    """An official state dict in this model's names."""
    named = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TOWERS)}
    for prefix, timm_id in zip(_TOWERS, timm_ids, strict=False):
        kind = sizes_of(_under(tensors, prefix), timm_id).kind
        named |= {prefix + name: tensor for name, tensor in from_timm(_under(tensors, prefix), kind).items()}
    return named


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _timm_ids(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(config.get("timm_model_ids", DINOSIGLIP))


def _prompt(config: Mapping[str, Any]) -> Prompt:
    return "v0.1" if str(config.get("llm_backbone_id")).startswith("vicuna") else "v1"


def _llm(config: Mapping[str, Any]) -> LlmSizes:
    """The Llama that config.json describes; what it leaves out has LlamaConfig's defaults."""
    given = dict(config.get("text_config", {}))
    kind = given.get("model_type", "llama")
    if kind != "llama" or config.get("n_action_bins", BINS) != BINS:
        raise UsageError(
            f"openvla reads checkpoints on a plain Llama with {BINS} action bins; this one is on {kind!r} with "
            f"{config.get('n_action_bins', BINS)} bins."
        )
    given["rope_theta"] = rope_theta(given, LlmSizes.rope_theta)
    known = {field.name: given[field.name] for field in fields(LlmSizes) if field.name in given}
    if "vocab_size" not in known:
        raise UsageError("The checkpoint's config.json says no text_config.vocab_size; download it again.")
    if "num_key_value_heads" not in known and "num_attention_heads" in known:
        known["num_key_value_heads"] = known["num_attention_heads"]
    return LlmSizes(**known)


def _oft(folder: Path) -> dict[str, Tensor]:
    """OFT's extra modules, by this model's names; empty for plain OpenVLA."""
    for part, meaning in (("noisy_action_projector", "a diffusion head"), ("vision_backbone", "FiLM")):
        if _part(folder, part):
            raise UsageError(f"{folder} is an OFT checkpoint with {meaning}; openvla reads those with the L1 head.")
    tensors: dict[str, Tensor] = {}
    for part in ("action_head", "proprio_projector"):
        if file := _part(folder, part):
            tensors |= {f"{part}.{name.removeprefix('module.')}": value for name, value in read_tensors(file).items()}
    return tensors


def _part(folder: Path, part: str) -> Path | None:
    files = sorted(folder.glob(f"{part}--*checkpoint.pt"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"{folder} has several files of one module ({names}); leave the one to use.")
    return files[0] if files else None


def _statistics(folder: Path, config: Mapping[str, Any], wishes: Wishes) -> tuple[str, Mapping[str, Any]]:
    file = folder / "dataset_statistics.json"
    known = read_json(file) if file.is_file() else config.get("norm_stats") or {}
    names = (wishes.suite, *ALIASES.get(wishes.suite, ()))
    tried = [wishes.unnorm_key] if wishes.unnorm_key else [*names, *(f"{name}_no_noops" for name in names)]
    for name in tried:
        if name in known:
            return name, known[name]
    raise UsageError(
        f"The checkpoint has no action statistics named {' or '.join(map(repr, tried))}; it knows "
        f"{', '.join(sorted(known)) or 'none'}: choose one with --policy-args unnorm_key=NAME."
    )


def _robot(key: str) -> Robot:
    for robot in ROBOTS:
        if key.startswith(robot):
            return robot
    raise UsageError(
        f"The statistics {key!r} do not tell what the actions mean; if they are those of a suite here, say which with "
        f"--policy-args actions={'|'.join(ROBOTS)}."
    )


def normalisation(statistics: Mapping[str, Any], what: str, source: str | Path) -> Affine:
    """To [-1, 1] from the 1st and 99th percentile, dimensions masked out untouched. Raises UsageError."""
    try:
        given = statistics[what]
        low, high = np.asarray(given["q01"], np.float64), np.asarray(given["q99"], np.float64)
        mask = given.get("mask", [True] * len(low))
        if not low.shape == high.shape == (len(mask),):
            raise ValueError(f"q01, q99 and mask have {low.shape}, {high.shape} and ({len(mask)},)")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"The {what} statistics of {source} should have q01, q99 and perhaps mask: {error}.") from None
    return Affine.from_range(low, high, RANGE_EPS).where(mask)


def constant(statistics: Mapping[str, Any], dim: int) -> tuple[bool, ...]:
    """Which of the dimensions are normalised and have one value only; none where the extremes are not given."""
    if not {"min", "max"} <= statistics.keys():
        return ()
    low, high = (np.asarray(statistics[name], np.float64) for name in ("min", "max"))
    if not low.shape == high.shape == (dim,):
        raise UsageError(f"The action statistics have {low.size} minima and {high.size} maxima; expected {dim} each.")
    return tuple(((low == high) & np.asarray(statistics.get("mask", [True] * dim), bool)).tolist())


def _same(got: int, expected: int, what: str, whose: str) -> None:
    if got != expected:
        raise UsageError(f"{what} {got} numbers, {whose} has {expected}; this checkpoint is for another robot.")


# Actions


def to_suite(normalised: Float32, action: Affine, facts: Facts) -> Float32:
    """(..., A) of the model -> of the suite."""
    actions = action.invert(normalised)
    if facts.gripper == "open_is_one":
        opened = np.sign(2 * actions[..., -1] - 1)
        actions[..., -1] = -opened if facts.action.gripper == "close_positive" else opened
    return actions


def to_model(actions: Float32, action: Affine, facts: Facts) -> Float32:
    """(..., A) of the suite -> of the model, clipped to [-1, 1] and 0 where constant, as in training."""
    given = np.array(actions, np.float32)
    if facts.gripper == "open_is_one":
        opened = -given[..., -1] if facts.action.gripper == "close_positive" else given[..., -1]
        given[..., -1] = np.clip((opened + 1) / 2, 0, 1)
    clipped = np.clip(action.apply(given), -1, 1)
    return np.where(facts.constant, 0, clipped) if facts.constant else clipped


# Words

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def prompt_ids(instruction: str, tokenizer: TextTokenizer, facts: Facts) -> list[int]:
    """BOS, the question (plain: the instruction), and the empty piece that training has before the first action."""
    question = f"What action should the robot take to {instruction.lower()}?"
    written = {
        "v1": f"In: {question}\nOut:",
        "v0.1": f"{SYSTEM} USER: {question} ASSISTANT:",
        "plain": instruction.lower(),
    }
    text = written[facts.prompt]
    ids = [facts.bos, *tokenizer.encode(text)]
    return ids if ids[-1] == facts.space else [*ids, facts.space]
