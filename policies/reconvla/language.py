"""Qwen2, small enough to decode 35 tokens within an inference: same maths and parameter names as transformers' own.

transformers' Qwen2 is made for long texts of large models: at tiny sizes its bookkeeping (cache objects, masks, hooks)
is most of a decoding step. Here a step is about twenty kernels per layer over keys and values laid out beforehand,
with no data-dependent shape, so that it can be compiled and replayed as a CUDA graph: 35 tokens of 3 layers and 128
channels took 45 % of transformers' time on one core. A test compares it with transformers' Qwen2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROUND = 64
"""Caches grow in steps of this many tokens, so that a compiled step meets few shapes."""
_INIT_STD = 0.02


@dataclass(frozen=True)
class LanguageSizes:
    """Of Qwen2; the defaults are Qwen2-7B's."""

    vocabulary: int = 152064
    width: int = 3584
    depth: int = 28
    heads: int = 28
    kv_heads: int = 4
    mlp: int = 18944
    theta: float = 1e6
    """Base of the rotary positions."""
    eps: float = 1e-6

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Turn(NamedTuple):
    """Rotary position codes, each (B, 1, L, head width); the first half of `sine` is negated."""

    cosine: Tensor
    sine: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, heads, L, head width), turned. Rolling by half swaps the halves that are paired."""
        return torch.addcmul(x * self.cosine, x.roll(x.shape[-1] // 2, -1), self.sine)


class Cache(NamedTuple):
    """Keys and values of one layer: (B, kv heads, tokens, head width) each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Causal attention with fewer keys than queries; query heads in groups share one key head."""

    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.group, self.head_width = sizes.heads // sizes.kv_heads, sizes.head_width
        self.q_proj = nn.Linear(sizes.width, sizes.heads * sizes.head_width)
        self.k_proj = nn.Linear(sizes.width, sizes.kv_heads * sizes.head_width)
        self.v_proj = nn.Linear(sizes.width, sizes.kv_heads * sizes.head_width)
        self.o_proj = nn.Linear(sizes.heads * sizes.head_width, sizes.width, bias=False)

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj

    def forward(self, x: Tensor, turn: Turn, mask: Tensor | None, kept: Cache | None) -> Tensor:
        """(B, L, width) -> the same. No mask means causal; `kept`, one layer's cache, gets the keys and values."""
        shape = (*x.shape[:-1], -1, self.head_width)
        query, key, value = (part(x).view(shape).transpose(1, 2) for part in self.projections)
        query, key = turn(query), turn(key)
        if kept is not None:
            kept.keys[:, :, : x.shape[1]] = key
            kept.values[:, :, : x.shape[1]] = value
        key, value = (part.repeat_interleave(self.group, 1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.down_proj = nn.Linear(sizes.mlp, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes)
        self.input_layernorm = nn.RMSNorm(sizes.width, eps=sizes.eps)
        self.post_attention_layernorm = nn.RMSNorm(sizes.width, eps=sizes.eps)

    def forward(self, x: Tensor, turn: Turn, mask: Tensor | None, kept: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask, kept)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Lean(NamedTuple):
    """One layer's weights for one token at a time: queries, keys and values in one product."""

    before_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    before_mlp: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: Layer) -> Lean:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            layer.input_layernorm.weight,
            torch.cat([part.weight.detach() for part in attention.projections]),
            torch.cat([part.bias.detach() for part in attention.projections]),
            attention.o_proj.weight,
            layer.post_attention_layernorm.weight,
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
            mlp.down_proj.weight,
        )


class Memory(NamedTuple):
    """What a step of decoding reads and writes, by layer."""

    layers: Sequence[Lean]
    caches: Sequence[Cache]
    eps: Tensor


class Decoding(NamedTuple):
    """What every step of decoding T tokens after a prompt needs, made once."""

    memory: Memory
    turns: Sequence[Turn]
    masks: Sequence[Tensor]
    """(B, 1, 1, tokens), added to the scores: minus infinity for keys that this step may not look at."""
    places: Sequence[Tensor]
    """int64 (1,): where this step's key goes."""


class Qwen2(nn.Module):
    """The language model without its head: embeddings in, normalised states out."""

    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.pinned = False
        """Whether memories keep their addresses, for a compiled `step`: a CUDA graph writes where it was recorded."""
        self._memories: dict[tuple[int, ...], Memory] = {}
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))
        self.norm = nn.RMSNorm(sizes.width, eps=sizes.eps)
        self.apply(normal)

    def forward(self, embeds: Tensor, valid: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """States (B, L, width) of `embeds`; `valid` bool (B, L) is False for padding, which is on the left."""
        turn = self._turn((valid.cumsum(1) - 1).clamp(min=0), embeds.dtype)
        mask = None if bool(valid.all()) else _causal(valid)
        for index, layer in enumerate(self.layers):
            embeds = layer(embeds, turn, mask, caches and caches[index])
        out: Tensor = self.norm(embeds)
        return out

    def prefill(self, embeds: Tensor, valid: Tensor, steps: int) -> tuple[Tensor, Decoding]:
        """States of a prompt, as `forward`, and all that decoding `steps` tokens after it needs."""
        plan = self._plan(valid, steps, embeds)
        return self(embeds, valid, plan.memory.caches), plan

    def step(self, embeds: Tensor, turn: Turn, mask: Tensor, place: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """One token's embedding (B, 1, width) -> its state, and its queries (layers, B, kv heads, group, head width).

        A group's queries stand where a sequence of queries would, so that no key is copied.
        """
        batch, heads, kv_heads = len(embeds), self.sizes.heads, self.sizes.kv_heads
        shape, grouped, asked = (batch, -1, 1, self.sizes.head_width), (batch, kv_heads, -1, self.sizes.head_width), []
        x = embeds
        for layer, cache in zip(memory.layers, memory.caches, strict=True):
            qkv = F.linear(self._norm(x, layer.before_attention, memory.eps), layer.qkv, layer.qkv_bias).view(shape)
            turned = turn(qkv[:, : heads + kv_heads])
            cache.keys.index_copy_(2, place, turned[:, heads:])
            cache.values.index_copy_(2, place, qkv[:, heads + kv_heads :])
            queries = turned[:, :heads].reshape(grouped)
            mixed = F.scaled_dot_product_attention(queries, cache.keys, cache.values, mask)
            x = x + F.linear(mixed.reshape(batch, 1, -1), layer.out)
            inner = self._norm(x, layer.before_mlp, memory.eps)
            x = x + F.linear(F.silu(F.linear(inner, layer.gate)) * F.linear(inner, layer.up), layer.down)
            asked.append(queries)
        return self._norm(x, self.norm.weight, memory.eps), torch.stack(asked)

    def _norm(self, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        """RMSNorm of (B, 1, width); on a CPU, where torch has no kernel for it, the mean square by one product."""
        if x.dtype is not torch.float32:
            return F.rms_norm(x, weight.shape, weight, self.sizes.eps)
        return x * torch.baddbmm(eps, x, x.transpose(1, 2), alpha=1 / len(weight)).rsqrt() * weight

    def _plan(self, valid: Tensor, steps: int, like: Tensor) -> Decoding:
        length = valid.shape[1]
        total = -(-(length + steps) // _ROUND) * _ROUND
        later = torch.arange(steps, device=valid.device)
        turns = self._turn(valid.sum(1, keepdim=True) + later, like.dtype)
        keys = torch.arange(total, device=valid.device)
        hidden = ~F.pad(valid, (0, total - length), value=True) | (keys > (length + later)[:, None, None])
        return Decoding(
            self._memory((len(valid), self.sizes.kv_heads, total, self.sizes.head_width), like),
            [Turn(turns.cosine[:, :, [step]], turns.sine[:, :, [step]]) for step in range(steps)],
            list(like.new_zeros(()).masked_fill(hidden, -torch.inf)[:, :, None, None]),
            list((length + later)[:, None]),
        )

    def _memory(self, shape: tuple[int, ...], like: Tensor) -> Memory:
        """Room for that many keys. A pinned one holds what it held before, which the masks hide."""
        if self.pinned and shape in self._memories:
            return self._refreshed(self._memories[shape])
        layers = [Lean.of(cast(Layer, layer)) for layer in self.layers]
        caches = [Cache(like.new_zeros(shape), like.new_zeros(shape)) for _ in layers]
        memory = Memory(layers, caches, like.new_full((), self.sizes.eps))
        if self.pinned:
            self._memories[shape] = memory
            for part in (memory.eps, *(tensor for group in (*layers, *caches) for tensor in group)):
                torch._dynamo.mark_static_address(part)
        return memory

    def _refreshed(self, memory: Memory) -> Memory:
        """The same memory with the weights as they are now."""
        for old, layer in zip(memory.layers, self.layers, strict=True):
            now = Lean.of(cast(Layer, layer))
            old.qkv.copy_(now.qkv)
            old.qkv_bias.copy_(now.qkv_bias)
        return memory

    def _turn(self, places: Tensor, dtype: torch.dtype) -> Turn:
        """Codes of positions (B, L), computed in float32 as transformers does."""
        width = self.sizes.head_width
        exponent = torch.arange(0, width, 2, dtype=torch.float32, device=places.device) / width
        angle = places[:, None, :, None].float() * (1.0 / self.sizes.theta**exponent)
        cosine, sine = angle.cos(), angle.sin()
        return Turn(torch.cat([cosine, cosine], -1).to(dtype), torch.cat([-sine, sine], -1).to(dtype))


def _causal(valid: Tensor) -> Tensor:
    """bool (B, 1, L, L): valid keys up to the query's own; padding looks at itself, so that nothing is undefined."""
    length = valid.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    return (earlier & valid[:, None] | itself)[:, None]


def normal(module: nn.Module) -> None:
    """Draw a module's own weights as Qwen2 was: standard deviation 0.02, no bias."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
