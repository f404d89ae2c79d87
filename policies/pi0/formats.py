"""Official π0 and π0.5 directories, read: openpi's PyTorch export and lerobot's pi0 and pi05.

    openpi    config.json (action_dim, action_horizon, ...), model.safetensors, assets/<asset id>/norm_stats.json;
              of train_pytorch.py without config.json, so that the horizon has to be given
    lerobot   config.json (type pi0 or pi05), model.safetensors, policy_preprocessor.json and
              policy_postprocessor.json with the .safetensors that they name, tokenizer/ since version 0.5

What they say differently, and how it is read here:

* Normalisation. openpi: π0 (x - mean) / (std + 1e-6), π0.5 2 (x - q01) / (q99 - q01 + 1e-6) - 1. lerobot: what the
  processor files say, in `norm_map`: std + 1e-8, ranges without an epsilon. Nobody clips.
* Prompt. openpi strips it and turns "_" and newlines into blanks; lerobot's π0 adds the final newline and does no more.
* π0.5's state goes into the prompt, in bins; openpi's pi05_libero was trained without it (discrete_state_input off).
  lerobot before 0.5, whose preprocessor had no relative_actions_processor yet, padded the state to 32 first, and so
  wrote 32 numbers: state_in_prompt padded.
* Pictures. openpi resizes on the client with Pillow (antialiased, uint8), lerobot in the model (bilinear, float).
  lerobot 0.4 padded with -3 instead of -1 where a picture is not square; 0.5's way is used.
* Actions. openpi's pi0_libero learnt actions[:6] - state[:6] (its legacy delta transform), pi05_libero did not; lerobot
  says so in its absolute_actions_processor. openpi's LIBERO checkpoints are told by the name of their asset.
* Actions played of a chunk: lerobot's config.json says n_action_steps, openpi's files nothing.
* Sizes are those of the tensors: lerobot's config.json says gemma_2b whatever the shapes.
* Checkpoints of lerobot before 0.4 have no processor files; their statistics are among the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.untrusted import reading

from ..torch.checkpoints import read_json, read_tensors
from ..torch.folders import insist_on_checkpoint
from ..torch.lerobot_steps import steps_of
from ..torch.normalisation import Affine
from ..torch.plausible import built, insist_on_sizes
from .model import STEPS, Pi0Model, Sizes, Variant
from .names import our_tensors, sizes_of

OPENPI_EPS, LEROBOT_EPS = 1e-6, 1e-8
STATE, ACTION = "observation.state", "action"
PRE_0_4_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
ARM = (True,) * 6 + (False,)
"""openpi's delta mask of LIBERO: the pose is relative to the state, the gripper is not."""
_FOLLOWED = (
    "pi0_new_line_processor",
    "smolvla_new_line_processor",  # the same step, as some releases registered it
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    "relative_actions_processor",
    "absolute_actions_processor",
)
"""Steps of lerobot's processor files that belong to π0."""
READABLE = "openpi's PyTorch export, lerobot's pi0 and pi05, or a directory that vla-bench wrote"


@dataclass(frozen=True)
class Reading:
    """How a checkpoint's model wants to be fed and understood; part of our config.json."""

    prompt: Literal["openpi", "lerobot"] = "lerobot"
    state_in_prompt: Literal["no", "real", "padded"] = "no"
    prompt_tokens: int = 48
    """Longer prompts lose their end."""
    resize: Literal["pillow", "torch"] = "torch"
    mirror: bool = False
    """Pictures are mirrored: LIBERO's raw images turned by 180 degrees are upright ones mirrored."""
    relative: tuple[bool, ...] = ()
    """Dimensions of the action that are relative to the same dimension of the state, in the suite's units."""
    steps: int = STEPS
    """Euler steps."""
    crop: float = 1.0
    """Share of the pictures' sides that is read: the middle."""
    execute: int | None = None
    """Actions of a chunk that are played before the next; None says nothing, as official checkpoints do."""

    @property
    def about(self) -> str:
        """What is assumed of the actions and the prompt beyond the plain case."""
        said = {
            "relative actions": any(self.relative),
            "state padded in the prompt": self.state_in_prompt == "padded",
        }
        return ", ".join(text for text, holds in said.items() if holds)


@dataclass(frozen=True)
class Official:
    """One official directory in this project's terms."""

    sizes: Sizes
    tensors: Mapping[str, Tensor]
    """Under our names."""
    reading: Reading
    state: Affine
    action: Affine
    views: tuple[str, ...]
    """Names of the pictures, in the order of the sequence."""
    state_dim: int | None
    """Numbers of the real state; None where the directory does not say."""
    action_dim: int | None
    tokenizer: Path | None
    about: str
    """One line: what it is."""
    unsaid: str = ""
    """The option that nothing in the directory decides and that therefore cannot be auto."""


def read_official(
    folder: Path, asset: str = "", statistics: str = "", vision_heads: int = 0, horizon: int = 0
) -> Official:
    """The directory of openpi or lerobot. Raises UsageError for anything else.

    `horizon` is for directories of openpi's train_pytorch.py, which have no config.json to say it.
    """
    insist_on_checkpoint(folder)
    if (folder / "params").is_dir() and not (folder / "model.safetensors").is_file():
        raise UsageError(
            f"{folder} is a JAX checkpoint of openpi; convert it with openpi's "
            "examples/convert_jax_model_to_pytorch.py and pass the directory that this writes."
        )
    config = _config(folder, horizon)
    with reading(folder, "a checkpoint of π0"):
        if config.get("type") in ("pi0", "pi05"):
            official = _read_lerobot(folder, config, statistics, vision_heads)
        elif "action_horizon" in config and "type" not in config:
            official = _read_openpi(folder, config, asset, statistics, vision_heads)
        else:
            kind = config.get("type") or config.get("model_type") or "unknown"
            raise UsageError(f"{folder / 'config.json'} is of a checkpoint of type {kind!r}; pi0 reads {READABLE}.")
        insist_on_sizes(official.reading, official.tensors, folder)
        return official


# openpi


def _config(folder: Path, horizon: int) -> dict[str, Any]:
    """config.json, or what stands for it where openpi's own training wrote the weights without one."""
    if horizon < 0:
        raise UsageError(f"horizon should be at least 1, got {horizon}.")
    if (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        config = read_json(folder / "config.json")
        if horizon:
            raise UsageError(f"{folder / 'config.json'} says how many actions it answers; leave horizon out.")
        return config
    if not horizon:
        raise UsageError(
            f"{folder} has no config.json. If openpi's train_pytorch.py wrote it, nothing in it says how many actions "
            "it answers: give its config's action_horizon, --policy-args horizon=10 (pi05_libero) or horizon=50 (most "
            "others)."
        )
    return {"action_horizon": horizon}


def _read_openpi(folder: Path, config: Mapping[str, Any], asset: str, statistics: str, vision_heads: int) -> Official:
    tensors = our_tensors(read_tensors(folder))
    sizes = sizes_of(tensors, int(config["action_horizon"]), vision_heads)
    _agree(folder, "action_dim", int(config.get("action_dim", sizes.action_dim)), sizes.action_dim)
    own = _norm_stats(folder, asset) if asset or not statistics or _assets(folder) else None
    libero = own is not None and "libero" in own.parent.name
    old = sizes.variant == "pi0"
    decided_by_asset = "relative" if old else "state_in_prompt"
    file = Path(statistics) if statistics or own is None else own
    state, action = openpi_statistics(file, quantiles=not old)
    reading = Reading(
        prompt="openpi",
        state_in_prompt="no" if old or libero else "real",
        prompt_tokens=48 if old else 200,
        resize="pillow",
        relative=ARM if old and libero else (),
    )
    return Official(
        sizes=sizes,
        tensors=tensors,
        reading=reading,
        state=state,
        action=action,
        views=("base_0_rgb", "left_wrist_0_rgb"),
        state_dim=None,
        action_dim=None,
        tokenizer=None,
        about=f"openpi {sizes.variant}, statistics {file.name if statistics else file.parent.name}",
        unsaid="" if own else decided_by_asset,
    )


def _assets(folder: Path) -> dict[str, Path]:
    """Asset id to its statistics."""
    return {str(f.parent.relative_to(folder / "assets")): f for f in sorted(folder.glob("assets/**/norm_stats.json"))}


def _norm_stats(folder: Path, asset: str) -> Path:
    files = _assets(folder)
    if asset in files:
        return files[asset]
    if len(files) == 1 and not asset:
        return next(iter(files.values()))
    if not files:
        raise UsageError(
            f"{folder} has no assets/<asset id>/norm_stats.json; copy openpi's assets beside the weights, or pass "
            "--policy-args statistics=PATH of that file."
        )
    got = f"no statistics {asset!r}" if asset else f"{len(files)} sets of statistics"
    raise UsageError(f"{folder} has {got}; choose one with --policy-args asset=..., of: {', '.join(files)}.")


def openpi_statistics(file: Path, quantiles: bool) -> tuple[Affine, Affine]:
    """State and action maps of a norm_stats.json. Raises UsageError for a file without what the model needs."""
    stored = read_json(file).get("norm_stats", {})
    wanted = "q01 and q99" if quantiles else "mean and std"
    with reading(file, f"{wanted} of state and actions"):
        if quantiles:
            maps = [Affine.from_range(stored[k]["q01"], stored[k]["q99"], OPENPI_EPS) for k in ("state", "actions")]
        else:
            maps = [Affine.from_mean_std(stored[k]["mean"], stored[k]["std"], OPENPI_EPS) for k in ("state", "actions")]
    return maps[0], maps[1]


# lerobot


def _read_lerobot(folder: Path, config: Mapping[str, Any], statistics: str, vision_heads: int) -> Official:
    stored = read_tensors(folder)
    sizes, tensors = _lerobot_weights(folder, config, stored, vision_heads)
    state, action = _lerobot_statistics(folder, config, stored, statistics, sizes.variant)
    steps = _steps(folder / "policy_preprocessor.json")
    tokens = steps.get("tokenizer_processor", {}).get("config", {})
    old = sizes.variant == "pi0"
    in_prompt: Literal["real", "padded"] = "real" if "relative_actions_processor" in steps else "padded"
    reading = Reading(
        prompt="lerobot",
        state_in_prompt="no" if old else in_prompt,
        prompt_tokens=int(tokens.get("max_length", config.get("tokenizer_max_length", 48 if old else 200))),
        resize="torch",
        relative=_lerobot_relative(folder, config),
        steps=_euler_steps(config),
        execute=_played(folder, config, sizes.horizon),
    )
    return Official(
        sizes=sizes,
        tensors=tensors,
        reading=reading,
        state=state,
        action=action,
        views=views_of(config),
        state_dim=_width(config, "input_features", "STATE"),
        action_dim=_width(config, "output_features", "ACTION"),
        tokenizer=_beside(folder, str(tokens.get("tokenizer_name") or "")),
        about=f"lerobot {config['type']}",
    )


def _beside(folder: Path, name: str) -> Path | None:
    """The directory of that name in the folder; names of the hub and of places elsewhere are None."""
    inside = bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts
    return folder / name if inside and (folder / name).is_dir() else None


def _lerobot_weights(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor], vision_heads: int, kv_heads: int = 1
) -> tuple[Sizes, dict[str, Tensor]]:
    tensors = our_tensors({name: t for name, t in stored.items() if not name.startswith(PRE_0_4_STATISTICS)})
    horizon = config.get("chunk_size")
    if not isinstance(horizon, int):
        raise UsageError(f"{folder / 'config.json'} should say chunk_size, a number; got {horizon!r}.")
    by_shape = sizes_of(tensors, horizon, vision_heads, kv_heads)
    sizes = replace(
        by_shape,
        image=_side(folder, config, by_shape),
        state_dim=int(config.get("max_state_dim", by_shape.state_dim)),
        min_period=float(config.get("min_period", 4e-3)),
        max_period=float(config.get("max_period", 4.0)),
    )
    if config["type"] != sizes.variant:
        raise UsageError(f"{folder / 'config.json'} says {config['type']}, but the weights are of {sizes.variant}.")
    _agree(folder, "max_action_dim", int(config.get("max_action_dim", sizes.action_dim)), sizes.action_dim)
    if sizes.variant == "pi0":
        _agree(folder, "max_state_dim", sizes.state_dim, by_shape.state_dim)
    return sizes, tensors


def _side(folder: Path, config: Mapping[str, Any], by_shape: Sizes) -> int:
    """Side of the pictures as the config says; the shapes tell it but for a rest that makes no whole patch."""
    said = config.get("image_resolution") or config.get("resize_imgs_with_padding") or [by_shape.image] * 2
    for side in said:
        _agree(folder, "image_resolution", int(side) // by_shape.patch * by_shape.patch, by_shape.image)
    if len(set(said)) != 1:
        raise UsageError(f"{folder / 'config.json'} says image_resolution {said}; the pictures of π0 are square.")
    return int(said[0])


def _agree(folder: Path, name: str, said: int, found: int) -> None:
    if said != found:
        raise UsageError(f"{folder / 'config.json'} says {name} {said}, but the weights have {found}.")


def views_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Picture keys of a lerobot config in the order of the sequence, empty cameras last."""
    named = [name for name, feature in config.get("input_features", {}).items() if feature.get("type") == "VISUAL"]
    empty = [f"observation.images.empty_camera_{index}" for index in range(int(config.get("empty_cameras", 0)))]
    return tuple(dict.fromkeys([*named, *empty]))


def _width(config: Mapping[str, Any], features: str, kind: str) -> int | None:
    found = [feature["shape"][0] for feature in config.get(features, {}).values() if feature.get("type") == kind]
    return int(found[0]) if found else None


def _euler_steps(config: Mapping[str, Any]) -> int:
    return int(config.get("num_inference_steps", config.get("num_steps", STEPS)))


def _steps(file: Path) -> dict[str, Mapping[str, Any]]:
    return steps_of(file, _FOLLOWED)


def _played(folder: Path, config: Mapping[str, Any], horizon: int) -> int | None:
    """n_action_steps, which lerobot plays of a chunk before it asks again."""
    said = config.get("n_action_steps")
    if said is not None and (not isinstance(said, int) or not 1 <= said <= horizon):
        raise UsageError(
            f"{folder / 'config.json'} says n_action_steps {said!r}, expected a number from 1 to {horizon}."
        )
    return said


def _lerobot_relative(folder: Path, config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Mask of the action: lerobot leaves out the dimensions whose name contains an excluded joint's, in any case of
    letters; those without a name are relative, so all of them where none is named.
    """
    if (
        not _steps(folder / "policy_postprocessor.json")
        .get("absolute_actions_processor", {})
        .get("config", {})
        .get("enabled", config.get("use_relative_actions", False))
    ):
        return ()
    said = _steps(folder / "policy_preprocessor.json").get("relative_actions_processor", {}).get("config", {})
    excluded = said.get("exclude_joints", config.get("relative_exclude_joints", []))
    names = said.get("action_names") or config.get("action_feature_names")
    dim = _width(config, "output_features", "ACTION") or 0
    known = [str(name).lower() for name in (names or ())][:dim]
    mask = [not any(str(joint).lower() in name for joint in excluded if joint) for name in known]
    return (*mask, *(True,) * (dim - len(mask)))


def _lerobot_statistics(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor], statistics: str, variant: Variant
) -> tuple[Affine, Affine]:
    pre, post = (_steps(folder / f"policy_{name}processor.json") for name in ("pre", "post"))
    _refuse_normalised_pictures(folder, config, stored, pre.get("normalizer_processor"))
    if statistics:
        return openpi_statistics(Path(statistics), quantiles=variant == "pi05")
    if pre:
        return (
            _saved_map(folder, pre.get("normalizer_processor"), STATE, "STATE"),
            _saved_map(folder, post.get("unnormalizer_processor"), ACTION, "ACTION"),
        )
    modes = config.get("normalization_mapping", {})
    return (
        _map(folder, _buffers(stored, "normalize_inputs.buffer_observation_state."), modes.get("STATE"), STATE),
        _map(folder, _buffers(stored, "unnormalize_outputs.buffer_action."), modes.get("ACTION"), ACTION),
    )


def _refuse_normalised_pictures(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor], step: Mapping[str, Any] | None
) -> None:
    """Raises UsageError where lerobot would normalise pictures: π0's are read in [-1, 1] as they come.

    lerobot leaves pictures alone whose statistics are not there, whatever their mode.
    """
    if step is not None:
        modes, numbers = step.get("config", {}).get("norm_map", {}), _state_of(folder, step)
        found = [view for view in views_of(config) if any(name.startswith(f"{view}.") for name in numbers)]
    else:
        modes = config.get("normalization_mapping", {})
        buffers = {view: f"normalize_inputs.buffer_{view.replace('.', '_')}." for view in views_of(config)}
        found = [view for view, beginning in buffers.items() if _buffers(stored, beginning)]
    mode = modes.get("VISUAL", "IDENTITY")
    if mode != "IDENTITY" and found:
        raise UsageError(
            f"{folder} normalises its pictures by {mode} ({found[0]}), which is not followed here: pi0 reads "
            "checkpoints whose norm_map says VISUAL IDENTITY, as π0's own do."
        )


def _buffers(stored: Mapping[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name.removeprefix(beginning): tensor for name, tensor in stored.items() if name.startswith(beginning)}


def _saved_map(folder: Path, step: Mapping[str, Any] | None, feature: str, kind: str) -> Affine:
    """The map of one feature: mode from the step's norm_map, numbers from its state file."""
    if step is None:
        raise UsageError(f"{folder} has processor files without a normaliser of {feature}; is it a whole checkpoint?")
    stored, said = _state_of(folder, step), step.get("config", {})
    return _map(
        folder,
        _buffers(stored, f"{feature}."),
        said.get("norm_map", {}).get(kind),
        feature,
        said.get("eps", LEROBOT_EPS),
    )


def _state_of(folder: Path, step: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a step's state file."""
    file = Path(str(step.get("state_file", "")))
    if file.name != str(file):
        raise UsageError(f"{folder} names the state file {str(file)!r}, which is not a file beside it.")
    return read_tensors(folder / file) if file.name else {}


def _map(
    folder: Path, numbers: Mapping[str, Tensor], mode: str | None, feature: str, eps: float = LEROBOT_EPS
) -> Affine:
    """lerobot's modes as one affine map. Raises UsageError where lerobot would silently not normalise."""
    wanted = {
        "MEAN_STD": ("mean", "std"),
        "MIN_MAX": ("min", "max"),
        "QUANTILES": ("q01", "q99"),
        "QUANTILE10": ("q10", "q90"),
        "IDENTITY": (),
    }.get(str(mode))
    if wanted is None:
        raise UsageError(f"{folder} normalises {feature} by {mode!r}, which is none of lerobot's modes.")
    if not wanted:
        return Affine.identity(0)
    if absent := [name for name in wanted if name not in numbers]:
        raise UsageError(
            f"{folder} has no {' and no '.join(absent)} of {feature}, which its mode {mode} needs; use a checkpoint "
            "fine-tuned on this suite, or pass --policy-args statistics=PATH of an openpi norm_stats.json."
        )
    low, high = (np.asarray(numbers[name].flatten().double()) for name in wanted)
    if mode == "MEAN_STD":
        return Affine.from_mean_std(low, high, eps)
    return Affine.from_range(low, np.where(high == low, low + eps, high), 0.0)


# On tensors, without a suite


@dataclass(frozen=True)
class LerobotModel:
    """A lerobot directory as a function of lerobot's own batches, without processors.

        model = LerobotModel.load("some/folder")
        actions = model.sample(load_file("some/folder/io.safetensors"))

    Only config.json and model.safetensors are read. Sizes are those of the tensors; `names.sizes_of` says what has
    to be given where shapes cannot tell it (vision heads other than 4, or 16 at width 1152; several key-value heads).
    """

    model: Pi0Model
    views: tuple[str, ...]
    steps: int

    @classmethod
    def load(cls, folder: str | Path, vision_heads: int = 0, kv_heads: int = 1) -> LerobotModel:
        """float32, on the CPU. Raises UsageError for a directory of another kind or a damaged one."""
        path = Path(folder)
        config = read_json(path / "config.json")
        if config.get("type") not in ("pi0", "pi05"):
            raise UsageError(f"{path / 'config.json'} is of type {config.get('type')!r}, expected pi0 or pi05.")
        with reading(path, "a checkpoint of π0"):
            sizes, tensors = _lerobot_weights(path, config, read_tensors(path), vision_heads, kv_heads)
            return cls(loaded(sizes, tensors, path), views_of(config), _euler_steps(config))

    @torch.inference_mode()
    def sample(self, batch: Mapping[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """(B, H, 32) actions before un-normalisation.

        Args:
            batch: `observation.images.*` float (B, 3, h, w) in [0, 1] (a view that is absent counts as missing),
                `observation.language.tokens`, `observation.language.attention_mask` (B, L), and for π0
                `observation.state`, normalised. Of any float dtype: all becomes float32, as in lerobot.
            noise: (B, H, 32); the batch's own `noise` when absent.
        """
        start = (batch["noise"] if noise is None else noise).float()
        state = batch.get(STATE)
        present = [view for view in self.views if view in batch]
        if not present:
            raise UsageError(f"The batch has none of the pictures {', '.join(self.views)}.")
        everyone = torch.ones(len(start), dtype=torch.bool)
        return self.model.sample(
            [batch[view].float() for view in present],  # before resizing: half precision would round the pictures
            [everyone] * len(present),  # a missing view is masked in lerobot: no token sees it, none is displaced by it
            batch["observation.language.tokens"],
            batch["observation.language.attention_mask"],
            None if state is None else state.float(),
            noise=start,
            steps=self.steps,
        )


def loaded(
    sizes: Sizes, tensors: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype = torch.float32
) -> Pi0Model:
    """A model with these weights, on the CPU, never held twice. Raises UsageError unless all names and shapes agree."""
    model = built(lambda: Pi0Model(sizes).cast(dtype), sizes, tensors, source)
    model.leave_meta()
    return model


def truncated(map_: Affine, dim: int) -> Affine:
    """The map of the first `dim` dimensions, as openpi cuts statistics that were padded."""
    return Affine(map_.scale[:dim], map_.offset[:dim])


def missing_views(views: Sequence[str]) -> tuple[str, ...]:
    """Those that the named views of a checkpoint never show, so that they can be left out."""
    return tuple(view for view in views if "empty_camera" in view or view.rsplit(".", 1)[-1] == "right_wrist_0_rgb")
