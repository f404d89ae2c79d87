"""Checkpoints on disk: our own directories, and safe reading of everybody's weights.

Ours is a directory of five files that no code has to be trusted for:

    config.json          {"format": "vla-bench-1", "policy": name, ...}: sizes of the model, facts of its adapter
    model.safetensors    the state dict
    tokenizer.json       the `tokenizers` library's own format; only where the model reads text
    normalisation.json   {name: {"scale": [...], "offset": [...]}}
    README.md            where the weights come from; decides nothing, as any other file that lies there
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_bench import untrusted
from vla_bench.errors import UsageError, unwritable
from vla_bench.store.files import make_folder, sync_folder, sync_tree
from vla_bench.text import markdown_list
from vla_bench.untrusted import MB, brief, reading

from .normalisation import Affine
from .reads import files_read, note_read
from .restricted_pickle import read_saved
from .tokens import JsonTokenizer, json_tokenizer

FORMAT = "vla-bench-1"
CONFIG, WEIGHTS, TOKENIZER, NORMALISATION, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "normalisation.json",
    "README.md",
)
MOST_HEADER = 4 * MB
"""Bytes of the header of a safetensors file: 20 000 tensors."""
_LARGER = 16
"""A model takes at most so many times the bytes of the weights it is given: numbers of half a byte become float64."""
_NAMED = 3  # keys spelled out in a message


@dataclass(frozen=True)
class Checkpoint:
    """One of our directories, read."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    normalisation: Mapping[str, Affine]
    sha256: str
    tokenizer: JsonTokenizer | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Lines of the card, by topic."""


def is_ours(path: str | Path) -> bool:
    """Whether that is a directory in our format."""
    config = Path(path) / CONFIG
    return config.is_file() and str(read_json(config).get("format", "")).startswith("vla-bench")


def read_ours(path: str | Path, policy: str) -> Checkpoint:
    """The checkpoint of that policy. Raises UsageError for anything missing, damaged or of another policy."""
    folder = Path(path)
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise UsageError(f"{folder / CONFIG} has the format {config.get('format')!r}, this version reads {FORMAT!r}.")
    if config.get("policy") != policy:
        raise UsageError(
            f"{folder} holds weights of {config.get('policy')!r}, not of {policy!r}; use --policy to match."
        )
    with reading(folder / NORMALISATION, "normalisation"):
        maps = {name: Affine.from_json(map_) for name, map_ in read_json(folder / NORMALISATION).items()}
    return Checkpoint(
        config=config,
        tensors=read_tensors(folder / WEIGHTS),
        normalisation=maps,
        sha256=sha256_of(folder),
        tokenizer=json_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None,
    )


def write_ours(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a new directory; it appears whole or not at all. Raises UsageError when there is something already, and
    when the disk does not take it."""
    folder = Path(path)
    if folder.exists():
        raise UsageError(f"{folder} exists already; name a new directory.")
    partial = folder.with_name(folder.name + ".partial")
    try:
        make_folder(partial)
        _write_into(partial, checkpoint)
        sync_tree(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise unwritable(folder, error) from error


def _write_into(partial: Path, checkpoint: Checkpoint) -> None:
    """Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    maps = {name: map_.as_json() for name, map_ in checkpoint.normalisation.items()}
    _write_json(partial / CONFIG, {"format": FORMAT, **checkpoint.config})
    _write_json(partial / NORMALISATION, maps)
    try:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, partial / WEIGHTS)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise
    shutil.copymode(partial / CONFIG, partial / WEIGHTS)  # safetensors lets nobody else read it
    if checkpoint.tokenizer is not None:
        (partial / TOKENIZER).write_text(checkpoint.tokenizer.text, encoding="utf-8")
    (partial / CARD).write_text(_card(checkpoint), encoding="utf-8")


def _card(checkpoint: Checkpoint) -> str:
    numbers = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    lines = [f"{topic}: {text}" for topic, text in checkpoint.provenance.items()]
    return f"# {checkpoint.config['policy']}\n\n{markdown_list([f'parameters: {numbers:,}', *lines])}\n"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def sha256_of(path: str | Path) -> str:
    """SHA-256 over a file, or over the names and contents of the files of a directory that decide what a policy does.

    What lies beside them (a card, notes, an optimiser's state, what git and download tools keep) does not change it.
    Raises UsageError when there is nothing.
    """
    root = Path(path)
    files = [root] if root.is_file() else _deciding(root)
    if not files:
        raise UsageError(f"There is no checkpoint at {root}; expected a file or a directory with files.")
    if root.is_file():
        return _digest(root)
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(root).as_posix()} {_digest(file)}\n".encode())
    return whole.hexdigest()


def _deciding(root: Path) -> list[Path]:
    """Of one of our directories what `read_ours` reads; of others what was read, all but hidden ones if nothing was."""
    if is_ours(root):
        return sorted(file for name in (CONFIG, WEIGHTS, TOKENIZER, NORMALISATION) if (file := root / name).is_file())
    visible = (file for file in root.rglob("*") if not any(p.startswith(".") for p in file.relative_to(root).parts))
    return files_read(root) or sorted(file for file in visible if file.is_file() and file.name != CARD)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in that file. Raises UsageError for a missing or damaged one."""
    file = Path(path)
    note_read(file)
    if not file.exists():
        raise UsageError(f"{file.parent} has no {file.name}; expected a checkpoint directory.")
    value = untrusted.read_json(file)
    if not isinstance(value, dict):
        raise UsageError(f"{file} should hold a JSON object, got {type(value).__name__}.")
    return value


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Name to tensor, on the CPU, of a .safetensors file, a directory with one or with an index of shards, or a file
    of `torch.save` that holds tensors and plain containers only.

    Raises UsageError for a missing, truncated or otherwise unreadable file.
    """
    source = Path(path)
    if source.is_dir():
        return _read_directory(source)
    if not source.is_file():
        raise UsageError(f"There is no file {source}; expected weights.")
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    note_read(source)
    loaded = read_saved(source)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UsageError(f"{source} should hold a dictionary of tensors, got something else.")
    return loaded


def _read_directory(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return _read_safetensors(folder / WEIGHTS)
    if not index.is_file():
        raise UsageError(f"{folder} has neither {WEIGHTS} nor {index.name}; expected one of them.")
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict):
        raise UsageError(f"{index} has no weight_map; download it again.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, placed.values()))):
        if Path(shard).name != shard:
            raise UsageError(f"{index} names the shard {brief(shard)}, which is not a file beside it.")
        if not (folder / shard).is_file():
            raise UsageError(f"{index} names {shard}, which is not there; download it again.")
        tensors |= _read_safetensors(folder / shard)
    if absent := sorted(set(placed) - set(tensors)):
        raise UsageError(f"{index} promises {_some(absent)}, which no shard has; download the shards again.")
    return tensors


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    note_read(file)
    with reading(file, "safetensors"):
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        if header > MOST_HEADER:
            raise UsageError(f"{file} says that its header has {header:,} bytes, expected {MOST_HEADER:,} at most.")
        tensors: dict[str, Tensor] = load_file(file)
    return tensors


def stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors have in memory or on disk; those that share them count once."""
    stores = [tensor.untyped_storage() for tensor in tensors.values()]
    return sum({store.data_ptr(): store.nbytes() for store in stores}.values())


def load_into(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, missing_ok: Collection[str] = ()
) -> None:
    """Give the model these weights, cast to the dtypes it has. A model on the meta device comes off it.

    Raises UsageError unless names and shapes agree, all of them, and the numbers are numbers; `missing_ok` are names
    that may be absent and are then left as they are.
    """
    own = model.state_dict()
    absent = [name for name in own if name not in tensors and name not in missing_ok]
    unknown = [name for name in tensors if name not in own]
    other = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    problems = [
        *([f"{_some(absent)} missing"] if absent else []),
        *([f"{_some(unknown)} not expected"] if unknown else []),
        *([_shapes(other, own, tensors)] if other else []),
    ]
    if problems:
        raise UsageError(f"{source} is no checkpoint of this architecture: {'; '.join(problems)}.")
    needed = sum(one.numel() * one.element_size() for name, one in own.items() if name in tensors)
    if needed > _LARGER * (held := stored_bytes(tensors)):
        raise UsageError(f"{source} has {held:,} bytes for the {needed:,} of the model; it is damaged, do not use it.")
    # copied: matrix products round by the alignment of their operands, which a file's bytes have at random
    cast = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in tensors.items()}
    masks = {name for name, _ in model.named_buffers()}
    if wrong := [name for name, tensor in cast.items() if not _is_finite(tensor, name in masks)]:
        raise UsageError(
            f"{source} has weights that are no finite numbers as {str(cast[wrong[0]].dtype).removeprefix('torch.')} "
            f"({_some(wrong)}): it is damaged, its training diverged, or they need dtype=float32."
        )
    model.load_state_dict(cast, strict=False, assign=True)


def _is_finite(tensor: Tensor, mask: bool) -> bool:
    """Whether all of it is finite; attention masks may hide by -inf. A sum is, only if all of it is, and is quick."""
    if not tensor.is_floating_point() or tensor.sum().isfinite():
        return True
    wrong = tensor.isnan() | (tensor == torch.inf) if mask else ~tensor.isfinite()
    return not wrong.any()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(brief(name)[1:-1] for name in names[:_NAMED]) + more


def _shapes(names: Sequence[str], own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    got, expected = (tuple(tensors[names[0]].shape) for tensors in (given, own))
    return f"{_some(names)} of another shape ({_some(names[:1])}: {got}, expected {expected})"
