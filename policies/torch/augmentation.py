"""Random changes to pictures while learning, and what is done in their place while acting.

A policy that learns from crops acts on the centre: its checkpoint says which share of the sides is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vla_bench.types import Image


def kept(side: int, share: float) -> int:
    """Pixels of a side that a crop keeps."""
    return round(side * share)


def centre(picture: Image, share: float) -> Image:
    """(height, width, 3) -> its middle."""
    height, width = (kept(side, share) for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def box_in_centre(box: Tensor, share: float) -> Tensor:
    """Boxes (..., 4) in shares of a picture's sides as shares of its middle's, cut off at the border."""
    return _moved(box, (1.0 - share) / 2.0, (1.0 - share) / 2.0, share, share)


def box_in_whole(
    box: tuple[float, float, float, float], size: tuple[int, int], share: float
) -> tuple[float, float, float, float]:
    """A box in shares of the sides of a picture's middle as shares of the whole picture's, whose (height, width) is
    `size`; the inverse of `box_in_centre`, to the pixel."""
    (top, height), (left, width) = [((side - kept(side, share)) // 2 / side, kept(side, share) / side) for side in size]
    x0, y0, x1, y1 = box
    return left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height


def randomly_cropped(
    images: Mapping[str, Tensor], gaze: Tensor, share: float, generator: torch.Generator | None
) -> tuple[dict[str, Tensor], Tensor]:
    """uint8 (B, T, h, w, 3) per camera and boxes (B, 4) of the first camera, both cut: each sample and camera at a
    place of its own, uniform over all that are possible, the same for all its control steps; the centre without a
    generator."""
    cut, box = {}, gaze
    for index, (name, pictures) in enumerate(images.items()):
        sides = pictures.shape[2:4]
        rooms = [side - kept(side, share) for side in sides]
        tops, lefts = (_places(room, len(pictures), generator) for room in rooms)
        cut[name] = _cut(pictures, tops, lefts, share)
        if index == 0 and share < 1:
            heights, widths = (kept(side, share) / side for side in sides)
            box = _moved(gaze, lefts / sides[1], tops / sides[0], widths, heights)
    return cut, box


def _places(room: int, count: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.full((count,), room // 2)
    return torch.randint(room + 1, (count,), generator=generator)


def _cut(pictures: Tensor, tops: Tensor, lefts: Tensor, share: float) -> Tensor:
    height, width = (kept(side, share) for side in pictures.shape[2:4])
    if (height, width) == tuple(pictures.shape[2:4]):
        return pictures
    corners = zip(pictures, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([one[:, top : top + height, left : left + width] for one, top, left in corners])


def _moved(box: Tensor, left: Tensor | float, top: Tensor | float, width: float, height: float) -> Tensor:
    x, y = (box[..., 0::2].T - left).T / width, (box[..., 1::2].T - top).T / height
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1).clamp(0.0, 1.0)


def jittered(pictures: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """uint8 (B, T, h, w, 3) with brightness, contrast and saturation of each sample multiplied by 1 +- `strength`."""
    factors = 1.0 + strength * (2.0 * torch.rand(3, len(pictures), generator=generator) - 1.0)
    brightness, contrast, saturation = factors.view(3, -1, 1, 1, 1, 1)
    bright = pictures.float() * brightness
    level = bright.mean((1, 2, 3, 4), keepdim=True)
    contrasted = level + (bright - level) * contrast
    grey = contrasted.mean(-1, keepdim=True)
    coloured: Tensor = grey + (contrasted - grey) * saturation
    return coloured.round_().clamp_(0, 255).to(torch.uint8)
