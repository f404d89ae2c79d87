"""ReconVLA's reconstruction head: a small DiT that denoises the latents of the gaze region.

The condition of every token is what the language model made of the image patch at the same place. It enters through
adaLN-Zero (Peebles & Xie 2023, arXiv 2212.09748), added to the embedding of the time step; nothing is concatenated.
The diffusion is the improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672) with a fixed variance. Sizes and choices:
ReconVLA's released code (047ccd9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1000
REPEATS = 4
"""Time steps drawn for every sample of a batch."""
_TIME_CHANNELS = 256
_LONGEST_PERIOD = 10_000.0
_TIME_STD = 0.02
_MLP_RATIO = 4
_COSINE_SHIFT = 0.008
_LARGEST_BETA = 0.999


@dataclass(frozen=True)
class DenoiserSizes:
    """Of the DiT; the defaults are the official ones (`denoiser_vit3x`)."""

    depth: int = 3
    width: int = 1024
    heads: int = 16
    channels: int = 64
    """Of the latents, in and out."""
    condition: int = 3584
    """Width of the language model."""
    grid: int = 27
    """Tokens per side."""


class ReconDenoiser(nn.Module):
    """Predicts the noise in the latents of a picture, given the language model's states at its patches."""

    def __init__(self, sizes: DenoiserSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.net = DiT(sizes)

    def forward(self, noisy: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """Predicted noise (B, C, g, g) of `noisy` (B, C, g, g) at the steps `time` (B,), given `states` (B, g*g, D)."""
        condition = F.layer_norm(states, states.shape[-1:])
        out: Tensor = self.net(noisy, time, condition)
        return out

    def loss(self, latents: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise, each sample at `REPEATS` uniform time steps.

        latents (B, C, g, g); states (B, g*g, D); all noise comes from `generator`, on its own device.
        """
        clean, states = latents.repeat(REPEATS, 1, 1, 1), states.repeat(REPEATS, 1, 1)
        time = torch.randint(STEPS, (len(clean),), generator=generator, device=generator.device).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean)
        noisy = Diffusion.on(clean.device).noisy(clean, noise, time)
        return F.mse_loss(self(noisy, time, states).float(), noise.float())

    def sample(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (B, C, g, g) from pure noise by all `STEPS` ancestral steps, given `states` (B, g*g, D)."""
        shape = (len(states), self.sizes.channels, self.sizes.grid, self.sizes.grid)
        diffusion = Diffusion.on(states.device)

        def fresh() -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device).to(states)

        latents = fresh()
        for step in reversed(range(STEPS)):
            time = torch.full((len(states),), step, device=states.device)
            mean = diffusion.previous_mean(latents, self(latents, time, states), step)
            latents = mean + diffusion.sigma[step].to(mean) * fresh() if step else mean
        return latents


@dataclass(frozen=True)
class Diffusion:
    """The schedule: float64 (STEPS,) each; step 0 is the least noisy."""

    beta: Tensor
    signal: Tensor
    """Square of what is left of the data: the product of 1 - beta up to and including this step."""
    sigma: Tensor
    """Deviation of an ancestral step: sqrt(beta), the larger of the two fixed choices of Ho et al. 2020."""

    @classmethod
    def on(cls, device: torch.device) -> Diffusion:
        """The cosine schedule."""
        end = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
        left = torch.cos((end + _COSINE_SHIFT) / (1 + _COSINE_SHIFT) * math.pi / 2) ** 2
        beta = (1 - left[1:] / left[:-1]).clamp(max=_LARGEST_BETA).to(device)
        return cls(beta, torch.cumprod(1 - beta, 0), beta.sqrt())

    def noisy(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What is left of `clean` (B, C, g, g) after `time` (B,) steps."""
        signal = self.signal[time].view(-1, 1, 1, 1)
        return signal.sqrt().to(clean) * clean + (1 - signal).sqrt().to(clean) * noise

    def previous_mean(self, noisy: Tensor, noise: Tensor, step: int) -> Tensor:
        """Mean of the latents one step earlier, if `noise` is what `noisy` holds."""
        beta, signal = self.beta[step], self.signal[step]
        return (noisy - (beta / (1 - signal).sqrt()).to(noisy) * noise) / (1 - beta).sqrt().to(noisy)


class DiT(nn.Module):
    """Transformer over a grid of latents whose blocks are modulated token by token."""

    def __init__(self, sizes: DenoiserSizes) -> None:
        super().__init__()
        width = sizes.width
        blocks = [Block(width, sizes.heads) for _ in range(sizes.depth)]
        self.x_embedder = PointEmbedder(sizes.channels, width)
        self.pos_embed = nn.Parameter(positions(width, sizes.grid)[None], requires_grad=False)
        self.t_embedder = TimeEmbedder(width)
        self.z_embedder = nn.Sequential(nn.SiLU(), nn.Linear(sizes.condition, width))
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = FinalLayer(width, sizes.channels)
        self.apply(_uniform)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=_TIME_STD)
        for gate in (*(block.adaLN_modulation[1] for block in blocks), self.final_layer.adaLN_modulation[1]):
            _zero(gate)  # adaLN-Zero: at first every block is the identity
        _zero(self.final_layer.linear)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        batch, channels, rows, columns = noisy.shape
        x = self.x_embedder(noisy) + self.pos_embed.to(noisy.dtype)
        modulation = self.t_embedder(time, x.dtype)[:, None] + self.z_embedder(condition)
        for block in self.blocks:
            x = block(x, modulation)
        out: Tensor = self.final_layer(x, modulation)
        return out.transpose(1, 2).reshape(batch, channels, rows, columns)


class PointEmbedder(nn.Module):
    """A 1 x 1 convolution, flattened: (B, C, g, g) -> (B, g*g, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 1)

    def forward(self, latents: Tensor) -> Tensor:
        out: Tensor = self.proj(latents)
        return out.flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """Time steps (B,) -> (B, width), through cosines and sines of `_TIME_CHANNELS` / 2 frequencies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        half = _TIME_CHANNELS // 2
        frequency = _LONGEST_PERIOD ** (-torch.arange(half, dtype=torch.float64, device=time.device) / half)
        angle = time[:, None].float() * frequency.float()
        out: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(dtype))
        return out


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by its token's modulation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x, modulation, answer: (B, N, width)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(modulation).chunk(6, -1)
        x = x + gate_a * self.attn(_modulated(x, shift_a, scale_a))
        out: Tensor = x + gate_m * self.mlp(_modulated(x, shift_m, scale_m))
        return out


class Attention(nn.Module):
    """Every token attends to every other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(modulation).chunk(2, -1)
        out: Tensor = self.linear(_modulated(x, shift, scale))
        return out


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def positions(width: int, grid: int) -> Tensor:
    """Fixed sine-cosine codes float32 (grid*grid, width), rows first: half the width says the column, half the row."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([_wave(column.flatten(), width // 2), _wave(row.flatten(), width // 2)], -1).float()


def _wave(place: Tensor, width: int) -> Tensor:
    half = width // 2
    angle = place[:, None].double() * _LONGEST_PERIOD ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angle.sin(), angle.cos()], -1)


def _uniform(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _zero(module: nn.Module) -> None:
    for weight in module.parameters():
        nn.init.zeros_(weight)
