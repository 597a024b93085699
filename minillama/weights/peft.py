"""Folders of LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

The matrices beside q_proj and k_proj follow Hugging Face's order of rows (`rope_order`): their B is reordered, A knows
nothing of it. The base is named in the config, by path or by name, and has to be there for every reading: the sizes
and, where the adapters are merged, the weights are its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minillama import catalog
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.lora import TARGETS, LoraConfig, adapter_names, check_adapters
from minillama.lora import merge as merge_into
from minillama.params import Params
from minillama.weights.checkpoint import Checkpoint, check_finite, check_tensors, read_json
from minillama.weights.huggingface import (
    extra_files,
    hf_name,
    is_ours,
    read_header,
    write_companions,
    write_json,
    write_tensors,
)
from minillama.weights.reading import StoredTensor, check_extent, fill
from minillama.weights.rope_order import half_to_interleaved, interleaved_to_half
from minillama.weights.writing import host_array, replaced_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = {"lora_a": "lora_A", "lora_b": "lora_B"}
_ROTATED = (".wq.lora_b", ".wk.lora_b", ".wq.weight", ".wk.weight")
_TASKS: dict[str | None, str] = {None: "CAUSAL_LM", "score": "SEQ_CLS"}  # head -> what PEFT calls it
# Settings that would change what the adapters compute; where one is absent, PEFT assumes the first.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the others change the base
}


def load(path: Path, dtype: DTypeLike = np.float32, with_params: bool = True, merge: bool = True) -> Checkpoint:
    """The model that the adapters in the folder `path` make of their base; or, with merge false, the adapters alone.

    Tokenizer and chat template are the base's where the folder has none. Raises MinillamaError for what is broken or
    another kind of adapter, and where the base is missing or does not fit.
    """
    from minillama import weights
    from minillama.chat import ChatTemplate
    from minillama.tokenizer import from_folder

    settings = read_json(path / CONFIG)
    _check_settings(path / CONFIG, settings)
    base_path = _bases(path)[0]
    base = weights.load(base_path, dtype) if merge and with_params else weights.inspect(base_path)
    config = replace(base.config, head="score") if settings.get("task_type") == _TASKS["score"] else base.config
    if not (path / WEIGHTS).is_file():
        raise MinillamaError(f"{path}: expected {WEIGHTS} in it, found none")
    stored = read_header(path / WEIGHTS)
    lora = _lora(path, settings, config, stored)
    _check_stored(path / WEIGHTS, base.config, config, lora, stored, base_path)
    checkpoint = Checkpoint(
        config,
        {},
        from_folder(path) or base.tokenizer,
        ChatTemplate.from_folder(path) or base.chat_template,
        "peft",
        extra_files(path) or base.extra_files,
    )
    if not merge:
        checkpoint.lora, checkpoint.base = lora, settings["base_model_name_or_path"]
    if with_params and not merge:
        checkpoint.params = _read(config, lora, stored, dtype)
    elif with_params:
        trained = _read(config, lora, stored, np.result_type(dtype, np.float32))
        for name in config.param_shapes():  # a base that writes text has no score, and its head is not wanted for one
            checkpoint.params[name] = base.params[name] if name in base.params else trained[name].astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # check_finite says so in our words
            merge_into(checkpoint.params, lora, trained)
        for name in filter(lora.adapts, checkpoint.params):
            check_finite(path, f"{name}, merged", checkpoint.params[name])
    return checkpoint


def base_of(path: Path) -> Path:
    """Where the base of the adapters in the folder `path` is: the path that they name, as it is or seen from that
    folder, or a model from the catalog. Raises MinillamaError where there is none.
    """
    file = path / CONFIG
    name = read_json(file).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise MinillamaError(f"{file}: expected base_model_name_or_path to name a model, found {name!r}")
    if not Path(name).exists() and (path / name).exists():
        return path / name
    try:
        return catalog.resolve(name)
    except MinillamaError as error:
        raise MinillamaError(
            f"{file}: expected the model that base_model_name_or_path names, found none: {error}"
        ) from None


def _bases(path: Path) -> list[Path]:
    """The base of the adapters in `path`; where it is a folder of adapters too, their base as well, and so on."""
    bases = [path]
    while (bases[-1] / CONFIG).is_file():
        base = base_of(bases[-1])
        if any(base.samefile(known) for known in bases):
            raise MinillamaError(f"{path / CONFIG}: expected a base model, found adapters whose base is {base} again")
        bases.append(base)
    return bases[1:]


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    for key, allowed in _SUPPORTED.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise MinillamaError(f"{file}: expected {key} {allowed[0]!r}, found {settings[key]!r}")


def _lora(path: Path, settings: dict[str, Any], config: LlamaConfig, stored: dict[str, StoredTensor]) -> LoraConfig:
    """What the adapters are: rank and alpha from the settings, which matrices they stand beside from the tensors."""
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise MinillamaError(f"{path / CONFIG}: expected r to be an integer, found {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e300:
        raise MinillamaError(f"{path / CONFIG}: expected lora_alpha to be a number, found {alpha!r}")
    params = config.param_shapes()
    targets = {
        kind
        for name in params
        if (kind := name.split(".")[-2]) in TARGETS
        and any(peft_name(adapter) in stored for adapter in adapter_names(name))
    }
    if not targets:
        raise MinillamaError(f"{path / WEIGHTS}: expected adapters of a Llama's matrices, found none")
    try:
        return LoraConfig(rank, alpha, tuple(targets), tuple(name for name in params if peft_name(name) in stored))
    except UsageError as error:
        raise MinillamaError(f"{path / CONFIG}: {error}") from None


def _check_stored(
    file: Path, base: LlamaConfig, config: LlamaConfig, lora: LoraConfig, stored: dict[str, StoredTensor], where: Path
) -> None:
    """Raise MinillamaError for tensors that are missing, unexpected or misshapen, and for a file that ends too soon."""
    try:
        expected = {peft_name(name): shape for name, shape in lora.shapes(config).items()}
        if config.head == "score" and base.head is None:
            expected |= {peft_name("score.weight"): config.param_shapes()["score.weight"]}
        check_tensors(file, expected, {name: tensor.shape for name, tensor in stored.items()})
    except UsageError as error:
        raise MinillamaError(f"{file}: {error}") from None
    except MinillamaError as error:
        raise MinillamaError(f"{error}; the base model is {where}") from None
    for name, tensor in stored.items():
        check_extent(name, tensor)


def _read(config: LlamaConfig, lora: LoraConfig, stored: dict[str, StoredTensor], dtype: DTypeLike) -> Params:
    trained: Params = {}
    for name, shape in lora.shapes(config).items():
        trained[name] = np.empty(shape, dtype)
        fill(trained[name], peft_name(name), stored[peft_name(name)])
        if name.endswith(_ROTATED):
            trained[name] = half_to_interleaved(trained[name], config.head_dim)
    return trained


def peft_name(name: str) -> str:
    """Our name of an adapter, or of a parameter that is trained beside them -> its name in PEFT's file."""
    stem, _, kind = name.rpartition(".")
    if kind not in _KINDS:
        return f"base_model.model.{hf_name(name)}"
    return f"base_model.model.{hf_name(f'{stem}.weight').removesuffix('weight')}{_KINDS[kind]}.weight"


def save(checkpoint: Checkpoint, path: Path, dtype: DTypeLike | None = None) -> None:
    """Write the adapters by themselves, and tokenizer and chat template where there are any, so that PEFT opens them.

    dtype: of the adapters on disk; None keeps theirs. Raises MinillamaError for adapters that are not whole or not
    finite, UsageError where they name no base.
    """
    config, lora, params = checkpoint.config, checkpoint.lora, checkpoint.params
    assert lora is not None
    if not checkpoint.base:
        raise UsageError(f"{path}: adapters alone: expected the name or path of their base with them, found none")
    try:
        check_adapters(config, lora, params)
    except MinillamaError as error:
        raise MinillamaError(f"{path}: {error}") from None
    for name, value in params.items():
        check_finite(path, name, value)
    with replaced_folder(path, is_ours) as folder:
        write_json(folder / CONFIG, _settings(lora, config, checkpoint.base))
        tensors = {}
        for name, value in params.items():
            array = host_array(path, params, name, np.dtype(value.dtype if dtype is None else dtype))
            tensors[peft_name(name)] = interleaved_to_half(array, config.head_dim) if name.endswith(_ROTATED) else array
        write_tensors(path, folder / WEIGHTS, tensors)
        write_companions(checkpoint, folder)


def _settings(lora: LoraConfig, config: LlamaConfig, base: str) -> dict[str, Any]:
    """The content of an `adapter_config.json`."""
    modules = [hf_name(f"layers.0.{_part(kind)}.{kind}.weight").split(".")[-2] for kind in lora.targets]
    return {
        "peft_type": "LORA",
        "task_type": _TASKS[config.head],
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "target_modules": modules,
        "modules_to_save": [hf_name(name).removesuffix(".weight") for name in lora.also] or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "revision": None,
        "auto_mapping": None,
    }


def _part(kind: str) -> str:
    return "attention" if kind in ("wq", "wk", "wv", "wo") else "feed_forward"
