"""Reads `torch.save` files that hold more than tensors without running a line of what they name.

A pickle is a program: it may call anything importable. Official Diffusion Policy checkpoints are pickles (written
through dill, with an OmegaConf configuration inside), so neither `torch.load(weights_only=True)` nor trust will do.
Here every global that the pickle names is looked up in a table of stand-ins of our own; a name that is not in it ends
the reading with one sentence. Neither dill nor omegaconf is imported. A pickle cannot change the stand-ins
(`_Sealed`), and what comes out is plain: dicts, lists, tuples, numbers, strings, bytes, and `Stored` for tensors, whose
numbers stay on disk until they are asked for.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from vla_bench.errors import UsageError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are: member `data/<key>` of the archive, `count` of them."""

    archive: Archive
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class Stored:
    """A tensor that is still on disk; strides and offset count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """A copy in memory, contiguous. Raises UsageError when the archive lacks some of it."""
        return self.storage.archive.tensor(self)


class Archive:
    """A file of `torch.save` (the zip format of torch 1.6 and later), open for reading; use it with `with`.

    Raises UsageError for anything else, for damage and for forbidden names.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UsageError(f"There is no file {self.path}; expected a checkpoint written by torch.save.")
        try:
            self._zip = zipfile.ZipFile(self.path)
            self._root = next(name for name in self._zip.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
            order = self._member("byteorder") if f"{self._root}byteorder" in self._zip.namelist() else b"little"
        except (zipfile.BadZipFile, StopIteration) as error:
            self._damaged(error)
        if order != sys.byteorder.encode():
            raise UsageError(f"{self.path} has its bytes in the order {order!r}, only {sys.byteorder!r} is supported.")

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def payload(self) -> Any:
        """What was saved, in plain containers."""
        try:
            return plain(_Unpickler(self, self._member("data.pkl")).load())
        except UsageError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way
            self._damaged(error)

    def tensor(self, stored: Stored) -> Tensor:
        """Its numbers."""
        storage = stored.storage
        try:
            data = self._member(f"data/{storage.key}")
            flat = (
                torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            )
            if len(flat) != storage.count:
                raise ValueError(f"data/{storage.key} holds {len(flat)} numbers, not {storage.count}")
            return flat.as_strided(stored.shape, stored.stride, stored.offset).clone()
        except Exception as error:
            self._damaged(error)

    def _member(self, name: str) -> bytes:
        return self._zip.read(self._root + name)

    def _damaged(self, error: Exception) -> NoReturn:
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise UsageError(
            f"{self.path} cannot be read as a checkpoint of torch.save ({type(error).__name__}: {said}); is it "
            "truncated? Download it again."
        ) from None


def plain(value: Any) -> Any:
    """The same without `_Node` and dict subclasses."""
    if isinstance(value, _Node):
        return plain(value.content)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(one) for one in value)
    return value


class _Sealed(type):
    """A class that a pickle's BUILD cannot set attributes of."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise UsageError(
            f"The pickle tries to change {name!r} of a class; it is malformed or malicious, do not use it."
        )


class _Node(metaclass=_Sealed):
    """Any omegaconf object: a container holds its `_content`, a leaf its `_val`."""

    __slots__ = ("content",)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.content = state.get("_content", state.get("_val"))


class _Dict(dict[Any, Any], metaclass=_Sealed):
    """OrderedDict, less the attributes that `Module.state_dict()` hangs on it."""

    def __setstate__(self, state: Any) -> None:
        """Forget them."""


class _DefaultDict(_Dict):
    """defaultdict, less its factory."""

    def __init__(self, factory: Any = None) -> None:
        super().__init__()


class _Tensor(metaclass=_Sealed):
    """torch._utils._rebuild_tensor_v2."""

    def __new__(cls, storage: Storage, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
        return Stored(storage, offset, tuple(shape), tuple(stride))


class _Parameter(metaclass=_Sealed):
    """torch._utils._rebuild_parameter."""

    def __new__(cls, data: Stored, *_: Any) -> Any:
        return data


class _Bytes(metaclass=_Sealed):
    """_codecs.encode, with which protocol 2 writes bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise UsageError(f"The pickle encodes text as {encoding!r}; only latin1 is expected.")
        return text.encode("latin1")


class _Name(metaclass=_Sealed):
    """A type that is mentioned (in omegaconf's metadata) and never made."""

    def __new__(cls, *_: Any) -> Any:
        return None


ALLOWED: Mapping[str, Any] = {
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": _DefaultDict,
    "_codecs.encode": _Bytes,
    "omegaconf.dictconfig.DictConfig": _Node,
    "omegaconf.listconfig.ListConfig": _Node,
    "omegaconf.base.Metadata": _Node,
    "omegaconf.base.ContainerMetadata": _Node,
    **{
        f"omegaconf.nodes.{kind}Node": _Node
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum", "InterpolationResult")
    },
    **{f"typing.{name}": _Name for name in ("Any", "Dict", "List", "Tuple", "Union", "Optional")},
    **{
        f"{module}.{name}": _Name
        for module in ("builtins", "__builtin__")
        for name in ("dict", "list", "tuple", "str", "int", "float", "bool", "bytes", "object")
    },
    "dill._dill._load_type": _Name,
    "dill.dill._load_type": _Name,
}
"""Every global a checkpoint may name, and what stands in for it; dill's `_load_type` looks up a built-in type."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: Archive, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (found := ALLOWED.get(f"{module}.{name}")) is None:
            raise UsageError(
                f"{self._archive.path} names {module}.{name}, which no checkpoint of tensors and settings needs; it "
                "was not read, for it could run any code."
            )
        return found

    def persistent_load(self, identity: Any) -> Storage:
        kind, dtype, key, _, count = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise UsageError(f"{self._archive.path} refers to a {kind!r} outside of the pickle; expected a storage.")
        return Storage(self._archive, key, dtype, count)
