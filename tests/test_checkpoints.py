"""Checkpoints on disk, what is around them, and everything that can be wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_store import file_size_limit

from vla_bench.errors import UsageError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402
from vla_bench.policies.torch.checkpoints import (  # noqa: E402
    Checkpoint,
    is_ours,
    load_into,
    read_json,
    read_ours,
    read_tensors,
    sha256_of,
    write_ours,
)
from vla_bench.policies.torch.normalisation import Affine  # noqa: E402
from vla_bench.policies.torch.reads import noting_reads  # noqa: E402
from vla_bench.policies.torch.tokens import (  # noqa: E402
    SPECIAL,
    TINY,
    ActionBins,
    JsonTokenizer,
    load_tokenizer,
    tiny_tokenizer,
    train_tiny_tokenizer,
)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def written(folder: Path, **changes: object) -> Checkpoint:
    given = Checkpoint(
        config={"policy": "walker", "width": 4},
        tensors=small().state_dict(),
        normalisation={"state": Affine.from_mean_std([1.0, 2.0], [0.5, 4.0], 1e-6)},
        sha256="",
        tokenizer=tiny_tokenizer(),
        provenance={"trained on": "nothing"},
        **changes,  # type: ignore[arg-type]
    )
    write_ours(folder, given)
    return given


# Ours


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    given = written(tmp_path / "ckpt")
    read = read_ours(tmp_path / "ckpt", "walker")
    assert is_ours(tmp_path / "ckpt")
    assert read.config["width"] == 4
    assert read.tokenizer == given.tokenizer
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in given.tensors.items())
    np.testing.assert_array_equal(read.normalisation["state"].scale, given.normalisation["state"].scale)
    card = (tmp_path / "ckpt" / "README.md").read_text()
    assert "trained on: nothing" in card
    assert "parameters: 26" in card
    assert len({file.stat().st_mode for file in (tmp_path / "ckpt").iterdir()}) == 1


@pytest.mark.parametrize("room", [0, 20, 100, 400])
def test_a_checkpoint_that_the_disk_does_not_take_is_one_sentence_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    with file_size_limit(room), pytest.raises(UsageError, match=r"Could not write to .*ckpt \(File too large\): files"):
        written(tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_the_hash_knows_every_file_but_the_card(tmp_path: Path) -> None:
    written(tmp_path / "ckpt")
    before = sha256_of(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "README.md").write_text("other words")
    assert sha256_of(tmp_path / "ckpt") == before
    config = tmp_path / "ckpt" / "config.json"
    config.write_text(config.read_text().replace('"width": 4', '"width": 5'))
    assert sha256_of(tmp_path / "ckpt") != before


def test_an_existing_directory_is_never_written_into(tmp_path: Path) -> None:
    written(tmp_path / "ckpt")
    with pytest.raises(UsageError, match="exists already"):
        written(tmp_path / "ckpt")


def test_weights_of_another_policy_or_format_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "ckpt")
    with pytest.raises(UsageError, match="weights of 'walker', not of 'pi0'"):
        read_ours(tmp_path / "ckpt", "pi0")
    config = tmp_path / "ckpt" / "config.json"
    config.write_text(config.read_text().replace("vla-bench-1", "vla-bench-7"))
    with pytest.raises(UsageError, match="format 'vla-bench-7', this version reads 'vla-bench-1'"):
        read_ours(tmp_path / "ckpt", "walker")


# Everybody's


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    tensors = small().state_dict()
    names = list(tensors)
    placed = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(placed.values()):
        safetensors.save_file({n: tensors[n] for n in names if placed[n] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    read = read_tensors(tmp_path)
    assert sorted(read) == sorted(names)
    assert all(torch.equal(read[name], tensors[name]) for name in names)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "model.safetensors"
    safetensors.save_file(small().state_dict(), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"cannot be read .*is it truncated\? Download it again\.$"):
        read_tensors(file)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "harm"), "w")  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"weights\.pt names io\.open"):
        read_tensors(tmp_path / "weights.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("path", "said"), [("nowhere", "There is no file"), (".", "has neither model.safetensors nor")]
)
def test_a_missing_file_is_one_sentence(tmp_path: Path, path: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_tensors(tmp_path / path)


def test_loading_is_strict_about_names_and_shapes() -> None:
    tensors = small().state_dict()
    load_into(model := small(), tensors, "here")
    assert torch.equal(model.state_dict()["0.weight"], tensors["0.weight"])
    for change, said in [
        ({name: t for name, t in tensors.items() if name != "0.bias"}, "0.bias missing"),
        ({**tensors, "2.bias": tensors["0.bias"]}, "2.bias not expected"),
        ({**tensors, "0.bias": torch.zeros(7)}, r"0.bias of another shape \(0.bias: \(7,\), expected \(4,\)\)"),
    ]:
        with pytest.raises(UsageError, match=f"here is no checkpoint of this architecture: {said}"):
            load_into(small(), change, "here")


def test_a_model_comes_off_the_meta_device_in_its_own_dtype() -> None:
    with torch.device("meta"):
        model = small().to(torch.bfloat16)
    tensors = small().state_dict()
    load_into(model, tensors, "here")
    loaded = model.state_dict()["1.weight"]
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.bfloat16)


# Normalisation


def test_normalisation_is_the_papers_formula_and_its_inverse() -> None:
    rng = np.random.default_rng(0)
    mean, std, values = rng.normal(size=(3, 5)).astype(np.float32)
    std = np.abs(std) + 0.1
    by_mean = Affine.from_mean_std(mean, std, 1e-6)
    by_range = Affine.from_range(mean, mean + std, 1e-6)
    np.testing.assert_allclose(by_mean.apply(values), (values - mean) / (std + 1e-6), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_range.apply(values), 2 * (values - mean) / (std + 1e-6) - 1, rtol=1e-5, atol=1e-6)
    for affine in (by_mean, by_range, Affine.identity(5), by_range.where([True, False, True, True, False])):
        np.testing.assert_allclose(affine.invert(affine.apply(values)), values, rtol=1e-5, atol=1e-6)


def test_what_has_no_statistics_passes_through() -> None:
    affine = Affine.from_range([0.0], [2.0], 0.0)
    np.testing.assert_allclose(affine.apply([[2.0, 7.0]]), [[1.0, 7.0]])
    np.testing.assert_allclose(Affine.from_range([0, 0], [2, 2], 0).where([False, True]).apply([2, 2]), [2, 1])


@pytest.mark.parametrize(("scale", "offset"), [([0.0], [1.0]), ([np.nan], [0.0]), ([1.0], [0.0, 1.0])])
def test_statistics_that_cannot_be_are_a_usage_error(scale: list[float], offset: list[float]) -> None:
    with pytest.raises(ValueError, match="normalisation"):
        Affine(np.array(scale), np.array(offset))


@pytest.mark.parametrize(
    "given", [{"scale": [1.0]}, {"scale": [None], "offset": [0.0]}, {"scale": "x", "offset": "y"}, 3]
)
def test_a_damaged_normalisation_file_is_a_usage_error_that_names_it(given: object, tmp_path: Path) -> None:
    written(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "normalisation.json").write_text(json.dumps({"state": given}))
    with pytest.raises(UsageError, match=r"normalisation\.json cannot be read as normalisation"):
        read_ours(tmp_path / "ckpt", "walker")


# Tokens


@pytest.mark.parametrize("end", [32000, 151643, 600])
def test_action_tokens_are_the_closed_formula_at_all_bins(end: int) -> None:
    bins = ActionBins(end)
    width = 2 / 255
    for number in range(1, 256):
        inside = -1 + (number - 0.5) * width
        assert bins.encode([inside]) == [end - number]
        np.testing.assert_allclose(bins.decode([end - number]), [inside], atol=1e-12)
    assert bins.encode([-1.0, 1.0, -9.0, 9.0]).tolist() == [end - 1, end - 256, end - 1, end - 256]
    np.testing.assert_allclose(bins.decode([end - 256, end, 0]), [1 - width / 2, -1 + width / 2, 1 - width / 2])


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_ids_of_any_whole_type_decode_alike_and_those_beyond_clip_to_minus_one(dtype: str) -> None:
    bins, ids = ActionBins(32000), np.array([5, 31743, 31744, 31999, 32000, 32063])
    expected = np.array([1, 1, 1, -1, -1, -1]) * 254 / 255
    np.testing.assert_allclose(bins.decode(ids.astype(dtype)), expected, atol=1e-12)


def test_the_tiny_tokenizer_knows_every_text() -> None:
    tokenizer = tiny_tokenizer()
    assert [tokenizer.id_of(token) for token in SPECIAL] == [0, 1, 2, 3]
    assert tokenizer.vocab_size <= 1024
    ids = tokenizer.encode("Öffne 7 Türen\n")
    assert ids
    assert all(len(SPECIAL) <= token < tokenizer.vocab_size for token in ids)
    assert load_tokenizer(TINY).encode("open the drawer") == tokenizer.encode("open the drawer")


def test_padding_and_truncation_left_in_a_file_are_not_followed() -> None:
    from tokenizers import Tokenizer

    used = Tokenizer.from_file(str(TINY))
    used.enable_padding(length=48, pad_id=0)
    used.enable_truncation(3)
    text = "open the top drawer and put the bowl inside"
    assert JsonTokenizer(used.to_str()).encode(text) == tiny_tokenizer().encode(text)


def test_training_the_tiny_tokenizer_is_repeatable() -> None:
    sentences = ["open the top drawer", "put the bowl on the plate", "open the middle drawer"]
    assert train_tiny_tokenizer(sentences) == train_tiny_tokenizer(sentences)


def test_a_damaged_or_missing_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be read|tokenizer\.json: its text cannot be read"):
        load_tokenizer(tmp_path)


def test_the_hash_is_over_what_is_read_and_nothing_beside_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def read() -> str:
        with noting_reads():
            read_json(tmp_path / "config.json")
            read_tensors(tmp_path)
            return sha256_of(tmp_path)

    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    before = read()
    for name in ("README.md", "notes.txt", "other.json", "optimizer.pt", ".git/HEAD", ".cache/huggingface/x.metadata"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert read() == before
    (tmp_path / "config.json").write_text('{"width": 5}', encoding="utf-8")
    assert read() != before
