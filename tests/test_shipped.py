"""The checkpoints that come along: whole, small, what the manifest says, and used when no other is given."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from safetensors.torch import save_file
from vla_bench.policies.torch.checkpoints import CARD, CONFIG, WEIGHTS, read_json, read_tensors, sha256_of

from vla_bench import shipped
from vla_bench.cli import main
from vla_bench.errors import EXIT_DONE, EXIT_REGRESSION, UsageError
from vla_bench.registry import POLICIES, SUITES, make_policy, make_suite
from vla_bench.shipped import Shipped, all_shipped

MOST_BYTES = 8e6
SCRIPT = Path(__file__).parents[1] / "scripts" / "train_shipped.py"
every = pytest.mark.parametrize("one", all_shipped(), ids=[one.name for one in all_shipped()])
default = pytest.mark.parametrize("one", [one for one in all_shipped() if one.default], ids=lambda one: one.name)


@pytest.mark.parametrize("suite", ["tiny", "robosuite", "libero_object", "libero_spatial", "libero_10"])
def test_these_families_have_a_checkpoint_for(suite: str) -> None:
    families = {one.policy for one in all_shipped() if one.default and suite in one.suites}
    assert families == {"pi0", "openvla", "reconvla", "diffusion_policy"}


def test_the_script_makes_just_these(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["_vla_bench"](tmp_path, "list policies")
    lines = [training.line() for training in script["TRAININGS"]]
    assert lines == json.loads((shipped.FOLDER / shipped.MANIFEST).read_text())
    for training, line in zip(script["TRAININGS"], lines, strict=True):
        card = (shipped.FOLDER / training.name / CARD).read_text()
        said = re.findall(r"^- (.*?): (.*)$", card, re.MULTILINE)
        arguments = shlex.split(training.policy_args)
        policy = make_policy(training.policy, make_suite(training.data.suites[0]), None, ["size=tiny", *arguments])
        recipe = asdict(policy.recipe().changed(steps=training.steps))  # type: ignore[attr-defined]
        told = ", ".join(f"{name} {value}" for name, value in recipe.items())
        assert dict(said).items() >= {("policy arguments", " ".join(arguments) or "none"), ("recipe", told)}
        assert line["trained_on"].split()[0] == dict(said)["data"].split()[0]


def test_the_committed_runs_played_just_these() -> None:
    runs = list((SCRIPT.parents[1] / "reports").glob("*/runs/*/run.json"))
    played = {json.loads(file.read_text())["identity"]["weights"] for file in runs} - {""}
    assert played == {one.sha256 for one in all_shipped()}


def test_no_two_are_the_default_of_one_policy_on_one_suite() -> None:
    told = [(one.policy, suite) for one in all_shipped() if one.default for suite in one.suites]
    assert len(told) == len(set(told))
    assert {policy for policy, _ in told} <= set(POLICIES)
    assert {suite for _, suite in told} <= set(SUITES)


@every
def test_it_is_what_the_manifest_says(one: Shipped) -> None:
    tensors = read_tensors(one.path / WEIGHTS).values()
    assert sha256_of(one.path) == one.sha256
    assert (one.path / WEIGHTS).stat().st_size == one.bytes <= MOST_BYTES
    assert sum(tensor.numel() for tensor in tensors) == one.parameters
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())
    assert read_json(one.path / CONFIG)["policy"] == one.policy
    assert "data sha256" in (one.path / CARD).read_text()


@default
def test_a_policy_without_a_checkpoint_is_the_one_that_comes_along(one: Shipped) -> None:
    suite = make_suite(one.suites[0])
    assert make_policy(one.policy, suite).spec.checkpoint == one.sha256
    assert shipped.note_on(one.sha256) == one.note
    assert make_policy(one.policy, suite, None, ["size=tiny"]).spec.checkpoint == ""


@every
def test_it_can_be_asked_for_by_name(one: Shipped) -> None:
    assert make_policy(one.policy, make_suite(one.suites[0]), f"shipped:{one.name}").spec.checkpoint == one.sha256


def test_a_wrong_name_is_one_sentence() -> None:
    suite = make_suite("tiny")
    with pytest.raises(UsageError, match=r"Unknown shipped checkpoint 'pi0_tyni'\. Did you mean 'pi0_small_tiny'"):
        make_policy("pi0", suite, "shipped:pi0_tyni")
    with pytest.raises(UsageError, match="is a checkpoint of 'pi0', not of 'reconvla'"):
        make_policy("reconvla", suite, "shipped:pi0_small_tiny")


@every
def test_no_name_is_that_of_an_official_checkpoint_and_the_old_one_says_the_new(one: Shipped) -> None:
    assert one.name.startswith(f"{one.policy}_small_")
    old = one.name.replace("_small", "")
    with pytest.raises(UsageError, match=f"shipped:{old} is called shipped:{one.name} now"):
        make_policy(one.policy, make_suite(one.suites[0]), f"shipped:{old}")


def test_a_name_without_the_prefix_says_it() -> None:
    with pytest.raises(UsageError, match="for the one that comes along say shipped:pi0_small_tiny"):
        make_policy("pi0", make_suite("tiny"), "pi0_small_tiny")


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(one for one in all_shipped() if one.default)
    shutil.copytree(one.path, tmp_path / one.name)
    weights = tmp_path / one.name / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(UsageError, match=r"is damaged .*install vla-bench again"):
        make_policy(one.policy, make_suite(one.suites[0]))


def played(out: Path, *arguments: str) -> str:
    """The folder of eight episodes of Diffusion Policy at the drawer."""
    what = ["--policy", "diffusion_policy", "--suite", "tiny", "--task", "open_the_drawer", "--episodes", "8"]
    assert main(["run", *what, "--out", str(out), *arguments]) == EXIT_DONE
    return str(out)


@pytest.mark.sim
@pytest.mark.slow
def test_a_checkpoint_with_noise_on_its_weights_fails_the_gate(tmp_path: Path) -> None:
    one = next(one for one in all_shipped() if one.name == "diffusion_policy_small_tiny")
    damaged = shutil.copytree(one.path, tmp_path / "damaged")
    draw = torch.Generator().manual_seed(0)
    weights = {name: tensor.float() for name, tensor in read_tensors(damaged / WEIGHTS).items()}
    noisy = {n: t + t.std(correction=0) * torch.randn(t.shape, generator=draw) for n, t in weights.items()}
    save_file(noisy, damaged / WEIGHTS)
    baseline = ["--baseline", str(tmp_path / "drawer.jsonl")]
    sound = played(tmp_path / "sound")
    assert main(["check", sound, *baseline, "--update"]) == EXIT_DONE
    assert main(["check", sound, *baseline]) == EXIT_DONE
    assert main(["check", played(tmp_path / "run", "--checkpoint", str(damaged)), *baseline]) == EXIT_REGRESSION
