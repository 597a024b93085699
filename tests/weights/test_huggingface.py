"""Hugging Face folders as other programs write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minillama import weights
from minillama.config import LlamaConfig, RopeScaling
from minillama.errors import MinillamaError
from minillama.weights import huggingface
from minillama.weights.huggingface import config_from_json
from tests.weights.support import CONFIGS, TINY, assert_same_params, random_params, tiny_checkpoint

SIZES = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 262,
}
SOURCE = Path("config.json")


def config(**settings: Any) -> LlamaConfig:
    return config_from_json(SOURCE, SIZES | settings)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_absent_keys_mean_what_transformers_takes_them_for() -> None:
    llama = config()
    assert (llama.n_kv_heads, llama.head_dim, llama.max_seq_len) == (4, 8, 2048)
    assert (llama.norm_eps, llama.rope_theta, llama.tie_embeddings) == (1e-6, 10_000.0, False)
    mistral = config(model_type="mistral", num_attention_heads=8)
    assert (mistral.n_kv_heads, mistral.max_seq_len, mistral.sliding_window) == (8, 131_072, 4096)


def test_a_null_window_is_none_and_llama_has_none() -> None:
    assert config(model_type="mistral", num_attention_heads=8, sliding_window=None).sliding_window is None
    assert config(sliding_window=7).sliding_window is None


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("settings", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 5e5, RopeScaling("linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5, RopeScaling("llama3", 8.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2}},
            5e5,
            RopeScaling("linear", 2.0),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            5e5,
            RopeScaling("llama3", 8.0),
        ),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, 5e5, None),
    ],
)
def test_rope_before_and_since_transformers_5(settings: dict, theta: float, scaling: RopeScaling | None) -> None:
    found = config(**settings)
    assert (found.rope_theta, found.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "qwen2"}, "expected model_type llama or mistral, found 'qwen2'"),
        ({"model_type": None}, "expected model_type llama or mistral, found None"),
        ({"attention_bias": True}, "expected attention_bias False, found True"),
        ({"mlp_bias": True}, "expected mlp_bias False, found True"),
        ({"hidden_act": "gelu"}, "expected hidden_act 'silu', found 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "expected partial_rotary_factor 1.0, found 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "floating point, found quantization 'gptq'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type default, linear or llama3, found 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "expected factor to be a number, found None"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "expected a number of at least 1"),
        ({"rope_theta": "big"}, "expected rope_theta to be a number, found 'big'"),
        ({"rope_theta": 10**400}, "expected rope_theta to be a number"),
        ({"rms_norm_eps": float("nan")}, "expected rms_norm_eps to be a number, found nan"),
        ({"hidden_size": 33}, "dim 33 is not a multiple of n_heads 4"),
        ({"hidden_size": "32"}, "config dim = '32': expected a positive integer"),
        ({"num_key_value_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"model_type": "mistral", "sliding_window": "all"}, "expected sliding_window to be an integer, found 'all'"),
    ],
)
def test_configs_that_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(MinillamaError) as caught:
        config(**settings)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


def test_a_missing_size_is_named() -> None:
    with pytest.raises(MinillamaError, match=r"config\.json: expected hidden_size, found no such key"):
        config_from_json(SOURCE, {key: value for key, value in SIZES.items() if key != "hidden_size"})


def test_rows_of_q_and_k_are_in_the_half_order_on_disk(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    weights.save(checkpoint, tmp_path / "model")
    on_disk = load_file(tmp_path / "model" / "model.safetensors")
    ours = checkpoint.params["layers.1.attention.wq.weight"]
    theirs = on_disk["model.layers.1.self_attn.q_proj.weight"]
    order = [8 * head + row for head in range(4) for row in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert np.array_equal(theirs, ours[order])
    assert np.array_equal(
        on_disk["model.layers.1.self_attn.v_proj.weight"], checkpoint.params["layers.1.attention.wv.weight"]
    )


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    checkpoint = tiny_checkpoint()
    weights.save(checkpoint, tmp_path / "model")
    shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert_same_params(weights.load(tmp_path / "model").params, checkpoint.params)
    (tmp_path / "model" / shards[1]).unlink()
    with pytest.raises(MinillamaError, match=rf"index\.json: expected the file {shards[1]}, which is not there"):
        weights.load(tmp_path / "model")


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MinillamaError, match="expected files of the same folder"):
        weights.load(tmp_path / "model")


def test_a_tied_head_that_is_stored_as_well(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(CONFIGS["untied"])
    checkpoint.params["output.weight"] = checkpoint.params["tok_embeddings.weight"].copy()
    weights.save(checkpoint, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", tie_word_embeddings=True)
    loaded = weights.load(tmp_path / "model")
    assert loaded.config == TINY
    assert "output.weight" not in loaded.params


def test_a_tied_head_that_says_something_else(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(CONFIGS["untied"]), tmp_path / "model")
    edit(tmp_path / "model" / "config.json", tie_word_embeddings=True)
    with pytest.raises(MinillamaError, match=r"config\.json ties lm_head\.weight to the embeddings, found them diff"):
        weights.load(tmp_path / "model")


def test_rope_buffers_of_old_files_are_passed_over(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    weights.save(checkpoint, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}, file)
    assert_same_params(weights.load(tmp_path / "model").params, checkpoint.params)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": np.ones(32, np.int32)}, file)
    with pytest.raises(MinillamaError, match=r"model\.norm\.weight: expected F32, F16 or BF16, found I32"):
        weights.load(tmp_path / "model")


def test_generation_config_is_carried_along(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(), tmp_path / "first")
    content = b'{"eos_token_id": [2, 5], "temperature": 0.6}'
    (tmp_path / "first" / "generation_config.json").write_bytes(content)
    weights.save(weights.load(tmp_path / "first"), tmp_path / "second")
    assert (tmp_path / "second" / "generation_config.json").read_bytes() == content


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    """A layer count of two billion ends at once."""
    weights.save(tiny_checkpoint(), tmp_path / "model")
    edit(tmp_path / "model" / "config.json", num_hidden_layers=2**31)
    with pytest.raises(MinillamaError, match="expected tensors for 2147483648 layers, found 20 tensors"):
        weights.load(tmp_path / "model")


def test_params_are_contiguous_and_can_be_trained(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(), tmp_path / "model")
    for name, value in weights.load(tmp_path / "model").params.items():
        assert value.flags.c_contiguous, name
        assert value.flags.writeable, name


def test_random_params_differ() -> None:
    """The round trips would show nothing if all tensors were alike."""
    values = list(random_params(TINY).values())
    assert len({value.tobytes() for value in values}) == len(values)
