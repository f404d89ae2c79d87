"""The table of calvin_sim beside measurements of the real calvin_env (tests/data/calvin), and what a simulator owes."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from vla_bench.envs.calvin import scene as calvin_scene
from vla_bench.envs.calvin.scene import BLOCK_SECTION, SCENES, contact_distance
from vla_bench.envs.calvin.sim import CAMERA_PX, NEUTRAL, Table
from vla_bench.envs.calvin.tasks import true_tasks

from vla_bench.errors import UsageError

pytestmark = pytest.mark.sim

DATA = Path(__file__).parent / "data" / "calvin"
RESPONSE = json.loads((DATA / "controller_response.json").read_text())
RAYS = np.load(DATA / "ray_probe.npz")
LINKS = ("base", "button", "switch", "slide", "drawer", "led", "light", "plank")
FREE = [name for name in RESPONSE["runs"] if name != "dz_down_unit_10steps"]
"""Every run but the one in which a finger lands on the drawer's handle."""
STAY_OPEN, STAY_CLOSED = (0, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0, -1)
DOWN = (math.pi, 0.0, math.pi / 2)
"""Tool pointing down, fingers apart along x."""
ACROSS = (math.pi, 0.0, 0.0)
"""Tool pointing down, fingers apart along y."""


@pytest.fixture(scope="module")
def tables():
    made = {name: Table(name) for name in SCENES}
    yield made
    for table in made.values():
        table.close()


@pytest.fixture
def table(tables):
    tables["D"].reset(RESPONSE["robot_obs_reset"], RESPONSE["scene_obs_reset"])
    return tables["D"]


def scene_obs(table, *, door=0.0, drawer=0.0, button=0.0, switch=0.0, bulb=0, led=0, **blocks):
    """(24,) with blocks at `(x, y, z, yaw)`; those not named stand at the table's edges."""
    places = {colour: blocks.get(colour, (-0.36 + 0.36 * n, -0.14, 0.46, 0)) for n, colour in enumerate(table.blocks)}
    poses = [(*places[colour][:3], 0, 0, places[colour][3]) for colour in table.blocks]
    return np.concatenate(([door, drawer, button, switch, bulb, led], *poses))


def move(table, *points, euler=DOWN, gripper=-1, speed_m=0.012, hold=12):
    """The tool, in straight lines through these points."""
    for point in points:
        start = table.robot_obs()[:3]
        steps = max(1, math.ceil(math.dist(point, start) / speed_m))
        for k in range(1, steps + 1):
            table.step_absolute(start + (np.array(point) - start) * k / steps, euler, gripper)
        for _ in range(hold):
            table.step_absolute(point, euler, gripper)


def grasp(table, x, y, z=0.462):
    """Take the block there, its length along x, and lift it by 0.12 m."""
    move(table, (x, y, z + 0.1), (x, y, z), euler=ACROSS, gripper=1)
    move(table, (x, y, z), euler=ACROSS, hold=15)
    move(table, (x, y, z + 0.12), euler=ACROSS)


def bits(table):
    """All that can be seen of a table, comparable bit for bit."""
    return table.robot_obs().tobytes(), table.scene_obs().tobytes(), table.record(), table.state().physics.tobytes()


# ---------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("scene", "way", "joints"),
    list(itertools.product(SCENES, ("down", "front"), ("lower", "upper"))),
    ids=lambda name: name,
)
def test_rays_hit_where_they_hit_the_real_table(tables, scene, way, joints):
    heights, links = cast_rays(tables[scene], way, np.zeros(4) if joints == "lower" else RAYS[f"{scene}_upper"])
    real, real_links = RAYS[f"{scene}_{way}_{joints}"], RAYS[f"{scene}_{way}_{joints}_link"]
    same = (np.isnan(heights) & np.isnan(real)) | (np.abs(heights - real) < 0.004)
    assert same.mean() >= 0.98
    assert same[~np.isnan(real)].mean() >= 0.98, "of the rays that hit the real one"
    assert (links == real_links)[same].all()


def cast_rays(table, way, joints):
    """Heights (down) or depths (front) of the table alone, NaN for a miss, and numbers of the links hit."""
    import mujoco

    table.reset()
    model, data = table.model, table.data
    data.qpos[[model.joint(f"base__{name}").qposadr[0] for name in ("slide", "drawer", "button", "switch")]] = joints
    mujoco.mj_kinematics(model, data)
    bodies = [model.body(body).name.removesuffix("_link") for body in model.geom_bodyid]
    groups = model.geom_group.copy()
    model.geom_group[:] = [0 if body in LINKS else 5 for body in bodies]
    others = RAYS["ys" if way == "down" else "zs"]
    heights, links = (np.full((len(RAYS["xs"]), len(others)), fill) for fill in (np.nan, -1))
    shown, geom = np.array([1, 0, 0, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    for (i, x), (j, other) in itertools.product(enumerate(RAYS["xs"] + 0.003), enumerate(others + 0.003)):
        start, along = (([x, other, 1], [0, 0, -1]), ([x, -1, other], [0, 1, 0]))[way == "front"]
        distance = mujoco.mj_ray(model, data, np.array(start, float), np.array(along, float), shown, 1, -1, geom)
        if 0 <= distance <= (1.1 if way == "down" else 2):
            heights[i, j] = 1 - distance if way == "down" else distance - 1
            links[i, j] = LINKS.index(bodies[geom[0]])
    model.geom_group[:] = groups
    return heights, links


@pytest.mark.parametrize("camera", CAMERA_PX)
def test_cameras_see_points_where_the_real_ones_do(table, camera):
    points = json.loads((DATA / "camera_points.json").read_text())[camera]
    for world, pixel in zip(points["world"], points["pixel"], strict=True):
        assert math.dist(project(table, camera, world), pixel) < 0.1


def project(table, camera, point):
    """(u right, v down) px."""
    number = table.model.camera(camera).id
    axes, position = table.data.cam_xmat[number].reshape(3, 3), table.data.cam_xpos[number]
    height, width = CAMERA_PX[camera]
    focal = height / 2 / math.tan(math.radians(table.model.cam_fovy[number]) / 2)
    x, y, z = axes.T @ (np.array(point) - position)
    return width / 2 - focal * x / z, height / 2 + focal * y / z


@pytest.mark.parametrize("scene", SCENES)
def test_blocks_are_seen_in_their_colours_where_they_are(tables, scene):
    table = tables[scene]
    table.reset(
        None, scene_obs(table, red=(0.36, -0.14, 0.46, 0), blue=(0.1, -0.1, 0.46, 0), pink=(0.2, -0.1, 0.46, 0))
    )
    image = table.paint("rgb_static")
    assert image.shape == (200, 200, 3)
    assert image.dtype == np.uint8
    for colour, channels in (("red", [1, 0, 0]), ("blue", [0, 0, 1]), ("pink", [1, 0, 1])):
        x, y, z = table.record().blocks[colour].position
        u, v = project(table, "rgb_static", (x, y, z + BLOCK_SECTION / 2))
        assert (image[int(v), int(u)] > 127).tolist() == [bool(channel) for channel in channels]


def test_lights_show_their_state(table):
    def lamp_colours():
        image = table.paint("rgb_static").astype(int)
        return [image[int(v), int(u)] for u, v in (project(table, "rgb_static", point) for point in lamps)]

    lamps = ((SCENES["D"].button_x, 0.14, 0.665), (SCENES["D"].switch_x, 0.14, 0.68))
    led_off, bulb_off = lamp_colours()
    table.reset(None, scene_obs(table, switch=0.088, bulb=1, led=1))
    led_on, bulb_on = lamp_colours()
    assert np.ptp(led_off) < 20
    assert np.ptp(bulb_off) < 20
    assert led_on[1] > 100
    assert max(led_on[0], led_on[2]) < 20
    assert min(bulb_on[:2]) > 100
    assert bulb_on[2] < 20


def test_gripper_camera_looks_between_the_fingers(table):
    image = table.paint("rgb_gripper")
    assert image.shape == (84, 84, 3)
    move(table, (0.0, -0.1, 0.56), gripper=1)
    table.reset(table.robot_obs(), scene_obs(table, red=(0.0, -0.1, 0.46, 0)))
    u, v = project(table, "rgb_gripper", table.record().blocks["red"].position)
    assert 20 < u < 64
    red, green, blue = table.paint("rgb_gripper")[int(v), int(u)].astype(int)
    assert red > 100
    assert max(green, blue) < 20


@pytest.mark.parametrize("mean", [(121, 70, 46), (244, 196, 140)])
def test_wood_has_the_mean_colour_asked_for(mean):
    assert np.abs(calvin_scene.wood_texture(mean, 0).mean((0, 1)) - mean).max() < 3


# ---------------------------------------------------------------------- dynamics


def play(table, run):
    """robot_obs (n, 15) and the real one's, after every step."""
    table.reset(RESPONSE["robot_obs_reset"], RESPONSE["scene_obs_reset"])
    ours = []
    for action in RESPONSE["runs"][run]["actions"]:
        table.step(action)
        ours.append(table.robot_obs())
    return np.array(ours), np.array(RESPONSE["runs"][run]["robot_obs"])


def differences(ours, real):
    """Distance of tool position (m), Euler angles (rad), width (m) and joints (rad) at every sample."""
    apart = ours - real
    apart[..., 3:6] = (apart[..., 3:6] + math.pi) % (2 * math.pi) - math.pi
    return [np.linalg.norm(apart[..., part], axis=-1) for part in (slice(3), slice(3, 6), slice(6, 7), slice(7, 14))]


@pytest.mark.parametrize("run", FREE)
def test_free_motion_is_the_real_ones(table, run):
    ours, real = play(table, run)
    for difference, limit in zip(differences(ours, real), (0.0005, 0.001, 0.0002, 0.001), strict=True):
        assert difference.max() < limit
    assert np.array_equal(ours[:, 14], real[:, 14])


def test_the_arm_yields_like_the_real_one_when_a_finger_lands_on_the_drawers_handle(table):
    ours, real = play(table, "dz_down_unit_10steps")
    responses = differences(real, np.array(RESPONSE["robot_obs_reset"]))
    lowest = (0.002, 0.02, 0.012, 0.02)  # fingers: 15 % of the width that they hold
    for difference, response, least in zip(differences(ours, real), responses, lowest, strict=True):
        assert (difference <= np.maximum(0.15 * response, least)).all()
    assert real[-1, 2] > 0.39, "it would be at 0.37 without the handle"


@pytest.mark.parametrize("joint", ["base__slide", "base__drawer"])
def test_doors_stay_below_their_dry_friction_and_move_above_it(table, joint):
    def moved(force):
        table.reset(None, scene_obs(table, door=0.1, drawer=0.1))
        before = table.data.joint(joint).qpos[0]
        table.data.joint(joint).qfrc_applied[0] = force
        for _ in range(30):
            table.step(STAY_OPEN)
        return table.data.joint(joint).qpos[0] - before

    assert abs(moved(3.5)) < 1e-3
    assert abs(moved(-3.5)) < 1e-3
    assert moved(4.5) > 0.02
    assert moved(-4.5) < -0.02


def test_switch_stays_where_it_is_put_and_the_button_springs_back(table):
    table.reset(None, scene_obs(table, switch=0.05, button=0.02))
    travel = [table.scene_obs()[2]]
    for _ in range(8):
        table.step(STAY_OPEN)
        travel.append(table.scene_obs()[2])
    assert table.scene_obs()[3] == pytest.approx(0.05, abs=1e-3)
    shares = np.divide(travel[1:], travel[:-1])
    assert shares[0] < 0.5, "it starts with 4 N"
    assert shares[1:6] == pytest.approx(0.43, rel=0.15)


def test_blocks_rest_at_the_real_heights(table):
    places = {"red": (0.1, -0.1, 0.47, 0.3), "blue": (-0.2, 0.09, 0.47, 0), "pink": (0.18, -0.28, 0.375, 0.2)}
    table.reset(None, scene_obs(table, drawer=0.22, **places))
    for _ in range(60):
        table.step(STAY_OPEN)
    blocks = table.record().blocks
    heights = {"red": 0.45999, "blue": 0.46099, "pink": 0.36235}
    links = {"red": "base_link", "blue": "plank_link", "pink": "drawer_link"}
    for colour, block in blocks.items():
        assert block.position[2] == pytest.approx(heights[colour], abs=1e-4)
        assert block.contacts == {("table", links[colour])}


def test_nothing_happens_by_itself(table):
    table.reset(None, scene_obs(table, door=0.28, drawer=0.22, switch=0.088, bulb=1))
    begin, before = table.record(), table.scene_obs()
    for _ in range(120):
        table.step(STAY_OPEN)
        assert not true_tasks(begin, table.record())
    assert np.abs(table.scene_obs() - before).max() < 1e-3


@pytest.mark.parametrize("colour", ["red", "blue", "pink"])
def test_a_grasped_block_is_held_and_shaken_without_slipping(table, colour):
    table.reset(None, scene_obs(table, **{colour: (0.18, -0.1, 0.46, 0)}))
    begin = table.record()
    grasp(table, 0.18, -0.1)
    assert true_tasks(begin, table.record()) == {f"lift_{colour}_block_table"}
    held = table.scene_obs()[6:24].reshape(3, 6)[table.blocks.index(colour), :3] - table.robot_obs()[:3]
    for side in (-1, 1, -1, 1):
        move(table, (0.18 + 0.1 * side, -0.15, 0.6), euler=ACROSS, speed_m=0.03, hold=3)
    move(table, (0.18, -0.1, 0.58), euler=ACROSS, hold=60)
    now = table.scene_obs()[6:24].reshape(3, 6)[table.blocks.index(colour), :3] - table.robot_obs()[:3]
    assert math.dist(held, now) < 0.004
    assert table.record().robot_contacts == {colour}


def test_a_block_can_be_stacked_and_unstacked(table):
    table.reset(None, scene_obs(table, red=(0.3, -0.1, 0.46, 0), blue=(0.1, -0.1, 0.46, 0)))
    grasp(table, 0.1, -0.1)
    begin = table.record()
    move(table, (0.3, -0.1, 0.58), (0.3, -0.1, 0.503), euler=ACROSS, hold=20)
    move(table, (0.3, -0.1, 0.503), euler=ACROSS, gripper=1)
    move(table, (0.3, -0.1, 0.6), euler=ACROSS, gripper=1)
    assert "stack_block" in true_tasks(begin, table.record())
    for _ in range(60):
        table.step(STAY_OPEN)
    begin = table.record()
    assert begin.blocks["blue"].contacts == {("red", "base_link")}
    grasp(table, 0.3, -0.1, 0.503)
    assert "unstack_block" in true_tasks(begin, table.record())


def test_a_block_pushed_over_the_front_falls_into_the_open_drawer(table):
    table.reset(None, scene_obs(table, drawer=0.22, red=(0.2, -0.12, 0.46, 0)))
    begin = table.record()
    move(table, (0.2, -0.03, 0.55), (0.2, -0.03, 0.47), (0.2, -0.22, 0.47))
    assert "push_into_drawer" in true_tasks(begin, table.record())


def test_drawer_door_and_switch_are_moved_by_their_handles(table):
    table.reset(None, scene_obs(table))
    begin = table.record()
    move(table, (0.18, -0.21, 0.5), (0.18, -0.208, 0.385), (0.18, -0.4, 0.385))
    assert true_tasks(begin, table.record()) == {"open_drawer"}
    table.reset(None, scene_obs(table))
    move(table, (0.12, -0.06, 0.57), (0.12, -0.01, 0.57), (-0.17, -0.01, 0.57))
    assert true_tasks(begin, table.record()) == {"move_slider_left"}
    table.reset(None, scene_obs(table))
    move(table, (0.3, -0.04, 0.5), (0.3, 0.01, 0.5), (0.3, 0.07, 0.604))
    assert true_tasks(begin, table.record()) == {"turn_on_lightbulb"}


# ---------------------------------------------------------------------- lights


def press(table):
    """The button, once."""
    x = table.scene.button_x
    move(table, (x, -0.12, 0.52), (x, -0.12, 0.475), (x, -0.12, 0.52), hold=8)


@pytest.mark.parametrize(("led", "seen"), [("head", [False, True, False]), ("submodule", [True, False, True])])
def test_a_lit_led_goes_off_at_the_first_press_or_at_the_second(led, seen):
    table = Table("D", led)
    table.reset(None, scene_obs(table, led=1))
    states = []
    for _ in seen:
        press(table)
        states.append(table.record().led)
    assert states == seen


@pytest.mark.parametrize("led", ["head", "submodule"])
def test_an_unlit_led_goes_on_at_the_first_press(led):
    table = Table("D", led)
    table.reset(None, scene_obs(table))
    press(table)
    assert table.record().led


def test_a_button_held_down_toggles_once(table):
    table.reset(None, scene_obs(table))
    move(table, (-0.12, -0.12, 0.52), (-0.12, -0.12, 0.47), hold=30)
    assert table.record().led


@pytest.mark.parametrize(
    ("switch", "bulb", "then"), [(0.088, 1, True), (0.088, 0, True), (0.0, 1, True), (0.0, 0, False)]
)
def test_after_a_reset_the_switch_counts_as_off_until_the_first_step(table, switch, bulb, then):
    table.reset(None, scene_obs(table, switch=switch, bulb=bulb))
    assert table.record().bulb == bool(bulb)
    table.step(STAY_OPEN)
    assert table.record().bulb == then


# ---------------------------------------------------------------------- reset, observations, contacts


@pytest.mark.parametrize("scene", SCENES)
def test_a_reset_puts_everything_where_asked(tables, scene):
    table = tables[scene]
    robot = np.concatenate((np.zeros(6), [0.05], np.array(NEUTRAL) + 0.05, [-1]))
    wanted = scene_obs(table, door=0.1, drawer=0.2, switch=0.088, bulb=1, led=1)
    table.reset(robot, wanted)
    assert np.abs(table.scene_obs() - wanted).max() < 5e-4
    assert table.robot_obs()[6] == pytest.approx(0.05, abs=1e-3)
    assert table.robot_obs()[7:14] == pytest.approx(robot[7:14], abs=1e-6)
    assert table.robot_obs()[14] == 1


def test_the_neutral_tool_pose_is_the_real_ones(table):
    assert table.robot_obs() == pytest.approx(RESPONSE["robot_obs_reset"], abs=4e-6)
    assert table.scene_obs() == pytest.approx(RESPONSE["scene_obs_reset"], abs=2e-4)


def test_a_reset_leaves_no_trace_of_the_past(table):
    fresh = Table("D")
    for either in (table, fresh):
        either.reset(RESPONSE["robot_obs_reset"], RESPONSE["scene_obs_reset"])
    assert bits(table) == bits(fresh)
    for _ in range(25):
        table.step((-0.3, 0.4, -1, 0.2, 0, 0.3, -1))
    assert bits(table) != bits(fresh)
    table.reset(RESPONSE["robot_obs_reset"], RESPONSE["scene_obs_reset"])
    for action in RESPONSE["runs"]["random_walk"]["actions"]:
        table.step(action)
        fresh.step(action)
    assert bits(table) == bits(fresh)


def test_going_back_to_a_snapshot_repeats_the_future_bit_for_bit(table):
    table.reset(None, scene_obs(table, red=(0.18, -0.1, 0.46, 0)))
    move(table, (0.18, -0.1, 0.5), (0.18, -0.1, 0.462), euler=ACROSS, gripper=1)
    for _ in range(3):
        table.step(STAY_CLOSED)
    snapshot = pickle.loads(pickle.dumps(table.state()))
    here = bits(table)
    ahead = [future(table) for _ in range(20)]
    table.set_state(snapshot)
    assert bits(table) == here
    assert [future(table) for _ in range(20)] == ahead
    other = Table("D")
    other.set_state(snapshot)
    assert bits(other) == here
    assert [future(other) for _ in range(20)] == ahead


def future(table):
    table.step((0.1, 0, 0.5, 0, 0.2, 0, -1))
    return bits(table)


def test_painting_changes_nothing_and_snapshots_can_be_painted_later(table):
    move(table, (0.1, -0.1, 0.47))
    snapshot, picture, before = table.state(), table.paint("rgb_static"), bits(table)
    assert bits(table) == before
    press(table)
    assert not np.array_equal(table.paint("rgb_static"), picture)
    assert np.array_equal(table.paint("rgb_static", snapshot), picture)


@pytest.mark.parametrize(("colour", "length"), SCENES["D"].blocks)
def test_a_block_touches_up_to_bullets_breaking_threshold(table, colour, length):
    threshold = contact_distance(length)
    assert threshold == pytest.approx({0.04: 0.00069, 0.056: 0.0008, 0.08: 0.00098}[length], abs=1e-5)
    for gap, touches in ((-0.0001, True), (0.97 * threshold, True), (1.03 * threshold, False)):
        fall = 9.8 / 240**2  # the first physics step's, after the contacts were looked for
        table.reset(None, scene_obs(table, **{colour: (0.18, -0.1, 0.46 + gap, 0)}))
        assert table.record().blocks[colour].contacts == ({("table", "base_link")} if touches else set())
        if gap > 0:
            assert table.record().blocks[colour].position[2] == pytest.approx(0.46 + gap - fall, abs=1e-6)


def test_blocks_whose_faces_are_parallel_to_the_last_bit_do_not_explode(table):
    """With a margin on the blocks, MuJoCo 3.2.3 saw contacts half a metre deep here (google-deepmind/mujoco#3476)."""
    rng = np.random.default_rng(0)
    table.reset(None, scene_obs(table, red=(0.05, -0.12, 0.46, 0), blue=(0.2, -0.14, 0.46, 0)))
    red = table.data.joint("red")
    for _ in range(200):
        almost_level = np.array([3.4e-17, 3.2e-16]) + rng.normal(size=2) * 1e-17
        red.qpos[:3] = (*rng.uniform((0.04, -0.13), (0.06, -0.11)), 0.45998078)
        red.qpos[3:] = (float.fromhex("0x1.ff8e1ea730719p-1"), *almost_level, float.fromhex("0x1.5569b0021af63p-5"))
        red.qvel[:] = 0
        table._physics_step()
        assert np.abs(red.qvel).max() < 0.1
        assert table.record().blocks["red"].contacts == {("table", "base_link")}


def test_angular_velocity_is_told_in_the_world_frame(table):
    table.reset(None, scene_obs(table, red=(0.18, -0.1, 0.7, 0.5)))
    quat = np.array([math.cos(0.6), math.sin(0.6), 0, 0])
    table.data.joint("red").qpos[3:7] = quat
    table.data.joint("red").qvel[3:6] = (0, 1, 0)
    assert table.record().blocks["red"].angular_velocity == pytest.approx((0, math.cos(1.2), math.sin(1.2)))


@pytest.mark.parametrize("scene", SCENES)
def test_random_scenes_follow_their_generator_and_keep_blocks_apart(tables, scene):
    table, of = tables[scene], SCENES[scene]
    seen = []
    for seed in range(12):
        table.reset(rng=np.random.default_rng(seed))
        poses = table.scene_obs()[6:].reshape(3, 6)
        seen.append(poses)
        floors = ("plank_link" if y > 0 else "base_link" for _, y, *_ in poses)
        for block, floor in zip(table.record().blocks.values(), floors, strict=True):
            assert block.contacts == {("table", floor)}
        table.step(STAY_OPEN)
        assert np.allclose(table.scene_obs()[6:].reshape(3, 6), poses, atol=1e-3)
        for x, y, *_ in poses:
            surface = of.table_x if y < 0 else of.left_x if x < (of.left_x[1] + of.right_x[0]) / 2 else of.right_x
            assert surface[0] - 1e-3 < x < surface[1] + 1e-3
    table.reset(rng=np.random.default_rng(3))
    assert np.array_equal(table.scene_obs()[6:].reshape(3, 6), seen[3])
    assert not np.allclose(seen[3], seen[4], atol=0.01)


# ---------------------------------------------------------------------- actions


def test_the_target_runs_ahead_and_is_not_set_back(table):
    table.reset(None, scene_obs(table))
    start = table.robot_obs()
    for _ in range(5):
        table.step((1, 0, 0, 0, 0, 0, 1))
    for _ in range(25):
        table.step(STAY_OPEN)
    assert table.robot_obs()[:3] - start[:3] == pytest.approx((0.1, 0, 0), abs=2e-3)


def test_absolute_actions_leave_the_running_target(table):
    table.reset(None, scene_obs(table))
    start = table.robot_obs()
    move(table, (0.2, -0.2, 0.6), gripper=1)
    assert math.dist(table.robot_obs()[:3], start[:3]) > 0.1
    for _ in range(40):
        table.step(STAY_OPEN)
    assert table.robot_obs()[:3] == pytest.approx(start[:3], abs=2e-3)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda table: table.step((0, 0, 0, 0, 0, 0, 0)), "gripper action 0.0; it is \\+1"),
        (lambda table: table.step(np.zeros(6)), "shape \\(6,\\)"),
        (lambda table: table.step_absolute((0, 0, 0.6), DOWN, 0.5), "gripper action 0.5"),
        (lambda table: table.reset(np.zeros(14)), "robot_obs"),
        (lambda table: table.reset(None, np.full(24, np.nan)), "scene_obs"),
        (lambda table: table.paint("rgb_side"), "rgb_side.*rgb_static and rgb_gripper"),
        (lambda table: Table("E"), "scene 'E'"),
        (lambda table: Table("D", "both"), "led 'both'"),
    ],
)
def test_wrong_calls_are_answered_in_a_sentence(table, call, complaint):
    with pytest.raises(UsageError, match=complaint):
        call(table)
