"""π0 and π0.5: flow-matching vision-language-action models of Physical Intelligence.

Reads openpi's PyTorch export, lerobot's pi0 and pi05, and our own directories (`formats` says what differs between
them and how it is read); size=tiny makes an untrained model of about a million parameters.

* Pictures: ours are upright. LIBERO's raw ones are upside down, and openpi and lerobot turn them by 180 degrees, which
  is the upright picture mirrored: official checkpoints with convention=libero get it mirrored, others as it is
  (option mirror).
* Views: by name, where the names are the suite's own or say which is the wrist's; otherwise they have to be told.
  openpi's third view (right_wrist_0_rgb) does not exist in LIBERO and is masked there; masked tokens are seen by nobody
  and take no position, so here they are left out: same answer, a third less to compute.
* State: the suite's 8 numbers in LIBERO (hand position, axis-angle, two fingers), normalised, padded with zeros to 32.
  π0.5 reads it in its prompt, as bins 0 to 255 (-1 below the range), not padded.
* Actions go to the suite as they come: no gripper flip, no threshold, no clipping (openpi examples/libero).
* The chunk is open loop. openpi replans LIBERO every 5 actions of 50 (π0) or 10 (π0.5), and so does size=tiny;
  lerobot's checkpoints say n_action_steps, openpi's nothing, so run those with --execute 5. The paper found temporal
  ensembling harmful.
* Noise is drawn from each observation's seed; upstream's is not seeded per episode.
* Prompts are padded to a multiple of 16 tokens instead of to 48 or 200: padding is masked, so this changes no answer.
* The loss is openpi's: mean squared error over all 32 dimensions, and over the actions repeated past an episode's end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.training.learning import Scales
from vla_bench.types import ActionSpec, Camera, Float32, Observation, PolicySpec, Suite
from vla_bench.untrusted import reading

from ..torch.checkpoints import is_ours, read_ours, sha256_of
from ..torch.conventions import LIBERO_ACTION, LIBERO_STATE
from ..torch.folders import insist_on_checkpoint
from ..torch.normalisation import Affine
from ..torch.plausible import insist_on_sizes
from ..torch.policy import (
    Acted,
    Batching,
    Dtype,
    Size,
    Stopwatch,
    TorchPolicy,
    need_weights,
    noise,
    settings,
    stacked,
    untrained,
)
from ..torch.reads import noting_reads
from ..torch.recipes import CROP
from ..torch.tokens import JsonTokenizer, TextTokenizer, load_tokenizer, tiny_tokenizer
from ..torch.training import Batch
from .formats import ARM, Official, Reading, loaded, missing_views, read_official, truncated
from .inputs import cleaned, padded, pillow_resize_with_pad, state_prompt
from .model import (
    STEPS,
    Pi0Model,
    Prefix,
    Sizes,
    Variant,
    pad_to,
    resize_with_pad,
    sample_times,
    tiny,
)

NAME = "pi0"
REPLANNED = 5
"""Actions that openpi plays of a chunk on LIBERO."""
Choice = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class Parts:
    """A policy but for its settings."""

    model: Pi0Model
    reading: Reading
    state: Affine
    action: Affine
    tokenizer: TextTokenizer
    spec: PolicySpec


class Pi0(TorchPolicy):
    """π0 or π0.5, whichever the checkpoint is.

    Args:
        suite: what it is to act in.
        checkpoint: directory of openpi (PyTorch), of lerobot, or of ours.
        size: tiny makes an untrained model instead.
        weights_seed: of the tiny model's weights.
        variant: of the tiny model, pi0 unless said; a checkpoint must be of it if it is said.
        side: of the tiny model's pictures, pixels, a multiple of 12.
        tokenizer: tokenizer.json or PaliGemma's .model file, where the checkpoint has none.
        asset: openpi's asset id, where the checkpoint has several.
        statistics: another norm_stats.json of openpi's form.
        convention: what the actions mean: libero's, or the suite's own, for a checkpoint fine-tuned on it.
        cameras: the suite's cameras in the order of the checkpoint's views, comma-separated, "-" for a missing one.
        mirror: mirror the pictures; auto: official checkpoints of LIBERO's convention yes, ours as they say, others no.
        relative: the pose in the action is relative to the state's (openpi's pi0_libero); auto: as the checkpoint says.
        state_in_prompt: of π0.5; padded: with zeros, to 32 numbers unless the checkpoint says another; auto: padded for
            those of lerobot before 0.5, no for openpi's pi05_libero, real for others.
        steps: Euler steps; 0: the checkpoint's, 10 for all that are known.
        horizon: actions of an answer, for folders of openpi's train_pytorch.py, which do not say it.
        vision_heads: of the vision tower; 0: 16 at the official width, 4 at any other.
        device: cpu, cuda, or auto.
        dtype: bfloat16 and float16 keep the vision tower, norms and small projections in float32, as upstream.
        compile: compile the denoising loop; on a GPU as CUDA graphs.
        batching: each: observations one by one, answers bit-equal whatever the batch; together: one forward pass.
    """

    model: Pi0Model

    @noting_reads()
    def __init__(
        self,
        suite: Suite,
        checkpoint: str | None = None,
        size: Size = "checkpoint",
        weights_seed: int = 0,
        *,
        variant: Literal["auto", "pi0", "pi05"] = "auto",
        side: int = 60,
        tokenizer: str = "",
        asset: str = "",
        statistics: str = "",
        convention: Literal["libero", "suite"] = "libero",
        cameras: str = "",
        mirror: Choice = "auto",
        relative: Literal["auto", "arm", "no"] = "auto",
        state_in_prompt: Literal["auto", "no", "real", "padded"] = "auto",
        steps: int = 0,
        horizon: int = 0,
        vision_heads: int = 0,
        device: str = "auto",
        dtype: Dtype = "auto",
        compile: bool = False,
        batching: Batching = "each",
    ) -> None:
        need_weights(NAME, checkpoint, size)
        how = settings(device, dtype, compile, batching)
        if checkpoint is not None:
            insist_on_checkpoint(checkpoint)
        if checkpoint is None or is_ours(checkpoint):
            for_official_ones = {
                "tokenizer": tokenizer,
                "asset": asset,
                "statistics": statistics,
                "convention": convention == "suite",
                "cameras": cameras,
                "horizon": horizon,
                "vision_heads": vision_heads,
            }
            _refuse([name for name, given in for_official_ones.items() if given])
        if checkpoint is None:
            parts = _untrained(suite, "pi05" if variant == "pi05" else "pi0", side, weights_seed, how.dtype)
        elif is_ours(checkpoint):
            parts = _ours(suite, Path(checkpoint), how.dtype)
        else:
            official = read_official(Path(checkpoint), asset, statistics, vision_heads, horizon)
            _insist(official, {"relative": relative, "state_in_prompt": state_in_prompt})
            if tokenizer:
                official = replace(official, tokenizer=Path(tokenizer))
            parts = _official(
                suite, Path(checkpoint), official, convention=convention, cameras=cameras, dtype=how.dtype
            )
        if variant not in ("auto", parts.model.sizes.variant):
            raise UsageError(f"{checkpoint} is of {parts.model.sizes.variant}, asked for variant={variant}.")
        self.reading = _overridden(parts.reading, mirror, relative, state_in_prompt, steps)
        mask = self.reading.relative
        if len(mask) > parts.spec.action.dim or any(mask[len(parts.spec.state) :]):
            raise UsageError(
                f"Relative actions of {len(mask)} numbers do not fit a suite with "
                f"{parts.spec.action.dim} actions and {len(parts.spec.state)} states; use --policy-args relative=no."
            )
        self.state_map, self.action_map, self.tokenizer = parts.state, parts.action, parts.tokenizer
        self._bos = _beginning(parts.tokenizer, parts.model.sizes)
        note = "; ".join(filter(None, (parts.spec.note, self.reading.about)))
        spec = replace(parts.spec, deterministic=batching == "each", note=note, execute=self.reading.execute)
        super().__init__(spec, parts.model.to(how.device), how, self.reading.crop)
        self._denoise = how.compiled(parts.model.denoise)

    # Acting

    def act(self, observations: Sequence[Observation], watch: Stopwatch) -> Acted:
        states = np.stack([seen.state for seen in observations])
        with watch.stage("vision"):
            views = [stacked([seen.images[camera.name] for seen in observations]) for camera in self.spec.cameras]
            features = self.model.see([self._pixels(view) for view in views])
        with watch.stage("prefill"):
            prefix = self._prefix(features, states, [seen.instruction for seen in observations])
        with watch.stage("denoise"):
            start = noise(observations, (self.spec.chunk, self.model.sizes.action_dim), self.settings.device)
            chunk = self._denoise(prefix, start, self.reading.steps)
        with watch.stage("post"):
            return Acted(self._suite_actions(chunk.cpu().numpy(), states))

    def _pixels(self, pictures: Tensor) -> Tensor:
        """uint8 (B, height, width, 3) -> float32 (B, 3, side, side) in [-1, 1] on the device."""
        upright = pictures.flip(2) if self.reading.mirror else pictures
        side = self.model.sizes.image
        if self.reading.resize == "pillow":
            upright = stacked([pillow_resize_with_pad(picture, side) for picture in upright.cpu().numpy()])
        channels_first = upright.to(self.settings.device).permute(0, 3, 1, 2).float() / 255.0
        return resize_with_pad(channels_first, side) * 2.0 - 1.0

    def _prefix(self, features: Sequence[Tensor], states: NDArray[Any], instructions: Sequence[str]) -> Prefix:
        """`states` (B, S) in the suite's units."""
        normal = self.state_map.apply(states)
        rows = [self.prompt_ids(text, state) for text, state in zip(instructions, normal, strict=True)]
        tokens, mask = (tensor.to(self.settings.device) for tensor in padded(rows))
        seen = torch.ones(len(rows), dtype=torch.bool, device=self.settings.device)
        state = torch.from_numpy(normal).to(self.settings.device)
        return self.model.prefill(features, [seen] * len(features), tokens, mask, state)

    def prompt_ids(self, instruction: str, state: Float32) -> list[int]:
        """Token ids of the prompt, <bos> first; `state` (S,) normalised."""
        encode = self.tokenizer.encode
        if self.model.sizes.variant == "pi05" and self.reading.state_in_prompt != "no":
            width = self.model.sizes.state_dim if self.reading.state_in_prompt == "padded" else len(state)
            ids = encode(state_prompt(instruction, np.pad(state, (0, width - len(state)))))
        elif self.reading.prompt == "openpi":
            ids = encode(cleaned(instruction)) + encode("\n")
        else:
            ids = encode(instruction if instruction.endswith("\n") else instruction + "\n")
        if max(ids, default=0) >= self.model.sizes.vocabulary:
            raise UsageError(f"The instruction {instruction!r} has a token that the model does not know.")
        return [self._bos, *ids][: self.reading.prompt_tokens]

    def _suite_actions(self, chunk: Float32, states: NDArray[Any]) -> Float32:
        """(B, H, 32) of the model -> (B, H, A) of the suite; `states` (B, S) in the suite's units."""
        actions = self.action_map.invert(chunk)[..., : self.spec.action.dim]
        absolute: Float32 = (actions + self._origin(states)[:, None]).astype(np.float32)
        return absolute

    def _origin(self, states: NDArray[Any]) -> NDArray[Any]:
        """(B, A): what relative dimensions are relative to, 0 for the others."""
        origin = np.zeros((len(states), self.spec.action.dim))
        for dim in np.flatnonzero(self.reading.relative):
            origin[:, dim] = states[:, dim]
        return origin

    # Learning

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.actions.shape[1] != self.spec.chunk:
            raise UsageError(f"π0 learns chunks of {self.spec.chunk} actions, got {batch.actions.shape[1]}.")
        device = self.settings.device
        states = batch.state[:, -1].cpu().numpy()
        features = self.model.see([self._pixels(batch.images[camera.name][:, -1]) for camera in self.spec.cameras])
        prefix = self._prefix(features, states, batch.instructions)
        normal = self.action_map.apply(batch.actions.cpu().numpy() - self._origin(states)[:, None])
        prefix = prefix.repeated(self.draws)
        actions = pad_to(torch.from_numpy(normal), self.model.sizes.action_dim).repeat(self.draws, 1, 1)
        start = torch.randn(actions.shape, generator=generator)
        times = sample_times(len(actions), generator)
        return {"loss": self.model.flow_loss(prefix, actions.to(device), start.to(device), times.to(device))}

    def normalise(self, state: Scales, action: Scales) -> None:
        """By mean and deviation; π0.5: the first and last percent to -1 and 1 (openpi)."""
        if self.model.sizes.variant == "pi05":
            maps = [Affine.of_limits(scales.q01, scales.q99) for scales in (state, action)]
        else:
            maps = [Affine.of_deviation(scales.mean, scales.std) for scales in (state, action)]
        self.state_map, self.action_map = maps

    # To disk

    def saved_config(self) -> dict[str, Any]:
        return {
            "sizes": asdict(self.model.sizes),
            "reading": asdict(self.reading),
            "cameras": [camera.name for camera in self.spec.cameras],
            "action": asdict(self.spec.action),
            "state": list(self.spec.state),
        }

    def saved_normalisation(self) -> dict[str, Affine]:
        return {"state": self.state_map, "action": self.action_map}

    def saved_tokenizer(self) -> JsonTokenizer:
        if not isinstance(self.tokenizer, JsonTokenizer):
            raise UsageError(
                "Our checkpoints hold a tokenizer.json, and this policy has a SentencePiece model; pass the "
                "tokenizer.json of PaliGemma as --policy-args tokenizer=PATH."
            )
        return self.tokenizer


# Ways to make one

SAID = {
    "relative": "relative=arm (as openpi's pi0_libero) or relative=no",
    "state_in_prompt": "state_in_prompt=no (as openpi's pi05_libero) or state_in_prompt=real",
}
"""What can be answered where a directory leaves an option open."""


def _refuse(names: Sequence[str]) -> None:
    if names:
        raise UsageError(
            f"{', '.join(names)} is for official checkpoints; tiny models and our directories know theirs."
        )


def _insist(official: Official, choices: Mapping[str, str]) -> None:
    """Raises UsageError where auto would be a guess."""
    if official.unsaid and choices[official.unsaid] == "auto":
        raise UsageError(
            "Statistics from elsewhere do not tell whether the checkpoint is one of openpi's for LIBERO; say "
            f"--policy-args {SAID[official.unsaid]}, or put its assets/<asset id> beside the weights."
        )


def _untrained(suite: Suite, variant: Variant, side: int, seed: int, dtype: torch.dtype) -> Parts:
    tokenizer = tiny_tokenizer()
    sizes = replace(tiny(variant, tokenizer.vocab_size, image=side), action_dim=suite.action.dim)
    if side < sizes.patch or side % sizes.patch:
        raise UsageError(f"side should be a multiple of {sizes.patch} pixels, got {side}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Pi0Model(sizes).cast(dtype)
    in_prompt: Literal["real", "no"] = "real" if variant == "pi05" else "no"
    reading = Reading(state_in_prompt=in_prompt, prompt_tokens=200, execute=REPLANNED, resize="pillow", crop=CROP)
    spec = _spec(suite.action, suite.cameras[:2], suite.state, model.sizes, sha256="", note=untrained(model))
    return Parts(model, reading, Affine.identity(len(suite.state)), Affine.identity(suite.action.dim), tokenizer, spec)


def _ours(suite: Suite, folder: Path, dtype: torch.dtype) -> Parts:
    stored = read_ours(folder, NAME)
    with reading(folder, "a checkpoint of π0"):
        sizes = Sizes(**stored.config["sizes"])
        how = Reading(**{**stored.config["reading"], "relative": tuple(stored.config["reading"]["relative"])})
        action, state = ActionSpec(**stored.config["action"]), tuple(map(str, stored.config["state"]))
        maps = (
            stored.normalisation["state"].within(len(state), "state"),
            stored.normalisation["action"].within(action.dim, "action"),
        )
        names = [str(name) for name in stored.config["cameras"]]
        for said in (how, action):
            insist_on_sizes(said, stored.tensors, folder)
    if stored.tokenizer is None:
        raise UsageError(f"{folder} has no tokenizer.json, which π0 needs to read instructions.")
    cameras = _named(suite, names)
    model = loaded(sizes, stored.tensors, folder, dtype)
    spec = _spec(action, cameras, state, sizes, sha256=stored.sha256, note="")
    return Parts(model, how, *maps, stored.tokenizer, spec)


def _official(
    suite: Suite,
    folder: Path,
    official: Official,
    *,
    convention: Literal["libero", "suite"],
    cameras: str,
    dtype: torch.dtype,
) -> Parts:
    action, state = (LIBERO_ACTION, LIBERO_STATE) if convention == "libero" else (suite.action, suite.state)
    whose = "LIBERO" if convention == "libero" else f"the suite {suite.name!r}"
    for what, has, wants in (
        ("states", official.state_dim or len(state), len(state)),
        ("actions", official.action_dim or action.dim, action.dim),
    ):
        if has != wants:
            raise UsageError(f"{folder} has {what} of {has} numbers, {whose} has {wants}; it was trained for others.")
    if official.tokenizer is None:
        raise UsageError(
            f"{folder} has no tokenizer; pass PaliGemma's as --policy-args tokenizer=PATH of its tokenizer.json or "
            ".model file."
        )
    views = _views(suite, official, cameras)
    words = load_tokenizer(official.tokenizer)
    model = loaded(official.sizes, official.tensors, folder, dtype)
    return Parts(
        model,
        replace(official.reading, mirror=convention == "libero"),
        truncated(official.state, len(state)),
        truncated(official.action, action.dim),
        words,
        _spec(action, views, state, official.sizes, sha256=sha256_of(folder), note=official.about),
    )


def _views(suite: Suite, official: Official, said: str) -> tuple[Camera, ...]:
    """The suite's cameras in the order of the checkpoint's views, those it never shows left out."""
    if said:
        names = said.split(",")
        if len(names) != len(official.views):
            raise UsageError(
                f"cameras={said} names {len(names)} views, the checkpoint has {len(official.views)}: "
                f"{', '.join(official.views)}."
            )
        return _named(suite, [name for name in names if name != "-"])
    shown = [view.rsplit(".", 1)[-1] for view in official.views if view not in missing_views(official.views)]
    known = [camera.name for camera in suite.cameras]
    if shown and set(shown) <= set(known):
        return _named(suite, shown)
    places = [place for view in shown if (place := _place(view)) is not None]
    if not places or not len(set(places)) == len(places) == len(shown) or max(places) >= len(known):
        raise UsageError(
            f"The checkpoint's views are {', '.join(official.views)}, and which of {', '.join(known)} each is cannot "
            "be told; say --policy-args cameras=..., in the order of the views, - for none."
        )
    return tuple(suite.cameras[place] for place in places)


_HAND = re.compile(r"wrist|hand|gripper|^image_?2$")
_SCENE = re.compile(r"^image(_?1)?$|base|agent|front|static|third|exterior|external|scene")
"""Names of views on the hand, and on the scene, in the data sets of LIBERO, CALVIN, DROID and BridgeData."""


def _place(view: str) -> int | None:
    """Which of a suite's cameras a view of that name is: 0 the third-person one, 1 the wrist's, None unknown."""
    if _HAND.search(view):
        return 1
    return 0 if _SCENE.search(view) else None


def _named(suite: Suite, names: Sequence[str]) -> tuple[Camera, ...]:
    known = {camera.name: camera for camera in suite.cameras}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"The suite {suite.name!r} has no camera {unknown[0]!r}; it has: {', '.join(known)}.")
    if not names:
        raise UsageError("π0 reads one camera at least, got none.")
    return tuple(known[name] for name in names)


def _spec(
    action: ActionSpec, cameras: tuple[Camera, ...], state: tuple[str, ...], sizes: Sizes, *, sha256: str, note: str
) -> PolicySpec:
    if action.dim > sizes.action_dim or len(state) > sizes.state_dim:
        raise UsageError(
            f"This π0 has states of {sizes.state_dim} and actions of {sizes.action_dim} numbers at most, asked for "
            f"{len(state)} and {action.dim}."
        )
    return PolicySpec(NAME, action, cameras, state, chunk=sizes.horizon, checkpoint=sha256, note=note)


def _overridden(
    reading: Reading,
    mirror: Choice,
    relative: Literal["auto", "arm", "no"],
    state_in_prompt: Literal["auto", "no", "real", "padded"],
    steps: int,
) -> Reading:
    if steps < 0:
        raise UsageError(f"steps should be at least 1, or 0 for the checkpoint's own; got {steps}.")
    return replace(
        reading,
        mirror=reading.mirror if mirror == "auto" else mirror == "yes",
        relative={"auto": reading.relative, "arm": ARM, "no": ()}[relative],
        state_in_prompt=reading.state_in_prompt if state_in_prompt == "auto" else state_in_prompt,
        steps=steps or reading.steps or STEPS,
    )


def _beginning(tokenizer: TextTokenizer, sizes: Sizes) -> int:
    """The id of <bos>. Raises UsageError for a tokenizer of another model."""
    bos = tokenizer.id_of("<bos>")
    if bos is None:
        raise UsageError("The tokenizer has no <bos>; π0 needs PaliGemma's.")
    unread = tokenizer.id_of("<image>") == sizes.vocabulary  # PaliGemma's 257152, which π0's embedding leaves out
    if tokenizer.vocab_size - unread > sizes.vocabulary:
        raise UsageError(
            f"The tokenizer has {tokenizer.vocab_size} ids, the model's embedding {sizes.vocabulary}; pass its own."
        )
    return bos
