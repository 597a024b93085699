"""load(save(x)) is x, bit for bit, in each format and through chains of formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from minillama import weights
from minillama.chat import builtin
from minillama.config import LlamaConfig
from tests.data import data_file, smollm2_gguf
from tests.weights.support import CONFIGS, OTHER_CONFIGS, TINY, assert_same_params, tiny_checkpoint, write_meta

FORMATS = {"llama2c": "model.bin", "llama2c-v1": "model.bin", "huggingface": "model", "gguf": "model.gguf"}
TEXT = "a  12 aé🙂\n</s>"


@pytest.fixture(scope="module")
def smollm2() -> weights.Checkpoint:
    return weights.load(smollm2_gguf())


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_format(tmp_path: Path, config: LlamaConfig, to: str) -> None:
    checkpoint = tiny_checkpoint(config)
    weights.save(checkpoint, tmp_path / FORMATS[to], to=to)
    loaded = weights.load(tmp_path / FORMATS[to])
    assert loaded.format == to
    assert loaded.config == config
    assert_same_params(loaded.params, checkpoint.params)
    assert checkpoint.tokenizer is not None
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode(TEXT) == checkpoint.tokenizer.encode(TEXT)


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
@pytest.mark.parametrize("config", OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_every_config(tmp_path: Path, config: LlamaConfig, to: str) -> None:
    checkpoint = tiny_checkpoint(config)
    weights.save(checkpoint, tmp_path / FORMATS[to], to=to)
    loaded = weights.load(tmp_path / FORMATS[to])
    assert loaded.config == config
    assert_same_params(loaded.params, checkpoint.params)


@pytest.mark.parametrize("to", FORMATS)
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path, to: str) -> None:
    first, second = tmp_path / "first" / FORMATS[to], tmp_path / "second" / FORMATS[to]
    weights.save(tiny_checkpoint(), first, to=to)
    weights.save(weights.load(first), second, to=to)
    files = [path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (first.parent / file).read_bytes() == (second.parent / file).read_bytes(), file


def test_through_all_formats_and_back(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(CONFIGS["untied"])
    write_meta(tmp_path / "meta", checkpoint.params, checkpoint.config, n_files=2)
    current = weights.load(tmp_path / "meta")
    # Meta's folders do not say how long the context is.
    current.config, current.tokenizer = replace(current.config, max_seq_len=16), checkpoint.tokenizer
    for i, (to, name) in enumerate(FORMATS.items()):
        weights.save(current, tmp_path / str(i) / name, to=to)
        current = weights.load(tmp_path / str(i) / name)
    assert current.config == checkpoint.config
    assert_same_params(current.params, checkpoint.params)


@pytest.mark.parametrize(("to", "kind"), [("huggingface", ml_dtypes.bfloat16), ("huggingface", np.float16)])
def test_sixteen_bits_in_and_out(tmp_path: Path, to: str, kind: type) -> None:
    checkpoint = tiny_checkpoint()
    weights.save(checkpoint, tmp_path / "first", to=to, dtype=kind)
    loaded = weights.load(tmp_path / "first")
    rounded = {name: value.astype(kind) for name, value in checkpoint.params.items()}
    assert_same_params(loaded.params, {name: value.astype(np.float32) for name, value in rounded.items()})
    assert_same_params(weights.load(tmp_path / "first", dtype=kind).params, rounded)
    weights.save(loaded, tmp_path / "second", to=to, dtype=kind)
    name = "model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_half_gguf_rounds_matrices_only(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    weights.save(checkpoint, tmp_path / "half.gguf", dtype="float16")
    expected = {
        name: value if value.ndim == 1 else value.astype(np.float16).astype(np.float32)
        for name, value in checkpoint.params.items()
    }
    assert_same_params(weights.load(tmp_path / "half.gguf").params, expected)


def test_float64_stays_float64(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.params = {name: value.astype(np.float64) / 3 for name, value in checkpoint.params.items()}
    weights.save(checkpoint, tmp_path / "model")
    assert_same_params(weights.load(tmp_path / "model", dtype=np.float64).params, checkpoint.params)


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_chat_template_comes_along(tmp_path: Path, to: str) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.chat_template = builtin("chatml")
    weights.save(checkpoint, tmp_path / FORMATS[to], to=to)
    loaded = weights.inspect(tmp_path / FORMATS[to])
    assert loaded.params == {}
    assert loaded.chat_template is not None
    assert loaded.chat_template.source == checkpoint.chat_template.source


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_a_vocabulary_larger_than_the_tokenizer(tmp_path: Path, to: str) -> None:
    checkpoint = tiny_checkpoint(replace(TINY, vocab_size=270))
    weights.save(checkpoint, tmp_path / FORMATS[to], to=to)
    loaded = weights.load(tmp_path / FORMATS[to])
    assert_same_params(loaded.params, checkpoint.params)
    assert checkpoint.tokenizer is not None
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode(TEXT) == checkpoint.tokenizer.encode(TEXT)


@pytest.mark.parametrize("to", FORMATS)
def test_without_a_tokenizer(tmp_path: Path, to: str) -> None:
    weights.save(tiny_checkpoint(tokenizer=False), tmp_path / FORMATS[to], to=to)
    assert weights.load(tmp_path / FORMATS[to]).tokenizer is None


@pytest.mark.parametrize("path", ["weights/stories260K.bin", "weights/stories260K_v1.bin"])
def test_stories260k(tmp_path: Path, path: str) -> None:
    original = weights.load(data_file(path))
    assert original.config.param_count() == 260_032
    for to, name in FORMATS.items():
        weights.save(original, tmp_path / to / name, to=to)
        loaded = weights.load(tmp_path / to / name)
        assert loaded.config == original.config
        assert_same_params(loaded.params, original.params)


def test_both_versions_of_stories260k_are_one_model() -> None:
    legacy, version1 = (weights.load(data_file(f"weights/stories260K{end}.bin")) for end in ("", "_v1"))
    assert legacy.config == version1.config
    assert_same_params(version1.params, legacy.params)


def test_our_version_1_is_llama2cs_byte_for_byte(tmp_path: Path) -> None:
    weights.save(weights.load(data_file("weights/stories260K.bin")), tmp_path / "ours.bin", to="llama2c-v1")
    assert (tmp_path / "ours.bin").read_bytes() == data_file("weights/stories260K_v1.bin").read_bytes()


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_smollm2(smollm2: weights.Checkpoint, tmp_path: Path, to: str) -> None:
    original = smollm2
    weights.save(original, tmp_path / FORMATS[to], to=to)
    loaded = weights.load(tmp_path / FORMATS[to])
    assert loaded.config == original.config
    assert_same_params(loaded.params, original.params)
    assert original.tokenizer is not None
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode(TEXT) == original.tokenizer.encode(TEXT)
    assert loaded.tokenizer.stop_ids == original.tokenizer.stop_ids
    assert original.chat_template is not None
    assert loaded.chat_template is not None
    assert loaded.chat_template.source == original.chat_template.source
