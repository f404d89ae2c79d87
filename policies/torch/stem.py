"""A few convolutions in the place of a vision transformer's patch embedding.

One matrix per patch learns slowly from nothing: Xiao et al. 2021 (arXiv:2106.14881, "Early Convolutions Help
Transformers See Better") put strided 3x3 convolutions in its place and keep the number of tokens. Theirs are
normalised, and so are these; without that, and without the residual block behind them, a tiny transformer errs by two
thirds more in telling where a cube is (scripts/find_the_cube.py). The released models have the matrix; the tiny
ones, which start from random weights and see few pictures, have this.
"""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn

from .residual import ResidualBlock

Stem = Literal["patch", "residual"]

_NARROWEST = 16
"""Channels of the first convolution, at least."""


class ResidualStem(nn.Sequential):
    """(B, 3, height, width) -> (B, width, height / patch, width / patch), for sides that are multiples of `patch`."""

    def __init__(self, width: int, patch: int) -> None:
        strides = _factors(patch)
        narrow = [max(_NARROWEST, width // 2 ** (left + 1)) for left in range(len(strides) - 1, 0, -1)]
        widths = [3, *narrow, width]
        layers: list[nn.Module] = []
        for stride, before, after in zip(strides, widths[:-1], widths[1:], strict=True):
            layers += [_convolution(before, after, stride), nn.GroupNorm(max(1, after // 16), after), nn.ReLU()]
        super().__init__(*layers, ResidualBlock(width, width, 1, "group"))

    @property
    def weight(self) -> Tensor:
        """Of the last convolution: transformers asks the patch embedding for its dtype."""
        return cast(ResidualBlock, self[-1]).conv2.weight


def _convolution(before: int, after: int, stride: int) -> nn.Conv2d:
    """Kernels of 3, or of the stride where that is larger; drawn so that the signal keeps its size (He et al. 2015)."""
    made = nn.Conv2d(before, after, max(3, stride), stride, padding=1 if stride == 2 else 0)
    if not made.weight.is_meta:
        nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
        nn.init.zeros_(cast(nn.Parameter, made.bias))
    return made


def _factors(patch: int) -> list[int]:
    """Prime factors, small ones first."""
    for factor in range(2, patch):
        if patch % factor == 0:
            return [factor, *_factors(patch // factor)]
    return [patch]


def put_stem(embeddings: nn.Module, name: str, stem: Stem, width: int, patch: int) -> None:
    """Give those embeddings the stem that is wanted; they have a matrix per patch."""
    if stem == "residual":
        setattr(embeddings, name, ResidualStem(width, patch))
