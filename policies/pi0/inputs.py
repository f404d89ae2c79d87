"""Sentences and pictures as π0 and π0.5 want them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image as Pillow
from torch import Tensor

from vla_bench.types import Image

PROMPT_MULTIPLE = 16
STATE_BINS = np.linspace(-1.0, 1.0, 257)[:-1]


def cleaned(instruction: str) -> str:
    """openpi's cleaning: no blanks around it, "_" and newlines as blanks."""
    return instruction.strip().replace("_", " ").replace("\n", " ")


def state_prompt(instruction: str, state: ArrayLike) -> str:
    """π0.5's prompt; `state` (S,) normalised to [-1, 1], in 256 bins numbered from 0, and -1 below the range."""
    bins = np.digitize(np.asarray(state), STATE_BINS) - 1
    return f"Task: {cleaned(instruction)}, State: {' '.join(map(str, bins))};\nAction: "


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """int64 ids and their bool mask, (B, L), L a multiple of 16, zeros at the end."""
    length = -(-max(map(len, rows)) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return tokens, mask


def pillow_resize_with_pad(picture: Image, side: int) -> Image:
    """(side, side, 3): openpi's client resizes with Pillow (bilinear, antialiased), shape kept, centred in black."""
    height, width = picture.shape[:2]
    if (height, width) == (side, side):
        return picture
    ratio = max(width / side, height / side)
    rows, columns = int(height / ratio), int(width / ratio)
    resized = Pillow.fromarray(picture).resize((columns, rows), Pillow.Resampling.BILINEAR)
    canvas = np.zeros((side, side, 3), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    canvas[top : top + rows, left : left + columns] = np.asarray(resized)
    return canvas
