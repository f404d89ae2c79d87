"""How long `leaderboard` and `report` take, and how much memory, on 8 policies x 5 suites x 500 synthetic episodes.

    python benchmarks/report_speed.py [--policies 8] [--suites 5] [--episodes 500] [--keep DIRECTORY]

The runs are written as RunStore leaves them (run.json, episodes.jsonl, inferences.parquet) and each command is timed in
a process of its own, start of Python included. Nothing here is a result: the policies are coins of different weight.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vla_bench.store import runs as store
from vla_bench.store.integrity import protocol_hash
from vla_bench.store.runs import RunInfo
from vla_bench.types import EpisodeResult

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "robosuite")
LIMITS = {"leaderboard": (5.0, 1024), "report": (30.0, 1024)}
"""Seconds and MiB that the issue allows for 20,000 episodes on two cores."""
MAX_STEPS, EXECUTED = 300, 8


def synthetic_run(path: Path, policy: str, suite: str, *, skill: float, episodes: int, tasks: int, seed: int) -> Path:
    """A run directory with `episodes` coin tosses spread over `tasks`; equal scenes for every policy of a suite."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = [f"pick_up_the_{suite}_object_number_{task}_and_place_it_on_the_plate" for task in range(tasks)]
    ease = np.random.default_rng(len(suite)).normal(0, 0.8, tasks)
    rows = [_row(suite, names[n % tasks], n // tasks, skill + ease[n % tasks], rng) for n in range(episodes)]
    lines = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    (path / store.EPISODES).write_text(lines, encoding="utf-8")
    _inferences(rows, rng).to_parquet(path / store.INFERENCES, index=False)
    info = {
        name: fact
        for name, fact in dataclasses.asdict(_info(policy, suite, names, episodes)).items()
        if fact is not None
    }
    before_checksums = {**info, "schema": 2}
    (path / store.RUN).write_text(json.dumps(before_checksums, indent=2), encoding="utf-8")
    return path


def _row(suite: str, task: str, trial: int, logit: float, rng: np.random.Generator) -> EpisodeResult:
    luck = rng.random()
    success = None if rng.random() < 0.004 else bool(luck < 1 / (1 + np.exp(-logit)))
    steps = int(rng.integers(60, MAX_STEPS - 20)) if success else MAX_STEPS
    calls = -(-steps // EXECUTED)
    mean_ms = float(rng.normal(75, 4))
    policy_s = calls * mean_ms / 1000
    return EpisodeResult(
        suite=suite,
        task=task,
        trial=trial,
        seed=0,
        perturbation="",
        success=success,
        subgoals_done=int(bool(success)),
        steps=steps,
        inferences=calls,
        latency_mean_ms=mean_ms,
        latency_max_ms=mean_ms * 2,
        wall_s=policy_s + steps * 0.012 + 0.4,
        setup_s=0.2,
        physics_s=steps * 0.004,
        render_s=calls * 0.03,
        policy_s=policy_s,
        sim_s=steps / 20,
        scene_fingerprint=f"{suite}/{task}/{trial}",
        final_fingerprint=f"{luck:.16f}",
        error="" if success is not None else "MujocoException",
        message="" if success is not None else "the simulation became unstable",
    )


def _inferences(rows: list[EpisodeResult], rng: np.random.Generator) -> pd.DataFrame:
    judged = [row for row in rows if row.success is not None]
    counts = [row.inferences for row in judged]
    total = sum(counts)
    latency = rng.lognormal(np.log(72), 0.12, total)
    columns = {name: np.repeat([getattr(row, name) for row in judged], counts) for name in store.KEY}
    columns |= {
        "inference": np.concatenate([np.arange(count) for count in counts]),
        "latency_ms": latency,
        "queue_ms": rng.exponential(1.0, total),
        "batch": np.ones(total, np.int64),
        "executed": np.full(total, EXECUTED),
        "cold": np.arange(total) < 3,
        "stage_vision_ms": latency * 0.2,
        "stage_prefill_ms": latency * 0.4,
        "stage_flow_ms": latency * 0.35,
    }
    return pd.DataFrame(columns).astype(dict(store.INFERENCE_DTYPES))


def _info(policy: str, suite: str, tasks: list[str], episodes: int) -> RunInfo:
    protocol = {
        "suite": suite,
        "version": "1",
        "tasks": [[task, task.replace("_", " "), MAX_STEPS, episodes // len(tasks)] for task in tasks],
        "control_hz": 20.0,
        "chunking": {"name": "RecedingHorizon", "execute": EXECUTED},
    }
    return RunInfo(
        identity={"policy": policy, "checkpoint": None, "policy_args": [], "suite": suite, "suite_args": [], "seed": 0}
        | {"weights": hashlib.sha256(policy.encode()).hexdigest()},
        plan={"episodes": episodes},
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        provenance={"started": "2026-01-01T00:00:00+00:00", "versions": {"mujoco": "3.2.3"}, "run_seconds": 3600.0},
        control_hz=20.0,
    )


def synthetic_results(folder: Path, policies: int, suites: int, episodes: int, tasks: int = 10) -> list[Path]:
    """All run directories, one per policy and suite; policy 0 is the weakest."""
    return [
        synthetic_run(
            folder / f"p{p}_{suite}",
            f"policy_{p}",
            suite,
            skill=0.4 * p - 0.5,
            episodes=episodes,
            tasks=tasks,
            seed=100 * p + s,
        )
        for s, suite in enumerate(SUITES[:suites])
        for p in range(policies)
    ]


def measured(arguments: list[str], log: Path) -> tuple[float, float]:
    """Wall seconds and peak resident MiB of one `vla-bench` command, its children included. Raises when it fails."""
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen([sys.executable, "-m", "vla_bench.cli", *arguments], stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        said = log.read_text(encoding="utf-8")[-2000:]
        raise SystemExit(f"vla-bench {' '.join(arguments[:2])} failed:\n{said}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("policies", 8), ("suites", 5), ("episodes", 500), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", help="write the runs here and leave them")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        runs = synthetic_results(folder / "results", options.policies, options.suites, options.episodes)
        commands = {
            "leaderboard": ["leaderboard", str(folder / "results")],
            "report": ["report", *map(str, runs), "--out", str(folder / "report")],
        }
        print(f"{len(runs)} runs, {len(runs) * options.episodes:,} episodes, best of {options.repeats}")
        for name, arguments in commands.items():
            seconds, mebibytes = min(measured(arguments, folder / f"{name}.log") for _ in range(options.repeats))
            allowed_s, allowed_mib = LIMITS[name]
            print(f"{name:12} {seconds:5.1f} s of {allowed_s:g} s    {mebibytes:5.0f} MiB of {allowed_mib} MiB")
        page = folder / "report" / "index.html"
        print(f"index.html   {page.stat().st_size / 2**20:5.2f} MiB of 5 MiB")


if __name__ == "__main__":
    main()
