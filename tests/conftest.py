"""What must be settled before any test module is imported: MuJoCo looks for its GL backend once, torch for its threads.

Tests run on all cores at once, one thread each: two threads of torch on a busy core wait for each other.
"""

import argparse
import contextlib
import gc
import os
import re
from collections.abc import Generator

import pytest

from vla_bench.errors import UsageError
from vla_bench.rendering.gl import use_backend
from vla_bench.rendering.simulators import use_numba_cache

os.environ.setdefault("OMP_NUM_THREADS", "1")
with contextlib.suppress(UsageError):  # without one, the tests that need no simulator still run
    use_backend()
    use_numba_cache()  # for tests that import robosuite themselves, and for their child processes


LONG = ("test_envs", "test_envs_truth", "test_oracle", "test_benchmarks", "test_tiny", "test_report", "test_runner")
"""Modules of half a minute and more. They come first, so that no worker begins one while the others are done already:
that is for `--dist loadscope --no-loadscope-reorder`."""


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {f"{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
    if part := config.getoption("part"):
        kept, left_out = divided(items, *part)
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=part_of, metavar="N/M", help="only the N-th of M parts of what is selected")


def part_of(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"--part should be like 2/5, got {text!r}")
    return int(number), int(count)


def divided(items: list[pytest.Item], number: int, count: int) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those in that part and the others; tests of one scene stay together."""
    units = {unit: place % count == number - 1 for place, unit in enumerate(dict.fromkeys(map(unit_of, items)))}
    return [item for item in items if units[unit_of(item)]], [item for item in items if not units[unit_of(item)]]


def unit_of(item: pytest.Item) -> str:
    scene = item.callspec.params.get("made") if hasattr(item, "callspec") else None
    return f"{item.path}[{scene}]" if isinstance(scene, str) else item.nodeid


@pytest.fixture(autouse=True, scope="module")
def _others_objects_are_out_of_the_way() -> None:
    """The runner collects garbage whenever a scene is dropped. What all test modules have imported is none: searched
    anew each time, it made up most of the time of the tests that play many short episodes."""
    gc.collect()
    gc.freeze()


# With CI=true nothing is skipped for want of something that can be installed

IMPOSSIBLE = (
    r"needs a CUDA device",
    r"needs a clone of calvin_env",  # which no package index has
    r"only on (Linux|macOS|Windows)",
    r"needs Python 3\.\d+",
)
"""What a test may be skipped for even then."""


def complaint(reason: str) -> str:
    """What fails a test that was skipped for `reason`; empty where it may be."""
    if os.environ.get("CI") != "true" or any(re.search(pattern, reason) for pattern in IMPOSSIBLE):
        return ""
    missing = re.search(r"could not import '(\w+)", reason)
    what = f"{missing.group(1)} (`make setup` installs what the tests import)" if missing else "what it needs"
    return f"With CI=true no test may be skipped for want of something. Install {what}. It was skipped: {reason}"


def _not_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return
    if said := complaint(report.longrepr[2].removeprefix("Skipped: ")):
        report.outcome, report.longrepr = "failed", said


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _not_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _not_skipped(report)
    return report
