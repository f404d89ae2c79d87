"""The suite `tiny`: three short tasks, one each of robosuite, LIBERO and CALVIN, that one small policy can play.

Not obvious:

* Action, state and cameras are the same for all three and mean the same: robosuite's (see robosuite_core), with small
  pictures. robosuite and LIBERO play them as they are. CALVIN runs at 20 Hz instead of 30 and its side is translated
  (tiny_calvin). Positions are in each simulator's own world: axes alike, but the robot's base stands at
  (-0.56, 0, 0.91), (-0.66, 0, 0.91) and (-0.34, -0.46, 0.24) m.
* `split=eval` has 50 initial states per task, the same for every seed: LIBERO's published ones, and what the samplers
  of the other two give for a seed that nobody else can ask for. `split=train` draws others from (task, trial, seed).
* Pictures have neither mirror images (robosuite, LIBERO) nor shadows (CALVIN; the other two never have any). Drawn by
  software they would take twice as long, and at 64 px they can hardly be seen.
* Built scenes are kept for the next episode of their task: whoever plays the tasks in turn, as a duel does, builds each
  once. All three together take 1.2 GB, 1.7 GB with what their pictures need.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

from vla_bench.errors import UsageError
from vla_bench.types import Camera, Float32, Frame, Image, Mask, Observation, Quality, Shot, Suite, Task, Transition

from . import libero, robosuite, tiny_calvin
from .calvin import env as calvin
from .calvin.scene import QUALITY
from .calvin.sim import CAMERA_PX
from .calvin.tasks import SENTENCES
from .robosuite_core import ACTION, CONTROL_HZ, STATE, RobosuiteEnv, Sample, SampleClock
from .task_env import TaskEnv

Split = Literal["eval", "train"]
Picture = TypeVar("Picture", Image, Mask)
TRIALS: Mapping[Split, int] = {"eval": 50, "train": 10_000}
EVAL_SEED = 2**63
"""Of the drawn evaluation states. Seeds of runs are smaller, so no training state is one of these."""
LIBERO_SUITE = "libero_goal"
SETTLE_STEPS = 10
"""After LIBERO's initial states, which hang in the air, as in its own suites."""
CAMERAS = ("view", "wrist")
ROBOSUITE_CAMERAS = dict(zip(CAMERAS, robosuite.CAMERAS, strict=True))
CALVIN_CAMERAS = dict(zip(CAMERAS, CAMERA_PX, strict=True))
"""What each simulator calls them."""


class Entry(NamedTuple):
    """One of the three tasks."""

    task: str
    inner: str
    """Its name in the suite that it is taken from."""
    instruction: str
    max_steps: int
    """Two to three times what the oracle needs on average, which is 32, 58 and 43; with noise up to 36, 63 and 77."""
    cameras: Mapping[str, str]
    """Our names to the simulator's."""
    build: Callable[[Task, Split, Sequence[Camera], Sequence[str]], Any]
    """(inner task, split, the simulator's cameras, names of those to render) -> environment."""


def suite(name: str = "tiny", split: Split = "eval", resolution: int = 64) -> Suite:
    """Three short tasks, one of each simulator.

    Args:
        name: the suite's name.
        split: eval, 50 initial states per task, whatever --seed; or train, 10000 others, drawn from --seed.
        resolution: height and width of both cameras in pixels.
    """
    if resolution < 1:
        raise UsageError(f"resolution must be >= 1, got {resolution}.")
    shelf = Shelf()

    def make_env(task: Task, wanted: Sequence[str]) -> TinyEnv:
        return TinyEnv(task, split, resolution, wanted, shelf)

    return Suite(
        name=name,
        version="1",
        tasks=tuple(Task(e.task, (e.instruction,), e.max_steps, TRIALS[split]) for e in ENTRIES.values()),
        action=ACTION,
        cameras=cameras(resolution),
        state=STATE,
        control_hz=CONTROL_HZ,
        make_env=make_env,
        provenance=provenance,
        protocol={"split": split, "calvin_scene": tiny_calvin.SCENE.name, "calvin_substeps": tiny_calvin.SUBSTEPS},
        about="three short tasks for small policies: robosuite's Lift, LIBERO's stove, CALVIN's drawer",
        mujoco_quality=(Quality(), QUALITY),
    )


def cameras(resolution: int) -> tuple[Camera, ...]:
    """Both, of that many pixels in height and width."""
    return tuple(Camera(name, resolution, resolution) for name in CAMERAS)


def provenance() -> dict[str, str]:
    """Versions of all that decides the physics and the pictures of the three. Raises MissingPackage."""
    return {**calvin.provenance(), **robosuite.provenance(), **libero.provenance(LIBERO_SUITE)}


# The three scenes


class _Dull(RobosuiteEnv):
    """A scene whose floor mirrors nothing. MuJoCo draws every mirror's view by itself."""

    def _begin(self, clock: SampleClock, sample: Sample) -> None:
        self.raw.sim.model._model.mat_reflectance[:] = 0.0
        super()._begin(clock, sample)


class _Lift(_Dull, robosuite.StandardEnv):
    pass


class _Stove(_Dull, libero.LiberoEnv):
    pass


class _SampledStove(_Dull, libero.SampledEnv):
    pass


def _lift(task: Task, split: Split, sizes: Sequence[Camera], wanted: Sequence[str]) -> RobosuiteEnv:
    del split  # the seeds differ
    return _Lift(task, sizes, wanted)


def _stove(task: Task, split: Split, sizes: Sequence[Camera], wanted: Sequence[str]) -> RobosuiteEnv:
    of = _Stove if split == "eval" else _SampledStove
    return of(LIBERO_SUITE, task, sizes, wanted, fixture_seed=0, settle_steps=SETTLE_STEPS)


def _drawer(task: Task, split: Split, sizes: Sequence[Camera], wanted: Sequence[str]) -> tiny_calvin.TinyCalvinEnv:
    del split  # the seeds differ
    return tiny_calvin.TinyCalvinEnv(task, sizes, wanted)


ENTRIES: Mapping[str, Entry] = {
    entry.task: entry
    for entry in (
        Entry("lift_the_cube", "Lift", "lift the red cube", 80, ROBOSUITE_CAMERAS, _lift),
        Entry("turn_on_the_stove", "turn_on_the_stove", "turn on the stove", 120, ROBOSUITE_CAMERAS, _stove),
        Entry("open_the_drawer", "open_drawer", SENTENCES["open_drawer"], 120, CALVIN_CAMERAS, _drawer),
    )
}


class Shelf:
    """Built scenes that nobody plays at the moment. They are freed with it, or when Python ends."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Any] = {}
        weakref.finalize(self, _free, self._kept)

    def take(self, key: tuple[str, ...]) -> Any:
        """The environment put there under that key; None if there is none."""
        return self._kept.pop(key, None)

    def put(self, key: tuple[str, ...], env: Any) -> None:
        """Keep it; one of each key is enough."""
        if key in self._kept:
            env.close()
        else:
            self._kept[key] = env


def _free(kept: dict[tuple[str, ...], Any]) -> None:
    while kept:
        kept.popitem()[1].close()


# The environment


class TinyEnv(TaskEnv):
    """One of the three tasks, whichever simulator plays it; state and action are robosuite's."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 Gymnasium's own convention

    def __init__(self, task: Task, split: Split, resolution: int, wanted: Sequence[str], shelf: Shelf) -> None:
        super().__init__(task, [camera for camera in cameras(resolution) if camera.name in wanted], STATE, ACTION)
        self._entry = ENTRIES[task.name]
        self._fixed = split == "eval"
        self._ours = {own: name for name, own in self._entry.cameras.items()}
        self._shelf, self._key = shelf, (task.name, *wanted)
        self.inner = shelf.take(self._key) or self._built(split, resolution, wanted)
        """The environment of the task's own simulator."""
        self._sound, self._closed = True, False
        self.inner.look_back(1)
        self.inner.record(0)

    @property
    def attended(self) -> tuple[str, ...]:
        """Bodies that a privileged policy says it manipulates from now on."""
        bodies: tuple[str, ...] = self.inner.attended
        return bodies

    @attended.setter
    def attended(self, bodies: tuple[str, ...]) -> None:
        self.inner.attended = bodies

    @property
    def start_fingerprint(self) -> str:  # type: ignore[override]
        return str(self.inner.start_fingerprint)

    # What the engine calls

    def reset_trial(self, trial: int, seed: int) -> Observation:
        self._insist_on_trial(trial)
        with self._entrusted():
            return self._told(self.inner.reset_trial(trial, EVAL_SEED if self._fixed else seed))

    def advance(self, actions: Float32) -> Transition:
        self._insist_on_actions(actions)
        with self._entrusted():
            after: Transition = self.inner.advance(actions)
        return after._replace(observation=self._told(after.observation))

    def look_back(self, history: int) -> None:
        self.inner.look_back(history)

    def record(self, every: int) -> None:
        self.inner.record(every)

    def film(self) -> Iterator[Frame]:
        for frame in self.inner.film():
            yield frame._replace(images=self._renamed(frame.images))

    def shots(self) -> Iterator[Shot]:
        for shot in self.inner.shots():
            images, masks = self._renamed(shot.images), self._renamed(shot.masks)
            yield shot._replace(images=images, masks=masks, instruction=self._entry.instruction)

    def gaze(self) -> Mapping[str, Mask]:
        return self._renamed(self.inner.gaze())

    def fingerprint(self) -> str:
        digest: str = self.inner.fingerprint()
        return digest

    def close(self) -> None:
        """Leave the scene for the next of its kind, unless the last thing it did was to fail."""
        if self._closed:
            return
        self._closed = True
        if self._sound:
            self._shelf.put(self._key, self.inner)
        else:
            self.inner.close()

    # Parts

    def _built(self, split: Split, resolution: int, wanted: Sequence[str]) -> Any:
        entry, names = self._entry, self._entry.cameras
        sizes = [replace(camera, name=names[camera.name]) for camera in cameras(resolution)]
        return entry.build(replace(self.task, name=entry.inner), split, sizes, [names[name] for name in wanted])

    @contextlib.contextmanager
    def _entrusted(self) -> Iterator[None]:
        """Inside the simulator works: what raises here is not sound any more."""
        self._sound = False
        yield
        self._sound = True

    def _told(self, observation: Observation) -> Observation:
        """The same with our names and our sentence."""
        return replace(
            observation,
            images=self._renamed(observation.images),
            instruction=self._entry.instruction,
            earlier=tuple(self._told(before) for before in observation.earlier),
        )

    def _renamed(self, pictures: Mapping[str, Picture]) -> dict[str, Picture]:
        return {self._ours[own]: picture for own, picture in pictures.items()}
