"""Checkpoints that are pickles: tensors and settings come out, and nothing that they name is ever run."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vla_bench.errors import UsageError

torch = pytest.importorskip("torch")

from fuzz import bounded  # noqa: E402
from vla_bench.policies.torch.restricted_pickle import MOST_PICKLE, STORAGES, Archive, read_saved  # noqa: E402

REAL = Path(__file__).parent / "data" / "diffusion_policy" / "official_unet_low_dim" / "latest.ckpt"


def archive(path: Path, program: bytes, **members: bytes) -> Path:
    """A file in the format of torch.save around any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": program, "version": b"3", **members}.items():
            file.writestr(f"archive/{name}", data)
    return path


def read(path: Path) -> Any:
    with Archive(path) as opened:
        return opened.payload()


def test_tensors_of_every_kind_come_out_as_torch_saved_them(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    tensors = {str(dtype): torch.tensor([[0, 1], [1, 1]], dtype=dtype) for dtype in STORAGES.values()}
    tensors |= {"strided": whole.t()[1:, ::2], "scalar": torch.tensor(3.5), "empty": torch.empty(0, 3), "same": whole}
    torch.save({"tensors": tensors, "parameter": torch.nn.Parameter(whole)}, tmp_path / "x.pt")
    with Archive(tmp_path / "x.pt") as opened:
        payload = opened.payload()
        found = {name: stored.load() for name, stored in payload["tensors"].items()}
        assert torch.equal(payload["parameter"].load(), whole)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_what_dill_and_omegaconf_wrote_is_read_without_them() -> None:
    payload = read(REAL)
    assert payload["cfg"]["policy"]["model"]["down_dims"] == [8, 16]
    assert payload["cfg"]["optimizer"] == {"betas": [0.95, 0.999], "weight_decay": None}
    assert payload["cfg"]["training"]["use_ema"] is True
    assert type(payload["cfg"]) is type(payload["cfg"]["task"]) is dict
    assert payload["state_dicts"]["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert isinstance(payload["pickles"]["epoch"], bytes)  # a pickle within the pickle, left closed


class Evil:
    """Runs `function(*arguments)` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, r"posix\.system|nt\.system"),
        (eval, r"builtins\.eval|__builtin__\.eval"),
        (exec, r"builtins\.exec|__builtin__\.exec"),
        (getattr, r"builtins\.getattr|__builtin__\.getattr"),
        (importlib.import_module, r"importlib\.import_module"),
        (pickle.loads, r"_?pickle\.loads"),
        (torch.load, r"torch\.serialization\.load"),
        (torch.hub.load, r"torch\.hub\.load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_forbidden_name_is_refused_by_name_and_not_called(
    function: Any, named: str, protocol: int, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    program = pickle.dumps({"cfg": {}, "x": Evil(function, f"touch {marker}")}, protocol=protocol)
    with pytest.raises(UsageError, match=rf"names ({named}), which no checkpoint .* needs") as error:
        read(archive(tmp_path / "x.ckpt", program))
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_a_dotted_name_does_not_reach_through_an_allowed_module(tmp_path: Path) -> None:
    program = b"\x80\x04\x8c\x0bcollections\x8c\x0babc.Mapping\x93."  # STACK_GLOBAL collections, abc.Mapping
    with pytest.raises(UsageError, match=r"names collections\.abc\.Mapping"):
        read(archive(tmp_path / "x.ckpt", program))


@pytest.mark.parametrize("name", ["collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "typing\nAny"])
@pytest.mark.parametrize("state", [b"}U\x07__new__K\x01s", b"N}U\x07__new__K\x01s\x86"])
def test_a_pickle_cannot_change_what_stands_in_for_a_class(name: str, state: bytes, tmp_path: Path) -> None:
    program = b"\x80\x02c" + name.encode() + b"\n" + state + b"b."  # GLOBAL, a dict or (None, dict), BUILD
    with pytest.raises(UsageError):
        read(archive(tmp_path / "x.ckpt", program))
    assert read(REAL)["cfg"]["task"]["name"] == "lift"


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        members = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    short = {**members, "data/0": members["data/0"][:8]}
    with Archive(archive(tmp_path / "short.pt", short.pop("data.pkl"), **short)) as opened:
        stored = opened.payload()["w"]
        with pytest.raises(UsageError, match="holds 2 numbers, not 4"):
            stored.load()
    gone = {name: data for name, data in members.items() if name != "data/0"}
    with (
        Archive(archive(tmp_path / "gone.pt", gone.pop("data.pkl"), **gone)) as opened,
        pytest.raises(UsageError, match="is it truncated"),
    ):
        opened.payload()["w"].load()


def damaged(kind: str, folder: Path) -> Path:
    file = folder / "x.ckpt"
    data = REAL.read_bytes()
    if kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "legacy":
        torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    elif kind == "no pickle":
        with zipfile.ZipFile(file, "w") as other:
            other.writestr("readme.txt", "hello")
    elif kind == "half a pickle":
        archive(file, pickle.dumps([1, 2, 3])[:-3])
    elif kind == "endless":
        archive(file, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    elif kind == "foreign bytes":
        archive(file, pickle.dumps({"cfg": 1}), byteorder=b"big")
    elif kind == "unreadable byte order":
        archive(file, pickle.dumps({"cfg": 1}), byteorder=b"\xff\n")
    elif kind == "foreign id":
        buffer = io.BytesIO()
        made = pickle.Pickler(buffer, protocol=2)
        made.persistent_id = lambda value: ("module", "x", "y", "z", 0) if value == "there" else None  # type: ignore[method-assign]
        made.dump({"cfg": "there"})
        archive(file, buffer.getvalue())
    return file


KINDS = ("missing", "truncated", "empty", "legacy", "no pickle", "half a pickle", "endless", "foreign bytes")


@pytest.mark.parametrize("kind", [*KINDS, "unreadable byte order", "foreign id"])
def test_damage_is_one_sentence(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read(damaged(kind, tmp_path))
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_members_are_given_by_name(tmp_path: Path) -> None:
    members: Mapping[str, bytes] = {"byteorder": b"little"}
    assert read(archive(tmp_path / "x", pickle.dumps({"a": (1, [2.5, None])}), **members)) == {"a": (1, [2.5, None])}


# Small files that would take all time or memory


def doubled(opening: bytes, step: bytes, ending: bytes = b".") -> bytes:
    """A program that doubles what is on the stack 59 times."""
    return b"\x80\x02" + opening + step * 59 + ending


TEXT = b"X" + (1000).to_bytes(4, "little") + b"a" * 1000 + b"q\x00"
LATIN = b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02"
BOMBS = {
    "a list that holds a list twice": doubled(b"]", b"q\x00]h\x00ah\x00aq\x00"),
    "a tuple of two tuples": doubled(b")", b"q\x00h\x00\x86"),
    "a tuple of tuples as a key": doubled(b"})", b"q\x00h\x00\x86", b"Ns."),
    "a tuple of tuples as one of many keys": doubled(b"}(N)", b"q\x00h\x00\x86", b"Nu."),
    "a tuple of tuples as the key of a dict": doubled(b"()", b"q\x00h\x00\x86", b"Nd."),
    "a text, very often": b"\x80\x02](" + TEXT + b"h\x00" * 100_000 + b"e.",
    "bytes of a terabyte": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "a bytearray of a terabyte": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "text encoded over and over": b"\x80\x02](" + TEXT + LATIN + b"h\x01h\x00h\x02\x86R" * 100_000 + b"e.",
    "a call with many arguments": b"\x80\x02ctyping\nAny\n(" + b"N" * 100_000 + b"tR.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "keys of the same hash": b"\x80\x02}"
    + b"".join(b"\x8a\x0a" + (number * (2**61 - 1)).to_bytes(10, "little") + b"Ns" for number in range(1, 50_000))
    + b".",
    "more than settings take": b"\x80\x02X" + (9_000_000).to_bytes(4, "little") + b"a" * 9_000_000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_expands_without_end_is_refused(name: str, tmp_path: Path) -> None:
    file = archive(tmp_path / "x.ckpt", BOMBS[name])
    with bounded(seconds=20, megabytes=500), pytest.raises(UsageError, match=r"x\.ckpt") as error:
        read(file)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


def test_a_memo_takes_no_more_room_than_what_is_in_it(tmp_path: Path) -> None:
    with bounded(seconds=5, megabytes=50):
        assert read(archive(tmp_path / "x.ckpt", b"\x80\x02]r\xff\xff\xff\x7f.")) == []


def zipped(path: Path, compression: int, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)
    return path


def test_members_that_are_compressed_are_refused_before_they_are_read(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "x.ckpt", zipfile.ZIP_DEFLATED, **{"data.pkl": bytes(2**25)})
    assert bomb.stat().st_size < 50_000
    with bounded(seconds=5, megabytes=20), pytest.raises(UsageError, match=r"has 'archive/data\.pkl' compressed"):
        read(bomb)


def test_members_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    file = zipped(tmp_path / "x.ckpt", zipfile.ZIP_STORED, **{"data.pkl": b"N.", "a": b"x" * 5000, "b": b"y"})
    content = bytearray(file.read_bytes())
    first, second = (content.rindex(name) - 46 for name in (b"archive/a", b"archive/b"))
    content[second + 16 : second + 28] = content[first + 16 : first + 28]  # its sum and sizes
    content[second + 42 : second + 46] = content[first + 42 : first + 46]  # and place in the central directory
    file.write_bytes(content)
    with pytest.raises(UsageError, match="promises more bytes than it has"):
        read(file)


def test_tensors_that_share_numbers_share_memory(tmp_path: Path) -> None:
    few = torch.arange(3.0)
    torch.save({str(number): few.expand(10**6, 3) for number in range(300)}, tmp_path / "x.pt")
    with bounded(seconds=20, megabytes=100):
        saved = read_saved(tmp_path / "x.pt")
    assert saved["299"].shape == (10**6, 3)
    assert saved["299"][-1].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("shape", [b"X\x01\x00\x00\x00a", b"]", b"J\xff\xff\xff\xff\x85", b"N"])
def test_a_tensor_of_no_shape_is_refused(shape: bytes, tmp_path: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"K\x01\x85\x89}tR."
    with pytest.raises(UsageError, match="a tensor has the shape"):
        read(archive(tmp_path / "x.pt", program, **{"data/0": bytes(16)}))


def test_settings_may_be_as_large_as_those_of_a_real_checkpoint(tmp_path: Path) -> None:
    large = {f"parameter.{number}": {"exp_avg": [number] * 20} for number in range(4000)}
    torch.save(large, tmp_path / "x.pt")
    assert MOST_PICKLE > 10 * (tmp_path / "x.pt").stat().st_size > 10**6
    assert read_saved(tmp_path / "x.pt") == large
