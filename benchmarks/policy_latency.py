"""What one inference of each policy costs at its tiny size: engine, pictures and model, stage by stage.

    python benchmarks/policy_latency.py [--threads 2] [--calls 60]

Policies take turns, so that a slow spell of the machine hits all of them; medians are quoted. "engine + policy" is one
turn of the episode loop without the simulator: seed, policy call, check, chunking, bookkeeping.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vla_bench.chunking import RecedingHorizon
from vla_bench.inference import LocalPolicy
from vla_bench.registry import make_policy, make_suite
from vla_bench.rollout import Actor
from vla_bench.types import Episode, Observation, Suite

POLICIES = ("pi0", "reconvla", "openvla", "diffusion_policy")
GOAL_MS = 40.0


def observation(suite: Suite, rng: np.random.Generator, history: int) -> Observation:
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in suite.cameras}
    state = rng.normal(0.0, 0.1, len(suite.state)).astype(np.float32)
    past = tuple(observation(suite, rng, 1) for _ in range(history - 1))
    return Observation(images, state, suite.tasks[0].instructions[0], earlier=past)


def timed(actor: Actor, seen: Observation) -> tuple[float, dict[str, float]]:
    """Milliseconds of one call through the engine, and of the policy's stages within it."""
    started = time.perf_counter()
    actions = actor.act(seen)
    actor.note(len(actions))
    total, inference = 1e3 * (time.perf_counter() - started), actor.inferences[-1]
    return total, {**inference.stages, "policy": inference.latency_ms}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--suite", default="libero_10")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    suite, rng = make_suite(options.suite), np.random.default_rng(0)
    actors: dict[str, Actor] = {}
    for name in POLICIES:
        policy: Any = make_policy(name, suite, None, ["size=tiny"])
        actors[name] = Actor(LocalPolicy(policy), RecedingHorizon())
        actors[name].begin(Episode(suite.name, suite.tasks[0].name, 0, 0))
    totals, stages = defaultdict[str, list[float]](list), defaultdict[tuple[str, str], list[float]](list)
    for call in range(options.calls + 5):
        for name, actor in actors.items():
            history = actor.policy._policy.spec.history  # type: ignore[attr-defined]
            total, parts = timed(actor, observation(suite, rng, history))
            if call >= 5:
                totals[name].append(total)
                for stage, milliseconds in parts.items():
                    stages[name, stage].append(milliseconds)
    print(f"one inference on {options.threads} threads, median of {options.calls}, ms")
    for name in POLICIES:
        middle, high = statistics.median(totals[name]), sorted(totals[name])[int(0.95 * options.calls)]
        parts_said = ", ".join(f"{s} {statistics.median(v):.1f}" for (n, s), v in stages.items() if n == name)
        print(f"  {name:17} engine + policy {middle:5.1f} (95 %: {high:5.1f})   {parts_said}")
    slow = [name for name in POLICIES if statistics.median(totals[name]) > GOAL_MS]
    print(f"goal: below {GOAL_MS:g} ms each: " + (f"missed by {', '.join(slow)}" if slow else "reached"))
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
