"""Runs lerobot 0.4.4's DiffusionPolicy on invented weights and writes what it answers; see README.md.

    python make_lerobot.py

needs lerobot 0.4.4 with its diffusion dependencies. The tests read `weights` and `observed` from here and never run it.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
ROWS, HISTORY, SIDE, STATE, ACTION = 2, 2, 64, 8, 7
CAMERAS = ("observation.images.image", "observation.images.image2")
CASES = {
    "group_shared": {"crop_shape": (56, 52), "n_action_steps": 8},
    "batch_separate": {
        "resize_shape": (48, 40),
        "crop_ratio": 0.9,
        "use_group_norm": False,
        "use_separate_rgb_encoder_per_camera": True,
        "use_film_scale_modulation": False,
        "n_action_steps": 8,
    },
}
WEIGHT_VARIANCE = 3.0  # of a weight times its fan-in
STILL = 0.04  # the last number of the state, always
SMALL = {"down_dims": (32, 64), "diffusion_step_embed_dim": 32, "spatial_softmax_num_keypoints": 8}


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers of that shape from the name alone, of a size that keeps activations near one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.uniform(-1, 1, shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) > 1:
        return (drawn * np.sqrt(WEIGHT_VARIANCE / np.prod(shape[1:]))).astype(np.float32)
    near_one = name.endswith(("running_var", "weight"))
    return (near_one + 0.3 * drawn).astype(np.float32)


def observed() -> dict[str, np.ndarray]:
    """uint8 (ROWS, HISTORY, SIDE, SIDE, 3) per camera, smooth so that resizing keeps something, and float32 states."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = rng.uniform(1, 12, (len(CAMERAS), ROWS, HISTORY, 1, 1, 3, 2))
    turned = np.sin(x[..., None] * waves[..., 0] + y[..., None] * waves[..., 1])
    pictures = (127.5 + 120 * turned).astype(np.uint8)
    state = rng.uniform(-1, 1, (ROWS, HISTORY, STATE)).astype(np.float32)
    state[..., -1] = STILL
    return {**dict(zip(CAMERAS, pictures, strict=True)), "observation.state": state}


def statistics() -> dict[str, dict[str, np.ndarray]]:
    """What a data set would say; the last number of the state never moves."""
    rng = np.random.default_rng(8)
    low = {"observation.state": rng.uniform(-2, -1, STATE), "action": rng.uniform(-2, -1, ACTION)}
    high = {name: -value * 0.7 for name, value in low.items()}
    high["observation.state"][-1] = low["observation.state"][-1] = STILL
    numbers = {
        name: {"min": low[name], "max": high[name], "mean": (low[name] + high[name]) / 2, "std": high[name]}
        for name in low
    }
    colour = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "min": [0.0] * 3, "max": [1.0] * 3}
    pictures = {name: np.array(value).reshape(3, 1, 1) for name, value in colour.items()}
    every = {**numbers, **dict.fromkeys(CAMERAS, pictures)}
    return {key: {name: value.astype(np.float32) for name, value in stats.items()} for key, stats in every.items()}


def main() -> None:
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
    from safetensors.torch import save_file

    inputs = {name: PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)) for name in CAMERAS}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE,))
    stats = {key: {name: torch.tensor(v) for name, v in values.items()} for key, values in statistics().items()}
    for case, options in CASES.items():
        outputs = {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}
        config = DiffusionConfig(input_features=inputs, output_features=outputs, device="cpu", **SMALL, **options)
        policy = DiffusionPolicy(config).eval()
        state = policy.state_dict()
        kept = {name: value for name, value in state.items() if name.endswith("pos_grid")}
        made = {name: torch.tensor(weights(name, tuple(v.shape))) for name, v in state.items() if name not in kept}
        policy.load_state_dict({**made, **kept})
        folder = FOLDER / f"lerobot_{case}"
        folder.mkdir(exist_ok=True)
        config._save_pretrained(folder)
        before, after = make_diffusion_pre_post_processors(config, stats)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        shapes = {name: list(value.shape) for name, value in made.items()}
        (folder / "shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
        with torch.no_grad():
            answers = {name: answer(policy, before, after, name) for name in ("DDIM", "DDPM")}
            answers["features"] = torch.cat([features(policy, before, row) for row in range(ROWS)])
            answers["noise"] = torch.randn(ROWS, config.horizon, ACTION, generator=torch.Generator().manual_seed(5))
            answers["predicted"] = policy.diffusion.unet(answers["noise"], torch.tensor([3, 70]), answers["features"])
            answers = {name: value.contiguous() for name, value in answers.items()}
        save_file({**kept, **answers}, folder / "answers.safetensors")


def answer(policy, before, after, scheduler: str):
    """Un-normalised actions (ROWS, horizon, ACTION): DDIM with 10 steps or DDPM with all 100.

    Row b is sampled alone, all its noise from a generator seeded with b.
    """
    import torch
    from lerobot.policies.diffusion.modeling_diffusion import _make_noise_scheduler

    model, config = policy.diffusion, policy.config
    model.noise_scheduler = _make_noise_scheduler(
        scheduler, beta_schedule=config.beta_schedule, num_train_timesteps=100
    )
    model.num_inference_steps = 10 if scheduler == "DDIM" else 100
    rows = []
    for row in range(ROWS):
        generator = torch.Generator().manual_seed(row)
        noise = torch.randn(config.horizon, ACTION, generator=generator)[None]
        sampled = model.conditional_sample(1, features(policy, before, row), generator, noise)
        rows.append(after(sampled[0]))
    return torch.stack(rows)


def features(policy, before, row: int):
    """What the network is conditioned on, (1, HISTORY * features)."""
    import torch

    steps = []
    for step in range(HISTORY):
        one = {name: torch.tensor(value[row, step]) for name, value in observed().items()}
        for camera in CAMERAS:
            one[camera] = one[camera].permute(2, 0, 1) / 255
        steps.append(before(one))
    batch = {name: torch.stack([step[name] for step in steps], 1) for name in observed()}
    batch["observation.images"] = torch.stack([batch[camera] for camera in CAMERAS], dim=-4)
    return policy.diffusion._prepare_global_conditioning(batch)


if __name__ == "__main__":
    main()
