"""Plays LIBERO with whatever openpi's `scripts/serve_policy.py` serves, asked through openpi's own client."""

from collections.abc import Sequence

import numpy as np

from vla_bench.errors import UsageError
from vla_bench.types import ActionChunk, Episode, Observation, PolicySpec, Suite

SIDE = 224  # pixels, as openpi's LIBERO data
REPLANNED = 5  # actions that openpi's examples/libero plays before it asks again


class OpenpiServer:
    def __init__(self, suite: Suite, host: str = "127.0.0.1", port: int = 8000, chunk: int = 10) -> None:
        """`chunk` is the config's action_horizon: 10 for pi05_libero, 50 for pi0_libero."""
        try:
            from openpi_client import image_tools, websocket_client_policy
        except ModuleNotFoundError as error:
            raise UsageError("openpi_client is not installed: pip install packages/openpi-client of openpi.") from error
        self.spec = PolicySpec(
            "openpi_server",
            suite.action,  # LIBERO's, to which openpi's actions go as they come: +1 closes, nothing is clipped
            cameras=suite.cameras[:2],  # third person, then wrist
            state=suite.state,  # hand position, axis-angle, two fingers: what openpi's LIBERO data hold
            chunk=chunk,
            deterministic=False,  # the server draws its noise itself
            execute=min(REPLANNED, chunk),
        )
        self.resize = image_tools.resize_with_pad
        self.server = websocket_client_policy.WebsocketClientPolicy(host, port)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing to forget: chunks are kept by vla-bench, not by the client."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self.asked(observation) for observation in observations]

    def asked(self, observation: Observation) -> ActionChunk:
        # openpi turned LIBERO's raw, upside-down pictures by 180 degrees: the upright ones here, mirrored
        views = [np.ascontiguousarray(observation.images[camera.name][:, ::-1]) for camera in self.spec.cameras]
        image, wrist = (self.resize(view, SIDE, SIDE) for view in views)
        request = {
            "observation/image": image,
            "observation/wrist_image": wrist,
            "observation/state": observation.state,
            "prompt": observation.instruction,
        }
        answer = self.server.infer(request)["actions"]
        return ActionChunk(np.asarray(answer, np.float32)[:, : self.spec.action.dim])
