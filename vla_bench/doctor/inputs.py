"""What a policy could be shown instead: every known way an adapter confuses pictures and orientations, undone.

Pure functions: an observation goes in, another comes out. Where an adapter turns a picture over by mistake, a picture
that is already turned over comes out right; where it reads a quaternion in another order, one already reordered does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.geometry import axis_angle_from_quat
from vla_bench.types import Camera, Image, Observation, PolicySpec

Float64 = NDArray[np.float64]
Change = Callable[[Observation], Observation]
Turn = Callable[[Float64], Float64]
"""A unit quaternion (x, y, z, w) to another."""


class Confusion(NamedTuple):
    """A mistake of an adapter, and the observation that makes up for it."""

    topic: str
    fault: str
    fix: str
    change: Change


def confusions(spec: PolicySpec, layout: Sequence[str]) -> list[Confusion]:
    """All that could be confused in what the policy reads; `layout` names the entries of the state it gets."""
    return [*_picture_confusions(spec.cameras), *(_orientation_confusions(layout) if spec.state else [])]


def everywhere(change: Change) -> Change:
    """The same change to the observation and to the control steps before it."""

    def changed(seen: Observation) -> Observation:
        return replace(change(seen), earlier=tuple(change(past) for past in seen.earlier))

    return changed


# Pictures

_PICTURES: Mapping[str, Callable[[Image], Image]] = {
    "upside down": lambda image: image[::-1],
    "mirrored left to right": lambda image: image[:, ::-1],
    "rotated by 180 degrees": lambda image: image[::-1, ::-1],
    "blue for red": lambda image: image[..., ::-1],
}


def _picture_confusions(cameras: Sequence[Camera]) -> list[Confusion]:
    names = [camera.name for camera in cameras]
    wholes = [tuple(names)] if names else []
    parts = [(name,) for name in names] if len(names) > 1 else []
    found = [_picture(chosen, how) for chosen in wholes + parts for how in _PICTURES]
    if len(cameras) == 2 and (cameras[0].height, cameras[0].width) == (cameras[1].height, cameras[1].width):
        found.append(
            Confusion("picture", f"{names[0]} and {names[1]} are exchanged", "exchange them", _exchanged(*names))
        )
    return found


def _picture(chosen: tuple[str, ...], how: str) -> Confusion:
    turn = _PICTURES[how]

    def change(seen: Observation) -> Observation:
        turned = {name: np.ascontiguousarray(turn(seen.images[name])) for name in chosen}
        return replace(seen, images={**seen.images, **turned})

    fix = "give the model the pictures as they come: upright RGB, row 0 at the top"
    return Confusion("picture", f"the model sees {' and '.join(chosen)} {how}", fix, everywhere(change))


def _exchanged(one: str, other: str) -> Change:
    def change(seen: Observation) -> Observation:
        return replace(seen, images={**seen.images, one: seen.images[other], other: seen.images[one]})

    return everywhere(change)


# Orientation


def _turned_about_z(quarter_turns: int) -> Turn:
    half = quarter_turns * np.pi / 4

    def turn(quat: Float64) -> Float64:
        x, y, z, w = quat
        s, c = np.sin(half), np.cos(half)
        return np.array([x * c + y * s, y * c - x * s, z * c + w * s, w * c - z * s])

    return turn


_TURNS: Mapping[str, tuple[Turn, str]] = {
    "quaternion order: x y z w is read as w x y z": (lambda q: np.roll(q, 1), "reorder the quaternion of the state"),
    "quaternion order: w x y z is read as x y z w": (lambda q: np.roll(q, -1), "reorder the quaternion of the state"),
    "quaternion sign: the other of the two that mean the same rotation": (
        lambda q: -q,
        "keep the sign of the simulator's quaternion, as the training data did",
    ),
    "inverted rotation: the world seen from the hand": (lambda q: q * [-1, -1, -1, 1], "transpose the rotation"),
    "the hand's frame a quarter turn about its z": (_turned_about_z(1), "take the orientation of the other hand frame"),
    "the hand's frame a quarter turn back about its z": (
        _turned_about_z(-1),
        "take the orientation of the other hand frame",
    ),
}
"""What makes up for each mistake. LIBERO's two hand frames: X-VLA 97.8 or 42; the sign: OpenVLA-OFT's Long 95 or 56."""


def _orientation_confusions(layout: Sequence[str]) -> list[Confusion]:
    entries, kind = orientation(layout)
    if not entries:
        return []
    told = [fault for fault in _TURNS if kind != "Euler" or "sign" not in fault]  # Euler angles do not tell q from -q
    found = [_orientation(entries, kind, fault) for fault in told]
    if kind != "quaternion":
        found.append(_misread(entries, kind))
    return found


def orientation(layout: Sequence[str]) -> tuple[list[int], str]:
    """Which entries of the state hold the hand's orientation, and how: axis-angle, Euler or quaternion (x y z w)."""
    for kind, length in (("axis-angle", 3), ("Euler", 3), ("quaternion", 4)):
        entries = [i for i, name in enumerate(layout) if kind.lower() in name.lower()]
        if len(entries) == length:
            return entries, kind
    return [], ""


def _orientation(entries: list[int], kind: str, fault: str) -> Confusion:
    turn, fix = _TURNS[fault]

    def change(seen: Observation) -> Observation:
        return _with(seen, entries, _from_quat(turn(_to_quat(seen.state[entries], kind)), kind))

    return Confusion("orientation", f"the state's orientation: {fault}", fix, everywhere(change))


def _misread(entries: list[int], kind: str) -> Confusion:
    """Euler angles and axis-angle taken for each other; alike at small angles."""
    other = {"axis-angle": "Euler", "Euler": "axis-angle"}[kind]

    def change(seen: Observation) -> Observation:
        return _with(seen, entries, _from_quat(_to_quat(seen.state[entries], kind), other))

    fault = f"the state's orientation: {kind} is read as {other}"
    return Confusion("orientation", fault, f"convert {kind} to {other}", everywhere(change))


def _with(seen: Observation, entries: list[int], values: Float64) -> Observation:
    state = seen.state.copy()
    state[entries] = values
    return replace(seen, state=state)


def _to_quat(values: NDArray[np.float32], kind: str) -> Float64:
    """(x, y, z, w); an angle beyond pi keeps its negative w."""
    from scipy.spatial.transform import Rotation

    given = values.astype(np.float64)
    if kind == "quaternion":
        return given
    if kind == "Euler":
        return np.asarray(Rotation.from_euler("xyz", given).as_quat())
    angle = float(np.linalg.norm(given))
    axis = given / angle if angle > 0 else np.zeros(3)
    return np.append(axis * np.sin(angle / 2), np.cos(angle / 2))


def _from_quat(quat: Float64, kind: str) -> Float64:
    from scipy.spatial.transform import Rotation

    if kind == "quaternion":
        return quat
    if kind == "Euler":
        return np.asarray(Rotation.from_quat(quat).as_euler("xyz"))
    return axis_angle_from_quat(quat)
