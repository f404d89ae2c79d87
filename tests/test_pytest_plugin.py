"""The gate as a pytest fixture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import made_run

from vla_bench.compare.baseline import make_baseline, write_baseline
from vla_bench.compare.regression import check
from vla_bench.config import RunConfig
from vla_bench.runner import run

pytest_plugins = "pytester"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fakes:Walker, five trials of both tasks, and its baseline.

    Checking it imports pandas and scipy before pytester notes which modules there are: it forgets later ones after each
    test, and pyarrow does not bear being imported twice.
    """
    root = tmp_path_factory.mktemp("before")
    out = run(RunConfig("fakes:Walker", "fakes:suite", episodes=5, out=str(root / "run"))).path
    write_baseline(make_baseline(out), root / "walker.jsonl")
    assert check(out, root / "walker.jsonl").passed
    return root


@pytest.fixture
def project(before: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project with that run and its baseline."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # an installed vla-bench would be loaded a second time
    shutil.copytree(before / "run", pytester.path / "before")
    pytester.mkdir("baselines")
    shutil.copy(before / "walker.jsonl", pytester.path / "baselines")
    return pytester


def outcome(project: pytest.Pytester, marker: str) -> pytest.RunResult:
    """What pytest says of a test that asserts the verdict, with this marker's arguments."""
    project.makepyfile(
        f"""
        import pytest

        @pytest.mark.vla_bench({marker})
        def test_policy(vla_bench_verdict):
            assert vla_bench_verdict.passed, vla_bench_verdict.message
        """
    )
    return project.runpytest_inprocess("-p", "vla_bench.pytest_plugin", "--strict-markers")


WALKER = 'policy="fakes:Walker", suite="fakes:suite", baseline="baselines/walker.jsonl"'


def test_an_unchanged_policy_passes(project: pytest.Pytester) -> None:
    outcome(project, f"{WALKER}, episodes=5").assert_outcomes(passed=1)


def test_a_worse_policy_fails_with_the_verdict(project: pytest.Pytester) -> None:
    result = outcome(project, f'{WALKER}, episodes=5, policy_args="speed=0.1"')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Regression: The run lost 10 and gained 0 of 10 episodes of the baseline.*"])


def test_too_little_evidence_does_not_pass(project: pytest.Pytester) -> None:
    result = outcome(project, f"{WALKER}, episodes=5, task=0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Undecided: *has no verdict on 5. A pass takes all of them*"])


def test_a_margin_reaches_the_rule(project: pytest.Pytester) -> None:
    slower = 'episodes=5, policy_args=["speed=0.45"]'
    outcome(project, f"{WALKER}, {slower}, margin=0.01").assert_outcomes(failed=1)
    outcome(project, f"{WALKER}, {slower}, margin=0.9").assert_outcomes(passed=1)


def test_a_run_that_is_there_is_compared(project: pytest.Pytester) -> None:
    outcome(project, 'run="before", baseline="baselines/walker.jsonl"').assert_outcomes(passed=1)
    made_run(project.path / "foreign", {"east": "1"})
    result = outcome(project, 'run="foreign", baseline="baselines/walker.jsonl"')
    result.stdout.fnmatch_lines(["*Not comparable: The protocols differ*"])


def test_the_run_is_left_in_the_tests_directory(project: pytest.Pytester) -> None:
    outcome(project, f"{WALKER}, episodes=5")
    assert list(Path(project.path).parent.rglob("vla_bench_run/episodes.jsonl"))


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('policy="fakes:Walker", suite="fakes:suite"', "needs baseline=PATH"),
        ('policy="fakes:Walker", baseline="baselines/walker.jsonl"', "missing 1 required positional argument: 'suite'"),
        (f"{WALKER}, episods=1", "Unknown argument of @pytest.mark.vla_bench 'episods'. Did you mean 'episodes'"),
        (f"{WALKER}, run='before'", "takes either run= or policy= and suite=, got both"),
        ("'fakes:Walker'", "takes names and values, got 'fakes:Walker' without a name"),
        (f"{WALKER}, episodes=11", "trials 0 to 9, got --first-trial 0 --episodes 11"),
        (WALKER.replace("walker.jsonl", "none.jsonl") + ", episodes=1", "none.jsonl does not exist"),
        (WALKER.replace("fakes:Walker", "fakes:Faulty") + ", episodes=5", "The run stopped: "),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(project: pytest.Pytester, marker: str, said: str) -> None:
    result = outcome(project, marker)
    result.assert_outcomes(errors=1)
    text = result.stdout.str()
    assert said in text
    assert "Traceback" not in text
    assert "pytest_plugin.py" not in text


@pytest.mark.parametrize("how", ["exit 0", "_exit 0", "interrupt", "cancel", "panic"])
def test_a_policy_that_leaves_takes_no_other_test_along(project: pytest.Pytester, how: str) -> None:
    marker = f"{WALKER.replace('fakes:Walker', 'rude:Rude')}, episodes=1, policy_args='how={how}'"
    project.makepyfile(
        f"import pytest\n\n@pytest.mark.vla_bench({marker})\ndef test_policy(vla_bench_verdict): pass\n\n"
        "def test_other(): pass"
    )
    result = project.runpytest_inprocess("-p", "vla_bench.pytest_plugin")
    result.assert_outcomes(errors=1, passed=1)
    assert "The run stopped: The policy 'walker' raised" in result.stdout.str()


def test_without_a_marker_the_fixture_says_what_it_needs(project: pytest.Pytester) -> None:
    project.makepyfile("def test_policy(vla_bench_verdict): pass")
    result = project.runpytest_inprocess("-p", "vla_bench.pytest_plugin")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs @pytest.mark.vla_bench(policy=..., baseline=...)*"])


def test_the_marker_is_known_and_listed(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("-p", "vla_bench.pytest_plugin", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.vla_bench(baseline, policy, suite*"])


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys; import vla_bench.pytest_plugin;"
        "heavy = {'pandas', 'torch', 'mujoco', 'robosuite', 'matplotlib', 'scipy', 'pyarrow'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_names_the_plugin() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nvla_bench = "vla_bench.pytest_plugin"\n' in text
