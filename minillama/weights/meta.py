"""Meta's folders: `params.json` and one or several `consolidated.NN.pth`, slices of a model that ran on as many GPUs.

A matrix is cut along its outputs (Wq, Wk, Wv, W1, W3, output) or its inputs (Wo, W2), and norms are whole in every
file. The embedding is cut along its width in Llama 1 and 2 and along the vocabulary in Llama 3; shapes tell which.
Source: github.com/meta-llama/llama, `llama/model.py` (ColumnParallelLinear, RowParallelLinear).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from minillama.config import LlamaConfig, RopeScaling
from minillama.errors import MinillamaError
from minillama.params import empty_params
from minillama.weights.checkpoint import Checkpoint, build_config, check_shapes, read_json
from minillama.weights.pickled import read_tensors
from minillama.weights.reading import StoredTensor, check_extent, fill

if TYPE_CHECKING:
    from minillama.tokenizer import Tokenizer

_IGNORED = {"rope.freqs"}  # the RoPE frequencies, which the config determines


def load(path: Path, dtype: DTypeLike = np.float32, with_params: bool = True) -> Checkpoint:
    """The checkpoint in Meta's folder `path`, its slices put together. Raises MinillamaError."""
    files = sorted(path.glob("consolidated.*.pth"))
    if not files or [file.name for file in files] != [f"consolidated.{i:02d}.pth" for i in range(len(files))]:
        found = ", ".join(file.name for file in files) or "none"
        raise MinillamaError(f"{path}: expected consolidated.00.pth and those that follow it, found {found}")
    settings = read_json(path / "params.json")
    slices = _by_name(files)
    axes = {name: _cut_axis(path, name, tensors, settings) for name, tensors in slices.items()}
    shapes = {name: _whole_shape(tensors, axes[name]) for name, tensors in slices.items()}
    config = config_from_params(path / "params.json", settings, shapes)
    params = _read_params(path, config, slices, axes, dtype) if with_params else {}
    return Checkpoint(config, params, _tokenizer(path), format="meta")


def _read_params(
    path: Path,
    config: LlamaConfig,
    slices: dict[str, list[StoredTensor]],
    axes: dict[str, int | None],
    dtype: DTypeLike,
) -> dict[str, np.ndarray]:
    check_shapes(path, config, {name: _whole_shape(tensors, axes[name]) for name, tensors in slices.items()})
    for name, tensors in slices.items():
        for tensor in tensors:
            check_extent(name, tensor)
    params = empty_params(config, dtype)
    for name, out in params.items():
        for piece, tensor in _placed(out, slices[name], axes[name]):
            fill(piece, name, tensor)
    return params


def _by_name(files: list[Path]) -> dict[str, list[StoredTensor]]:
    """Name -> its slices, in the order of the files."""
    contents = [read_tensors(file) for file in files]
    for file, tensors in zip(files, contents, strict=True):
        if odd := sorted(tensors.keys() ^ contents[0].keys()):
            raise MinillamaError(f"{file}: expected the tensors of {files[0].name}, found {odd[0]} in only one of them")
    return {name: [tensors[name] for tensors in contents] for name in contents[0] if name not in _IGNORED}


def _cut_axis(path: Path, name: str, slices: list[StoredTensor], settings: dict[str, Any]) -> int | None:
    """The axis along which a tensor was cut; None where every file has the whole of it."""
    shapes = {tensor.shape for tensor in slices}
    if len(shapes) > 1:
        raise MinillamaError(f"{path}: tensor {name}: expected slices of one shape, found {sorted(shapes)}")
    shape = shapes.pop()
    if len(slices) == 1 or len(shape) != 2:
        return None
    if name == "tok_embeddings.weight":
        return 0 if shape[1] == settings.get("dim") else 1
    return 1 if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")) else 0


def _whole_shape(slices: list[StoredTensor], axis: int | None) -> tuple[int, ...]:
    shape = list(slices[0].shape)
    if axis is not None:
        shape[axis] *= len(slices)
    return tuple(shape)


def _placed(
    whole: np.ndarray, slices: list[StoredTensor], axis: int | None
) -> Iterator[tuple[np.ndarray, StoredTensor]]:
    """Each slice with the view of the whole tensor that it fills."""
    if axis is None:
        yield whole, slices[0]
        return
    pieces = np.split(whole, len(slices), axis)
    yield from zip(pieces, slices, strict=True)


def config_from_params(source: Path, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> LlamaConfig:
    """`LlamaConfig` from the content of `params.json` and the shapes of the tensors. Raises MinillamaError.

    What the file leaves out is filled in as Meta's code does. Context lengths and Llama 3.2's stretch of RoPE stand in
    no file; they follow from what tells the generations apart.
    """
    get = partial(_number, source, settings)
    dim, theta, eps = get("dim", int), get("rope_theta", float, 10_000.0), get("norm_eps", float, 1e-5)
    scaled = settings.get("use_scaled_rope", False)
    vocab_size = get("vocab_size", int, -1)
    if vocab_size == -1:  # Llama 1 and 2: the tokenizer's size was put in when the model was built
        vocab_size = shapes.get("tok_embeddings.weight", (0,))[0]
    multiple_of = get("multiple_of", int, 256)
    if multiple_of < 1:
        raise MinillamaError(f"{source}: expected multiple_of to be positive, found {multiple_of}")
    scaling = RopeScaling("llama3", factor=32.0 if dim < 4096 else 8.0) if scaled else None
    if scaled:
        max_seq_len = 131_072  # Llama 3.1 and later
    elif theta == 500_000:
        max_seq_len = 8192  # Llama 3
    elif theta == 1_000_000:
        max_seq_len = 16_384  # Code Llama
    else:
        max_seq_len = 2048 if eps == 1e-6 else 4096  # Llama 1, Llama 2
    return build_config(
        source,
        dim=dim,
        n_layers=get("n_layers", int),
        n_heads=get("n_heads", int),
        n_kv_heads=get("n_kv_heads", int, get("n_heads", int)),
        ffn_dim=ffn_dim(dim, multiple_of, get("ffn_dim_multiplier", float, 1.0)),
        vocab_size=vocab_size,
        max_seq_len=get("max_seq_len", int, max_seq_len),
        norm_eps=eps,
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings="output.weight" not in shapes,
    )


def ffn_dim(dim: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """Meta's rule for the width of the feed-forward layer: two thirds of 4C, times `multiplier`, rounded up."""
    hidden = int(multiplier * int(2 * (4 * dim) / 3))
    return multiple_of * -(-hidden // multiple_of)


def _number(source: Path, settings: dict[str, Any], key: str, kind: type, default: float | None = None) -> Any:
    value = settings.get(key)
    if value is None:
        if default is None:
            raise MinillamaError(f"{source}: expected {key}, found no such key")
        return default
    known = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not known or not abs(value) < 1e9:
        raise MinillamaError(f"{source}: expected {key} to be of type {kind.__name__}, found {value!r}")
    return kind(value)


def _tokenizer(path: Path) -> Tokenizer | None:
    """`tokenizer.model` of the folder or, as Meta lays out Llama 1 and 2, of the one above. Llama 3's is no
    SentencePiece model but a list of base64 lines, and is left alone.
    """
    from minillama.tokenizer import from_sentencepiece

    for candidate in (path / "tokenizer.model", path.absolute().parent / "tokenizer.model"):
        if candidate.is_file():
            with open(candidate, "rb") as file:
                is_list = fullmatch(rb"[A-Za-z0-9+/]+=* \d+\n", file.readline(1000)) is not None
            return None if is_list else from_sentencepiece(candidate)
    return None
