"""Tiny checkpoints of all four families, in their own format and in the official ones, and damage that fits them."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import reconvla_cases
import test_diffusion_policy
import test_openvla
import test_pi0
import torch
from fuzz import Damage, damage_file, damaged, damaged_json
from safetensors.torch import save_file
from vla_bench.policies.diffusion_policy.policy import DiffusionPolicy
from vla_bench.policies.openvla.policy import OpenVLA
from vla_bench.policies.pi0.policy import Pi0
from vla_bench.policies.reconvla.policy import ReconVLA
from vla_bench.policies.torch.tokens import tiny_tokenizer

from vla_bench.types import Observation, Policy, Suite


class Case(NamedTuple):
    """A checkpoint and who reads it."""

    write: Callable[[Path], Path]
    """(empty folder) -> what is named with --checkpoint, in it."""
    read: Callable[[Path], Policy]
    observations: Callable[[], list[Observation]]
    """What it can be asked."""


def _pi0(path: Path, **said: object) -> Pi0:
    tokenizer = path / "tokenizer.json"
    if not (path / "config.json").is_file() or '"type"' not in (path / "config.json").read_text(errors="replace"):
        said["tokenizer"] = str(tokenizer)
    return Pi0(test_pi0.suite(), str(path), **said)  # type: ignore[arg-type]


def _pi0_own(folder: Path) -> Path:
    Pi0(test_pi0.suite(), size="tiny").save(folder / "x", {})
    return folder / "x"


def _openvla(folder: Path, oft: bool = False) -> Path:
    """As on Hugging Face, in two shards."""
    tensors = test_openvla.random_tensors(test_openvla.SHRUNK)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    (folder / "x").mkdir()
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / "x" / file)
    placed = {name: file for file, held in shards.items() for name in held}
    statistics = {"libero_spatial_no_noops": test_openvla.STATISTICS}
    written = {
        "model.safetensors.index.json": {"weight_map": placed},
        "config.json": test_openvla.CONFIG,
        "dataset_statistics.json": statistics,
    }
    for name, value in written.items():
        (folder / "x" / name).write_text(json.dumps(value))
    (folder / "x" / "tokenizer.json").write_text(tiny_tokenizer().text)
    if oft:
        extra = test_openvla.random_tensors(test_openvla.official_oft(test_openvla.HIDDEN, 7, 8), seed=1)
        for part in ("action_head", "proprio_projector"):
            mine = {f"module.{n.partition('.')[2]}": t for n, t in extra.items() if n.startswith(part)}
            torch.save(mine, folder / "x" / f"{part}--150000_checkpoint.pt")
    return folder / "x"


def _openvla_own(folder: Path) -> Path:
    OpenVLA(test_openvla.suite(), size="tiny", device="cpu").save(folder / "x", {})
    return folder / "x"


def _reconvla_own(folder: Path) -> Path:
    ReconVLA(reconvla_cases.toy_suite(), size="tiny").save(folder / "x", {})
    return folder / "x"


def _diffusion_own(folder: Path) -> Path:
    test_diffusion_policy.tiny().save(folder / "x", {})
    return folder / "x"


def _ckpt(folder: Path) -> Path:
    return Path(shutil.copy(test_diffusion_policy.DATA / "official_unet_low_dim" / "latest.ckpt", folder / "x.ckpt"))


def _hybrid(folder: Path) -> Path:
    return Path(test_diffusion_policy.write_ckpt(folder / "x.ckpt", *test_diffusion_policy.payload_of("unet_hybrid")))


def _diffusion(path: Path) -> DiffusionPolicy:
    return DiffusionPolicy(test_diffusion_policy.suite(), str(path), device="cpu", scheduler="ddim", steps=2)


def _lerobot(path: Path) -> DiffusionPolicy:
    where = test_diffusion_policy.suite("libero_10", 64)
    return DiffusionPolicy(where, str(path), device="cpu", scheduler="ddim", steps=2)


def _recon_seen(suite: Suite) -> Callable[[], list[Observation]]:
    return lambda: [reconvla_cases.seen(suite, 3)]


_CALVIN, _TOY = reconvla_cases.toy_suite(calvin=True), reconvla_cases.toy_suite()
_DIFFUSION = test_diffusion_policy.suite()
CASES = {
    "pi0 of lerobot": Case(lambda f: test_pi0.lerobot_folder(f / "x"), _pi0, test_pi0.observations),
    "pi05 of lerobot": Case(lambda f: test_pi0.lerobot_folder(f / "x", "pi05"), _pi0, test_pi0.observations),
    "pi0 of openpi": Case(lambda f: test_pi0.openpi_folder(f / "x"), _pi0, test_pi0.observations),
    "pi0 of ours": Case(_pi0_own, lambda p: Pi0(test_pi0.suite(), str(p)), test_pi0.observations),
    "openvla": Case(
        _openvla,
        lambda p: OpenVLA(test_openvla.suite(), str(p), device="cpu"),
        lambda: [test_openvla.observation()],
    ),
    "openvla oft": Case(
        lambda f: _openvla(f, oft=True),
        lambda p: OpenVLA(test_openvla.suite(), str(p), device="cpu"),
        lambda: [test_openvla.observation()],
    ),
    "openvla of ours": Case(
        _openvla_own,
        lambda p: OpenVLA(test_openvla.suite(), str(p), device="cpu"),
        lambda: [test_openvla.observation()],
    ),
    "reconvla": Case(
        lambda f: reconvla_cases.write_released(f / "x", reconvla_cases.random_model()),
        lambda p: ReconVLA(_CALVIN, str(p)),
        _recon_seen(_CALVIN),
    ),
    "reconvla with its head": Case(
        lambda f: reconvla_cases.write_released(f / "x", reconvla_cases.random_model()),
        lambda p: ReconVLA(_CALVIN, str(p), head="keep"),
        _recon_seen(_CALVIN),
    ),
    "reconvla of ours": Case(_reconvla_own, lambda p: ReconVLA(_TOY, str(p)), _recon_seen(_TOY)),
    "diffusion ckpt": Case(_ckpt, _diffusion, test_diffusion_policy.official_observations),
    "diffusion hybrid ckpt": Case(_hybrid, _diffusion, test_diffusion_policy.official_observations),
    "diffusion of lerobot": Case(
        lambda f: test_diffusion_policy.lerobot_folder("group_shared", f),
        _lerobot,
        lambda: test_diffusion_policy.lerobot_observations(mirrored=True),
    ),
    "diffusion of ours": Case(_diffusion_own, _diffusion, lambda: [test_diffusion_policy.noisy(_DIFFUSION, 3)]),
}


# --- damage ---


def damage_checkpoint(path: Path, damage: Random) -> str:
    """Damages one file of the checkpoint, where it matters: weights in their header, archives in their pickle."""
    files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    file = damage.choice([one for one in files if one.name != "README.md"])
    if damage.random() < 1 / 4:
        return f"{file.name}: {damage_file(file, damage)}"
    by_ending = {".safetensors": _damaged_weights, ".ckpt": _damaged_archive, ".pt": _damaged_archive}
    change = by_ending.get(file.suffix)
    if change is None:
        return f"{file.name}: {damage_file(file, damage)}"
    content, said = change(file, damage)
    file.write_bytes(content)
    return f"{file.name}: {said}"


def _damaged_weights(file: Path, damage: Random) -> Damage:
    """The header as bytes or as JSON, with its length made right or not; or one number that is none."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, numbers = content[8 : 8 + length], content[8 + length :]
    how = damage.choice(("JSON", "JSON", "bytes", "length", "numbers"))
    if how == "numbers":
        place = 4 * damage.randrange(len(numbers) // 4)
        wrong = damage.choice((np.nan, np.inf, -np.inf, 3e38))
        return Damage(
            content[: 8 + length] + numbers[:place] + np.float32(wrong).tobytes() + numbers[place + 4 :],
            f"{wrong} at {place}",
        )
    if how == "length":
        new = damage.choice((0, 1, length - 1, length + 1, 2**20, 10**8, 2**31, 2**62, 2**64 - 1))
        return Damage(new.to_bytes(8, "little") + content[8:], f"a header of {new}")
    changed, said = damaged_json(header, damage) if how == "JSON" else damaged(header, damage)
    return Damage(len(changed).to_bytes(8, "little") + changed + numbers, f"header: {said}")


def _damaged_archive(file: Path, damage: Random) -> Damage:
    """One member changed, taken away or compressed."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("data.pkl")]
    name = (
        damage.choice([*pickles * 4, *members]) if len(members) < 10 else damage.choice([*pickles, *pickles, *members])
    )
    how = damage.choice(("changed", "changed", "changed", "gone", "compressed"))
    said = how
    if how == "gone":
        del members[name]
    elif how == "changed":
        members[name], said = damaged(members[name], damage)
    with zipfile.ZipFile(file, "w") as archive:
        for one, data in members.items():
            deflated = how == "compressed" and one == name
            archive.writestr(one, data, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
    return Damage(file.read_bytes(), f"{name} {said}")
