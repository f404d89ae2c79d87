"""A script that closes nothing ends without a word, and a forked process says what is wrong instead of hanging."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from marks import slow

OWNER = """
import os, sys
from vla_bench.envs.gl_contexts import insist_on_own_process, owned

class Context:
    def __init__(self, name):
        self.name = name
    def __del__(self):
        print("deleted", self.name, flush=True)

class Painter:
    pass

def free(context):
    print("freed", context.name, flush=True)

painters = [Painter() for _ in range(3)]
frees = [owned(painter, free, Context(name)) for painter, name in zip(painters, "abc")]
"""
FORKED = """
import gymnasium, os, sys, vla_bench
kept = gymnasium.make("vla_bench/robosuite.Lift-v1")
kept.reset(seed=0)
child = os.fork()
if child == 0:
    try:
        kept.reset(seed=1)
    except vla_bench.errors.UsageError as error:
        assert "context" in str(error)
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    gymnasium.make_vec("vla_bench/robosuite.Lift-v1", num_envs=1, vectorization_mode="async").reset()
except vla_bench.errors.UsageError as error:
    sys.exit(str(error))
"""


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_context_is_freed_once_by_hand_with_its_owner_or_at_the_end(tmp_path: Path) -> None:
    done = python(OWNER + "frees[0](); frees[0](); painters[1] = None; print('end')", tmp_path)
    assert done.stdout.split("\n")[:6] == ["freed a", "deleted a", "freed b", "deleted b", "end", "freed c"]
    assert (done.returncode, done.stderr) == (0, "")


def test_callbacks_registered_before_a_context_was_made_come_after_it_is_freed(tmp_path: Path) -> None:
    first = "import atexit; atexit.register(print, 'display closed')\n"
    said = python(first + OWNER, tmp_path).stdout
    assert said.index("freed c") < said.index("display closed")


def test_a_forked_process_frees_nothing_of_its_parents_and_makes_none(tmp_path: Path) -> None:
    fork = """
if os.fork():
    os.wait()
    os._exit(0)
frees[0]()
del painters, frees
try:
    insist_on_own_process()
except Exception as error:
    print(type(error).__name__, 'vector_kwargs={"context": "spawn"}' in str(error))
"""
    done = python(OWNER + fork, tmp_path)
    assert (done.stdout, done.stderr) == ("UsageError True\n", "")


@pytest.mark.sim
@pytest.mark.parametrize("env", ["robosuite.Lift", slow("calvin_tasks.open_drawer")])
def test_a_gymnasium_script_that_closes_nothing_ends_without_a_word(env: str, tmp_path: Path) -> None:
    done = python(
        f"import gymnasium, vla_bench; e = gymnasium.make('vla_bench/{env}-v1'); e.reset(seed=0); print('done')",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.sim
def test_a_fork_after_a_picture_says_what_to_do_instead_of_hanging(tmp_path: Path) -> None:
    done = python(FORKED, tmp_path)
    assert done.returncode == 1
    assert 'vector_kwargs={"context": "spawn"}' in done.stderr
