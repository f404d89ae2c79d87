"""robosuite's own single-arm tasks on a Franka Panda, as upstream builds them (arXiv:2009.12293).

Not obvious:

* Trial k is upstream's `np.random.seed(s); env.reset()` with s drawn from (seed, k): a hard reset, because some objects
  (Lift's cube) change size with every load of the model.
* Horizons are those of the robomimic study where it has the task (arXiv:2108.03298: Lift, Can, Square 400), 500 for
  Door as in robosuite's benchmark runs, 400 for the others. No settle steps: an episode begins at upstream's reset.
* Success is upstream's `_check_success()`, judged after every control step; upstream itself never stops at success.
* robosuite has no instructions; the sentences here are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from vla_bench.errors import UsageError
from vla_bench.rendering.gl import insist_on_library
from vla_bench.rendering.simulators import insist_on_versions, use_numba_cache
from vla_bench.types import Camera, Quality, Suite, Task

from .robosuite_core import (
    ACTION,
    CONTROL_HZ,
    STATE,
    RobosuiteEnv,
    Sample,
    SampleClock,
    building,
    import_robosuite,
    release_loader_memory,
    scene_seed,
    version,
)

CAMERAS = ("agentview", "robot0_eye_in_hand")
TRIALS = 50
TASKS = (
    Task("Lift", ("lift the red cube",), 400, TRIALS),
    Task("Stack", ("stack the red cube on the green cube",), 400, TRIALS),
    Task("Door", ("open the door",), 500, TRIALS),
    Task("NutAssemblySquare", ("put the square nut on the square peg",), 400, TRIALS),
    Task("NutAssemblyRound", ("put the round nut on the round peg",), 400, TRIALS),
    Task("PickPlaceCan", ("put the can in its bin",), 400, TRIALS),
    Task("PickPlaceMilk", ("put the milk carton in its bin",), 400, TRIALS),
    Task("PickPlaceBread", ("put the bread in its bin",), 400, TRIALS),
    Task("PickPlaceCereal", ("put the cereal box in its bin",), 400, TRIALS),
)


def suite(name: str = "robosuite", resolution: int = 256) -> Suite:
    """robosuite's single-arm tasks.

    Args:
        name: the suite's name.
        resolution: height and width of both cameras in pixels.
    """
    if resolution < 1:
        raise UsageError(f"resolution must be >= 1, got {resolution}.")
    cameras = tuple(Camera(camera, resolution, resolution) for camera in CAMERAS)

    def make_env(task: Task, wanted: Sequence[str]) -> StandardEnv:
        return StandardEnv(task, cameras, wanted)

    return Suite(
        name=name,
        version="1",
        tasks=TASKS,
        action=ACTION,
        cameras=cameras,
        state=STATE,
        control_hz=CONTROL_HZ,
        make_env=make_env,
        provenance=provenance,
        about="robosuite's single-arm tasks, Panda, OSC_POSE at 20 Hz",
        mujoco_quality=(Quality(),),
    )


class StandardEnv(RobosuiteEnv):
    """One of robosuite's registered environments; trial k of seed s has a scene drawn from (s, k)."""

    def __init__(self, task: Task, cameras: Sequence[Camera], wanted: Sequence[str]) -> None:
        robosuite = import_robosuite()
        self._scenes = Scenes()
        with building(0), self._scenes.compiled_once():
            raw = robosuite.make(
                task.name,
                robots="Panda",
                controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                control_freq=CONTROL_HZ,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=True,
            )
        release_loader_memory()
        super().__init__(task, cameras, wanted, raw)

    def _start(self, trial: int, seed: int) -> None:
        with building(scene_seed(seed, trial)), self._scenes.compiled_once():
            self.raw.reset()
        release_loader_memory()
        sample = Sample(self.raw)
        sample.take()
        self._begin(SampleClock(CONTROL_HZ, self.raw.model_timestep), sample)

    def _goal_bodies(self) -> tuple[str, ...]:
        raw, model = self.raw, self.raw.sim.model._model
        return (model.body(_manipulated(raw, self.task.name)).name,)


class Scenes:
    """Keeps the last model as it was compiled. robosuite compiles at every reset; only Lift's cube has another size in
    each trial, the others get a copy: equal to the bit, and 20 ms instead of 400."""

    def __init__(self) -> None:
        self._xml, self._model = "", None

    @contextmanager
    def compiled_once(self) -> Iterator[None]:
        """robosuite's resets inside make their simulators from here."""
        from robosuite.environments import base

        simulator = base.MjSim
        base.MjSim = SimpleNamespace(from_xml_string=lambda xml: simulator(self._model_of(xml)))
        try:
            yield
        finally:
            base.MjSim = simulator

    def _model_of(self, xml: str) -> Any:
        import mujoco

        if xml != self._xml:
            self._xml, self._model = xml, mujoco.MjModel.from_xml_string(xml)
        return copy.copy(self._model)


def _manipulated(raw: Any, task: str) -> int:
    """Number of the body that the task is about."""
    if task == "Door":
        return int(raw.sim.model._model.joint(raw.door.joints[0]).bodyid[0])
    if task.startswith("NutAssembly"):
        return int(raw.obj_body_id[raw.nuts[raw.nut_id].name])
    if task.startswith("PickPlace"):
        return int(raw.obj_body_id[raw.objects[raw.object_id].name])
    return int(raw.cube_body_id if task == "Lift" else raw.cubeA_body_id)


def provenance() -> dict[str, str]:
    """Versions of what decides the physics and the pictures. Raises MissingPackage, and UsageError for what fails."""
    insist_on_versions("robosuite", "mujoco")
    use_numba_cache()  # before there are workers, who then share it
    insist_on_library()
    return {
        "robosuite": version("robosuite"),
        "mujoco": version("mujoco"),
        "scipy": version("scipy"),  # its BLAS computes the controller's torques, through numba: 1.18 differs from 1.17
    }
