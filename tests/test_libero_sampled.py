"""`states=sampled` begins where upstream's own `env.seed(s); env.reset()` does, bit for bit, and not where tests begin.

Upstream's loop runs in a child process (this file as a script) which uses nothing of vla_bench.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SETTLE_ACTION = [0, 0, 0, 0, 0, 0, -1]
TASKS = {
    "libero_spatial": "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate",
    "libero_goal": "turn_on_the_stove",
    "libero_10": "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it",
}


def _play_upstream(wish: dict[str, Any], out: Path) -> None:
    """The scene after a fresh environment's first reset and the settle steps, and after each of the actions."""
    from libero.libero import benchmark
    from libero.libero.envs import OffScreenRenderEnv

    suite = benchmark.get_benchmark(wish["suite"])()
    bddl = suite.get_task_bddl_file_path(suite.get_task_names().index(wish["task"]))
    env = OffScreenRenderEnv(bddl_file_name=bddl, use_camera_obs=False)
    env.seed(wish["seed"])
    env.reset()
    model, data = env.sim.model, env.sim.data
    rows = []
    for action in [*[SETTLE_ACTION] * 10, *wish["actions"]]:
        env.step(np.array(action))
        rows.append(np.concatenate([data.qpos, data.qvel]))
    np.savez(out, rows=rows[9:], body_pos=model.body_pos, body_quat=model.body_quat, site_rgba=model.site_rgba)


if __name__ == "__main__":  # before vla_bench is imported
    _play_upstream(json.load(sys.stdin), Path(sys.argv[1]))
    sys.exit()


from vla_bench.errors import UsageError  # noqa: E402
from vla_bench.registry import describe_suite_arguments, make_suite  # noqa: E402
from vla_bench.rendering.gl import use_backend  # noqa: E402
from vla_bench.types import Env, Episode, Suite  # noqa: E402

libero = importlib.import_module("vla_bench.envs.libero")


def sampled(suite_name: str) -> Suite:
    return make_suite(suite_name, ["states=sampled"])


def made(suite_name: str, task_name: str) -> Any:
    suite = sampled(suite_name)
    return suite.make_env(suite.task(task_name), ())


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("suite_name", "task"), TASKS.items(), ids=list(TASKS))
def test_a_drawn_start_and_what_follows_are_upstreams(suite_name: str, task: str, tmp_path: Path) -> None:
    trial, seed = 9_999, 3
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 7)).astype(np.float32)
    theirs = upstream(suite_name, task, libero.sampled_seed(task, trial, seed), actions.tolist(), tmp_path / "up.npz")
    env = made(suite_name, task)
    env.reset_trial(0, 0)
    env.advance(actions[:5])  # leaves a trace if anything does
    env.reset_trial(trial, seed)
    data, model = env.raw.sim.data, env.raw.sim.model
    for step, row in enumerate(theirs["rows"]):
        if step:
            env.advance(actions[step - 1 : step])
        assert np.array_equal(np.concatenate([data.qpos, data.qvel]), row), f"after {step} steps"
    for field in ("body_pos", "body_quat", "site_rgba"):
        assert np.array_equal(getattr(model, field), theirs[field]), field
    env.close()


def upstream(suite_name: str, task: str, seed: int, actions: list[list[float]], file: Path) -> dict[str, Any]:
    use_backend()
    wish = {"suite": suite_name, "task": task, "seed": seed, "actions": actions}
    child = subprocess.run(
        [sys.executable, __file__, str(file)], input=json.dumps(wish), capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    with np.load(file) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def stove() -> Any:
    env = made("libero_goal", TASKS["libero_goal"])
    yield env
    env.close()


def start(env: Env, trial: int, seed: int) -> tuple[str, bytes]:
    observation = env.reset_trial(trial, seed)
    return env.fingerprint(), observation.state.tobytes()


@pytest.mark.sim
def test_task_trial_and_seed_decide_the_start(stove: Any) -> None:
    starts = {(trial, seed): start(stove, trial, seed) for trial in (0, 1) for seed in (0, 1)}
    assert len(set(starts.values())) == 4
    assert {key: start(stove, *key) for key in reversed(starts)} == starts
    assert len({libero.sampled_seed(task, 0, 0) for task in TASKS.values()}) == len(TASKS)


@pytest.mark.slow
@pytest.mark.sim
def test_nothing_is_done_at_the_start_and_things_lie_where_the_published_ones_do(stove: Any) -> None:
    published = libero.initial_states("libero_goal", TASKS["libero_goal"])[:, 1 + 9 : 1 + stove.raw.sim.model.nq]
    low, high = published.min(axis=0) - 0.02, published.max(axis=0) + 0.02
    for trial in range(20):
        stove.reset_trial(trial, 0)
        assert not stove._judge()
        things = stove.raw.sim.data.qpos[9:].reshape(-1)
        for first in range(0, 7 * len(stove.raw.objects_dict), 7):
            place = slice(first, first + 2)
            assert (things[place] > low[place] - 0.03).all()
            assert (things[place] < high[place] + 0.03).all()


@pytest.mark.slow
@pytest.mark.sim
def test_the_oracle_solves_a_drawn_start(stove: Any) -> None:
    oracle = importlib.import_module("vla_bench.policies.oracle.policy").Oracle(sampled("libero_goal"))
    oracle.attach(stove)
    observation = stove.reset_trial(0, 0)
    oracle.reset([0], [Episode("libero_goal", TASKS["libero_goal"], 0, 0)])
    actions = (oracle.infer([observation])[0].actions for _ in range(300))
    assert any(stove.advance(action).success for action in islice(actions, 300))


def test_the_protocol_tells_drawn_starts_from_published_ones() -> None:
    files, drawn = make_suite("libero_10"), sampled("libero_10")
    assert (
        files.protocol == make_suite("libero_10", ["states=files"]).protocol == {"fixture_seed": 0, "settle_steps": 10}
    )
    assert drawn.protocol != files.protocol
    assert {task.trials for task in files.tasks} == {50}
    assert {task.trials for task in drawn.tasks} == {10_000}
    assert "states: files | sampled" in describe_suite_arguments("libero_10")


def test_a_fixture_seed_for_drawn_fixtures_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="states=sampled draws fixtures"):
        make_suite("libero_10", ["states=sampled", "fixture_seed=1"])


def test_other_states_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="states should be files"):
        make_suite("libero_10", ["states=demos"])
