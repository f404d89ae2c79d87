"""Two camera views as the one square picture that ReconVLA looks at: the third-person view above the wrist's.

The released snapshot (047ccd9) stacks in two ways. Its training data were prepared with the cut between two rows of
patches (173 and 161 of 334 pixels) and saved as JPEG; its server cuts in the middle (167 and 167) and saves nothing.
Views are squashed, not cropped, with Pillow's Lanczos filter; SigLIP's own processor then resizes with the bicubic one.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image as Pillow

from vla_bench.types import Attention, Float32, Image

Stacking = Literal["rows", "halves"]


@dataclass(frozen=True)
class Stack:
    """How two views become one picture; part of the checkpoint."""

    side: int
    """Of the stacked picture, pixels."""
    model_side: int
    """Of the picture that the vision tower takes."""
    grid: int
    """Patches per side of that."""
    stacking: Stacking
    """rows: cut between two rows of patches, as the training data; halves: in the middle, as the server."""
    jpeg: bool = False
    """Through Pillow's default JPEG."""

    @property
    def above(self) -> int:
        """Rows of pixels that the third-person view has."""
        return self.side * math.ceil(self.grid / 2) // self.grid if self.stacking == "rows" else self.side // 2

    def __call__(self, static: Image, wrist: Image) -> Float32:
        """float32 (3, model side, model side) in [-1, 1] of two views of any size."""
        stacked = np.concatenate(
            [_resized(static, self.side, self.above), _resized(wrist, self.side, self.side - self.above)]
        )
        return _scaled(_through_jpeg(stacked) if self.jpeg else stacked, self.model_side)

    def gaze(self, static: Image, wrist: Image, box: ArrayLike) -> Float32:
        """The same picture with the third-person view replaced by a part of it, stretched: what is to be rebuilt.

        box (4,): x0, y0, x1, y1 as shares of the third-person view's sides.
        """
        return self(_cropped(static, box), wrist)

    def looked_at(self, weights: Float32, patch: int) -> tuple[Attention, Attention]:
        """Attention (grid, grid) to the patches, `patch` pixels wide, as attention to the two views.

        A patch across the cut belongs to both, to each with its part of the area. Pixels behind the last whole patch
        are in none: 6 of SigLIP's 384.
        """
        whole, cut = self.model_side * self.side, self.above * self.model_side  # in pixels / side, to stay exact
        step = patch * self.side
        upper, lower = -(-cut // step), cut // step
        right = self.grid * step / whole
        return (
            Attention(weights[:upper], (0.0, 0.0, right, upper * step / cut)),
            Attention(
                weights[lower:],
                (0.0, (lower * step - cut) / (whole - cut), right, (self.grid * step - cut) / (whole - cut)),
            ),
        )


def _resized(picture: Image, width: int, height: int) -> Image:
    return np.asarray(Pillow.fromarray(picture).resize((width, height), Pillow.Resampling.LANCZOS))


def _cropped(picture: Image, box: ArrayLike) -> Image:
    """The part of the picture in that box, at least one pixel of it."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = np.clip(np.asarray(box, float), 0, 1) * [width, height, width, height]
    left, top = min(math.floor(x0), width - 1), min(math.floor(y0), height - 1)
    return picture[top : max(math.ceil(y1), top + 1), left : max(math.ceil(x1), left + 1)]


def _through_jpeg(picture: Image) -> Image:
    file = io.BytesIO()
    Pillow.fromarray(picture).save(file, "JPEG")
    return np.asarray(Pillow.open(file))


def _scaled(picture: Image, side: int) -> Float32:
    same = picture.shape[:2] == (side, side)
    fitted = picture if same else Pillow.fromarray(picture).resize((side, side), Pillow.Resampling.BICUBIC)
    return (np.asarray(fitted, np.float32) / 127.5 - 1.0).transpose(2, 0, 1)
