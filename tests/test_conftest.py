"""What the test set-up promises: with CI=true nothing is skipped for want of something that can be installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
