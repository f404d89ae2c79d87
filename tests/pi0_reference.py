"""π0 and π0.5 written down once more, the slow way: one joint pass over the whole sequence at every Euler step.

From the facts of the papers and of openpi, on tensors under their official names; shares no code with policies/. The
mask is the full square one, positions count valid tokens, nothing is cached, and heads are repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PALIGEMMA = "paligemma_with_expert.paligemma.model."
VLM = f"{PALIGEMMA}language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
TOWER = f"{PALIGEMMA}vision_tower.vision_model."


@dataclass(frozen=True)
class Reference:
    weights: Mapping[str, Tensor]
    heads: int
    vision_heads: int
    image: int

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        y = x @ self.weights[f"{name}.weight"].T
        return y if bias is None else y + bias

    def count(self, prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in self.weights if name.startswith(prefix)})

    # pictures

    def see(self, picture: Tensor) -> Tensor:
        """(B, 3, image, image) in [-1, 1] -> (B, patches, width)."""
        kernel, bias = (self.weights[f"{TOWER}embeddings.patch_embedding.{name}"] for name in ("weight", "bias"))
        side = kernel.shape[-1]
        patches = picture.unfold(2, side, side).unfold(3, side, side)  # B, 3, rows, columns, side, side
        flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = flat @ kernel.flatten(1).T + bias + self.weights[f"{TOWER}embeddings.position_embedding.weight"]
        for layer in range(self.count(f"{TOWER}encoder.layers.")):
            name = f"{TOWER}encoder.layers.{layer}."
            h = self.layer_norm(f"{name}layer_norm1", x)
            query, key, value = (
                self.linear(f"{name}self_attn.{part}_proj", h).unflatten(2, (self.vision_heads, -1)).transpose(1, 2)
                for part in "qkv"
            )
            weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
            x = x + self.linear(f"{name}self_attn.out_proj", (weights @ value).transpose(1, 2).flatten(2))
            h = self.linear(f"{name}mlp.fc1", self.layer_norm(f"{name}layer_norm2", x))
            x = x + self.linear(f"{name}mlp.fc2", gelu(h))
        return self.linear(f"{PALIGEMMA}multi_modal_projector.linear", self.layer_norm(f"{TOWER}post_layernorm", x))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    # sequence

    def velocity(self, prefix: Tensor, valid: Tensor, state: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """noise - action at code time `time` (B,), of `noisy` (B, H, 32)."""
        pi05 = "time_mlp_in.weight" in self.weights
        horizon, width = noisy.shape[1], self.weights["action_in_proj.weight"].shape[0]
        phi = sinusoid(time, width)
        actions = self.linear("action_in_proj", noisy)
        if pi05:
            condition = silu(self.linear("time_mlp_out", silu(self.linear("time_mlp_in", phi))))
            suffix, starts = actions, [1] + [0] * (horizon - 1)
        else:
            condition = None
            mixed = torch.cat([actions, phi[:, None].expand(-1, horizon, -1)], -1)
            actions = self.linear("action_time_mlp_out", silu(self.linear("action_time_mlp_in", mixed)))
            token = self.linear("state_proj", pad(state, self.weights["state_proj.weight"].shape[1]))[:, None]
            suffix, starts = torch.cat([token, actions], 1), [1, 1] + [0] * (horizon - 1)
        everywhere = torch.cat([valid, torch.ones(valid.shape[0], suffix.shape[1], dtype=torch.bool)], 1)
        block = torch.tensor([0] * prefix.shape[1] + starts).cumsum(0)
        allowed = (block[None, :] <= block[:, None])[None] & everywhere[:, None, :]
        positions = everywhere.long().cumsum(1) - 1
        x, y = prefix, suffix
        for layer in range(self.count(f"{EXPERT}layers.")):
            x, y = self.layer(layer, x, y, condition, allowed=allowed, positions=positions)
        return self.linear("action_out_proj", self.rms(f"{EXPERT}norm", y, condition)[0][:, -horizon:])

    def layer(self, index, x, y, condition, *, allowed, positions):
        vlm, expert = f"{VLM}layers.{index}.", f"{EXPERT}layers.{index}."
        hx, _ = self.rms(f"{vlm}input_layernorm", x, None)
        hy, gate = self.rms(f"{expert}input_layernorm", y, condition)
        dim = self.weights[f"{vlm}self_attn.q_proj.weight"].shape[0] // self.heads
        query, key, value = (
            torch.cat([self.linear(f"{vlm}self_attn.{p}_proj", hx), self.linear(f"{expert}self_attn.{p}_proj", hy)], 1)
            .unflatten(2, (-1, dim))
            .transpose(1, 2)
            for p in "qkv"
        )
        repeat = self.heads // key.shape[1]
        query, key = rotate(query, positions), rotate(key, positions).repeat_interleave(repeat, 1)
        scores = (query @ key.mT / math.sqrt(dim)).masked_fill(~allowed[:, None], -2.3819763e38)
        mixed = (scores.softmax(-1) @ value.repeat_interleave(repeat, 1)).transpose(1, 2).flatten(2)
        x = x + self.linear(f"{vlm}self_attn.o_proj", mixed[:, : x.shape[1]])
        y = y + gate * self.linear(f"{expert}self_attn.o_proj", mixed[:, x.shape[1] :])
        hx, _ = self.rms(f"{vlm}post_attention_layernorm", x, None)
        hy, gate = self.rms(f"{expert}post_attention_layernorm", y, condition)
        return x + self.mlp(vlm, hx), y + gate * self.mlp(expert, hy)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        gated = gelu(self.linear(f"{name}mlp.gate_proj", x)) * self.linear(f"{name}mlp.up_proj", x)
        return self.linear(f"{name}mlp.down_proj", gated)

    def rms(self, name: str, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        normal = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        if condition is None:
            return normal * (1 + self.weights[f"{name}.weight"]), torch.ones(())
        scale, shift, gate = self.linear(f"{name}.dense", condition)[:, None].chunk(3, -1)
        return normal * (1 + scale) + shift, gate

    def prefix(
        self, pictures: Sequence[Tensor], shown: Sequence[Tensor], tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        embedding = self.weights[f"{VLM}embed_tokens.weight"]
        parts = [self.see(picture) for picture in pictures]
        seen = [flag[:, None].expand(-1, part.shape[1]) for flag, part in zip(shown, parts, strict=True)]
        words = embedding[tokens] * math.sqrt(embedding.shape[1])
        return torch.cat([*parts, words], 1), torch.cat([*seen, mask], 1)

    def sample(self, pictures, shown, tokens, mask, state, *, noise, steps=10) -> Tensor:
        prefix, valid = self.prefix(pictures, shown, tokens, mask)
        x = noise
        for step in range(steps):
            time = torch.full((len(noise),), 1.0 - step / steps)
            x = x - self.velocity(prefix, valid, state, x, time) / steps
        return x


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, T, dim): the pair (i, i + dim/2) turns by position * 10000^(-2i/dim)."""
    half = x.shape[-1] // 2
    angle = positions[:, None, :, None] * 10000.0 ** (-torch.arange(half) / half)
    turned = torch.polar(torch.ones_like(angle), angle) * torch.complex(x[..., :half], x[..., half:])
    return torch.cat([turned.real, turned.imag], -1)


def sinusoid(time: Tensor, width: int) -> Tensor:
    period = 0.004 * 1000.0 ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = 2 * math.pi * time.double()[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], -1).float()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def pad(x: Tensor, width: int) -> Tensor:
    return torch.cat([x, torch.zeros(*x.shape[:-1], width - x.shape[-1])], -1)
