"""ReconVLA as one module, from a picture and token ids to action tokens, at any size.

SigLIP's patch features, projected, stand in the middle of a Qwen2 prompt; the answer is action tokens. While training,
a denoiser must rebuild a picture that shows the gaze region from what the language model made of the patches, which
draws its attention there (arXiv 2508.10333). Names and shapes of the parameters are those of the released checkpoint.

The picture to rebuild is given as latents of `LatentSizes`: those of FLUX.1's autoencoder at official sizes, or the
pixels of each patch themselves (no autoencoder at all) for models that are trained here from nothing. Both have one
vector per patch of the vision tower and turn back into a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from vla_bench.errors import MissingPackage, UsageError

from ..torch.stem import Stem, put_stem
from .denoiser import DenoiserSizes, ReconDenoiser
from .language import Decoding, LanguageSizes, Memory, Qwen2, Turn, normal

_PATCHIFY = 2
"""FLUX's latents are folded two by two, so that they have the vision tower's grid."""
FLUX_SHIFT, FLUX_SCALE = 0.1159, 0.3611
"""Of FLUX.1's latents: (z - shift) * scale."""


@dataclass(frozen=True)
class VisionSizes:
    """Of SigLIP; the defaults are so400m/14-384's, whose last layer is not used."""

    side: int = 384
    patch: int = 14
    width: int = 1152
    depth: int = 27
    heads: int = 16
    mlp: int = 4304
    select: int = -2
    """Which hidden state is read: -1 is after the last layer."""
    stem: Stem = "patch"
    """What makes tokens of pixels."""

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.side // self.patch

    @property
    def layers_run(self) -> int:
        return self.depth + 1 + self.select


@dataclass(frozen=True)
class LatentSizes:
    """What stands for the picture to rebuild."""

    autoencoder: tuple[int, ...] = (128, 256, 512, 512)
    """Channels per level of FLUX's autoencoder, each level but the last halving the picture; empty: plain pixels."""
    layers: int = 2
    """Of the autoencoder, per level."""
    channels: int = 16
    """Of the autoencoder's latents."""
    patch: int = 4
    """Pixels per side of a patch, where there is no autoencoder."""

    @property
    def per_token(self) -> int:
        """Numbers per patch of the vision tower."""
        return self.channels * _PATCHIFY**2 if self.autoencoder else 3 * self.patch**2

    @property
    def pixels(self) -> int:
        """Side of a patch in the picture to rebuild."""
        return 2 ** (len(self.autoencoder) - 1) * _PATCHIFY if self.autoencoder else self.patch


@dataclass(frozen=True)
class HeadSizes:
    """Of the reconstruction head."""

    depth: int = 3
    width: int = 1024
    heads: int = 16
    latents: LatentSizes = LatentSizes()


@dataclass(frozen=True)
class ReconSizes:
    """Of the whole; the defaults are the released model's. No head: the model can act and nothing else."""

    vision: VisionSizes = VisionSizes()
    language: LanguageSizes = field(default_factory=LanguageSizes)
    head: HeadSizes | None = HeadSizes()


Step = Callable[[Tensor, Turn, Tensor, Tensor, Memory], tuple[Tensor, Tensor]]


class Prompt(NamedTuple):
    """Token ids before and after the picture."""

    before: Sequence[int]
    after: Sequence[int]


class Losses(NamedTuple):
    """Scalars. `reconstruction` is None when there was nothing to rebuild."""

    action: Tensor
    reconstruction: Tensor | None


class Prefilled(NamedTuple):
    """Prompts that were read."""

    logits: Tensor
    """(B, vocabulary) of the first token to come."""
    plan: Decoding
    starts: Tensor
    """int64 (B,): where in the sequence the patches start."""


class Decoded(NamedTuple):
    ids: Tensor
    """int64 (B, count)."""
    logits: Tensor
    """(B, count), of the ids; where there is no number, NaN was held for the largest."""
    attention: Tensor | None
    """float32 (B, g, g), each summing to 1."""


class _Holder(nn.Module):
    """SigLIP inside as many names as it has in the released checkpoint."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            image_size=sizes.side,
            patch_size=sizes.patch,
            vision_use_head=False,
        )
        model: Any = SiglipVisionModel(config)
        put_stem(model.embeddings, "patch_embedding", sizes.stem, sizes.width, sizes.patch)
        self.vision_model = model


class VisionTower(nn.Module):
    """Pixels (B, 3, side, side) in [-1, 1] -> one vector per patch (B, grid * grid, width), rows first."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.layers_run = sizes.layers_run
        self.vision_tower = _Holder(sizes)

    def forward(self, pixels: Tensor) -> Tensor:
        siglip = self.vision_tower.vision_model
        features: Tensor = siglip.embeddings(pixels)
        for layer in siglip.encoder.layers[: self.layers_run]:
            features = layer(features, None)
        return features


class PixelDecoder(nn.Module):
    """FLUX's autoencoder, frozen."""

    def __init__(self, sizes: LatentSizes) -> None:
        super().__init__()
        try:
            from diffusers import AutoencoderKL
        except ModuleNotFoundError:
            raise MissingPackage("diffusers", "vla") from None
        levels, build = len(sizes.autoencoder), cast(Any, AutoencoderKL)
        self.pixel_decoder = build(
            block_out_channels=sizes.autoencoder,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=sizes.layers,
            latent_channels=sizes.channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).requires_grad_(False)

    def encode(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """Latents drawn from what the encoder answers, a mean and a deviation, as the released training does."""
        drawn: Tensor = self.pixel_decoder.encode(picture).latent_dist.sample(generator)
        return (drawn - FLUX_SHIFT) * FLUX_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        picture: Tensor = self.pixel_decoder.decode(latents / FLUX_SCALE + FLUX_SHIFT).sample
        return picture


class Body(Qwen2):
    """The released checkpoint's `model`: Qwen2 with everything else hung into it."""

    mm_inv_projector: ReconDenoiser
    pixel_decoder: PixelDecoder

    def __init__(self, sizes: ReconSizes) -> None:
        super().__init__(sizes.language)
        width, head = sizes.language.width, sizes.head
        self.vision_tower = VisionTower(sizes.vision)
        self.mm_projector = nn.Sequential(
            nn.Linear(sizes.vision.width, width), nn.GELU(), nn.Linear(width, width)
        ).apply(normal)
        if head is not None:
            self.mm_inv_projector = ReconDenoiser(
                DenoiserSizes(head.depth, head.width, head.heads, head.latents.per_token, width, sizes.vision.grid)
            )
        if head is not None and head.latents.autoencoder:
            self.pixel_decoder = PixelDecoder(head.latents)


class ReconModel(nn.Module):
    """Pictures and prompts in, action tokens or losses out.

    Pictures are (B, 3, side, side) in [-1, 1], which is SigLIP's own normalisation.
    """

    def __init__(self, sizes: ReconSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.lm_head = nn.Linear(sizes.language.width, sizes.language.vocabulary, bias=False).apply(normal)
        self.model = Body(sizes)  # its head comes last of all: a seed draws the same weights with and without it

    def leave_meta(self) -> None:
        """Make what no checkpoint holds, after weights were given to a model built on the meta device."""
        for module in self.modules():
            if isinstance(module, SiglipVisionEmbeddings):
                module.position_ids = nn.Buffer(torch.arange(module.num_positions)[None], persistent=False)

    # Acting

    def look(self, pictures: Tensor) -> Tensor:
        """Embeddings of the patches (B, g*g, width)."""
        patches: Tensor = self.model.mm_projector(self.model.vision_tower(pictures))
        return patches

    def prefill(self, patches: Tensor, prompts: Sequence[Prompt], count: int) -> Prefilled:
        """What decoding `count` tokens after the prompts needs."""
        embeds, valid, starts = self._sequence(patches, prompts)
        states, plan = self.model.prefill(embeds, valid, count)
        return Prefilled(self.lm_head(states[:, -1]), plan, starts)

    def step(self, ids: Tensor, turn: Turn, mask: Tensor, place: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The next token's logits (B, vocabulary) after `ids` (B,), and the queries as `Qwen2.step` gives them."""
        embeds = F.embedding(ids[:, None], self.model.embed_tokens.weight)
        states, asked = self.model.step(embeds, turn, mask, place, memory)
        return F.linear(states[:, 0], self.lm_head.weight), asked

    def decode(self, start: Prefilled, attention: bool = False, step: Step | None = None) -> Decoded:
        """The likeliest token, again and again. `step` may be a compiled form of `self.step`.

        With `attention` the last token is fed back too: the map is the mean over all decoded tokens, layers and heads
        of how much they look at each patch, divided by what they look at the picture in all.
        """
        step, plan = step or self.step, start.plan
        ids, queries = [start.logits.argmax(-1)], []
        chosen = [start.logits.gather(1, ids[0][:, None])]
        for turn, mask, place in zip(plan.turns, plan.masks, plan.places, strict=True):
            if len(ids) == len(plan.turns) and not attention:
                break
            logits, asked = step(ids[-1], turn, mask, place, plan.memory)
            ids.append(logits.argmax(-1))
            chosen.append(logits.gather(1, ids[-1][:, None]))
            queries.append(asked.clone() if attention else asked)
        decoded = torch.stack(ids[: len(plan.turns)], 1)
        return Decoded(
            decoded, torch.cat(chosen[: len(plan.turns)], 1), self._seen(queries, start) if attention else None
        )

    def _seen(self, queries: Sequence[Tensor], start: Prefilled) -> Tensor:
        """float32 (B, g, g)."""
        asked = torch.stack(list(queries)).float()  # (T, layers, B, kv heads, group, head width)
        keys = torch.stack([cache.keys for cache in start.plan.memory.caches]).float()
        scores = torch.einsum("tlbkgh,lbkch->tlbkgc", asked, keys) * asked.shape[-1] ** -0.5
        masks = torch.stack(list(start.plan.masks)).float()  # (T, B, 1, 1, tokens)
        weights = (scores + masks[:, None]).softmax(-1).mean((0, 1, 3, 4))
        patches = torch.gather(weights, 1, self._places(start.starts))
        grid = self.sizes.vision.grid
        return (patches / patches.sum(1, keepdim=True)).view(-1, grid, grid)

    # Learning

    def losses(
        self,
        pictures: Tensor,
        prompts: Sequence[Prompt],
        answers: Tensor,
        gazes: Tensor | None,
        generator: torch.Generator,
    ) -> Losses:
        """Mean cross-entropy of the `answers` (B, n) ids, and how badly the pictures `gazes` are rebuilt, if given."""
        if gazes is not None:
            self._need_head()
        embeds, valid, starts = self._sequence(self.look(pictures), prompts, answers)
        states = self.model(embeds, valid)
        logits = self.lm_head(states[:, -answers.shape[1] - 1 : -1])
        action = F.cross_entropy(logits.float().flatten(0, 1), answers.flatten())
        if gazes is None:
            return Losses(action, None)
        seen = self._at_patches(states, starts)
        return Losses(action, self.model.mm_inv_projector.loss(self.latents(gazes, generator), seen, generator))

    def reconstruct(self, pictures: Tensor, prompts: Sequence[Prompt], generator: torch.Generator) -> Tensor:
        """The picture that the head believes in: (B, 3, s, s), about [-1, 1].

        Takes a thousand steps of the denoiser.
        """
        self._need_head()
        embeds, valid, starts = self._sequence(self.look(pictures), prompts)
        seen = self._at_patches(self.model(embeds, valid), starts)
        return self.picture(self.model.mm_inv_projector.sample(seen, generator))

    @torch.no_grad()
    def latents(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, g, g) of pictures of any size, which are stretched to the latents' own bilinearly.

        An autoencoder's are drawn; without one (size tiny) they are the pixels, and nothing is random.
        """
        sizes = self._need_head().latents
        side = self.sizes.vision.grid * sizes.pixels
        fitted = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        if not sizes.autoencoder:
            return F.pixel_unshuffle(fitted, sizes.patch)
        return F.pixel_unshuffle(self.model.pixel_decoder.encode(fitted, generator), _PATCHIFY)

    @torch.no_grad()
    def picture(self, latents: Tensor) -> Tensor:
        """The inverse of `latents`, as far as there is one."""
        sizes = self._need_head().latents
        if not sizes.autoencoder:
            return F.pixel_shuffle(latents, sizes.patch)
        return self.model.pixel_decoder.decode(F.pixel_shuffle(latents, _PATCHIFY))

    def _need_head(self) -> HeadSizes:
        if self.sizes.head is None:
            raise UsageError("This ReconVLA was loaded without its reconstruction head; use --policy-args head=keep.")
        return self.sizes.head

    # Sequences

    def _sequence(
        self, patches: Tensor, prompts: Sequence[Prompt], answers: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, L, width) padded on the left, bool (B, L) where they are real, (B,) where patches start."""
        rows = [
            torch.cat([self._embed(prompt.before), seen, self._embed(prompt.after)])
            for prompt, seen in zip(prompts, patches, strict=True)
        ]
        if answers is not None:
            rows = [
                torch.cat([row, self.model.embed_tokens(answer)]) for row, answer in zip(rows, answers, strict=True)
            ]
        lengths = torch.tensor([len(row) for row in rows])
        padding = int(lengths.max()) - lengths
        embeds = torch.stack([F.pad(row, (0, 0, int(pad), 0)) for row, pad in zip(rows, padding, strict=True)])
        valid = torch.arange(embeds.shape[1]) >= padding[:, None]
        starts = padding + torch.tensor([len(prompt.before) for prompt in prompts])
        return embeds, valid.to(embeds.device), starts.to(embeds.device)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embeds: Tensor = self.model.embed_tokens(torch.tensor(ids, dtype=torch.long, device=self.lm_head.weight.device))
        return embeds

    def _places(self, starts: Tensor) -> Tensor:
        """int64 (B, g*g): where in the sequence the patches are."""
        return starts[:, None] + torch.arange(self.sizes.vision.grid**2, device=starts.device)

    def _at_patches(self, states: Tensor, starts: Tensor) -> Tensor:
        """(B, g*g, width) of states (B, L, width)."""
        return torch.gather(states, 1, self._places(starts)[..., None].expand(-1, -1, states.shape[-1]))
