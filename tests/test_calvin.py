"""The protocol of CALVIN's chains on a table that is only numbers, then what holds on the real one."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from marks import slow
from vla_bench.envs.calvin import env as calvin
from vla_bench.envs.calvin.chains import CHAINS, official_chains
from vla_bench.envs.calvin.scene import SCENES
from vla_bench.envs.calvin.starts import Start
from vla_bench.envs.calvin.tasks import SENTENCES, TASKS, Record, check_task

from vla_bench.chunking import RecedingHorizon
from vla_bench.errors import UsageError
from vla_bench.gym import make_task
from vla_bench.inference import LocalPolicy
from vla_bench.registry import make_suite
from vla_bench.rollout import Actor, Stage
from vla_bench.types import ActionChunk, Episode, PolicySpec

CHAIN = ("turn_on_led", "open_drawer", "turn_off_led", "close_drawer", "move_slider_left")
LED, DRAWER, DOOR = np.eye(7, dtype=np.float32)[:3]
"""Actions that toggle the LED, open the drawer by 0.05 m and move the door by 0.05 m to the left."""
LIMIT = 10


class NumberTable:
    """A table without physics: the first three numbers of an action toggle the LED and move drawer and door."""

    def reset(self, robot_obs, scene_obs):
        self.led, self.drawer, self.door, self.played = bool(scene_obs[5]), scene_obs[1], scene_obs[0], []

    def step(self, action):
        self.led ^= bool(action[0] == 1)
        self.drawer += 0.05 * action[1]
        self.door += 0.05 * action[2]
        self.played.append(action)

    def robot_obs(self):
        return np.full(15, float(len(self.played)))

    def record(self):
        return Record({}, frozenset(), self.door, self.drawer, 0.0, 0.0, bulb=False, led=self.led)

    def state(self):
        return len(self.played)

    def paint(self, camera):
        return self.paint_at(self.state(), camera)

    def paint_at(self, state, camera):
        height, width = calvin.CAMERA_PX[camera]
        return np.full((height, width, 3), state, np.uint8)

    def fingerprint(self):
        return hashlib.sha256(repr((self.led, self.drawer, self.door)).encode()).hexdigest()[:16]

    def close(self):
        pass


def number_env(tasks=CHAIN, wanted=("rgb_static",)):
    task = replace(make_suite("calvin_d").tasks[0], max_steps=LIMIT, trials=3)
    return calvin.CalvinEnv(task, wanted, NumberTable(), lambda trial, seed: Start(np.zeros(15), np.zeros(24), tasks))


def repeated(action, times):
    return np.tile(action, (times, 1))


def test_an_instruction_ends_at_its_success_and_the_next_one_starts_where_things_are():
    env = number_env()
    first = env.reset_trial(0, 0)
    assert first.instruction == SENTENCES["turn_on_led"]
    after = env.advance(np.stack([DRAWER, DRAWER, LED, DRAWER]))
    assert (after.steps, after.subgoals_done, after.instruction_changed, after.success) == (3, 1, True, False)
    assert after.observation.instruction == SENTENCES["open_drawer"]
    assert after.subgoals == CHAIN
    assert env.begun.drawer == pytest.approx(0.1)  # nothing was put back
    after = env.advance(repeated(DRAWER, 2))
    assert (after.steps, after.subgoals_done) == (2, 1)  # 0.2 is open, but only 0.1 more than at the start
    after = env.advance(repeated(DRAWER, 2))
    assert (after.steps, after.subgoals_done) == (1, 2)


def test_a_chain_ends_at_its_fifth_success_with_one_reward_each():
    env = number_env()
    env.reset_trial(0, 0)
    rewards, over = [], False
    script = [LED, *repeated(DRAWER, 3), LED, *repeated(-DRAWER, 3), *repeated(1.1 * DOOR, 3)]
    for action in script:
        assert not over
        _, reward, over, truncated, info = env.step(action)
        rewards.append(reward)
        assert not truncated
    assert over
    assert (info["success"], info["subgoals_done"], sum(rewards)) == (True, 5, 5.0)


def test_each_instruction_has_the_whole_step_limit_and_the_first_failure_ends_the_chain():
    env = number_env()
    env.reset_trial(0, 0)
    assert not env.advance(repeated(0 * LED, LIMIT - 1)).truncated
    assert env.advance(repeated(LED, 1)).instruction_changed  # in the last step that it had
    after = env.advance(repeated(0 * LED, 2 * LIMIT))
    assert (after.steps, after.truncated, after.success, after.subgoals_done) == (LIMIT, True, False, 1)
    assert not after.instruction_changed


def test_only_the_current_task_counts():
    env = number_env()
    env.reset_trial(0, 0)
    after = env.advance(repeated(DRAWER, 4))
    assert after.subgoals_done == 0  # the drawer is open, but that is the second task
    env.advance(LED[None])
    assert env.advance(repeated(0 * LED, 3)).subgoals_done == 1  # and was open when its turn came


def test_the_gripper_opens_for_numbers_above_zero_and_closes_for_all_others():
    env = number_env()
    env.reset_trial(0, 0)
    for value, command in ((0.01, 1), (1, 1), (0, -1), (-0.3, -1)):
        env.advance(np.float32([[0, 0, 0, 0, 0, 2.5, value]]))
        assert env.table.played[-1].tolist() == [0, 0, 0, 0, 0, 2.5, command]  # nothing else is clipped


def test_single_tasks_name_no_subgoals():
    env = number_env(("turn_on_led",))
    env.reset_trial(0, 0)
    after = env.advance(LED[None])
    assert (after.success, after.subgoals_done, after.subgoals, after.instruction_changed) == (True, 1, (), False)


def test_looking_back_stops_at_the_instruction():
    env = number_env()
    env.look_back(3)
    seen = env.reset_trial(0, 0)
    assert [then.state[0] for then in seen.earlier] == [0, 0]
    seen = env.advance(repeated(DRAWER, 3)).observation
    assert [then.state[0] for then in (*seen.earlier, seen)] == [1, 2, 3]
    assert [then.images["rgb_static"][0, 0, 0] for then in (*seen.earlier, seen)] == [1, 2, 3]
    seen = env.advance(LED[None]).observation
    assert [then.state[0] for then in (*seen.earlier, seen)] == [4, 4, 4]
    assert {then.instruction for then in seen.earlier} == {SENTENCES["open_drawer"]}


def test_films_show_every_few_steps_and_the_last_one():
    env = number_env()
    env.record(4)
    env.reset_trial(0, 0)
    env.advance(repeated(0 * LED, LIMIT))
    frames = list(env.film())
    assert [frame.step for frame in frames] == [0, 4, 8, 10]
    assert [frame.images["rgb_gripper"][0, 0, 0] for frame in frames] == [0, 4, 8, 10]


class Script:
    """Answers chunks of three; counts what it is told."""

    def __init__(self, suite):
        self.spec = PolicySpec("script", suite.action, cameras=suite.cameras[:1], chunk=3)
        self.resets, self.heard = 0, []

    def reset(self, slots, episodes):
        self.resets += 1

    def infer(self, observations):
        self.heard += [observation.instruction for observation in observations]
        chosen = {"turn_on_led": LED, "open_drawer": DRAWER}
        sentences = {SENTENCES[name]: action for name, action in chosen.items()}
        return [ActionChunk(repeated(sentences.get(seen.instruction, 0 * LED), 3)) for seen in observations]


def test_a_table_without_segmentation_knows_no_gaze():
    env = number_env()
    env.reset_trial(0, 0)
    assert env.gaze() == {}


def test_the_engine_drops_the_chunk_and_resets_the_policy_at_every_instruction():
    suite = make_suite("calvin_d")
    policy = Script(suite)
    toy = replace(suite, make_env=lambda task, wanted: number_env(wanted=wanted))
    rollout = Stage(toy, ["rgb_static"], Actor(LocalPolicy(policy), RecedingHorizon())).play(
        Episode("calvin_d", "chains", 0, 0)
    )
    result = rollout.result
    assert [call.executed for call in rollout.inferences] == [1, 3, 3, 3, 3, 1]
    assert policy.heard == [SENTENCES[name] for name in (*CHAIN[:2], *[CHAIN[2]] * 4)]
    assert policy.resets == 3
    assert (result.success, result.subgoals_done, result.subgoals) == (False, 2, CHAIN)
    assert result.steps == len(rollout.actions) == 1 + 3 + LIMIT
    assert json.loads(json.dumps(result.subgoals)) == list(CHAIN)


# --- suites ---


@pytest.mark.parametrize("name", ["calvin_a", "calvin_b", "calvin_c", "calvin_d"])
def test_chain_suites_have_one_task_of_1000_trials(name):
    suite = make_suite(name)
    (task,) = suite.tasks
    assert (task.name, task.trials, task.max_steps) == ("chains", CHAINS, 360)
    assert suite.protocol["scene"] == name[-1].upper()
    assert suite.control_hz == 30


def test_the_single_task_suite_has_all_34_sentences():
    suite = make_suite("calvin_tasks")
    assert suite.names == TASKS
    assert [task.instructions for task in suite.tasks] == [(SENTENCES[name],) for name in TASKS]


def test_the_led_version_is_part_of_the_protocol_and_head_by_default():
    assert make_suite("calvin_d").protocol["led"] == "head"
    assert make_suite("calvin_d", ["led=submodule"]).protocol["led"] == "submodule"
    assert make_suite("calvin_tasks", ["scene=b"]).protocol["scene"] == "B"
    with pytest.raises(UsageError, match="led"):
        make_suite("calvin_d", ["led=tail"])


# --- on the real table ---


def real_env(name="calvin_d", wanted=(), task=None):
    suite = make_suite(name)
    return suite.make_env(suite.task(task or suite.names[0]), wanted)


@pytest.mark.sim
def test_a_chain_begins_with_the_official_state_and_sentence():
    env = real_env()
    for trial in (0, 17, 999):
        observation, chain = env.reset_trial(trial, 0), official_chains()[trial]
        assert env.tasks == chain.tasks
        assert observation.instruction == SENTENCES[chain.tasks[0]]
        table = dict(zip(("red", "blue", "pink"), env.table.scene_obs()[6:].reshape(3, 6), strict=True))
        start = calvin.chain_start(SCENES["D"], trial)
        for at, wanted in zip(table.values(), start.scene_obs[6:].reshape(3, 6), strict=True):
            np.testing.assert_allclose(at, wanted, atol=2e-3)
        for colour, block in env.begun.blocks.items():
            surface = "base_link" if chain.initial.place(colour) == "table" else "plank_link"
            assert ("table", surface) in block.contacts
    env.close()


PLACED = {"place_in_slider": "robot", "place_in_drawer": "robot", "stack_block": "robot"}


@pytest.mark.sim
@pytest.mark.parametrize("scene", [slow("a"), slow("b"), slow("c"), "d"])
def test_single_tasks_begin_undone_with_what_their_condition_asks_of_the_start(scene):
    suite = make_suite("calvin_tasks", [f"scene={scene}"])
    table = calvin.MujocoTable(SCENES[scene.upper()], "head")
    for task in suite.tasks:
        start = functools.partial(calvin.task_start, SCENES[scene.upper()], task.name)
        env = calvin.CalvinEnv(task, (), table, start)
        for trial in range(3):
            env.reset_trial(trial, seed=0)
            assert beginnable(task.name, env.begun), (task.name, trial)
            still = np.float32([[0, 0, 0, 0, 0, 0, -1 if env.begun.robot_contacts else 1]])
            after = env.advance(np.repeat(still, 15, axis=0))
            assert not after.subgoals_done, (task.name, trial)
    table.close()


def beginnable(task, start):
    """Whether the condition's part about the start holds."""
    blocks = start.blocks
    if task in PLACED:
        return len(start.robot_contacts) == 1 and all(blocks[held].bodies == {"robot"} for held in start.robot_contacts)
    if task == "unstack_block":
        return any(block.bodies and block.bodies <= blocks.keys() for block in blocks.values())
    if task == "push_into_drawer":
        return any(block.contacts == {("table", "base_link")} for block in blocks.values())
    if task.startswith("lift"):
        _, colour, _, place = task.split("_")
        link = {"table": "base_link", "slider": "plank_link", "drawer": "drawer_link"}[place]
        return ("table", link) in blocks[colour].contacts
    if task.startswith(("rotate", "push")):
        return ("table", "base_link") in blocks[task.split("_")[1]].contacts
    joint = {"move": start.door, "open": start.drawer, "clos": start.drawer}.get(task[:4], 0.0)
    undone = {"move_slider_left": joint < 0.01, "move_slider_right": joint > 0.2}
    undone |= {"open_drawer": joint < 0.01, "close_drawer": joint > 0.2}
    undone |= {"turn_on_lightbulb": not start.bulb, "turn_off_lightbulb": start.bulb}
    undone |= {"turn_on_led": not start.led, "turn_off_led": start.led}
    return undone[task]


@pytest.mark.sim
@pytest.mark.parametrize(("led", "presses"), [("head", 1), ("submodule", 2)])
def test_a_lit_led_takes_one_press_at_head_and_two_in_the_submodule(led, presses):
    lit = next(trial for trial, chain in enumerate(official_chains()) if chain.initial.led)
    suite = make_suite("calvin_d", [f"led={led}"])
    env = suite.make_env(suite.tasks[0], ())
    env.reset_trial(lit, 0)
    start, table = env.begun, env.table
    button = table.model.joint("base__button").qposadr[0]
    for press in range(1, 3):
        for depth in (0.02, 0.0):
            table.data.qpos[button] = depth
            table.data.qvel[:] = 0
            table._read_button_and_switch()
        if press == presses:
            break
        assert table.record().led
    assert check_task("turn_off_led", start, table.record())
    env.close()


@pytest.mark.slow
@pytest.mark.sim
def test_looking_into_the_past_leaves_the_future_alone():
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 7)).astype(np.float32)
    blind, looking = real_env(), real_env(wanted=("rgb_static", "rgb_gripper"))
    looking.look_back(3)
    looking.record(4)
    for env in (blind, looking):
        env.reset_trial(5, 0)
        for chunk in np.split(actions, 8):
            env.advance(chunk)
    assert blind.fingerprint() == looking.fingerprint()
    before = looking.fingerprint()
    assert len(list(looking.film())) == 11
    assert looking.fingerprint() == before
    blind.close()
    looking.close()


@pytest.mark.sim
def test_a_diverged_state_is_an_error_and_the_next_trial_is_sound():
    env = real_env()
    env.reset_trial(2, 0)
    scene = env.fingerprint()
    env.table.data.qvel[-1] = np.nan
    with pytest.raises(calvin.SimulationDiverged):
        env.advance(np.zeros((2, 7), np.float32))
    env.reset_trial(2, 0)
    assert env.fingerprint() == scene
    env.close()


@pytest.mark.sim
def test_gymnasium_makes_single_tasks_in_any_scene():
    env = make_task("calvin_tasks", "open_drawer", scene="c")
    assert env.table.scene.name == "C"
    assert env.reset_trial(0, 0).instruction == SENTENCES["open_drawer"]
    env.close()


@pytest.mark.sim
def test_provenance_names_what_decides_the_numbers():
    assert set(make_suite("calvin_d").provenance()) == {"mujoco", "robosuite"}
    assert str(make_suite("calvin_d").protocol["chains"]).startswith("3e03f1dc")


# --- on the real calvin_env ---

BULLET = importlib.util.find_spec("calvin_env") is not None and importlib.util.find_spec("pybullet") is not None


def test_without_calvin_env_the_suite_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    suite = make_suite("calvin_pybullet")
    for needs_it in (suite.provenance, lambda: suite.make_env(suite.tasks[0], ())):
        with pytest.raises(UsageError, match=r"needs calvin_env, pybullet, .*clone github.com/mees/calvin_env"):
            needs_it()


@pytest.mark.sim
@pytest.mark.skipif(not BULLET, reason="needs a clone of calvin_env on PYTHONPATH, and pybullet")
def test_the_real_environment_begins_and_moves_as_ours_does():
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 7)).astype(np.float32)
    ours, real = real_env(wanted=("rgb_static",)), real_env("calvin_pybullet", wanted=("rgb_static",))
    for trial in (0, 5):
        here, there = ours.reset_trial(trial, 0), real.reset_trial(trial, 0)
        np.testing.assert_allclose(here.state, there.state, atol=1e-4)
        assert here.images["rgb_static"].mean() == pytest.approx(there.images["rgb_static"].mean(), abs=10)
        for colour, block in real.begun.blocks.items():
            assert block.contacts == ours.begun.blocks[colour].contacts
        moved, truth = ours.advance(actions), real.advance(actions)
        np.testing.assert_allclose(moved.observation.state[:6], truth.observation.state[:6], atol=0.01)
    ours.close()
    real.close()
