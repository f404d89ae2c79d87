"""What the test set-up promises: with CI=true nothing is skipped for want of something that can be installed."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from marks import slow

pytest_plugins = "pytester"

TESTS = """
import pytest

{}

def test_missing_module(): pytest.importorskip("no_such_module")

@pytest.mark.skipif(True, reason="needs a browser")
def test_missing_program(): ...

@pytest.fixture
def browser(): pytest.skip("no browser here")

def test_missing_in_a_fixture(browser): ...

@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_of_other_hardware(): ...

@pytest.mark.xfail
def test_known_to_fail(): assert False

def test_sound(): ...
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # an installed vla-bench would be loaded a second time
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path)
    return pytester


def outcomes(project: pytest.Pytester, module_level: str = "") -> tuple[dict[str, int], str]:
    project.makepyfile(TESTS.format(module_level))
    result = project.runpytest_subprocess("-p", "no:cacheprovider")
    return result.parseoutcomes(), result.stdout.str()


@pytest.mark.parametrize("count", [slow(1), 3])
def test_parts_hold_every_test_once_and_those_of_one_scene_together(project: pytest.Pytester, count: int) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.fixture(params=["x", "y"])
        def made(request): return request.param

        def test_a(made): ...

        def test_b(made): ...

        @pytest.mark.parametrize("n", range(5))
        def test_c(n): ...
        """
    )
    parts = []
    for number in range(1, count + 1):
        result = project.runpytest_subprocess("--collect-only", "-q", f"--part={number}/{count}")
        parts.append([line.partition("::")[2] for line in result.outlines if "::" in line])
    assert sorted(itertools.chain(*parts)) == sorted(
        [f"test_{test}[{scene}]" for test in "ab" for scene in "xy"] + [f"test_c[{n}]" for n in range(5)]
    )
    assert all(("test_a[x]" in part) == ("test_b[x]" in part) for part in parts)
    assert all(parts)


@pytest.mark.parametrize("wrong", [slow("0/3"), "4/3", slow("3"), slow("a/b")])
def test_a_part_that_is_none_is_a_usage_error(project: pytest.Pytester, wrong: str) -> None:
    result = project.runpytest_subprocess(f"--part={wrong}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--part should be like 2/5" in result.stderr.str()


def test_with_ci_only_what_cannot_be_had_is_skipped(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    counts, said = outcomes(project)
    assert counts == {"failed": 1, "errors": 2, "skipped": 1, "xfailed": 1, "passed": 1}
    assert "Install no_such_module" in said
    assert "needs a browser" in said
    assert "no browser here" in said


def test_with_ci_a_module_that_skips_itself_fails(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    counts, said = outcomes(project, 'pytest.importorskip("another_module")')
    assert counts == {"errors": 1}
    assert "Install another_module" in said


@pytest.mark.parametrize("ci", ["", "false"])
def test_elsewhere_they_are_skipped(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    monkeypatch.setenv("CI", ci)
    assert outcomes(project)[0] == {"skipped": 4, "xfailed": 1, "passed": 1}
