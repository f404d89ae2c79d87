"""Runs real-stanford/diffusion_policy on invented weights and writes what it answers; see README.md.

    python make_official.py

needs that repository (commit 5ba07ac) and robomimic 0.2.0 on sys.path, dill, omegaconf, einops and diffusers. The
tests read `CASES` and `observed` from here and never run it.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
weights = runpy.run_path(str(FOLDER / "make_lerobot.py"))["weights"]
ROWS, HISTORY, SIDE = 2, 2, 84
NUMBERS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
SCHEDULER = {
    "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "num_train_timesteps": 100,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
DDIM = {
    **{name: value for name, value in SCHEDULER.items() if name != "variance_type"},
    "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
SHAPES = {
    "obs": {
        "robot0_eef_pos": {"shape": [3]},
        "agentview_image": {"shape": [3, SIDE, SIDE], "type": "rgb"},
        "robot0_eef_quat": {"shape": [4]},
        "robot0_gripper_qpos": {"shape": [2]},
    },
    "action": {"shape": [7]},
}
UNET = {"diffusion_step_embed_dim": 16, "down_dims": [8, 16], "kernel_size": 3, "n_groups": 4}
TRANSFORMER = {"n_layer": 2, "n_cond_layers": 0, "n_head": 2, "n_emb": 16, "p_drop_emb": 0.0, "p_drop_attn": 0.3}
STEPS = {"horizon": 8, "n_action_steps": 4, "n_obs_steps": HISTORY}
HYBRID = {"shape_meta": SHAPES, "crop_shape": [76, 76], "obs_encoder_group_norm": True, "eval_fixed_crop": True}


def low_dim(network: str, target: str, model: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "_target_": f"diffusion_policy.policy.{target}",
        "model": {"_target_": f"diffusion_policy.model.diffusion.{network}", **model},
        "obs_dim": sum(NUMBERS.values()),
        "action_dim": 7,
        **STEPS,
        **options,
    }


CASES: dict[str, dict[str, Any]] = {
    "unet_low_dim": low_dim(
        "conditional_unet1d.ConditionalUnet1D",
        "diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
        {"input_dim": 7, "local_cond_dim": None, "global_cond_dim": 18, "cond_predict_scale": True, **UNET},
        noise_scheduler=DDIM,
        num_inference_steps=10,
        obs_as_local_cond=False,
        obs_as_global_cond=True,
        pred_action_steps_only=False,
        oa_step_convention=True,
    ),
    "transformer_low_dim": low_dim(
        "transformer_for_diffusion.TransformerForDiffusion",
        "diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
        {
            **TRANSFORMER,
            "n_cond_layers": 1,
            "input_dim": 7,
            "output_dim": 7,
            "horizon": 8,
            "n_obs_steps": HISTORY,
            "cond_dim": 9,
            "causal_attn": True,
            "time_as_cond": True,
            "obs_as_cond": True,
        },
        noise_scheduler=SCHEDULER,
        num_inference_steps=100,
        obs_as_cond=True,
        pred_action_steps_only=False,
    ),
    "unet_hybrid": {
        "_target_": "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        **HYBRID,
        **STEPS,
        **UNET,
        "noise_scheduler": SCHEDULER,
        "num_inference_steps": 100,
        "obs_as_global_cond": True,
        "cond_predict_scale": True,
    },
    "transformer_hybrid": {
        "_target_": (
            "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"
        ),
        **HYBRID,
        **STEPS,
        **TRANSFORMER,
        "noise_scheduler": DDIM,
        "num_inference_steps": 10,
        "causal_attn": True,
        "time_as_cond": True,
        "obs_as_cond": True,
    },
}
"""cfg.policy of small models; the first two are saved whole, the others, which have a ResNet18, without weights."""


def config(case: str) -> dict[str, Any]:
    """The whole cfg."""
    return {
        "policy": CASES[case],
        "task": {"name": "lift", "abs_action": False, "obs_keys": list(NUMBERS)},
        "n_latency_steps": 0,
        "training": {"use_ema": True},
        "optimizer": {"betas": [0.95, 0.999], "weight_decay": None},
    }


def observed() -> dict[str, np.ndarray]:
    """uint8 (ROWS, HISTORY, SIDE, SIDE, 3), and float32 numbers by robomimic's names, quaternions of both signs."""
    rng = np.random.default_rng(9)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = rng.uniform(1, 12, (ROWS, HISTORY, 1, 1, 3, 2))
    quat = rng.normal(size=(ROWS, HISTORY, 4))
    quat /= np.linalg.norm(quat, axis=-1, keepdims=True)
    return {
        "agentview_image": (127.5 + 120 * np.sin(x[..., None] * waves[..., 0] + y[..., None] * waves[..., 1])).astype(
            np.uint8
        ),
        "robot0_eef_pos": rng.uniform(-0.5, 0.5, (ROWS, HISTORY, 3)).astype(np.float32),
        "robot0_eef_quat": quat.astype(np.float32),
        "robot0_gripper_qpos": rng.uniform(-0.04, 0.04, (ROWS, HISTORY, 2)).astype(np.float32),
    }


def main() -> None:
    import dill
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    for case in CASES:
        policy = make(case).eval()
        made = {
            name: value if keeps(name) else torch.tensor(weights(once(name), tuple(value.shape)))
            for name, value in policy.state_dict().items()
        }
        policy.load_state_dict(made)
        policy.normalizer.load_state_dict(normaliser(case).state_dict())
        folder = FOLDER / f"official_{case}"
        folder.mkdir(exist_ok=True)
        save_file({"actions": answer(policy, case)}, folder / "answers.safetensors")
        state = policy.state_dict()
        shapes = {name: list(value.shape) for name, value in state.items() if not keeps(name)}
        (folder / "shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
        whole = case.endswith("low_dim")
        kept = state if whole else {name: value for name, value in state.items() if keeps(name)}
        untrained = make(case).state_dict() if whole else {}
        optimizer = torch.optim.AdamW(policy.parameters()).state_dict()
        pickles = {"global_step": 7, "epoch": 1, "_output_dir": "/x"}
        payload = {
            "cfg": OmegaConf.create(config(case)),
            "state_dicts": {"model": untrained, "ema_model": kept, "optimizer": optimizer},
            "pickles": {name: dill.dumps(value) for name, value in pickles.items()},
        }
        with (folder / "latest.ckpt").open("wb") as file:
            torch.save(payload, file, pickle_module=dill)


def once(name: str) -> str:
    """The first of the two names under which an encoder's trunk and pool are in the state dict."""
    return name.replace(".nets.0.nets.", ".backbone.nets.").replace(".nets.1.", ".pool.")


def keeps(name: str) -> bool:
    """Whether that entry of the state dict is not a weight."""
    return "normalizer" in name or name.endswith(("mask", "pos_x", "pos_y", "temperature", "_dummy_variable"))


def make(case: str) -> Any:
    """The upstream policy."""
    import importlib

    def built(options: dict[str, Any]) -> Any:
        module, _, name = options["_target_"].rpartition(".")
        given = {key: value for key, value in options.items() if key != "_target_"}
        return getattr(importlib.import_module(module), name)(**given)

    options = dict(CASES[case])
    options["noise_scheduler"] = built(options["noise_scheduler"])
    if "model" in options:
        options["model"] = built(options["model"])
    return built(options)


def normaliser(case: str) -> Any:
    """Fitted by upstream's own code to invented data."""
    import torch
    from diffusion_policy.model.common.normalizer import LinearNormalizer, SingleFieldLinearNormalizer

    torch.manual_seed(3)
    made = LinearNormalizer()
    made["action"] = SingleFieldLinearNormalizer.create_fit(torch.rand(50, 7) * 1.6 - 0.9)
    if case.endswith("low_dim"):
        made["obs"] = SingleFieldLinearNormalizer.create_fit(torch.rand(50, 9) - 0.4)
        return made
    for name, width in NUMBERS.items():
        made[name] = SingleFieldLinearNormalizer.create_fit(torch.rand(50, width) - 0.4)
    one = {"min": [0.0], "max": [1.0], "mean": [0.5], "std": [0.3]}
    statistics = {name: np.array(value, np.float32) for name, value in one.items()}
    made["agentview_image"] = SingleFieldLinearNormalizer.create_manual(
        np.array([2], np.float32), np.array([-1], np.float32), statistics
    )
    return made


def answer(policy: Any, case: str) -> Any:
    """All predicted actions (ROWS, horizon, 7), un-normalised; row b is sampled alone, its generator seeded with b."""
    import torch

    seen = {name: torch.tensor(value) for name, value in observed().items()}
    seen["agentview_image"] = seen["agentview_image"].permute(0, 1, 4, 2, 3) / 255
    if case.endswith("low_dim"):
        seen = {"obs": torch.cat([seen[name] for name in NUMBERS], dim=-1)}
    rows = []
    for row in range(ROWS):
        policy.kwargs = {"generator": torch.Generator().manual_seed(row)}
        with torch.no_grad():
            one = {name: value[row : row + 1] for name, value in seen.items()}
            rows.append(policy.predict_action(one)["action_pred"])
    return torch.cat(rows)


if __name__ == "__main__":
    main()
