"""A policy's gate as a pytest test: the marker `vla_bench` says what to run, the fixture `vla_bench_verdict` ran it.

    @pytest.mark.vla_bench(
        policy="my_package:Policy", suite="libero_10", episodes=10, baseline="baselines/long.jsonl", margin=0.1
    )
    def test_policy(vla_bench_verdict):
        assert vla_bench_verdict.passed, vla_bench_verdict.message

Every field of `RunConfig` may be given, and `margin`, `alpha`, `max_latency_ratio`, `undecided` and
`strict_renderer` of `vla-bench check`. A changed policy can pass only if the margin is wide enough for the number of
episodes: 50 can exclude a loss of 5.2 points at best, 20 one of 12; an undecided verdict says how many more would
decide. With `run="results/NAME"` nothing is played: that run is held against the baseline. Paths are relative to
pytest's rootdir; a new run goes to the test's tmp_path. Nothing heavy is imported before a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vla_bench.compare.regression import Gate

MARKER = "vla_bench"
GATE = ("margin", "alpha", "max_latency_ratio", "undecided", "strict_renderer")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(baseline, policy, suite, episodes, task, margin, ..., run): what vla_bench_verdict plays and checks",
    )


@pytest.fixture
def vla_bench_verdict(request: pytest.FixtureRequest, tmp_path: Path) -> Gate:
    """The verdict on the test's policy: `passed`, `message`, and all that `vla-bench check` knows."""
    from vla_bench.errors import UsageError
    from vla_bench.secrets import hidden
    from vla_bench.text import for_terminal

    marker = request.node.get_closest_marker(MARKER)
    try:
        if marker is None:
            raise UsageError(f"The fixture vla_bench_verdict needs @pytest.mark.{MARKER}(policy=..., baseline=...).")
        if marker.args:
            raise UsageError(f"@pytest.mark.{MARKER} takes names and values, got {marker.args[0]!r} without a name.")
        return verdict(marker.kwargs, request.config.rootpath, tmp_path / "vla_bench_run")
    except UsageError as error:
        pytest.fail(for_terminal(hidden(str(error))), pytrace=False)


def verdict(asked: Mapping[str, Any], root: Path, out: Path) -> Gate:
    """Plays what is asked for into `out`, or takes the run it names, and checks that. Raises UsageError."""
    from vla_bench.compare.regression import check
    from vla_bench.errors import UsageError

    _refuse_unknown(asked)
    if "baseline" not in asked:
        raise UsageError(f"@pytest.mark.{MARKER} needs baseline=PATH; write one with vla-bench check RUN --update.")
    limits = {name: asked[name] for name in GATE if name in asked}
    rest = {name: value for name, value in asked.items() if name not in (*GATE, "baseline", "run")}
    run = root / asked["run"] if "run" in asked else _played(rest, out)
    return check(run, root / asked["baseline"], **limits)


def _played(asked: Mapping[str, Any], out: Path) -> Path:
    """The directory of the run just made. Raises UsageError, also when the policy or the simulator failed."""
    from vla_bench.config import RunConfig
    from vla_bench.errors import UsageError
    from vla_bench.runner import run

    lists = {name: _listed(asked[name]) for name in ("task", "policy_args", "suite_args") if name in asked}
    try:
        config = RunConfig(**{"out": str(out), **asked, **lists})
    except TypeError as error:
        raise UsageError(f"@pytest.mark.{MARKER}: {str(error).replace('RunConfig.__init__() ', '')}.") from None
    outcome = run(config)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.failure:
        raise UsageError(f"The run stopped: {outcome.failure}")
    return outcome.path


def _listed(value: object) -> tuple[str, ...]:
    """A single task or argument, or several."""
    return (str(value),) if isinstance(value, str | int) else tuple(map(str, value))  # type: ignore[call-overload]


def _refuse_unknown(asked: Mapping[str, Any]) -> None:
    from dataclasses import fields

    from vla_bench.config import RunConfig
    from vla_bench.errors import UsageError, unknown_name

    known = {field.name for field in fields(RunConfig)} - {"json"} | {*GATE, "baseline", "run"}
    if unknown := sorted(set(asked) - known):
        raise unknown_name(f"argument of @pytest.mark.{MARKER}", unknown[0], known)
    if "run" in asked and {"policy", "suite"} & set(asked):
        raise UsageError(f"@pytest.mark.{MARKER} takes either run= or policy= and suite=, got both.")
