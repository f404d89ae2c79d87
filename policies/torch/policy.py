"""What the PyTorch policies share: device and dtype, timing by stage, noise by seed, and a way to disk.

A subclass turns observations into tensors and tensors into actions (`act`), and computes its paper's loss (`losses`).

Batching. A batched matrix product may round differently from a single one in the last bit, and a closed loop amplifies
it, so with several workers a run would depend on who happened to share a batch. With batching=each, the default,
observations are answered one by one and the answer is bit-equal whatever the batch; with batching=together they share
one forward pass, which is faster on a GPU, and the policy says `deterministic=False`.

Threads. A small model on a CPU runs on one thread: its products are too small to share, two threads on busy cores wait
for each other (60 times slower was seen), and sums are then the same on machines with other numbers of cores.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from vla_bench.errors import UsageError
from vla_bench.training.learning import Recipe, Scales
from vla_bench.types import ActionChunk, Attention, Camera, Episode, Float32, Observation, PolicySpec, Suite

from .augmentation import box_in_whole, centre
from .checkpoints import Checkpoint, write_ours
from .normalisation import Affine
from .recipes import RECIPES
from .tokens import JsonTokenizer
from .training import Batch, Trainer

SMALL = 20e6
"""Parameters below which a model is not worth a second CPU thread."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Batching = Literal["each", "together"]
Size = Literal["checkpoint", "tiny"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """How a model is run; none of it is part of the checkpoint."""

    device: torch.device
    dtype: torch.dtype
    compile: bool = False
    batching: Batching = "each"

    def compiled(self, function: F) -> F:
        """The function, compiled if that was asked for: with CUDA graphs on a GPU."""
        if not self.compile:
            return function
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return cast(F, torch.compile(function, mode=mode))


def settings(
    device: str = "auto", dtype: Dtype = "auto", compile: bool = False, batching: Batching = "each"
) -> Settings:
    """The settings of these arguments. auto: a GPU if there is one; bfloat16 on it and float32 on a CPU.

    Raises UsageError for a device that is not there.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(wanted)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(f"The device {wanted!r} cannot be used ({said}); use device=cpu, or cuda on a GPU.") from None
    chosen = ("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype
    return Settings(place, getattr(torch, chosen), compile, batching)


class Acted(NamedTuple):
    """A policy's answers to B observations."""

    actions: Float32
    """(B, H, A), as the suite takes them."""
    attention: Sequence[Mapping[str, Attention]] = ()
    """(B,) over the pictures as the model was shown them; empty when not asked for."""


@dataclass
class Stopwatch:
    """Milliseconds per stage; the device is waited for at both ends of each."""

    device: torch.device
    stages: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.stages[name] = self.stages.get(name, 0.0) + 1e3 * (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TorchPolicy:
    """A policy around one `nn.Module`."""

    draws: int = 1
    """Noise levels that `losses` draws per sample, where there is noise."""
    crop: float
    """Share of the pictures' sides that the model is shown: the middle; anywhere while it learns."""

    def __init__(self, spec: PolicySpec, model: nn.Module, settings: Settings, crop: float = 1.0) -> None:
        self.spec = spec
        self.crop = crop
        self.model = model.eval()
        self.settings = settings
        if settings.device.type == "cpu" and sum(p.numel() for p in model.parameters()) < SMALL:
            torch.set_num_threads(1)

    # What a subclass says

    @abstractmethod
    def act(self, observations: Sequence[Observation], watch: Stopwatch) -> Acted:
        """The answers to all of them in one forward pass; each stage of it under `watch.stage(name)`."""

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars: `loss` is the total to go down, the others are its parts. All noise comes from `generator`."""

    @abstractmethod
    def saved_config(self) -> dict[str, Any]:
        """What our config.json must say for this very policy to be made again: sizes and facts of the adapter."""

    @abstractmethod
    def saved_normalisation(self) -> dict[str, Affine]:
        """What our normalisation.json must say."""

    def recipe(self) -> Recipe:
        """What its family is trained with by default at size tiny."""
        return RECIPES[self.spec.name]

    @abstractmethod
    def normalise(self, state: Scales, action: Scales) -> None:
        """From now on the model's numbers are scaled by these statistics, in the way of its paper."""

    def saved_tokenizer(self) -> JsonTokenizer | None:
        """What our tokenizer.json must be, None where no text is read."""
        return None

    # What the engine calls

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing to forget: history comes with the observations."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        groups = [list(observations)] if self.settings.batching == "together" else [[one] for one in observations]
        with torch.inference_mode():
            return [chunk for group in groups for chunk in self._answers(group)]

    def _answers(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        watch = Stopwatch(self.settings.device)
        acted = self.act([self.shown(one) for one in observations], watch)
        maps = acted.attention or [{}] * len(observations)
        return [
            ActionChunk(actions, dict(watch.stages), self._uncropped(attention))
            for actions, attention in zip(acted.actions, maps, strict=True)
        ]

    def _uncropped(self, attention: Mapping[str, Attention]) -> dict[str, Attention]:
        """Attention over the pictures as shown, as attention over the whole ones."""
        sizes = {camera.name: (camera.height, camera.width) for camera in self.spec.cameras}
        return {
            name: replace(given, box=box_in_whole(given.box, sizes[name], self.crop))
            for name, given in attention.items()
        }

    def shown(self, observation: Observation) -> Observation:
        """The observation with the middle of its pictures, if the model learnt from crops."""
        if self.crop == 1:
            return observation
        images = {name: centre(picture, self.crop) for name, picture in observation.images.items()}
        return replace(observation, images=images, earlier=tuple(map(self.shown, observation.earlier)))

    # What the training calls

    def learner(self, recipe: Recipe, state: Scales, action: Scales, seed: int, threads: int) -> Trainer:
        """Itself in training, its numbers normalised by these statistics. Its weights change in place."""
        self.normalise(state, action)
        return Trainer(self, recipe, seed, threads)

    # To disk

    def save(self, path: str | Path, provenance: Mapping[str, str], dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint directory of ours; `provenance` are the lines of its card. Raises UsageError.

        `dtype` is that of its floating-point tensors, the model's own when absent.
        """
        write_ours(
            path,
            Checkpoint(
                config={"policy": self.spec.name, **self.saved_config()},
                tensors={name: _stored(tensor, dtype) for name, tensor in self.model.state_dict().items()},
                normalisation=self.saved_normalisation(),
                sha256="",
                tokenizer=self.saved_tokenizer(),
                provenance=provenance,
            ),
        )


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().cpu().to(wanted)


def noise(observations: Sequence[Observation], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal float32 (B, *shape): each row from its observation's seed alone, the same on every device."""
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seen.seed)) for seen in observations]
    return torch.stack(rows).to(device)


def insist_on_logits(sound: Tensor, policy: TorchPolicy) -> None:
    """Raises UsageError unless all of these bools hold: the largest of logits that are NaN is a token, too."""
    if not sound.all():
        raise UsageError(
            f"The policy {policy.spec.name!r} chose tokens by logits that are no numbers: its weights overflow as "
            f"{str(policy.settings.dtype).removeprefix('torch.')} (use dtype=float32), or it was shown no numbers."
        )


def need_weights(name: str, checkpoint: str | None, size: Size) -> None:
    """Raises UsageError unless exactly one of a checkpoint and size=tiny was given."""
    if checkpoint is None and size != "tiny":
        raise UsageError(
            f"{name} comes without weights for this suite (`vla-bench list checkpoints` shows those there are): give "
            "--checkpoint DIR, or --policy-args size=tiny for untrained random weights."
        )
    if checkpoint is not None and size == "tiny":
        raise UsageError(f"{name} got both a checkpoint and size=tiny, which means untrained weights; leave one out.")


def untrained(model: nn.Module) -> str:
    """The note of a policy whose weights are random."""
    return f"untrained random weights, size tiny, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def two_views(suite: Suite, name: str) -> tuple[Camera, Camera]:
    """The suite's third-person and its wrist camera. Raises UsageError when it has fewer."""
    if len(suite.cameras) < 2:
        raise UsageError(
            f"{name} reads a third-person and a wrist camera; the suite {suite.name!r} has {len(suite.cameras)}."
        )
    return suite.cameras[0], suite.cameras[1]


def stacked(images: Sequence[Any]) -> Tensor:
    """uint8 (B, height, width, 3) of equally sized pictures."""
    return torch.from_numpy(np.stack(images))
