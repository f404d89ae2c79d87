"""CALVIN's 1000 chains of five tasks, drawn as upstream draws them, and the scene each one starts in.

What is peculiar, from mees/calvin fa03f01 and measured on it:

* Chains are drawn by rejection under numpy's legacy generator seeded with the number of the initial state; a chain is
  kept when its tasks are of five categories and, at every position, exactly one variant of the task's effect applies
  (stacking with two blocks on the table is ambiguous and so rejected). `draw_chains` takes about half a minute for the
  1000, so they are kept in assets/calvin_chains.txt; `chains` reads them and checks their hash.
* `place_in_slider` with the door to the right leaves the block symbolically in `slider_right`, the closed compartment.
* Block poses are drawn under a seed that is a hash of the *text* of the symbolic state: FNV-1 of 32 bits, but from
  start value 0 and over UTF-16-LE (`pyhash.fnv1_32` on a str). The usual FNV-1 gives other scenes.
* Upstream evaluates in scene D only. In A, B and C the same chains start from the same slots moved to where these
  scenes have their compartments and no button; that is our choice.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .scene import DRAWER_TRAVEL, SCENES, SWITCH_TRAVEL, Scene
from .tasks import COLOURS, TASKS

Float64 = NDArray[np.float64]

Position = tuple[float, float, float]
Rotation = tuple[float, float, float]

CHAINS = 1000
LENGTH = 5
SHA256 = "3e03f1dc1428af0157570b576f0544737196dc62507a0d2822d92c236483306d"
"""Of `canonical_json` of the official 1000 chains."""
COMPARTMENTS = ("slider_right", "slider_left")


class Situation(NamedTuple):
    """The symbolic state of table and robot; the order of the fields is that of upstream's dict."""

    led: int
    lightbulb: int
    slider: str
    """`right` or `left`: where the door is."""
    drawer: str
    """`closed` or `open`."""
    red_block: str
    """`table`, `slider_right`, `slider_left`, `drawer`, `grasped`, `stacked_top` or `stacked_bottom`."""
    blue_block: str
    pink_block: str
    grasped: int

    def place(self, colour: str) -> str:
        """Where that block is."""
        place: str = getattr(self, f"{colour}_block")
        return place


class Chain(NamedTuple):
    """Where an episode starts and what is to be done, one task after the other."""

    initial: Situation
    tasks: tuple[str, ...]


Facts = Mapping[str, Any]
"""Field of a `Situation` to its value, or to the values that it may have."""


class Variant(NamedTuple):
    """One way in which a task can apply."""

    condition: Facts
    effect: Facts


def _variants() -> dict[str, tuple[Variant, ...]]:
    """Task name to the ways in which it can apply (upstream's `multistep_sequences.py`)."""
    table: dict[str, tuple[Variant, ...]] = {
        "move_slider_left": (_toggle("slider", "right", "left"),),
        "move_slider_right": (_toggle("slider", "left", "right"),),
        "open_drawer": (_toggle("drawer", "closed", "open"),),
        "close_drawer": (_toggle("drawer", "open", "closed"),),
        "turn_on_lightbulb": (_toggle("lightbulb", 0, 1),),
        "turn_off_lightbulb": (_toggle("lightbulb", 1, 0),),
        "turn_on_led": (_toggle("led", 0, 1),),
        "turn_off_led": (_toggle("led", 1, 0),),
    }
    for block in _BLOCKS:
        table |= _about(block)
    table["place_in_slider"] = tuple(
        _release(block, {"slider": side}, {block: f"slider_{side}"}) for side in ("right", "left") for block in _BLOCKS
    )
    table["place_in_drawer"] = tuple(_release(block, {"drawer": "open"}, {block: "drawer"}) for block in _BLOCKS)
    pairs = tuple(itertools.permutations(_BLOCKS, 2))
    table["stack_block"] = tuple(
        _release(top, {bottom: "table"}, {top: "stacked_top", bottom: "stacked_bottom"}) for top, bottom in pairs
    )
    table["unstack_block"] = tuple(
        _empty_handed({top: "stacked_top", bottom: "stacked_bottom"}, {top: "table", bottom: "table"})
        for top, bottom in pairs
    )
    table["push_into_drawer"] = tuple(_push_into_drawer(block) for block in _BLOCKS)
    return {task: table[task] for task in TASKS}


def _about(block: str) -> dict[str, tuple[Variant, ...]]:
    """The tasks whose name holds that block's."""
    grasp: Facts = {block: "grasped", "grasped": 1}
    stays = (_empty_handed({block: "table"}, {}),)
    return {f"{verb}_{block}_{side}": stays for verb in ("rotate", "push") for side in ("right", "left")} | {
        f"lift_{block}_table": (_empty_handed({block: "table"}, grasp),),
        f"lift_{block}_slider": (
            _empty_handed({block: "slider_left", "slider": "right"}, grasp),
            _empty_handed({block: "slider_right", "slider": "left"}, grasp),
        ),
        f"lift_{block}_drawer": (_empty_handed({block: "drawer", "drawer": "open"}, grasp),),
    }


def _toggle(what: str, before: int | str, after: int | str) -> Variant:
    return _empty_handed({what: before}, {what: after})


def _empty_handed(condition: Facts, effect: Facts) -> Variant:
    return Variant({**condition, "grasped": 0}, effect)


def _release(block: str, condition: Facts, effect: Facts) -> Variant:
    return Variant({**condition, block: "grasped", "grasped": 1}, {**effect, "grasped": 0})


def _push_into_drawer(block: str) -> Variant:
    """Both other blocks are in the cabinet, whichever is where."""
    others = {other: COMPARTMENTS for other in _BLOCKS if other != block}
    return _empty_handed({block: "table", "drawer": "open", **others}, {block: "drawer"})


_BLOCKS = tuple(f"{colour}_block" for colour in COLOURS)
_VARIANTS = _variants()
_CATEGORIES = (
    r"(rotate|push)_\w+_block_\w+",
    r"move_slider_\w+",
    r"(open|close)_drawer",
    r"lift_\w+_table",
    r"lift_\w+_slider",
    r"lift_\w+_drawer",
    r"place_in_\w+",
    r"turn_\w+",
    r"push_into_drawer",
    r"stack_block",
    r"unstack_block",
)
_CATEGORY_BITS = np.array(
    [sum(1 << number for number, names in enumerate(_CATEGORIES) if re.fullmatch(names, task)) for task in TASKS]
)
_BATCH = 1024
_FILE = Path(__file__).parents[1] / "assets" / "calvin_chains.txt"


_TABLE_SLOTS = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
_COMPARTMENT_SLOTS = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
"""Scene D's, m (`get_env_state_for_initial_condition`)."""
_TABLE_SHIFT = {"B": -0.15}
"""Along x, m: in scene B the second slot would touch the button at x 0.28."""
YAWS = (3 * math.pi / 8, 5 * math.pi / 8)
"""Bounds of a block's yaw (rad)."""
ROBOT_OBS = (
    *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585),
    0.07999963,
    *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928),
    1.0,
)
"""The pose in which every chain begins: TCP (m), its euler xyz (rad), opening (m), arm joints (rad), gripper."""


@functools.cache
def apply(task: str, situation: Situation) -> Situation | None:
    """The situation after that task; None when not exactly one of its variants applies."""
    facts = situation._asdict()
    fitting = [variant for variant in _VARIANTS[task] if _holds(variant.condition, facts)]
    return situation._replace(**fitting[0].effect) if len(fitting) == 1 else None


def _holds(condition: Facts, facts: Facts) -> bool:
    return all(
        facts[name] in value if isinstance(value, tuple) else facts[name] == value for name, value in condition.items()
    )


def follow(initial: Situation, tasks: Sequence[str]) -> Situation | None:
    """The situation after those tasks; None when one of them does not apply."""
    situation: Situation | None = initial
    for task in tasks:
        if situation is None:
            return None
        situation = apply(task, situation)
    return situation


def initial_situations() -> tuple[Situation, ...]:
    """The 192 in upstream's order: one or two blocks on the table, at most one in each compartment."""
    places = ("table", *COMPARTMENTS)
    product = itertools.product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), places, places, places, (0,))
    return tuple(
        situation
        for situation in itertools.starmap(Situation, product)
        if situation.count("table") in (1, 2) and all(situation.count(side) <= 1 for side in COMPARTMENTS)
    )


def draw_chains(count: int = CHAINS) -> list[Chain]:
    """That many chains, drawn as upstream's `get_sequences(count)` draws them."""
    situations = initial_situations()
    shares = [len(part) for part in np.array_split(range(count), len(situations))]
    drawn = [
        Chain(situation, tasks)
        for seed, (situation, share) in enumerate(zip(situations, shares, strict=True))
        for tasks in itertools.islice(_draws(situation, np.random.RandomState(seed)), share)
    ]
    np.random.RandomState(0).shuffle(drawn)
    return drawn


def _draws(situation: Situation, stream: np.random.RandomState) -> Iterator[tuple[str, ...]]:
    """Valid chains from that situation, for ever.

    Upstream draws `np.random.choice(names, 5, replace=False)`, which is the head of a shuffle of all 34; here the
    shuffles come in batches, because nearly all fail a test that a batch takes at once.
    """
    order = np.arange(len(TASKS))
    possible = np.array([apply(task, situation) is not None for task in TASKS])
    while True:
        batch = np.tile(order, (_BATCH, 1))
        for row in batch:
            stream.shuffle(row)
        heads = batch[:, :LENGTH]
        for head in heads[possible[heads[:, 0]] & _five_categories(heads)]:
            tasks = tuple(TASKS[index] for index in head)
            if follow(situation, tasks) is not None:
                yield tasks


def _five_categories(heads: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether the n rows of task numbers (n, 5) are each of five different categories."""
    bits = _CATEGORY_BITS[heads]
    distinct: NDArray[np.bool_] = bits.sum(axis=1) == np.bitwise_or.reduce(bits, axis=1)
    return distinct


def canonical_json(chains: Sequence[Chain]) -> str:
    """The text whose SHA-256 names a list of chains."""
    entries = [{"initial_state": chain.initial._asdict(), "tasks": chain.tasks} for chain in chains]
    return json.dumps(entries, separators=(",", ":"))


@functools.cache
def official_chains() -> tuple[Chain, ...]:
    """The 1000 chains that everybody evaluates, in order. Raises RuntimeError when the file does not hold them."""
    situations = initial_situations()
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    chains = tuple(_parse(line, situations) for line in lines if not line.startswith("#"))
    if hashlib.sha256(canonical_json(chains).encode()).hexdigest() != SHA256:
        raise RuntimeError(f"{_FILE} does not hold CALVIN's chains (sha256 {SHA256}).")
    return chains


def _parse(line: str, situations: Sequence[Situation]) -> Chain:
    situation, *tasks = map(int, line.split())
    return Chain(situations[situation], tuple(TASKS[task] for task in tasks))


def pose_seed(situation: Situation) -> int:
    """The seed of a situation's block poses: upstream's hash of the text of its dict's values."""
    digest = 0
    for byte in f"dict_values({list(situation)})".encode("utf-16-le"):
        digest = (digest * 0x01000193 & 0xFFFFFFFF) ^ byte
    return digest


def table_slots(scene: Scene) -> list[Position]:
    """Where the two blocks on the table can be."""
    shift = _TABLE_SHIFT.get(scene.name, 0.0)
    return [(x + shift, y, z) for x, y, z in _TABLE_SLOTS]


def initial_scene(situation: Situation, scene: Scene = SCENES["D"]) -> Float64:
    """`scene_obs` (24,) in which a chain from that initial situation begins (`get_env_state_for_initial_condition`)."""
    stream = np.random.RandomState(pose_seed(situation))
    slots = table_slots(scene)
    stream.shuffle(slots)
    rotations = {colour: (0.0, 0.0, stream.uniform(*YAWS)) for colour in COLOURS}
    return scene_obs(situation, positions(situation, slots, scene), rotations, scene)


def positions(situation: Situation, slots: Sequence[Position], scene: Scene) -> dict[str, Position]:
    """Where blocks on the table and in the cabinet are, by colour.

    Upstream's rule: red on the table is in the first slot, pink in the second, blue in the one that red leaves.
    """
    at = {"red": slots[0], "blue": slots[situation.red_block == "table"], "pink": slots[1]}
    shift = scene.cavity_x[0] - SCENES["D"].cavity_x[0]
    for colour in COLOURS:
        if (place := situation.place(colour)) in COMPARTMENTS:
            x, y, z = _COMPARTMENT_SLOTS[place]
            at[colour] = (x + shift, y, z)
        elif place != "table":
            del at[colour]
    return at


def scene_obs(
    situation: Situation, at: Mapping[str, Position], rotations: Mapping[str, Rotation], scene: Scene
) -> Float64:
    """(24,): door, drawer, button, switch, bulb, LED, then position and euler xyz per block in the scene's order.

    `rotations` are euler xyz angles (rad) by colour.
    """
    fixtures = [
        scene.door_travel if situation.slider == "left" else 0.0,
        DRAWER_TRAVEL if situation.drawer == "open" else 0.0,
        0.0,
        SWITCH_TRAVEL if situation.lightbulb else 0.0,
        situation.lightbulb,
        situation.led,
    ]
    blocks = [(*at[colour], *rotations[colour]) for colour, _ in scene.blocks]
    return np.array([*fixtures, *itertools.chain.from_iterable(blocks)])
