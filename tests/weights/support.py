"""Small checkpoints in every format, written for the tests without the code under test where that reads only."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minillama.config import LlamaConfig, RopeScaling
from minillama.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, Piece, SentencePieceTokenizer, build_model
from minillama.weights import Checkpoint

# 259 pieces are the least that a llama2.c tokenizer has: three control tokens and the bytes.
TINY = LlamaConfig(32, 2, 4, 64, vocab_size=262, n_kv_heads=2, max_seq_len=16, tie_embeddings=True)
CONFIGS = {
    "tied": TINY,
    "untied": replace(TINY, tie_embeddings=False),
    "multi-head": replace(TINY, n_kv_heads=4),
    "multi-query": replace(TINY, n_kv_heads=1),
    "one layer": replace(TINY, n_layers=1),
}
# What llama2.c has no field for.
OTHER_CONFIGS = {
    "wide heads": replace(TINY, head_dim=16),
    "theta and eps": replace(TINY, rope_theta=500_000.0, norm_eps=1e-6),
    "window": replace(TINY, sliding_window=5),
    "linear": replace(TINY, rope_scaling=RopeScaling("linear", 4.0)),
    "llama3": replace(TINY, rope_scaling=RopeScaling("llama3", 8.0, original_max_seq_len=8)),
}


def random_params(config: LlamaConfig, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in config.param_shapes().items()}


def tiny_tokenizer() -> SentencePieceTokenizer:
    """The bytes, and three pieces more."""
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [Piece(text, -float(i), NORMAL) for i, text in enumerate(["▁", "a", "▁a"])]
    return SentencePieceTokenizer(build_model(pieces, where="tiny"))


def tiny_checkpoint(config: LlamaConfig = TINY, tokenizer: bool = True) -> Checkpoint:
    return Checkpoint(config, random_params(config), tiny_tokenizer() if tokenizer else None)


def assert_same_params(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same names in the same order, and the same bits."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name


class _Call:
    """Pickles as a call of a name that need not exist here."""

    def __init__(self, name: tuple[str, str], *arguments: Any) -> None:
        self.name, self.arguments = name, arguments


class _Name:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _StorageReference:
    def __init__(self, kind: str, key: str, n_values: int) -> None:
        self.kind, self.key, self.n_values = kind, key, n_values


class PickleWriter:
    """Writes pickles of protocol 2 as torch.save does, opcode by opcode, naming functions that are not installed."""

    def __init__(self) -> None:
        self.out = bytearray(pickle.PROTO + b"\x02")

    def finish(self) -> bytes:
        return bytes(self.out + pickle.STOP)

    def write(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self.out += {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        elif isinstance(value, int):
            self.out += pickle.BININT + value.to_bytes(4, "little", signed=True)
        elif isinstance(value, str):
            self.out += pickle.BINUNICODE + len(value.encode()).to_bytes(4, "little") + value.encode()
        elif isinstance(value, tuple):
            self.out += pickle.MARK
            self.write_all(value)
            self.out += pickle.TUPLE
        elif isinstance(value, dict):
            self.out += pickle.EMPTY_DICT + pickle.MARK
            self.write_all(part for item in value.items() for part in item)
            self.out += pickle.SETITEMS
        elif isinstance(value, _Name):
            self.out += pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        elif isinstance(value, _StorageReference):
            self.write(("storage", _Name("torch", value.kind), value.key, "cpu", value.n_values))
            self.out += pickle.BINPERSID
        elif isinstance(value, _Call):
            self.write(_Name(*value.name))
            self.write(value.arguments)
            self.out += pickle.REDUCE
        else:
            raise TypeError(type(value))

    def write_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.write(value)


STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def write_pth(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A file as torch.save writes a dict of tensors."""
    entries = {}
    for key, (name, value) in enumerate(tensors.items()):
        strides = tuple(stride // value.itemsize for stride in value.strides)
        storage = _StorageReference(STORAGES[value.dtype.name], str(key), value.size)
        hooks = _Call(("collections", "OrderedDict"))
        arguments = (storage, 0, value.shape, strides, False, hooks)
        entries[name] = _Call(("torch._utils", "_rebuild_tensor_v2"), *arguments)
    writer = PickleWriter()
    writer.write(entries)
    write_archive(path, writer.finish(), [value.tobytes() for value in tensors.values()])


def write_archive(path: Path, pickled: bytes, storages: Iterable[bytes] = ()) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("consolidated/data.pkl", pickled)
        archive.writestr("consolidated/byteorder", "little")
        for key, content in enumerate(storages):
            archive.writestr(f"consolidated/data/{key}", content)
        archive.writestr("consolidated/version", "3\n")


def write_meta(
    folder: Path, params: Mapping[str, np.ndarray], config: LlamaConfig, n_files: int = 1, embedding_axis: int = 1
) -> None:
    """A folder as Meta publishes it: the parameters cut into `n_files`, vocabulary size left to the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads, "norm_eps": config.norm_eps}
    # Two thirds of 4C, times the multiplier, rounded up to a multiple of F: F itself.
    settings |= {"vocab_size": -1, "multiple_of": config.ffn_dim, "ffn_dim_multiplier": 0.75}
    if config.n_kv_heads != config.n_heads:
        settings["n_kv_heads"] = config.n_kv_heads
    (folder / "params.json").write_text(json.dumps(settings))
    rows = {"wq", "wk", "wv", "w1", "w3", "output"}
    for i in range(n_files):
        part = {}
        for name, value in params.items():
            kind = name.split(".")[-2]
            axis = embedding_axis if kind == "tok_embeddings" else 0 if kind in rows else 1
            part[name] = value if value.ndim == 1 else np.ascontiguousarray(np.split(value, n_files, axis)[i])
        part["rope.freqs"] = np.ones(config.head_dim // 2, ml_dtypes.bfloat16)
        write_pth(folder / f"consolidated.{i:02d}.pth", part)
