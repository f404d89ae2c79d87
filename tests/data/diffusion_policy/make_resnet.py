"""Runs torchvision 0.29.1's ResNet18 on invented weights and writes its features; see README.md.

    python make_resnet.py

Beside a CPU build of torch, the wheel of torchvision on PyPI (pip install --no-deps torchvision==0.29.1) misses two
operators that nothing here uses: they are declared before it is imported.
"""

from pathlib import Path

import numpy as np
import torch
from make_lerobot import weights
from safetensors.torch import save_file

operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision.models import resnet18  # noqa: E402

trunk = torch.nn.Sequential(*list(resnet18().children())[:-2]).eval()
trunk.load_state_dict({name: torch.tensor(weights(name, tuple(v.shape))) for name, v in trunk.state_dict().items()})
pictures = torch.tensor(np.random.default_rng(0).uniform(-2, 2, (2, 3, 76, 60)).astype(np.float32))
with torch.no_grad():
    features = trunk(pictures)
save_file({"pictures": pictures, "features": features}, Path(__file__).parent / "resnet18.safetensors")
