"""Diffusion Policy (arXiv:2303.04137): encoders, noise-predicting network, training loss and sampling.

The network predicts the noise in `horizon` normalised actions, the first of which belongs to the oldest of the
`history` observations; action `history - 1` is the one to execute now. Schedulers are those of `diffusers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss, relu

from ..torch.residual import Norm, ResidualBlock, norm_layer
from .networks import Transformer, TransformerSizes, Unet, UnetSizes

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy actions (B, horizon, A), step (B,), features (B, history, F)) -> prediction like the actions."""


@dataclass(frozen=True)
class Input:
    """One thing that is observed: a picture (3, height, width) or a vector (D,)."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_picture(self) -> bool:
        return len(self.shape) == 3


@dataclass(frozen=True)
class VisionSizes:
    """From picture to features. Defaults are ResNet18 as the official hybrid configurations have it."""

    resize: tuple[int, int] | None = None
    """Height and width pictures are brought to first; None leaves them."""
    crop: tuple[int, int] | None = (76, 76)
    """Height and width cut out: anywhere in training, the centre otherwise."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of the four stages of two residual blocks."""
    norm: Norm = "group"
    """GroupNorm with 16 channels a group, or BatchNorm as torchvision has it."""
    keypoints: int = 32
    strides: tuple[int, ...] = (1, 2, 2, 2)
    """Of the stages."""
    shared: bool = False
    """One encoder for all cameras instead of one each."""


@dataclass(frozen=True)
class Sizes:
    """Everything that decides the model's parameters."""

    inputs: tuple[Input, ...]
    """In the order of their features."""
    action_dim: int
    history: int
    """To: observed control steps, now included."""
    horizon: int
    """Tp: predicted actions."""
    network: UnetSizes | TransformerSizes = field(default_factory=UnetSizes)
    vision: VisionSizes = field(default_factory=VisionSizes)

    @property
    def pictures(self) -> tuple[Input, ...]:
        return tuple(one for one in self.inputs if one.is_picture)

    @property
    def feature_dim(self) -> int:
        """Features per observed control step."""
        return sum(2 * self.vision.keypoints if one.is_picture else one.shape[0] for one in self.inputs)

    def as_json(self) -> dict[str, Any]:
        kind = "unet" if isinstance(self.network, UnetSizes) else "transformer"
        return {**asdict(self), "network": {"kind": kind, **asdict(self.network)}}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Sizes:
        network = dict(given["network"])
        kind = {"unet": UnetSizes, "transformer": TransformerSizes}[network.pop("kind")]
        return cls(
            inputs=tuple(Input(one["name"], tuple(one["shape"])) for one in given["inputs"]),
            action_dim=given["action_dim"],
            history=given["history"],
            horizon=given["horizon"],
            network=kind(**_tuples(network)),
            vision=VisionSizes(**_tuples(given["vision"])),
        )


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


@dataclass(frozen=True)
class Schedule:
    """The noise schedule trained with, and how to sample. Defaults are the official simulation configurations."""

    kind: Literal["ddpm", "ddim"] = "ddpm"
    steps: int = 100
    """Denoising steps per inference."""
    train_steps: int = 100
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "squaredcos_cap_v2"
    clip: float | None = 1.0
    """Bound of the clean actions estimated at every step."""
    prediction: Literal["epsilon", "sample"] = "epsilon"

    @cache  # noqa: B019  (few schedules, and making one costs as much as a denoising step)
    def scheduler(self) -> DDPMScheduler | DDIMScheduler:
        """diffusers' own, ready to sample with `steps` steps."""
        shared: dict[str, Any] = {
            "num_train_timesteps": self.train_steps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "clip_sample": self.clip is not None,
            "clip_sample_range": self.clip or 1.0,
            "prediction_type": self.prediction,
        }
        made: DDPMScheduler | DDIMScheduler = (DDPMScheduler if self.kind == "ddpm" else DDIMScheduler)(**shared)
        made.set_timesteps(self.steps)
        return made


def trunk(widths: Sequence[int], norm: Norm, strides: Sequence[int] = (1, 2, 2, 2)) -> nn.Sequential:
    """torchvision's resnet18 without its last two modules, at any widths, its parameter names included.

    (B, 3, h, w) -> (B, widths[-1], h / 32, w / 32) with the usual strides, sides rounded up.
    """

    def stage(inner: int, outer: int, stride: int) -> nn.Sequential:
        return nn.Sequential(ResidualBlock(inner, outer, stride, norm), ResidualBlock(outer, outer, 1, norm))

    first = widths[0]
    return nn.Sequential(
        nn.Conv2d(3, first, 7, 2, 3, bias=False),
        norm_layer(first, norm),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *(stage(*pair, stride) for pair, stride in zip(pairwise((first, *widths)), strides, strict=True)),
    )


class SpatialSoftmax(nn.Module):
    """Mean position of each of K learned heat maps: (B, C, h, w) -> (B, K, 2), x then y, corners at -1 and 1."""

    grid: Tensor
    temperature: Tensor

    def __init__(self, channels: int, keypoints: int, height: int, width: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([x.flatten(), y.flatten()], dim=1))
        self.register_buffer("temperature", torch.ones(1))

    def forward(self, maps: Tensor) -> Tensor:
        weights: Tensor = (self.nets(maps).flatten(2) / self.temperature).softmax(dim=-1)
        return weights @ self.grid


class Encoder(nn.Module):
    """Normalised pictures (B, 3, H, W) -> features (B, 2 * keypoints)."""

    def __init__(self, size: tuple[int, int], sizes: VisionSizes) -> None:
        super().__init__()
        seen = sizes.crop or sizes.resize or size
        self.backbone = trunk(sizes.widths, sizes.norm, sizes.strides)
        smaller = 4 * math.prod(sizes.strides)
        self.pool = SpatialSoftmax(sizes.widths[-1], sizes.keypoints, *(-(-side // smaller) for side in seen))
        self.out = nn.Linear(2 * sizes.keypoints, 2 * sizes.keypoints)
        self.sizes = sizes

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        points = self.pool(self.backbone(self.cropped(images, generator)))
        return relu(self.out(points.flatten(1)))

    def cropped(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """The pictures, resized and cut: each at a place drawn from `generator`, or all at the centre."""
        if self.sizes.resize is not None:
            images = resized(images, self.sizes.resize)
        if self.sizes.crop is None:
            return images
        cut = centre_crop if generator is None else random_crop(generator)
        return cut(images, self.sizes.crop)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, *size), bilinear with antialiasing, as torchvision's `Resize`."""
    if tuple(images.shape[-2:]) == size:
        return images
    return interpolate(images.float(), list(size), mode="bilinear", antialias=True).to(images.dtype)


def centre_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, *size); half a pixel rounds to the even one, as in torchvision's `center_crop`."""
    top, left = (round((have - want) / 2) for have, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def random_crop(generator: torch.Generator) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """Like `centre_crop`, but each picture cut at a place of its own, uniform over all that are possible."""

    def cut(images: Tensor, size: tuple[int, int]) -> Tensor:
        room = [have - want + 1 for have, want in zip(images.shape[-2:], size, strict=True)]
        places = [torch.randint(places, (len(images),), generator=generator).tolist() for places in room]
        corners = zip(images, *places, strict=True)
        return torch.stack([one[:, top : top + size[0], left : left + size[1]] for one, top, left in corners])

    return cut


class DiffusionModel(nn.Module):
    """Encoders and network; numbers in and out are normalised."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        seen = sizes.pictures[:1] if sizes.vision.shared else sizes.pictures
        self.encoders = nn.ModuleList(Encoder((one.shape[1], one.shape[2]), sizes.vision) for one in seen)
        if isinstance(sizes.network, UnetSizes):
            self.network: nn.Module = Unet(sizes.action_dim, sizes.feature_dim, sizes.history, sizes.network)
        else:
            self.network = Transformer(sizes.action_dim, sizes.feature_dim, sizes.history, sizes.horizon, sizes.network)

    def features(self, observed: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Pictures (B, history, 3, H, W) and vectors (B, history, D) by name -> (B, history, F).

        With a generator crops are random, as in training.
        """
        encoders = iter(list(self.encoders) * (len(self.sizes.pictures) if self.sizes.vision.shared else 1))
        parts = [
            self._encoded(next(encoders), observed[one.name], generator) if one.is_picture else observed[one.name]
            for one in self.sizes.inputs
        ]
        return torch.cat(parts, dim=-1)

    def _encoded(self, encoder: nn.Module, images: Tensor, generator: torch.Generator | None) -> Tensor:
        encoded: Tensor = encoder(images.flatten(0, 1), generator)
        return encoded.view(*images.shape[:2], -1)

    def forward(self, noisy: Tensor, step: Tensor, features: Tensor) -> Tensor:
        """(B, horizon, A), (B,), (B, history, F) -> predicted noise, or clean actions, (B, horizon, A)."""
        predicted: Tensor = self.network(noisy, step, features)
        return predicted


def diffusion_loss(
    model: Denoiser, actions: Tensor, features: Tensor, schedule: Schedule, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the prediction at one random step per sample (equation 5 of the paper).

    `actions` are normalised, (B, horizon, A); noise and steps come from `generator`, a CPU one.
    """
    noise = torch.randn(actions.shape, generator=generator).to(actions)
    step = torch.randint(schedule.train_steps, (len(actions),), generator=generator).to(actions.device)
    noisy = schedule.scheduler().add_noise(actions, noise, cast(torch.IntTensor, step))
    return mse_loss(model(noisy, step, features), noise if schedule.prediction == "epsilon" else actions)


def sample(
    model: Denoiser,
    features: Tensor,
    shape: tuple[int, int],
    schedule: Schedule,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Normalised actions (B, horizon, A), float32, of `shape` (horizon, A).

    Row b draws its first noise and that of every DDPM step from `generators[b]` alone, so it does not depend on the
    others. The network runs in the dtype of `features`, the schedule in float32.
    """
    scheduler = schedule.scheduler()
    sampled = torch.stack([torch.randn(*shape, generator=one) for one in generators]).to(features.device)
    for step in scheduler.timesteps:
        predicted = model(sampled.to(features.dtype), step.to(features.device).expand(len(sampled)), features)
        noise: dict[str, Any] = {"generator": list(generators)} if schedule.kind == "ddpm" else {}
        (sampled, *_) = scheduler.step(predicted.float(), step, sampled, return_dict=False, **noise)
    return sampled
