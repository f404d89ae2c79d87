"""Write towers.safetensors: timm 1.0.31's two towers, shrunken, random weights, and their features of a picture."""

import timm
import torch
from safetensors.torch import save_file

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 16, "img_size": 42, "num_classes": 0, "mlp_ratio": 2}
torch.manual_seed(0)
pixels = torch.randn(2, 3, 42, 42)
written = {"pixels": pixels}
for name in ("vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"):
    tower = timm.create_model(name, pretrained=False, **SMALL).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        (features,) = tower.get_intermediate_layers(pixels, n={len(tower.blocks) - 2})
    written[f"{name}/features"] = features
    written |= {f"{name}/{key.replace('gamma', 'scale_factor')}": tensor for key, tensor in tower.state_dict().items()}
save_file({key: tensor.contiguous() for key, tensor in written.items()}, "towers.safetensors")
