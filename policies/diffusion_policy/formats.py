"""Official Diffusion Policy checkpoints, read: real-stanford's .ckpt and lerobot's `diffusion` directory.

    .ckpt     torch.save through dill: {cfg: OmegaConf, state_dicts: {model, ema_model, optimizer}, pickles}
    lerobot   config.json (type diffusion), model.safetensors, policy_pre|postprocessor.json and what they name

What they say differently, and how it is read here:

* Weights. .ckpt: the moving average (`ema_model`) where cfg.training.use_ema; only that is read from disk. An encoder's
  trunk is in it twice, under `backbone` and `nets.0`.
* Order of features. .ckpt: that of the payload's own shape_meta. lerobot: state, pictures, environment state.
* Encoders. robomimic 0.2.0 applies the ReLU to a camera's features alone, numbers are concatenated raw. lerobot shares
  one encoder unless use_separate_rgb_encoder_per_camera, and has BatchNorm unless use_group_norm.
* Normalisation. .ckpt: y = x * scale + offset as stored, pictures included. lerobot: what the processor files say;
  before version 0.4 the statistics are among the weights.
* Actions. .ckpt: cfg.task.abs_action says delta or absolute; absolute ones are position, the first two rows of the
  rotation matrix and gripper, 10 numbers an arm. lerobot does not say what its actions mean.
* The action to execute now is number n_obs_steps - 1, except n_obs_steps in the low-dimensional U-Net where
  oa_step_convention is off, and 0 where pred_action_steps_only.
* Not read: conditioning by inpainting or locally, the plain image policy (another encoder), latency steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.untrusted import reading

from ..torch.checkpoints import read_json, read_tensors
from ..torch.lerobot_steps import steps_of
from ..torch.normalisation import Affine
from ..torch.restricted_pickle import Archive, Stored
from .model import Input, Schedule, Sizes, VisionSizes
from .networks import TransformerSizes, UnetSizes

READABLE = (
    "an official .ckpt of a hybrid-image or low-dimensional policy, lerobot's diffusion directory, or a directory that "
    "vla-bench wrote"
)
LEROBOT_EPS = 1e-8
Convention = Literal["suite", "robosuite_delta", "robosuite_absolute"]


@dataclass(frozen=True)
class Reading:
    """How the model wants to be fed and understood; part of our config.json."""

    convention: Convention
    """What its actions mean; suite where the checkpoint does not say."""
    first: int
    """Which of the predicted actions is the one to execute now."""
    execute: int
    """Ta: actions its authors execute before they ask again."""
    numbers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For every vector input: the observations that it is made of, by robomimic's names; `state` is all of it."""
    views: tuple[str, ...] = ()
    """The suite's camera for every picture; empty: by the pictures' names."""
    mirror: bool = False
    """Pictures are mirrored: LIBERO's raw images turned by 180 degrees are upright ones mirrored."""


@dataclass(frozen=True)
class Official:
    """One official checkpoint in this project's terms."""

    sizes: Sizes
    schedule: Schedule
    reading: Reading
    maps: Mapping[str, Affine]
    """From what is observed to what the model reads, by input; and `action`."""
    tensors: Mapping[str, Tensor]
    """Under our names."""
    about: str
    """One line: what it is and what was assumed of it."""


def read_official(path: Path) -> Official:
    """The checkpoint there. Raises UsageError for anything else."""
    if path.is_dir():
        return _read_lerobot(path)
    return _read_ckpt(path)


# real-stanford/diffusion_policy

_UNET, _TRANSFORMER = "DiffusionUnet", "DiffusionTransformer"
_TARGETS = tuple(kind + seen for kind in (_UNET, _TRANSFORMER) for seen in ("HybridImagePolicy", "LowdimPolicy"))
_IGNORED = re.compile(
    r"^(mask_generator\.|model\.|obs_encoder\.)?_dummy_variable$|\.input_stats\.|^obs_encoder\.obs_nets\.[^.]+\.nets\.[01]\."
)


def _read_ckpt(path: Path) -> Official:
    with Archive(path) as archive:
        payload = archive.payload()
        cfg = _part(payload, "cfg", path)
        config = Settings(path, cfg)
        which = "ema_model" if config.get("training", "use_ema") else "model"
        stored = _part(_part(payload, "state_dicts", path), which, path)
        if not all(isinstance(tensor, Stored) for tensor in stored.values()):
            raise UsageError(f"{path} should hold nothing but tensors in state_dicts.{which}.")
        tensors = {name: tensor.load() for name, tensor in stored.items() if not _IGNORED.search(name)}
    sizes, how = _ckpt_sizes(config)
    maps = {key: _stored_map(tensors, key, path) for key in (*(one.name for one in sizes.inputs), "action")}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("normalizer.")}
    about = f"official {config.policy_class}, {which}"
    return Official(sizes, _ckpt_schedule(config), how, maps, official_names(weights, sizes), about)


def _part(payload: Any, key: str, path: Path) -> Any:
    found = payload.get(key) if isinstance(payload, dict) else None
    if not isinstance(found, dict):
        raise UsageError(f"{path} has no {key}, which a checkpoint of Diffusion Policy has; it reads {READABLE}.")
    return found


@dataclass(frozen=True)
class Settings:
    """The configuration in a .ckpt, asked with a sentence for whatever is not there or not supported."""

    path: Path
    values: Mapping[str, Any]

    def get(self, *keys: str, default: Any = ...) -> Any:
        """The value at that place. Raises UsageError when it is absent without a default, or was left unresolved."""
        value: Any = self.values
        for key in keys:
            value = value.get(key, ...) if isinstance(value, Mapping) else ...
        value = default if value is ... else value
        if value is ... or (isinstance(value, str) and ("${" in value or value == "???")):
            said = "does not say" if value is ... else f"has {value!r}, unresolved, for"
            raise UsageError(f"The configuration in {self.path} {said} {'.'.join(keys)}; expected a value.")
        return value

    def need(self, keys: tuple[str, ...], allowed: Iterable[Any], default: Any = ...) -> Any:
        """The value at that place. Raises UsageError unless it is one of those allowed."""
        value, known = self.get(*keys, default=default), tuple(allowed)
        if value not in known:
            listing = " or ".join(map(repr, known))
            raise UsageError(f"The configuration in {self.path} has {'.'.join(keys)} {value!r}; supported: {listing}.")
        return value

    @property
    def policy_class(self) -> str:
        return str(self.get("policy", "_target_")).rpartition(".")[2]


def _ckpt_sizes(config: Settings) -> tuple[Sizes, Reading]:
    if config.policy_class not in _TARGETS:
        raise UsageError(f"{config.path} is a {config.policy_class}; supported: {', '.join(_TARGETS)}.")
    config.need(("n_latency_steps",), (0,), default=0)
    hybrid = config.policy_class.endswith("HybridImagePolicy")
    history, horizon = config.get("policy", "n_obs_steps"), config.get("policy", "horizon")
    first, execute = history - 1, config.get("policy", "n_action_steps")
    if config.policy_class == "DiffusionUnetLowdimPolicy" and not config.get(
        "policy", "oa_step_convention", default=False
    ):
        first = history
    if config.get("policy", "pred_action_steps_only", default=False):
        first, horizon = 0, execute
    inputs, numbers, action_dim = _ckpt_hybrid(config) if hybrid else _ckpt_low_dim(config)
    sizes = Sizes(
        inputs=inputs,
        action_dim=action_dim,
        history=history,
        horizon=horizon,
        network=_ckpt_network(config, ("policy",) if hybrid else ("policy", "model")),
        vision=_ckpt_vision(config) if hybrid else VisionSizes(),
    )
    absolute = config.get("task", "abs_action", default=False)
    convention: Convention = "robosuite_absolute" if absolute else "robosuite_delta"
    return sizes, Reading(convention, first, execute, numbers)


def _ckpt_hybrid(config: Settings) -> tuple[tuple[Input, ...], dict[str, tuple[str, ...]], int]:
    observed = config.get("policy", "shape_meta", "obs")
    inputs = tuple(Input(name, tuple(one["shape"])) for name, one in observed.items())
    numbers: dict[str, tuple[str, ...]] = {one.name: (one.name,) for one in inputs if not one.is_picture}
    return inputs, numbers, config.get("policy", "shape_meta", "action", "shape")[0]


def _ckpt_low_dim(config: Settings) -> tuple[tuple[Input, ...], dict[str, tuple[str, ...]], int]:
    keys = config.get("task", "obs_keys", default=config.get("task", "dataset", "obs_keys", default=("object",)))
    inputs = (Input("obs", (config.get("policy", "obs_dim"),)),)
    return inputs, {"obs": tuple(keys)}, config.get("policy", "action_dim")


def _ckpt_network(config: Settings, at: tuple[str, ...]) -> UnetSizes | TransformerSizes:
    if config.policy_class.startswith(_UNET):
        config.need(("policy", "obs_as_global_cond"), (True,), default=len(at) == 1)
        return UnetSizes(
            dims=tuple(config.get(*at, "down_dims", default=(256, 512, 1024))),
            step_dim=config.get(*at, "diffusion_step_embed_dim", default=256),
            kernel=config.get(*at, "kernel_size", default=5 if len(at) == 1 else 3),
            groups=config.get(*at, "n_groups", default=8),
            scale=config.get(*at, "cond_predict_scale", default=len(at) == 1),
        )
    config.need(("policy", "obs_as_cond"), (True,), default=len(at) == 1)
    config.need((*at, "time_as_cond"), (True,), default=True)
    config.need(("policy", "pred_action_steps_only"), (False,), default=False)
    return TransformerSizes(
        width=config.get(*at, "n_emb"),
        layers=config.get(*at, "n_layer"),
        heads=config.get(*at, "n_head"),
        condition_layers=config.get(*at, "n_cond_layers", default=0),
        causal=config.get(*at, "causal_attn", default=len(at) == 1),
        dropout_embedding=config.get(*at, "p_drop_emb", default=0.0),
        dropout=config.get(*at, "p_drop_attn", default=0.3),
    )


def _ckpt_vision(config: Settings) -> VisionSizes:
    crop = config.get("policy", "crop_shape", default=(76, 76))
    if crop is not None:
        config.need(("policy", "eval_fixed_crop"), (True,), default=False)
    group = config.get("policy", "obs_encoder_group_norm", default=False)
    return VisionSizes(crop=None if crop is None else (crop[0], crop[1]), norm="group" if group else "batch")


def _ckpt_schedule(config: Settings) -> Schedule:
    at = ("policy", "noise_scheduler")
    name = str(config.get(*at, "_target_")).rpartition(".")[2]
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise UsageError(f"{config.path} samples with {name}; supported: DDPMScheduler or DDIMScheduler.")
    config.need((*at, "variance_type"), ("fixed_small",), default="fixed_small")
    config.need((*at, "set_alpha_to_one"), (True,), default=True)
    config.need((*at, "steps_offset"), (0,), default=0)
    train_steps = config.get(*at, "num_train_timesteps")
    return Schedule(
        kind="ddpm" if name == "DDPMScheduler" else "ddim",
        steps=config.get("policy", "num_inference_steps", default=None) or train_steps,
        train_steps=train_steps,
        beta_start=config.get(*at, "beta_start"),
        beta_end=config.get(*at, "beta_end"),
        beta_schedule=config.get(*at, "beta_schedule"),
        clip=1.0 if config.get(*at, "clip_sample", default=True) else None,
        prediction=config.need((*at, "prediction_type"), ("epsilon", "sample"), default="epsilon"),
    )


def _stored_map(tensors: Mapping[str, Tensor], key: str, path: Path) -> Affine:
    try:
        scale, offset = (tensors[f"normalizer.params_dict.{key}.{part}"] for part in ("scale", "offset"))
    except KeyError as error:
        raise UsageError(f"{path} has no {error.args[0]}, without which {key} cannot be normalised.") from None
    return Affine(scale.double().numpy(), offset.double().numpy())


def official_names(tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The tensors of an official policy, less its normaliser and duplicates, under our names; unknown keep theirs."""
    renamed: dict[str, Tensor] = {}
    grids: dict[str, dict[str, Tensor]] = {}
    cameras = {one.name: f"encoders.{i}" for i, one in enumerate(sizes.pictures)}
    for name, tensor in tensors.items():
        camera, _, rest = name.removeprefix("obs_encoder.obs_nets.").partition(".")
        if name.startswith("obs_encoder.obs_nets.") and camera in cameras:
            if rest in ("pool.pos_x", "pool.pos_y"):
                grids.setdefault(camera, {})[rest] = tensor
            else:
                inside = rest.replace("backbone.nets.", "backbone.").replace("nets.3.", "out.")
                renamed[f"{cameras[camera]}.{inside}"] = tensor
        elif name.startswith("model."):
            moved = re.sub(r"^model\.((down|up)_modules\.\d+\.2)\.conv\.", r"network.\1.", name)
            renamed[re.sub(r"^model\.", "network.", moved)] = tensor
        else:
            renamed[name] = tensor
    for camera, axes in grids.items():
        if len(axes) == 2:
            grid = torch.stack([axes["pool.pos_x"].flatten(), axes["pool.pos_y"].flatten()], dim=1)
            renamed[f"{cameras[camera]}.pool.grid"] = grid
    return renamed


# lerobot

_LEROBOT_NOTE = "lerobot diffusion, which does not say what its actions mean: they are taken to be the suite's"


def _read_lerobot(folder: Path) -> Official:
    config = read_json(folder / "config.json")
    if config.get("type") != "diffusion":
        kind = config.get("type") or config.get("model_type") or "unknown"
        raise UsageError(f"{folder / 'config.json'} is of a checkpoint of type {kind!r}; it reads {READABLE}.")
    stored = read_tensors(folder)
    with reading(folder / "config.json", "a whole diffusion configuration"):
        (sizes, how), schedule = _lerobot_sizes(folder, config), _lerobot_schedule(config)
    maps = _lerobot_maps(folder, config, stored, sizes)
    return Official(sizes, schedule, how, maps, lerobot_names(stored, sizes), _LEROBOT_NOTE)


def _lerobot_sizes(folder: Path, config: Mapping[str, Any]) -> tuple[Sizes, Reading]:
    if config["vision_backbone"] != "resnet18":
        raise UsageError(f"{folder} has a {config['vision_backbone']} for vision; only resnet18 is supported.")
    kinds = {name: (one["type"], tuple(one["shape"])) for name, one in config["input_features"].items()}
    ordered = [name for kind in ("STATE", "VISUAL", "ENV") for name, one in kinds.items() if one[0] == kind]
    names = {"STATE": ("state",), "ENV": ("environment_state",)}
    sizes = Sizes(
        inputs=tuple(Input(name, kinds[name][1]) for name in ordered),
        action_dim=config["output_features"]["action"]["shape"][0],
        history=config["n_obs_steps"],
        horizon=config["horizon"],
        network=UnetSizes(
            dims=tuple(config["down_dims"]),
            step_dim=config["diffusion_step_embed_dim"],
            kernel=config["kernel_size"],
            groups=config["n_groups"],
            scale=config["use_film_scale_modulation"],
        ),
        vision=_lerobot_vision(config),
    )
    numbers = {name: names[kinds[name][0]] for name in ordered if kinds[name][0] in names}
    return sizes, Reading("suite", sizes.history - 1, config["n_action_steps"], numbers)


def _lerobot_vision(config: Mapping[str, Any]) -> VisionSizes:
    """Where there is a resize, crop_ratio decides the crop and not crop_shape, as in lerobot's own constructor."""
    resize, crop, ratio = config.get("resize_shape"), config.get("crop_shape"), config.get("crop_ratio", 1.0)
    if resize is not None:
        crop = [int(side * ratio) for side in resize] if ratio < 1 else None
    return VisionSizes(
        resize=None if resize is None else (resize[0], resize[1]),
        crop=None if crop is None else (crop[0], crop[1]),
        norm="group" if config["use_group_norm"] else "batch",
        keypoints=config["spatial_softmax_num_keypoints"],
        shared=not config.get("use_separate_rgb_encoder_per_camera", False),
    )


def _lerobot_schedule(config: Mapping[str, Any]) -> Schedule:
    kinds: dict[str, Literal["ddpm", "ddim"]] = {"DDPM": "ddpm", "DDIM": "ddim"}
    return Schedule(
        kind=kinds[config["noise_scheduler_type"]],
        steps=config.get("num_inference_steps") or config["num_train_timesteps"],
        train_steps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        clip=config["clip_sample_range"] if config["clip_sample"] else None,
        prediction=config["prediction_type"],
    )


def lerobot_names(tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The tensors of lerobot's model under our names, statistics left out; unknown ones keep theirs."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(("normalize_", "unnormalize_")):
            continue
        ours = re.sub(r"^diffusion\.rgb_encoder\.(?=\D)", "encoders.0.", name)
        ours = re.sub(r"^diffusion\.rgb_encoder\.", "encoders.", ours).replace("pool.pos_grid", "pool.grid")
        ours = re.sub(r"^diffusion\.unet\.", "network.", ours)
        renamed[re.sub(r"\.conv([12])\.block\.", lambda found: f".blocks.{int(found[1]) - 1}.block.", ours)] = tensor
    encoders = 1 if sizes.vision.shared else len(sizes.pictures)
    return renamed | {f"encoders.{i}.pool.temperature": torch.ones(1) for i in range(encoders if sizes.pictures else 0)}


def _lerobot_maps(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor], sizes: Sizes
) -> dict[str, Affine]:
    names = [one.name for one in sizes.inputs]
    pre, post = (_normaliser(folder, f"policy_{side}processor.json", kind) for side, kind in _NORMALISERS)
    modes = pre.modes or config.get("normalization_mapping", {})
    types = {name: one["type"] for name, one in config["input_features"].items()}
    maps = {}
    for name in names:
        old = _beginning(stored, f"normalize_inputs.buffer_{name.replace('.', '_')}.")
        maps[name] = _lerobot_map(folder, name, _mode(modes, types[name]), pre.of(name) or old, pre.eps)
    old = _beginning(stored, "unnormalize_outputs.buffer_action.")
    mode = _mode(post.modes or modes, "ACTION")
    return maps | {"action": _lerobot_map(folder, "action", mode, post.of("action") or old, post.eps)}


_NORMALISERS = (("pre", "normalizer_processor"), ("post", "unnormalizer_processor"))


@dataclass(frozen=True)
class Normaliser:
    """A normalising step of a lerobot processor; empty where there is no such file, as before version 0.4."""

    modes: Mapping[str, str] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    eps: float = LEROBOT_EPS

    def of(self, feature: str) -> dict[str, Tensor]:
        return _beginning(self.statistics, f"{feature}.")


def _normaliser(folder: Path, file: str, kind: str) -> Normaliser:
    if not (folder / file).is_file():
        return Normaliser()
    step = steps_of(folder / file).get(kind)
    if step is None:
        raise UsageError(f"{folder / file} has no {kind}; is it a whole checkpoint?")
    state = str(step.get("state_file", ""))
    if Path(state).name != state:
        raise UsageError(f"{folder / file} names the state file {state!r}, which is not a file beside it.")
    said = step.get("config", {})
    statistics = read_tensors(folder / state) if state else {}
    return Normaliser(said.get("norm_map", {}), statistics, said.get("eps", LEROBOT_EPS))


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


_STATISTICS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
    "IDENTITY": (),
}


def _mode(modes: Mapping[str, str], kind: str) -> str | None:
    """What lerobot does with features of that kind: nothing where the mapping leaves it out; None without a mapping."""
    return modes.get(kind, "IDENTITY") if modes else None


def _lerobot_map(folder: Path, name: str, mode: str | None, statistics: Mapping[str, Tensor], eps: float) -> Affine:
    """One of lerobot's modes. Raises UsageError where lerobot would silently not normalise."""
    if mode not in _STATISTICS:
        raise UsageError(f"{folder} normalises {name} by {mode!r}; supported: {', '.join(_STATISTICS)}.")
    if mode == "IDENTITY":
        return Affine.identity(0)
    if absent := [one for one in _STATISTICS[mode] if one not in statistics]:
        raise UsageError(f"{folder} has no {' and no '.join(absent)} of {name}, which {mode} needs.")
    low, high = (np.asarray(statistics[one].double().flatten()) for one in _STATISTICS[mode])
    if mode == "MEAN_STD":
        return Affine.from_mean_std(low, high, eps)
    return Affine.from_range(low, np.where(high == low, low + eps, high), 0.0)


def with_steps(schedule: Schedule, kind: Literal["checkpoint", "ddpm", "ddim"], steps: int | None) -> Schedule:
    """That schedule with another sampler or number of steps. Raises UsageError for a number that cannot be."""
    if steps is not None and not 1 <= steps <= schedule.train_steps:
        raise UsageError(f"steps must be from 1 to the {schedule.train_steps} trained with, got {steps}.")
    chosen = schedule.kind if kind == "checkpoint" else kind
    return replace(schedule, kind=chosen, steps=schedule.steps if steps is None else steps)
