"""OpenVLA's picture chain: TensorFlow's JPEG round trip, Lanczos resize and crop-and-resize, without TensorFlow.

The weights were trained on pictures made by TensorFlow, and the details are worth points: on LIBERO, 76.4 became 73.3
without the crop, and 71.0 became 76.2 with JPEG, Lanczos and the right environment seed (vla-evaluation-harness). Both
operators are written from their definitions: `tf.image.resize(method="lanczos3", antialias=True)` is ScaleAndTranslate,
`tf.image.crop_and_resize` is its namesake; both work in float32, the first with half-pixel centres, the second with
aligned corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from vla_bench.types import Float32, Image

from .jpeg import through_jpeg

CROP_AREA = 0.9  # of the picture: OpenVLA trains on random crops of that area, openvla_utils.py `get_vla_action`
LANCZOS_RADIUS = 3

Filter = Literal["lanczos3", "bicubic"]


@dataclass(frozen=True)
class PictureChain:
    """From a suite's upright picture to the square one the towers see, still uint8."""

    side: int
    """Pixels of the result's sides."""
    mirror: bool = False
    """Left and right exchanged: LIBERO's raw pictures are upside down and everybody turns them by 180 degrees."""
    jpeg: bool = False
    """Encoded and decoded once, as the training data were."""
    resize: Filter = "lanczos3"
    """lanczos3 is the training data's; bicubic what the model's own processor does to pictures of another size."""
    crop: bool = False
    """The middle, 0.9 of the area, blown up again: for weights trained with random crops."""

    def __call__(self, picture: Image) -> Image:
        """uint8 (side, side, 3)."""
        upright = np.ascontiguousarray(picture[:, ::-1] if self.mirror else picture)
        stored = through_jpeg(upright) if self.jpeg else upright
        if not self.jpeg and not self.crop and stored.shape[:2] == (self.side, self.side):
            return stored
        sized = lanczos3(stored, self.side) if self.resize == "lanczos3" else bicubic(stored, self.side)
        return centre_crop(sized, CROP_AREA) if self.crop else sized


def bicubic(picture: Image, side: int) -> Image:
    """Stretched to a square without regard to its aspect, Prismatic's `resize-naive`."""
    return np.asarray(Pillow.fromarray(picture).resize((side, side), Pillow.Resampling.BICUBIC))


def lanczos3(picture: Image, side: int) -> Image:
    """Resized to a square as tf.image.resize does with method lanczos3 and antialias, rounded half to even."""
    height, width = picture.shape[:2]
    sized = _rows(_lanczos_weights(height, side), _lanczos_weights(width, side), picture.astype(np.float32))
    return np.clip(np.rint(sized), 0, 255).astype(np.uint8)


def centre_crop(picture: Image, area: float) -> Image:
    """The middle part of that share of the area, stretched to the full size by tf.image.crop_and_resize."""
    height, width = picture.shape[:2]
    unit = picture.astype(np.float32) * np.float32(1 / 255)
    sized = _rows(_crop_weights(height, area), _crop_weights(width, area), unit)
    return (np.clip(sized, 0, 1) * np.float32(255.5)).astype(np.uint8)  # convert_image_dtype: times 255 + 0.5, cut off


def _rows(down: Float32, right: Float32, picture: Float32) -> Float32:
    """Weights (h, H) and (w, W) applied to both axes of (H, W, 3)."""
    tall = np.tensordot(down, picture, axes=(1, 0))  # (h, W, 3)
    return np.asarray(np.tensordot(tall, right, axes=(1, 1)).transpose(0, 2, 1), np.float32)


@lru_cache(maxsize=16)
def _lanczos_weights(size: int, out: int) -> Float32:
    """(out, size), rows summing to 1: the kernel around each output pixel's centre, widened when shrinking."""
    step = size / out
    widened = max(step, 1.0)
    centres = (np.arange(out)[:, None] + 0.5) * step
    offsets = (np.arange(size)[None] + 0.5 - centres) / widened
    weights = _lanczos(offsets)
    weights /= weights.sum(1, keepdims=True)
    return weights.astype(np.float32)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """sinc(x) sinc(x / 3) for |x| <= 3, zero beyond."""
    return np.where(np.abs(x) <= LANCZOS_RADIUS, np.sinc(x) * np.sinc(x / LANCZOS_RADIUS), 0.0)


@lru_cache(maxsize=16)
def _crop_weights(size: int, area: float) -> Float32:
    """(size, size): linear interpolation between the two pixels around each sample of the middle sqrt(area)."""
    share = np.sqrt(np.float32(area))
    low = np.float32((1 - share) / 2)
    high = low + share
    at = low * np.float32(size - 1) + np.arange(size, dtype=np.float32) * (high - low)
    below = np.floor(at).astype(int)
    weights = np.zeros((size, size), np.float32)
    rows = np.arange(size)
    weights[rows, below] = 1 - (at - below)
    weights[rows, np.ceil(at).astype(int)] += at - below
    return weights
