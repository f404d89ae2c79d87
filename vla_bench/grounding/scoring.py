"""Does a policy look at what it is about to manipulate? Its attention against the true region, answer by answer.

The region is what is being manipulated, as the simulator's segmentation shows it to the policy's own cameras, occlusion
included (`Recorder.gaze`). Attention comes in cells; each cell's weight is spread evenly over its area, and what lies
outside the picture is left out.

* share: of the attention on all pictures, what lies in the region. Wang et al. 2020 (Score-CAM, arXiv 1910.01279) call
  it the energy-based pointing game, with boxes; with masks, as here, it is the weighting game of Raatikainen and Rahtu
  2022 (arXiv 2208.06175).
* chance: the share that the same cells would have if all weighed the same: what a policy that looks everywhere alike
  gets. Not the region's share of the pixels: a wrist camera of 84 x 84 pixels may have as many cells as another of
  200 x 200.
* hit: the pointing game of Zhang et al. 2016 (ECCV, arXiv 1608.00507; 2018, IJCV 126:1084): whether the most attended
  point lies in the region. The point is the centre of the cell with the most weight over all cameras, of equal ones the
  first; cells centred outside the pictures do not point. Theirs forgives 15 pixels; this one forgives none.

Where nothing of the region is in view, or no attention fell on a picture, share and hit have no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import Attention, Grounding, Mask

Float64 = NDArray[np.float64]


class Point(NamedTuple):
    """The centre of a cell."""

    weight: float
    camera: str
    row: int
    """Pixels of the camera's picture, as is `column`."""
    column: int


def score(attention: Mapping[str, Attention], gaze: Mapping[str, Mask]) -> Grounding:
    """Where that attention fell. A camera without a mask shows nothing of the region."""
    within = inside = cells = hidden = 0.0
    points = list[Point]()
    for camera, given in attention.items():
        mask = gaze.get(camera, np.zeros((1, 1), bool))
        weights = given.weights.astype(np.float64)
        cover, visible = _covered(given, mask), _visible(given)
        within += float((weights * cover).sum())
        inside += float((weights * visible).sum())
        hidden += float(cover.sum())
        cells += float(visible.sum())
        points += _pointed(given, camera, mask.shape)
    chance = hidden / cells if cells else 0.0
    if not hidden or not inside:
        return Grounding(None, min(1.0, chance), None)
    best = max(points, key=lambda point: point.weight, default=None)  # the first of equal ones
    hit = best is not None and best.camera in gaze and bool(gaze[best.camera][best.row, best.column])
    return Grounding(min(1.0, within / inside), min(1.0, chance), hit)


def inside_total(given: Attention) -> float:
    """Of that attention, what lies inside the picture."""
    return float((given.weights.astype(np.float64) * _visible(given)).sum())


def _covered(given: Attention, mask: Mask) -> Float64:
    """(rows, columns): which part of each cell's area shows the region."""
    (rows, columns), (left, top, right, bottom) = given.weights.shape, given.box
    down, across = _overlap(rows, top, bottom, mask.shape[0]), _overlap(columns, left, right, mask.shape[1])
    covered: Float64 = down @ mask @ across.T
    return covered


def _visible(given: Attention) -> Float64:
    """(rows, columns): which part of each cell's area lies inside the picture."""
    (rows, columns), (left, top, right, bottom) = given.weights.shape, given.box
    visible: Float64 = _overlap(rows, top, bottom, 1) * _overlap(columns, left, right, 1).T
    return visible


def _overlap(cells: int, start: float, end: float, pixels: int) -> Float64:
    """(cells, pixels): which part of every cell's length lies in every pixel, the picture being from 0 to 1."""
    edges = np.linspace(start, end, cells + 1)[:, None] * pixels
    borders = np.arange(pixels + 1)
    shared = np.minimum(edges[1:], borders[1:]) - np.maximum(edges[:-1], borders[:-1])
    parts: Float64 = np.clip(shared, 0.0, None) / np.diff(edges, axis=0)
    return parts


def _pointed(given: Attention, camera: str, size: tuple[int, ...]) -> list[Point]:
    """The heaviest cell that is centred inside the picture; none where all are centred outside."""
    (rows, columns), (left, top, right, bottom) = given.weights.shape, given.box
    y, x = _centres(rows, top, bottom), _centres(columns, left, right)
    inside = ((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))
    if not inside.any():
        return []
    row, column = np.unravel_index(np.where(inside, given.weights, -1.0).argmax(), inside.shape)
    return [Point(float(given.weights[row, column]), camera, int(y[row] * size[0]), int(x[column] * size[1]))]


def _centres(cells: int, start: float, end: float) -> Float64:
    centres: Float64 = start + (end - start) * (np.arange(cells) + 0.5) / cells
    return centres
