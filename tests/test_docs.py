"""The example in docs/add_a_policy.md is the file beside it, and it works."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_bench.types import Episode, Image, Observation, Suite

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXAMPLE = DOCS / "examples" / "my_policy.py"
GUIDE = DOCS / "add_a_policy.md"


@pytest.fixture(params=["robosuite", "libero"])
def suite(request: pytest.FixtureRequest) -> Suite:
    module = importlib.import_module(f"vla_bench.envs.{request.param}")
    made: Suite = module.suite("robosuite" if request.param == "robosuite" else "libero_spatial")
    return made


@pytest.fixture
def my_policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    return importlib.import_module("my_policy").MyPolicy


def picture(row: int, column: int) -> Image:
    """(256, 256, 3): a red square of 20 pixels on grey."""
    image = np.full((256, 256, 3), 128, np.uint8)
    image[row : row + 20, column : column + 20] = [200, 20, 20]
    return image


def seen(suite: Suite, image: Image, slot: int = 0) -> Observation:
    state = np.zeros(len(suite.state), np.float32)
    state[2] = 1.0
    return Observation({suite.cameras[0].name: image}, state, suite.tasks[0].instructions[0], slot=slot)


def test_the_guide_shows_the_example_and_it_is_short() -> None:
    code = EXAMPLE.read_text()
    assert len(code.splitlines()) < 50
    assert re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) == [code]


def test_the_guides_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text())
    assert links
    assert all((DOCS / link).exists() for link in links)


def test_the_example_answers_with_legal_chunks(my_policy: Any, suite: Suite) -> None:
    policy = my_policy(suite=suite)
    policy.reset([0, 4], [Episode(suite.name, suite.tasks[0].name, trial, 0) for trial in (0, 1)])
    chunks = policy.infer([seen(suite, picture(10, 20)), seen(suite, picture(200, 100), slot=4)])
    assert policy.spec.action == suite.action
    assert set(policy.spec.cameras) <= set(suite.cameras)
    assert policy.spec.state == suite.state
    assert len(chunks) == 2
    for chunk in chunks:
        assert chunk.actions.shape == (policy.spec.chunk, suite.action.dim)
        assert chunk.actions.dtype == np.float32
        assert np.abs(chunk.actions).max() <= 1.0


def test_the_example_goes_where_the_colour_is_and_the_gain_is_used(my_policy: Any, suite: Suite) -> None:
    (near_right,) = my_policy(suite).infer([seen(suite, picture(180, 150))])
    (far_left,) = my_policy(suite).infer([seen(suite, picture(40, 100))])
    assert (near_right.actions[0, :2] > 0).all()
    assert (far_left.actions[0, :2] < 0).all()
    slow, fast = (my_policy(suite, gain=gain).infer([seen(suite, picture(120, 128))])[0] for gain in (0.5, 1.0))
    np.testing.assert_allclose(2 * slow.actions[:, :3], fast.actions[:, :3], atol=1e-6)
    np.testing.assert_array_equal(near_right.actions[:, -1], -1.0)
