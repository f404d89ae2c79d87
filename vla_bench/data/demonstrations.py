"""Recorded episodes, one file each: what data sets are made of.

A part holds everything of one episode, pictures already as PNG, so that a data set can be put together again at any
time, in any format, without a simulator and one episode at a time.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_bench.errors import UsageError, unwritable
from vla_bench.rollout import Rollout
from vla_bench.store.files import make_folder, replacing
from vla_bench.types import Env, Episode, Float32, Image, Mask, Recorder, Shot
from vla_bench.video import stem

_NOWHERE = (-1, -1, -1, -1)


@dataclass(frozen=True)
class View:
    """What one camera saw in T control steps."""

    height: int
    width: int
    png: tuple[bytes, ...]
    """(T,) upright RGB."""
    packed_masks: NDArray[np.uint8]
    """(T, ceil(height * width / 8)) `np.packbits` of the gaze region's rows, top first."""
    boxes: NDArray[np.int64]
    """(T, 4) left, top, right, bottom of the gaze region in pixels, the last two beyond it; -1 where it is hidden."""

    def images(self) -> Image:
        """(T, height, width, 3)."""
        return np.stack([decode(png) for png in self.png])

    def masks(self) -> NDArray[np.bool_]:
        """(T, height, width)."""
        return unpack(self.packed_masks, self.height, self.width)


@dataclass(frozen=True)
class Demonstration:
    """One successful episode of T control steps; entry t of everything is what there was before action t."""

    episode: Episode
    control_hz: float
    scene_fingerprint: str
    final_fingerprint: str
    """Of the simulator after the last action: a replay must arrive there."""
    actions: Float32
    """(T, A) as executed, noise included."""
    intended: Float32
    """(T, A) what the expert answered to what it had come to: `actions` before the noise."""
    states: Float32
    """(T, S) as the suite's observations have them."""
    joints: NDArray[np.float64]
    """(T, 7) rad, the arm's."""
    physics: NDArray[np.float64]
    """(T, 1 + nq + nv) time, positions and velocities of the simulator."""
    instructions: tuple[str, ...]
    attended: tuple[str, ...]
    """(T,) the bodies that are manipulated, joined with +."""
    views: Mapping[str, View]

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class PartKeeper:
    """Writes a part for every successful episode; the same episode again replaces its part."""

    folder: Path

    def keep(self, env: Env, rollout: Rollout) -> None:
        if not rollout.result.success:
            return
        if not isinstance(env, Recorder):
            raise UsageError(f"{type(env).__name__} cannot record demonstrations: it has no `shots`.")
        save_part(part_file(self.folder, rollout.result.episode), _demonstration(env.shots(), rollout))


def part_file(folder: Path, episode: Episode) -> Path:
    return folder / f"{stem(episode)}.npz"


def _demonstration(shots: Iterable[Shot], rollout: Rollout) -> Demonstration:
    """Made shot by shot, so that never more than one picture of each camera is held unpacked."""
    result = rollout.result
    low, views = list[Shot](), dict[str, list[tuple[bytes, NDArray[np.uint8], tuple[int, ...]]]]()
    sizes = dict[str, tuple[int, ...]]()
    for shot in shots:
        if shot.step == result.steps:
            break
        for camera, image in shot.images.items():
            mask = shot.masks[camera]
            views.setdefault(camera, []).append((encode(image), np.packbits(mask), box_of(mask)))
            sizes[camera] = mask.shape
        low.append(shot._replace(images={}, masks={}))
    if [shot.step for shot in low] != list(range(result.steps)):
        raise ValueError(f"{len(low)} of {result.steps} control steps were recorded.")
    return Demonstration(
        episode=result.episode,
        control_hz=result.steps / result.sim_s,
        scene_fingerprint=result.scene_fingerprint,
        final_fingerprint=result.final_fingerprint,
        actions=rollout.actions,
        intended=rollout.intended,
        states=np.stack([shot.state for shot in low]),
        joints=np.stack([shot.joints for shot in low]),
        physics=np.stack([shot.physics for shot in low]),
        instructions=tuple(shot.instruction for shot in low),
        attended=tuple("+".join(shot.attended) for shot in low),
        views={camera: _view(sizes[camera], seen) for camera, seen in views.items()},
    )


def _view(size: tuple[int, ...], seen: list[tuple[bytes, NDArray[np.uint8], tuple[int, ...]]]) -> View:
    pngs, masks, boxes = zip(*seen, strict=True)
    return View(size[0], size[1], pngs, np.stack(masks), np.array(boxes, np.int64))


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the true pixels, right and bottom beyond them; all -1 when there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return _NOWHERE
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def unpack(packed: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    """(..., height, width) of (..., ceil(height * width / 8)) packed bits."""
    bits = np.unpackbits(packed, axis=-1, count=height * width)
    return bits.reshape(*packed.shape[:-1], height, width).astype(bool)


def encode(image: Image) -> bytes:
    """The picture as PNG; lossless."""
    from PIL import Image as Picture

    buffer = io.BytesIO()
    Picture.fromarray(image).save(buffer, "png", compress_level=3)  # 6 takes twice as long for 4 % less
    return buffer.getvalue()


def decode(png: bytes) -> Image:
    from PIL import Image as Picture

    with Picture.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


# Parts


def save_part(file: Path, demo: Demonstration) -> None:
    """Write the part whole and durably, or not at all. Raises UsageError for a full disk."""
    about = {
        "episode": asdict(demo.episode),
        "control_hz": demo.control_hz,
        "scene_fingerprint": demo.scene_fingerprint,
        "final_fingerprint": demo.final_fingerprint,
        "cameras": {name: [view.height, view.width] for name, view in demo.views.items()},
    }
    arrays: dict[str, NDArray[np.generic]] = {
        "about": np.array(json.dumps(about)),
        "actions": demo.actions,
        "intended": demo.intended,
        "states": demo.states,
        "joints": demo.joints,
        "physics": demo.physics,
        "instructions": np.array(demo.instructions),
        "attended": np.array(demo.attended),
    }
    for name, view in demo.views.items():
        arrays[f"png/{name}"] = np.frombuffer(b"".join(view.png), np.uint8)
        arrays[f"ends/{name}"] = np.cumsum([len(png) for png in view.png])
        arrays[f"masks/{name}"], arrays[f"boxes/{name}"] = view.packed_masks, view.boxes
    try:
        make_folder(file.parent)
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    except OSError as error:
        raise unwritable(file, error) from error


def load_part(file: Path) -> Demonstration:
    """Raises UsageError for what is no part."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            return Demonstration(
                episode=Episode(**about["episode"]),
                control_hz=about["control_hz"],
                scene_fingerprint=about["scene_fingerprint"],
                final_fingerprint=about["final_fingerprint"],
                actions=archive["actions"],
                intended=archive["intended"],
                states=archive["states"],
                joints=archive["joints"],
                physics=archive["physics"],
                instructions=tuple(archive["instructions"].tolist()),
                attended=tuple(archive["attended"].tolist()),
                views={name: _load_view(archive, name, *size) for name, size in about["cameras"].items()},
            )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is not a recorded episode ({error}): delete it and collect again.") from error


def _load_view(archive: Mapping[str, NDArray[np.generic]], name: str, height: int, width: int) -> View:
    blob, ends = archive[f"png/{name}"].tobytes(), archive[f"ends/{name}"].tolist()
    pngs = tuple(blob[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))
    masks, boxes = archive[f"masks/{name}"].astype(np.uint8), archive[f"boxes/{name}"].astype(np.int64)
    return View(height, width, pngs, masks, boxes)
