"""Simulators in processes of their own, one policy for all of them.

Each worker plays whole chunks and comes back with one observation, so there is one round trip per inference; the
pictures go through shared memory, which takes a third of a pipe's time. The policy answers whoever is waiting, up to
`batch_size` at once, and never waits for a batch to fill. A worker that dies costs its episode one attempt and is
replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np

from vla_bench.chunking import Chunking
from vla_bench.errors import PolicyFailure, UsageError, too_many_files
from vla_bench.inference import LocalPolicy
from vla_bench.paths import returning
from vla_bench.registry import make_policy, make_suite
from vla_bench.rollout import Actor, Answer, Filming, Keeper, Rollout, Stage, attach, broken
from vla_bench.screen import own_streams
from vla_bench.types import Camera, Episode, Image, Observation

_USUAL_FILES = 1024

Memory = ctypes.Array[ctypes.c_ubyte]


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to build its scenes: plain values that cross a process boundary."""

    suite: str
    suite_args: tuple[str, ...]
    cameras: tuple[Camera, ...]
    history: int
    chunking: Chunking
    filming: Filming
    slot: int
    folder: str
    """The working folder that relative paths in the arguments start from."""
    privileged: tuple[str, str | None, tuple[str, ...], float | None] | None
    """Policy name, checkpoint, arguments and timeout of a policy that must run beside the simulator."""
    keeper: Keeper | None = None


class Begin(NamedTuple):
    episode: Episode


class Ask(NamedTuple):
    observation: Observation  # its images are on the desk
    asked: float  # perf_counter is one clock for all processes of a machine


class Failure(NamedTuple):
    """A UsageError or PolicyFailure that came up in a worker."""

    usage: bool
    message: str


class Desk:
    """Shared memory with a place for one picture of each camera and each control step that the policy looks back on.

    Worker and main process never use it at once.
    """

    def __init__(self, setup: WorkerSetup, memory: Memory) -> None:
        places = _divided(setup.history * setup.cameras, memory)
        names = [camera.name for camera in setup.cameras]
        self._places = [{name: next(places) for name in names} for _ in range(setup.history)]

    @staticmethod
    def memory(setup: WorkerSetup) -> Memory:
        size = setup.history * sum(camera.height * camera.width * 3 for camera in setup.cameras)
        return multiprocessing.get_context("spawn").RawArray(ctypes.c_ubyte, max(1, size))

    def put(self, observation: Observation) -> Observation:
        """The observation without its pictures, which are on the desk now."""
        for seen, places in zip((*observation.earlier, observation), self._places, strict=True):
            for name, image in seen.images.items():
                places[name][:] = image
        return _with_images(observation, [{}] * len(self._places))

    def take(self, observation: Observation) -> Observation:
        """The observation with copies of its pictures, which a policy may keep."""
        return _with_images(observation, [{name: p.copy() for name, p in places.items()} for places in self._places])


def _with_images(observation: Observation, images: Sequence[Mapping[str, Image]]) -> Observation:
    *past, now = images
    earlier = tuple(replace(seen, images=then) for seen, then in zip(observation.earlier, past, strict=True))
    return replace(observation, images=now, earlier=earlier)


def _divided(cameras: Sequence[Camera], memory: Memory) -> Iterator[Image]:
    pixels, start = np.frombuffer(memoryview(memory).cast("B"), np.uint8), 0
    for camera in cameras:
        size = camera.height * camera.width * 3
        yield pixels[start : start + size].reshape(camera.height, camera.width, 3)
        start += size


class PipePolicy:
    """The policy in the main process, seen from a worker."""

    def __init__(self, pipe: Connection, desk: Desk, slot: int) -> None:
        self._pipe = pipe
        self._desk = desk
        self._slot = slot

    def begin(self, episode: Episode) -> None:
        self._pipe.send(Begin(episode))

    def answer(self, observation: Observation) -> Answer:
        asked = time.perf_counter()
        self._pipe.send(Ask(self._desk.put(replace(observation, slot=self._slot)), asked))
        answer = self._pipe.recv()
        assert isinstance(answer, Answer)
        return answer


def work(pipe: Connection, setup: WorkerSetup, memory: Memory) -> None:
    """A worker's life: episodes in, rollouts out, until the pipe says None or closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    os.chdir(setup.folder)  # a policy may have changed it in the main process
    with own_streams(for_good=True), returning():
        _work(pipe, setup, memory)


def _work(pipe: Connection, setup: WorkerSetup, memory: Memory) -> None:
    stage = None
    try:
        stage = _open_stage(pipe, setup, Desk(setup, memory))
        while (episode := pipe.recv()) is not None:
            pipe.send(stage.play(episode))
    except (UsageError, PolicyFailure) as error:
        pipe.send(Failure(isinstance(error, UsageError), str(error)))
    except (EOFError, BrokenPipeError):
        pass  # the main process is gone
    finally:
        if stage is not None:
            stage.close()


def _open_stage(pipe: Connection, setup: WorkerSetup, desk: Desk) -> Stage:
    suite = make_suite(setup.suite, setup.suite_args)
    cameras = [camera.name for camera in setup.cameras]
    if setup.privileged is None:
        actor = Actor(PipePolicy(pipe, desk, setup.slot), setup.chunking)
        return Stage(suite, cameras, actor, filming=setup.filming, history=setup.history, keeper=setup.keeper)
    name, checkpoint, arguments, timeout_s = setup.privileged
    policy = make_policy(name, suite, checkpoint, arguments)
    actor = Actor(LocalPolicy(policy, timeout_s), setup.chunking)
    watch = attach(policy)
    return Stage(suite, cameras, actor, watch, filming=setup.filming, history=setup.history, keeper=setup.keeper)


class Worker:
    """The main process's end of one worker."""

    def __init__(self, setup: WorkerSetup) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy GL contexts and CUDA state
        self.pipe, theirs = context.Pipe()
        memory = Desk.memory(setup)
        self.desk = Desk(setup, memory)
        self.slot = setup.slot
        self.episode: Episode | None = None
        self.attempts = 0
        self.task = ""
        self.process: BaseProcess = context.Process(target=work, args=(theirs, setup, memory), daemon=True)
        with _importable_main(), _interrupts_held():
            self.process.start()
        theirs.close()

    def give(self, episode: Episode, attempts: int) -> None:
        self.episode, self.attempts, self.task = episode, attempts, episode.task
        with contextlib.suppress(OSError):  # it may have died meanwhile; the next wait finds its pipe closed
            self.pipe.send(episode)

    def stop(self) -> None:
        """Ask it to end, then make it."""
        with contextlib.suppress(OSError):  # it may be dead already
            self.pipe.send(None)
        self.process.join(timeout=0 if self.episode else 5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


class _importable_main:
    """Spawned workers do not import the caller's __main__ again: they need nothing from it."""

    def __enter__(self) -> None:
        main = sys.modules["__main__"]
        self._saved = {name: main.__dict__.pop(name, None) for name in ("__file__", "__spec__")}
        main.__dict__["__spec__"] = None

    def __exit__(self, *_: object) -> None:
        sys.modules["__main__"].__dict__.update({k: v for k, v in self._saved.items() if v is not None})


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A worker started inside is deaf to Ctrl-C from its first instant, before it can ask for that itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Plays episodes on `workers` processes; iterate over `rollouts`."""

    def __init__(
        self,
        setups: Sequence[WorkerSetup],
        policy: LocalPolicy,
        batch_size: int,
        max_attempts: int,
    ) -> None:
        self._setups = {setup.slot: setup for setup in setups}
        self._policy = policy
        self._batch_size = batch_size
        self._max_attempts = max_attempts
        self._workers: list[Worker] = []
        self._pipes = selectors.DefaultSelector()
        self._requests: deque[tuple[Worker, Ask]] = deque()

    def rollouts(self, episodes: Sequence[Episode]) -> Generator[Rollout]:
        """One rollout per episode, as they are finished; the last attempt's when all of them broke.

        Raises UsageError and PolicyFailure; closing the iterator stops all workers.
        """
        self._queue = [(episode, 1) for episode in episodes]
        _allow_more_files()
        try:
            for slot in list(self._setups)[: len(episodes)]:
                self._hire(slot)
            while any(worker.episode for worker in self._workers):
                yield from self._collect()
                self._answer()
        finally:
            for worker in self._workers:
                worker.stop()
            self._pipes.close()

    def _hire(self, slot: int) -> None:
        if not self._queue:
            return
        worker = self._new_worker(slot)
        self._workers.append(worker)
        self._pipes.register(worker.pipe, selectors.EVENT_READ, worker)
        self._give_next(worker)

    def _new_worker(self, slot: int) -> Worker:
        try:
            return Worker(self._setups[slot])
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise too_many_files(error, f"{len(self._setups)} workers need more: give fewer --workers, or ") from error

    def _give_next(self, worker: Worker) -> None:
        """The next episode of the worker's own task; else of the task with most left per worker on it."""
        worker.episode = None
        if not self._queue:
            return
        own = [item for item in self._queue if item[0].task == worker.task]
        item = own[0] if own else self._neediest()
        self._queue.remove(item)
        worker.give(*item)

    def _neediest(self) -> tuple[Episode, int]:
        tasks = [episode.task for episode, _ in self._queue]
        busy = [worker.task for worker in self._workers if worker.episode]
        task = max(dict.fromkeys(tasks), key=lambda name: tasks.count(name) / (1 + busy.count(name)))
        return next(item for item in self._queue if item[0].task == task)

    def _collect(self) -> Iterator[Rollout]:
        """Take in whatever the workers have sent; block only when there is nobody to answer."""
        ready = self._pipes.select(timeout=0 if self._requests else None)
        for worker in [key.data for key, _ in ready]:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                yield from self._bury(worker)
                continue
            if isinstance(message, Rollout):
                yield from self._finish(worker, message)
            elif isinstance(message, Failure):
                raise UsageError(message.message) if message.usage else PolicyFailure(message.message)
            elif isinstance(message, Begin):
                self._policy.begin(message.episode, worker.slot)
            else:
                seen = worker.desk.take(message.observation)
                self._requests.append((worker, message._replace(observation=seen)))

    def _finish(self, worker: Worker, rollout: Rollout) -> Iterator[Rollout]:
        episode, attempts = worker.episode, worker.attempts
        assert episode is not None
        if rollout.result.success is None and attempts < self._max_attempts:
            self._queue.insert(0, (episode, attempts + 1))
        else:
            yield rollout._replace(result=replace(rollout.result, attempts=attempts))
        self._give_next(worker)

    def _bury(self, worker: Worker) -> Iterator[Rollout]:
        """A worker died: its episode broke, and somebody takes its place."""
        episode, attempts = worker.episode, worker.attempts
        self._workers.remove(worker)
        self._pipes.unregister(worker.pipe)
        self._requests = deque(item for item in self._requests if item[0] is not worker)
        worker.episode = episode
        worker.stop()
        if episode is not None:
            if attempts < self._max_attempts:
                self._queue.insert(0, (episode, attempts + 1))
            else:
                row = broken(episode, "WorkerDied", f"the worker ended with exit code {worker.process.exitcode}")
                none = np.zeros((0, 0), np.float32)
                yield Rollout(replace(row, attempts=attempts), (), none, none, row.message)
        self._hire(worker.slot)

    def _answer(self) -> None:
        """One policy call for those who wait."""
        batch = [self._requests.popleft() for _ in range(min(self._batch_size, len(self._requests)))]
        if not batch:
            return
        answers = self._policy.answer_all([ask.observation for _, ask in batch], [ask.asked for _, ask in batch])
        for (worker, _), answer in zip(batch, answers, strict=True):
            with contextlib.suppress(OSError):  # it may have died meanwhile; the next wait finds its pipe closed
                worker.pipe.send(answer)


def _allow_more_files() -> None:
    """Raises the number of files this process may open to what is usual, as far as it is allowed to."""
    import resource  # which Windows lacks

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _USUAL_FILES if hard == resource.RLIM_INFINITY else min(_USUAL_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def worker_count(wanted: str) -> int:
    """A number of workers; `auto` is one per CPU core this process may use. Raises UsageError."""
    if wanted == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UsageError(f"--workers should be a number of at least 1, or auto; got {wanted!r}.")
    return int(wanted)
