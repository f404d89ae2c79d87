"""What a policy looks at, painted over the film of its episode: heat for attention, a line around the true region."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import Attention, Frame, Image, Mask

HEAT, LINE = (255, 0, 160), (0, 255, 220)
_OPAQUE = 0.75  # of the hottest cells
_HOTTEST = 8.0  # times what a cell would weigh if all weighed the same


def overlaid(
    shots: Iterable[tuple[Frame, Mapping[str, Mask]]],
    asked: Sequence[int],
    attention: Sequence[Mapping[str, Attention]],
) -> Iterator[Frame]:
    """The frames with the attention of the latest inference and the outline of the region.

    `asked` are the control steps of the inferences that `attention` belongs to.
    """
    for frame, masks in shots:
        latest = attention[max(0, bisect_right(asked, frame.step) - 1)]
        even = float(np.mean(np.concatenate([given.weights.ravel() for given in latest.values()]))) if latest else 0.0
        images = dict(frame.images)
        for camera, image in images.items():
            hot = heated(image, latest[camera], even) if camera in latest else image
            images[camera] = outlined(hot, masks[camera]) if camera in masks else hot
        yield Frame(frame.step, images)


def heated(image: Image, given: Attention, even: float) -> Image:
    """The picture with heat, by doublings, on every cell that weighs more than the mean cell of all cameras, `even`.

    The scale is fixed, so that pictures of other moments and policies compare: attention spread evenly shows no heat.
    """
    if even <= 0:
        return image
    (rows, columns), (left, top, right, bottom) = given.weights.shape, given.box
    row, inside_rows = _cell_of(image.shape[0], rows, top, bottom)
    column, inside_columns = _cell_of(image.shape[1], columns, left, right)
    inside = inside_rows[:, None] & inside_columns
    doublings = np.log2(np.clip(given.weights / even, 1.0, _HOTTEST)) / np.log2(_HOTTEST)
    return _blended(image, HEAT, _OPAQUE * np.where(inside, doublings[np.ix_(row, column)], 0.0))


def outlined(image: Image, mask: Mask) -> Image:
    """The picture with a line along the region's inner border, one pixel wide."""
    padded = np.pad(mask, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    painted = image.copy()
    painted[mask & ~surrounded] = LINE
    return painted


def _cell_of(pixels: int, cells: int, start: float, end: float) -> tuple[NDArray[np.int_], NDArray[np.bool_]]:
    """The cell of every pixel's centre, and whether there is one."""
    place = np.floor(((np.arange(pixels) + 0.5) / pixels - start) / (end - start) * cells).astype(np.int_)
    return np.clip(place, 0, cells - 1), (place >= 0) & (place < cells)


def _blended(image: Image, colour: tuple[int, int, int], opacity: NDArray[np.float64]) -> Image:
    """`opacity` (height, width) from 0 to 1."""
    mixed: Image = (image + (np.array(colour) - image) * opacity[..., None]).round().astype(np.uint8)
    return mixed
