"""The example in docs/add_a_policy.md is the file beside it, and it works."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from vla_bench.errors import UsageError
from vla_bench.inference import check_compatible
from vla_bench.registry import make_policy
from vla_bench.types import Episode, Image, Observation, Suite

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXAMPLE = DOCS / "examples" / "my_policy.py"
SERVER = DOCS / "examples" / "openpi_server.py"
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
    codes = [EXAMPLE.read_text(), SERVER.read_text()]
    assert all(len(code.splitlines()) < 60 for code in codes)
    assert re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) == codes


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


class FakeServer:
    """openpi_client's WebsocketClientPolicy, which answers what it was asked."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, host: str, port: int) -> None:
        self.address = host, port

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        return {"actions": np.full((10, 7), 2.0), "server_timing": {}}


def quartered(picture: Image, height: int, width: int) -> Image:
    return picture[: height // 56, : width // 56]


def test_the_adapter_of_a_server_sends_what_openpi_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        image_tools=SimpleNamespace(resize_with_pad=quartered),
        websocket_client_policy=SimpleNamespace(WebsocketClientPolicy=FakeServer),
    )
    monkeypatch.setitem(sys.modules, "openpi_client", fake)
    monkeypatch.syspath_prepend(str(SERVER.parent))
    libero: Suite = importlib.import_module("vla_bench.envs.libero").suite("libero_spatial")
    policy = make_policy("openpi_server:OpenpiServer", libero, None, ["port=9000", "chunk=10"])
    check_compatible(policy, libero)
    rng = np.random.default_rng(0)
    raw = {camera.name: rng.integers(0, 256, (256, 256, 3), np.uint8) for camera in libero.cameras}
    upright = {name: picture[::-1] for name, picture in raw.items()}
    state = np.arange(8, dtype=np.float32)
    (chunk,) = policy.infer([Observation(upright, state, "pick up the bowl")])
    assert vars(policy)["server"].address == ("127.0.0.1", 9000)
    assert (policy.spec.chunk, policy.spec.execute) == (10, 5)
    np.testing.assert_array_equal(chunk.actions, np.full((10, 7), 2.0, np.float32))  # neither clipped nor turned
    (request,) = FakeServer.asked
    for key, camera in zip(("observation/image", "observation/wrist_image"), libero.cameras, strict=True):
        np.testing.assert_array_equal(request[key], raw[camera.name][::-1, ::-1][:4, :4])
    np.testing.assert_array_equal(request["observation/state"], state)
    assert request["prompt"] == "pick up the bowl"


def test_the_adapter_of_a_server_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpi_client", None)
    monkeypatch.syspath_prepend(str(SERVER.parent))
    libero = importlib.import_module("vla_bench.envs.libero").suite("libero_spatial")
    with pytest.raises(UsageError, match="openpi_client is not installed: pip install"):
        make_policy("openpi_server:OpenpiServer", libero)
