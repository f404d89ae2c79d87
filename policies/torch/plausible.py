"""What a configuration says of a model, held against its types and the weights beside it before anything is built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from vla_bench.errors import UsageError
from vla_bench.untrusted import brief, reading

from .checkpoints import load_into, stored_bytes

MOST: Mapping[str, int] = {
    **dict.fromkeys(("depth", "vision_depth", "num_hidden_layers", "layers", "condition_layers"), 512),
    **dict.fromkeys(("horizon", "chunk", "execute", "history", "first", "state_dim", "action_dim", "dim"), 1000),
    **dict.fromkeys(("side", "model_side", "image", "patch", "resize", "crop", "shape", "prompt_tokens"), 4096),
    **dict.fromkeys(("steps", "train_steps"), 100_000),
    **dict.fromkeys(("bos", "eos", "space", "end_id", "bins_end", "action_end", "max_position_embeddings"), 10**7),
}
"""Believed of whole numbers of that name, which no tensor's shape bounds, or too late: several times what any model
has. Others may be as large as the file of the weights."""
_MOST_ENTRIES = 256
"""Of values in a row."""
M = TypeVar("M", bound=nn.Module)


def built(make: Callable[[], M], sizes: Any, tensors: Mapping[str, Tensor], source: str | Path) -> M:
    """The model that `make` makes of those sizes, with those weights. Raises UsageError unless they fit each other.

    It is made on the meta device, where nothing is allocated, and off it but for buffers that are not saved.
    """
    insist_on_sizes(sizes, tensors, source)
    with reading(source, "a model of the sizes it says"), torch.device("meta"):
        model = make()
    load_into(model, tensors, source)
    return model


def insist_on_sizes(said: Any, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises UsageError unless that dataclass holds what its annotations say, and no number that is beyond belief for
    weights of that size.
    """
    insist_on_types(said, source)
    held = stored_bytes(tensors)
    for place, number in _numbers(said, ""):
        most = MOST.get(place.rpartition(".")[2], held)
        if abs(number) > most:
            raise UsageError(f"{source} says {place} {brief(number)}, beyond belief for its weights of {held:,} bytes.")


def insist_on_types(said: Any, source: str | Path) -> None:
    """Raises UsageError unless every field of that dataclass, nested ones too, is what its annotation says."""
    for place, value, expected in _misfits(said, type(said), ""):
        raise UsageError(f"{source} says {place} {brief(value)}, expected {expected}.")


def _numbers(value: object, place: str) -> Iterator[tuple[str, int]]:
    """Where, and what, of every whole number."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), f"{place}.{field.name}".lstrip("."))
    elif isinstance(value, tuple):
        for one in value:
            yield from _numbers(one, place)
    elif type(value) is int:
        yield place, value


def _misfits(value: Any, kind: Any, place: str) -> Iterator[tuple[str, Any, str]]:
    """Where, what and what instead, of everything that is not of its kind."""
    origin, inside = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, kind):  # type: ignore[arg-type]
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield from _misfits(getattr(value, field.name), hints[field.name], f"{place}.{field.name}".lstrip("."))
    elif origin is tuple and isinstance(value, tuple):
        kinds = inside[:1] * min(len(value), _MOST_ENTRIES) if inside[1:] == (...,) else inside
        if len(kinds) != len(value):
            yield place, value, f"{len(kinds)} values"
        for one, wanted in zip(value, kinds, strict=False):
            yield from _misfits(one, wanted, place)
    elif origin in (Union, UnionType):
        if all(any(True for _ in _misfits(value, one, place)) for one in inside):
            yield place, value, " or ".join(map(_name, inside))
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        for key, one in value.items():
            yield from _misfits(key, inside[0], place)
            yield from _misfits(one, inside[1], f"{place}.{key}")
    elif not _fits(value, kind):
        yield place, value, _name(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Whether it is of that kind, which has no kinds in it. What JSON wrote as 1 may be meant as 1.0."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if kind is float:
        return type(value) in (int, float) and -1e300 < value < 1e300 and math.isfinite(value)
    if get_origin(kind) is not None or not isinstance(kind, type):  # Python 3.10 takes list[int] for a type as well
        return False
    return isinstance(value, kind) and (kind is not int or type(value) is int)


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return "null" if kind is type(None) else str(getattr(kind, "__name__", kind))
