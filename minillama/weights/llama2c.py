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
from minillama.weights.checkpoint import Checkpoint, build_config
from minillama.weights.reading import StoredTensor, plain, read_params

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


def load(path: Path, dtype: DTypeLike = np.float32) -> Checkpoint:
    """The checkpoint in the `.bin` at `path`, with the tokenizer found beside it. Raises MinillamaError."""
    header = read_header(path)
    if header is None:
        raise MinillamaError(f"{path}: expected a llama2.c header, found none")
    version, config = header
    # The whole file is accounted for before its layers are counted out: a damaged header cannot make this long.
    values = config.param_count() + (_rope_table_values(config) if version == 0 else 0)
    expected, found = HEADER_BYTES[version] + 4 * values, path.stat().st_size
    if expected != found:
        raise MinillamaError(f"{path}: expected {expected} bytes for the sizes in its header, found {found}")
    params = read_params(path, config, _stored_tensors(path, config, version), dtype)
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
    """The tokenizer in the same folder: `tok512.bin`, named by its size as llama2.c does, or `tokenizer.bin`."""
    from minillama.tokenizer import from_llama2c

    for name in (f"tok{config.vocab_size}.bin", "tokenizer.bin"):
        if (candidate := path.parent / name).is_file():
            return from_llama2c(candidate, config.vocab_size)
    return None
