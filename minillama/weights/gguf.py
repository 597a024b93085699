"""GGUF, llama.cpp's format: metadata, tokenizer and tensors in one file, quantized or not.

The header is read here, field by field with its bounds checked, because the package's own reader keeps an array for
each of a vocabulary's strings (SmolLM2: 2.1 s and 160 MB against 0.1 s and 15 MB) and can be led astray by a damaged
length. Numbers of types, block sizes, dequantization and writing are the `gguf` package's.
Files of architecture `llama` keep Wq and Wk in Meta's interleaved order, which is ours.
Source: github.com/ggml-org/ggml, `docs/gguf.md`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minillama.config import LlamaConfig, RopeScaling
from minillama.errors import MinillamaError, UsageError
from minillama.layers import rope_frequencies
from minillama.weights.checkpoint import Checkpoint, build_config, plain_theta
from minillama.weights.reading import StoredTensor, check_extent, check_stored, fill, plain, read_params
from minillama.weights.writing import host_array, replaced_file

_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
_OTHER_NAMES = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # (D/2,) divisors of the RoPE frequencies, in files of Llama 3.1 and later
_OUR_RULE = "minillama.rope.llama3"  # prefix of metadata that only we write
_QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

# Metadata value types: number in the file -> struct code. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def gguf_name(name: str) -> str:
    """Our name of a tensor -> its name in a GGUF."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, kind = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{_LAYER_NAMES[kind]}.weight"


def load(path: Path, dtype: DTypeLike = np.float32, with_params: bool = True) -> Checkpoint:
    """The checkpoint in the GGUF at `path`, dequantized. Raises MinillamaError for what is broken or is no Llama."""
    from minillama.chat import ChatTemplate
    from minillama.tokenizer import from_gguf

    metadata, stored = read_header(path)
    config = config_from_metadata(path, metadata, stored)
    has_tokenizer = metadata.get("tokenizer.ggml.model", "no_vocab") not in ("no_vocab", "none")
    tokenizer = from_gguf(metadata, where=str(path)) if has_tokenizer else None
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise MinillamaError(f"{path}: expected tokenizer.chat_template to be text, found {type(template).__name__}")
    chat_template = ChatTemplate.from_source(template, f"{path}: chat template") if template else None
    metadata.clear()  # a hundred thousand strings: their memory is free again before the weights come
    check_stored(path, config, stored, gguf_name, ignored={ROPE_FACTORS})
    params = read_params(path, config, stored, dtype, gguf_name, ignored={ROPE_FACTORS}) if with_params else {}
    return Checkpoint(config, params, tokenizer, chat_template, format="gguf")


class _Cursor:
    """Reads the header from a mapped file and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.offset = path, data, 0

    def need(self, nbytes: int, what: str) -> None:
        found = len(self.data) - self.offset
        if nbytes > found:
            raise MinillamaError(f"{self.path}: expected {nbytes} bytes of {what} at {self.offset}, found {found}")

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self.need(size, "header")
        (value,) = struct.unpack_from("<" + code, self.data, self.offset)
        self.offset += size
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        self.need(size, "text")
        start, self.offset = self.offset, self.offset + size
        try:
            return self.data[start : self.offset].decode("utf-8")
        except UnicodeDecodeError:
            raise MinillamaError(f"{self.path}: expected UTF-8 text at {start}, found something else") from None

    def value(self) -> Any:
        """A metadata value: a number, a string, or a list of these."""
        kind = self.scalar("I")
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise MinillamaError(f"{self.path}: expected a metadata type of 0 to 12 at {self.offset - 4}, found {kind}")
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            self.need(8 * length, f"an array of {length} strings")
            return [self.string() for _ in range(length)]
        if kind not in _SCALARS:
            raise MinillamaError(f"{self.path}: expected an array of numbers or strings, found metadata type {kind}")
        dtype = np.dtype("<" + _SCALARS[kind])
        self.need(dtype.itemsize * length, f"an array of {length} numbers")
        values = np.frombuffer(self.data, dtype, length, self.offset).tolist()
        self.offset += dtype.itemsize * length
        return values


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Metadata (key -> number, string or list) and tensors of the GGUF at `path`. Raises MinillamaError."""
    if path.stat().st_size < 24:
        raise MinillamaError(f"{path}: expected a GGUF header of 24 bytes, found {path.stat().st_size}")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        magic, version = cursor.scalar("I"), cursor.scalar("I")
        if magic != 0x46554747:  # "GGUF"
            raise MinillamaError(f"{path}: expected a GGUF file, found one that starts with {data[:4]!r}")
        if version not in (2, 3):
            raise MinillamaError(f"{path}: expected little-endian GGUF version 2 or 3, found version {version}")
        n_tensors, n_values = cursor.scalar("Q"), cursor.scalar("Q")
        # No entry is shorter than this, so a damaged count ends here and not in a long loop.
        cursor.need(24 * n_tensors + 13 * n_values, f"header ({n_tensors} tensors, {n_values} metadata values)")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.string()
            if key in metadata:
                raise MinillamaError(f"{path}: expected metadata keys once, found {key} twice")
            metadata[key] = cursor.value()
        entries = [_tensor_entry(cursor) for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise MinillamaError(f"{path}: expected general.alignment to be a power of two, found {alignment!r}")
        data_start = -(-cursor.offset // alignment) * alignment
    stored: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in entries:
        if name in stored:
            raise MinillamaError(f"{path}: expected tensors once, found {name} twice")
        stored[name] = _stored_tensor(path, name, shape, kind, data_start + offset)
    return metadata, stored


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor. A GGUF gives the fastest-running axis first; we give it last."""
    name, n_axes = cursor.string(), cursor.scalar("I")
    if not 1 <= n_axes <= 4:
        raise MinillamaError(f"{cursor.path}: tensor {name}: expected 1 to 4 axes, found {n_axes}")
    shape = tuple(cursor.scalar("Q") for _ in range(n_axes))[::-1]
    if 0 in shape:
        raise MinillamaError(f"{cursor.path}: tensor {name}: expected a shape without zeros, found {shape}")
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")


def _stored_tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError:
        raise MinillamaError(f"{path}: tensor {name}: expected a type known to gguf, found number {kind}") from None
    if quantization.name in ("F32", "F16", "BF16"):
        return plain(path, offset, shape, quantization.name)
    if quantization.name not in _QUANTIZED:
        supported = ", ".join(("F32", "F16", "BF16", *_QUANTIZED))
        raise MinillamaError(f"{path}: tensor {name}: expected one of {supported}, found {quantization.name}")
    block_values, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape[-1] % block_values:
        raise MinillamaError(
            f"{path}: tensor {name}: expected rows of whole {block_values}-value blocks, found {shape[-1]} values"
        )
    nbytes = prod(shape) // block_values * block_bytes
    return StoredTensor(path, offset, nbytes, shape, partial(_dequantize, quantization))


def _dequantize(quantization: Any, data: np.ndarray) -> np.ndarray:
    """Whole blocks, as uint8 (N,) -> their float32 values. Given as one row, the package takes them in one step."""
    from gguf.quants import dequantize

    return dequantize(data.reshape(1, -1), quantization)


def config_from_metadata(path: Path, metadata: dict[str, Any], stored: dict[str, StoredTensor]) -> LlamaConfig:
    """`LlamaConfig` from a GGUF's metadata and tensors. Raises MinillamaError, naming `path`."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise MinillamaError(f"{path}: expected general.architecture llama, found {architecture!r}")
    if metadata.get("llama.expert_count"):
        raise MinillamaError(f"{path}: expected a dense Llama, found {metadata['llama.expert_count']} experts")
    get = partial(_field, path, metadata)
    embedding = stored.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise MinillamaError(f"{path}: expected a matrix token_embd.weight, found none")
    n_heads, dim = get("llama.attention.head_count", int), get("llama.embedding_length", int)
    head_dim = get("llama.attention.key_length", int, get("llama.rope.dimension_count", int, dim // max(n_heads, 1)))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (found := get(key, int, head_dim)) != head_dim:
            raise MinillamaError(f"{path}: expected {key} to be the head width {head_dim}, found {found}")
    theta = get("llama.rope.freq_base", float, 10_000.0)
    config = build_config(
        path,
        dim=dim,
        n_layers=get("llama.block_count", int),
        n_heads=n_heads,
        ffn_dim=get("llama.feed_forward_length", int),
        vocab_size=embedding.shape[0],
        n_kv_heads=get("llama.attention.head_count_kv", int, n_heads),
        head_dim=head_dim,
        max_seq_len=get("llama.context_length", int),
        norm_eps=get("llama.attention.layer_norm_rms_epsilon", float),
        rope_theta=theta,
        sliding_window=get("llama.attention.sliding_window", int, 0) or None,
        tie_embeddings="output.weight" not in stored,
    )
    try:
        return replace(config, rope_scaling=_rope_scaling(path, config, get, stored))
    except UsageError as error:
        raise MinillamaError(f"{path}: {error}") from None


def _field(path: Path, metadata: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of `key`, of `kind` int, float or str.

    Where it is absent: `default`, or MinillamaError if that is None.
    """
    value = metadata.get(key)
    if value is None:
        if default is None:
            raise MinillamaError(f"{path}: expected {key} in the metadata, found none")
        return default
    if isinstance(value, list) and value and all(entry == value[0] for entry in value):
        value = value[0]  # some writers repeat a number for every layer
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise MinillamaError(f"{path}: expected {key} to be of type {kind.__name__}, found {value!r}")
    return shortest_decimal(value) if kind is float else value


def shortest_decimal(value: Any) -> float:
    """The shortest decimal that a float32, as metadata are, stands for: 9.999999747378752e-06 was 1e-05."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _rope_scaling(
    path: Path, config: LlamaConfig, get: Callable[..., Any], stored: Mapping[str, StoredTensor]
) -> RopeScaling | None:
    """The scaling that the metadata names, or that a tensor of frequency factors (Llama 3.1) amounts to."""
    kind = get("llama.rope.scaling.type", str, "none")
    linear = get("llama.rope.scaling.factor", float, get("llama.rope.scale_linear", float, 1.0))
    if kind not in ("none", "linear"):
        raise MinillamaError(f"{path}: expected llama.rope.scaling.type none or linear, found {kind!r}")
    if ROPE_FACTORS not in stored:
        return RopeScaling("linear", linear) if linear > 1 else None
    tensor = stored[ROPE_FACTORS]
    if tensor.shape != (config.head_dim // 2,):
        expected = (config.head_dim // 2,)
        raise MinillamaError(f"{path}: tensor {ROPE_FACTORS}: expected shape {expected}, found {tensor.shape}")
    check_extent(ROPE_FACTORS, tensor)
    factors = np.empty(tensor.shape, np.float32)
    fill(factors, ROPE_FACTORS, tensor)
    # The file keeps the factors and not the rule they came from, unless we wrote it. In Llama 3.1 to 3.3 the slowest
    # pair is divided by the whole factor, low is 1 and high 4.
    scaling = RopeScaling(
        "llama3",
        get(f"{_OUR_RULE}.factor", float, max(1.0, shortest_decimal(factors.max()))),
        low_freq_factor=get(f"{_OUR_RULE}.low_freq_factor", float, 1.0),
        high_freq_factor=get(f"{_OUR_RULE}.high_freq_factor", float, 4.0),
        original_max_seq_len=get("llama.rope.scaling.original_context_length", int, 8192),
    )
    if not np.allclose(factors, rope_factors(config, scaling), rtol=1e-5, atol=0):
        raise MinillamaError(f"{path}: tensor {ROPE_FACTORS}: expected the factors of Llama 3.1's rule, found others")
    return scaling


def rope_factors(config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    """(D/2,) float64: what `scaling` divides each RoPE frequency by."""
    with np.errstate(all="ignore"):  # a damaged theta overflows; no rule's factors come out of that
        unscaled = rope_frequencies(config.head_dim, config.rope_theta)
        return unscaled / rope_frequencies(config.head_dim, config.rope_theta, scaling)


def save(checkpoint: Checkpoint, path: Path, dtype: DTypeLike | None = None) -> None:
    """Write a GGUF that llama.cpp opens, tokenizer and chat template with it.

    dtype: of the matrices, float32 or float16; None takes float16 where the parameters are. Norms are float32 always.
    Raises MinillamaError, UsageError for another dtype.
    """
    from gguf import GGUFWriter

    config, params = checkpoint.config, checkpoint.params
    kept = np.float16 if params["norm.weight"].dtype == np.float16 else np.float32
    matrices = np.dtype(kept if dtype is None else dtype)
    if matrices not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise UsageError(f"{path}: a GGUF is written as float32 or float16, found {matrices.name}")
    types = {
        name: np.dtype(np.float32) if len(shape) == 1 else matrices for name, shape in config.param_shapes().items()
    }
    factors = None
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        factors = rope_factors(config, config.rope_scaling).astype(np.float32)
    with replaced_file(path) as partial:
        writer = GGUFWriter(partial, "llama")
        try:
            for key, value in (_metadata(config, matrices) | _tokenizer_metadata(path, checkpoint)).items():
                _add_value(writer, key, value)
            if factors is not None:
                writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
            for name, shape in config.param_shapes().items():
                writer.add_tensor_info(gguf_name(name), shape, types[name], prod(shape) * types[name].itemsize)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors)
            for name in types:
                writer.write_tensor_data(host_array(path, params, name, types[name]))
        finally:
            writer.close()


def _metadata(config: LlamaConfig, dtype: np.dtype) -> dict[str, Any]:
    scaling = config.rope_scaling
    fields: dict[str, Any] = {
        "general.type": "model",
        "general.file_type": 0 if dtype == np.float32 else 1,
        "llama.block_count": config.n_layers,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": plain_theta(config),
        "llama.vocab_size": config.vocab_size,
    }
    if config.sliding_window is not None:
        fields["llama.attention.sliding_window"] = config.sliding_window
    if scaling is not None and scaling.kind == "linear":
        fields |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(scaling.factor)}
    if scaling is not None and scaling.kind == "llama3":
        # llama.cpp reads the factors themselves, from a tensor; this is how we find the rule again.
        fields |= {
            "llama.rope.scaling.original_context_length": scaling.original_max_seq_len,
            f"{_OUR_RULE}.factor": float(scaling.factor),
            f"{_OUR_RULE}.low_freq_factor": float(scaling.low_freq_factor),
            f"{_OUR_RULE}.high_freq_factor": float(scaling.high_freq_factor),
        }
    return fields


def _tokenizer_metadata(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizer's own fields, with a token for every row of the embedding, which llama.cpp asks for."""
    vocab_size = checkpoint.config.vocab_size
    if checkpoint.tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    fields = checkpoint.tokenizer.gguf_fields()
    if checkpoint.chat_template is not None:
        fields["tokenizer.chat_template"] = checkpoint.chat_template.source
    missing = vocab_size - len(fields["tokenizer.ggml.tokens"])
    if missing < 0:
        found = vocab_size - missing
        raise MinillamaError(f"{path}: expected a tokenizer of at most {vocab_size} tokens, found {found}")
    padding: dict[str, list[Any]] = {
        "tokens": [f"[PAD{vocab_size - missing + i}]" for i in range(missing)],
        "scores": [-1e4] * missing,
        "token_type": [5] * missing,  # unused
    }
    for key, values in padding.items():
        if (name := f"tokenizer.ggml.{key}") in fields:
            fields[name] = [*fields[name], *values]
    return fields


def _add_value(writer: Any, key: str, value: Any) -> None:
    """One metadata value, in the type that llama.cpp reads that kind of value as."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
