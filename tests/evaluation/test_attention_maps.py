"""What a picture of attention shows is what the model computed: naive softmax, causal, rows that sum to 1."""

import math

import numpy as np
import pytest

from minillama import Llama, LlamaConfig, layers
from minillama.errors import UsageError
from minillama.evaluation.attention_maps import attention_maps
from minillama.lora import LoraConfig, LoraLlama

GROUPED = LlamaConfig(24, 3, 6, 40, n_kv_heads=2, head_dim=4, vocab_size=50, max_seq_len=256)


def model_of(config: LlamaConfig, seed: int = 0) -> Llama:
    """A model in float64 whose attention is far from even."""
    model = Llama.init(config, seed, np.float64)
    for name, p in model.params.items():
        if p.ndim > 1:
            p *= 40 if name.endswith(("wq.weight", "wk.weight")) else 10
    return model


def naive_maps(model: Llama, tokens: np.ndarray) -> np.ndarray:
    """Probabilities query by query, head by head; the rest of each block from the layers."""
    config, p = model.config, model.params
    T, D, group = len(tokens), config.head_dim, config.n_heads // config.n_kv_heads
    frequencies = layers.rope_frequencies(D, config.rope_theta, config.rope_scaling)
    rotations = layers.rope_rotations(np.arange(T), frequencies, np.float64)
    maps = np.zeros((config.n_layers, config.n_heads, T, T))
    x = p["tok_embeddings.weight"][tokens]
    for i in range(config.n_layers):
        at = f"layers.{i}."
        h = layers.rmsnorm(x, p[f"{at}attention_norm.weight"], config.norm_eps)[0]
        q, k, v = (
            (h @ p[f"{at}attention.{name}.weight"].T).reshape(1, T, -1, D)  # (T, H*D) -> (1, T, H, D)
            for name in ("wq", "wk", "wv")
        )
        q, k = layers.rope(q, rotations)[0], layers.rope(k, rotations)[0]
        out = np.zeros((T, config.n_heads, D))
        for head in range(config.n_heads):
            for t in range(T):
                first = 0 if config.sliding_window is None else max(0, t - config.sliding_window + 1)
                e = [math.exp(q[0, t, head] @ k[0, s, head // group] / math.sqrt(D)) for s in range(first, t + 1)]
                for s in range(first, t + 1):
                    maps[i, head, t, s] = e[s - first] / sum(e)
                    out[t, head] += maps[i, head, t, s] * v[0, s, head // group]
        x = x + out.reshape(T, -1) @ p[f"{at}attention.wo.weight"].T  # (T, H*D) @ (H*D, C)
        h = layers.rmsnorm(x, p[f"{at}ffn_norm.weight"], config.norm_eps)[0]
        gate, up = h @ p[f"{at}feed_forward.w1.weight"].T, h @ p[f"{at}feed_forward.w3.weight"].T
        x = x + layers.swiglu(gate, up)[0] @ p[f"{at}feed_forward.w2.weight"].T  # (T, F) @ (F, C)
    return maps


@pytest.mark.parametrize("length", [1, 2, 17, 130])  # also more than one of attention's blocks of queries
@pytest.mark.parametrize("window", [None, 5])
def test_maps_are_the_naive_softmax(length, window):
    model = model_of(LlamaConfig(**(GROUPED.__dict__ | {"sliding_window": window})))
    tokens = np.random.default_rng(1).integers(0, 50, length)
    maps = attention_maps(model, tokens)
    assert maps.shape == (3, 6, length, length)
    assert maps.dtype == np.float64
    np.testing.assert_allclose(maps, naive_maps(model, tokens), rtol=1e-9, atol=1e-13)
    if length > 2:
        assert maps[:, :, -1].max(axis=-1).max() > 3 / length, "too even a test: heads or keys could be swapped"


def test_rows_sum_to_one_and_nothing_comes_from_later():
    model = Llama.init(GROUPED, 3)
    maps = attention_maps(model, list(range(50)) * 3)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=3), 1, rtol=1e-5)
    assert not np.triu(maps, 1).any()
    assert (maps[..., *np.tril_indices(150)] > 0).all()


def test_a_model_with_adapters_shows_its_own():
    model = model_of(GROUPED)
    adapted = LoraLlama.wrap(model, LoraConfig(rank=2, alpha=4.0), seed=1, base="base")
    rng = np.random.default_rng(0)
    for p in adapted.trained.values():
        p[...] = rng.standard_normal(p.shape)
    tokens = rng.integers(0, 50, 9)
    ours = attention_maps(adapted, tokens)
    assert np.abs(ours - attention_maps(model, tokens)).max() > 0.1
    np.testing.assert_allclose(ours[0].sum(axis=-1), 1, rtol=1e-12)


@pytest.mark.parametrize(("tokens", "said"), [([], "none"), ([1, 50], "token 50"), ([0] * 257, "257 tokens")])
def test_what_cannot_be_read_is_said(tokens, said):
    with pytest.raises(UsageError, match=said):
        attention_maps(Llama.init(GROUPED), tokens)
