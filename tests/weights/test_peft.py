"""Adapters in PEFT's format: load(save(x)) is x, a base found or missed, and what is broken gets its line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minillama import catalog, weights
from minillama.chat import builtin
from minillama.errors import MinillamaError, UsageError
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.weights import Checkpoint
from minillama.weights.peft import peft_name
from tests.weights.support import CONFIGS, TINY, assert_same_params, random_params, tiny_checkpoint, tiny_tokenizer

LORA = LoraConfig(rank=3, alpha=4.5, targets=("wq", "wk", "w2"))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNTIED = CONFIGS["untied"]


def adapters(base: Path | str, lora: LoraConfig = LORA, config: Any = TINY, seed: int = 1) -> Checkpoint:
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in lora.shapes(config).items()}
    return Checkpoint(config, params, lora=lora, base=str(base))


def make(tmp_path: Path, lora: LoraConfig = LORA, config: Any = TINY) -> Path:
    """A base, and adapters beside it."""
    weights.save(tiny_checkpoint(config), tmp_path / "base")
    weights.save(adapters(tmp_path / "base", lora, config), tmp_path / "adapters")
    return tmp_path / "adapters"


def message_of(path: Path, load: Callable[[Path], Any] = weights.load) -> str:
    with pytest.raises(MinillamaError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("also", [(), ("norm.weight", "layers.0.attention.wv.weight")], ids=["", "also"])
def test_adapters_come_back_as_they_are(tmp_path: Path, name: str, also: tuple[str, ...]) -> None:
    config, lora = CONFIGS[name], replace(LORA, also=also)
    folder = make(tmp_path, lora, config)
    assert weights.detect_format(folder) == "peft"
    expected, found = adapters(tmp_path / "base", lora, config), weights.load(folder, merge=False)
    assert (found.config, found.lora, found.base, found.format) == (config, lora, expected.base, "peft")
    assert_same_params(found.params, expected.params)
    again = tmp_path / "again"
    weights.save(found, again)
    for file in (CONFIG, WEIGHTS):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_for_use_they_are_merged(tmp_path: Path, config: Any) -> None:
    """W + alpha / rank B A, all else the base's, and the same as what LoraLlama computes."""
    lora = replace(LORA, also=("layers.0.ffn_norm.weight",))
    folder = make(tmp_path, lora, config)
    loaded, base, raw = weights.load(folder), tiny_checkpoint(config), adapters("", lora, config).params
    assert (loaded.config, loaded.lora, loaded.base) == (config, None, None)
    assert list(loaded.params) == list(base.params)
    for name, p in base.params.items():
        stem = name.removesuffix("weight")
        if name == "layers.0.ffn_norm.weight":
            np.testing.assert_array_equal(loaded.params[name], raw[name])
        elif f"{stem}lora_a" in raw:
            expected = p + 1.5 * (raw[f"{stem}lora_b"] @ raw[f"{stem}lora_a"])
            np.testing.assert_allclose(loaded.params[name], expected, rtol=1e-5, atol=1e-5)
            assert abs(expected - p).max() > 1
        else:
            np.testing.assert_array_equal(loaded.params[name], p)
    assert weights.inspect(folder).params == {}
    assert weights.inspect(folder).config == config
    model = LoraLlama.load(folder)
    assert (model.lora, model.base) == (lora, str(tmp_path / "base"))
    assert_same_params(model.merged_params(), loaded.params)


def test_names_in_the_file(tmp_path: Path) -> None:
    """Written out, as PEFT 0.18 writes them; A (R, I) and B (O, R)."""
    folder = make(tmp_path, LoraConfig(rank=3, also=("norm.weight",)))
    shapes = {name: x.shape for name, x in load_file(folder / WEIGHTS).items()}
    layer = "base_model.model.model.layers.1"
    assert len(shapes) == 2 * 2 * 7 + 1
    assert shapes[f"{layer}.self_attn.q_proj.lora_A.weight"] == (3, 32)
    assert shapes[f"{layer}.self_attn.k_proj.lora_B.weight"] == (16, 3)
    assert shapes[f"{layer}.self_attn.v_proj.lora_A.weight"] == (3, 32)
    assert shapes[f"{layer}.self_attn.o_proj.lora_B.weight"] == (32, 3)
    assert shapes[f"{layer}.mlp.gate_proj.lora_A.weight"] == (3, 32)
    assert shapes[f"{layer}.mlp.down_proj.lora_A.weight"] == (3, 64)
    assert shapes[f"{layer}.mlp.up_proj.lora_B.weight"] == (64, 3)
    assert shapes["base_model.model.model.norm.weight"] == (32,)
    settings = json.loads((folder / CONFIG).read_text())
    assert settings["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
    assert settings["modules_to_save"] == ["model.norm"]
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 16, "bias": "none"}
    assert settings | expected == settings
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")


def test_rows_beside_queries_and_keys_are_half_split(tmp_path: Path) -> None:
    """Of a head of D = 8, the file has rows 0 2 4 6 1 3 5 7; A, and B elsewhere, stay."""
    folder = make(tmp_path)
    stored, raw = load_file(folder / WEIGHTS), adapters("").params
    order = np.concatenate([8 * head + np.array([0, 2, 4, 6, 1, 3, 5, 7]) for head in range(4)])
    for name, x in raw.items():
        rows = order[: len(x)] if name.endswith(("wq.lora_b", "wk.lora_b")) else slice(None)
        np.testing.assert_array_equal(stored[peft_name(name)], x[rows], err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types(tmp_path: Path, dtype: str) -> None:
    weights.save(tiny_checkpoint(), tmp_path / "base")
    weights.save(adapters(tmp_path / "base"), tmp_path / "adapters", dtype=dtype)
    found = weights.load(tmp_path / "adapters", merge=False).params
    for name, x in adapters("").params.items():
        expected = x.astype({"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]).astype(np.float32)
        np.testing.assert_array_equal(found[name], expected)
    merged = weights.load(tmp_path / "adapters", dtype).params
    exact = weights.load(tmp_path / "adapters").params
    for name, x in merged.items():
        assert x.dtype.name == dtype
        np.testing.assert_allclose(x.astype(np.float32), exact[name], rtol=0.01, atol=0.02)


def test_tokenizer_and_template_lie_beside(tmp_path: Path) -> None:
    base = tiny_checkpoint()
    weights.save(base, tmp_path / "base")
    weights.save(adapters(tmp_path / "base"), tmp_path / "bare")
    bare = weights.load(tmp_path / "bare")
    assert bare.tokenizer is not None and bare.chat_template is None
    full = replace(adapters(tmp_path / "base"), tokenizer=tiny_tokenizer(), chat_template=builtin("chatml"))
    weights.save(full, tmp_path / "full")
    for merge in (True, False):
        loaded = weights.load(tmp_path / "full", merge=merge)
        assert loaded.tokenizer is not None and loaded.tokenizer.encode("a a") == tiny_tokenizer().encode("a a")
        assert loaded.chat_template is not None
        assert loaded.chat_template.source == builtin("chatml").source


def test_where_the_base_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, one from here, one from the adapters' folder, a name of the catalog."""
    weights.save(tiny_checkpoint(), tmp_path / "base")
    expected: dict[str, np.ndarray] | None = None
    for name in (str(tmp_path / "base"), "base", "../base", "smollm2"):
        weights.save(adapters(name), tmp_path / "adapters")
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path if name == "base" else Path(tmp_path.root))
            if name == "smollm2":
                patch.setattr(catalog, "_smollm2", lambda: tmp_path / "base")
            loaded = weights.load(tmp_path / "adapters").params
            assert weights.load(tmp_path / "adapters", merge=False).base == name
        if expected is not None:
            assert_same_params(loaded, expected)
        expected = loaded


def test_adapters_on_adapters(tmp_path: Path) -> None:
    """A finetuned model that is itself adapters can be the base of a next one."""
    first = make(tmp_path)
    second = tmp_path / "second"
    weights.save(adapters(first, LoraConfig(rank=1, alpha=2.0, targets=("wv",)), seed=2), second)
    loaded, under = weights.load(second).params, weights.load(first).params
    changed = {name for name, x in loaded.items() if not np.array_equal(x, under[name])}
    assert changed == {f"layers.{i}.attention.wv.weight" for i in range(2)}
    assert weights.load(second, merge=False).config == TINY
    weights.save(adapters(second), first)
    line = f"{second / CONFIG}: expected a base model, found adapters whose base is {second} again"
    assert message_of(second) == line
    weights.save(adapters(first), first)
    assert "found adapters whose base is" in message_of(first)


def test_a_reward_model_has_its_head_among_them(tmp_path: Path) -> None:
    """task_type SEQ_CLS on a base that writes text: its head goes, the score comes."""
    scored, lora = replace(UNTIED, head="score"), replace(LORA, also=("score.weight",))
    weights.save(tiny_checkpoint(UNTIED), tmp_path / "base")
    folder = tmp_path / "reward"
    weights.save(adapters(tmp_path / "base", lora, scored), folder)
    settings = json.loads((folder / CONFIG).read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert load_file(folder / WEIGHTS)["base_model.model.score.weight"].shape == (1, 32)
    raw, merged = weights.load(folder, merge=False), weights.load(folder)
    assert_same_params(raw.params, adapters("", lora, scored).params)
    assert raw.config == merged.config == scored
    assert list(merged.params) == list(scored.param_shapes())
    np.testing.assert_array_equal(merged.params["score.weight"], raw.params["score.weight"])
    assert_same_params(LoraLlama.load(folder).merged_params(), merged.params)
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.score.weight"]
    save_file(tensors, folder / WEIGHTS)
    assert "missing base_model.model.score.weight" in message_of(folder)


@pytest.mark.parametrize("merge", [True, False])
def test_a_base_that_is_not_there(tmp_path: Path, merge: bool) -> None:
    for name, message in [
        ("nowhere/at-all", "nowhere/at-all: no such file or folder"),
        ("unheard-of", "unknown model 'unheard-of': expected a path or one of smollm2, "),
    ]:
        weights.save(adapters(name), tmp_path / "adapters")
        found = message_of(tmp_path / "adapters", lambda path: weights.load(path, merge=merge))
        expected = (
            f"{tmp_path / 'adapters' / CONFIG}: expected the model that base_model_name_or_path names, found none: "
        )
        assert found.startswith(expected + message)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 48}, "layers.0.self_attn.q_proj.lora_A.weight: expected shape (3, 48), found (3, 32)"),
        ({"n_layers": 1}, "expected 6 tensors, found also base_model.model.model.layers.1."),
        ({"n_layers": 3}, "expected 18 tensors, missing base_model.model.model.layers.2."),
        ({"n_kv_heads": 4}, "k_proj.lora_B.weight: expected shape (32, 3), found (16, 3)"),
    ],
    ids=["wider", "fewer layers", "more layers", "more heads"],
)
def test_a_base_that_does_not_fit(tmp_path: Path, change: dict[str, int], message: str, merge: bool) -> None:
    folder = make(tmp_path)
    weights.save(tiny_checkpoint(replace(TINY, **change)), tmp_path / "base")
    found = message_of(folder, lambda path: weights.load(path, merge=merge))
    assert found.startswith(f"{folder / WEIGHTS}: ")
    assert message in found
    assert found.endswith(f"; the base model is {tmp_path / 'base'}")


@pytest.mark.parametrize("size", ["empty", "header", "half", "almost"])
@pytest.mark.parametrize("load", [weights.load, weights.inspect])
def test_truncated(tmp_path: Path, size: str, load: Callable[[Path], Any]) -> None:
    file = make(tmp_path) / WEIGHTS
    data = file.read_bytes()
    file.write_bytes(data[: {"empty": 0, "header": 20, "half": len(data) // 2, "almost": len(data) - 1}[size]])
    assert message_of(file.parent, load).startswith(f"{file}: expected a safetensors file, found a broken one (")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_json_that_does_not_parse(tmp_path: Path, content: bytes) -> None:
    folder = make(tmp_path)
    (folder / CONFIG).write_bytes(content)
    assert message_of(folder).startswith(f"{folder / CONFIG}: expected ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type 'LORA', found 'IA3'"),
        ({"use_dora": True}, "expected use_dora False, found True"),
        ({"use_rslora": True}, "expected use_rslora False, found True"),
        ({"bias": "all"}, "expected bias 'none', found 'all'"),
        ({"init_lora_weights": "pissa"}, "expected init_lora_weights True, found 'pissa'"),
        ({"rank_pattern": {"q_proj": 4}}, "expected rank_pattern {}, found {'q_proj': 4}"),
        ({"r": "eight"}, "expected r to be an integer, found 'eight'"),
        ({"r": 0}, "LoRA rank 0: expected a positive integer"),
        ({"lora_alpha": 10**310}, f"expected lora_alpha to be a number, found {10**310}"),
        ({"lora_alpha": None}, "expected lora_alpha to be a number, found None"),
        ({"lora_alpha": -1}, "LoRA alpha -1: expected a positive number"),
        ({"base_model_name_or_path": None}, "expected base_model_name_or_path to name a model, found None"),
        ({"base_model_name_or_path": 3}, "expected base_model_name_or_path to name a model, found 3"),
    ],
    ids=lambda change: "-".join(change) if isinstance(change, dict) else "",
)
def test_settings_that_are_not_supported(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = make(tmp_path)
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | change))
    assert message_of(folder) == f"{folder / CONFIG}: {message}"


def test_settings_that_change_nothing(tmp_path: Path) -> None:
    """What PEFT writes beyond what decides the result, and what it may leave out."""
    folder = make(tmp_path)
    settings = json.loads((folder / CONFIG).read_text())
    expected = weights.load(folder).params
    needed = {key: settings[key] for key in ("peft_type", "base_model_name_or_path", "r", "lora_alpha")}
    more = {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "peft_version": "0.18.0", "megatron_config": None}
    for changed in (needed, settings | more):
        (folder / CONFIG).write_text(json.dumps(changed))
        assert_same_params(weights.load(folder).params, expected)


def edited(change: Callable[[dict[str, np.ndarray]], Any], tmp_path: Path) -> str:
    folder = make(tmp_path)
    tensors = dict(load_file(folder / WEIGHTS))
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    message = message_of(folder)
    assert message.startswith(f"{folder / WEIGHTS}: ")
    return message


def test_missing_unexpected_and_misshapen_tensors(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert f"expected 12 tensors, missing {name}" in edited(lambda tensors: tensors.pop(name), tmp_path)
    magnitude = {name.replace("lora_A", "lora_magnitude_vector"): np.ones(32, np.float32)}
    assert "found also base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector.weight" in edited(
        lambda tensors: tensors.update(magnitude), tmp_path
    )
    wrong = edited(lambda tensors: tensors.update({name: np.ones((2, 32), np.float32)}), tmp_path)
    assert f"tensor {name}: expected shape (3, 32), found (2, 32)" in wrong
    assert "expected F32, F16 or BF16, found I32" in edited(
        lambda tensors: tensors.update({name: np.ones((3, 32), np.int32)}), tmp_path
    )
    nothing = edited(lambda tensors: [tensors.clear(), tensors.update({"x": np.ones(3, np.float32)})], tmp_path)
    assert nothing.endswith("expected adapters of a Llama's matrices, found none")
    tied = {"base_model.model.model.embed_tokens.weight": np.ones((262, 32), np.float32)}
    assert "expected embeddings of their own" in edited(lambda tensors: tensors.update(tied), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_adapters_that_are_not_finite(tmp_path: Path, value: float) -> None:
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name][1, 2] = value

    assert edited(change, tmp_path).endswith(f"tensor {name}: expected finite weights, found NaN or infinite values")
    bad = adapters(tmp_path / "base")
    bad.params["layers.0.feed_forward.w2.lora_b"][1, 2] = value
    with pytest.raises(MinillamaError, match=r"tensor layers\.0\.feed_forward\.w2\.lora_b: expected finite weights"):
        weights.save(bad, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_merged_model_that_overflows(tmp_path: Path) -> None:
    folder = make(tmp_path)
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"lora_alpha": 1e39}))
    expected = "tensor layers.0.attention.wq.weight, merged: expected finite weights, found NaN or infinite values"
    assert message_of(folder) == f"{folder}: {expected}"


def test_without_its_weights(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / WEIGHTS).unlink()
    assert message_of(folder) == f"{folder}: expected {WEIGHTS} in it, found none"


def test_what_is_not_whole_is_not_saved(tmp_path: Path) -> None:
    good = adapters("base")
    less = {name: x for name, x in good.params.items() if "w2" not in name}
    with pytest.raises(MinillamaError, match=r"missing layers.0.feed_forward.w2.lora_a \(4 of 12 missing\)"):
        weights.save(replace(good, params=less), tmp_path / "new")
    with pytest.raises(UsageError, match="expected the name or path of their base with them, found none"):
        weights.save(replace(good, base=""), tmp_path / "new")
    for to in ("gguf", "llama2c"):
        with pytest.raises(UsageError, match=f"fit only into a folder, not into {to}: merge them first"):
            weights.save(good, tmp_path / "new", to=to)
    assert list(tmp_path.iterdir()) == []


def test_loading_to_train_on_wants_adapters(tmp_path: Path) -> None:
    weights.save(tiny_checkpoint(), tmp_path / "base")
    with pytest.raises(MinillamaError, match="expected adapters, found a whole model"):
        LoraLlama.load(tmp_path / "base")
    assert type(Llama.load(tmp_path / "base")) is Llama


def test_one_kind_of_checkpoint_replaces_the_other(tmp_path: Path) -> None:
    """Nothing of an old one is left that would be taken for a part of the new one."""
    weights.save(tiny_checkpoint(), tmp_path / "base")
    folder = tmp_path / "model"
    weights.save(tiny_checkpoint(tokenizer=False), folder)
    (folder / "notes.txt").write_text("mine")
    weights.save(adapters(tmp_path / "base"), folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, "notes.txt"]
    weights.save(Checkpoint(TINY, random_params(TINY)), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert weights.detect_format(folder) == "huggingface"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (tmp_path / "plain").touch()
    assert {(folder / name).stat().st_mode for name in (CONFIG, WEIGHTS)} == {(tmp_path / "plain").stat().st_mode}
