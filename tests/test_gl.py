"""Choosing a back end is cheap and says what to do; trying one survives whatever a driver does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vla_bench.errors import UsageError
from vla_bench.rendering import gl


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends: these libraries are installed, with or without an NVIDIA driver, apt, and root."""

    def pretend(*libraries, nvidia=False, apt=("libosmesa6", "libegl1"), root=True):
        monkeypatch.setattr(gl, "_has_library", lambda name: name in libraries)
        monkeypatch.setattr(gl, "_nvidia_driver", lambda: nvidia)
        monkeypatch.setattr(gl, "_apt_knows", lambda package: apt is not None and package in apt)
        monkeypatch.setattr(gl.shutil, "which", lambda name: None if apt is None else f"/usr/bin/{name}")
        monkeypatch.setattr(gl.os, "geteuid", lambda: 0 if root else 1000)

    return pretend


@pytest.mark.parametrize(
    ("libraries", "nvidia", "expected"),
    [
        (("OSMesa", "EGL"), False, "osmesa"),
        (("EGL",), False, "egl"),
        (("OSMesa", "EGL", "EGL_nvidia"), True, "egl"),
        (("OSMesa", "EGL"), True, "osmesa"),  # a container with the driver but not its graphics libraries
    ],
)
def test_the_back_end_follows_from_what_is_installed(machine, libraries, nvidia, expected):
    machine(*libraries, nvidia=nvidia)
    assert gl.choose_backend({}) == expected
    assert gl.choose_backend({"MUJOCO_GL": ""}) == expected


@pytest.mark.parametrize(
    ("asked", "backend"), [("egl", "egl"), (" OSMesa", "osmesa"), ("glfw", "glfw"), ("glx", "glfw")]
)
def test_the_users_setting_wins(machine, asked, backend):
    machine("OSMesa")
    assert gl.choose_backend({"MUJOCO_GL": asked}) == backend


def test_a_misspelt_setting_suggests_the_near_name():
    with pytest.raises(UsageError, match="Did you mean 'osmesa'"):
        gl.choose_backend({"MUJOCO_GL": "osmessa"})


def test_without_any_library_the_error_is_the_command_to_type(machine):
    machine("GL", "gthread-2.0", root=False)
    with pytest.raises(UsageError, match=r"sudo apt-get update && sudo apt-get install -y libosmesa6$"):
        gl.choose_backend({})


@pytest.mark.parametrize(
    ("libraries", "apt", "command"),
    [
        (("OSMesa", "GL", "gthread-2.0"), ("libosmesa6", "libegl1"), ""),
        (("EGL",), ("libosmesa6", "libegl1"), "apt-get update && apt-get install -y libgl1 libglib2.0-0"),
        (("GL",), ("libegl1",), "apt-get update && apt-get install -y libglib2.0-0 libegl1 libegl-mesa0"),
        (
            ("GL", "gthread-2.0"),
            (),  # a bare container before its first apt-get update
            "apt-get update && (apt-get install -y libosmesa6 || apt-get install -y libegl1 libegl-mesa0)",
        ),
        ((), None, ""),
    ],
)
def test_the_command_installs_exactly_what_is_missing(machine, libraries, apt, command):
    machine(*libraries, apt=apt)
    assert gl.missing_packages_command() == command


def test_without_apt_the_advice_names_the_libraries(machine):
    machine(apt=None)
    assert "libOSMesa.so" in gl.install_advice()
    assert "libEGL.so" in gl.install_advice()


def test_use_backend_sets_what_mujoco_robosuite_and_pyopengl_read(machine, monkeypatch):
    machine("OSMesa")
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")  # MuJoCo refuses a platform that is not the back end's
    assert gl.use_backend() == "osmesa"
    assert (os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"]) == ("osmesa", "osmesa")


def test_use_backend_keeps_robosuite_from_turning_glfw_into_egl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "")
    assert gl.use_backend() == "glfw"
    assert os.environ["MUJOCO_GL"] == "glx"


def test_library_folders_of_the_environment_are_searched(monkeypatch, tmp_path):
    assert not gl._has_library("nonesuch")
    (tmp_path / "libnonesuch.so.3").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere::{tmp_path}")
    assert gl._has_library("nonesuch")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.abort()", "the process died of signal 6"),
        ("import time; time.sleep(60)", "no image after 0.5 s"),
        ("raise SystemExit('driver says no')", "driver says no"),
        ("raise SystemExit(3)", "it failed without a message"),
    ],
)
def test_a_driver_that_crashes_or_hangs_is_reported_not_fatal(monkeypatch, code, error):
    monkeypatch.setattr(gl, "_child_command", lambda *_: [sys.executable, "-c", code])
    result = gl.probe("egl", timeout_s=0.5 if "sleep" in code else 30)
    assert not result.works
    assert result.error == error


def test_a_missing_library_is_named_instead_of_pyopengls_attribute_error(machine, monkeypatch):
    machine()
    answer = '{"backend": "osmesa", "works": false, "error": "AttributeError: glGetError"}'
    monkeypatch.setattr(gl, "_child_command", lambda *_: [sys.executable, "-c", f"print('noise'); print({answer!r})"])
    assert gl.probe("osmesa").error == "libOSMesa.so is not installed"


def test_a_missing_library_is_named_before_the_device_that_was_asked_of_it(machine, monkeypatch):
    machine()
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    answer = '{"backend": "egl", "works": false, "error": "ImportError: Cannot use EGL"}'
    monkeypatch.setattr(gl, "_child_command", lambda *_: [sys.executable, "-c", f"print({answer!r})"])
    assert gl.probe("egl").error == "libEGL.so is not installed"


def test_a_run_says_before_it_starts_that_the_library_is_missing(machine, monkeypatch):
    machine("EGL")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(gl, "_SETTING", "osmesa")
    with pytest.raises(UsageError) as refused:
        gl.insist_on_library()
    said = "Nothing can be rendered with osmesa (MUJOCO_GL is osmesa): libOSMesa.so is not installed. Unset MUJOCO_GL; "
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("environ", "devices", "said"),
    [
        ({}, 1, ""),
        ({"MUJOCO_EGL_DEVICE_ID": "0"}, 1, ""),
        ({"MUJOCO_EGL_DEVICE_ID": "3", "CUDA_VISIBLE_DEVICES": "2,3"}, 4, ""),
        ({"MUJOCO_EGL_DEVICE_ID": "1"}, 1, "'1' and EGL has one device here, number 0: unset it"),
        ({"MUJOCO_EGL_DEVICE_ID": "4"}, 4, "'4' and EGL has 4 devices here, from 0 on: unset it"),
        ({"MUJOCO_EGL_DEVICE_ID": "cuda:0"}, 2, "'cuda:0' and EGL has 2 devices here, from 0 on: unset it"),
        ({"MUJOCO_EGL_DEVICE_ID": "0"}, 0, "'0' and EGL names no device here: unset it"),
        ({"MUJOCO_EGL_DEVICE_ID": ""}, 1, "'' and EGL has one device"),
        ({"MUJOCO_EGL_DEVICE_ID": "-1"}, 1, "'-1' and EGL has one device"),
        (
            {"MUJOCO_EGL_DEVICE_ID": "0", "CUDA_VISIBLE_DEVICES": "1"},
            2,
            "'0', which is none of CUDA_VISIBLE_DEVICES (1)",
        ),
    ],
)
def test_an_egl_device_that_is_not_there_is_named(monkeypatch, environ, devices, said):
    monkeypatch.setattr(gl, "_egl_devices", lambda: devices)
    problem = gl.device_problem(environ)
    assert said in problem
    assert bool(said) == bool(problem)


def test_errors_of_opengl_are_explained_where_the_back_end_does_not_work(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(gl, "probe", lambda backend: gl.GlProbe(backend, False, error="no driver."))
    with pytest.raises(UsageError, match=r"Nothing can be rendered with egl.*: no driver\. "), gl.explained():
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")


def test_errors_of_others_are_left_alone_where_it_works(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(gl, "probe", lambda backend: gl.GlProbe(backend, True))
    with pytest.raises(AttributeError, match="another"), gl.explained():
        raise AttributeError("another")


@pytest.mark.sim
def test_the_devices_of_egl_are_counted_here():
    if gl.choose_backend() == "egl":
        assert gl._egl_devices() >= 1


def test_probing_an_unknown_back_end_is_a_usage_error():
    with pytest.raises(UsageError, match="GL back end 'vulkan'"):
        gl.probe("vulkan")


def test_importing_gl_imports_no_simulator():
    code = "import sys, vla_bench.rendering.gl; sys.exit(bool({'mujoco', 'robosuite', 'OpenGL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_setup_asks_is_answered_without_a_warning():
    setup = (Path(__file__).parent.parent / "scripts" / "setup.sh").read_text()
    (asked,) = re.findall(r'"\$venv/bin/python" (.*vla_bench\.rendering\.gl.*) "\$@"', setup)
    child = subprocess.run(
        [sys.executable, *shlex.split(asked), "packages"], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.sim
def test_the_chosen_back_end_renders_here():
    result = gl.probe(gl.choose_backend())
    assert result.error == ""
    assert result.works
    assert result.renderer
    assert 0 < result.render_ms < 10_000
