"""The whole model beyond the reference numbers: padding, cache, devices, presets, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minillama import layers
from minillama.config import PRESETS, LlamaConfig, RopeScaling, preset
from minillama.errors import MinillamaError, UsageError
from minillama.model import KVCache, Llama
from minillama.params import accumulate, empty_params, side_by_side
from minillama.training.losses import next_token_loss
from tests.conftest import Arrays

TINY = LlamaConfig(dim=24, n_layers=2, n_heads=4, ffn_dim=40, vocab_size=31, n_kv_heads=2, max_seq_len=64)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, TINY.vocab_size, shape)


def lively(config: LlamaConfig, dtype: type = np.float32, seed: int = 0) -> Llama:
    """A model with weights large enough that every part of it matters."""
    model = Llama.init(config, seed, np.float64)
    return Llama(config, {name: (p * 8 if p.ndim > 1 else p).astype(dtype) for name, p in model.params.items()})


def padded(prompts: list[np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, prompts))
    batch, mask = np.zeros((len(prompts), longest), int), np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        at = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        batch[row, at], mask[row, at] = prompt, True
    return batch, mask


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_texts_packed_in_one_row_know_nothing_of_each_other(window: int | None, recompute: bool) -> None:
    """Hidden states, loss and gradients are those of each text alone, whatever stands before it."""
    model = lively(replace(TINY, sliding_window=window), np.float64)
    texts = [tokens(n, seed=n) for n in (7, 1, 5, 4, 9)]
    rows, starts = np.zeros((2, 15), int), np.zeros((2, 15), int)
    places = [(0, 0), (0, 7), (0, 8), (1, 2), (1, 6)]  # two tokens of something else come first in the second row
    rows[1, :2] = 30, 29
    counts = np.zeros((2, 15), bool)
    for text, (row, start) in zip(texts, places, strict=True):
        at = row, slice(start, start + len(text))
        rows[at], starts[at], counts[at] = text, start, True
    starts[0, 13:] = 13
    targets = tokens(2, 15, seed=8)
    hidden, _ = model.forward(rows, starts=starts)
    loss, grads = next_token_loss(model, rows, targets, loss_mask=counts, starts=starts, recompute=recompute)
    alone_loss, alone_grads = 0.0, {}
    for text, (row, start) in zip(texts, places, strict=True):
        at = row, slice(start, start + len(text))
        alone, _ = model.forward(text[None])
        np.testing.assert_allclose(hidden[at], alone[0], rtol=0, atol=1e-12)
        part, more = next_token_loss(model, text[None], targets[at][None], count=float(counts.sum()))
        alone_loss += part
        accumulate(alone_grads, more)
    assert loss == pytest.approx(alone_loss, rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, alone_grads[name], rtol=0, atol=1e-12, err_msg=name)
    leaky, _ = model.forward(rows)
    assert abs(leaky[0, 8:13] - hidden[0, 8:13]).max() > 0.1  # simply one after the other, they do know


def test_starts_exclude_masks_and_caches() -> None:
    model, starts = lively(TINY), np.zeros((1, 3), int)
    with pytest.raises(UsageError, match="a mask and starts exclude each other"):
        model.forward(tokens(1, 3), mask=np.ones((1, 3), bool), starts=starts)
    with pytest.raises(UsageError, match="exclude each other: the cache knows its padding"):
        model.forward(tokens(1, 3), starts=starts, cache=KVCache(TINY, 1, 4, like=model.params["norm.weight"]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 4])
def test_padding_changes_no_number(side: str, window: int | None) -> None:
    """Hidden states, loss and gradients of unequal texts in one batch are those of each alone."""
    model = lively(replace(TINY, sliding_window=window), np.float64)
    prompts = [tokens(n, seed=n) for n in (9, 5, 1)]
    batch, mask = padded(prompts, side)
    targets = tokens(*batch.shape, seed=7)
    hidden, _ = model.forward(batch, mask=mask)
    loss, grads = next_token_loss(model, batch, targets, loss_mask=mask, mask=mask)
    alone_loss, alone_grads = 0.0, {}
    for row, prompt in enumerate(prompts):
        alone, _ = model.forward(prompt[None])
        np.testing.assert_allclose(hidden[row][mask[row]], alone[0], rtol=0, atol=1e-12)
        row_loss, row_grads = next_token_loss(model, prompt[None], targets[row][mask[row]][None])
        share = len(prompt) / mask.sum()
        alone_loss += share * row_loss
        accumulate(alone_grads, {name: share * grad for name, grad in row_grads.items()})
    assert loss == pytest.approx(alone_loss, rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, alone_grads[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 2.0)], ids=["plain", "scaled"])
def test_cache_equals_full_forward(window: int | None, scaling: RopeScaling | None) -> None:
    """Unequal prompts, left-padded; then chunks of 3, 1 and 1 through the cache: the same as all at once."""
    model = lively(replace(TINY, sliding_window=window, rope_scaling=scaling))
    texts = [tokens(n, seed=n) for n in (12, 9, 6)]
    batch, mask = padded(texts, "left")
    cache = KVCache(model.config, 3, batch.shape[1], like=model.params["norm.weight"], pads=(~mask).sum(axis=1))
    pieces = [model.forward(batch[:, at], cache=cache)[0] for at in np.split(np.arange(12), [7, 10, 11])]
    hidden = np.concatenate(pieces, axis=1)
    for row, text in enumerate(texts):
        alone, _ = model.forward(text[None])
        np.testing.assert_allclose(hidden[row][mask[row]], alone[0], rtol=0, atol=5e-6 * np.abs(alone).max())


def test_cache_goes_on_with_the_rows_that_are_left() -> None:
    model = lively(TINY)
    texts = [tokens(n, seed=n) for n in (8, 7, 5)]
    batch, mask = padded(texts, "left")
    cache = KVCache(TINY, 3, 8, like=model.params["norm.weight"], pads=(~mask).sum(axis=1))
    model.forward(batch[:, :7], cache=cache)
    cache.select([2, 0])
    hidden, _ = model.forward(batch[[2, 0], 7:], cache=cache)
    for place, row in enumerate((2, 0)):
        alone, _ = model.forward(texts[row][None])
        np.testing.assert_allclose(hidden[place, 0], alone[0, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 3], [2, 0], [3, 1, 2], [1, 0, 3, 2]], ids=str)
def test_rows_that_keep_their_place_are_not_copied(rows: list[int]) -> None:
    cache = KVCache(TINY, 4, 6, like=np.zeros(1), pads=np.array([0, 1, 2, 3]))
    cache.used = 4
    cache.keys[...], cache.values[...] = tokens(*cache.keys.shape), tokens(*cache.keys.shape, seed=1)
    memory, keys, values = cache.keys, cache.keys.copy(), cache.values.copy()
    cache.select(rows)
    np.testing.assert_array_equal(cache.keys[:, :, :, :4], keys[:, rows, :, :4])
    np.testing.assert_array_equal(cache.values[:, :, :, :4], values[:, rows, :, :4])
    assert cache.pads is not None and cache.pads[:, 0].tolist() == rows
    assert np.shares_memory(cache.keys, memory)


def test_recomputed_activations_give_the_same_gradients_from_less_memory() -> None:
    import tracemalloc

    config = LlamaConfig(32, 6, 4, 88, vocab_size=64, max_seq_len=128)
    model = Llama.init(config)
    batch, targets = tokens(2, 128), tokens(2, 128, seed=1)
    results, held = [], []
    for recompute in (False, True):
        tracemalloc.start()
        _, saved = model.forward(batch, recompute=recompute)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        results.append(next_token_loss(model, batch, targets, recompute=recompute))
        del saved
    (loss, grads), (loss_again, grads_again) = results
    assert loss == loss_again
    for name, grad in grads.items():
        np.testing.assert_array_equal(grads_again[name], grad, err_msg=name)
    assert held[1] < held[0] / 5


def test_blocks_of_attention_change_nothing() -> None:
    """A text longer than a block of queries: hidden states and gradients as with one block."""
    import sys

    module = sys.modules["minillama.layers.attention"]
    model = lively(TINY, np.float64)
    batch, targets = tokens(1, 40), tokens(1, 40, seed=1)
    whole = next_token_loss(model, batch, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERIES", 7)
        parts = next_token_loss(model, batch, targets)
    assert parts[0] == pytest.approx(whole[0], rel=1e-14)
    for name, grad in whole[1].items():
        np.testing.assert_allclose(parts[1][name], grad, rtol=0, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_training_and_decoding_on_every_library(arrays: Arrays, tied: bool) -> None:
    """The same numbers wherever the parameters live; under a GPU's rules no step waits for the device."""
    config = replace(TINY, tie_embeddings=tied)
    model = lively(config)
    there = Llama(config, arrays.put(model.params))
    batch, targets = tokens(2, 9), tokens(2, 9, seed=1)
    mask = np.ones((2, 9), bool)
    mask[1, :4] = False
    loss, grads = next_token_loss(model, batch, targets, loss_mask=mask, mask=mask)
    there_loss, there_grads = next_token_loss(there, batch, targets, loss_mask=mask, mask=mask)
    assert float(arrays.get(there_loss)) == pytest.approx(float(loss), rel=1e-5)
    assert there_grads.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(arrays.get(there_grads[name]), grad, rtol=0, atol=2e-5 * np.abs(grad).max())

    cache = KVCache(config, 2, 9, like=there.params["norm.weight"], pads=(~mask).sum(axis=1))
    there.forward(batch[:, :8], cache=cache)
    cache.select([1])
    last = there.logits(there.forward(batch[1:, 8:], cache=cache)[0])
    expected = model.logits(model.forward(batch[1:, 4:])[0])[:, -1:]
    np.testing.assert_allclose(arrays.get(last), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_same_seed_same_weights() -> None:
    first, again, other = (Llama.init(TINY, seed).params for seed in (3, 3, 4))
    for name, p in first.items():
        np.testing.assert_array_equal(p, again[name])
    assert not np.array_equal(first["norm.weight"], other["tok_embeddings.weight"])
    assert not np.array_equal(first["tok_embeddings.weight"], other["tok_embeddings.weight"])
    assert np.std(first["layers.0.attention.wq.weight"]) == pytest.approx(0.02, rel=0.1)
    assert np.std(first["layers.0.attention.wo.weight"]) == pytest.approx(0.01, rel=0.1)


def test_parameters_lie_side_by_side() -> None:
    """One buffer; matrices that share an input are one matrix without a copy, and decoding with them is the same."""
    model = Llama.init(TINY)
    assert len({id(p.base) for p in model.params.values()}) == 1
    names = [f"layers.1.attention.{name}.weight" for name in ("wq", "wk", "wv")]
    matrices = [model.params[name] for name in names]
    whole = side_by_side(*matrices)
    assert np.shares_memory(whole, matrices[2])
    np.testing.assert_array_equal(whole, np.concatenate(matrices))
    assert side_by_side(*(p.copy() for p in matrices)) is None
    assert side_by_side(matrices[0], matrices[2]) is None
    assert side_by_side(matrices[1], matrices[0]) is None
    apart = Llama(TINY, {name: p.copy() for name, p in model.params.items()})
    last = [m.forward(tokens(3, 5), cache=KVCache(TINY, 3, 5, like=whole))[0] for m in (model, apart)]
    np.testing.assert_allclose(last[0], last[1], rtol=0, atol=1e-5)
    assert {p.dtype for p in empty_params(TINY, np.float64).values()} == {np.dtype(np.float64)}


def test_hidden_states_serve_another_head() -> None:
    """A scalar head on the last token, as a reward model has: its gradient reaches every parameter of the backbone."""
    model = lively(TINY, np.float64)
    head = np.random.default_rng(5).standard_normal(TINY.dim)
    batch = tokens(2, 6)
    hidden, saved = model.forward(batch)
    dhidden = np.zeros_like(hidden)
    dhidden[:, -1] = head  # reward = Σ_b head · hidden[b, -1]
    grads = model.backward(dhidden, saved)
    assert set(grads) == set(model.params) - {"output.weight"}
    name, at, step = "layers.0.attention.wk.weight", (3, 5), 1e-6
    rewards = []
    for sign in (1, -1):
        params = {key: p.copy() for key, p in model.params.items()}
        params[name][at] += sign * step
        rewards.append((Llama(TINY, params).forward(batch)[0][:, -1] @ head).sum())
    assert grads[name][at] == pytest.approx((rewards[0] - rewards[1]) / (2 * step), rel=1e-6)


COUNTS = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,
    "codellama-34b": 33_743_970_304,
    "llama2-70b": 68_976_648_192,
    "llama1-33b": 32_528_943_616,
    "llama1-65b": 65_285_660_672,
    "mistral-7b": 7_241_732_096,
    "llama3-8b": 8_030_261_248,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_published_models(name: str) -> None:
    assert preset(name).param_count() == COUNTS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_count_is_the_sum_of_the_shapes(name: str) -> None:
    config = PRESETS[name]
    assert config.param_count() == sum(int(np.prod(shape)) for shape in config.param_shapes().values())


def test_memory_of_the_kv_cache() -> None:
    """Llama 2 70B: 8 KV heads need an eighth of 64."""
    config = PRESETS["llama2-70b"]
    assert config.kv_cache_bytes(1, 4096, bytes_per_value=2) == 2 * 80 * 4096 * 8 * 128 * 2
    assert config.inference_bytes(1, 1) == 4 * config.param_count() + config.kv_cache_bytes(1, 1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("length", "window"), [(40, None), (200, None), (200, 50)])
def test_what_training_holds_is_as_counted(length: int, window: int | None, recompute: bool) -> None:
    import tracemalloc

    config = LlamaConfig(64, 4, 4, 172, vocab_size=512, n_kv_heads=2, max_seq_len=256, sliding_window=window)
    model = Llama.init(config)
    batch = tokens(4, length)
    tracemalloc.start()
    hidden, saved = model.forward(batch, recompute=recompute)
    loss, saved_loss = layers.cross_entropy(model.logits(hidden), batch, overwrite=True)
    again = saved[1][-1]()[1] if recompute else None  # where the backward pass begins
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert again is not None or not recompute
    assert np.isfinite(loss) and saved_loss[0].shape == (4, length, 512)
    counted = config.training_bytes(4, length, recompute=recompute) - 4 * 4 * config.param_count()
    assert held == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim = 0"),
        ({"n_layers": 1.5}, "n_layers = 1.5"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"norm_eps": 0.0}, "norm_eps 0.0"),
        ({"sliding_window": 0}, "sliding_window 0"),
    ],
)
def test_impossible_configs(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("yarn", {}, "'yarn'"),
        ("linear", {"factor": 0.5}, "0.5"),
        ("llama3", {"low_freq_factor": 4.0, "high_freq_factor": 1.0}, "low < high"),
    ],
)
def test_impossible_rope_scaling(kind: str, fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RopeScaling(kind, **{"factor": 2.0, **fields})  # type: ignore[arg-type]


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(UsageError, match="llama2-7b"):
        preset("llama2-8b")
    assert preset("Llama2-7B") == PRESETS["llama2-7b"]


def test_bad_tokens_and_params() -> None:
    model = lively(TINY)
    with pytest.raises(UsageError, match="token 31 is not in the vocabulary of 31"):
        model.forward(np.array([[1, 31]]))
    with pytest.raises(UsageError, match="token -1 is not in"):
        model.forward(np.array([[1, -1]]))
    with pytest.raises(UsageError, match="expected integers"):
        model.forward(np.array([[1.0]]))
    with pytest.raises(UsageError, match="expected integers"):
        model.forward([1, 2])
    with pytest.raises(UsageError, match="at least one token"):
        model.forward(np.zeros((1, 0), int))
    with pytest.raises(UsageError, match="65 tokens do not fit the context of 64"):
        model.forward(tokens(1, 65))
    cache = KVCache(TINY, 1, 4, like=model.params["norm.weight"])
    with pytest.raises(UsageError, match=r"0 \+ 5 tokens do not fit the KV cache of 4"):
        model.forward(tokens(1, 5), cache=cache)
    with pytest.raises(UsageError, match="exclude each other"):
        model.forward(tokens(1, 2), cache=cache, mask=np.ones((1, 2), bool))
    params = dict(model.params)
    del params["norm.weight"]
    with pytest.raises(MinillamaError, match=r"missing parameter norm\.weight"):
        Llama(TINY, params)
    with pytest.raises(MinillamaError, match="unexpected parameter extra"):
        Llama(TINY, {**model.params, "extra": np.zeros(1)})
    with pytest.raises(MinillamaError, match=r"norm\.weight: expected shape \(24,\), found \(23,\)"):
        Llama(TINY, {**model.params, "norm.weight": np.zeros(23)})


def test_cuda_without_a_gpu_says_so() -> None:
    from minillama.backend import cuda_problem, resolve_device

    if cuda_problem() is None:
        assert resolve_device(None) == "cuda"
        return
    with pytest.raises(UsageError, match="'cuda' cannot be used"):
        Llama.init(TINY, device="cuda")
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        resolve_device("tpu")
    assert resolve_device(None) == "cpu"
