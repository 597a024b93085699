"""Adapters on a frozen Llama: what they compute, what is trained and what is left alone, and runs that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import layers, weights
from minillama.errors import MinillamaError, UsageError
from minillama.generate import GREEDY, generate
from minillama.lora import TARGETS, LoraConfig, LoraLlama
from minillama.model import KVCache, Llama
from minillama.params import Params
from minillama.training.losses import next_token_loss
from minillama.training.workers import Workers
from tests.conftest import Arrays
from tests.reference import relative_error
from tests.test_model import TINY, lively, padded, tokens
from tests.training import tiny

FROZEN = Path(__file__).parent / "fixtures" / "lora.npz"
CHOICES = {
    "all": LoraConfig(rank=3, alpha=5.0),
    "two": LoraConfig(rank=2, alpha=2.0, targets=("wv", "wq")),
    "one of a joined pair": LoraConfig(rank=1, alpha=0.5, targets=("w3",)),
    "and more": LoraConfig(rank=2, targets=("wk", "w2"), also=("output.weight", "layers.1.ffn_norm.weight")),
}
each_choice = pytest.mark.parametrize("lora", CHOICES.values(), ids=CHOICES)


def adapted(lora: LoraConfig, dtype: type = np.float32, model: Llama | None = None, base: str = "") -> LoraLlama:
    """A lively model with adapters that have learned something: no B is zero."""
    found = LoraLlama.wrap(model or lively(TINY, dtype), lora, seed=5, base=base)
    for i, (name, p) in enumerate(found.trained.items()):
        if name.endswith("lora_b"):
            p[...] = 0.3 * np.random.default_rng([7, i]).standard_normal(p.shape)
    return found


def bits(params: Params) -> dict[str, bytes]:
    return {name: p.tobytes() for name, p in params.items()}


@each_choice
def test_fresh_adapters_change_nothing(lora: LoraConfig) -> None:
    base = lively(TINY)
    model = LoraLlama.wrap(base, lora, seed=1)
    np.testing.assert_array_equal(model.forward(tokens(2, 9))[0], base.forward(tokens(2, 9))[0])


def test_fresh_adapters_are_as_peft_makes_them() -> None:
    """A uniform within ±1/√I (kaiming_uniform with a = √5), B zeros, all by the seed."""
    config = replace(TINY, dim=128, ffn_dim=300)
    model = LoraLlama.wrap(Llama.init(config), LoraConfig(rank=16), seed=1)
    for name, p in model.trained.items():
        if name.endswith("lora_b"):
            assert not p.any()
        else:
            bound = p.shape[1] ** -0.5
            assert 0.97 * bound < abs(p).max() <= bound
            assert float(p.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
            assert abs(float(p.mean())) < 0.1 * bound
    assert bits(LoraLlama.wrap(Llama.init(config), LoraConfig(rank=16), seed=1).trained) == bits(model.trained)
    assert bits(LoraLlama.wrap(Llama.init(config), LoraConfig(rank=16), seed=2).trained) != bits(model.trained)
    a = [p for name, p in model.trained.items() if name.endswith("wq.lora_a")]
    assert not np.array_equal(*a)


@each_choice
def test_names_and_shapes(lora: LoraConfig) -> None:
    model = adapted(lora)
    assert {name: p.shape for name, p in model.trained.items()} == lora.shapes(TINY)
    R, K, D = lora.rank, TINY.n_kv_heads, TINY.head_dim
    if "wk" in lora.targets:
        assert model.trained["layers.1.attention.wk.lora_a"].shape == (R, TINY.dim)
        assert model.trained["layers.1.attention.wk.lora_b"].shape == (K * D, R)
    if "w2" in lora.targets:
        assert model.trained["layers.0.feed_forward.w2.lora_a"].shape == (R, TINY.ffn_dim)
    assert len(model.trained) == 2 * 2 * len(lora.targets) + len(lora.also)


@each_choice
@pytest.mark.parametrize("how", ["plain", "padded", "packed", "recomputed"])
def test_gradients_are_those_of_the_merged_weights(lora: LoraConfig, how: str) -> None:
    """dW of the merged model goes on to A and B by the chain rule: dA = s Bᵀ dW, dB = s dW Aᵀ."""
    model = adapted(lora, np.float64)
    rows, mask = padded([tokens(n, seed=n) for n in (9, 6, 2)], "left")
    options: dict[str, Any] = {"padded": {"mask": mask}, "recomputed": {"recompute": True}}.get(how, {})
    if how == "packed":
        options = {"starts": np.where(np.arange(9) < 4, 0, 4) + np.zeros((3, 1), int)}
    targets = tokens(3, 9, seed=3)
    loss, grads = next_token_loss(model, rows, targets, loss_mask=mask, **options)
    expected_loss, dense = next_token_loss(model.merged(), rows, targets, loss_mask=mask, **options)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert grads.keys() == model.trained.keys()
    for name, grad in grads.items():
        stem, _, kind = name.rpartition(".")
        dweight = dense[f"{stem}.weight"]
        a, b = (model.trained.get(f"{stem}.{which}") for which in ("lora_a", "lora_b"))
        expected = {
            "lora_a": lambda dweight=dweight, b=b: lora.scale * b.T @ dweight,
            "lora_b": lambda dweight=dweight, a=a: lora.scale * dweight @ a.T,
            "weight": lambda dweight=dweight: dweight,
        }[kind]()
        assert abs(expected).max() > 0
        np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-12 * max(1, abs(expected).max()), err_msg=name)


def test_a_wrong_scale_would_be_noticed() -> None:
    """The planted bug: adapters that count alpha times, not alpha / rank."""
    model = adapted(LoraConfig(rank=3, alpha=5.0), np.float64)
    wrong = LoraLlama(model.config, model.params, LoraConfig(rank=3, alpha=15.0), model.trained)
    assert relative_error(wrong.forward(tokens(2, 9))[0], model.merged().forward(tokens(2, 9))[0]) > 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-5)], ids=["float64", "float32"])
def test_loss_logits_and_gradients_are_autograds(dtype: type, tolerance: float) -> None:
    """Frozen by fixtures/make_lora.py."""
    with np.load(FROZEN) as file:
        arrays = {name: file[name] for name in file.files}

    def group(name: str) -> dict[str, np.ndarray]:
        found = {key.removeprefix(f"{name}/"): x for key, x in arrays.items() if key.startswith(f"{name}/")}
        return {key: x.astype(dtype) for key, x in found.items()}

    config = replace(TINY, **json.loads(str(arrays["config"])))
    lora = LoraConfig(**json.loads(str(arrays["lora"])))
    model = LoraLlama(config, group("param"), lora, group("trained"))
    hidden, _ = model.forward(arrays["tokens"])
    assert relative_error(model.logits(hidden), arrays["logits"]) <= tolerance
    loss, grads = next_token_loss(model, arrays["tokens"], arrays["targets"])
    assert loss == pytest.approx(float(arrays["loss"]), rel=tolerance)
    expected = {key.removeprefix("grad/"): x for key, x in arrays.items() if key.startswith("grad/")}
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert relative_error(grads[name], grad) <= tolerance, name


@each_choice
def test_merged_is_a_plain_model_of_the_same_function(lora: LoraConfig) -> None:
    model = adapted(lora, np.float64)
    merged = model.merged()
    assert type(merged) is Llama
    assert list(merged.params) == list(TINY.param_shapes())
    hidden, _ = model.forward(tokens(2, 9))
    np.testing.assert_allclose(merged.forward(tokens(2, 9))[0], hidden, rtol=0, atol=1e-12 * abs(hidden).max())
    assert relative_error(lively(TINY, np.float64).forward(tokens(2, 9))[0], hidden) > 1e-3  # adapters matter


@each_choice
def test_the_base_is_never_written_to(lora: LoraConfig) -> None:
    """Not by training, and not through the merged model, whose arrays are its own."""
    base = lively(TINY)
    before = bits(base.params)
    model = adapted(lora, model=base)
    for p in model.merged().params.values():
        p[...] = 0
    workers = Workers(model, threads=1)
    batch = {"tokens": tokens(4, 8), "targets": tokens(4, 8, seed=1)}

    def loss(model: Llama, batch: dict[str, np.ndarray], weight: float) -> tuple[Any, Params]:
        return next_token_loss(model, batch["tokens"], batch["targets"], count=weight)

    first, grads = workers.gradients(loss, batch, 32.0, 2)
    workers.params -= 0.02 * grads
    assert workers.gradients(loss, batch, 32.0, 2)[0] < first
    assert bits(base.params) == before


def test_what_is_trained_beside_adapters_stays_one_array() -> None:
    """The flat array that the optimizer updates is what the model computes with."""
    model = adapted(CHOICES["and more"])
    workers = Workers(model, threads=1)
    before, _ = model.forward(tokens(1, 5))
    logits = model.logits(before)
    workers.params *= 1.5
    for name in model.lora.also:
        assert model.params[name] is model.trained[name]
        assert np.shares_memory(model.params[name], workers.params)
    assert abs(model.logits(before) - 1.5 * logits).max() < 1e-4


def test_what_is_frozen_costs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product of a frozen matrix's gradient is made, of the embedding's and the head's neither."""
    model = adapted(LoraConfig(rank=2, targets=("wq",)))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the gradient of what is frozen was computed")

    monkeypatch.setattr(layers, "linear_backward", never)
    monkeypatch.setattr(layers, "embedding_backward", never)
    _, grads = next_token_loss(model, tokens(2, 6), tokens(2, 6, seed=1))
    assert list(grads) == [f"layers.{i}.attention.wq.lora_{kind}" for i in (1, 0) for kind in "ab"]
    with pytest.raises(AssertionError, match="was computed"):
        next_token_loss(lively(TINY), tokens(2, 6), tokens(2, 6, seed=1))


@each_choice
def test_cache_equals_full_forward(lora: LoraConfig) -> None:
    """Also where neighbouring matrices would be multiplied as one: adapters stand beside each."""
    model = adapted(lora)
    cache = KVCache(TINY, 2, 12, like=model.params["norm.weight"])
    pieces = [model.forward(tokens(2, 12)[:, at], cache=cache)[0] for at in np.split(np.arange(12), [7, 10, 11])]
    hidden, _ = model.forward(tokens(2, 12))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), hidden, rtol=0, atol=5e-6 * abs(hidden).max())


@each_choice
def test_frozen_neighbours_are_still_multiplied_as_one(lora: LoraConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    linear = layers.linear

    def counting(x: np.ndarray, weight: np.ndarray) -> Any:
        widths.append(len(weight))
        return linear(x, weight)

    monkeypatch.setattr(layers, "linear", counting)
    base = Llama.init(TINY)
    model = LoraLlama.wrap(base, lora)
    model.forward(tokens(1, 3), cache=KVCache(TINY, 1, 3, like=base.params["norm.weight"]))
    qkv, gate_up = (TINY.n_heads + 2 * TINY.n_kv_heads) * TINY.head_dim, 2 * TINY.ffn_dim
    assert (qkv in widths) == (not {"wq", "wk", "wv"} & set(lora.targets))
    assert (gate_up in widths) == (not {"w1", "w3"} & set(lora.targets))


def test_generation_is_that_of_the_merged_model() -> None:
    model = adapted(CHOICES["all"])
    prompts = [tokens(n, seed=n).tolist() for n in (5, 3)]
    texts = [generate(m, prompts, max_new_tokens=20, sampling=GREEDY) for m in (model, model.merged())]
    assert [c.tokens for c in texts[0]] == [c.tokens for c in texts[1]]
    plain = generate(lively(TINY), prompts, max_new_tokens=20, sampling=GREEDY)
    assert [c.tokens for c in plain] != [c.tokens for c in texts[0]]


@each_choice
def test_on_every_library(lora: LoraConfig, arrays: Arrays) -> None:
    """A GPU's rules: nothing is read back, no float64, no mixing with the host; and the same numbers."""
    ours = adapted(lora)
    model = LoraLlama(TINY, arrays.put(dict(ours.params)), lora, arrays.put(dict(ours.trained)))
    loss, grads = next_token_loss(model, arrays.put(tokens(2, 6)), arrays.put(tokens(2, 6, seed=1)))
    expected_loss, expected = next_token_loss(ours, tokens(2, 6), tokens(2, 6, seed=1))
    assert float(arrays.get(loss)) == pytest.approx(float(expected_loss), rel=1e-6)
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        assert relative_error(arrays.get(grad), expected[name]) <= 1e-5, name
    merged = model.merged_params()
    fresh = LoraLlama.wrap(Llama(TINY, merged), lora, seed=5)
    assert fresh.xp is model.xp and all(type(p) is type(merged["norm.weight"]) for p in fresh.trained.values())


def tiny_lora(base: Path, lora: LoraConfig) -> LoraLlama:
    return LoraLlama.wrap(Llama.load(base), lora, seed=2, base=str(base))


class Stopped(Exception):
    pass


def stops(step: int) -> Callable[[int], None]:
    def before_step(now: int) -> None:
        if now == step:
            raise Stopped

    return before_step


@pytest.mark.parametrize("also", [(), ("norm.weight",)], ids=["adapters", "and a norm"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path, also: tuple[str, ...]) -> None:
    base, lora = tmp_path / "base", LoraConfig(rank=4, alpha=8.0, also=also)
    Llama.init(tiny.CONFIG, seed=3).save(base)
    before = bits(weights.load(base).params)
    model, progress = tiny.run(tmp_path / "whole", 30, model=tiny_lora(base, lora), lr=0.03)
    assert isinstance(model, LoraLlama)
    assert progress.best_loss is not None
    untrained = tiny.Counting().validate(tiny_lora(base, lora))["loss"]
    assert progress.best_loss < untrained - 0.15

    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        tiny.run(folder, 30, tiny.Counting(stops(17)), tiny_lora(base, lora), lr=0.03)
    again, _ = tiny.run(folder, 30, model=tiny_lora(base, lora), lr=0.03)
    assert bits(again.trained) == bits(model.trained)
    adapters = ("adapter_config.json", "adapter_model.safetensors")
    for place in (folder, folder / "checkpoints" / "step-000028", folder / "checkpoints" / "step-000030"):
        assert all((place / name).is_file() for name in adapters)
        assert not (place / "config.json").exists()
        assert not (place / "model.safetensors").exists()
    assert bits(weights.load(folder, merge=False).params) == bits(model.trained)  # in the order of the forward pass
    assert bits(weights.load(folder).params) == bits(model.merged_params())
    assert bits(Llama.load(folder).params) == bits(model.merged_params())
    assert bits(weights.load(base).params) == before


def test_what_cannot_be() -> None:
    for wrong, message in [
        ({"rank": 0}, "LoRA rank 0: expected a positive integer"),
        ({"alpha": 0.0}, "LoRA alpha 0.0: expected a positive number"),
        ({"alpha": float("nan")}, "LoRA alpha nan: expected a positive number"),
        ({"targets": ("wq", "w4")}, "LoRA targets wq, w4: expected some of wq, wk, wv, wo, w1, w2, w3"),
        ({"targets": ()}, "expected some of wq"),
    ]:
        with pytest.raises(UsageError) as caught:
            LoraConfig(**wrong)
        assert message in str(caught.value)
    for also in ("nothing.weight", "layers.0.attention.wq.weight"):
        with pytest.raises(UsageError, match=f"LoRA also {also}: expected the name of a parameter that has no"):
            LoraLlama.wrap(lively(TINY), LoraConfig(also=(also,)))
    tied = replace(TINY, tie_embeddings=True)
    with pytest.raises(UsageError, match="expected embeddings of their own, found them tied to the head"):
        LoraLlama.wrap(lively(tied), LoraConfig(also=("tok_embeddings.weight",)))


def test_adapters_that_do_not_fit() -> None:
    model = adapted(CHOICES["two"])
    name = "layers.0.attention.wq.lora_a"
    for change, message in [
        ({name: np.ones((2, 23))}, rf"{name}: expected shape \(2, 24\), found \(2, 23\)"),
        ({"layers.0.attention.wk.lora_a": np.ones((2, 24))}, r"unexpected layers.0.attention.wk.lora_a \(1 in all\)"),
    ]:
        with pytest.raises(MinillamaError, match=message):
            LoraLlama(TINY, model.params, model.lora, model.trained | change)
    fewer = {key: p for key, p in model.trained.items() if key != name}
    with pytest.raises(MinillamaError, match=rf"missing {name} \(1 of 8 missing\)"):
        LoraLlama(TINY, model.params, model.lora, fewer)


def test_equal_choices_are_equal_configs() -> None:
    assert LoraConfig(targets=("w3", "wq", "wq")) == LoraConfig(targets=("wq", "w3"))
    assert LoraConfig(also=("b", "a")) == LoraConfig(also=("a", "b"))
    assert LoraConfig(targets=TARGETS) == LoraConfig()
    assert LoraConfig(rank=4, alpha=6).scale == 1.5
