"""What every format loads into, and the one place where tensors are checked against a config."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillama.backend import Array, get_array_module
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError

if TYPE_CHECKING:
    from minillama.chat import ChatTemplate
    from minillama.lora import LoraConfig
    from minillama.tokenizer import Tokenizer


@dataclass
class Checkpoint:
    """A model read from disk, whatever the format, or one to be written.

    params: name -> array under Meta's names, Q and K rows in Meta's interleaved order (`LlamaConfig.param_shapes`).
    tokenizer, chat_template: None where the checkpoint carries none.
    format: 'huggingface', 'meta', 'llama2c' (legacy .bin), 'llama2c-v1', 'gguf' or 'peft'.
    extra_files: small files of a Hugging Face folder that are carried along when it is saved again (name -> content).
    lora, base: of adapters by themselves, what they are and the name or path of their base; `config` is then the
    model's, and params are what `LoraConfig.shapes` says.
    """

    config: LlamaConfig
    params: dict[str, Array]
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate | None = None
    format: str = "huggingface"
    extra_files: dict[str, bytes] = field(default_factory=dict)
    lora: LoraConfig | None = None
    base: str | None = None


def build_config(source: Path, **fields: Any) -> LlamaConfig:
    """`LlamaConfig(**fields)`, an error in it naming the file it came from."""
    try:
        return LlamaConfig(**fields)
    except MinillamaError as error:
        raise MinillamaError(f"{source}: {error}") from None


def check_shapes(
    source: Path,
    config: LlamaConfig,
    found: Mapping[str, tuple[int, ...]],
    name_in_file: Callable[[str], str] = str,
    ignored: Collection[str] = (),
) -> None:
    """Raise MinillamaError unless `found` (name in the file -> shape) is exactly what `config` calls for.

    name_in_file: our name of a tensor -> its name in this format. ignored: tensors that may be there and are not read.
    """
    # Asked first: a damaged layer count of two billion must not become two billion expected names.
    if config.n_layers > len(found):
        raise MinillamaError(f"{source}: expected tensors for {config.n_layers} layers, found {len(found)} tensors")
    expected = {name_in_file(name): shape for name, shape in config.param_shapes().items()}
    check_tensors(source, expected, found, ignored)


def check_tensors(
    source: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> None:
    """Raise MinillamaError for the first difference between `found` and `expected`, both name -> shape."""
    if missing := [name for name in expected if name not in found]:
        raise MinillamaError(f"{source}: expected {len(expected)} tensors, missing {_some(missing)}")
    if unexpected := [name for name in found if name not in expected and name not in ignored]:
        raise MinillamaError(f"{source}: expected {len(expected)} tensors, found also {_some(unexpected)}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise MinillamaError(f"{source}: tensor {name}: expected shape {shape}, found {tuple(found[name])}")


def check_finite(source: Path, name: str, values: Array) -> None:
    """Raise MinillamaError if `values` hold a NaN or an infinity."""
    if not bool(get_array_module(values).isfinite(values).all()):
        raise MinillamaError(f"{source}: tensor {name}: expected finite weights, found NaN or infinite values")


def check_params(source: Path, config: LlamaConfig, params: Mapping[str, Array]) -> None:
    """Raise MinillamaError unless `params` are `config`'s parameters, all of them, finite."""
    check_shapes(source, config, {name: tuple(value.shape) for name, value in params.items()})
    for name, value in params.items():
        check_finite(source, name, value)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises MinillamaError, naming the file, and the line where it does not parse."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise MinillamaError(f"{path}: expected JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise MinillamaError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def one_line(error: Exception) -> str:
    """An error's message without line breaks, control characters (a damaged name may hold them) and endless text."""
    text = " ".join(str(error).split())[:500]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain_theta(config: LlamaConfig) -> float:
    """RoPE's theta, with an NTK-aware stretch worked into it: other programs have no name for one of fixed size."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "ntk":
        return config.rope_theta
    return config.rope_theta * scaling.factor ** (config.head_dim / max(config.head_dim - 2, 1))


def _some(names: list[str]) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
