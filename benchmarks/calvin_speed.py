"""How fast CALVIN's table goes here on one core: control steps, the task oracle's record, resets and pictures.

    python benchmarks/calvin_speed.py [--blocks 15]

The arm wanders at random over the table, where it also touches things. Machines are shared and noisy, so everything is
timed in short blocks, in turn, and medians over blocks are printed. CPU times hold the software renderer's threads.
The real environment makes about 800 control steps per second without pictures on such a machine (PyBullet 3.2.7).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from vla_bench.envs.calvin.sim import CAMERA_PX, Table
from vla_bench.envs.calvin.tasks import TASKS, check_task

REAL_STEPS_PER_S = 800.0
CHAIN_STEPS, CHAIN_GOAL_S, WORKERS = 360, 2.0, 2
"""A policy that does nothing fails a chain after as many steps as one instruction has."""


class Work:
    """A table and things to do with it; each method is one block and returns how often it did them."""

    def __init__(self) -> None:
        self.table = Table("D")
        self.actions = np.random.default_rng(0)

    def steps(self) -> int:
        self.table.reset()
        for action in self._wandering(90):
            self.table.step(action)
        return 90

    def resting_steps(self) -> int:
        self.table.reset()
        for _ in range(90):
            self.table.step((0, 0, 0, 0, 0, 0, 1))
        return 90

    def judged_steps(self) -> int:
        self.table.reset()
        begin = self.table.record()
        for action in self._wandering(90):
            self.table.step(action)
            check_task(TASKS[0], begin, self.table.record())
        return 90

    def resets(self) -> int:
        for _ in range(30):
            self.table.reset()
        return 30

    def pictures(self) -> int:
        for camera in CAMERA_PX:
            self.table.paint(camera)
        return 1

    def _wandering(self, count: int) -> np.ndarray:
        """(count, 7) relative actions that drift downwards, so that the arm meets the table."""
        actions: np.ndarray = self.actions.uniform(-1, 1, (count, 7)) + np.array([0, 0, -0.1, 0, 0, 0, 0])
        actions[:, 6] = np.sign(actions[:, 6])
        return actions


def measure(work: Work, blocks: int) -> Mapping[str, tuple[float, float]]:
    """Median seconds (wall, CPU) of one of each thing."""
    jobs: dict[str, Callable[[], int]] = {
        "control step, arm wandering": work.steps,
        "control step, arm at rest": work.resting_steps,
        "control step and one task judged": work.judged_steps,
        "reset": work.resets,
        "both pictures": work.pictures,
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for block in range(blocks + 1):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            count = job()
            cost = ((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)
            if block:  # the first pass warms up
                costs[name].append(cost)
    return {
        name: (statistics.median(w for w, _ in rows), statistics.median(c for _, c in rows))
        for name, rows in costs.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=15)
    costs = measure(Work(), parser.parse_args(argv).blocks)
    print(f"{'':36}{'wall ms':>10}{'CPU ms':>10}{'per CPU s':>12}")
    for name, (wall, cpu) in costs.items():
        print(f"{name:36}{1000 * wall:10.3f}{1000 * cpu:10.3f}{1 / cpu:12.0f}")
    rate = 1 / costs["control step, arm wandering"][1]
    chain_s = CHAIN_STEPS * costs["control step and one task judged"][0] / WORKERS
    print(f"{rate / REAL_STEPS_PER_S:.2f} times the real environment's {REAL_STEPS_PER_S:.0f} control steps per second")
    print(f"{chain_s:.2f} s per failing chain with {WORKERS} workers, pictures aside (goal {CHAIN_GOAL_S:g} s)")
    return 0 if rate >= REAL_STEPS_PER_S and chain_s < CHAIN_GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
