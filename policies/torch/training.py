"""One optimiser's step after another for any of our policies: what `vla-bench train` asks of PyTorch.

Everything random about a step comes from the seed and the step's number: no generator's state has to be kept, and a
training that was interrupted goes on bit for bit. Sums are the same for the same number of threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vla_bench.errors import UsageError
from vla_bench.store.files import replacing
from vla_bench.training.learning import Recipe, Samples, Weights

from .augmentation import jittered, randomly_cropped
from .restricted_pickle import read_saved

_VALIDATION = 1 << 62
"""The number that validation's noise is drawn with in a step's place."""


@dataclass(frozen=True)
class Batch:
    """Demonstrations to learn from. B samples, T control steps of history (the last is now), H actions."""

    images: Mapping[str, Tensor]
    """Camera name to uint8 (B, T, height, width, 3), upright RGB; cropped already, where the policy learns from crops.
    """
    state: Tensor
    """float32 (B, T, S), as the suite gives it."""
    instructions: Sequence[str]
    actions: Tensor
    """float32 (B, H, A), as the suite takes them."""
    valid: Tensor
    """bool (B, H): False where the episode had ended and the last action is repeated."""
    gaze: Tensor | None = None
    """float32 (B, 4): x0, y0, x1, y1 of what is being manipulated, in the first camera, as shares of its sides."""


class RunsOn(Protocol):
    """Where and in what numbers a model computes."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


class Learning(Protocol):
    """What a policy offers to be trained."""

    draws: int
    """Noise levels that `losses` draws per sample, where there is noise."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def settings(self) -> RunsOn: ...

    @property
    def crop(self) -> float:
        """The share of a picture's sides that it learns from."""

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """`loss`, to be made smaller, and its parts."""

    def save(self, path: str | Path, provenance: Mapping[str, str], dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint directory."""


class Trainer:
    """A policy, its averaged weights, and AdamW."""

    def __init__(self, policy: Learning, recipe: Recipe, seed: int, threads: int) -> None:
        if policy.settings.dtype is not torch.float32:
            raise UsageError(f"Weights learn in float32, got dtype={policy.settings.dtype}; leave dtype out.")
        self.policy, self.recipe, self.seed, self.done = policy, recipe, seed, 0
        self.model, policy.draws = policy.model, recipe.draws
        self.learnt = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self.average = {name: one.detach().clone() for name, one in self.learnt.items()}
        self.optimiser = torch.optim.AdamW(_groups(self.learnt.values(), recipe), lr=0.0, betas=recipe.betas)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)

    def step(self, samples: Samples) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.done)
        self.model.train()
        losses = self._losses(samples, self.done, augmented=True)
        self.optimiser.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.learnt.values(), self.recipe.clip)
        self.optimiser.step()
        kept = self.recipe.ema_decay(self.done)
        averaged = get_ema_multi_avg_fn(kept)  # type: ignore[no-untyped-call]
        averaged(list(self.average.values()), list(self.learnt.values()), self.done)
        self.done += 1
        return {name: value.item() for name, value in losses.items()}

    def validate(self, batches: Iterable[Samples]) -> dict[str, float]:
        rows: list[tuple[int, dict[str, float]]] = []
        with self.averaged(), torch.no_grad():
            for number, samples in enumerate(batches):
                losses = self._losses(samples, _VALIDATION + number, augmented=False)
                rows.append((len(samples.state), {name: value.item() for name, value in losses.items()}))
        total = sum(count for count, _ in rows)
        return {name: sum(count * row[name] for count, row in rows) / total for name in rows[0][1]}

    def _losses(self, samples: Samples, number: int, augmented: bool) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, number))
        torch.manual_seed(_mixed(self.seed, number) + 1)  # of dropout, which takes no generator
        images = {name: torch.from_numpy(pictures) for name, pictures in samples.images.items()}
        gaze = torch.from_numpy(samples.gaze)
        images, gaze = randomly_cropped(images, gaze, self.policy.crop, generator if augmented else None)
        if augmented and self.recipe.jitter:
            images = {name: jittered(pictures, self.recipe.jitter, generator) for name, pictures in images.items()}
        device = self.policy.settings.device
        batch = Batch(
            images={name: pictures.to(device) for name, pictures in images.items()},
            state=torch.from_numpy(samples.state),
            instructions=samples.instructions,
            actions=torch.from_numpy(samples.actions),
            valid=torch.from_numpy(samples.valid),
            gaze=gaze,
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return self.policy.losses(batch, generator)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights, for a while."""
        own = {name: one.detach().clone() for name, one in self.learnt.items()}
        self._put(self.average)
        self.model.eval()
        try:
            yield
        finally:
            self._put(own)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, one in self.learnt.items():
                one.copy_(weights[name])

    def keep(self, file: Path) -> None:
        state = {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        try:
            with replacing(file) as temporary, temporary.open("wb") as stream:
                torch.save(state, stream)
        except RuntimeError as error:  # torch's own, which comes on top of a full disk's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise

    def resume(self, file: Path) -> None:
        try:
            state: dict[str, Any] = read_saved(file)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            for name, one in self.average.items():
                one.copy_(state["average"][name])
            self.done = int(state["done"])
        except Exception as error:  # pickle and zip have a class of their own for each kind of damage
            raise UsageError(f"{file} cannot be resumed ({type(error).__name__}); --overwrite starts again.") from error

    def save(self, path: Path, provenance: Mapping[str, str], weights: Weights) -> None:
        with self.averaged():
            self.policy.save(path, provenance, dtype=getattr(torch, weights))


def _groups(parameters: Iterable[Tensor], recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for vectors."""
    all_of_them = list(parameters)
    return [
        {"params": [one for one in all_of_them if one.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [one for one in all_of_them if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _mixed(seed: int, number: int) -> int:
    """A seed of 63 bits from both."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1) - 1
