"""Sentences and actions as token ids.

The tiny tokenizer is a byte-level BPE of at most 1024 ids, trained by `train_tiny_tokenizer` on the suites' own
instructions and committed as assets/tiny_tokenizer.json. Byte-level: every text has ids, none is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_bench.errors import MissingPackage, UsageError, in_a_line
from vla_bench.untrusted import MB, brief, parse_json, read_bytes, reading

from .reads import note_read

PAD, BOS, EOS, IMAGE = range(4)
"""The first ids of the tiny tokenizer."""
SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>")
TINY_VOCABULARY = 1024
MOST_BYTES = 48 * MB
"""Of a tokenizer's file: PaliGemma's tokenizer.json has 17 million, Gemma 3's 33."""
_MOST_GROWTH = 64
"""Characters that become of one before they are looked up."""
_LONGEST_AFFIX = 100
_SAMPLE = "Pick up the 2 red bowls, and put them on the plate!\n"
TINY = Path(__file__).parents[1] / "assets" / "tiny_tokenizer.json"

Int64 = NDArray[np.int64]


class TextTokenizer(Protocol):
    """Text to ids, without adding any special token."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this number."""

    def encode(self, text: str) -> list[int]: ...

    def id_of(self, token: str) -> int | None:
        """The id of that very token, None if there is none."""


@dataclass(frozen=True)
class JsonTokenizer:
    """A tokenizer.json, the format of the `tokenizers` library.

    Padding and truncation in it are not followed: transformers saves what its last call asked for, as lerobot's 48.
    Nor is what it puts around a text: every policy does that itself. Its first use raises for text that is no
    tokenizer, and for one whose steps could make a short text so long that the library ends the process.
    """

    text: str

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        with _panics_as_errors():
            _insist_on_bounds(parse_json(self.text.encode("utf-8"), "its text"))
            tokenizer = Tokenizer.from_str(self.text)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.post_processor = None
            return tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def base_size(self) -> int:
        """Ids without those of added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    def encode(self, text: str) -> list[int]:
        with _panics_as_errors():
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found


def _insist_on_bounds(said: Any) -> None:
    """Raises ValueError where a step of the tokenizer could lengthen a text beyond all bounds."""
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        steps = list(_steps(said.get(part)))
        if prod(map(_growth, steps)) > _MOST_GROWTH:
            kinds = ", ".join(str(step.get("type")) for step in steps)
            raise ValueError(f"its {part} can make a text more than {_MOST_GROWTH} times as long: {brief(kinds)[1:-1]}")
    affixes = [value for value in said["model"].values() if isinstance(value, str)]
    if any(len(affix) > _LONGEST_AFFIX for affix in affixes):
        raise ValueError(f"its model adds more than {_LONGEST_AFFIX} characters to pieces of words")


def _steps(said: Any) -> Iterator[Mapping[str, Any]]:
    """The steps that a step is made of, itself where it is one."""
    inside = said and next((one for one in said.values() if isinstance(one, list) and one), None)
    if isinstance(inside, list) and all(isinstance(one, dict) for one in inside):
        for one in inside:
            yield from _steps(one)
    elif said:
        yield said


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a text may become by that step, at most."""
    kind = step.get("type")
    if kind == "Precompiled":  # a table of bytes that says what becomes of each character; no tokenizer here has one
        return inf
    if kind == "Prepend":
        return 1.0 + len(step["prepend"])
    if kind == "Replace":
        ((how, pattern),) = step["pattern"].items()
        if how == "Regex" or not pattern:  # may be found between any two letters
            return 1.0 + len(step["content"])
        return max(1.0, len(step["content"].encode()) / len(pattern.encode()))
    return 2.0 if kind == "ByteLevel" else 1.0


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A panic of Rust, which Python holds for no Exception, as a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(in_a_line(error)) from error


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece .model file (PaliGemma's and Llama's official form)."""

    path: Path

    @cached_property
    def _processor(self) -> Any:
        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise MissingPackage("sentencepiece", "vla") from None
        return sentencepiece.SentencePieceProcessor(model_file=str(self.path))

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def id_of(self, token: str) -> int | None:
        found = int(self._processor.piece_to_id(token))
        return None if found == self._processor.unk_id() else found


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """The tokenizer of a tokenizer.json, of a .model file, or of the directory that holds one of them.

    Raises UsageError when there is none, or it is damaged.
    """
    given = Path(path)
    files = (
        [given]
        if given.is_file()
        else [f for name in ("tokenizer.json", "tokenizer.model") if (f := given / name).is_file()]
    )
    if not files:
        raise UsageError(f"There is no tokenizer at {given}; expected tokenizer.json or a SentencePiece .model file.")
    return _sentence_pieces(files[0]) if files[0].suffix == ".model" else json_tokenizer(files[0])


def _sentence_pieces(file: Path) -> SentencePieceTokenizer:
    note_read(file)
    with reading(file, "a tokenizer"):
        read_bytes(file, MOST_BYTES, "a tokenizer")
        tokenizer = SentencePieceTokenizer(file)
        tokenizer.encode(_SAMPLE)  # reads it
    return tokenizer


def json_tokenizer(file: Path) -> JsonTokenizer:
    """The tokenizer of that tokenizer.json. Raises UsageError for a missing, damaged or overlarge one."""
    note_read(file)
    with reading(file, "a tokenizer"):
        tokenizer = JsonTokenizer(read_bytes(file, MOST_BYTES, "a tokenizer").decode("utf-8"))
        tokenizer.encode(_SAMPLE)  # reads it
    return tokenizer


def tiny_tokenizer() -> JsonTokenizer:
    """The committed byte-level BPE of the tiny models."""
    return JsonTokenizer(TINY.read_text(encoding="utf-8"))


def train_tiny_tokenizer(sentences: Iterable[str]) -> str:
    """tokenizer.json of a byte-level BPE: the special tokens, 256 bytes, then merges learnt from the sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return str(tokenizer.to_str(pretty=False))


@dataclass(frozen=True)
class ActionBins:
    """Numbers in [-1, 1] as the last 256 ids of a vocabulary (RT-2's scheme, as in OpenVLA and ReconVLA).

    256 edges linspace(-1, 1) make 255 bins and their centres; `numpy.digitize` numbers them 1 to 256, and id =
    end - number: 31744 to 31999 for Llama's 32000 ids, 151387 to 151642 for Qwen2's 151643.
    """

    end: int
    """Size of the text vocabulary, without what it was padded with."""

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(-1.0, 1.0, 256)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        return (self.edges[:-1] + self.edges[1:]) / 2.0

    def encode(self, values: ArrayLike) -> Int64:
        """Ids of the same shape; values beyond [-1, 1] are clipped."""
        return np.asarray(self.end - np.digitize(np.clip(values, -1.0, 1.0), self.edges), np.int64)

    def decode(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Bin centres of the same shape; ids that are no action clip to the nearest bin, as upstream."""
        return np.asarray(self.centres[np.clip(self.end - np.asarray(ids, np.int64) - 1, 0, 254)])
