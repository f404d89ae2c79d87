"""The official chains, the situations they start in, and the scenes these become."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from vla_bench.envs.calvin.chains import (
    SHA256,
    Chain,
    Situation,
    apply,
    canonical_json,
    draw_chains,
    follow,
    initial_scene,
    initial_situations,
    official_chains,
    pose_seed,
)
from vla_bench.envs.calvin.scene import SCENES
from vla_bench.envs.calvin.starts import chain_start, situations_for, task_start
from vla_bench.envs.calvin.tasks import COLOURS, TASKS

INITIAL_STATES = Path(__file__).parent / "data" / "calvin" / "initial_states.csv"
START = Situation(0, 0, "right", "closed", "table", "table", "slider_left", 0)


def reference():
    """(situation, seed, scene_obs) of upstream's 192 initial states."""
    with INITIAL_STATES.open(encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    for row in rows:
        led, bulb, slider, drawer, red, blue, pink, grasped, seed, *scene_obs = row
        situation = Situation(int(led), int(bulb), slider, drawer, red, blue, pink, int(grasped))
        yield situation, int(seed), np.array(scene_obs, float)


def test_the_committed_chains_are_the_official_ones():
    chains = official_chains()
    assert len(chains) == 1000
    assert hashlib.sha256(canonical_json(chains).encode()).hexdigest() == SHA256
    first = Situation(1, 1, "left", "open", "slider_left", "table", "slider_right", 0)
    tasks = ("rotate_blue_block_right", "move_slider_right", "lift_red_block_slider", "place_in_slider")
    assert chains[0] == Chain(first, (*tasks, "turn_off_lightbulb"))


@pytest.mark.slow
def test_drawing_gives_the_official_chains_whatever_the_callers_random_state():
    np.random.seed(12345)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert tuple(draw_chains()) == official_chains()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_fewer_chains_are_drawn_as_upstream_draws_them():
    few = draw_chains(8)  # one from each of the first eight initial situations, shuffled
    assert Counter(chain.initial for chain in few) == Counter(initial_situations()[:8])
    assert {chain.tasks for chain in few} <= {chain.tasks for chain in official_chains()}  # the same first draws


def test_a_damaged_file_is_noticed(tmp_path, monkeypatch):
    from vla_bench.envs.calvin import chains as calvin_chains

    lines = calvin_chains._FILE.read_text().splitlines()
    damaged = tmp_path / "chains.txt"
    damaged.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]))
    monkeypatch.setattr(calvin_chains, "_FILE", damaged)
    with pytest.raises(RuntimeError, match="does not hold CALVIN's chains"):
        official_chains.__wrapped__()


def test_every_official_chain_applies_and_has_five_distinct_tasks():
    for chain in official_chains():
        assert follow(chain.initial, chain.tasks) is not None
        assert len(set(chain.tasks)) == 5
    assert len({chain.initial for chain in official_chains()}) == 192


def test_the_most_frequent_tasks_are_as_often_asked_as_upstream_counts():
    asked = Counter(itertools.chain.from_iterable(chain.tasks for chain in official_chains()))
    assert (asked["place_in_slider"], asked["open_drawer"], asked["turn_off_led"]) == (398, 379, 185)
    assert asked["lift_pink_block_drawer"] == 17
    assert set(asked) == set(TASKS)


def test_all_192_initial_scenes_are_upstreams():
    states = list(reference())
    assert len(states) == 192
    assert {situation for situation, _, _ in states} == set(initial_situations())
    for situation, seed, scene_obs in states:
        assert pose_seed(situation) == seed
        np.testing.assert_allclose(initial_scene(situation), scene_obs, rtol=0, atol=1e-6)


# --- symbolic tasks ---


@pytest.mark.parametrize(
    ("task", "before", "after"),
    [
        ("push_red_block_left", {}, {}),
        ("rotate_pink_block_left", {}, None),  # not on the table
        ("move_slider_left", {}, {"slider": "left"}),
        ("move_slider_left", {"slider": "left"}, None),
        ("open_drawer", {}, {"drawer": "open"}),
        ("close_drawer", {"drawer": "open"}, {"drawer": "closed"}),
        ("lift_red_block_table", {}, {"red_block": "grasped", "grasped": 1}),
        ("lift_pink_block_slider", {}, {"pink_block": "grasped", "grasped": 1}),
        ("lift_pink_block_slider", {"slider": "left"}, None),  # behind the door
        (
            "lift_pink_block_slider",
            {"slider": "left", "pink_block": "slider_right"},
            {"pink_block": "grasped", "grasped": 1},
        ),
        ("lift_red_block_drawer", {"red_block": "drawer"}, None),  # closed
        ("lift_red_block_drawer", {"red_block": "drawer", "drawer": "open"}, {"red_block": "grasped", "grasped": 1}),
        ("place_in_slider", {}, None),
        ("place_in_slider", {"red_block": "grasped", "grasped": 1}, {"red_block": "slider_right", "grasped": 0}),
        (
            "place_in_slider",
            {"red_block": "grasped", "grasped": 1, "slider": "left"},
            {"red_block": "slider_left", "grasped": 0},
        ),
        ("place_in_drawer", {"red_block": "grasped", "grasped": 1}, None),
        (
            "place_in_drawer",
            {"red_block": "grasped", "grasped": 1, "drawer": "open"},
            {"red_block": "drawer", "grasped": 0},
        ),
        (
            "stack_block",
            {"red_block": "grasped", "grasped": 1},
            {"red_block": "stacked_top", "blue_block": "stacked_bottom", "grasped": 0},
        ),
        ("stack_block", {"red_block": "grasped", "grasped": 1, "pink_block": "table"}, None),  # on which?
        (
            "unstack_block",
            {"red_block": "stacked_top", "blue_block": "stacked_bottom"},
            {"red_block": "table", "blue_block": "table"},
        ),
        ("turn_on_lightbulb", {}, {"lightbulb": 1}),
        ("turn_off_led", {}, None),
        ("turn_on_led", {"red_block": "grasped", "grasped": 1}, None),  # the hand is full
        ("push_into_drawer", {"drawer": "open"}, None),  # two blocks on the table
        ("push_into_drawer", {"drawer": "open", "blue_block": "slider_right"}, {"red_block": "drawer"}),
        ("push_into_drawer", {"blue_block": "slider_right"}, None),
    ],
)
def test_a_task_applies_where_its_condition_holds_and_changes_what_it_says(task, before, after):
    situation = START._replace(**before)
    assert apply(task, situation) == (None if after is None else situation._replace(**after))


# --- starts ---


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_every_chain_starts_with_its_blocks_inside_the_scenes_own_places(scene):
    order = [colour for colour, _ in scene.blocks]
    for trial in range(0, 1000, 7):
        start, chain = chain_start(scene, trial), official_chains()[trial]
        door, drawer = (0, scene.door_travel)[chain.initial.slider == "left"], (0, 0.22)[chain.initial.drawer == "open"]
        assert start.scene_obs[:2].tolist() == [door, drawer]
        assert (start.tasks, start.settle_steps) == (chain.tasks, 0)
        for colour, (x, y, z, *_) in zip(order, start.scene_obs[6:].reshape(3, 6), strict=True):
            place = chain.initial.place(colour)
            low, high = {"table": scene.table_x, "slider_left": scene.left_x, "slider_right": scene.right_x}[place]
            assert low < x < high, (place, colour)
            assert (-0.15 < y < -0.03) == (place == "table")
            assert z == pytest.approx(0.46, abs=0.002)


@pytest.mark.parametrize("task", TASKS)
def test_a_single_task_starts_where_it_applies_and_repeats(task):
    choices = situations_for(task)
    assert all(apply(task, situation) is not None for situation in choices)
    scene = SCENES["D"]
    first = [task_start(scene, task, trial, seed=0) for trial in range(20)]
    again = [task_start(scene, task, trial, seed=0) for trial in range(20)]
    other = [task_start(scene, task, trial, seed=1) for trial in range(20)]
    assert all((a.scene_obs == b.scene_obs).all() for a, b in zip(first, again, strict=True))
    assert len({start.scene_obs.tobytes() for start in [*first, *other]}) == 40
    assert {start.tasks for start in first} == {(task,)}


@pytest.mark.parametrize("task", ["place_in_slider", "stack_block", "unstack_block", "lift_blue_block_drawer"])
@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_what_has_to_be_held_stacked_or_stored_is(scene, task):
    for trial in range(10):
        start = task_start(scene, task, trial, seed=0)
        order = np.random.default_rng([0, TASKS.index(task)]).permutation(len(situations_for(task)))
        situation = situations_for(task)[order[trial]]
        at = dict(zip([colour for colour, _ in scene.blocks], start.scene_obs[6:].reshape(3, 6), strict=True))
        places = {situation.place(colour): at[colour] for colour in COLOURS}
        assert start.settle_steps > 0
        assert start.gripper == (-1 if situation.grasped else 1)
        if "grasped" in places:
            np.testing.assert_array_equal(places["grasped"][:3], start.robot_obs[:3])
            assert start.robot_obs[6] == 0.04
        if "stacked_top" in places:
            np.testing.assert_allclose(
                places["stacked_top"] - places["stacked_bottom"], [0, 0, 0.04, 0, 0, 0], atol=1e-12
            )
        if "drawer" in places:
            assert abs(places["drawer"][0] - scene.drawer_x) < 0.01
