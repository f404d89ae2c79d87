"""π0 and π0.5 as PyTorch modules: a SigLIP + Gemma prefix, read once, and an action expert that denoises a chunk.

Sequence and mask. Block 0 is the prefix (each camera's patches, then the prompt), block 1 the state token (π0 only),
block 2 the noisy actions; a token attends to every valid token of its own and earlier blocks, and position =
cumsum(valid) - 1. Within a block the mask is therefore the same for every query: it is kept as one row per sample.
What a block computes never depends on later blocks, so the keys and values of the prefix *and* of the state token are
computed once per inference, and an Euler step runs the action tokens alone. The weights of the last prefix layer after
its keys and values, and the final norm of the prefix, reach no action.

Time. This file uses the code's convention (openpi, lerobot): t = 1 is noise, t = 0 is the action,

    x_t = t noise + (1 - t) action        velocity = noise - action        x_{t - 1/n} = x_t - velocity / n

and t = 0.999 u + 0.001 with u ~ Beta(1.5, 1) in training: most weight near noise. The paper writes τ = 1 - t, so its
velocity is action - noise, its Euler steps go up from τ = 0, and its density is Beta((s - τ) / s; 1.5, 1), s = 0.999.
Velocities are what the official models answer. The tiny one answers the action, as the tiny Diffusion Policy does:
noise has to get through a network to come out of it, and a narrow one whose features are normalised has no room for it
(Li and He 2025, arXiv:2511.13720). The last Euler step, from t = 1/n, then ends in the answer itself.

Gemma and SigLIP layers are those of `transformers`; the way through them is ours, because the two experts share every
attention, and π0.5's expert has adaptive norms with gated residuals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GemmaConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRMSNorm

from vla_bench.errors import UsageError

from ..torch.stem import Stem, put_stem

Variant = Literal["pi0", "pi05"]
Predicts = Literal["velocity", "sample"]
STEPS = 10  # Euler steps of both papers and of every released checkpoint
ROPE_BASE = 10_000.0
NORM_EPS = 1e-6
BETA_ALPHA, TIME_SCALE, TIME_OFFSET = 1.5, 0.999, 0.001


@dataclass(frozen=True)
class Sizes:
    """Everything the architecture depends on; the defaults are the official π0's."""

    variant: Variant = "pi0"
    horizon: int = 50
    action_dim: int = 32
    """Width that actions are padded to with zeros."""
    state_dim: int = 32
    """The same of states."""
    image: int = 224
    """Side of the square pictures, pixels."""
    patch: int = 14
    vision_width: int = 1152
    vision_depth: int = 27
    vision_mlp: int = 4304
    vision_heads: int = 16
    vocabulary: int = 257_152
    width: int = 2048
    mlp: int = 16_384
    expert_width: int = 1024
    expert_mlp: int = 4096
    depth: int = 18
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 256
    min_period: float = 4e-3
    max_period: float = 4.0
    stem: Stem = "patch"
    """What makes tokens of pixels."""
    predicts: Predicts = "velocity"
    """What the expert answers: the velocity, or the action, whose velocity is (x_t - action) / t."""

    @property
    def patches(self) -> int:
        """Tokens per camera."""
        return (self.image // self.patch) ** 2


def tiny(variant: Variant, vocabulary: int, horizon: int = 10, image: int = 60) -> Sizes:
    """About one million parameters with every part of the big one."""
    return Sizes(
        variant=variant,
        horizon=horizon,
        image=image,
        patch=12,
        stem="residual",
        vision_width=128,
        vision_depth=2,
        vision_mlp=256,
        vision_heads=4,
        vocabulary=vocabulary,
        width=128,
        mlp=256,
        expert_width=96,
        expert_mlp=256,
        depth=3,
        head_dim=16,
        predicts="sample",
    )


class Prefix(NamedTuple):
    """What the denoising needs of an observation: S = prefix tokens, and the state token where there is one."""

    keys: list[Tensor]
    """Per layer, (B, kv heads, S, head_dim), rotated."""
    values: list[Tensor]
    bias: Tensor
    """(B, 1, 1, S + H), added to attention scores: 0 where a token may be seen."""
    rotation: tuple[Tensor, Tensor]
    """cos and sin at the positions of the H actions, (B, 1, H, head_dim)."""

    def repeated(self, times: int) -> Prefix:
        """That many times the same, one after the other: a batch of `times` B."""

        def whole(tensor: Tensor) -> Tensor:
            return tensor.repeat(times, *([1] * (tensor.ndim - 1)))

        if times == 1:
            return self
        cosine, sine = map(whole, self.rotation)
        return Prefix([*map(whole, self.keys)], [*map(whole, self.values)], whole(self.bias), (cosine, sine))


class AdaptiveNorm(nn.Module):
    """RMS norm whose scale, shift and gate (in this order) are linear in the time features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, width) and (B or 1, 3 width) -> the normalised x and its residual's gate."""
        scale, shift, gate = modulation[:, None].chunk(3, dim=-1)
        normal = F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS)
        return (normal * (1.0 + scale) + shift).to(x.dtype), gate.to(x.dtype)


class Pi0Model(nn.Module):
    """π0 or π0.5, by `sizes.variant`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision: Any = _siglip(sizes)
        self.projector = nn.Linear(sizes.vision_width, sizes.width)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.vlm: Any = _gemma(sizes, sizes.width, sizes.mlp)
        self.expert: Any = _gemma(sizes, sizes.expert_width, sizes.expert_mlp)
        self.expert_norm: Any = GemmaRMSNorm(sizes.expert_width, eps=NORM_EPS)
        width = sizes.expert_width
        self.action_in_proj = nn.Linear(sizes.action_dim, width)
        self.action_out_proj = nn.Linear(width, sizes.action_dim)
        if sizes.variant == "pi0":
            self.state_proj = nn.Linear(sizes.state_dim, width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)
        else:
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
            self.expert_norm = AdaptiveNorm(width)
            for layer in self.expert:
                layer.input_layernorm = AdaptiveNorm(width)
                layer.post_attention_layernorm = AdaptiveNorm(width)

    # Acting

    def sample(
        self,
        images: Sequence[Tensor],
        image_masks: Sequence[Tensor],
        tokens: Tensor,
        token_mask: Tensor,
        state: Tensor | None,
        *,
        noise: Tensor,
        steps: int = STEPS,
    ) -> Tensor:
        """(B, H, 32): the denoised chunk, still normalised.

        Args:
            images: per camera, float (B, 3, height, width) in [0, 1] of any size; resized with padding here.
            image_masks: per camera, bool (B,): False for a missing view, whose picture is then not looked at.
            tokens: int (B, L), the prompt, padded at will.
            token_mask: bool (B, L), False at padding.
            state: float (B, up to 32), normalised. π0.5 has it in its prompt and ignores this one.
            noise: float32 (B, H, 32), where the denoising starts.
            steps: Euler steps.
        """
        pixels = [resize_with_pad(image, self.sizes.image) * 2.0 - 1.0 for image in images]
        prefix = self.prefill(self.see(pixels), image_masks, tokens, token_mask, state)
        return self.denoise(prefix, noise, steps)

    def see(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Per camera (B, 3, side, side) in [-1, 1] -> (B, patches, width), all cameras in one pass.

        Not scaled by sqrt(width) as the prompt's embeddings are (openpi and lerobot agree).
        """
        weight = self.projector.weight
        hidden = self.vision(torch.cat(list(pixels)).to(weight.device, weight.dtype)).last_hidden_state
        return list(self.projector(hidden).chunk(len(pixels)))

    def prefill(
        self,
        features: Sequence[Tensor],
        image_masks: Sequence[Tensor],
        tokens: Tensor,
        token_mask: Tensor,
        state: Tensor | None,
    ) -> Prefix:
        """Keys and values of the pictures, the prompt and π0's state token; arguments as in `sample`."""
        dtype = self.expert[0].mlp.up_proj.weight.dtype
        scale = torch.tensor(math.sqrt(self.sizes.width), dtype=self.embedding.weight.dtype, device=tokens.device)
        x = torch.cat([*features, self.embedding(tokens) * scale], dim=1).to(dtype)
        seen = [mask[:, None].expand(-1, feature.shape[1]) for mask, feature in zip(image_masks, features, strict=True)]
        valid = torch.cat([*seen, token_mask.bool()], dim=1)
        bias = torch.zeros(valid.shape, dtype=dtype, device=x.device)
        bias = bias.masked_fill(~valid, 0.7 * torch.finfo(dtype).min)[:, None, None]
        keys, values = self._read(x, bias, _rotation(valid.cumsum(1) - 1, self.sizes.head_dim, dtype))
        after = valid.sum(1, keepdim=True)
        if self.sizes.variant == "pi0":
            if state is None:
                raise UsageError("π0 reads a state, got none.")
            bias = F.pad(bias, (0, 1))
            keys, values = self._remember(state, keys, values, bias, _rotation(after, self.sizes.head_dim, dtype))
            after = after + 1
        positions = after + torch.arange(self.sizes.horizon, device=x.device)
        return Prefix(
            keys, values, F.pad(bias, (0, self.sizes.horizon)), _rotation(positions, self.sizes.head_dim, dtype)
        )

    def denoise(self, prefix: Prefix, noise: Tensor, steps: int = STEPS) -> Tensor:
        """(B, H, 32): noise integrated from t = 1 down to 0 in Euler steps, t = 1, 1 - 1/steps, ..., 1/steps."""
        times = (1.0 - torch.arange(steps, dtype=torch.float64, device=noise.device) / steps).float()
        moments = self.moments(times)
        x = noise
        for step in range(steps):
            answer = self.answer(prefix, x, moments[step : step + 1])
            velocity = answer if self.sizes.predicts == "velocity" else (x - answer) / times[step]
            x = x - velocity / steps
        return x

    # The parts

    def moments(self, times: Tensor) -> Tensor:
        """(N, norms, C): all that the expert does with N times alone, so that no Euler step has to.

        π0: one row, the time's share of `action_time_mlp_in` (C = width). π0.5: one row per adaptive norm, two in each
        layer and the final one (C = 3 width).
        """
        features = time_features(times, self.sizes).to(self.action_in_proj.weight.dtype)
        if self.sizes.variant == "pi0":
            weight = self.action_time_mlp_in.weight[:, self.sizes.expert_width :]
            return F.linear(features, weight, self.action_time_mlp_in.bias)[:, None]
        condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(features))))
        norms = [norm for layer in self.expert for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        return torch.stack([norm.dense(condition) for norm in [*norms, self.expert_norm]], dim=1)

    def answer(self, prefix: Prefix, actions: Tensor, moment: Tensor) -> Tensor:
        """(B, H, 32) float32: what the expert `predicts`, at noisy `actions` and rows (B or 1) of `moments`."""
        x = self.action_in_proj(actions)
        if self.sizes.variant == "pi0":
            x = F.silu(F.linear(x, self.action_time_mlp_in.weight[:, : self.sizes.expert_width]) + moment)
            x = self.action_time_mlp_out(x)
        x = x.to(prefix.bias.dtype)
        for index, layer in enumerate(self.expert):
            h, gate = _normal(layer.input_layernorm, x, moment, 2 * index)
            query, key, value = _project(layer.self_attn, h, prefix.rotation)
            key = torch.cat([prefix.keys[index], key], dim=2)
            value = torch.cat([prefix.values[index], value], dim=2)
            x = _add(x, _attend(layer.self_attn, query, key, value, prefix.bias), gate)
            h, gate = _normal(layer.post_attention_layernorm, x, moment, 2 * index + 1)
            x = _add(x, layer.mlp(h), gate)
        x, _ = _normal(self.expert_norm, x, moment, -1)
        answer: Tensor = self.action_out_proj(x.to(self.action_out_proj.weight.dtype))
        return answer

    def _read(self, x: Tensor, bias: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of every layer of the prefix."""
        keys, values = [], []
        for layer in self.vlm:
            query, key, value = _project(layer.self_attn, _rms(layer.input_layernorm, x), rotation)
            keys.append(key)
            values.append(value)
            if layer is not self.vlm[-1]:
                x = x + _attend(layer.self_attn, query, key, value, bias)
                x = x + layer.mlp(_rms(layer.post_attention_layernorm, x))
        return keys, values

    def _remember(
        self,
        state: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        bias: Tensor,
        rotation: tuple[Tensor, Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The prefix's keys and values with the state token's appended: it sees no action, and no time."""
        x = self.state_proj(pad_to(state, self.sizes.state_dim))[:, None].to(bias.dtype)
        all_keys, all_values = [], []
        for index, layer in enumerate(self.expert):
            query, key, value = _project(layer.self_attn, _rms(layer.input_layernorm, x), rotation)
            all_keys.append(torch.cat([keys[index], key], dim=2))
            all_values.append(torch.cat([values[index], value], dim=2))
            x = x + _attend(layer.self_attn, query, all_keys[-1], all_values[-1], bias)
            x = x + layer.mlp(_rms(layer.post_attention_layernorm, x))
        return all_keys, all_values

    # Learning

    def flow_loss(self, prefix: Prefix, actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Mean squared error of what is predicted over B, H and all 32 dimensions, padding included, as openpi does.

        `actions` (B, H, 32) normalised and padded, `noise` alike, `times` (B,) in the code's convention.
        """
        t = times.to(actions.dtype)[:, None, None]
        noisy = t * noise + (1.0 - t) * actions
        wanted = noise - actions if self.sizes.predicts == "velocity" else actions
        return F.mse_loss(self.answer(prefix, noisy, self.moments(times)), wanted)

    # Precision

    def cast(self, dtype: torch.dtype) -> Pi0Model:
        """The model in that dtype, but for what lerobot's and openpi's half precision keeps in float32.

        Those are the vision tower and its projector, every norm, and the projections of states, actions and times.
        """
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if _stays_float32(name) else dtype)
        return self

    def leave_meta(self) -> None:
        """Make what no checkpoint holds, after weights were given to a model built on the meta device."""
        self.vision.embeddings.position_ids = torch.arange(self.sizes.patches)[None]


def _stays_float32(name: str) -> bool:
    gemma = name.startswith(("vlm.", "expert."))
    return "norm" in name if gemma else not name.startswith("embedding.")


def _siglip(sizes: Sizes) -> Any:
    config = SiglipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=sizes.vision_mlp,
        num_hidden_layers=sizes.vision_depth,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image,
        patch_size=sizes.patch,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=NORM_EPS,
        vision_use_head=False,
    )
    model: Any = SiglipVisionModel(config)
    tower = getattr(model, "vision_model", model)  # later versions of transformers have no module between
    put_stem(tower.embeddings, "patch_embedding", sizes.stem, sizes.vision_width, sizes.patch)
    return tower


def _gemma(sizes: Sizes, width: int, mlp: int) -> nn.ModuleList:
    config = GemmaConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        hidden_act="gelu_pytorch_tanh",
        rms_norm_eps=NORM_EPS,
        attention_bias=False,
    )
    return nn.ModuleList(GemmaDecoderLayer(config, layer_idx=index) for index in range(sizes.depth))


def _normal(norm: nn.Module, x: Tensor, moment: Tensor, row: int) -> tuple[Tensor, Tensor | None]:
    """The normalised x, and the gate of its residual where the norm is adaptive."""
    if isinstance(norm, AdaptiveNorm):
        normal, gate = norm(x, moment[:, row])
        return normal, gate
    return _rms(norm, x), None


def _rms(norm: Any, x: Tensor) -> Tensor:
    """What `GemmaRMSNorm` computes, in two operations: at tiny sizes the calls cost more than the numbers."""
    return F.rms_norm(x.float(), x.shape[-1:], 1.0 + norm.weight.float(), NORM_EPS).to(x.dtype)


def _add(x: Tensor, residual: Tensor, gate: Tensor | None) -> Tensor:
    return x + (residual if gate is None else residual * gate)


def _project(attention: Any, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries (B, heads, T, head_dim), rotated keys and values (B, kv heads, T, head_dim)."""
    split = (*x.shape[:2], -1, attention.head_dim)
    query, key, value = (project(x).view(split) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    heads = [query.shape[2], key.shape[2]]
    both = _rotated(torch.cat([query, key], dim=2).transpose(1, 2), rotation)
    query, key = torch.split(both, heads, dim=1)
    return query, key, value.transpose(1, 2)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(B, T, width). The query heads that share a key head stand in line as further queries: nothing is repeated."""
    batch, heads, length, dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, dim)
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=bias)
    joined = attended.view(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, heads * dim)
    out: Tensor = attention.o_proj(joined)
    return out


def _rotation(positions: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding at positions (B, T): (B, 1, T, dim)."""
    frequencies = ROPE_BASE ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
    angles = (positions[..., None].float() * frequencies)[:, None].repeat(1, 1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


def time_features(times: Tensor, sizes: Sizes) -> Tensor:
    """float32 (N, expert width): sines, then cosines, with periods spaced by ratio from 0.004 to 4."""
    share = torch.linspace(0.0, 1.0, sizes.expert_width // 2, dtype=torch.float64, device=times.device)
    period = sizes.min_period * (sizes.max_period / sizes.min_period) ** share
    angles = times.double()[:, None] * (2.0 * math.pi / period)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def sample_times(batch: int, generator: torch.Generator) -> Tensor:
    """float32 (batch,) on the CPU: 0.999 u + 0.001, u ~ Beta(1.5, 1), whose distribution function u^1.5 is inverted."""
    return TIME_SCALE * torch.rand(batch, generator=generator) ** (1.0 / BETA_ALPHA) + TIME_OFFSET


def pad_to(values: Tensor, dim: int) -> Tensor:
    """(..., up to dim) -> (..., dim), zeros at the end. Raises UsageError when there are more."""
    if values.shape[-1] > dim:
        raise UsageError(f"The model takes {dim} numbers at most, got {values.shape[-1]}.")
    return F.pad(values, (0, dim - values.shape[-1]))


def resize_with_pad(image: Tensor, side: int) -> Tensor:
    """(B, C, height, width) in [0, 1] -> (B, C, side, side) in [0, 1], as lerobot 0.5 and later do it.

    Shape kept, bilinear without antialiasing, centred in black; an odd pixel of padding goes right or down.
    """
    height, width = image.shape[-2:]
    if (height, width) == (side, side):
        return image
    ratio = max(width / side, height / side)
    rows, columns = int(height / ratio), int(width / ratio)
    resized = F.interpolate(image, size=(rows, columns), mode="bilinear", align_corners=False).clamp(0.0, 1.0)
    left, top = (side - columns) // 2, (side - rows) // 2
    return F.pad(resized, (left, side - columns - left, top, side - rows - top))
