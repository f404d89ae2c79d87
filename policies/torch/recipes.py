"""How each family is trained at its tiny size: what its paper says where that carries over, else what was tuned here.

What is the same for all: AdamW, a gradient of length 1 at most, weights averaged as in Diffusion Policy (power 0.75;
the papers' bounds of 0.9999 and 0.99 are for longer trainings: 0.999 here). Learning rates of the papers are for
billions of pre-trained weights or batches of hundreds; models of about a million weights that begin at random take ten
to fifty times more. Batches and steps are what two CPU cores can do in half an hour. Diffusion Policy and π0 draw four
noise levels per sample, as ReconVLA's denoiser does: encoding the pictures is most of a step, so they cost 17 and 30 %.
"""

from __future__ import annotations

from collections.abc import Mapping

from vla_bench.training.learning import Recipe

RECIPES: Mapping[str, Recipe] = {
    # paper: betas .95/.999, decay 1e-6, warm-up 500, cosine to 0, batch 64, 1e-4; crops of 0.9, no jitter
    "diffusion_policy": Recipe(4000, 32, 1e-3, warmup=400, betas=(0.95, 0.999), weight_decay=1e-6, draws=4),
    # openpi: betas .9/.95, decay 1e-10, warm-up 1000, cosine to a tenth, batch 32, 2.5e-5; crops of 0.95 and jitter
    "pi0": Recipe(6000, 32, 1e-3, warmup=400, final_share=0.1, weight_decay=1e-10, draws=4, jitter=0.2),
    # openvla: 2e-5 at batch 2048, fine-tuned by LoRA at 5e-4 and batch 128; crops of 0.95 (0.9 of the area) and jitter
    "openvla": Recipe(8000, 32, 5e-4, warmup=500, betas=(0.9, 0.999), jitter=0.2),
    # oft: 5e-4, a tenth of it at the end, batch 64; L1 loss. Here less steps: its rows of tokens are longer
    "openvla_oft": Recipe(3000, 32, 1e-3, warmup=200, final_share=0.1, betas=(0.9, 0.999), jitter=0.2),
    # released scripts: decay 0, warm-up 3 %, cosine to 0, batch 512, 2e-5; no crops and no jitter there
    "reconvla": Recipe(3500, 32, 1e-3, warmup=200, betas=(0.9, 0.999), jitter=0.2),
}
CROP = 0.9375
"""Share of the sides that π0, OpenVLA and ReconVLA keep at tiny size: 60 of 64 pixels, 120 of 128."""
