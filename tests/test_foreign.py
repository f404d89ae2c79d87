"""What policies, simulators and suites do to the process that they run in: exit codes and rows stay ours."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import numpy as np
import pytest
import rude
from test_watch import watched

from vla_bench.cli import main
from vla_bench.compare.duel import DuelConfig, duel
from vla_bench.config import RunConfig
from vla_bench.doctor import machine as doctor
from vla_bench.errors import Interrupted, UsageError
from vla_bench.gym import make_task
from vla_bench.process.foreign import contained, foreign_code, is_theirs
from vla_bench.runner import run
from vla_bench.store.lock import Lock, take
from vla_bench.store.runs import read_episodes
from vla_bench.types import Suite, Transition

TESTS = Path(__file__).parent
ENDS = (
    "raise",
    "exit 0",
    "exit 1",
    "exit",
    "exit text",
    "_exit 0",
    "_exit 1",
    "cancel",
    "generator",
    "interrupt",
    "panic",
)
SOME = ("exit 0", "_exit 1", "interrupt")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    rude.hurry(monkeypatch)


def config(out: Path, policy: tuple[str, ...] = (), suite: tuple[str, ...] = (), **more: object) -> RunConfig:
    known = {"task": ("east",), "episodes": 2, "out": str(out), **more}
    return RunConfig("rude:Rude", "rude:suite", policy_args=policy, suite_args=suite, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "how"), [*(("infer", how) for how in [*ENDS, "timeout"]), *(("reset", how) for how in SOME)]
)
def test_whatever_a_policy_raises_is_the_policys_failure(where: str, how: str, tmp_path: Path) -> None:
    outcome = run(config(tmp_path / "run", (f"how={how}", f"where={where}")))
    assert outcome.failure.startswith("The policy 'walker' raised ")
    assert f" in {where}" in outcome.failure
    assert not outcome.interrupted
    assert "Traceback" in (tmp_path / "run" / "errors.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", SOME)
def test_whatever_a_policy_raises_within_its_time_is_told_at_once(how: str, tmp_path: Path) -> None:
    outcome = run(config(tmp_path / "run", (f"how={how}",), timeout=60.0))
    assert outcome.failure.startswith("The policy 'walker' raised ")


@pytest.mark.parametrize(
    ("where", "how"),
    [
        *(("advance", how) for how in ENDS),
        *((where, how) for where in ("make_env", "reset_trial", "fingerprint") for how in SOME),
    ],
)
def test_whatever_a_simulator_raises_leaves_an_episode_unjudged(where: str, how: str, tmp_path: Path) -> None:
    outcome = run(config(tmp_path / "run", suite=(f"how={how}", f"where={where}")))
    assert (outcome.judged, outcome.broken, outcome.failure) == (0, 2, "")
    rows = read_episodes(tmp_path / "run")
    assert [(row.success, row.attempts) for row in rows] == [(None, 3), (None, 3)]
    assert all(row.error for row in rows)


@pytest.mark.parametrize("how", SOME)
def test_a_film_or_an_end_that_goes_wrong_takes_no_verdict(how: str, tmp_path: Path) -> None:
    for where in ("film", "close"):
        outcome = run(config(tmp_path / where, suite=(f"how={how}", f"where={where}"), video="all"))
        assert (outcome.judged, bool(outcome.films_lost)) == (2, where == "film")


@pytest.mark.parametrize("how", SOME)
@pytest.mark.parametrize("where", ["make", "suite", "provenance"])
def test_what_cannot_be_made_is_a_sentence(how: str, where: str, tmp_path: Path) -> None:
    given = (f"how={how}", f"where={where}")
    asked = config(tmp_path / "run", given) if where == "make" else config(tmp_path / "run", suite=given)
    with pytest.raises(UsageError, match=r"rude\.py, line"):
        run(asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["exit 0", "interrupt"])
def test_a_policy_that_fails_ends_a_duel(how: str, tmp_path: Path) -> None:
    ended = duel(
        DuelConfig("fakes:Walker", "rude:Rude", "rude:suite", policy_args_b=(f"how={how}",), out=str(tmp_path))
    )
    assert (ended.interrupted, "raised" in ended.failure) == (False, True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["_exit 0", "interrupt"])
def test_with_workers_it_is_the_same(how: str, tmp_path: Path) -> None:
    outcome = run(config(tmp_path / "policy", (f"how={how}",), workers="2"))
    assert "raised" in outcome.failure
    outcome = run(config(tmp_path / "suite", suite=(f"how={how}",), workers="2"))
    assert (outcome.judged, outcome.broken) == (0, 2)


def test_results_are_all_that_standard_output_gets(tmp_path: Path) -> None:
    """The simulator prints, the policy closes everything."""
    asked = ["run", "--policy", "rude:Rude", "--policy-args", "how=close", "--suite", "rude:suite", "--suite-args"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vla_bench.cli",
            *asked,
            "how=print",
            "--episodes",
            "1",
            "--json",
            "--out",
            tmp_path / "r",
        ],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        check=False,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["overall"]["episodes"] == 2
    for said in ("in Python", "to an early copy", "below Python", "in a child"):
        assert f"{said}\n" in done.stderr


@pytest.mark.parametrize("how", ["thread", "exec"])
def test_a_process_that_is_ended_or_replaced_without_a_word_has_failed(how: str, tmp_path: Path) -> None:
    asked = ["run", "--policy", "rude:Rude", "--policy-args", f"how={how}", "--suite", "rude:suite", "--episodes", "1"]
    ended = watched(lambda: main([*asked, "--out", str(tmp_path / "run")]))
    assert ended.code == 4
    assert "The process ended itself with exit code 0 in infer of the policy 'walker'; 0 of 2 episodes" in ended.said


@pytest.mark.parametrize("place", ["policy", "suite"])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_process_that_foreign_code_forks_is_not_the_engine(
    place: str, timeout: float | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {place: ("how=fork",)}
    outcome = run(config(tmp_path / "run", timeout=timeout, **given))
    assert (outcome.judged, outcome.broken, outcome.failure) == (2, 0, "")
    assert len((tmp_path / "run" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert "from the child" in capfd.readouterr().out


KILLED = """
import os, signal, sys
from pathlib import Path
from vla_bench.store.lock import take

lock = take(Path(sys.argv[1]))
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_outlives_a_killed_run_does_not_hold_its_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE) as killed:
        assert killed.wait() == -signal.SIGKILL
        until_taken(tmp_path).release()  # while the child still waits


def until_taken(path: Path) -> Lock:
    """The lock, as soon as the child has come to let go of it, which it does first of all."""
    for _ in range(100):
        with contextlib.suppress(UsageError):
            return take(path)
        time.sleep(0.1)
    return take(path)


@pytest.mark.parametrize(
    ("where", "said"), [("save", "in save of the policy"), ("make", "could not be made: the process")]
)
def test_a_crash_is_nobodys_verdict(where: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1", encoding="utf-8")
    asked = [
        "convert",
        "--policy",
        "rude:Pupil",
        "--policy-args",
        "how=abort",
        f"where={where}",
        "--suite",
        "rude:suite",
    ]
    ended = watched(lambda: main([*asked, "--checkpoint", str(tmp_path / "weights"), "--out", str(tmp_path / "new")]))
    assert ended.code == 4
    assert "crashed in compiled code (SIGABRT)" in ended.said
    assert said in ended.said


def test_ctrl_c_that_foreign_code_swallows_is_raised_where_it_ends() -> None:
    with contained():
        with pytest.raises(Interrupted), foreign_code():
            rude.swallow()
        with foreign_code():  # and once only
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_whose_a_keyboard_interrupt_is() -> None:
    assert not is_theirs(KeyboardInterrupt()), "outside nobody knows"
    with contained():
        assert is_theirs(KeyboardInterrupt())
        assert not is_theirs(Interrupted())
        assert is_theirs(SystemExit(0))
        assert not is_theirs(UsageError("a sentence of ours"))


STRANGE = {
    "steps": np.int64(2),
    "success": np.bool_(True),
    "subgoals_done": np.float32(1),
    "subgoals": [np.str_("open")],
    "physics_s": np.float32(0.1),
}


def strange(name: str = "strange", physics_s: float = 0.1, print: int = 0) -> Suite:
    """A suite that answers in numpy's types, as many do, and fingerprints with a number if `print` says so."""

    class Strange(fakes.ToyEnv):
        def advance(self, actions: np.ndarray) -> Transition:
            return super().advance(actions[:2])._replace(**{**STRANGE, "physics_s": physics_s})

        def fingerprint(self) -> str:
            return print or super().fingerprint()  # type: ignore[return-value]

    return dataclasses.replace(fakes.suite("strange"), make_env=lambda task, cameras: Strange(task, cameras, None, ""))


@pytest.mark.parametrize(
    ("given", "error"),
    [((), ""), (("physics_s=nan",), "ValueError"), (("physics_s=inf",), "ValueError"), (("print=3",), "TypeError")],
)
def test_what_no_row_can_hold_breaks_an_episode_and_no_run(given: tuple[str, ...], error: str, tmp_path: Path) -> None:
    asked = RunConfig("fakes:Walker", "test_foreign:strange", suite_args=given, task=("east",), episodes=1)
    outcome = run(dataclasses.replace(asked, out=str(tmp_path / "run")))
    assert (outcome.judged, outcome.failure) == (int(not error), "")
    assert [row.error for row in read_episodes(tmp_path / "run")] == [error]


@pytest.mark.parametrize("how", SOME)
def test_a_gymnasium_environment_that_cannot_be_made_is_a_sentence(how: str) -> None:
    with pytest.raises(UsageError, match="could not be made"):
        make_task("rude:suite", "east", how=how, where="suite")


NAMES = ("pickle", "socket", "tempfile", "numpy", "json", "signal", "threading", "vla_bench", "typing", "queue", "tqdm")


def test_modules_in_the_working_folder_are_run_by_nobody_who_was_not_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n", encoding="utf-8"
        )
    (tmp_path / "walks.py").write_text("from fakes import Walker as Walks\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "/json/__init__.py" in doctor._python_child("import json; print(json.__file__)", 60).stdout
    asked = RunConfig("walks:Walks", "fakes:suite", task=("east",), episodes=2, workers="2", out="run")
    assert run(asked).judged == 2
    assert not (tmp_path / "ran").exists()
    assert "PYTHONSAFEPATH" not in os.environ
