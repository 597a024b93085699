"""Real checkpoints in and out: Hugging Face folders, Meta's folders, llama2.c `.bin`, GGUF, PEFT's adapters."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from minillama.errors import MinillamaError, UsageError
from minillama.weights import llama2c
from minillama.weights.checkpoint import Checkpoint, check_params, one_line
from minillama.weights.writing import as_dtype

__all__ = ["Checkpoint", "check_params", "detect_format", "inspect", "load", "save"]

# format -> module with `load` and `save`, imported when it is needed
_MODULES = {
    "huggingface": "minillama.weights.huggingface",
    "meta": "minillama.weights.meta",
    "llama2c": "minillama.weights.llama2c",
    "gguf": "minillama.weights.gguf",
    "peft": "minillama.weights.peft",
}


def detect_format(path: str | os.PathLike[str]) -> str:
    """'huggingface', 'meta', 'llama2c', 'gguf' or 'peft': what the content of `path` says, whatever its name.

    Raises MinillamaError where nothing is there or nothing is recognised.
    """
    path = Path(path)
    if path.is_dir():
        # As in transformers, adapters come before a model in the same folder.
        markers = {"adapter_config.json": "peft", "config.json": "huggingface", "params.json": "meta"}
        for marker, name in markers.items():
            if (path / marker).is_file():
                return name
        raise MinillamaError(f"{path}: expected config.json (Hugging Face) or params.json (Meta) in it, found neither")
    if not path.is_file():
        raise MinillamaError(f"{path}: no such file or folder")
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return "gguf"
    if path.suffix in (".safetensors", ".pth", ".json"):
        raise MinillamaError(f"{path}: expected the folder that this file belongs to, found the file itself")
    if llama2c.read_header(path) is not None:
        return "llama2c"
    raise MinillamaError(f"{path}: expected a GGUF or llama2.c file, found one that starts with {start!r}")


def load(path: str | os.PathLike[str], dtype: DTypeLike = np.float32, *, merge: bool = True) -> Checkpoint:
    """The checkpoint at `path`, its format found by content, its parameters as arrays of `dtype`.

    merge: of a folder of adapters, the model that they make of their base; false: the adapters by themselves. Raises
    MinillamaError, in one line that names the file, for anything missing, broken or not a Llama.
    """
    return _load(Path(path), dtype, with_params=True, merge=merge)


def inspect(path: str | os.PathLike[str]) -> Checkpoint:
    """As `load`, without reading the weights: `params` is empty. Raises MinillamaError, also for a truncated file."""
    return _load(Path(path), np.float32, with_params=False, merge=True)


def _load(path: Path, dtype: DTypeLike, with_params: bool, merge: bool) -> Checkpoint:
    try:
        kind = detect_format(path)
        more = {"merge": merge} if kind == "peft" else {}
        return import_module(_MODULES[kind]).load(path, as_dtype(dtype), with_params, **more)
    except MinillamaError as error:
        raise type(error)(one_line(error)) from None
    except OSError as error:
        raise MinillamaError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise MinillamaError(f"{path}: expected memory for its weights, found too little") from None


def save(
    checkpoint: Checkpoint, path: str | os.PathLike[str], to: str | None = None, dtype: DTypeLike | None = None
) -> None:
    """Write `checkpoint` to `path`, beside first and then renamed.

    to: 'huggingface' (a folder), 'gguf', 'llama2c' (the legacy `.bin` that run.c reads) or 'llama2c-v1'; None goes by
    the ending of `path`: .gguf, .bin, else a Hugging Face folder. dtype: of the weights on disk; None keeps theirs.
    Raises MinillamaError for parameters that do not fit the config, are not finite, or do not fit the format.
    """
    path = Path(path)
    to = to or {".gguf": "gguf", ".bin": "llama2c"}.get(path.suffix, "huggingface")
    if to not in ("huggingface", "gguf", "llama2c", "llama2c-v1"):
        raise UsageError(f"unknown format {to!r}: expected huggingface, gguf, llama2c or llama2c-v1")
    on_disk = None if dtype is None else as_dtype(dtype)
    if checkpoint.lora is not None:
        if to != "huggingface":
            raise UsageError(f"{path}: adapters by themselves fit only into a folder, not into {to}: merge them first")
        import_module(_MODULES["peft"]).save(checkpoint, path, on_disk)
        return
    check_params(path, checkpoint.config, checkpoint.params)
    if checkpoint.config.head is not None and to != "huggingface":
        raise UsageError(f"{path}: a reward model fits only into a Hugging Face folder, not into {to}")
    if to in ("llama2c", "llama2c-v1"):
        if on_disk not in (None, np.float32):
            raise UsageError(f"{path}: llama2.c files hold float32, not {on_disk}")
        llama2c.save(checkpoint, path, version=1 if to == "llama2c-v1" else 0)
    else:
        import_module(_MODULES[to]).save(checkpoint, path, on_disk)
