"""Numbers of a suite to numbers of a model and back, one affine map per dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_bench.errors import UsageError
from vla_bench.types import Float32

Float64 = NDArray[np.float64]
_STEADY = 1e-4
"""What changes less than this in all training data does not change (Diffusion Policy's own bound)."""


@dataclass(frozen=True)
class Affine:
    """y = x * scale + offset, both (D,); dimensions of x beyond D pass through, as in openpi.

    Raises ValueError for numbers that cannot be.
    """

    scale: Float64
    offset: Float64

    def __post_init__(self) -> None:
        if self.scale.ndim != 1 or self.scale.shape != self.offset.shape:
            raise ValueError(
                f"normalisation needs one scale and one offset per dimension, got shapes {self.scale.shape} and "
                f"{self.offset.shape}"
            )
        with np.errstate(all="ignore"):
            sound = [np.isfinite(np.asarray(part, np.float32)) for part in (self.scale, 1 / self.scale, self.offset)]
        if not np.all(sound):
            raise ValueError("normalisation statistics should be finite, and no scale zero; these are not")

    @classmethod
    def identity(cls, dim: int) -> Affine:
        return cls(np.ones(dim), np.zeros(dim))

    @classmethod
    def from_mean_std(cls, mean: ArrayLike, std: ArrayLike, eps: float) -> Affine:
        """(x - mean) / (std + eps)."""
        with np.errstate(all="ignore"):
            scale = 1.0 / (_vector(std) + eps)
        return cls(scale, -_vector(mean) * scale)

    @classmethod
    def from_range(cls, low: ArrayLike, high: ArrayLike, eps: float) -> Affine:
        """2 (x - low) / (high - low + eps) - 1: [low, high] becomes [-1, 1]."""
        with np.errstate(all="ignore"):
            scale = 2.0 / (_vector(high) - _vector(low) + eps)
        return cls(scale, -_vector(low) * scale - 1.0)

    @classmethod
    def of_limits(cls, low: ArrayLike, high: ArrayLike) -> Affine:
        """[low, high] becomes [-1, 1]; a dimension that never changes becomes 0, and is not scaled."""
        below, above = _vector(low), _vector(high)
        moving = above - below > _STEADY
        scale = np.where(moving, 2.0 / np.where(moving, above - below, 1.0), 1.0)
        return cls(scale, -(below + above) / 2.0 * scale)

    @classmethod
    def of_deviation(cls, mean: ArrayLike, std: ArrayLike, deviations: float = 1.0) -> Affine:
        """`deviations` standard deviations from the mean become 1; what never changes is as in `of_limits`."""
        width = _vector(std) * deviations
        scale = 1.0 / np.where(width > _STEADY, width, 1.0)
        return cls(scale, -_vector(mean) * scale)

    def within(self, dim: int, whose: str) -> Affine:
        """The same. Raises ValueError unless it is of `dim` numbers or fewer."""
        if len(self.scale) > dim:
            raise ValueError(f"normalisation of the {whose} is of {len(self.scale)} numbers, it has {dim}")
        return self

    def where(self, mask: Sequence[bool]) -> Affine:
        """This map where `mask` holds, the identity elsewhere."""
        kept = np.asarray(mask, bool)
        return Affine(np.where(kept, self.scale, 1.0), np.where(kept, self.offset, 0.0))

    def apply(self, values: ArrayLike) -> Float32:
        """(..., D or more) of the suite -> the same of the model."""
        return self._map(values, lambda x: x * self.scale + self.offset)

    def invert(self, values: ArrayLike) -> Float32:
        """(..., D or more) of the model -> the same of the suite."""
        return self._map(values, lambda y: (y - self.offset) / self.scale)

    def _map(self, values: ArrayLike, function: Any) -> Float32:
        given = np.asarray(values, np.float64)
        dim = len(self.scale)
        if given.shape[-1] < dim:
            raise UsageError(f"The statistics are of {dim} numbers, got {given.shape[-1]}.")
        return np.concatenate([function(given[..., :dim]), given[..., dim:]], axis=-1).astype(np.float32)

    def as_json(self) -> dict[str, list[float]]:
        return {"scale": self.scale.tolist(), "offset": self.offset.tolist()}

    @classmethod
    def from_json(cls, given: Mapping[str, Sequence[float]]) -> Affine:
        return cls(_vector(given["scale"]), _vector(given["offset"]))


def _vector(values: ArrayLike) -> Float64:
    return np.atleast_1d(np.asarray(values, np.float64))
