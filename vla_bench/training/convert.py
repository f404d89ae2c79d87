"""Official checkpoints to directories of our own, proved to answer the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from vla_bench.errors import UsageError
from vla_bench.inference import LocalPolicy, blaming, check_compatible
from vla_bench.process.foreign import contained
from vla_bench.process.paths import TakesPaths, UserPath, home, returning
from vla_bench.registry import make_policy, make_suite
from vla_bench.secrets import hidden, names, redacted
from vla_bench.types import Episode, Float32, Observation, Policy, PolicySpec, Suite


@dataclass(frozen=True)
class ConvertConfig(TakesPaths):
    """Write a checkpoint of any format the policy reads as a directory of ours: config, safetensors, tokenizer,
    normalisation and a card. The new directory is loaded again and must answer like the old one."""

    policy: str
    """A name from `vla-bench list policies`, or an import path module:Class."""
    checkpoint: UserPath
    """What to read: an official checkpoint, or one of ours."""
    suite: str
    """The suite it acts in: it decides cameras, state and action convention."""
    out: UserPath
    """The new directory."""
    policy_args: tuple[str, ...] = ()
    """name=value ... for the policy's constructor; `--policy-args help` lists them."""
    suite_args: tuple[str, ...] = ()
    """name=value ... for the suite."""


@dataclass(frozen=True)
class Converted:
    """What came of it."""

    path: Path
    sha256: str
    actions: int
    """Length of the chunk with which both were compared."""


@runtime_checkable
class Savable(Protocol):
    """A policy that can write its weights."""

    @property
    def spec(self) -> PolicySpec: ...

    def save(self, path: str | Path, provenance: Mapping[str, str]) -> None:
        """Write a directory that `--checkpoint` reads. Raises UsageError."""


def convert(config: ConvertConfig) -> Converted:
    """Read, write, read again, compare. Raises UsageError for what cannot be read or does not answer the same, and
    PolicyFailure."""
    with returning(), contained():
        return _convert(config, Path(home(), config.out))


def _convert(config: ConvertConfig, out: Path) -> Converted:
    """`out` is absolute: the policy may change the working folder."""
    if out.exists():
        raise UsageError(f"{config.out} exists already; name a new directory.")
    suite = make_suite(config.suite, config.suite_args)
    given = make_policy(config.policy, suite, config.checkpoint, config.policy_args)
    check_compatible(given, suite)
    if not isinstance(given, Savable):
        raise UsageError(f"The policy {config.policy!r} cannot be converted: it has no save(path, provenance).")
    before = probe(given, suite)
    with blaming(given.spec.name, "save"):
        given.save(str(out), _provenance(config, given.spec.checkpoint))
    del given  # two copies of a large model may not fit
    written = make_policy(config.policy, suite, str(out), _still_needed(config.policy_args))
    after = probe(written, suite)
    if not np.array_equal(before, after):
        off = float(np.abs(before - after).max()) if before.shape == after.shape else float("inf")
        raise UsageError(f"{config.out} was written but does not answer like {config.checkpoint}: off by {off:.3g}.")
    return Converted(Path(config.out), written.spec.checkpoint, len(after))


RUNTIME = ("device", "dtype", "compile", "batching")
"""Arguments that say how a model is run and are not kept in a checkpoint."""


def _still_needed(policy_args: tuple[str, ...]) -> list[str]:
    wanted = {*RUNTIME, *names(policy_args)}  # secrets are not kept in a checkpoint either
    return [given for given in policy_args if given.partition("=")[0] in wanted]


def probe(policy: Policy, suite: Suite) -> Float32:
    """Its actions (H, A) on an observation made of noise, the same every time."""
    rng = np.random.default_rng(0)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in policy.spec.cameras}
    state = rng.normal(0.0, 0.1, len(suite.state)).astype(np.float32)
    seen = Observation(images, state, suite.tasks[0].instructions[0], slot=0, seed=1)
    past = (seen,) * (policy.spec.history - 1)
    answers = LocalPolicy(policy)
    answers.begin(Episode(suite.name, suite.tasks[0].name, 0, 0))
    return answers.answer(Observation(images, state, seen.instruction, 0, 1, past)).actions


def _provenance(config: ConvertConfig, sha256: str) -> dict[str, str]:
    return {
        "converted from": hidden(Path(config.checkpoint).name),
        "sha256 of the original": hidden(sha256),
        "for suite": config.suite,
        "arguments": " ".join(redacted(config.policy_args)) or "none",
        "written by": f"vla-bench {version('vla-bench')} convert",
    }
