"""OpenVLA and OpenVLA-OFT: one picture, or two and the state, and a sentence in; one action, or a chunk, out.

What is not obvious, with the upstream file that says so (openvla/openvla c8f03f4, moojink/openvla-oft 213c5ff):

- LIBERO's raw pictures are upside down and upstream turns them by 180 degrees
  (experiments/robot/libero/libero_utils.py); ours are upright, so official LIBERO checkpoints see them mirrored.
- Pictures go through JPEG, Lanczos to 224 and a crop of 0.9 of the area, in this order (same file, and
  experiments/robot/openvla_utils.py); each tower then normalises in its own way.
- The instruction is lower-cased, and a lone-space token (29871) stands before the first action token.
- The gripper's dimension is not normalised: 0 closes, 1 opens. It is mapped to [-1, 1], its sign taken, and turned
  around for suites where +1 closes (experiments/robot/robot_utils.py).
- OpenVLA answers one action per picture; OFT answers eight, meant to be played without looking again.
- OFT clips its normalised state to [-1, 1]. The state's rotation is robosuite's axis-angle without an antipodal flip;
  with one, LIBERO-Goal fell from 97 to 83 and Long from 95 to 56 (allenai/vla-evaluation-harness e1ee9ad, its
  reproduction data).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_bench.errors import UsageError
from vla_bench.training.learning import Recipe, Scales
from vla_bench.types import Float32, Observation, PolicySpec, Suite

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
    stacked,
    two_views,
    untrained,
)
from ..torch.recipes import CROP, RECIPES
from ..torch.tokens import BOS, EOS, TINY_VOCABULARY, ActionBins, JsonTokenizer, tiny_tokenizer
from ..torch.training import Batch
from .formats import (
    Actions,
    AnyPrompt,
    Facts,
    Loaded,
    Mirror,
    Wishes,
    prompt_ids,
    read,
    to_model,
    to_suite,
)
from .images import PictureChain
from .model import Head, LlmSizes, OpenVLAModel, Sizes, in_dtype
from .vision import TowerSizes

TINY_SIDE, TINY_PATCH = 60, 12
TINY_TOWERS = (
    TowerSizes("dinov2", 96, 3, 4, 192, TINY_SIDE, TINY_PATCH, registers=4, stem="residual"),
    TowerSizes("siglip", 96, 3, 4, 192, TINY_SIDE, TINY_PATCH, stem="residual"),
)
TINY_LLM = LlmSizes(TINY_VOCABULARY + 256, 128, 3, 4, 4, 256)
TINY_CHUNK, TINY_EXECUTE = 8, 4
"""Of the l1 head: answered, and played before it is asked again. OFT's authors play all 8."""


class OpenVLA(TorchPolicy):
    """Llama-2 with DINOv2's and SigLIP's eyes that answers in action tokens or, as OFT, with a whole chunk at once.

    Args:
        suite: what it is to act in.
        checkpoint: directory of openvla-7b* or openvla-7b-oft-* as on Hugging Face, or one of ours.
        size: tiny makes an untrained model instead.
        weights_seed: of the tiny model's weights.
        head: of the tiny model, tokens (OpenVLA) or l1 (OFT); checkpoints say themselves.
        side: of the tiny model's pictures, pixels, a multiple of 12.
        unnorm_key: whose statistics un-normalise the actions; the suite's name when absent.
        actions: the robot the actions are for; auto: LIBERO's where the statistics' name says so.
        prompt: v1, or v0.1 for the first checkpoints; auto: by the language model's name.
        mirror: mirror the pictures; auto: yes for LIBERO statistics, whose pictures were turned by 180 degrees.
        jpeg: pictures go through JPEG first, as the training data did.
        crop: the middle 0.9 of the area, which matches the random crops of training.
        oft_chunk: actions per answer of an OFT checkpoint, which does not say.
        oft_views: pictures it reads, which it does not say either.
        device: cpu, cuda, or auto.
        dtype: of the weights; auto: bfloat16 on a GPU, float32 on a CPU.
        compile: compile vision and decoding; on a GPU as CUDA graphs.
        batching: each: observations one by one, answers bit-equal whatever the batch; together: one forward pass.
    """

    def __init__(
        self,
        suite: Suite,
        checkpoint: str | None = None,
        *,
        size: Size = "checkpoint",
        weights_seed: int = 0,
        head: Literal["auto", "tokens", "l1"] = "auto",
        side: int = TINY_SIDE,
        unnorm_key: str | None = None,
        actions: Actions = "auto",
        prompt: AnyPrompt = "auto",
        mirror: Mirror = "auto",
        jpeg: bool = True,
        crop: bool = True,
        oft_chunk: int = 8,
        oft_views: int = 2,
        device: str = "auto",
        dtype: Dtype = "auto",
        compile: bool = False,
        batching: Batching = "each",
    ) -> None:
        need_weights("openvla", checkpoint, size)
        chosen = settings(device, dtype, compile, batching)
        wishes = Wishes(suite.name, unnorm_key, actions, prompt, mirror, jpeg, crop, oft_chunk, oft_views)
        if checkpoint is None:
            wishes.none_for("size=tiny")
            loaded = _untrained(suite, "l1" if head == "l1" else "tokens", side, weights_seed)
        else:
            loaded = read(checkpoint, wishes)
        if head not in ("auto", loaded.sizes.head):
            raise UsageError(f"{checkpoint} has the head {loaded.sizes.head!r}, got head={head}; leave it out.")
        model = built(
            lambda: in_dtype(OpenVLAModel(loaded.sizes), chosen.dtype),
            loaded.sizes,
            loaded.tensors,
            checkpoint or "size=tiny",
        )
        model.leave_meta()
        model.pinned = chosen.compile
        cameras = two_views(suite, "openvla") if loaded.sizes.views == 2 else suite.cameras[:1]
        spec = PolicySpec(
            "openvla",
            loaded.facts.action,
            cameras=cameras,
            state=loaded.facts.state,
            chunk=loaded.sizes.chunk,
            execute=loaded.facts.execute,
            checkpoint=loaded.sha256,
            deterministic=batching == "each",
            note=untrained(model) if checkpoint is None else "",
        )
        super().__init__(spec, model.to(chosen.device), chosen, loaded.facts.crop)
        self._net, self._facts, self._tokenizer = model, loaded.facts, loaded.tokenizer
        self._action, self._state = loaded.action, loaded.state
        self._bins = ActionBins(loaded.facts.action_end)
        self._look, self._step = chosen.compiled(model.look), chosen.compiled(model.step)
        self._regress = chosen.compiled(model.regress)

    # Acting

    def act(self, observations: Sequence[Observation], watch: Stopwatch) -> Acted:
        with watch.stage("vision"):
            pictures = [[self._facts.pictures(seen.images[c.name]) for c in self.spec.cameras] for seen in observations]
            state = self._normalised_state(np.stack([seen.state for seen in observations]))
            seen = self._look(self._placed(stacked(pictures)), state)
        prompts = [prompt_ids(seen.instruction, self._tokenizer, self._facts) for seen in observations]
        answer = self._regressed if self._net.sizes.head == "l1" else self._decoded
        normalised = answer(seen, prompts, watch)
        with watch.stage("post"):
            return Acted(to_suite(normalised, self._action, self._facts))

    def _decoded(self, seen: Tensor, prompts: Sequence[Sequence[int]], watch: Stopwatch) -> Float32:
        count = self._net.sizes.action_dim
        with watch.stage("prefill"):
            first, memory = self._net.prefill(self._net.sequences(seen, prompts), count)
        with watch.stage("decode"):
            ids = self._net.decode(first, memory, count, self._step).cpu().numpy()
        insist_on_logits(memory.sound, self)
        return self._bins.decode(ids)[:, None].astype(np.float32)

    def _regressed(self, seen: Tensor, prompts: Sequence[Sequence[int]], watch: Stopwatch) -> Float32:
        with watch.stage("prefill"):
            tail = self._net.placeholders(len(prompts), self._facts.eos)
            actions: Float32 = self._regress(self._net.sequences(seen, prompts, tail)).float().cpu().numpy()
        return actions

    def _normalised_state(self, state: Float32) -> Tensor | None:
        """(B, S) of the suite -> (B, S) of the model, None where it reads none."""
        if not self._net.sizes.state_dim:
            return None
        return self._placed(torch.from_numpy(np.clip(self._state.apply(state), -1, 1)))

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.settings.device)

    # Learning

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """tokens: mean cross-entropy of the action tokens and `</s>`; l1: mean absolute error of the chunk.

        Nothing is random. Padding behind an episode's end does not count.
        """
        chunk = self._net.sizes.chunk
        if batch.actions.shape[1] < chunk:
            raise UsageError(f"openvla learns chunks of {chunk} actions, the batch has {batch.actions.shape[1]}.")
        targets = to_model(batch.actions[:, :chunk].cpu().numpy(), self._action, self._facts)
        valid = self._placed(batch.valid[:, :chunk]).float()
        state = self._normalised_state(batch.state[:, -1].cpu().numpy())
        seen = self._net.look(self._placed(self._pictures_of(batch)), state)
        prompts = [prompt_ids(instruction, self._tokenizer, self._facts) for instruction in batch.instructions]
        learn = self._regression_losses if self._net.sizes.head == "l1" else self._token_losses
        return learn(seen, prompts, targets, valid)

    def _pictures_of(self, batch: Batch) -> Tensor:
        """uint8 (B, views, side, side, 3)."""
        views = [batch.images[camera.name][:, -1].cpu().numpy() for camera in self.spec.cameras]
        return stacked([[self._facts.pictures(picture) for picture in sample] for sample in zip(*views, strict=True)])

    def _token_losses(
        self, seen: Tensor, prompts: Sequence[Sequence[int]], targets: Float32, valid: Tensor
    ) -> dict[str, Tensor]:
        ids = self._bins.encode(targets[:, 0])
        wanted = np.concatenate([ids, np.full((len(ids), 1), self._facts.eos)], axis=1)
        rows = [[*prompt, *row.tolist()] for prompt, row in zip(prompts, wanted, strict=True)]
        each = self._net.token_losses(self._net.sequences(seen, rows), self._placed(torch.from_numpy(wanted)))
        return {
            "loss": _mean(each, valid),
            "action_tokens": _mean(each[:, :-1], valid),
            "end_token": _mean(each[:, -1:], valid),
        }

    def _regression_losses(
        self, seen: Tensor, prompts: Sequence[Sequence[int]], targets: Float32, valid: Tensor
    ) -> dict[str, Tensor]:
        tail = self._net.placeholders(len(prompts), self._facts.eos)
        answered = self._net.regress(self._net.sequences(seen, prompts, tail)).float()
        return {"loss": _mean((answered - self._placed(torch.from_numpy(targets))).abs(), valid[..., None])}

    def recipe(self) -> Recipe:
        return RECIPES["openvla_oft" if self._net.sizes.head == "l1" else "openvla"]

    def normalise(self, state: Scales, action: Scales) -> None:
        """The first and last percent to -1 and 1, but for the gripper."""
        limits = Affine.of_limits(action.q01, action.q99)
        gripper = self.spec.action.gripper != "none"
        self._action = limits.where([True] * (len(limits.scale) - gripper) + [False] * gripper)
        if self._net.sizes.state_dim:
            self._state = Affine.of_limits(state.q01, state.q99)

    # Saving

    def saved_config(self) -> dict[str, Any]:
        return {"sizes": self._net.sizes.as_json(), "facts": self._facts.as_json()}

    def saved_normalisation(self) -> dict[str, Affine]:
        return {"action": self._action, "state": self._state}

    def saved_tokenizer(self) -> JsonTokenizer:
        if not isinstance(self._tokenizer, JsonTokenizer):
            raise UsageError("The checkpoint has tokenizer.model only; put Llama's tokenizer.json beside it and retry.")
        return self._tokenizer


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean over those with weight 1; weights are broadcast."""
    spread = weights.expand_as(values)
    return (values * spread).sum() / spread.sum().clamp(min=1)


def _untrained(suite: Suite, head: Head, side: int, seed: int) -> Loaded:
    """Small random weights made for the suite: its own units, pictures as they come."""
    oft = head == "l1"
    if side < TINY_PATCH or side % TINY_PATCH:
        raise UsageError(f"side should be a multiple of {TINY_PATCH} pixels, got {side}.")
    sizes = Sizes(
        tuple(replace(tower, side=side) for tower in TINY_TOWERS),
        TINY_LLM,
        head,
        suite.action.dim,
        TINY_CHUNK if oft else 1,
        len(suite.state) if oft else 0,
        min(2, len(suite.cameras)) if oft else 1,
    )
    tokenizer = tiny_tokenizer()
    facts = Facts(
        prompt="plain",
        bos=BOS,
        eos=EOS,
        space=tokenizer.encode(" ")[-1],
        action_end=TINY_LLM.vocab_size,
        pictures=PictureChain(side),
        crop=CROP,
        gripper="suite",
        action=suite.action,
        state=suite.state if oft else (),
        execute=TINY_EXECUTE if oft else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = in_dtype(OpenVLAModel(sizes), torch.float32).state_dict()
    none = Affine.identity(0)
    return Loaded(sizes, weights, facts, tokenizer, Affine.identity(suite.action.dim), none, "")
