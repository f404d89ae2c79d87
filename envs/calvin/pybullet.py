"""The same chains on the real calvin_env (PyBullet), where it is installed: to see what our own table changes.

    git clone https://github.com/mees/calvin_env && pip install pybullet==3.2.7 hydra-core omegaconf gym \
        opencv-python-headless gitpython numpy-quaternion
    PYTHONPATH=calvin_env vla-bench run --suite calvin_pybullet --policy ...

Not obvious:

* The configuration is read from the clone's own `conf` (cameras, robot, scene), whose numbers are those of the recorded
  dataset's `merged_config.yaml`; CPU rendering (TinyRenderer) unless `egl=true`. Colours differ a little between them.
* `env.step` renders every camera; its parts are called here instead, and pictures are taken when they are looked at.
* Which version of calvin_env runs is the clone's: its commit is part of the protocol.
* Gripper action and the button's last reading, which upstream carries over, are set back before every chain. Bullet's
  own caches are not: a chain can differ in the last digits with what was run before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vla_bench.errors import UsageError
from vla_bench.types import Image, Suite, Task

from .chains import CHAINS, LENGTH, SHA256
from .env import ACTION, CAMERAS, CHAIN_TASK, MAX_STEPS, STATE, CalvinEnv, Float64, SceneName
from .scene import SCENES
from .sim import CONTROL_HZ
from .starts import chain_start
from .tasks import COLOURS, ROBOT, Block, Contact, Record

_PACKAGES = ("calvin_env", "pybullet", "hydra", "omegaconf")
_SUBSTEPS = 8


def suite(name: str = "calvin_pybullet", scene: SceneName = "d", egl: bool = False) -> Suite:
    """CALVIN's 1000 chains on the real environment.

    Args:
        name: the suite's name.
        scene: a, b, c or d.
        egl: render with calvin_env's EGL plug-in instead of on the CPU.
    """
    of = SCENES[scene.upper()]

    def make_env(task: Task, wanted: Sequence[str]) -> CalvinEnv:
        return CalvinEnv(task, wanted, PybulletTable(of.name, egl), lambda trial, seed: chain_start(of, trial))

    return Suite(
        name=name,
        version="1",
        tasks=(Task(CHAIN_TASK, ("five instructions, each given when the one before is done",), MAX_STEPS, CHAINS),),
        action=ACTION,
        cameras=CAMERAS,
        state=STATE,
        control_hz=CONTROL_HZ,
        make_env=make_env,
        provenance=provenance,
        protocol={"scene": of.name, "chains": SHA256, "egl": int(egl)},
        about=f"CALVIN's 1000 chains of {LENGTH} instructions on the real calvin_env, if installed",
    )


def provenance() -> dict[str, str]:
    """What decides the numbers. Raises UsageError where calvin_env is not installed."""
    clone = _clone()
    git = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=False
    )
    return {"calvin_env": git.stdout.strip() or "unknown commit", "pybullet": metadata.version("pybullet")}


def _clone() -> Path:
    """The folder of calvin_env's clone. Raises UsageError."""
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"calvin_pybullet needs {', '.join(missing)}, not installed here: clone github.com/mees/calvin_env, put it "
            "on PYTHONPATH and pip install pybullet hydra-core omegaconf gym opencv-python-headless gitpython "
            "numpy-quaternion; or use calvin_d, which needs none of it."
        )
    import calvin_env

    clone = Path(calvin_env.__file__).parents[1]
    if not (clone / "conf" / "scene").is_dir() or not (clone / "data").is_dir():
        raise UsageError(f"{clone} has no conf and data folders: calvin_pybullet needs a whole clone of calvin_env.")
    return clone


class PybulletTable:
    """What an episode asks of a table (`calvin.Simulator`), from calvin_env."""

    def __init__(self, scene: str, egl: bool) -> None:
        clone = _clone()
        import hydra

        with contextlib.redirect_stdout(None):
            self._env: Any = hydra.utils.instantiate(
                _configuration(clone, scene, egl).env, show_gui=False, use_vr=False, use_scene_info=True
            )

    def reset(self, robot_obs: Float64, scene_obs: Float64) -> None:
        for button in self._env.scene.buttons:
            button.prev_is_pressed = False
        self._env.scene.reset(scene_obs)
        self._env.robot.reset(robot_obs)
        self._env.robot.gripper_action = int(robot_obs[14])
        self._env.p.stepSimulation(physicsClientId=self._env.cid)

    def step(self, action: Float64) -> None:
        self._env.robot.apply_action(action.copy())  # 1431a46 scales it in place
        for _ in range(_SUBSTEPS):
            self._env.p.stepSimulation(physicsClientId=self._env.cid)
        self._env.scene.step()

    def robot_obs(self) -> Float64:
        observation: Float64 = self._env.robot.get_observation()[0]
        return observation

    def record(self) -> Record:
        return _record(self._env.get_info())

    def state(self) -> Mapping[str, Image]:
        """All pictures of this instant: PyBullet cannot go back to it cheaply."""
        return {name: np.array(image[..., :3], np.uint8) for name, image in self._env.get_camera_obs()[0].items()}

    def paint(self, camera: str) -> Image:
        return self.state()[camera]

    def paint_at(self, state: Mapping[str, Image], camera: str) -> Image:
        return state[camera]

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over what calvin_env says of robot and scene, velocities included."""
        blocks = self._env.get_info()["scene_info"]["movable_objects"]
        speeds = [blocks[name][key] for name in sorted(blocks) for key in ("current_lin_vel", "current_ang_vel")]
        seen = [self.robot_obs(), np.asarray(self._env.scene.get_obs()), np.ravel(speeds)]
        return hashlib.sha256(np.concatenate(seen).tobytes()).hexdigest()[:16]

    def close(self) -> None:
        with contextlib.redirect_stdout(None):
            self._env.close()
        self._env.ownsPhysicsClient = False  # it would disconnect again when it is collected


def _configuration(clone: Path, scene: str, egl: bool) -> Any:
    """What hydra would compose of the clone's `conf` for the Panda with longer fingers and the two usual cameras."""
    from omegaconf import OmegaConf

    def read(*path: str) -> Any:
        return OmegaConf.load(clone.joinpath("conf", *path).with_suffix(".yaml"))

    return OmegaConf.create(
        {
            "use_vr": False,
            "data_path": str(clone / "data"),
            "cameras": {name: read("cameras", "cameras", name) for name in ("static", "gripper")},
            "robot": OmegaConf.merge(read("robot", "panda"), read("robot", "panda_longer_finger")),
            "scene": read("scene", f"calvin_scene_{scene}"),
            "env": OmegaConf.merge(read("env", "play_table_env"), {"use_egl": egl}),
        }
    )


def _record(info: Mapping[str, Any]) -> Record:
    """calvin_env's info as a record."""
    scene = info["scene_info"]
    table = scene["fixed_objects"]["table"]
    blocks = {colour: scene["movable_objects"][f"block_{colour}"] for colour in COLOURS}
    bodies = {info["robot_info"]["uid"]: ROBOT, table["uid"]: "table"}
    bodies |= {block["uid"]: colour for colour, block in blocks.items()}
    links = {number: name for name, number in table["links"].items()}

    def contact(point: Sequence[Any]) -> Contact:
        """Points are (flag, body A, body B, link A, link B, ...)."""
        body = bodies.get(point[2], "floor")
        return body, links[point[4]] if body == "table" else str(point[4])

    return Record(
        blocks={
            colour: Block(
                tuple(block["current_pos"]),
                tuple(block["current_orn"]),
                tuple(block["current_lin_vel"]),
                tuple(block["current_ang_vel"]),
                frozenset(map(contact, block["contacts"])),
            )
            for colour, block in blocks.items()
        },
        robot_contacts=frozenset(contact(point)[0] for point in info["robot_info"]["contacts"]),
        door=scene["doors"]["base__slide"]["current_state"],
        drawer=scene["doors"]["base__drawer"]["current_state"],
        button=scene["buttons"]["base__button"]["joint_state"],
        switch=scene["switches"]["base__switch"]["joint_state"],
        bulb=bool(scene["lights"]["lightbulb"]["logical_state"]),
        led=bool(scene["lights"]["led"]["logical_state"]),
    )
