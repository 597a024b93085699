"""The layout of llama2.c's files, and what they have no place for."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minillama import weights
from minillama.errors import MinillamaError, UsageError
from tests.weights.support import CONFIGS, OTHER_CONFIGS, TINY, assert_same_params, tiny_checkpoint

LAYERS = [f"layers.{i}." for i in range(TINY.n_layers)]
ATTENTION = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
FEED_FORWARD = ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]


def all_layers(params: dict, kinds: list[str]) -> list[np.ndarray]:
    return [params[f"{layer}{kind}.weight"] for kind in kinds for layer in LAYERS]


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_legacy_layout(tmp_path: Path, name: str) -> None:
    """Written here by hand, in the order in which run.c maps the file."""
    checkpoint = tiny_checkpoint(CONFIGS[name], tokenizer=False)
    params = checkpoint.params
    tied = name == "tied"
    header = struct.pack("<7i", 32, 64, 2, 4, 2, 262 if tied else -262, 16)
    parts = [params["tok_embeddings.weight"]]
    parts += all_layers(params, ["attention_norm", *ATTENTION, "ffn_norm", *FEED_FORWARD])
    parts += [params["norm.weight"], np.zeros((2, 16, 4), np.float32)]
    parts += [] if tied else [params["output.weight"]]
    (tmp_path / "model.bin").write_bytes(header + b"".join(part.tobytes() for part in parts))
    loaded = weights.load(tmp_path / "model.bin")
    assert loaded.config == checkpoint.config
    assert_same_params(loaded.params, params)
    weights.save(checkpoint, tmp_path / "ours.bin")
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours.bin", "model.bin"))
    tables = 28 + 4 * sum(part.size for part in parts[: -2 if not tied else -1]), 4 * 2 * 16 * 4
    assert ours[: tables[0]] == theirs[: tables[0]]
    assert ours[sum(tables) :] == theirs[sum(tables) :]
    cos, sin = np.frombuffer(ours[tables[0] : sum(tables)], "<f4").reshape(2, 16, 4)
    angles = np.outer(np.arange(16), 10_000.0 ** (-np.arange(0, 8, 2) / 8))
    assert np.abs(cos - np.cos(angles)).max() < 1e-7
    assert np.abs(sin - np.sin(angles)).max() < 1e-7


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_version_1_layout(tmp_path: Path, name: str) -> None:
    checkpoint = tiny_checkpoint(CONFIGS[name], tokenizer=False)
    params = checkpoint.params
    header = struct.pack("<Ii7iB", 0x616B3432, 1, 32, 64, 2, 4, 2, 262, 16, name == "tied").ljust(256, b"\0")
    parts = all_layers(params, ["attention_norm"]) + all_layers(params, ["ffn_norm"])
    parts += [params["norm.weight"], params["tok_embeddings.weight"]]
    parts += all_layers(params, [*ATTENTION, *FEED_FORWARD])
    parts += [] if name == "tied" else [params["output.weight"]]
    content = header + b"".join(part.tobytes() for part in parts)
    (tmp_path / "model.bin").write_bytes(content)
    assert_same_params(weights.load(tmp_path / "model.bin").params, params)
    weights.save(checkpoint, tmp_path / "ours.bin", to="llama2c-v1")
    assert (tmp_path / "ours.bin").read_bytes() == content


def test_version_2_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q8.bin").write_bytes(struct.pack("<Ii", 0x616B3432, 2).ljust(300, b"\0"))
    with pytest.raises(MinillamaError, match=r"q8\.bin: expected llama2\.c version 0 or 1, found version 2"):
        weights.load(tmp_path / "q8.bin")


@pytest.mark.parametrize("config", OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_no_field_for(tmp_path: Path, config: weights.Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"model\.bin: llama2\.c files have no field for \w+: expected"):
        weights.save(tiny_checkpoint(config), tmp_path / "model.bin")
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_is_found_under_either_name(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    weights.save(checkpoint, tmp_path / "model.bin")
    assert (tmp_path / "tok262.bin").is_file()
    (tmp_path / "tok262.bin").rename(tmp_path / "tokenizer.bin")
    loaded = weights.load(tmp_path / "model.bin")
    assert loaded.tokenizer is not None
    assert checkpoint.tokenizer is not None
    assert loaded.tokenizer.encode("a a") == checkpoint.tokenizer.encode("a a")


def test_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(replace(TINY, vocab_size=270), tokenizer=False), tmp_path / "model.bin")
    weights.save(tiny_checkpoint(), tmp_path / "other.bin")
    (tmp_path / "tok262.bin").rename(tmp_path / "tokenizer.bin")
    with pytest.raises(MinillamaError, match=r"tokenizer\.bin: expected 270 pieces, found 262"):
        weights.load(tmp_path / "model.bin")


def test_another_models_tokenizer_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tok262.bin").write_bytes(b"another model's")
    with pytest.raises(UsageError, match=r"tok262\.bin: expected this model's tokenizer or none, found another"):
        weights.save(tiny_checkpoint(), tmp_path / "model.bin")
    assert (tmp_path / "tok262.bin").read_bytes() == b"another model's"
    assert not (tmp_path / "model.bin").exists()


def test_only_float32(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama2\.c files hold float32, not float16"):
        weights.save(tiny_checkpoint(), tmp_path / "model.bin", dtype="float16")
