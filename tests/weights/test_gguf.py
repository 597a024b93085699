"""GGUF: every kind of block against the formulas of the format, metadata as other programs write it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from minillama import weights
from minillama.config import LlamaConfig, RopeScaling
from minillama.errors import MinillamaError, UsageError
from minillama.weights.gguf import gguf_name
from tests.weights.support import TINY, assert_same_params, random_params, tiny_checkpoint

# Blocks of K quantizations are 256 values wide.
WIDE = LlamaConfig(256, 1, 4, 256, vocab_size=4, max_seq_len=16, tie_embeddings=True)


def write(path: Path, config: LlamaConfig, tensors: dict[str, tuple[np.ndarray, Any]], **changes: Any) -> None:
    """A GGUF by the package's writer: tensors (bytes or floats, type) under their GGUF names; None drops a key."""
    fields = {
        "llama.block_count": config.n_layers,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
    } | changes
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    for key, value in fields.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, (value, kind) in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plain_tensors(config: LlamaConfig) -> dict[str, tuple[np.ndarray, Any]]:
    return {gguf_name(name): (value, None) for name, value in random_params(config).items()}


def half(data: bytes) -> float:
    return float(np.frombuffer(data, "<f2")[0])


# One block of each kind, value by value, as ggml's structures define them.
def q8_0(b: bytes) -> list[float]:
    return [half(b[:2]) * q for q in np.frombuffer(b[2:], np.int8).tolist()]


def q4_0(b: bytes) -> list[float]:
    return [half(b[:2]) * ((b[2 + i % 16] >> 4 * (i // 16) & 15) - 8) for i in range(32)]


def q4_1(b: bytes) -> list[float]:
    return [half(b[:2]) * (b[4 + i % 16] >> 4 * (i // 16) & 15) + half(b[2:4]) for i in range(32)]


def five_bits(b: bytes, i: int, start: int) -> int:
    high = int.from_bytes(b[start : start + 4], "little") >> i & 1
    return b[start + 4 + i % 16] >> 4 * (i // 16) & 15 | high << 4


def q5_0(b: bytes) -> list[float]:
    return [half(b[:2]) * (five_bits(b, i, 2) - 16) for i in range(32)]


def q5_1(b: bytes) -> list[float]:
    return [half(b[:2]) * five_bits(b, i, 4) + half(b[2:4]) for i in range(32)]


def scale_and_min(scales: bytes, j: int) -> tuple[int, int]:
    """Six bits each, of eight groups, in twelve bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4


def q4_k(b: bytes) -> list[float]:
    d, dmin, scales, quants = half(b[:2]), half(b[2:4]), b[4:16], b[16:]
    values = []
    for i in range(256):
        group, in_pair = i // 32, i % 64
        quant = quants[i // 64 * 32 + in_pair % 32] >> 4 * (in_pair // 32) & 15
        scale, minimum = scale_and_min(scales, group)
        values.append(d * scale * quant - dmin * minimum)
    return values


def q5_k(b: bytes) -> list[float]:
    d, dmin, scales, high, quants = half(b[:2]), half(b[2:4]), b[4:16], b[16:48], b[48:]
    values = []
    for i in range(256):
        group, in_pair = i // 32, i % 64
        quant = quants[i // 64 * 32 + in_pair % 32] >> 4 * (in_pair // 32) & 15
        quant |= (high[i % 32] >> group & 1) << 4
        scale, minimum = scale_and_min(scales, group)
        values.append(d * scale * quant - dmin * minimum)
    return values


def q6_k(b: bytes) -> list[float]:
    low, high, scales, d = b[:128], b[128:192], np.frombuffer(b[192:208], np.int8).tolist(), half(b[208:])
    values = []
    for i in range(256):
        part, quarter, k = i // 128, i % 128 // 32, i % 32
        quant = low[part * 64 + quarter % 2 * 32 + k] >> 4 * (quarter // 2) & 15
        quant |= (high[part * 32 + k] >> 2 * quarter & 3) << 4
        values.append(d * scales[i // 16] * (quant - 32))
    return values


def q2_k(b: bytes) -> list[float]:
    scales, quants, d, dmin = b[:16], b[16:80], half(b[80:82]), half(b[82:])
    values = []
    for i in range(256):
        quant = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
        values.append(d * (scales[i // 16] & 15) * quant - dmin * (scales[i // 16] >> 4))
    return values


def q3_k(b: bytes) -> list[float]:
    high, quants, scales, d = b[:32], b[32:96], b[96:108], half(b[108:])
    values = []
    for i in range(256):
        j = i // 16
        scale = scales[j % 8] >> 4 * (j // 8) & 15 | (scales[8 + j % 4] >> 2 * (j // 4) & 3) << 4
        quant = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
        quant -= 0 if high[i % 32] >> i // 32 & 1 else 4
        values.append(d * (scale - 32) * quant)
    return values


# Where the float16 scales of a block are: random bytes there could be NaN.
KINDS: dict[str, tuple[Callable[[bytes], list[float]], tuple[int, ...]]] = {
    "Q8_0": (q8_0, (0,)),
    "Q4_0": (q4_0, (0,)),
    "Q4_1": (q4_1, (0, 2)),
    "Q5_0": (q5_0, (0,)),
    "Q5_1": (q5_1, (0, 2)),
    "Q2_K": (q2_k, (80, 82)),
    "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (q5_k, (0, 2)),
    "Q6_K": (q6_k, (208,)),
}


@pytest.mark.parametrize("name", KINDS)
def test_quantized_blocks(tmp_path: Path, name: str) -> None:
    decode, scales = KINDS[name]
    kind = gguf.GGMLQuantizationType[name]
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (256 * 256 // block_values, block_bytes), np.uint8)
    for offset in scales:
        blocks[:, offset : offset + 2] = rng.uniform(-1, 1, (len(blocks), 1)).astype("<f2").view(np.uint8)
    tensors = plain_tensors(WIDE) | {"blk.0.attn_output.weight": (blocks.reshape(256, -1), kind)}
    write(tmp_path / "model.gguf", WIDE, tensors)
    found = weights.load(tmp_path / "model.gguf").params["layers.0.attention.wo.weight"]
    expected = np.array([decode(block.tobytes()) for block in blocks]).reshape(256, 256)
    # The formulas in float64; the package computes in float32.
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert found.std() > 0.1


@pytest.mark.parametrize(("name", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_sixteen_bit_tensors(tmp_path: Path, name: str, dtype: type) -> None:
    value = np.random.default_rng(0).standard_normal((256, 256)).astype(dtype)
    kind = gguf.GGMLQuantizationType[name]
    stored = value if name == "F16" else value.view(np.uint8)
    write(tmp_path / "model.gguf", WIDE, plain_tensors(WIDE) | {"blk.0.attn_q.weight": (stored, kind)})
    found = weights.load(tmp_path / "model.gguf").params["layers.0.attention.wq.weight"]
    assert np.array_equal(found, value.astype(np.float32))


def test_what_the_metadata_leaves_out(tmp_path: Path) -> None:
    config = replace(TINY, n_kv_heads=4)
    write(tmp_path / "model.gguf", config, plain_tensors(config), **{"llama.attention.head_count_kv": None})
    loaded = weights.load(tmp_path / "model.gguf")
    assert loaded.config == config
    assert loaded.tokenizer is None
    assert_same_params(loaded.params, random_params(config))


def test_numbers_repeated_for_each_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, TINY, plain_tensors(TINY), **{"llama.attention.head_count_kv": [2, 2]})
    assert weights.load(path).config == TINY
    write(path, TINY, plain_tensors(TINY), **{"llama.attention.head_count_kv": [2, 4]})
    with pytest.raises(MinillamaError, match=r"expected llama\.attention\.head_count_kv to be of type int, found \[2"):
        weights.load(path)


def test_linear_scaling_under_its_old_name(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", TINY, plain_tensors(TINY), **{"llama.rope.scale_linear": 4.0})
    assert weights.load(tmp_path / "model.gguf").config.rope_scaling == RopeScaling("linear", 4.0)


def llama31_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """As llama.cpp's converter makes them for Llama 3.1: by wavelength, over a context of 8192."""
    factors = []
    for frequency in theta ** (-np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])  # Llama 3.1 and 3.3; 3.2
def test_llama31_frequency_factors(tmp_path: Path, factor: float) -> None:
    config = replace(TINY, head_dim=64, rope_theta=500_000.0)
    factors = llama31_factors(64, 500_000.0, factor)
    assert 1 < np.unique(factors).size < 32  # fast, slow and in between
    tensors = plain_tensors(config) | {"rope_freqs.weight": (factors, None)}
    sizes = {"llama.rope.dimension_count": 64, "llama.rope.freq_base": 500_000.0}
    write(tmp_path / "model.gguf", config, tensors, **sizes)
    assert weights.load(tmp_path / "model.gguf").config.rope_scaling == RopeScaling("llama3", factor)
    factors[3] *= 1.5
    write(tmp_path / "model.gguf", config, tensors, **sizes)
    with pytest.raises(MinillamaError, match=r"rope_freqs\.weight: expected the factors of Llama 3\.1's rule, found"):
        weights.load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "expected general.architecture llama, found 'qwen2'"),
        ({"llama.expert_count": 8}, "expected a dense Llama, found 8 experts"),
        ({"llama.block_count": None}, "expected llama.block_count in the metadata, found none"),
        ({"llama.block_count": 3}, "missing blk.2.attn_norm.weight"),
        ({"llama.block_count": 1}, "expected 11 tensors, found also blk.1.attn_norm.weight"),
        ({"llama.embedding_length": 64}, "tensor token_embd.weight: expected shape (262, 64), found (262, 32)"),
        ({"llama.embedding_length": "32"}, "expected llama.embedding_length to be of type int, found '32'"),
        ({"llama.attention.value_length": 4}, "expected llama.attention.value_length to be the head width 8, found 4"),
        ({"llama.rope.dimension_count": 4, "llama.attention.key_length": 8}, "to be the head width 8, found 4"),
        ({"llama.rope.scaling.type": "yarn"}, "expected llama.rope.scaling.type none or linear, found 'yarn'"),
        ({"llama.attention.head_count": 3}, "n_heads 3 is not a multiple of n_kv_heads 2"),
        ({"tokenizer.ggml.model": "unigram"}, "expected a tokenizer of model 'llama' or 'gpt2', found 'unigram'"),
        ({"tokenizer.chat_template": "{% if %}"}, "not a valid Jinja2 template"),
        ({"tokenizer.chat_template": 3}, "expected tokenizer.chat_template to be text, found int"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write(tmp_path / "model.gguf", TINY, plain_tensors(TINY), **changes)
    with pytest.raises(MinillamaError) as caught:
        weights.load(tmp_path / "model.gguf")
    assert str(caught.value).startswith(f"{tmp_path / 'model.gguf'}: ")
    assert message in str(caught.value)


def test_a_type_that_is_not_read(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.IQ4_NL
    blocks = np.zeros((256, 256 // 32 * 18), np.uint8)
    write(tmp_path / "model.gguf", WIDE, plain_tensors(WIDE) | {"blk.0.attn_q.weight": (blocks, kind)})
    with pytest.raises(MinillamaError, match=r"blk\.0\.attn_q\.weight: expected one of F32, F16, .*, found IQ4_NL"):
        weights.load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4, struct.pack("<I", 1), "expected little-endian GGUF version 2 or 3, found version 1"),
        (4, struct.pack(">I", 3), "expected little-endian GGUF version 2 or 3, found version"),
        (8, struct.pack("<Q", 2**60), "bytes of header (1152921504606846976 tensors"),
        (16, struct.pack("<Q", 2**60), "1152921504606846976 metadata values)"),
        (24, struct.pack("<Q", 2**62), "expected 4611686018427387904 bytes of text at 32"),
    ],
)
def test_damaged_header(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    weights.save(tiny_checkpoint(), path)
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(MinillamaError) as caught:
        weights.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [0, 8])  # an array of bytes, an array of strings
def test_an_array_longer_than_the_file(tmp_path: Path, kind: int) -> None:
    key = b"an.array"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, kind, 2**60)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(64))
    with pytest.raises(MinillamaError, match="of an array of 1152921504606846976"):
        weights.load(tmp_path / "model.gguf")


def test_our_metadata_is_what_the_package_reads(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(replace(TINY, vocab_size=265))
    weights.save(checkpoint, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    get = {key: field.contents() for key, field in reader.fields.items()}
    assert get["general.architecture"] == "llama"
    assert get["llama.attention.head_count_kv"] == 2
    assert get["tokenizer.ggml.tokens"][-3:] == ["[PAD262]", "[PAD263]", "[PAD264]"]
    assert get["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    assert len(get["tokenizer.ggml.scores"]) == 265
    for tensor in reader.tensors:
        ours = {gguf_name(name): value for name, value in checkpoint.params.items()}[tensor.name]
        assert np.array_equal(tensor.data, ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int8", "nonsense"])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UsageError, match=r"dtype|a GGUF is written as float32 or float16"):
        weights.save(tiny_checkpoint(), tmp_path / "model.gguf", dtype=dtype)


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(MinillamaError, match="expected a tokenizer of at most 260 tokens, found 262"):
        weights.save(tiny_checkpoint(replace(TINY, vocab_size=260)), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
