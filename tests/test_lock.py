"""`make setup` installs what pyproject.toml asks for: requirements/lock.txt went along when a range was changed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
BY_VERSION_ALONE = "torch"  # its builds for CPU and CUDA come from different indexes, with different hashes
MACHINES = [
    {
        "python_version": version,
        "python_full_version": f"{version}.1",
        "sys_platform": platform,
        "platform_machine": cpu,
    }
    for version in ("3.10", "3.11", "3.12", "3.13")
    for platform, cpu in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def pins(text: str) -> list[Requirement]:
    """The pinned requirements of a requirements file, hashes left out."""
    return [Requirement(line.rstrip("\\ ")) for line in text.splitlines() if re.match(r"[a-z0-9]", line)]


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for, with all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [requirement for line in lines if (requirement := Requirement(line)).name != "vla-bench"]


def applies(requirement: Requirement, machine: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(machine.values()))
def test_every_requirement_is_locked_once_in_a_version_that_is_asked_for(machine: dict[str, str]) -> None:
    locked = [pin for pin in pins(LOCK) if applies(pin, machine)]
    for requirement in wanted():
        if requirement.name == BY_VERSION_ALONE or not applies(requirement, machine):
            continue
        found = [str(pin.specifier).removeprefix("==") for pin in locked if pin.name == requirement.name]
        assert len(found) == 1, requirement
        assert requirement.specifier.contains(found[0]), (requirement, found)


def test_torch_is_pinned_to_a_version_that_is_asked_for() -> None:
    (pin,) = pins((ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8"))
    (asked,) = [requirement for requirement in wanted() if requirement.name == BY_VERSION_ALONE]
    assert asked.specifier.contains(str(pin.specifier).removeprefix("=="))


@pytest.mark.parametrize("name", ["lock.txt", "installer.txt"])
def test_every_locked_file_has_a_hash_and_no_index_is_named(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in block for block in blocks if re.match(r"[a-z0-9]", block))
    assert "://" not in text
    assert "--index" not in text


def test_every_range_has_an_upper_end() -> None:
    """A release of somebody else's must not break an install: ranges end where the tests do."""
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = shipped["optional-dependencies"]
    lines = [
        *shipped["dependencies"],
        *(line for name in ("robosuite", "libero", "vla", "data") for line in extras[name]),
    ]
    for requirement in map(Requirement, lines):
        ends = {specifier.operator for specifier in requirement.specifier} & {"<", "<=", "=="}
        assert ends or requirement.name in ("vla-bench", "packaging"), requirement
