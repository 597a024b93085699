"""Hugging Face folders: `config.json`, safetensors in one file or in shards, tokenizer files.

Also the format of our own checkpoints. The names differ from Meta's, Q and K rows are in the half-split order
(`rope_order`), and the way RoPE is described changed with transformers 5; both descriptions are read.
"""

from __future__ import annotations

import json
import struct
from itertools import count
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from minillama.backend import Array
from minillama.config import LlamaConfig, RopeScaling
from minillama.errors import MinillamaError
from minillama.weights.checkpoint import Checkpoint, build_config, one_line, plain_theta, read_json
from minillama.weights.reading import StoredTensor, fill, plain, read_params
from minillama.weights.rope_order import half_to_interleaved, interleaved_to_half
from minillama.weights.writing import host_array, replaced_folder

if TYPE_CHECKING:
    from minillama.tokenizer import Tokenizer

_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_OTHER_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "score.weight": "score.weight",
    "score.likelihood": "score.likelihood",
}
SHARD_BYTES = 4 << 30  # a larger model is saved in several files
_FAMILIES = {"llama": "Llama", "mistral": "Mistral"}
_HEADS: dict[str | None, str] = {
    None: "ForCausalLM",
    "score": "ForSequenceClassification",
    "score+likelihood": "ForSequenceClassification",  # transformers would leave the likelihood out
}
_LIKELIHOOD = "score_likelihood"  # in a config: that the answer's likelihood counts too; a key of ours


def hf_name(name: str) -> str:
    """Our name of a tensor -> its name in a Hugging Face file."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, kind = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.weight"


def load(path: Path, dtype: DTypeLike = np.float32, with_params: bool = True) -> Checkpoint:
    """The checkpoint in the folder `path`. Raises MinillamaError for what is broken or is no Llama."""
    from minillama.chat import ChatTemplate
    from minillama.tokenizer import from_folder

    settings = read_json(path / "config.json")
    config = config_from_json(path / "config.json", settings)
    tokenizer, chat_template = from_folder(path), ChatTemplate.from_folder(path)
    params = _read_params(path, config, dtype) if with_params else {}
    return Checkpoint(config, params, tokenizer, chat_template, "huggingface", extra_files(path))


def extra_files(path: Path) -> dict[str, bytes]:
    """The files of the folder `path` that are carried along when it is saved again."""
    generation = path / "generation_config.json"
    return {generation.name: generation.read_bytes()} if generation.is_file() else {}


def _read_params(path: Path, config: LlamaConfig, dtype: DTypeLike) -> dict[str, np.ndarray]:
    stored = _stored_tensors(path)
    # Buffers that old files carry: the RoPE frequencies, which the config determines.
    ignored = {name for name in stored if name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings and "lm_head.weight" in stored:
        _check_tied(path, stored)
        ignored.add("lm_head.weight")
    params = read_params(path, config, stored, dtype, hf_name, ignored)
    for name in params:
        if name.endswith((".wq.weight", ".wk.weight")):
            params[name][...] = half_to_interleaved(params[name], config.head_dim)
    return params


def config_from_json(source: Path, settings: dict[str, Any]) -> LlamaConfig:
    """`LlamaConfig` from the content of a `config.json`. Raises MinillamaError, naming `source`."""
    kind = settings.get("model_type")
    if kind not in _FAMILIES:
        raise MinillamaError(f"{source}: expected model_type llama or mistral, found {kind!r}")
    standard = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
    for key, allowed in standard.items():
        if settings.get(key, allowed) != allowed:
            raise MinillamaError(f"{source}: expected {key} {allowed!r}, found {settings[key]!r}")
    if quantization := settings.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise MinillamaError(f"{source}: expected weights in floating point, found quantization {method!r}")
    required = {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "ffn_dim": "intermediate_size",
        "vocab_size": "vocab_size",
    }
    if missing := [key for key in required.values() if key not in settings]:
        raise MinillamaError(f"{source}: expected {', '.join(missing)}, found no such key")
    # What transformers assumes where a key is absent.
    defaults: dict[str, Any] = {"num_key_value_heads": None, "max_position_embeddings": 2048, "sliding_window": None}
    if kind == "mistral":
        defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096}
    if not isinstance(settings.get("sliding_window"), int | None):
        raise MinillamaError(
            f"{source}: expected sliding_window to be an integer, found {settings['sliding_window']!r}"
        )
    settings = defaults | {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "head_dim": None} | settings
    theta, scaling = _rope_from_json(source, settings)
    return build_config(
        source,
        **{ours: settings[theirs] for ours, theirs in required.items()},
        n_kv_heads=settings["num_key_value_heads"],
        head_dim=settings["head_dim"],
        max_seq_len=settings["max_position_embeddings"],
        norm_eps=_number(source, "rms_norm_eps", settings["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=settings["sliding_window"] if kind == "mistral" else None,
        tie_embeddings=bool(settings["tie_word_embeddings"]),
        head=_head_from_json(source, settings),
    )


def _head_from_json(source: Path, settings: dict[str, Any]) -> str | None:
    """'score' for a sequence classifier, which must have a single label: a reward model; ours may count likelihood."""
    if _HEADS["score"] not in str(settings.get("architectures")):
        return None
    labels = settings.get("id2label") or {"0": "", "1": ""}  # what transformers assumes
    if not isinstance(labels, dict) or len(labels) != 1:
        raise MinillamaError(f"{source}: expected a classifier of 1 label, a score, found id2label {labels!r}")
    return "score+likelihood" if settings.get(_LIKELIHOOD) is True else "score"


def _rope_from_json(source: Path, settings: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise MinillamaError(f"{source}: expected rope_parameters to be an object, found {rope!r}")
    theta = _number(source, "rope_theta", rope.get("rope_theta", settings.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise MinillamaError(f"{source}: expected rope type default, linear or llama3, found {kind!r}")
    names = {"factor": "factor"}
    if kind == "llama3":
        names |= {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}
        names |= {"original_max_seq_len": "original_max_position_embeddings"}
    values: dict[str, Any] = {ours: _number(source, theirs, rope.get(theirs)) for ours, theirs in names.items()}
    if kind == "llama3":
        values["original_max_seq_len"] = int(values["original_max_seq_len"])
    try:
        return theta, RopeScaling(kind, **values)
    except MinillamaError as error:
        raise MinillamaError(f"{source}: {error}") from None


def _number(source: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise MinillamaError(f"{source}: expected {key} to be a number, found {value!r}")
    return float(value)


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder: of `model.safetensors`, or of the shards that the index names."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise MinillamaError(f"{path}: expected model.safetensors or model.safetensors.index.json, found neither")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise MinillamaError(
            f"{index}: expected weight_map from tensor names to files, found {type(weight_map).__name__}"
        )
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise MinillamaError(f"{index}: expected files of the same folder, found {shard!r}")
        if not (path / shard).is_file():
            raise MinillamaError(f"{index}: expected the file {shard}, which is not there")
        stored |= read_header(path / shard)
    return stored


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Raises MinillamaError where it is broken.

    The library checks the header; the bytes are then read from the offsets in it, because the library would hold the
    mapped file in memory beside the arrays.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise MinillamaError(f"{path}: expected a safetensors file, found a broken one ({one_line(error)})") from None
    with open(path, "rb") as file:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(header_bytes))
    stored = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in ("F64", "F32", "F16", "BF16"):
            raise MinillamaError(f"{path}: tensor {name}: expected F32, F16 or BF16, found {entry['dtype']}")
        start = 8 + header_bytes + entry["data_offsets"][0]
        stored[name] = plain(path, start, tuple(entry["shape"]), entry["dtype"])
    return stored


def _check_tied(path: Path, stored: dict[str, StoredTensor]) -> None:
    """A folder whose config ties the embeddings may hold the output layer too, if it says the same."""
    embedding, output = (stored.get(hf_name(name)) for name in ("tok_embeddings.weight", "output.weight"))
    if embedding is None or output is None:
        return
    if embedding.shape == output.shape:
        first, second = (np.empty(tensor.shape, np.float32) for tensor in (embedding, output))
        fill(first, "model.embed_tokens.weight", embedding)
        fill(second, "lm_head.weight", output)
        if np.array_equal(first, second):
            return
    raise MinillamaError(f"{path}: config.json ties lm_head.weight to the embeddings, found them different")


def save(checkpoint: Checkpoint, path: Path, dtype: DTypeLike | None = None) -> None:
    """Write a folder that transformers opens: config, weights, and tokenizer and chat template where there are any.

    dtype: of the weights on disk, float32, bfloat16 or float16; None keeps theirs. Raises MinillamaError.
    """
    config, params = checkpoint.config, checkpoint.params
    on_disk = np.dtype(params["norm.weight"].dtype if dtype is None else dtype)
    with replaced_folder(path, is_ours) as folder:
        write_json(folder / "config.json", config_to_json(checkpoint, on_disk))
        _write_shards(path, folder, config, params, on_disk)
        write_companions(checkpoint, folder)


def write_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """What stands beside the weights: tokenizer and chat template where there are any, and files carried along."""
    if checkpoint.tokenizer is not None:
        stops = sorted(checkpoint.tokenizer.stop_ids)
        write_json(
            folder / "generation_config.json", {"bos_token_id": checkpoint.tokenizer.bos_id, "eos_token_id": stops}
        )
        checkpoint.tokenizer.save(folder)
    if checkpoint.chat_template is not None:
        checkpoint.chat_template.save(folder)
    for name, content in checkpoint.extra_files.items():
        (folder / name).write_bytes(content)


def config_to_json(checkpoint: Checkpoint, dtype: np.dtype) -> dict[str, Any]:
    """The content of a `config.json`, with RoPE described in both ways, for transformers 5 and before."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    kind = "llama" if config.sliding_window is None else "mistral"
    theta, rope = plain_theta(config), None
    if config.rope_scaling is not None and config.rope_scaling.kind != "ntk":
        rope = {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": config.rope_scaling.low_freq_factor,
                "high_freq_factor": config.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": config.rope_scaling.original_max_seq_len,
            }
    return {
        "architectures": [_FAMILIES[kind] + _HEADS[config.head]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": theta,
        "rope_scaling": rope,
        "rope_parameters": {"rope_theta": theta, **(rope or {"rope_type": "default"})},
        **(
            {"sliding_window": config.sliding_window}
            if kind == "mistral"
            else {"attention_bias": False, "mlp_bias": False}
        ),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "torch_dtype": dtype.name,
        **({} if config.head is None else _classifier(checkpoint.tokenizer)),
        **({_LIKELIHOOD: True} if config.head == "score+likelihood" else {}),
    }


def _classifier(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What transformers' classifiers want to know: one label, and the padding after the token whose score counts.

    It looks for the last token that is no padding. So that this is the end token, padding must be another one.
    """
    used = set() if tokenizer is None else {*tokenizer.stop_ids, tokenizer.bos_id}
    pad = next(token for token in count() if token not in used)
    return {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": pad}


def _write_shards(path: Path, folder: Path, config: LlamaConfig, params: dict[str, Array], dtype: np.dtype) -> None:
    """One file, or shards with an index: what is reordered or converted is in memory one shard at a time."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, shape in config.param_shapes().items():
        nbytes = prod(shape) * dtype.itemsize
        if shards[-1] and nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {}
        for name in names:
            value = host_array(path, params, name, dtype)
            if name.endswith((".wq.weight", ".wk.weight")):
                value = interleaved_to_half(value, config.head_dim)
            tensors[hf_name(name)] = value
        write_tensors(path, folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = {"total_size": config.param_count() * dtype.itemsize}
        write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})


def write_tensors(path: Path, file: Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file, of the checkpoint `path`, readable for whom other new files are."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata={"format": "pt"})  # transformers asks for this mark
    except SafetensorError as error:
        raise MinillamaError(f"{path}: cannot be written ({one_line(error)})") from None
    file.chmod(mode)  # safetensors lets only its owner read a file


def is_ours(name: str) -> bool:
    """Whether a file of an older checkpoint gives way to the new one's: all that transformers would read."""
    if name.endswith((".safetensors", ".safetensors.index.json")) or name.startswith("tokenizer"):
        return True
    names = ("config.json", "adapter_config.json", "generation_config.json", "special_tokens_map.json")
    return name in (*names, "chat_template.jinja")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A file of JSON as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
