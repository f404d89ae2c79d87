"""ReconVLA: two views and a sentence in, five actions as 35 tokens out; it learns to rebuild what it should look at.

Song et al. 2025, arXiv 2508.10333; released code OpenHelix-Team/ReconVLA 047ccd9. Another "ReconVLA", arXiv 2604.16677,
is something else. What is not obvious, with the upstream file or the page that says so:

* Both views are squashed into one square picture (`pictures`), so there are always 729 patches. Released
  weights: the cut is in the middle, as in the released server; stacking=rows is the cut of the training data.
* The instruction stands before and after the picture (`prompt`): attention is causal, and the patches could
  not know it otherwise.
* The state is read as tokens in the sentence: (x - mean) / (std + 1e-5) / 3, clipped to [-1, 1], 256 bins.
* The answer is greedy and unconstrained: an id that is no action clips to the nearest bin, and after an early end token
  the remaining numbers are zero (the released client pads with zeros). Actions of the released weights are CALVIN's
  relative actions as they are; the gripper's sign is taken, 0 counting as -1.
* The reconstruction head never runs while acting. Its condition is the language model's last states at the patches;
  there are no extra tokens. With checkpoints it is not even loaded unless head=keep.
* The picture to rebuild is the stacked one with the third-person view replaced by its gaze region, stretched.
* L = cross-entropy + recon_weight * reconstruction, 1 in the released code; 0 leaves the head out altogether.
* The latents of FLUX's autoencoder are its mean, not a sample, folded two by two with the channel outermost: the
  released code's choice of either is not documented. It matters for `reconstruct` and `losses`, not for acting.
* With attention=true a chunk carries what the 35 action tokens look at: the mean over tokens, layers and heads for each
  patch of the stacked picture, divided by what they look at the picture in all, and told apart into the two views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.training.learning import Scales
from vla_bench.types import Attention, Float32, Image, Observation, PolicySpec, Suite

from ..torch.conventions import CALVIN_ACTION, CALVIN_STATE
from ..torch.normalisation import Affine
from ..torch.plausible import built
from ..torch.policy import (
    Acted,
    Batching,
    Dtype,
    Size,
    Stopwatch,
    TorchPolicy,
    insist_on_logits,
    need_weights,
    settings,
    two_views,
    untrained,
)
from ..torch.tokens import ActionBins, JsonTokenizer
from ..torch.training import Batch
from .formats import NAME, Choice, Facts, Loaded, drawn, overridden, read, saved
from .formats import untrained as untrained_parts
from .model import Prompt, ReconModel
from .prompt import PromptWriter

Views = tuple[Image, Image]
"""The third-person view and the wrist's."""


class ReconVLA(TorchPolicy):
    """Qwen2 with SigLIP's eyes that answers in action tokens and was taught to look by rebuilding the gaze region.

    Args:
        suite: what it is to act in.
        checkpoint: directory as released, or of ours.
        size: tiny makes an untrained model instead.
        weights_seed: of the tiny model's weights.
        stacking: where the views meet; auto: the middle for released weights, as they say for ours.
        jpeg: pictures go through JPEG, as the released training data did; auto: no, or as the checkpoint says.
        twice: the instruction stands before the picture too; auto: yes, or as the checkpoint says.
        stray_ids: repeat the released code's detour over text, which leaves stray ids before some states.
        attention: answer with the action tokens' attention to the picture.
        head: the reconstruction head; auto: tiny models have it, checkpoints are read without it.
        recon_weight: of the reconstruction in the loss; 0: no head at all.
        device: cpu, cuda, or auto.
        dtype: of the weights.
        compile: compile the vision tower and the decoding step; on a GPU as CUDA graphs.
        batching: each: observations one by one, answers bit-equal whatever the batch; together: one forward pass.
    """

    model: ReconModel

    def __init__(
        self,
        suite: Suite,
        checkpoint: str | None = None,
        size: Size = "checkpoint",
        weights_seed: int = 0,
        *,
        stacking: Literal["auto", "rows", "halves"] = "auto",
        jpeg: Choice = "auto",
        twice: Choice = "auto",
        stray_ids: Choice = "auto",
        attention: bool = False,
        head: Literal["auto", "keep", "skip"] = "auto",
        recon_weight: float = 1.0,
        device: str = "auto",
        dtype: Dtype = "auto",
        compile: bool = False,
        batching: Batching = "each",
    ) -> None:
        need_weights(NAME, checkpoint, size)
        how = settings(device, dtype, compile, batching)
        keep = recon_weight != 0 and (head == "keep" or (head == "auto" and checkpoint is None))
        loaded = untrained_parts(suite, keep) if checkpoint is None else read(checkpoint, keep)
        self.facts = overridden(loaded.facts, stacking, jpeg, twice, stray_ids)
        _check(self.facts, loaded, suite)
        model = _model(loaded, weights_seed, how.dtype, checkpoint)
        model.model.vision_tower.requires_grad_(not self.facts.tower_frozen)
        spec = PolicySpec(
            NAME,
            self.facts.action,
            cameras=two_views(suite, NAME),
            state=self.facts.state,
            chunk=self.facts.chunk,
            checkpoint=loaded.sha256,
            deterministic=batching == "each",
            note=untrained(model) if checkpoint is None else "",
        )
        super().__init__(spec, model.to(how.device), how, self.facts.crop)
        self.state_map, self.action_map, self.tokenizer = loaded.state_map, loaded.action_map, loaded.tokenizer
        self.attention, self.recon_weight = attention, recon_weight
        self._left_out = checkpoint is not None and head == "auto" and not keep
        self._bins = ActionBins(self.facts.bins_end)
        self._writer = PromptWriter(self.tokenizer, self._bins, self.facts.wording)
        model.model.pinned = how.compile
        self._look, self._step = how.compiled(model.look), how.compiled(model.step)

    # Acting

    def act(self, observations: Sequence[Observation], watch: Stopwatch) -> Acted:
        with watch.stage("vision"):
            patches = self._look(self._pictures(observations))
        with watch.stage("prefill"):
            start = self.model.prefill(patches, self._asked(observations), self.facts.chunk * self.spec.action.dim)
        with watch.stage("decode"):
            decoded = self.model.decode(start, self.attention, self._step)
            ids = decoded.ids.cpu().numpy()
        insist_on_logits(decoded.logits.isfinite(), self)
        with watch.stage("post"):
            maps = [] if decoded.attention is None else list(decoded.attention.cpu().numpy())
            return Acted(self.actions_of(ids), [self._looked_at(one) for one in maps])

    def _looked_at(self, weights: Float32) -> dict[str, Attention]:
        views = self.facts.stack.looked_at(weights, self.model.sizes.vision.patch)
        return {camera.name: given for camera, given in zip(self.spec.cameras, views, strict=True)}

    def actions_of(self, ids: NDArray[Any]) -> Float32:
        """(B, H, A) in the suite's units of token ids (B, H * A)."""
        ended = np.logical_or.accumulate(ids == self.facts.end_id, axis=1)
        shape = (len(ids), self.facts.chunk, self.spec.action.dim)
        actions = self.action_map.invert(self._bins.decode(ids).reshape(shape))
        actions[ended.reshape(shape)] = 0.0
        if self.spec.action.gripper != "none":
            actions[..., -1] = np.where(actions[..., -1] > 0, 1.0, -1.0)
        return actions

    def _pictures(self, observations: Sequence[Observation]) -> Tensor:
        static, wrist = (camera.name for camera in self.spec.cameras)
        return self._placed([self.facts.stack(seen.images[static], seen.images[wrist]) for seen in observations])

    def _asked(self, observations: Sequence[Observation]) -> list[Prompt]:
        return self._prompts([seen.instruction for seen in observations], [seen.state for seen in observations])

    def _prompts(self, instructions: Sequence[str], states: Sequence[Float32]) -> list[Prompt]:
        return [
            self._writer.write(text, self.state_map.apply(state))
            for text, state in zip(instructions, states, strict=True)
        ]

    def _placed(self, pictures: Sequence[Float32]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).to(self.settings.device, self.settings.dtype)

    # Learning

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """action: cross-entropy of the action tokens and the end token, repeated actions behind an episode's end too.

        reconstruction: of the noise in the latents of the picture with the gaze region; absent when recon_weight is 0.
        """
        if batch.actions.shape[1] != self.facts.chunk:
            raise UsageError(f"ReconVLA learns chunks of {self.facts.chunk} actions, got {batch.actions.shape[1]}.")
        views = self._views(batch)
        pictures = self._placed([self.facts.stack(static, wrist) for static, wrist in views])
        prompts = self._prompts(batch.instructions, list(batch.state[:, -1].cpu().numpy()))
        gazes = self._gazes(batch, views) if self.recon_weight else None
        parts = self.model.losses(pictures, prompts, self._targets(batch), gazes, generator)
        if parts.reconstruction is None:
            return {"loss": parts.action, "action": parts.action}
        total = parts.action + self.recon_weight * parts.reconstruction
        return {"loss": total, "action": parts.action, "reconstruction": parts.reconstruction}

    def reconstruct(self, observations: Sequence[Observation], generator: torch.Generator) -> Float32:
        """What the head believes is there to be looked at: (B, s, s, 3) in [0, 1], laid out as the stacked picture.

        Needs the head, and a thousand steps of it.
        """
        with torch.inference_mode():
            seen = self._pictures([self.shown(one) for one in observations])
            believed = self.model.reconstruct(seen, self._asked(observations), generator)
        shown: Float32 = ((believed.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return shown

    def _views(self, batch: Batch) -> list[Views]:
        now = [batch.images[camera.name][:, -1].cpu().numpy() for camera in self.spec.cameras]
        return list(zip(now[0], now[1], strict=True))

    def _gazes(self, batch: Batch, views: Sequence[Views]) -> Tensor:
        if batch.gaze is None:
            raise UsageError("ReconVLA learns to rebuild gaze regions, and these data have none; use recon_weight=0.")
        boxes = batch.gaze.cpu().numpy()
        stack = self.facts.stack
        return self._placed([stack.gaze(*pair, box) for pair, box in zip(views, boxes, strict=True)])

    def _targets(self, batch: Batch) -> Tensor:
        """int64 (B, H * A + 1): action tokens, then the end token."""
        ids = self._bins.encode(self.action_map.apply(batch.actions.cpu().numpy())).reshape(len(batch.actions), -1)
        whole = np.concatenate([ids, np.full((len(ids), 1), self.facts.end_id)], axis=1)
        return torch.from_numpy(whole).to(self.settings.device)

    def normalise(self, state: Scales, action: Scales) -> None:
        """The state's third deviation becomes 1. Actions are read as they are: suites give them in [-1, 1]."""
        self.state_map = Affine.of_deviation(state.mean, state.std, deviations=3.0)

    # To disk

    def save(self, path: str | Path, provenance: Mapping[str, str], dtype: torch.dtype | None = None) -> None:
        if self._left_out:
            raise UsageError(
                "This would leave out the reconstruction head: say head=keep, or head=skip if you want that."
            )
        super().save(path, provenance, dtype)

    def saved_config(self) -> dict[str, Any]:
        return saved(self.model.sizes, self.facts)

    def saved_normalisation(self) -> dict[str, Affine]:
        return {"state": self.state_map, "action": self.action_map}

    def saved_tokenizer(self) -> JsonTokenizer:
        return self.tokenizer


def _check(facts: Facts, loaded: Loaded, suite: Suite) -> None:
    if facts.wording.stray_ids and facts.bins_end > loaded.tokenizer.base_size:
        raise UsageError("stray_ids=yes needs action tokens that are text, as Qwen2's are; this tokenizer's are not.")
    if (facts.action, facts.state) != (suite.action, suite.state):
        trained = "CALVIN" if (facts.action, facts.state) == (CALVIN_ACTION, CALVIN_STATE) else "another suite"
        raise UsageError(
            f"These weights of ReconVLA were trained for {trained}, whose actions or state differ from those of "
            f"{suite.name!r}; choose a suite of the same robot, or weights for this one."
        )


def _model(loaded: Loaded, seed: int, dtype: torch.dtype, source: str | None) -> ReconModel:
    if loaded.tensors is None:
        return drawn(loaded.sizes, seed).to(dtype)
    model = built(lambda: ReconModel(loaded.sizes).to(dtype), loaded.sizes, loaded.tensors, source or NAME)
    model.leave_meta()
    return model
