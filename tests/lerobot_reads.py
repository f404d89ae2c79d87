"""Prints what lerobot reads in the data set of that folder, as JSON. Runs in scripts/setup_tests.sh's venv."""

import json
import sys

import torch

# The wheel of torchvision on PyPI misses these two beside a CPU build of torch; lerobot's data sets do not use them.
if "+cpu" in torch.__version__:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import dataset_to_policy_features

loaded = LeRobotDataset("local/toy", root=sys.argv[1])
frame = loaded[3]
told = {
    "episodes": loaded.num_episodes,
    "frames": len(loaded),
    "picture": list(frame["observation.images.eye"].shape),
    "task": frame["task"],
    "action": frame["action"].tolist(),
    "features": list(dataset_to_policy_features(loaded.meta.features)),
}
print(json.dumps(told))
