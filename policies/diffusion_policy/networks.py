"""The two networks of Diffusion Policy that predict noise: a 1-D convolutional U-Net and a Transformer.

Parameter names are the official ones (real-stanford/diffusion_policy at 5ba07ac) below `model.`, except that the
convolution of a down or up step is that step itself: `down_modules.0.2.weight`, not `down_modules.0.2.conv.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

FINAL_GROUPS = 8  # the last block keeps GroupNorm's 8 groups whatever `groups` says, in both upstreams


@dataclass(frozen=True)
class UnetSizes:
    """Defaults are the official image configuration."""

    dims: tuple[int, ...] = (512, 1024, 2048)
    """Channels per level; every level but the last halves the time axis."""
    step_dim: int = 128
    kernel: int = 5
    groups: int = 8
    scale: bool = True
    """FiLM by scale and bias; by bias alone where False."""


@dataclass(frozen=True)
class TransformerSizes:
    """Defaults are the official image configuration."""

    width: int = 256
    layers: int = 8
    heads: int = 4
    condition_layers: int = 0
    """Self-attention layers over the condition; 0 is an MLP per token."""
    causal: bool = True
    dropout_embedding: float = 0.0
    dropout: float = 0.3


class StepEmbedding(nn.Module):
    """Denoising step (B,) -> (B, dim): sines, then cosines, of periods growing geometrically from 2 pi to 2e4 pi."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, step: Tensor) -> Tensor:
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=step.device) * -(math.log(10000) / (half - 1)))
        angles = step[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    """Conv1d, GroupNorm, Mish: (B, inner, T) -> (B, outer, T)."""

    def __init__(self, inner: int, outer: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inner, outer, kernel, padding=kernel // 2), nn.GroupNorm(groups, outer), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class FilmBlock(nn.Module):
    """Two convolution blocks around a residual; the condition scales and shifts what is between them."""

    def __init__(self, inner: int, outer: int, condition: int, sizes: UnetSizes) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(channels, outer, sizes.kernel, sizes.groups) for channels in (inner, outer)
        )
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, outer * (2 if sizes.scale else 1)))
        self.residual_conv = nn.Conv1d(inner, outer, 1) if inner != outer else nn.Identity()
        self.scale = sizes.scale

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, inner, T), (B, condition) -> (B, outer, T)."""
        film = self.cond_encoder(condition).unsqueeze(-1)
        out = self.blocks[0](x)
        if self.scale:
            scale, bias = film.chunk(2, dim=1)
            out = scale * out + bias
        else:
            out = out + film
        result: Tensor = self.blocks[1](out) + self.residual_conv(x)
        return result


class Level(nn.Sequential):
    """Two blocks and the step to the next level: 0, 1 and 2 in the parameters' names."""

    def __init__(self, inner: int, outer: int, condition: int, move: nn.Module, sizes: UnetSizes) -> None:
        super().__init__(FilmBlock(inner, outer, condition, sizes), FilmBlock(outer, outer, condition, sizes), move)

    def blocks(self, x: Tensor, condition: Tensor) -> Tensor:
        """What both blocks make of (B, inner, T): (B, outer, T)."""
        out: Tensor = self[1](self[0](x, condition), condition)
        return out


class Unet(nn.Module):
    """Noise in a chunk of actions, given the denoising step and the features of all observed control steps at once."""

    def __init__(self, action_dim: int, feature_dim: int, history: int, sizes: UnetSizes) -> None:
        super().__init__()
        condition = sizes.step_dim + feature_dim * history
        self.diffusion_step_encoder = nn.Sequential(
            StepEmbedding(sizes.step_dim),
            nn.Linear(sizes.step_dim, 4 * sizes.step_dim),
            nn.Mish(),
            nn.Linear(4 * sizes.step_dim, sizes.step_dim),
        )

        dims = sizes.dims
        inner_levels = list(pairwise(dims))
        downs: list[nn.Module] = [nn.Conv1d(channels, channels, 3, 2, 1) for channels in dims[:-1]]
        self.down_modules = nn.ModuleList(
            Level(inner, outer, condition, down, sizes)
            for (inner, outer), down in zip(
                [(action_dim, dims[0]), *inner_levels], [*downs, nn.Identity()], strict=True
            )
        )
        self.mid_modules = nn.ModuleList(FilmBlock(dims[-1], dims[-1], condition, sizes) for _ in range(2))
        self.up_modules = nn.ModuleList(
            Level(2 * outer, inner, condition, nn.ConvTranspose1d(inner, inner, 4, 2, 1), sizes)
            for inner, outer in reversed(inner_levels)
        )
        self.final_conv = nn.Sequential(
            ConvBlock(dims[0], dims[0], sizes.kernel, FINAL_GROUPS), nn.Conv1d(dims[0], action_dim, 1)
        )

    def forward(self, noisy: Tensor, step: Tensor, features: Tensor) -> Tensor:
        """(B, horizon, action), (B,), (B, history, feature) -> (B, horizon, action)."""
        embedded = self.diffusion_step_encoder[1:](self.diffusion_step_encoder[0](step).to(features.dtype))
        condition = torch.cat([embedded, features.flatten(1)], dim=-1)
        x = noisy.transpose(1, 2)
        passed: list[Tensor] = []
        for level in cast(Iterable[Level], self.down_modules):
            passed.append(level.blocks(x, condition))
            x = level[2](passed[-1])
        for block in self.mid_modules:
            x = block(x, condition)
        for level in cast(Iterable[Level], self.up_modules):
            joined = torch.cat([x, passed.pop()], dim=1)
            x = level[2](level.blocks(joined, condition))
        noise: Tensor = self.final_conv(x).transpose(1, 2)
        return noise


class Transformer(nn.Module):
    """The same as `Unet`, one token per action, which attends to the step token and one token per observation."""

    mask: Tensor
    memory_mask: Tensor

    def __init__(self, action_dim: int, feature_dim: int, history: int, horizon: int, sizes: TransformerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.input_emb = nn.Linear(action_dim, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, width))
        self.time_emb = StepEmbedding(width)
        self.cond_obs_emb = nn.Linear(feature_dim, width)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, 1 + history, width))
        self.drop = nn.Dropout(sizes.dropout_embedding)
        self.encoder = _condition_encoder(sizes)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**_layer(sizes)), sizes.layers)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_dim)
        self.causal = sizes.causal
        if sizes.causal:
            self.register_buffer("mask", causal_mask(horizon))
            self.register_buffer("memory_mask", memory_mask(horizon, history))
        self.apply(_start)
        nn.init.normal_(self.pos_emb, std=0.02)
        nn.init.normal_(self.cond_pos_emb, std=0.02)

    def forward(self, noisy: Tensor, step: Tensor, features: Tensor) -> Tensor:
        """(B, horizon, action), (B,), (B, history, feature) -> (B, horizon, action)."""
        time = self.time_emb(step).to(features.dtype).unsqueeze(1)
        condition = torch.cat([time, self.cond_obs_emb(features)], dim=1)
        memory = self.encoder(self.drop(condition + self.cond_pos_emb))
        tokens = self.drop(self.input_emb(noisy) + self.pos_emb)
        masks = {"tgt_mask": self.mask, "memory_mask": self.memory_mask} if self.causal else {}
        noise: Tensor = self.head(self.ln_f(self.decoder(tokens, memory, **masks)))
        return noise


def causal_mask(horizon: int) -> Tensor:
    """Additive (horizon, horizon): an action sees itself and the ones before it."""
    return _additive(torch.ones(horizon, horizon, dtype=torch.bool).tril())


def memory_mask(horizon: int, history: int) -> Tensor:
    """Additive (horizon, 1 + history): an action sees the step token and the observations up to its own time."""
    action, token = torch.meshgrid(torch.arange(horizon), torch.arange(1 + history), indexing="ij")
    return _additive(action >= token - 1)


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))


def _layer(sizes: TransformerSizes) -> dict[str, Any]:
    return {
        "d_model": sizes.width,
        "nhead": sizes.heads,
        "dim_feedforward": 4 * sizes.width,
        "dropout": sizes.dropout,
        "activation": "gelu",
        "batch_first": True,
        "norm_first": True,
    }


def _condition_encoder(sizes: TransformerSizes) -> nn.Module:
    if sizes.condition_layers:
        layer = nn.TransformerEncoderLayer(**_layer(sizes))
        return nn.TransformerEncoder(layer, sizes.condition_layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(sizes.width, 4 * sizes.width), nn.Mish(), nn.Linear(4 * sizes.width, sizes.width))


def _start(module: nn.Module) -> None:
    """Normal weights of 0.02 and no biases, as upstream starts from."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
