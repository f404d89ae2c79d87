"""Checkpoints that somebody else wrote: any damage is a sentence, within seconds and a gigabyte, and NaN never acts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from checkpoint_cases import CASES, damage_checkpoint  # noqa: E402
from fuzz import bounded, fresh_copy  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from vla_bench.policies.torch.checkpoints import load_into, read_tensors  # noqa: E402
from vla_bench.policies.torch.plausible import insist_on_sizes, insist_on_types  # noqa: E402
from vla_bench.policies.torch.tokens import TINY, JsonTokenizer, load_tokenizer, tiny_tokenizer  # noqa: E402

from vla_bench.errors import PolicyFailure, UsageError  # noqa: E402
from vla_bench.inference import LocalPolicy  # noqa: E402

SLOWEST_S, LARGEST_MB = 60, 1000


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Callable[[str], Path]:
    """The folder with the undamaged checkpoint of a case, written once."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = tmp_path_factory.mktemp("sound")
            CASES[name].write(written[name])
        return written[name]

    return folder


def copied(source: Path, target: Path) -> Path:
    """A copy of a case's folder; what is named with --checkpoint in it."""
    return next(fresh_copy(source, target / "copy").iterdir())


def insist_on_a_sentence(error: UsageError, path: Path) -> None:
    said = str(error)
    assert path.parent.name in said, f"names no file: {said}"
    assert "\n" not in said
    assert len(said) < 1200


def outcome(name: str, path: Path) -> str:
    """What came of reading that checkpoint, and of asking it. Raises whatever a user should not see."""
    case = CASES[name]
    try:
        policy = case.read(path)
    except UsageError as error:
        insist_on_a_sentence(error, path)
        return "refused"
    seen = case.observations()
    try:
        LocalPolicy(policy).answer_all(seen, [0.0] * len(seen))
    except (UsageError, PolicyFailure):
        return "stopped"
    return "answered"


SLOW = ("pi05 of lerobot", "openvla", "reconvla with its head", "diffusion hybrid ckpt", "diffusion of lerobot")
QUICK = [name for name in CASES if name not in SLOW]


@pytest.mark.parametrize("name", QUICK)
def test_damaged_checkpoints_are_read_or_refused_in_a_sentence(name: str, sound, tmp_path: Path) -> None:
    for seed in range(7):
        path, damage = copied(sound(name), tmp_path), Random(f"{name} {seed}")
        said = damage_checkpoint(path, damage)
        with bounded(SLOWEST_S, LARGEST_MB):
            assert outcome(name, path), said


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("name", CASES)
def test_many_damaged_checkpoints_are_read_or_refused_in_a_sentence(
    name: str, part: int, sound, tmp_path: Path
) -> None:
    found = set()
    for seed in range(100 + 12 * part, 112 + 12 * part):
        path, damage = copied(sound(name), tmp_path), Random(f"{name} {seed}")
        said = damage_checkpoint(path, damage)
        with bounded(SLOWEST_S, LARGEST_MB):
            found.add(outcome(name, path))
            assert found, said
    assert "refused" in found, "the damage should matter"


# Sizes beyond belief


def numbers_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the whole numbers of a JSON value are."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, one in inside for found in numbers_in(one, (*place, key))]
    return [place] if type(value) is int else []


def put(value: Any, place: tuple[Any, ...], new: object) -> Any:
    """The JSON value with another one there."""
    if not place:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[place[0]] = put(value[place[0]], place[1:], new)
    return changed


def sweep(name: str, path: Path, new: int) -> dict[str, str]:
    """What came of every whole number in config.json replaced by that one."""
    file, found = path / "config.json", {}
    said = json.loads(file.read_text())
    for place in numbers_in(said):
        file.write_text(json.dumps(put(said, place, new)))
        with bounded(SLOWEST_S, LARGEST_MB):
            found[".".join(map(str, place))] = outcome(name, path)
    return found


UNREAD = {"openvla": {"pad_token_id"}, "reconvla": set(), "pi0 of ours": set()}
"""Numbers that decide nothing."""


@pytest.mark.parametrize("name", UNREAD)
def test_sizes_of_ten_million_are_refused(name: str, sound, tmp_path: Path) -> None:
    path = copied(sound(name), tmp_path)
    found = sweep(name, path, 10**7)
    assert len(found) >= 6
    unread = {place for place, came in found.items() if came == "answered"}
    assert unread <= UNREAD[name], "a size that is used should be held against the weights"


@pytest.mark.slow
@pytest.mark.parametrize("new", [-1, 0, 10**5, 10**7, 10**12, 10**400])
@pytest.mark.parametrize("name", [name for name in CASES if "ckpt" not in name])
def test_no_number_in_a_configuration_takes_all_time_or_memory(name: str, new: int, sound, tmp_path: Path) -> None:
    assert "refused" in sweep(name, copied(sound(name), tmp_path), new).values()


@dataclass(frozen=True)
class Wheel:
    spokes: int
    name: Literal["front", "rear"] = "front"


@dataclass(frozen=True)
class Bicycle:
    wheels: tuple[Wheel, ...] = (Wheel(36),)
    weight: float = 9.5
    bell: int | None = None
    gears: tuple[int, ...] | None = None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Bicycle((Wheel(36), Wheel("7"))), "wheels.spokes '7', expected int"),  # type: ignore[arg-type]
        (Bicycle((Wheel(True),)), "wheels.spokes True, expected int"),
        (Bicycle((Wheel(1, "top"),)), "wheels.name 'top', expected 'front' or 'rear'"),  # type: ignore[arg-type]
        (Bicycle([Wheel(1)]), "expected tuple"),  # type: ignore[arg-type]
        (Bicycle(({},)), "wheels {}, expected Wheel"),  # type: ignore[arg-type]
        (Bicycle(weight=float("nan")), "weight nan, expected float"),
        (Bicycle(weight=10**400), "weight 1000"),
        (Bicycle(bell="ring"), "bell 'ring', expected int or null"),  # type: ignore[arg-type]
        (Bicycle(gears=3), "gears 3, expected tuple or null"),  # type: ignore[arg-type]
        (Bicycle((Wheel(1),) * 300), "expected 256 values"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(given: Bicycle, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        insist_on_types(given, "garage/config.json")
    assert str(error.value).startswith("garage/config.json says ")


def test_numbers_are_held_against_the_bytes_of_the_weights() -> None:
    weights = {"a": torch.zeros(10), "b": torch.zeros(1).expand(10**9)}
    insist_on_sizes(Bicycle((Wheel(44),), weight=3), weights, "garage")
    with pytest.raises(UsageError, match=r"garage says wheels\.spokes 45, beyond belief for its weights of 44 bytes"):
        insist_on_sizes(Bicycle((Wheel(45),)), weights, "garage")


def test_a_model_does_not_grow_from_few_numbers() -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    with pytest.raises(UsageError, match=r"has 4 bytes for the 4,000,000 of the model"):
        load_into(model, {"weight": torch.ones(1).expand(1000, 1000)}, "here")


# What is no number


WEIGHTS = {
    "pi0 of lerobot": "model.action_out_proj.weight",
    "openvla": "language_model.lm_head.weight",
    "reconvla": "lm_head.weight",
    "reconvla of ours": "model.layers.0.mlp.down_proj.weight",
    "diffusion of ours": "network.final_conv.1.weight",
}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_no_numbers_are_refused_in_every_family(
    name: str, wrong: float, sound, tmp_path: Path
) -> None:
    path = copied(sound(name), tmp_path)
    for file in path.glob("model*.safetensors"):
        tensors = load_file(file)
        for weight in WEIGHTS[name].split() if WEIGHTS[name] in tensors else ():
            tensors[weight].view(-1)[-1] = wrong
        save_file(tensors, file)
    with pytest.raises(UsageError, match="weights that are no finite numbers as float32") as error:
        CASES[name].read(path)
    insist_on_a_sentence(error.value, path)


def test_a_mask_may_hide_by_infinity_and_weights_too_large_for_their_type_are_told() -> None:
    model = torch.nn.Linear(2, 1)
    model.register_buffer("mask", torch.zeros(2))
    weights = {**model.state_dict(), "mask": torch.tensor([0.0, -torch.inf])}
    load_into(model, weights, "here")
    with pytest.raises(UsageError, match=r"no finite numbers as float32 \(mask\)"):
        load_into(model, {**weights, "mask": torch.tensor([0.0, torch.nan])}, "here")
    large = {**weights, "bias": torch.tensor([1e5])}
    load_into(model, large, "here")
    with pytest.raises(UsageError, match=r"as float16 \(bias\).*dtype=float32"):
        load_into(model.half(), large, "here")
    largest = {**weights, "bias": torch.tensor([6e4]), "weight": torch.full((1, 2), 6e4)}
    load_into(model, largest, "here")  # their sum is none of float16


@pytest.mark.parametrize(
    ("name", "head"), [("reconvla of ours", "lm_head"), ("openvla of ours", "language_model.lm_head")]
)
def test_tokens_are_not_chosen_by_logits_that_are_no_numbers(name: str, head: str, sound, tmp_path: Path) -> None:
    policy = CASES[name].read(copied(sound(name), tmp_path))
    weight = policy.model.get_submodule(head).weight  # type: ignore[attr-defined]
    with torch.no_grad():
        weight[3] = torch.nan  # overflow while acting ends here as well
    with pytest.raises(UsageError, match="chose tokens by logits that are no numbers"):
        policy.infer(CASES[name].observations())


# Tokenizers


def tokenizer_with(**changes: object) -> str:
    return json.dumps({**json.loads(TINY.read_text(encoding="utf-8")), **changes})


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


LONGER = {
    "replacing": {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "a" * 60), replace("a", "aa")]}},
    "replacing 40 times": {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}},
    "within each other": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": [replace("a", "aa")] * 20}] * 2,
        }
    },
    "between all letters": {"normalizer": replace("", "x" * 80)},
    "wherever it fits": {"normalizer": replace("x*", "x" * 80, "Regex")},
    "in front": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "by a table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "bytes of bytes": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            ]
            * 40,
        }
    },
    "decoding": {"decoder": {"type": "Sequence", "decoders": [replace("a", "aa")] * 40}},
}


@pytest.mark.parametrize("how", LONGER)
def test_a_tokenizer_that_makes_texts_very_long_is_refused(how: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer_with(**LONGER[how]))
    with (
        bounded(5, 100),
        pytest.raises(UsageError, match=r"tokenizer\.json cannot be read .* more than 64 times as long"),
    ):
        load_tokenizer(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # Rust panics when it divides
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x" * 10**6}},
        {"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}},
        {"model": 3},
        {"normalizer": {"type": "Sequence", "normalizers": [3]}},
        {"normalizer": 3},
    ],
)
def test_a_tokenizer_that_fails_as_rust_does_is_one_sentence(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_with(**changes))
    with bounded(10, 100), pytest.raises(UsageError) as error:
        load_tokenizer(tmp_path)
    insist_on_a_sentence(error.value, tmp_path / "tokenizer.json")


def test_a_pattern_that_backtracks_is_an_error_and_no_panic_of_rust() -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = JsonTokenizer(tokenizer_with(pre_tokenizer=split))
    with bounded(30, 100), pytest.raises(ValueError, match="PanicException"):
        tokenizer.encode("a" * 40 + "b")


def test_the_steps_of_known_tokenizers_are_allowed() -> None:
    llama = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}
    decoder = {"type": "Sequence", "decoders": [
        replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]}  # fmt: skip
    qwen = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}|\s+"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]}  # fmt: skip
    for changes in ({"normalizer": llama, "decoder": decoder}, {"normalizer": {"type": "NFC"}, "pre_tokenizer": qwen}):
        assert JsonTokenizer(tokenizer_with(**changes)).encode("open the drawer")


def test_what_a_file_puts_around_a_text_is_not_followed() -> None:
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    twice = {"type": "TemplateProcessing", "single": [first] * 1000, "pair": [first, second], "special_tokens": {}}
    text = "open the drawer"
    assert JsonTokenizer(tokenizer_with(post_processor=twice)).encode(text) == tiny_tokenizer().encode(text)


# Files


def test_a_header_of_millions_of_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((90_000_000).to_bytes(8, "little") + b'{"a":')
        stream.truncate(100_000_000)
    with bounded(5, 20), pytest.raises(UsageError, match="its header has 90,000,000 bytes, expected 4,194,304 at most"):
        read_tensors(file)


@pytest.mark.parametrize("entry", [7, None, ["a"], {"a": 1}, "../model.safetensors", "/etc/passwd", "a\0b"])
def test_an_index_that_names_no_file_beside_it_is_one_sentence(entry: object, sound, tmp_path: Path) -> None:
    path = copied(sound("openvla"), tmp_path)
    index = path / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**placed, "x": entry}}))
    with pytest.raises(UsageError, match=r"index\.json (names|cannot)|cannot be read") as error:
        CASES["openvla"].read(path)
    insist_on_a_sentence(error.value, path)


@pytest.mark.parametrize(
    "kind", ["[" * 100_000, "[{}," * 600_000 + "0", "{}" + " " * 20_000_000, '{"a": ' + "9" * 5000]
)
def test_json_that_is_deep_or_large_is_one_sentence(kind: str, sound, tmp_path: Path) -> None:
    path = copied(sound("pi0 of ours"), tmp_path)
    (path / "config.json").write_text(kind)
    with bounded(5, 200), pytest.raises(UsageError) as error:
        CASES["pi0 of ours"].read(path)
    insist_on_a_sentence(error.value, path)
