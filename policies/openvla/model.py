"""OpenVLA (arXiv 2406.09246) and OpenVLA-OFT (arXiv 2502.19645): pictures before the prompt of a Llama.

    BOS · patches of every picture · state (OFT) · prompt · 29871 · seven action tokens · </s>

Facts: openvla/openvla c8f03f4 and moojink/openvla-oft 213c5ff, prismatic/extern/hf/modeling_prismatic.py.

- `tokens`: causal, greedy, exactly one token per action dimension, no search for an end.
- `l1`: one pass. The action tokens' embeddings are zeros and attention goes both ways, `</s>` at the end included; the
  head reads the states one place before each action token, as next-token prediction would.
- `rms_norm_eps` is 1e-6, the default of the config that the conversion made, not Llama 2's own 1e-5.

The parameters are those of transformers' Llama, under its names; the way through its layers is ours, for its caches and
the arguments of its layers change between releases. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from .vision import DINOV2_LARGE, SIGLIP_SO400M, TowerSizes, VisionBackbone

Head = Literal["tokens", "l1"]
RESNET_BLOCKS = 2  # of OFT's action head, prismatic/models/action_heads.py
_ROOM = 64  # the cache's length is a multiple of this: few shapes to compile for


@dataclass(frozen=True)
class LlmSizes:
    """A Llama; the defaults are those of transformers' LlamaConfig, which official config.json files leave out."""

    vocab_size: int
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    intermediate_size: int = 11008
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Sizes:
    """All that shapes the tensors."""

    towers: tuple[TowerSizes, ...]
    llm: LlmSizes
    head: Head = "tokens"
    action_dim: int = 7
    chunk: int = 1
    """Actions per inference; more than one only with the l1 head."""
    state_dim: int = 0
    """Numbers of the state, 0 where it is not read."""
    views: int = 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Sizes:
        towers = tuple(TowerSizes(**tower) for tower in given["towers"])
        return cls(**{**given, "towers": towers, "llm": LlmSizes(**given["llm"])})


OPENVLA_7B = Sizes((DINOV2_LARGE, SIGLIP_SO400M), LlmSizes(32064))
OFT_LIBERO = Sizes(OPENVLA_7B.towers, OPENVLA_7B.llm, "l1", chunk=8, state_dim=8, views=2)


class Projector(nn.Module):
    """Features to token embeddings: three layers behind two towers, two behind one."""

    def __init__(self, width: int, hidden: int, fused: bool) -> None:
        super().__init__()
        first = 4 * width if fused else hidden
        self.fc1 = nn.Linear(width, first)
        self.fc2 = nn.Linear(first, hidden)
        if fused:
            self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(functional.gelu(self.fc1(features)))
        return self.fc3(functional.gelu(hidden)) if hasattr(self, "fc3") else hidden


class StateProjector(nn.Module):
    """OFT's one token for the robot's state."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(state)))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)  # type: ignore[no-any-return]


class ResidualMlp(nn.Module):
    def __init__(self, given: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(given)
        self.fc1 = nn.Linear(given, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(RESNET_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))  # type: ignore[no-any-return]


class ActionHead(nn.Module):
    """OFT's regression head: the states of one action's tokens, side by side, to that action."""

    def __init__(self, hidden: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMlp(hidden * action_dim, hidden, action_dim)

    def forward(self, states: Tensor) -> Tensor:
        """(B, chunk * A, hidden) -> (B, chunk, A)."""
        grouped = states.reshape(len(states), -1, self.action_dim * states.shape[-1])
        return self.model(grouped)  # type: ignore[no-any-return]


class Sequences(NamedTuple):
    """Rows of embeddings that end together."""

    embeddings: Tensor
    """(B, L, hidden)."""
    valid: Tensor | None
    """bool (B, L), False in front of the shorter rows; None when all are as long."""


class KeyValues:
    """Keys and values of every layer, with room for the tokens to come."""

    def __init__(self, sizes: LlmSizes, batch: int, length: int, like: Tensor) -> None:
        shape = batch, sizes.num_key_value_heads, length, sizes.head_dim
        self.keys = [like.new_zeros(shape) for _ in range(sizes.num_hidden_layers)]
        self.values = [like.new_zeros(shape) for _ in range(sizes.num_hidden_layers)]
        self.readable = torch.zeros(batch, 1, 1, length, dtype=torch.bool, device=like.device)
        self.slots = torch.zeros(1, dtype=torch.long, device=like.device)
        """Where the tokens at hand are written."""
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=like.device)
        """Of the token at hand in each row, padding not counted."""
        self.sound = torch.ones(batch, 1, dtype=torch.bool, device=like.device)
        """Whether the logits that each row's ids were chosen from were numbers."""

    def pin(self) -> None:
        """Let compiled code write into these very tensors: CUDA graphs need addresses that stay."""
        for buffer in (*self.keys, *self.values, self.readable, self.positions, self.sound):
            torch._dynamo.mark_static_address(buffer)

    def put(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, heads, n, head_dim) and return what to attend to: a prefix sees itself, a token everything."""
        self.keys[layer].index_copy_(2, self.slots, keys)
        self.values[layer].index_copy_(2, self.slots, values)
        return (keys, values) if keys.shape[2] > 1 else (self.keys[layer], self.values[layer])

    def start(self, sequences: Sequences) -> None:
        """Forget everything; a prefix of this many tokens comes next."""
        length = sequences.embeddings.shape[1]
        self.slots = torch.arange(length, device=self.readable.device)
        self.readable.zero_()
        self.readable[..., :length] = True if sequences.valid is None else sequences.valid[:, None, None]
        self.positions.copy_(_positions(sequences)[:, -1:].expand_as(self.positions))
        self.sound.fill_(True)

    def next(self) -> None:
        """One more token comes next."""
        self.slots = self.slots[-1:] + 1
        self.readable.index_fill_(3, self.slots, True)
        self.positions += 1


Step = Callable[[Tensor, KeyValues], Tensor]


class OpenVLAModel(nn.Module):
    """Pictures, a prompt and perhaps a state in; action token ids or normalised actions out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_backbone = VisionBackbone(sizes.towers)
        hidden = sizes.llm.hidden_size
        self.projector = Projector(self.vision_backbone.width, hidden, fused=len(sizes.towers) == 2)
        self.language_model = LlamaForCausalLM(_llama(sizes.llm))
        self.language_model.model.rotary_emb = nn.Identity()  # `frequencies` are instead of it
        self.frequencies = nn.Buffer(_frequencies(sizes.llm), persistent=False)
        if sizes.state_dim:
            self.proprio_projector = StateProjector(sizes.state_dim, hidden)
        if sizes.head == "l1":
            self.action_head = ActionHead(hidden, sizes.action_dim)
        self.pinned = False
        """Whether memories are pinned, for a compiled `step`."""
        self._rooms: dict[tuple[int, int], KeyValues] = {}

    def leave_meta(self) -> None:
        """Make what no checkpoint holds, after weights were given to a model built on the meta device."""
        for module in self.modules():
            if isinstance(module, SiglipVisionEmbeddings):
                module.position_ids = nn.Buffer(torch.arange(module.num_positions)[None], persistent=False)

    # Sequences

    def look(self, pictures: Tensor, state: Tensor | None = None) -> Tensor:
        """uint8 (B, views, side, side, 3), normalised state (B, S) -> (B, views * patches (+ 1), hidden)."""
        batch = len(pictures)
        seen = self.projector(self.vision_backbone(pictures.flatten(0, 1))).reshape(batch, -1, self._hidden)
        if state is None:
            return seen  # type: ignore[no-any-return]
        return torch.cat([seen, self.proprio_projector(state.to(seen.dtype))[:, None]], dim=1)

    def sequences(self, seen: Tensor, prompts: Sequence[Sequence[int]], tail: Tensor | None = None) -> Sequences:
        """What `look` gave, put behind the first id of each prompt; `tail` (B, n, hidden) comes after the last."""
        rows = []
        for row, ids in enumerate(prompts):
            words = self.embed(torch.tensor(ids, device=seen.device))
            parts = [words[:1], seen[row], words[1:], *([] if tail is None else [tail[row]])]
            rows.append(torch.cat(parts))
        return _padded(rows)

    def embed(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)  # type: ignore[no-any-return]

    # tokens

    @torch.inference_mode()
    def prefill(self, sequences: Sequences, count: int) -> tuple[Tensor, KeyValues]:
        """The first of `count` ids (B, 1), and the memory to make the others with."""
        embeddings = sequences.embeddings
        memory = self._room(len(embeddings), embeddings.shape[1] + count - 1, embeddings)
        memory.start(sequences)
        return self._likeliest(self.read(sequences, memory=memory)[:, -1:], memory), memory

    @torch.inference_mode()
    def decode(self, first: Tensor, memory: KeyValues, count: int, step: Step | None = None) -> Tensor:
        """All `count` greedy ids, (B, count); `step` is a compiled `self.step`."""
        step, ids = step or self.step, [first]
        for _ in range(count - 1):
            memory.next()
            ids.append(step(ids[-1], memory).clone())
        return torch.cat(ids, dim=1)

    def step(self, ids: Tensor, memory: KeyValues) -> Tensor:
        """(B, 1) -> the ids after them, (B, 1)."""
        return self._likeliest(self._layers(self.embed(ids), memory.positions, memory.readable, memory), memory)

    def _likeliest(self, hidden: Tensor, memory: KeyValues) -> Tensor:
        """The ids (B, 1) of the largest logits; NaN is held for larger than any number, which the memory is told."""
        logits: Tensor = self.language_model.lm_head(hidden)
        ids = logits.argmax(-1)
        memory.sound.logical_and_(logits.gather(-1, ids[..., None])[..., 0].isfinite())
        return ids

    def token_losses(self, sequences: Sequences, targets: Tensor) -> Tensor:
        """Cross-entropies (B, n) of the last n tokens of each row, whose ids are `targets` (B, n)."""
        hidden = self.read(sequences)[:, -targets.shape[1] - 1 : -1]
        logits = self.language_model.lm_head(hidden).float()
        return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    # l1

    def placeholders(self, batch: int, end: int) -> Tensor:
        """The tail of an l1 sequence, (B, chunk * A + 1, hidden): a zero for each number, then the id `end`."""
        stop = self.embed(torch.full((batch, 1), end, device=self.frequencies.device))
        zeros = stop.new_zeros(batch, self.sizes.chunk * self.sizes.action_dim, stop.shape[-1])
        return torch.cat([zeros, stop], dim=1)

    def regress(self, sequences: Sequences) -> Tensor:
        """Normalised actions (B, chunk, A) of rows that end in `placeholders`."""
        numbers = self.sizes.chunk * self.sizes.action_dim
        states = self.read(sequences, causal=False)[:, -numbers - 2 : -2]
        return self.action_head(states)  # type: ignore[no-any-return]

    # Llama

    def read(self, sequences: Sequences, causal: bool = True, memory: KeyValues | None = None) -> Tensor:
        """The last layer's normed states, (B, L, hidden); at padding they mean nothing."""
        embeddings, valid = sequences
        mask = None if valid is None else _mask(valid, causal)
        return self._layers(embeddings, _positions(sequences), mask, memory, causal)

    def _layers(
        self, hidden: Tensor, positions: Tensor, mask: Tensor | None, memory: KeyValues | None, causal: bool = True
    ) -> Tensor:
        llama = self.language_model.model
        rotation = _rotation(positions, self.frequencies, hidden.dtype)
        for index, layer in enumerate(llama.layers):
            query, key, value = _project(layer.self_attn, layer.input_layernorm(hidden), rotation)
            if memory is not None:
                key, value = memory.put(index, key, value)
            mixed = _attend(query, key, value, mask, causal)
            hidden = hidden + layer.self_attn.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return llama.norm(hidden)  # type: ignore[no-any-return]

    def _room(self, batch: int, length: int, like: Tensor) -> KeyValues:
        shape = batch, -(-length // _ROOM) * _ROOM
        if shape not in self._rooms:
            self._rooms[shape] = KeyValues(self.sizes.llm, *shape, like)
            if self.pinned:
                self._rooms[shape].pin()
        return self._rooms[shape]

    @property
    def _hidden(self) -> int:
        return self.sizes.llm.hidden_size


def _llama(sizes: LlmSizes) -> LlamaConfig:
    fields = asdict(sizes)
    theta = fields.pop("rope_theta")
    return LlamaConfig(**fields, rope_parameters={"rope_type": "default", "rope_theta": theta})


def _frequencies(sizes: LlmSizes) -> Tensor:
    """float32 (head_dim / 2,) on the CPU: radians per position that each pair of channels is turned by."""
    exponents = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32, device="cpu") / sizes.head_dim
    return 1.0 / (sizes.rope_theta**exponents)


def _rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine at positions (B or 1, L), each (B or 1, 1, L, head_dim); computed in float32."""
    angles = (positions[..., None].float() * frequencies)[:, None].repeat(1, 1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(B, heads, L, head_dim), channel i paired with channel i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


def _project(attention: Any, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries (B, heads, L, head_dim), rotated keys and values (B, kv heads, L, head_dim)."""
    split = *x.shape[:2], -1, rotation[0].shape[-1]
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    query, key, value = (project(x).view(split).transpose(1, 2) for project in projections)
    return _rotated(query, rotation), _rotated(key, rotation), value


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """(B, L, heads * head_dim). A mask says all there is to say; without one `causal` decides."""
    mixed = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal and mask is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).flatten(2)


def _padded(rows: Sequence[Tensor]) -> Sequences:
    """Zeros in front of the shorter rows."""
    length = max(len(row) for row in rows)
    if all(len(row) == length for row in rows):
        return Sequences(torch.stack(list(rows)), None)
    padded = [functional.pad(row, (0, 0, length - len(row), 0)) for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    valid = torch.arange(length, device=lengths.device) >= length - lengths[:, None]
    return Sequences(torch.stack(padded), valid)


def _positions(sequences: Sequences) -> Tensor:
    """(B or 1, L), counted from each row's first token."""
    if sequences.valid is None:
        return torch.arange(sequences.embeddings.shape[1], device=sequences.embeddings.device)[None]
    return (sequences.valid.cumsum(1) - 1).clamp(min=0)


def _mask(valid: Tensor, causal: bool) -> Tensor:
    """bool (B, 1, L, L): who may look where. Padding looks at itself, for a softmax over nothing is NaN."""
    length = valid.shape[1]
    seen = valid[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=valid.device)
    return seen.tril() if causal else seen


def in_dtype(model: OpenVLAModel, dtype: torch.dtype) -> OpenVLAModel:
    """The same model, its parameters cast. Buffers stay: rotary frequencies are float32 whatever the weights are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
