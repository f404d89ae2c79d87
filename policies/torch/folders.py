"""What a path given as a checkpoint is, before it is read: nothing, a folder around checkpoints, an adapter."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vla_bench.errors import UsageError

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""What peft writes; its presence says that the weights beside it are not the whole policy."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OWN = (*_WEIGHTS, "config.json")
_DEEPEST = 4  # a lerobot run has checkpoints/030000/pretrained_model/


def insist_on_checkpoint(given: str | Path) -> None:
    """Raises UsageError, with what to name instead, for a path without anything, a folder that only has checkpoints
    further down, and one with an adapter that was not merged.
    """
    path = Path(given)
    if not path.exists():
        raise UsageError(_absent(str(given)))
    if not path.is_dir():
        return
    if found := [name for name in ADAPTERS if (path / name).is_file()]:
        raise UsageError(
            f"{path} holds an adapter ({found[0]}), and adapters are not applied here: merge it into its base weights "
            "(peft's merge_and_unload) and name a folder with the merged weights alone."
        )
    if not any((path / name).is_file() for name in _OWN) and (inside := checkpoints_in(path)):
        more = f", of {len(inside)} in it" if len(inside) > 1 else ""
        raise UsageError(f"{path} is no checkpoint itself; name the one inside: {inside[-1]}{more}.")


def _absent(given: str) -> str:
    if re.match(r"\w+:/", given):
        return f"{given} is an address, and nothing is downloaded: fetch it yourself and name its folder."
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", given):
        name = given.rpartition("/")[2]
        return (
            f"There is nothing at {given}, and nothing is downloaded. If it is a repository of Hugging Face, type "
            f"`hf download {given} --local-dir {name}` and then --checkpoint {name}."
        )
    return f"There is nothing at {given}; expected a checkpoint, a file or a folder."


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders with weights and .ckpt files below that one, by their names with numbers in order: the newest is last."""
    found = list[Path]()
    for at, folders, files in os.walk(folder):
        place = Path(at)
        if len(place.relative_to(folder).parts) == _DEEPEST:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        if place != folder and any(name in files for name in _WEIGHTS):
            found.append(place)
        found += [place / name for name in files if name.endswith(".ckpt")]
    return sorted(found, key=lambda path: [_numbered(part) for part in path.relative_to(folder).parts])


def _numbered(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts 9000 before 10000, and a name in letters, such as latest, after numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name) if part]
