"""How well can a small transformer tell where the cube is, by what makes tokens of its two pictures?

    vla-bench collect --suite tiny --suite-args split=train --task lift_the_cube --seed 3000 --noise 0.3 \
        --episodes 120 --out cube
    python scripts/find_the_cube.py cube

Learns from crops of 60 of 64 pixels where the cube lies beside the hand, and prints the error on every tenth episode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from vla_bench.policies.torch.stem import ResidualStem

SIDE, PATCH, WIDTH, BATCH, RATE = 60, 12, 128, 32, 1e-3
CUBE = slice(10, 12)  # x and y in the simulator's state: time, 7 joints of the arm, 2 of the fingers, the cube


class Data(NamedTuple):
    """Frames of many episodes."""

    views: tuple[Tensor, Tensor]
    """uint8 (N, 3, 64, 64), from the side and of the wrist."""
    offsets_cm: Tensor
    """float32 (N, 2): the cube's x and y less the hand's."""
    episodes: NDArray[np.int64]


class Finder(nn.Module):
    """A transformer over the tokens of both pictures and one token that answers."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.places = nn.Parameter(0.02 * torch.randn(1, 2 * (SIDE // PATCH) ** 2 + 1, WIDTH))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2))

    def forward(self, pictures: Sequence[Tensor]) -> Tensor:
        """(B, 2) cm of two float32 (B, 3, 60, 60)."""
        tokens = torch.cat([self.stem(one).flatten(2).transpose(1, 2) for one in pictures], dim=1)
        answer: Tensor = self.head(self.layers(F.pad(tokens, (0, 0, 0, 1)) + self.places)[:, -1])
        return answer


def plain_convolutions() -> nn.Module:
    """The same strides as the residual stem, and nothing else."""
    first, second = nn.Conv2d(3, WIDTH // 4, 3, 2, 1), nn.Conv2d(WIDTH // 4, WIDTH // 2, 3, 2, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(WIDTH // 2, WIDTH, 3, 3))


STEMS: dict[str, Callable[[], nn.Module]] = {
    "a matrix per patch": lambda: nn.Conv2d(3, WIDTH, PATCH, PATCH),
    "strided convolutions": plain_convolutions,
    "the residual stem": lambda: ResidualStem(WIDTH, PATCH),
}


def read(folders: Sequence[Path]) -> Data:
    parts = []
    for file in (file for folder in folders for file in sorted(folder.rglob("*_demo.hdf5"))):
        with h5py.File(file) as opened:
            for demo in opened["data"].values():
                views = (torch.from_numpy(demo[f"obs/{name}_rgb"][:]).permute(0, 3, 1, 2) for name in ("view", "wrist"))
                parts.append((*views, 100 * (demo["states"][:, CUBE] - demo["obs/ee_pos"][:, :2])))
    episodes = np.concatenate([np.full(len(offsets), number) for number, (*_, offsets) in enumerate(parts)])
    side, wrist, offsets = zip(*parts, strict=True)
    return Data((torch.cat(side), torch.cat(wrist)), torch.from_numpy(np.concatenate(offsets)).float(), episodes)


def cut(pictures: Tensor, corners: NDArray[np.int64]) -> Tensor:
    """(B, 3, 60, 60) in [-1, 1], each from its own corner (row, column)."""
    parts = [
        one[:, row : row + SIDE, column : column + SIDE] for one, (row, column) in zip(pictures, corners, strict=True)
    ]
    return torch.stack(parts).float() / 127.5 - 1


def learn(finder: Finder, data: Data, steps: int) -> Tensor:
    """(n, 2) cm: errors on the episodes that were held out."""
    draws = np.random.default_rng(0)
    learnt, held = np.flatnonzero(data.episodes % 10 != 5), np.flatnonzero(data.episodes % 10 == 5)
    optimiser = torch.optim.AdamW(finder.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = draws.choice(learnt, BATCH)
        pictures = [cut(view[rows], draws.integers(0, 5, (BATCH, 2))) for view in data.views]
        loss = F.smooth_l1_loss(finder(pictures), data.offsets_cm[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        middle = np.full((len(held), 2), 2)
        answers = finder([cut(view[held], middle) for view in data.views])
    errors: Tensor = (answers - data.offsets_cm[held]).abs()
    return errors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders of vla-bench collect, HDF5 included")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = read(options.data)
    spread = data.offsets_cm.std(0).tolist()
    print(f"{len(data.episodes)} frames; offsets spread by {spread[0]:.1f} and {spread[1]:.1f} cm")
    for name, make in STEMS.items():
        torch.manual_seed(0)
        started = time.process_time()
        errors = learn(Finder(make()), data, options.steps)
        mean, most = errors.mean().item(), errors.quantile(0.9).item()
        print(
            f"{name}: {mean:.2f} cm, 90 % within {most:.2f} cm, {time.process_time() - started:.0f} CPU s", flush=True
        )


if __name__ == "__main__":
    main()
