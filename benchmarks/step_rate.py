"""How fast LIBERO-Long task 0 goes here, against the loop that everybody else runs, measured in one sitting.

    python benchmarks/step_rate.py [--quick] [--json]

Upstream is libero's own `OffScreenRenderEnv` with both 256 px cameras, used as openvla and openpi use it. Machines are
shared and noisy, so the two sides play short blocks of the same random actions in turn, one working while the other
waits; what is printed are medians of blocks and ratios of medians. CPU times hold the software renderer's threads.

The sides live in processes of their own, because robosuite's renderer never makes its GL context current and two of
them in one process paint into each other's pictures. After every block both must have arrived at the same state and the
same pixels, bit for bit; otherwise the benchmark stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from vla_bench.policies.baselines import standing_still

from vla_bench.chunking import RecedingHorizon
from vla_bench.inference import LocalPolicy
from vla_bench.pool import Pool, WorkerSetup
from vla_bench.registry import make_suite
from vla_bench.rendering import gl
from vla_bench.rollout import Actor, Filming, Rollout, Stage
from vla_bench.store.provenance import gather
from vla_bench.store.runs import RunInfo, RunStore
from vla_bench.types import ActionChunk, Env, Episode, Float32, Observation, PolicySpec, Suite, Task, Transition

SUITE = "libero_10"
CAMERAS = ("agentview", "robot0_eye_in_hand")
AT_LEAST = {1: 1.0, 10: 6.0, 50: 10.0}  # chunk -> how many times faster than upstream
EPISODE_STEPS = 30  # in the measurements of the engine


@dataclass(frozen=True)
class Options:
    """Speed of vla-bench against the upstream loop, on LIBERO-Long task 0."""

    quick: bool = False
    """Under two minutes instead of under ten: fewer blocks, more noise."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Effort:
    """How much of everything; the steps of all blocks of a side stay below the task's 520."""

    chunk_blocks: Mapping[int, tuple[int, int]]  # chunk -> (blocks, control steps in each)
    control_blocks: int
    setups: int
    engine_episodes: int
    worker_blocks: int
    memory_trials: int


FULL = Effort({1: (15, 5), 10: (12, 10), 50: (5, 50)}, 20, 7, 3, 8, 200)
QUICK = Effort({1: (4, 5), 10: (3, 10), 50: (1, 50)}, 8, 2, 1, 2, 20)


class Cost(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


class Done(NamedTuple):
    """What a side answers to an order."""

    cost: Cost
    digest: str
    """Of state and pixels after it."""
    resident_mb: float
    peak_mb: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    unit: str
    ours: float
    upstream: float | None = None
    target: str = ""
    met: bool | None = None
    ratio: float | None = None


# The two sides, each alone in its process


class Ours:
    """This harness's environment."""

    def __init__(self, cameras: Sequence[str]) -> None:
        suite = make_suite(SUITE)
        self.env: Any = suite.make_env(suite.tasks[0], cameras)

    def start(self, trial: int) -> None:
        self._seen = self.env.reset_trial(trial, 0)

    def play(self, actions: Float32, chunk: int) -> None:
        for first in range(0, len(actions), chunk):
            self._seen = self.env.advance(actions[first : first + chunk]).observation

    def digest(self) -> str:
        data = self.env.raw.sim.data._data
        return digest(data.qpos, data.qvel, *self._seen.images.values())


class Upstream:
    """libero's environment, used as openvla's `run_libero_eval.py` uses it."""

    def __init__(self, cameras: Sequence[str]) -> None:
        from vla_bench.envs import libero

        task = make_suite(SUITE).tasks[0].name
        envs, bddl = libero.import_libero().env_wrapper, str(libero.bddl_file(SUITE, task))
        self._states = libero.initial_states(SUITE, task)
        self._cameras = cameras
        if cameras:
            self.env = envs.OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=256, camera_widths=256)
        else:
            self.env = envs.ControlEnv(bddl_file_name=bddl, use_camera_obs=False, has_offscreen_renderer=False)
        self.env.seed(0)

    def start(self, trial: int) -> None:
        self.env.reset()
        self.env.set_init_state(self._states[trial])
        self.play(np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (10, 1)), 1)

    def play(self, actions: Float32, chunk: int) -> None:
        del chunk  # it renders at every step
        for action in actions.astype(np.float64):
            self._seen = self.env.step(action)[0]

    def digest(self) -> str:
        data = self.env.sim.data
        return digest(data.qpos, data.qvel, *(self._seen[f"{camera}_image"][::-1] for camera in self._cameras))


def digest(*arrays: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def serve(pipe: Connection, side: type[Ours | Upstream], cameras: Sequence[str]) -> None:
    """Build a side, start trial 0, then do as the pipe says until it says None."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 upstream prints while it loads
    gl.use_backend()
    from vla_bench.envs import libero

    libero.import_libero()
    started = now()
    player = side(cameras)
    player.start(0)
    pipe.send(Done(since(started), player.digest(), *memory_mb()))
    while (order := pipe.recv()) is not None:
        started = now()
        getattr(player, order[0])(*order[1:])
        pipe.send(Done(since(started), player.digest(), *memory_mb()))


def now() -> Cost:
    return Cost(time.perf_counter(), time.process_time())


def since(started: Cost) -> Cost:
    return Cost(time.perf_counter() - started.wall, time.process_time() - started.cpu)


def median(costs: Sequence[Cost], parts: int = 1) -> Cost:
    """Of each clock by itself, divided by the number of parts that each cost was for."""
    wall, cpu = np.median(np.array(costs), axis=0) / parts
    return Cost(float(wall), float(cpu))


def memory_mb() -> list[float]:
    """Resident now and at most. (`ru_maxrss` would hold the parent's from before the exec.)"""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return [int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")]


class Side:
    """A player in another process."""

    def __init__(self, player: type[Ours | Upstream], cameras: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, player, cameras), daemon=True)
        self._process.start()
        theirs.close()
        self.first: Done = self._pipe.recv()
        """Building the scene and starting trial 0; imports are not in it."""

    def ask(self, *order: Any) -> Done:
        self._pipe.send(order)
        done: Done = self._pipe.recv()
        return done

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


@contextlib.contextmanager
def both_sides(cameras: Sequence[str]) -> Iterator[tuple[Side, Side]]:
    with contextlib.closing(Side(Upstream, cameras)) as upstream, contextlib.closing(Side(Ours, cameras)) as ours:
        yield upstream, ours


def in_turn(sides: tuple[Side, Side], chunk: int, blocks: int, steps: int) -> tuple[Cost, Cost]:
    """Median cost of a control step of upstream and of ours, over blocks of the same actions."""
    rng = np.random.default_rng(chunk)
    costs = []
    for _ in range(blocks):
        actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
        done = [side.ask("play", actions, chunk) for side in sides]
        if done[0].digest != done[1].digest:
            raise SystemExit("Upstream and vla-bench came to different states or pixels: there is nothing to compare.")
        costs.append([side.cost for side in done])
    upstream, ours = zip(*costs, strict=True)
    return median(upstream, steps), median(ours, steps)


# The engine, with a policy that looks at everything and does nothing


class Watching:
    """The zero policy, but it reads both cameras, and notes who asked."""

    def __init__(self, suite: Suite) -> None:
        self.spec = PolicySpec(name="watching", action=suite.action, cameras=suite.cameras)
        self.chunk = 1
        self.asked: list[int] = []
        self._still = standing_still(suite.action)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing to forget."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.asked += [observation.slot for observation in observations]
        return [ActionChunk(np.tile(self._still, (self.chunk, 1))) for _ in observations]


class Metered:
    """An environment that notes, at every reset, the CPU time its process has spent outside of it, and its calls."""

    def __init__(self, env: Any, log: Path) -> None:
        self._env, self._log = env, log
        self._inside, self._calls = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset_trial(self, trial: int, seed: int) -> Observation:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps([os.getpid(), time.process_time() - self._inside, self._calls]) + "\n")
        started = now()
        observation: Observation = self._env.reset_trial(trial, seed)
        self._inside += since(started).cpu
        return observation

    def advance(self, actions: Float32) -> Transition:
        started = now()
        after: Transition = self._env.advance(actions)
        self._inside += since(started).cpu
        self._calls += 1
        return after


def outside_ms(log: Path) -> float:
    """CPU ms per call of `advance` that `Metered` environments did not take, from first to last reset."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    spans = [[line[1:] for line in lines if line[0] == pid] for pid in {line[0] for line in lines}]
    cpu, calls = np.sum([np.subtract(span[-1], span[0]) for span in spans], axis=0)
    return 1e3 * float(cpu / calls)


def short(name: str, log: str, steps: int) -> Suite:
    """Task 0 alone in short, metered episodes: a suite by import path, so that the pool's workers find it."""
    del name
    suite = make_suite(SUITE)

    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        return Metered(suite.make_env(task, cameras), Path(log))

    return replace(suite, tasks=(replace(suite.tasks[0], max_steps=steps),), make_env=make_env)


class Serial:
    """What `vla-bench run --workers 1` does: simulator, engine, policy and store in this process."""

    def __init__(self, folder: Path, steps: int = EPISODE_STEPS) -> None:
        self.log = folder / "log"
        suite = short(SUITE, str(self.log), steps)
        self.policy = Watching(suite)
        self._stage = Stage(suite, CAMERAS, Actor(LocalPolicy(self.policy), RecedingHorizon()))
        self._store = open_store(folder / "run")
        self._episodes = episodes_of(suite)

    def play(self, episodes: int) -> Cost:
        started = now()
        for episode in itertools.islice(self._episodes, episodes):
            keep(self._store, self._stage.play(episode))
        return since(started)

    def close(self) -> None:
        self._store.close()
        self._stage.close()


class Pooled:
    """What `vla-bench run --workers 2` does, with pauses: workers wait for an answer while nobody asks for rollouts."""

    def __init__(self, folder: Path, steps: int = EPISODE_STEPS) -> None:
        self.log = folder / "log"
        suite = short(SUITE, str(self.log), steps)
        self.policy = Watching(suite)
        setups = [
            WorkerSetup(
                suite="step_rate:short",
                suite_args=(f"log={self.log}", f"steps={steps}"),
                cameras=suite.cameras,
                history=self.policy.spec.history,
                chunking=RecedingHorizon(),
                filming=Filming(),
                slot=slot,
                folder=str(Path.cwd()),
                privileged=None,
            )
            for slot in range(2)
        ]
        self._pool = Pool(setups, LocalPolicy(self.policy), batch_size=2, max_attempts=1)
        self._rollouts = self._pool.rollouts(list(itertools.islice(episodes_of(suite), 1000)))
        self._store = open_store(folder / "run")
        while len(set(self.policy.asked)) < 2:  # until both scenes are built
            self.play(1)

    def play(self, episodes: int) -> Cost:
        """Until that many are over and all workers wait: whatever was begun is in the time."""
        started = now()
        for rollout in itertools.islice(self._rollouts, episodes):
            keep(self._store, rollout)
        for worker in self._pool._workers:
            if worker.episode != rollout.result.episode:
                worker.pipe.poll(None)
        return since(started)

    def close(self) -> None:
        self._rollouts.close()
        self._store.close()


def episodes_of(suite: Suite) -> Iterator[Episode]:
    """All trials of the first task, again and again with other seeds."""
    task = suite.tasks[0]
    return (Episode(suite.name, task.name, trial, seed) for seed in itertools.count() for trial in range(task.trials))


def open_store(path: Path) -> RunStore:
    return RunStore.open(path, RunInfo({}, {}, {}, "", {}, control_hz=20.0))


def keep(store: RunStore, rollout: Rollout) -> None:
    if rollout.result.success is None:
        raise SystemExit(f"An episode broke: {rollout.result.error}: {rollout.result.message}")
    store.append(rollout.result, rollout.inferences)


# What is measured


def measure(effort: Effort) -> Iterator[Row]:
    with both_sides(CAMERAS) as sides:
        yield from stepping(sides, effort)
        yield from setting_up(sides, effort.setups)
        yield from memory(sides[1], effort.memory_trials)
    with both_sides(()) as sides:
        costs = in_turn(sides, 20, effort.control_blocks, 20)
        yield from versus("step, no cameras", costs, 1 / 0.65)
    yield from engine(effort)


def stepping(sides: tuple[Side, Side], effort: Effort) -> Iterator[Row]:
    for chunk, (blocks, steps) in effort.chunk_blocks.items():
        yield from versus(f"step, both cameras, chunk {chunk}", in_turn(sides, chunk, blocks, steps), AT_LEAST[chunk])


def versus(what: str, costs: tuple[Cost, Cost], least: float) -> Iterator[Row]:
    """Upstream and ours on both clocks, in ms per control step."""
    for clock, upstream, ours in zip(("wall", "CPU"), *costs, strict=True):
        ratio = upstream / ours
        yield Row(what, f"ms {clock}", 1e3 * ours, 1e3 * upstream, f"{least:.3g}x", ratio >= least, ratio)


def setting_up(sides: tuple[Side, Side], trials: int) -> Iterator[Row]:
    """Reset, initial state, ten settle steps, first observation."""
    first = [side.first.cost.wall for side in sides]
    yield Row("set-up of a first trial, scene included", "s wall", first[1], first[0], ratio=first[0] / first[1])
    costs = [[side.ask("start", trial).cost for side in sides] for trial in range(1, trials + 1)]
    upstream, ours = map(median, zip(*costs, strict=True))
    for clock, theirs, mine in zip(("wall", "CPU"), upstream, ours, strict=True):
        yield Row("set-up of a later trial", f"s {clock}", mine, theirs, "< 0.4 s", mine < 0.4, theirs / mine)


def memory(ours: Side, trials: int) -> Iterator[Row]:
    """Of the worker that has been measured so far; the first five trials may still fill caches."""
    done = []
    for trial in range(5 + trials):
        ours.ask("start", trial % 50)
        done.append(ours.ask("play", np.zeros((5, 7), np.float32), 5))
    peak, growth = done[-1].peak_mb, done[-1].resident_mb - done[4].resident_mb
    yield Row("memory of one worker, peak", "GB", peak / 1e3, target="< 2 GB", met=peak < 2e3)
    yield Row(f"memory of one worker, growth in {trials} trials", "MB", growth, target="< 50 MB", met=growth < 50)


def engine(effort: Effort) -> Iterator[Row]:
    """What is neither simulator nor set-up, at chunk 1; and what a second worker brings, at chunk 10."""
    gl.use_backend()
    with tempfile.TemporaryDirectory() as one, contextlib.closing(Serial(Path(one))) as serial:
        serial.play(1 + effort.engine_episodes)
        yield engine_row("1 worker", outside_ms(serial.log))
        with tempfile.TemporaryDirectory() as two, contextlib.closing(Pooled(Path(two))) as pooled:
            asked = len(pooled.policy.asked)
            cpu = pooled.play(2 * effort.engine_episodes).cpu
            yield engine_row("2 workers, main process", 1e3 * cpu / (len(pooled.policy.asked) - asked))
            yield engine_row("2 workers, each worker", outside_ms(pooled.log))
            yield second_worker(serial, pooled, effort.worker_blocks)


def engine_row(where: str, cpu_ms: float) -> Row:
    return Row(f"engine, chunk 1, {where}", "ms CPU", cpu_ms, target="< 0.5 ms", met=cpu_ms < 0.5)


def second_worker(serial: Serial, pooled: Pooled, blocks: int) -> Row:
    """Episodes per minute in one process and with two workers. Setting up trials is in it, building scenes is not."""
    serial.policy.chunk = pooled.policy.chunk = 10
    pooled.play(2)  # those that began at chunk 1
    costs = [[serial.play(2), pooled.play(4)] for _ in range(blocks)]
    one, two = map(median, zip(*costs, strict=True))
    rates = 60 * 2 / one.wall, 60 * 4 / two.wall
    ratio = rates[1] / rates[0]
    what = f"{EPISODE_STEPS}-step episodes, chunk 10, 1 and 2 workers"
    return Row(what, "a minute", rates[1], rates[0], "1.3x", ratio >= 1.3, ratio)


# What is printed


_LINE = "{:<46} {:<8} {:>9} {:>8} {:>7}  {:<8} {}"


def line(row: Row) -> str:
    upstream = "" if row.upstream is None else f"{row.upstream:.4g}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    return _LINE.format(row.what, row.unit, upstream, f"{row.ours:.4g}", ratio, row.target, verdict).rstrip()


def main(options: Options) -> None:
    started, load = time.perf_counter(), os.getloadavg()
    machine: Any = gather()["machine"]
    renderer = gl.probe(gl.choose_backend()).renderer
    rows = measure(QUICK if options.quick else FULL)
    if options.json:
        print(json.dumps({**machine, "renderer": renderer, "load": load, "rows": list(map(asdict, rows))}, indent=2))
        return
    print(f"{machine['cores']} cores of {machine['cpu']}, {renderer}, load {load[0]:.1f} before the start")
    print(_LINE.format("", "", "upstream", "ours", "ratio", "target", "").rstrip())
    for row in rows:
        print(line(row), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Options))
