"""Facts of a language model's config.json that transformers 4 and 5 say in different places, and what is not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_bench.errors import UsageError

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_sliding_window": (False, None),
    "hidden_act": ("silu", None),
    "partial_rotary_factor": (1.0, None),
}
"""What the values may be of keys that would change the answers and are not read."""


def rope_theta(config: Mapping[str, Any], default: float | None = None) -> float:
    """The base of the rotary positions: `rope_parameters.rope_theta` of transformers 5, `rope_theta` of transformers 4.

    Raises UsageError for scaled positions and for what else would be another model, KeyError where neither is said and
    there is no default.
    """
    said = config.get("rope_parameters") or {}
    for scaling in (said, config.get("rope_scaling") or {}):
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default" or scaling.get("factor") not in (None, 1, 1.0) or any(map(_is_mapping, scaling.values())):
            raise UsageError(f"The language model has scaled rotary positions ({dict(scaling)}); expected plain ones.")
    for name, allowed in _PLAIN.items():
        if (found := said.get(name, config.get(name))) not in allowed:
            raise UsageError(f"The language model has {name} {found!r} in config.json; expected {allowed[0]!r}.")
    if "rope_theta" in said or "rope_theta" in config or default is None:
        return float(said["rope_theta"] if "rope_theta" in said else config["rope_theta"])
    return default


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)
