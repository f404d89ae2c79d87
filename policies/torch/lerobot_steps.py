"""The steps of lerobot's processor files, and which of them are followed here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vla_bench.errors import UsageError

from .checkpoints import read_json

_EVERYWHERE = (
    "rename_observations_processor",  # to the names in config.json, which are what is read here
    "to_batch_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
)
_FORMERLY = {"delta_actions_processor": "relative_actions_processor"}
"""Names that lerobot registered for some releases."""


def steps_of(file: Path, known: Collection[str] = ()) -> dict[str, Mapping[str, Any]]:
    """Registry name to step of a processor file; nothing where there is no file, as before lerobot 0.4.

    Raises UsageError for a step that is neither followed by the policy (`known`) nor harmless: what it does to
    pictures, state or actions would be left out.
    """
    if not file.is_file():
        return {}
    named = {_name(step): step for step in read_json(file).get("steps", [])}
    if unknown := [name for name in named if name not in (*_EVERYWHERE, *known)]:
        raise UsageError(
            f"{file} has the step {unknown[0]!r}, which is not followed here, so the answers would be others: use a "
            "checkpoint without it."
        )
    return named


def _name(step: Mapping[str, Any]) -> str:
    name = str(step.get("registry_name", step.get("class")))
    return _FORMERLY.get(name, name)
