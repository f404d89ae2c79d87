"""Demonstrations as HDF5 in the layout of LIBERO and robomimic: data/demo_i/{actions, obs/..., states, rewards, dones}.

Where the two differ or are wrong, and what is done here:

* One file per task, as LIBERO has it, named <task>_demo.hdf5.
* obs[t] and states[t] are what there was before action t. LIBERO's own files have obs one step late
  (LIBERO's create_dataset.py reads it after the step); robomimic's have not.
* Pictures are upright (macros_image_convention is opencv); LIBERO's own are upside down (opengl).
* `model_file` is left out: the episode's identity (attributes suite, task, trial, seed) rebuilds the scene exactly.
* New: intended_actions, the expert's before noise was put on them, and gaze/<camera>_box, gaze/<camera>_mask and
  gaze/body, see docs/collect.md.
"""

from __future__ import annotations

import contextlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_bench.data.demonstrations import Demonstration
from vla_bench.data.recording import Beginning, Recorded
from vla_bench.errors import MissingPackage, UsageError
from vla_bench.store.files import replacing
from vla_bench.types import Episode, Suite, Task

if TYPE_CHECKING:
    import h5py

ENDINGS = (".hdf5", ".h5")
INTENDED = "intended_actions"
# 128 px LIBERO: 99 kB a frame written, 133 kB asked for.
_PIXEL_BYTES, _FRAME_BYTES, _EPISODE_BYTES = 4, 2_000, 50_000


def import_h5py() -> Any:
    """h5py. Raises MissingPackage."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingPackage("h5py", "data") from error
    return h5py


# Writing


def write_hdf5(folder: Path, suite: Suite, task: Task, demos: Iterable[Demonstration]) -> Path:
    """The file with those demonstrations of one task; an older one is replaced. Holds one of them at a time."""
    file = folder / f"{task.name}_demo.hdf5"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, import_h5py().File(temporary, "w") as archive:
        data = archive.create_group("data")
        total = count = 0
        for count, demo in enumerate(demos, 1):
            _write_demo(data.create_group(f"demo_{count - 1}"), suite, demo)
            total += len(demo)
        data.attrs.update(_about(suite, task))
        data.attrs["num_demos"], data.attrs["total"] = count, total
    return file


def space_needed(suite: Suite, episodes: int, frames: int) -> int:
    """Bytes of a file at most: all but the masks is written uncompressed, and nothing else is big."""
    pixels = sum(camera.height * camera.width for camera in suite.cameras)
    return episodes * _EPISODE_BYTES + frames * (pixels * _PIXEL_BYTES + _FRAME_BYTES)


def _about(suite: Suite, task: Task) -> dict[str, str]:
    instruction = task.instructions[0]
    made_by = {"env_name": task.name, "type": 1, "env_kwargs": dict(suite.protocol), "suite": suite.name}
    return {
        "env_name": task.name,
        "env_args": json.dumps(made_by),  # type 1 is robosuite's in robomimic
        "problem_info": json.dumps({"problem_name": task.name, "language_instruction": instruction}),
        "macros_image_convention": "opencv",
        "state_names": json.dumps(suite.state),
        "action": json.dumps(asdict(suite.action)),
        "control_hz": str(suite.control_hz),
    }


def _write_demo(group: h5py.Group, suite: Suite, demo: Demonstration) -> None:
    steps = len(demo)
    last = np.zeros(steps, np.uint8)
    last[-1] = 1
    group.create_dataset("actions", data=demo.actions.astype(np.float64))
    group.create_dataset(INTENDED, data=demo.intended.astype(np.float64))
    group.create_dataset("states", data=demo.physics)
    group.create_dataset("rewards", data=last)
    group.create_dataset("dones", data=last)
    for name, values in _low_dim(suite, demo).items():
        group.create_dataset(f"obs/{name}", data=values)
    for camera, view in demo.views.items():
        group.create_dataset(f"obs/{image_key(camera)}", data=view.images())
        group.create_dataset(f"gaze/{camera}_box", data=view.boxes)
        group.create_dataset(
            f"gaze/{camera}_mask",
            data=view.masks(),
            chunks=(1, view.height, view.width),
            compression="gzip",
            compression_opts=1,
        )
    group["gaze/body"] = list(demo.attended)
    group["instruction"] = list(demo.instructions)
    group.attrs.update({name: value for name, value in asdict(demo.episode).items() if value != ""})
    group.attrs.update(
        num_samples=steps,
        success=True,
        init_state=demo.physics[0],
        scene_fingerprint=demo.scene_fingerprint,
        final_fingerprint=demo.final_fingerprint,
    )


def image_key(camera: str) -> str:
    """LIBERO's names: agentview_rgb, eye_in_hand_rgb."""
    camera = camera.removeprefix("robot0_")
    return camera if camera.startswith("rgb") else f"{camera}_rgb"


def _low_dim(suite: Suite, demo: Demonstration) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """The state whole, and where it is robosuite's also under LIBERO's names."""
    known: dict[str, np.ndarray[Any, np.dtype[Any]]] = {"state": demo.states, "joint_states": demo.joints}
    if suite.state[0].startswith("end effector"):
        states = demo.states.astype(np.float64)
        known |= {"ee_states": states[:, :6], "ee_pos": states[:, :3], "ee_ori": states[:, 3:6]}
        known |= {"gripper_states": states[:, 6:8]}
    return known


# Reading


def read_hdf5(path: Path, suite: Suite) -> dict[Episode, Recorded]:
    """Every episode of a file, or of the files of a folder. Raises UsageError.

    Demonstrations without an identity (LIBERO's published ones) count as trials 0, 1, ... of seed 0, and begin in
    their own first state.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS) if path.is_dir() else [path]
    return {episode: recorded for file in files for episode, recorded in _read_file(file, suite)}


def _read_file(file: Path, suite: Suite) -> Iterator[tuple[Episode, Recorded]]:
    h5py = import_h5py()
    try:
        with h5py.File(file, "r") as archive:
            data = archive["data"]
            for name in sorted(data, key=_number):
                yield _read_demo(file, data, name, suite)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{file} is not HDF5 as LIBERO or robomimic have it ({error}): give another file.") from error


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _read_demo(file: Path, data: h5py.Group, name: str, suite: Suite) -> tuple[Episode, Recorded]:
    demo = data[name]
    actions, said = np.asarray(demo["actions"], np.float32), demo.attrs
    if "final_fingerprint" in said:
        place = Episode(
            str(said["suite"]),
            str(said["task"]),
            int(said["trial"]),
            int(said["seed"]),
            str(said.get("perturbation", "")),
        )
        return place, Recorded(actions, bool(said["success"]), str(said["final_fingerprint"]))
    state = np.asarray(said["init_state"] if "init_state" in said else demo["states"][0], np.float64)
    beginning = Beginning(state, fixtures(str(said.get("model_file", ""))))
    success = bool(np.asarray(demo["dones"])[-1]) if "dones" in demo else None
    episode = Episode(suite.name, _task_of(file, data.attrs, suite), _number(name), 0)
    return episode, Recorded(actions, success, beginning=beginning)


def _task_of(file: Path, attrs: Mapping[str, Any], suite: Suite) -> str:
    """The task's name stands in the name of the file or of the BDDL file that it was recorded with."""
    names = [file.stem.removesuffix("_demo"), Path(str(attrs.get("bddl_file_name", ""))).stem]
    found = [name for name in (*names, str(attrs.get("env_name", ""))) if name in suite.names]
    if not found:
        raise UsageError(f"{file} is of {' or '.join(filter(None, names))}, which is no task of {suite.name}.")
    return found[0]


def fixtures(model_xml: str) -> dict[str, tuple[Any, Any]]:
    """Body name to position (m) and quaternion (wxyz) of the bodies right in the world that have no free joint."""
    if not model_xml:
        return {}
    with contextlib.suppress(ET.ParseError):
        return dict(_placed(ET.fromstring(model_xml).findall("worldbody/body")))
    raise UsageError("A demonstration's model_file is not XML: the file is damaged, download it again.")


def _placed(bodies: Sequence[ET.Element]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for body in bodies:
        free = body.find("freejoint") is not None or any(j.get("type") == "free" for j in body.findall("joint"))
        if not free and body.get("pos") and body.get("name"):
            position, quat = (
                np.array((body.get(key) or default).split(), float)
                for key, default in (("pos", ""), ("quat", "1 0 0 0"))
            )
            yield str(body.get("name")), (position, quat)
