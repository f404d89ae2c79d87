"""What ReconVLA's language model reads: a sentence, the state as tokens, and the place of the picture.

The released code (047ccd9) writes `{system} USER: {instruction}\\n<image>\\n{instruction}\\n{state} ASSISTANT:`, the
conversation template `qwen_2`, tokenizes what stands before and after the picture apart, and puts no token in front.

State tokens are spliced in as ids. The released code first writes them as text, tokenizes all of it, and then puts the
true ids over the last ones before " ASSISTANT:". Text does not always come back as it went: Qwen2's tokenizer applies
Unicode NFC, which splits ids 151554 and 151618 in two, and 151560 is an incomplete UTF-8 sequence; each such value
leaves one stray id before the state. With `stray_ids` this happens here too; by default it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from numpy.typing import ArrayLike

from vla_bench.errors import UsageError
from vla_bench.untrusted import MB, read_bytes, reading

from ..torch.checkpoints import read_json
from ..torch.reads import note_read
from ..torch.tokens import ActionBins, JsonTokenizer, json_tokenizer
from .model import Prompt

SYSTEM = (
    "A chat between a curious human and an artificial intelligence robot. "
    "The robot provides actions to follow out the user's instructions."
)
"""Of the template `qwen_2`."""
_ASSISTANT = " ASSISTANT:"
MOST_MERGES = 4 * MB
"""Bytes of merges.txt: Qwen2's has 1.7 million."""
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text before merging bytes."""


@dataclass(frozen=True)
class Wording:
    """How a prompt is written; part of the checkpoint."""

    system: str = SYSTEM
    twice: bool = True
    """The instruction stands before the picture too, so that causal attention lets the patches know it."""
    stray_ids: bool = False
    roles: bool = True
    """Who speaks is said. Without, the prompt is the instruction and the state."""


@dataclass(frozen=True)
class PromptWriter:
    """Sentences and states to prompts."""

    tokenizer: JsonTokenizer
    bins: ActionBins
    wording: Wording

    def write(self, instruction: str, state: ArrayLike) -> Prompt:
        """The prompt of one observation; `state` (S,), normalised, is clipped to [-1, 1]."""
        return Prompt(self._before(instruction), self._after(instruction, self.bins.encode(state).tolist()))

    def _before(self, instruction: str) -> list[int]:
        opening = f"{self.wording.system} USER: ".lstrip() if self.wording.roles else ""
        return self.tokenizer.encode(f"{opening}{instruction}\n" if self.wording.twice else opening)

    def _after(self, instruction: str, state: list[int]) -> list[int]:
        question = f"\n{instruction}\n"
        if not self.wording.stray_ids:
            return [*self.tokenizer.encode(question), *state, *self._assistant]
        ids = self.tokenizer.encode(question + self.tokenizer.decode(state) + _ASSISTANT)
        end = len(ids) - len(self._assistant)
        return [*ids[: end - len(state)], *state, *ids[end:]]

    @cached_property
    def _assistant(self) -> list[int]:
        return self.tokenizer.encode(_ASSISTANT) if self.wording.roles else []


def qwen_tokenizer(folder: Path) -> JsonTokenizer:
    """The tokenizer of a directory with tokenizer.json, or with vocab.json and merges.txt as Qwen2's older form has.

    Raises UsageError when there is none, or it is damaged.
    """
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise UsageError(f"{folder} has no tokenizer; expected tokenizer.json, or vocab.json and merges.txt.")
    if whole.is_file():
        return json_tokenizer(whole)
    with reading(folder, "a tokenizer"):
        return _assembled(vocabulary, merges)


def _assembled(vocabulary: Path, merges: Path) -> JsonTokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    note_read(merges)
    text = read_bytes(merges, MOST_MERGES, "merges").decode("utf-8")
    lines = text.strip().split("\n")
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if left[:8] != "#version"]
    tokenizer = Tokenizer(models.BPE(vocab=read_json(vocabulary), merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _added(vocabulary.parent)])
    return JsonTokenizer(str(tokenizer.to_str()))


def _added(folder: Path) -> Sequence[str]:
    """Special tokens in the order of their ids, which follow the vocabulary's."""
    file = folder / "added_tokens.json"
    if not file.is_file():
        return ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ids = read_json(file)
    return sorted(ids, key=lambda token: int(ids[token]))
