"""Reads `torch.save` files that hold more than tensors without running a line of what they name.

A pickle is a program: it may call anything importable. Official Diffusion Policy checkpoints are pickles (written
through dill, with an OmegaConf configuration inside), so neither `torch.load(weights_only=True)` nor trust will do.
Here every global that the pickle names is looked up in a table of stand-ins of our own; a name that is not in it ends
the reading with one sentence. Neither dill nor omegaconf is imported. A pickle cannot change the stand-ins
(`_Sealed`), and what comes out is plain: dicts, lists, tuples, numbers, strings, bytes, and `Stored` for tensors, whose
numbers stay on disk until they are asked for.

Nor can a small file take much memory or time. Members are never compressed, as torch.save leaves them; data.pkl has
8 MB at most; the operations of pickle that allocate what a number in the file says are left out or are Python's own,
whose memo is a dictionary; keys are plain, because hashing tuples of tuples has no end; and what is saved once and
referred to often (a list that holds a list twice, 59 levels deep) may not be larger than `MOST_PARTS`, written out.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.untrusted import MB, brief, insist_on_stored, reading

MOST_PICKLE = 8 * MB
"""Bytes of data.pkl: a thousand tensors take 0.2 million."""
MOST_PARTS = 10**6
"""Values in what was saved, each counted as often as it is referred to; 100 characters count as one more."""
_MOST_ARGUMENTS = 16
_WHAT = "a checkpoint of torch.save"

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
        """Its numbers, which tensors of the same storage share. Raises UsageError when the archive lacks some."""
        return self.storage.archive.tensor(self)


class Archive:
    """A file of `torch.save` (the zip format of torch 1.6 and later), open for reading; use it with `with`.

    Raises UsageError for anything else, for damage, for forbidden names, and for what would expand without end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._flat: dict[str, Tensor] = {}
        """By key, the storages that were read."""
        if not self.path.is_file():
            raise UsageError(f"There is no file {self.path}; expected a checkpoint written by torch.save.")
        with reading(self.path, _WHAT):
            self._zip = zipfile.ZipFile(self.path)
            insist_on_stored(self._zip, self.path)
            names = self._zip.namelist()
            self._root = next((name for name in names if name.endswith("/data.pkl")), "data.pkl")[: -len("data.pkl")]
            order = self._member("byteorder") if f"{self._root}byteorder" in names else b"little"
            if order != sys.byteorder.encode():
                raise UsageError(f"{self.path} has its bytes in the order {brief(order)}, not {sys.byteorder!r}.")

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def payload(self) -> Any:
        """What was saved, in plain containers."""
        with reading(self.path, _WHAT):
            if (size := self._zip.getinfo(f"{self._root}data.pkl").file_size) > MOST_PICKLE:
                raise UsageError(f"{self.path} has {size:,} bytes beside its tensors, at most {MOST_PICKLE:,}.")
            return plain(_Unpickler(self, self._member("data.pkl")).load())

    def tensor(self, stored: Stored) -> Tensor:
        """Its numbers."""
        storage = stored.storage
        with reading(self.path, _WHAT):
            if storage.key not in self._flat:
                data = bytearray(self._member(f"data/{storage.key}"))
                none = torch.empty(0, dtype=storage.dtype)
                self._flat[storage.key] = torch.frombuffer(data, dtype=storage.dtype) if data else none
            flat = self._flat[storage.key]
            if (len(flat), flat.dtype) != (storage.count, storage.dtype):
                raise ValueError(f"data/{storage.key} holds {len(flat)} numbers, not {storage.count}")
            return flat.as_strided(stored.shape, stored.stride, stored.offset)

    def _member(self, name: str) -> bytes:
        return self._zip.read(self._root + name)


def read_saved(path: str | Path) -> Any:
    """What `torch.save` wrote: plain containers and tensors, on the CPU. Raises UsageError as `Archive` does."""
    with Archive(path) as archive:
        return _loaded(archive.payload())


def _loaded(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.load()
    if isinstance(value, dict):
        return {key: _loaded(one) for key, one in value.items()}
    return type(value)(map(_loaded, value)) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """The same without `_Node` and dict subclasses. Raises ValueError for more than `MOST_PARTS`."""
    made: Any = _plain(value, {})[0]
    return made


def _plain(value: Any, done: dict[int, tuple[Any, int]]) -> tuple[Any, int]:
    """The plain value and how many parts it has; `done` are those of the containers seen before, by their id."""
    if isinstance(value, str | bytes):
        return value, 1 + len(value) // 100
    if isinstance(value, _Node):
        return _plain(value.content, done)
    if not isinstance(value, dict | list | tuple):
        return value, 1
    if id(value) not in done:
        pairs = [_plain(one, done) for one in (value.values() if isinstance(value, dict) else value)]
        size = 1 + sum(parts for _, parts in pairs)
        if size > MOST_PARTS:
            raise ValueError(f"written out, it has more than {MOST_PARTS:,} parts")
        inside = [one for one, _ in pairs]
        made = dict(zip(value, inside, strict=True)) if isinstance(value, dict) else type(value)(inside)
        done[id(value)] = made, size
    return done[id(value)]


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
    """OrderedDict, less the attributes that `Module.state_dict()` hangs on it; it is filled later."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget them."""


class _DefaultDict(_Dict):
    """defaultdict, less its factory."""

    def __init__(self, factory: Any = None) -> None:
        super().__init__()


class _Tensor(metaclass=_Sealed):
    """torch._utils._rebuild_tensor_v2."""

    def __new__(cls, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
        for numbers in (shape, stride):
            if not isinstance(numbers, tuple) or not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError(f"a tensor has the shape or stride {brief(numbers)}")
        if not isinstance(storage, Storage) or type(offset) is not int:
            raise ValueError(f"a tensor lies in {brief(storage)} at {brief(offset)}")
        return Stored(storage, offset, shape, stride)


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


_LEFT_OUT = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
)
"""Operations that no checkpoint was seen to use: other ways to call, and those of bytearrays and sets."""


def _after(check: Callable[[Any], None], code: bytes) -> Callable[[Any], None]:
    """Python's own operation, once the check is passed."""
    operation: Callable[[Any], None] = pickle._Unpickler.dispatch[code[0]]

    def checked(unpickler: Any) -> None:
        check(unpickler)
        operation(unpickler)

    return checked


def _insist_on_keys(keys: Sequence[Any]) -> None:
    """Raises ValueError for containers, whose hashing may have no end, and for integers that may all hash alike."""
    for key in keys:
        if not isinstance(key, str | bytes | float | None) and not (isinstance(key, int) and abs(key) < 2**60):
            raise ValueError(f"a key is {brief(key)}")


class _Unpickler(pickle._Unpickler):
    """Python's own, not C's, which allocates its memo by the largest number in the file."""

    stack: list[Any]

    def __init__(self, archive: Archive, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._archive = archive
        self._encoded = len(data)
        """Bytes that may still be made of text."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := ALLOWED.get(f"{module}.{name}")) is None:
            raise UsageError(
                f"{self._archive.path} names {brief(f'{module}.{name}')[1:-1]}, which no checkpoint of tensors and "
                "settings needs; it was not read, for it could run any code."
            )
        return found

    def persistent_load(self, identity: Any) -> Storage:
        kind, dtype, key, _, count = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise UsageError(f"{self._archive.path} refers to {brief(kind)} outside of the pickle; expected a storage.")
        return Storage(self._archive, key, dtype, count)

    def _check_call(self) -> None:
        made, arguments = self.stack[-2:]
        if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError(f"something is made of {brief(arguments)}")
        if made is _Bytes:
            self._encoded -= len(arguments[0])
            if self._encoded < 0:
                raise ValueError("it makes more bytes than it has")

    def _check_build(self) -> None:
        if not isinstance(self.stack[-2], _Node | _Dict):
            raise UsageError(f"{self._archive.path} tries to change {brief(self.stack[-2])}; do not use it.")

    def _check_key(self) -> None:
        _insist_on_keys(self.stack[-2:-1])

    def _check_keys(self) -> None:
        _insist_on_keys(self.stack[::2])

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: step for code, step in pickle._Unpickler.dispatch.items() if bytes([code]) not in _LEFT_OUT},
        pickle.REDUCE[0]: _after(_check_call, pickle.REDUCE),
        pickle.NEWOBJ[0]: _after(_check_call, pickle.NEWOBJ),
        pickle.BUILD[0]: _after(_check_build, pickle.BUILD),
        pickle.SETITEM[0]: _after(_check_key, pickle.SETITEM),
        pickle.SETITEMS[0]: _after(_check_keys, pickle.SETITEMS),
        pickle.DICT[0]: _after(_check_keys, pickle.DICT),
    }
