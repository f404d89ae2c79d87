"""Diffusion Policy (arXiv:2303.04137): ResNet18 encoders, then a U-Net or a Transformer that denoises actions.

What is not obvious:

* It looks back: To = 2 control steps in all official image configurations (`PolicySpec.history`).
* It predicts Tp actions from the time of the oldest observation on. The chunk is what remains from now on,
  Tp - (To - 1) or 15 of 16; the paper executes Ta = 8 of them, so `--execute 8` reproduces it.
* Official pictures are rendered at 84 x 84; others are brought to the trained size, bilinear with antialiasing.
  `--suite-args resolution=84` renders them as the training data was.
* Pictures of robomimic's data are upright, those of lerobot's LIBERO data are mirrored (turned by 180 degrees as raw
  ones): option `mirror`, on for lerobot checkpoints on LIBERO suites.
* Official robomimic checkpoints with absolute actions (all `*_abs` tasks) load, and answer absolute poses; a suite with
  delta actions refuses them. lerobot's say nothing of their actions, which are taken to be the suite's.
* Size tiny reads pictures at 96 x 96 and crops 84 x 84, those of 64 x 64 as they are and crops 58 x 58, and samples by
  DDIM in 8 steps, predicting the clean actions.
* Training as upstream: padded actions count in the loss, crops at random; but as many noise levels per sample as the
  recipe's `draws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.training.learning import Scales
from vla_bench.types import ActionSpec, Camera, Float32, Observation, PolicySpec, Suite
from vla_bench.untrusted import reading

from ..torch.checkpoints import is_ours, read_ours, sha256_of
from ..torch.conventions import LIBERO_ACTION
from ..torch.folders import insist_on_checkpoint
from ..torch.normalisation import Affine
from ..torch.plausible import built, insist_on_sizes
from ..torch.policy import (
    Acted,
    Batching,
    Dtype,
    Size,
    Stopwatch,
    TorchPolicy,
    need_weights,
    settings,
    untrained,
)
from ..torch.reads import noting_reads
from ..torch.training import Batch
from .formats import Official, Reading, read_official, with_steps
from .model import (
    DiffusionModel,
    Input,
    Schedule,
    Sizes,
    VisionSizes,
    diffusion_loss,
    resized,
    sample,
)
from .networks import TransformerSizes, UnetSizes
from .robomimic import (
    ABSOLUTE_ARM,
    absolute_action,
    axis_angle_actions,
    camera_of,
    observed,
)

NAME = "diffusion_policy"
TINY_NETWORKS: Mapping[str, UnetSizes | TransformerSizes] = {
    "unet": UnetSizes(dims=(32, 64), step_dim=64),
    "transformer": TransformerSizes(96, 4, 4, dropout=0.0),
}
TINY_VISION = VisionSizes(resize=(96, 96), crop=(84, 84), widths=(16, 32, 64, 128))
SMALL_PICTURES = (64, 64)
SMALL_VISION = VisionSizes(crop=(58, 58), widths=(16, 32, 64, 128), strides=(1, 2, 2, 1))
"""A crop of 0.9 as in the paper, and heat maps of 4 x 4 instead of the 2 x 2 that four halvings would leave."""
TINY_SCHEDULE = Schedule(kind="ddim", steps=8, prediction="sample")
"""As the official DDIM configurations, but for what is predicted: the clean actions, upstream's other choice. Where
there is most noise, noise says least of the observation, and a small network that predicts it learns much slower.
"""
TO_SYMMETRIC = Affine(np.array([2.0]), np.array([-1.0]))
"""[0, 1] to [-1, 1], for pictures."""

Network = Literal["auto", "unet", "transformer"]


class DiffusionPolicy(TorchPolicy):
    """Diffusion Policy: denoises a chunk of actions from two control steps of pictures and state."""

    model: DiffusionModel

    @noting_reads()
    def __init__(
        self,
        suite: Suite,
        checkpoint: str | None = None,
        *,
        size: Size = "checkpoint",
        weights_seed: int = 0,
        network: Network = "auto",
        scheduler: Literal["checkpoint", "ddpm", "ddim"] = "checkpoint",
        steps: int | None = None,
        cameras: str = "",
        mirror: bool | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        compile: bool = False,
        batching: Batching = "each",
    ) -> None:
        """Load it.

        Args:
            suite: gives cameras, state and actions.
            checkpoint: an official .ckpt, lerobot's diffusion directory, or one of ours.
            size: tiny for untrained weights, built for the suite.
            weights_seed: of tiny's weights.
            network: unet or transformer; auto is the checkpoint's, and unet for tiny.
            scheduler: ddpm or ddim; the checkpoint's unless said.
            steps: denoising steps per inference; the checkpoint's unless said.
            cameras: the suite's cameras in the order of the checkpoint's pictures, joined by commas; else by name.
            mirror: whether pictures are mirrored; on for lerobot checkpoints on LIBERO unless said.
            device: auto, cpu or cuda.
            dtype: of weights and features; the schedule is always float32.
            compile: compile the network.
            batching: each for answers that do not depend on the batch, together for speed.
        """
        need_weights(NAME, checkpoint, size)
        running = settings(device, dtype, compile, batching)
        source = _tiny(suite, network, weights_seed) if checkpoint is None else _read(Path(checkpoint), suite)
        _check_network(source.sizes, network)
        self.schedule = with_steps(source.schedule, scheduler, steps)
        self.sizes, self.maps = source.sizes, source.maps
        self.reading = replace(
            source.reading,
            views=_views(source, cameras, suite),
            mirror=source.reading.mirror if mirror is None else mirror,
        )
        self._numbers = {name: observed(parts, suite) for name, parts in self.reading.numbers.items()}
        _check_widths(self.sizes, self._numbers, suite, checkpoint)
        action = _action_spec(source, suite)
        with reading(checkpoint or NAME, "normalisation"):
            for one in (*self.sizes.inputs, Input("action", (self.sizes.action_dim,))):
                self.maps[one.name].within(one.shape[0], one.name)
        views = tuple(_camera(suite, name) for name in dict.fromkeys(self.reading.views))
        model = built(lambda: DiffusionModel(self.sizes), self.sizes, source.tensors, checkpoint or NAME)
        spec = PolicySpec(
            name=NAME,
            action=action,
            cameras=views,
            state=suite.state if self._numbers else (),
            history=self.sizes.history,
            chunk=self.sizes.horizon - self.reading.first,
            execute=self.reading.execute,
            checkpoint=sha256_of(checkpoint) if checkpoint else "",
            deterministic=running.batching == "each",
            note=source.about if checkpoint else untrained(model),
        )
        super().__init__(spec, model.to(running.device, running.dtype), running)
        self._denoise = running.compiled(self.model.forward)

    def act(self, observations: Sequence[Observation], watch: Stopwatch) -> Acted:
        generators = [torch.Generator().manual_seed(one.seed) for one in observations]
        with watch.stage("vision"):
            features = self.model.features(self._observed(*_looked_back(observations, self.sizes.history)))
        with watch.stage("denoise"):
            shape = self.sizes.horizon, self.sizes.action_dim
            sampled = sample(self._denoise, features, shape, self.schedule, generators)
        with watch.stage("post"):
            actions = self.maps["action"].invert(sampled[:, self.reading.first :].cpu().numpy())
            if self.reading.convention == "robosuite_absolute":
                actions = axis_angle_actions(actions)
        return Acted(actions)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared error of what is predicted, noise or actions. `batch.actions` are the horizon's, from the oldest
        observation on, or the chunk's, from now on: then the first stands for those before it, as upstream pads the
        start of an episode.
        """
        features = self.model.features(self._observed(batch.images, batch.state.cpu().numpy()), generator)
        actions = torch.from_numpy(self.maps["action"].apply(self._whole(batch.actions).cpu().numpy())).to(features)
        actions, features = (tensor.repeat(self.draws, 1, 1) for tensor in (actions, features))
        return {"loss": diffusion_loss(self._denoise, actions, features, self.schedule, generator)}

    def normalise(self, state: Scales, action: Scales) -> None:
        """Limits to [-1, 1], of the state too, as in the official image configurations."""
        of_data = {
            "state": Affine.of_limits(state.low, state.high),
            "action": Affine.of_limits(action.low, action.high),
        }
        self.maps = {**self.maps, **of_data}

    def saved_config(self) -> dict[str, Any]:
        return {
            "sizes": self.sizes.as_json(),
            "schedule": asdict(self.schedule),
            "reading": asdict(self.reading),
        }

    def saved_normalisation(self) -> dict[str, Affine]:
        return dict(self.maps)

    def _observed(self, images: Mapping[str, Tensor], state: Float32) -> dict[str, Tensor]:
        """What the model reads: pictures (B, T, 3, h, w) and numbers (B, T, D), normalised, on its device."""
        place, views = next(self.model.parameters()), iter(self.reading.views)
        return {
            one.name: self._picture(images[next(views)].to(place.device), one).to(place.dtype)
            if one.is_picture
            else torch.from_numpy(self.maps[one.name].apply(self._numbers[one.name](state))).to(place)
            for one in self.sizes.inputs
        }

    def _picture(self, pictures: Tensor, wanted: Input) -> Tensor:
        """uint8 (B, T, H, W, 3) -> float32 (B, T, 3, *wanted) in the model's range."""
        channels = pictures.permute(0, 1, 4, 2, 3).flatten(0, 1)
        sized = resized(
            (channels.flip(-1) if self.reading.mirror else channels).float(), (wanted.shape[1], wanted.shape[2])
        )
        map_ = self.maps[wanted.name]
        if len(map_.scale):
            scale, offset = (
                torch.from_numpy(part).to(sized)[:, None, None] for part in (map_.scale / 255, map_.offset)
            )
            sized = sized * scale + offset
        else:
            sized = sized / 255
        return sized.view(*pictures.shape[:2], *sized.shape[1:])

    def _whole(self, actions: Tensor) -> Tensor:
        """(B, horizon or chunk, A) -> (B, horizon, A)."""
        absent = self.sizes.horizon - actions.shape[1]
        if absent not in (0, self.reading.first):
            raise UsageError(
                f"{NAME} learns from {self.sizes.horizon} actions from the oldest observation on, or {self.spec.chunk} "
                f"from now on; got {actions.shape[1]}."
            )
        return torch.cat([actions[:, :1].expand(-1, absent, -1), actions], dim=1)


def _looked_back(observations: Sequence[Observation], history: int) -> tuple[dict[str, Tensor], Float32]:
    """uint8 (B, T, H, W, 3) per camera and states (B, T, S). Raises UsageError where steps are missing."""
    rows = [(*one.earlier, one) for one in observations]
    for row in rows:
        if len(row) != history:
            raise UsageError(
                f"{NAME} looks back on {history} control steps, got an observation with {len(row)}; fill in "
                "Observation.earlier."
            )
    images = {
        name: torch.from_numpy(np.stack([np.stack([step.images[name] for step in row]) for row in rows]))
        for name in observations[0].images
    }
    return images, np.stack([np.stack([step.state for step in row]) for row in rows])


def _tiny(suite: Suite, network: Network, seed: int) -> Official:
    """Random weights for that suite."""
    cameras = suite.cameras[:2]
    inputs = (*(Input(c.name, (3, c.height, c.width)) for c in cameras), Input("state", (len(suite.state),)))
    sides = {(camera.height, camera.width) for camera in cameras}
    sizes = Sizes(
        inputs=inputs,
        action_dim=suite.action.dim,
        history=2,
        horizon=16,
        network=TINY_NETWORKS["unet" if network == "auto" else network],
        vision=SMALL_VISION if sides == {SMALL_PICTURES} else TINY_VISION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = DiffusionModel(sizes).state_dict()
    return Official(
        sizes=sizes,
        schedule=TINY_SCHEDULE,
        reading=Reading("suite", 1, 8, {"state": ("state",)}, tuple(camera.name for camera in cameras)),
        maps={
            **{camera.name: TO_SYMMETRIC for camera in cameras},
            "state": Affine.identity(len(suite.state)),
            "action": Affine.identity(suite.action.dim),
        },
        tensors=tensors,
        about="",
    )


def _read(path: Path, suite: Suite) -> Official:
    """Any checkpoint. Raises UsageError."""
    insist_on_checkpoint(path)
    with reading(path, "a checkpoint of Diffusion Policy"):
        source = _found(path, suite)
        for said in (source.sizes, source.schedule, source.reading):
            insist_on_sizes(said, source.tensors, path)
        source.schedule.scheduler()  # diffusers knows which of its names there are
        return source


def _found(path: Path, suite: Suite) -> Official:
    if path.is_dir() and is_ours(path):
        ours = read_ours(path, NAME)
        how = ours.config["reading"]
        return Official(
            sizes=Sizes.from_json(ours.config["sizes"]),
            schedule=Schedule(**ours.config["schedule"]),
            reading=Reading(
                **{
                    **how,
                    "numbers": {name: tuple(parts) for name, parts in how["numbers"].items()},
                    "views": tuple(how["views"]),
                }
            ),
            maps=ours.normalisation,
            tensors=ours.tensors,
            about="",
        )
    official = read_official(path)
    if official.reading.convention == "suite":
        mirror = suite.name.startswith("libero")
        return replace(official, reading=replace(official.reading, mirror=mirror))
    return official


def _check_network(sizes: Sizes, network: Network) -> None:
    kind = "unet" if isinstance(sizes.network, UnetSizes) else "transformer"
    if network not in ("auto", kind):
        raise UsageError(f"The checkpoint's network is a {kind}, network={network} was asked for; leave it out.")


def _views(source: Official, cameras: str, suite: Suite) -> tuple[str, ...]:
    """The suite's camera for every picture."""
    pictures = [one.name for one in source.sizes.pictures]
    if not cameras:
        return source.reading.views or tuple(camera_of(name, suite) for name in pictures)
    named = tuple(cameras.split(","))
    if len(named) != len(pictures):
        raise UsageError(
            f"cameras should name {len(pictures)}, one for each of {', '.join(pictures)}; got {cameras!r}."
        )
    return named


def _camera(suite: Suite, name: str) -> Camera:
    known = {camera.name: camera for camera in suite.cameras}
    if name not in known:
        raise UsageError(
            f"The checkpoint sees {name!r}; the suite {suite.name!r} has {', '.join(known) or 'no camera'}."
        )
    return known[name]


def _check_widths(sizes: Sizes, numbers: Mapping[str, Any], suite: Suite, checkpoint: str | None) -> None:
    empty = np.zeros((1, len(suite.state)), np.float32)
    for one in sizes.inputs:
        if not one.is_picture and (got := numbers[one.name](empty).shape[-1]) != one.shape[0]:
            raise UsageError(
                f"The checkpoint {checkpoint} reads {one.shape[0]} numbers as {one.name}; "
                f"the suite {suite.name!r} gives {got}."
            )


def _action_spec(source: Official, suite: Suite) -> ActionSpec:
    """What the answers mean; the engine compares it with the suite's."""
    dim = source.sizes.action_dim
    convention = source.reading.convention
    if convention == "robosuite_absolute" and dim % ABSOLUTE_ARM == 0:
        return absolute_action(dim // ABSOLUTE_ARM)
    expected = LIBERO_ACTION if convention == "robosuite_delta" else suite.action
    if dim != expected.dim or convention == "robosuite_absolute":
        raise UsageError(
            f"The checkpoint answers {dim} numbers per action; the suite {suite.name!r} expects {suite.action}."
        )
    return expected
