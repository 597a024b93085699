"""llama2.c's `.bin`: a header and float32 tensors, kind after kind.

Two versions. Legacy (0) is seven int32 and then the tensors, with RoPE tables among them that nobody reads; a negative
vocabulary size says that the output layer is not the embedding. Version 1 has a magic number, 256 bytes of header and
another order of tensors. Both fix what the header has no field for: RMSNorm eps 1e-5, RoPE theta 10,000.
Source: github.com/karpathy/llama2.c, `export.py` and `run.c`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.layers import rope_frequencies, rope_rotations
from minillama.weights.checkpoint import Checkpoint, build_config
from minillama.weights.reading import StoredTensor, plain, read_params
from minillama.weights.writing import host_array, replaced_file

if TYPE_CHECKING:
    from minillama.tokenizer import Tokenizer

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = {0: 7 * 4, 1: 256}
_FIELDS = struct.Struct("<7i")  # dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len

_ATTENTION = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
_FEED_FORWARD = ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]


def _tensor_order(config: LlamaConfig, version: int) -> Iterator[str | None]:
    """Names in the order of the file; None stands for the legacy RoPE tables."""

    def of_all_layers(kind: str) -> list[str]:
        return [f"layers.{i}.{kind}.weight" for i in range(config.n_layers)]

    if version == 0:
        yield "tok_embeddings.weight"
        for kind in ["attention_norm", *_ATTENTION, "ffn_norm", *_FEED_FORWARD]:
            yield from of_all_layers(kind)
        yield "norm.weight"
        yield None
    else:
        yield from of_all_layers("attention_norm")
        yield from of_all_layers("ffn_norm")
        yield "norm.weight"
        yield "tok_embeddings.weight"
        for kind in [*_ATTENTION, *_FEED_FORWARD]:
            yield from of_all_layers(kind)
    if not config.tie_embeddings:
        yield "output.weight"


def _rope_table_values(config: LlamaConfig) -> int:
    """Two tables, cosines and sines, of (max_seq_len, D/2) each."""
    return config.max_seq_len * config.head_dim


def read_header(path: Path) -> tuple[int, LlamaConfig] | None:
    """Version and config of the `.bin` at `path`; None if it is no llama2.c file at all.

    The legacy format has no magic number: seven integers that make a config stand in for one.
    Raises MinillamaError for a llama2.c file of another version, or with a header that makes no sense.
    """
    with open(path, "rb") as file:
        data = file.read(HEADER_BYTES[1])
    if len(data) >= 4 and struct.unpack_from("<I", data)[0] == MAGIC:
        if len(data) < HEADER_BYTES[1]:
            raise MinillamaError(f"{path}: expected a llama2.c header of 256 bytes, found {len(data)}")
        version = struct.unpack_from("<i", data, 4)[0]
        if version != 1:
            raise MinillamaError(f"{path}: expected llama2.c version 0 or 1, found version {version}")
        return 1, _config(path, _FIELDS.unpack_from(data, 8), tied=bool(data[8 + _FIELDS.size]))
    if len(data) < _FIELDS.size:
        return None
    *sizes, vocab_size, max_seq_len = _FIELDS.unpack_from(data)
    try:
        return 0, _config(path, (*sizes, abs(vocab_size), max_seq_len), tied=vocab_size > 0)
    except MinillamaError:
        return None


def _config(path: Path, sizes: tuple[int, ...], tied: bool) -> LlamaConfig:
    dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = sizes
    return build_config(
        path,
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        n_kv_heads=n_kv_heads,
        max_seq_len=max_seq_len,
        tie_embeddings=tied,
    )


def load(path: Path, dtype: DTypeLike = np.float32, with_params: bool = True) -> Checkpoint:
    """The checkpoint in the `.bin` at `path`, with the tokenizer found beside it. Raises MinillamaError.

    with_params: False leaves the parameters out, as in every `load` of this package.
    """
    header = read_header(path)
    if header is None:
        raise MinillamaError(f"{path}: expected a llama2.c header, found none")
    version, config = header
    # The whole file is accounted for before its layers are counted out: a damaged header cannot make this long.
    values = config.param_count() + (_rope_table_values(config) if version == 0 else 0)
    expected, found = HEADER_BYTES[version] + 4 * values, path.stat().st_size
    if expected != found:
        raise MinillamaError(f"{path}: expected {expected} bytes for the sizes in its header, found {found}")
    params = read_params(path, config, _stored_tensors(path, config, version), dtype) if with_params else {}
    return Checkpoint(
        config, params, _tokenizer_beside(path, config), format="llama2c" if version == 0 else "llama2c-v1"
    )


def _stored_tensors(path: Path, config: LlamaConfig, version: int) -> dict[str, StoredTensor]:
    shapes, stored, offset = config.param_shapes(), {}, HEADER_BYTES[version]
    for name in _tensor_order(config, version):
        if name is None:
            offset += 4 * _rope_table_values(config)
            continue
        stored[name] = plain(path, offset, shapes[name], "F32")
        offset += stored[name].nbytes
    return stored


def _tokenizer_beside(path: Path, config: LlamaConfig) -> Tokenizer | None:
    """The tokenizer in the same folder, under the name for its size or as `tokenizer.bin`."""
    from minillama.tokenizer import from_llama2c

    for candidate in (_tokenizer_path(path, config.vocab_size), path.parent / "tokenizer.bin"):
        if candidate.is_file():
            return from_llama2c(candidate, config.vocab_size)
    return None


def _tokenizer_path(path: Path, vocab_size: int) -> Path:
    """llama2.c's own names: `tokenizer.bin` is Llama 2's, of 32,000 pieces; others bear their size."""
    return path.parent / ("tokenizer.bin" if vocab_size == 32_000 else f"tok{vocab_size}.bin")


def save(checkpoint: Checkpoint, path: Path, version: int = 0) -> None:
    """Write a `.bin` of `version` 0 (what `run.c` reads) or 1, and the tokenizer beside it as llama2.c reads it.

    Raises UsageError for a config that the format, or the program that reads it, has no place for.
    """
    config = checkpoint.config
    _check_expressible(path, config)
    if checkpoint.tokenizer is not None:
        _save_tokenizer_beside(path, checkpoint.tokenizer)
    with replaced_file(path) as partial, open(partial, "wb") as file:
        vocab_size = config.vocab_size if version == 1 or config.tie_embeddings else -config.vocab_size
        sizes = (config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads, vocab_size)
        header = _FIELDS.pack(*sizes, config.max_seq_len)
        if version == 1:
            header = struct.pack("<Ii", MAGIC, version) + header + bytes([config.tie_embeddings])
        file.write(header.ljust(HEADER_BYTES[version], b"\0"))
        for name in _tensor_order(config, version):
            if name is None:
                rotations = rope_rotations(np.arange(config.max_seq_len), rope_frequencies(config.head_dim))
                for table in (rotations.real, rotations.imag):  # (max_seq_len, D/2) each
                    file.write(np.ascontiguousarray(table, "<f4").data)
            else:
                file.write(host_array(path, checkpoint.params, name, np.dtype("<f4")).data)


def _check_expressible(path: Path, config: LlamaConfig) -> None:
    standard: dict[str, float | None] = {
        "head_dim": config.dim // config.n_heads,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    }
    standard |= {"rope_scaling": None, "sliding_window": None}
    for name, expected in standard.items():
        if (found := getattr(config, name)) != expected:
            raise UsageError(f"{path}: llama2.c files have no field for {name}: expected {expected}, found {found}")


def _save_tokenizer_beside(path: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer, unless a different one stands there: it belongs to another model of the folder."""
    from minillama.tokenizer import save_llama2c

    target = _tokenizer_path(path, tokenizer.vocab_size)
    before = target.read_bytes() if target.is_file() else None
    with replaced_file(target) as partial:
        save_llama2c(tokenizer, partial)
        if before is not None and partial.read_bytes() != before:
            raise UsageError(f"{target}: expected this model's tokenizer or none, found another; use another folder")
