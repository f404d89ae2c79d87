"""The trained checkpoints that come with vla-bench: what a policy plays a suite with when no checkpoint is given.

Each is called POLICY_small_DATA, for `pi0_libero` and the like are names of the authors' own checkpoints.
`assets/shipped/manifest.json` names them and pins their SHA-256; `scripts/train_shipped.py` made both.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from vla_bench.errors import UsageError, unknown_name

FOLDER = Path(__file__).parent / "assets" / "shipped"
MANIFEST = "manifest.json"
PREFIX = "shipped:"
"""`--checkpoint shipped:NAME` is the checkpoint of that name."""


class Shipped(NamedTuple):
    """One of them."""

    name: str
    policy: str
    suites: tuple[str, ...]
    """That it was trained for."""
    default: bool
    """Whether its policy plays these suites with it when told nothing else."""
    sha256: str
    """As of `PolicySpec.checkpoint`."""
    parameters: int
    bytes: int
    """Of its weights."""
    trained_on: str
    """Its data, in words."""

    @property
    def path(self) -> Path:
        return FOLDER / self.name

    @property
    def former_name(self) -> str:
        """That it had until 2026-11, when it could be taken for one of the authors'."""
        return self.name.replace("_small_", "_")

    @property
    def note(self) -> str:
        """The line beside its numbers."""
        size = f"{self.parameters / 1e6:.1f} M parameters, {self.bytes / 1e6:.1f} MB"
        return f"the checkpoint {self.name} that comes with vla-bench, {size}, trained on {self.trained_on}"


@functools.cache
def all_shipped() -> tuple[Shipped, ...]:
    """In the manifest's order; empty without a manifest."""
    file = FOLDER / MANIFEST
    if not file.is_file():
        return ()
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return tuple(Shipped(**{**row, "suites": tuple(row["suites"])}) for row in rows)


def find_shipped(policy: str, suite: str, checkpoint: str | None) -> Shipped | None:
    """The one that `--checkpoint shipped:NAME` names, or the default where nothing was given; None where neither is.

    Raises UsageError for a name that none has, or one of another policy.
    """
    if checkpoint is None:
        fitting = (one for one in all_shipped() if one.default and one.policy == policy and suite in one.suites)
        return next(fitting, None)
    if not checkpoint.startswith(PREFIX):
        if any(checkpoint == one.name for one in all_shipped()) and not Path(checkpoint).exists():
            raise UsageError(
                f"There is nothing at {checkpoint}; for the one that comes along say {PREFIX}{checkpoint}."
            )
        return None
    name = checkpoint.removeprefix(PREFIX)
    named = {one.name: one for one in all_shipped()}
    if renamed := next((one.name for one in all_shipped() if one.former_name == name), None):
        raise UsageError(f"{checkpoint} is called {PREFIX}{renamed} now; give that name.")
    if name not in named:
        raise unknown_name("shipped checkpoint", name, named)
    if named[name].policy != policy:
        raise UsageError(f"{checkpoint} is a checkpoint of {named[name].policy!r}, not of {policy!r}.")
    return named[name]


def insist_on_sha256(shipped: Shipped, found: str) -> None:
    """Raises UsageError when the weights are not those that were shipped."""
    if found != shipped.sha256:
        raise UsageError(
            f"The checkpoint {shipped.name} that comes with vla-bench is damaged (SHA-256 {found[:12]}, expected "
            f"{shipped.sha256[:12]}): install vla-bench again."
        )


def note_on(sha256: str) -> str:
    """The line beside the numbers of shipped weights; empty for others."""
    return next((one.note for one in all_shipped() if one.sha256 == sha256), "")


def name_of(sha256: str) -> str:
    """Of shipped weights; empty for others."""
    return next((one.name for one in all_shipped() if one.sha256 == sha256), "")
