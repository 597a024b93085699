"""Chapter 8, the whole Llama: exercises, solutions and typical wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from minillama import layers
from minillama.backend import Array
from minillama.config import PRESETS, LlamaConfig
from minillama.errors import UsageError
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.model import KVCache, Llama

chapter = Chapter(
    "ch08_llama",
    "The whole Llama",
    """Chapter 8: the whole Llama. Write the functions; the chapter derives each formula.

    minillama exercises check ch08      what is right, and the first thing that is not
    minillama exercises hint ch08       the next hint

When 8.4 is right, your block carries every layer of a real model:

    minillama exercises run --with ch04 ch08 -- generate stories260k --prompt "Once upon a time"

B batch, T time, S key positions, C model width, H query heads, K KV heads, D head width, F feed-forward width,
V vocabulary. The ops of the other chapters are there: layers.linear, layers.rope, layers.attention, layers.swiglu, …,
each with its backward. Give one's `saved` to the other.""",
)

TINY = LlamaConfig(6, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, ffn_dim=5, vocab_size=7, max_seq_len=16)


# --- 8.1 parameters


def count_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"config": PRESETS["llama2-7b"]}
    yield {"config": PRESETS["llama2-70b"]}
    yield {"config": PRESETS["smollm2-135m"]}
    yield {"config": LlamaConfig(8, n_layers=3, n_heads=2, n_kv_heads=1, head_dim=6, ffn_dim=5, vocab_size=11)}


@chapter.exercise(
    "warm-up",
    cases=count_cases,
    returns=("count",),
    replaces="minillama.config:LlamaConfig.param_count",
    hints=(
        "A layer has wq and wo (H*D, C), wk and wv (K*D, C), w1, w2 and w3 (F, C), and two norms (C,).",
        "Around the layers: the embedding (V, C), the final norm (C,), and the head (V, C) unless it is tied.",
    ),
)
def param_count(config: LlamaConfig) -> int:
    """How many parameters a Llama of this shape has: 6,738,415,616 for Llama 2 7B.

    config: dim C, n_layers, n_heads H, n_kv_heads K, head_dim D, ffn_dim F, vocab_size V; tie_embeddings says that
    the embedding is the head too. There are no biases. Returns an int.
    """
    C, D, V = config.dim, config.head_dim, config.vocab_size
    attention = 2 * config.n_heads * D * C + 2 * config.n_kv_heads * D * C
    layer = attention + 3 * config.ffn_dim * C + 2 * C
    return V * C * (1 if config.tie_embeddings else 2) + config.n_layers * layer + C


@chapter.wrong(
    "param_count", "the head is counted although it is tied: the embedding serves twice, but is stored once."
)
def tied_head_counted(config: LlamaConfig) -> int:
    return param_count(config) + (config.vocab_size * config.dim if config.tie_embeddings else 0)


@chapter.wrong("param_count", "wk and wv have K heads, not H: queries are grouped.")
def all_heads(config: LlamaConfig) -> int:
    return (
        param_count(config) + 2 * config.n_layers * (config.n_heads - config.n_kv_heads) * config.head_dim * config.dim
    )


@chapter.wrong("param_count", "the final norm is missing.")
def no_final_norm(config: LlamaConfig) -> int:
    return param_count(config) - config.dim


@chapter.wrong("param_count", "the two norms of each layer are missing.")
def no_layer_norms(config: LlamaConfig) -> int:
    return param_count(config) - 2 * config.n_layers * config.dim


@chapter.wrong("param_count", "a feed-forward layer has three matrices: SwiGLU has a gate.")
def two_matrices(config: LlamaConfig) -> int:
    return param_count(config) - config.n_layers * config.ffn_dim * config.dim


# --- 8.2 and 8.3 RMSNorm


def rmsnorm_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"x": rng.standard_normal((2, 3, 4)), "weight": rng.uniform(0.5, 2, 4), "eps": 1e-5}
    yield {"x": 0.01 * rng.standard_normal((3, 4)), "weight": rng.uniform(0.5, 2, 4), "eps": 1e-4}  # eps matters
    yield {"x": rng.standard_normal((5, 6)).astype(np.float32), "weight": np.ones(6, np.float32), "eps": 1e-5}


chapter.exercise(
    "warm-up",
    cases=rmsnorm_cases,
    returns=("y", "saved"),
    task="As `saved`, return whatever your rmsnorm_backward will need.",
    hints=(
        "keepdims=True keeps the axis of the mean, so that it divides every element of its vector.",
        "eps stands inside the root: 1 / np.sqrt(mean + eps).",
    ),
)(layers.rmsnorm)


@chapter.wrong("rmsnorm", "the mean of x is subtracted: that is LayerNorm; RMSNorm only divides.")
def layer_norm(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    return layers.rmsnorm(x - x.mean(axis=-1, keepdims=True), weight, eps)


@chapter.wrong("rmsnorm", "the squares are summed; take their mean.")
def sum_of_squares(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + eps) * weight, ()


@chapter.wrong("rmsnorm", "eps is outside the root; it belongs inside, beside the mean.")
def eps_outside(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    return x / (np.sqrt((x * x).mean(axis=-1, keepdims=True)) + eps) * weight, ()


@chapter.wrong("rmsnorm", "eps is missing.")
def no_eps(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    del eps
    return layers.rmsnorm(x, weight, 0.0)


@chapter.wrong("rmsnorm", "the weight is missing: multiply by it at the end.")
def no_weight(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    return layers.rmsnorm(x, np.ones_like(weight), eps)


@chapter.wrong("rmsnorm", "the root is missing: this divides by the mean square.")
def no_root(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps) * weight, ()


@chapter.wrong("rmsnorm", "the mean is taken over the whole array; take it over the last axis, keepdims=True.")
def mean_of_all(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    return x / np.sqrt((x * x).mean() + eps) * weight, ()


def rmsnorm_there_and_back(own: Functions, x: Array, weight: Array, eps: float, dy: Array) -> tuple:
    _, saved = own.rmsnorm(x, weight, eps)
    return own.rmsnorm_backward(dy, saved)


def rmsnorm_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in rmsnorm_cases(rng):
        yield {**case, "dy": rng.standard_normal(case["x"].shape).astype(case["x"].dtype)}


def rmsnorm_gradient(own: Functions) -> None:
    rng = np.random.default_rng(1)
    layers.gradcheck(own.rmsnorm, own.rmsnorm_backward, rng.standard_normal((2, 5)), rng.uniform(0.5, 2, 5), 1e-5)


chapter.exercise(
    "core",
    cases=rmsnorm_backward_cases,
    trial=rmsnorm_there_and_back,
    proof=rmsnorm_gradient,
    needs=("rmsnorm",),
    returns=("dx", "dweight"),
    hints=(
        "r depends on every x of the vector: the second term of dx is what flows back through it.",
        "mean(g x̂) is over the last axis, keepdims=True; dweight sums over all axes but the last.",
    ),
)(layers.rmsnorm_backward)


@chapter.wrong("rmsnorm_backward", "dx treats the root mean square as a constant: r g lacks - r x̂ mean(g x̂).")
def rms_constant(dy: Array, saved: tuple) -> tuple[Array, Array]:
    _, weight, inverse_rms = saved
    return dy * weight * inverse_rms, layers.rmsnorm_backward(dy, saved)[1]


@chapter.wrong("rmsnorm_backward", "dx is made from dy where it needs g = dy * weight.")
def weight_forgotten(dy: Array, saved: tuple) -> tuple[Array, Array]:
    normed, weight, inverse_rms = saved
    return layers.rmsnorm_backward(dy, (normed, np.ones_like(weight), inverse_rms))


@chapter.wrong("rmsnorm_backward", "in dx, g x̂ is summed over the vector; the formula has its mean.")
def summed_projection(dy: Array, saved: tuple) -> tuple[Array, Array]:
    normed, weight, inverse_rms = saved
    g = dy * weight
    dx = inverse_rms * (g - normed * (g * normed).sum(axis=-1, keepdims=True))
    return dx, layers.rmsnorm_backward(dy, saved)[1]


@chapter.wrong("rmsnorm_backward", "dweight uses x where it needs x̂, the normed x.")
def unnormed_dweight(dy: Array, saved: tuple) -> tuple[Array, Array]:
    normed, _, inverse_rms = saved
    dx, _ = layers.rmsnorm_backward(dy, saved)
    return dx, (dy * normed / inverse_rms).reshape(-1, dy.shape[-1]).sum(axis=0)


# --- 8.4 and 8.5 the block


def tiny_block(rng: np.random.Generator, dtype: type, length: int = 3) -> Case:
    """A block's arguments: x (2, T, C), the weights of one layer, rotations and config."""
    shapes = {name.split(".")[-2]: s for name, s in TINY.param_shapes().items() if name.startswith("layers.0.")}
    w: dict[str, Array] = {}
    for name, shape in shapes.items():
        w[name] = (0.5 * rng.standard_normal(shape) + (len(shape) == 1)).astype(dtype)  # norms are around 1
    rotations = layers.rope_rotations(np.arange(length), layers.rope_frequencies(TINY.head_dim), dtype)
    x: Array = rng.standard_normal((2, length, TINY.dim)).astype(dtype)
    return {"x": x, "w": w, "rotations": rotations, "config": TINY}


def block_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield tiny_block(rng, np.float64)
    yield tiny_block(rng, np.float64, length=4) | {"mask": np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)}
    yield tiny_block(rng, np.float32)
    yield tiny_block(rng, np.float64, length=1) | {"store": pretend_cache}


def pretend_cache(k: Array, v: Array) -> tuple[Array, Array]:
    """As a KV cache that already holds two positions."""
    past = np.full((k.shape[0], 2, *k.shape[2:]), 0.5, k.dtype)
    return np.concatenate([past, k], axis=1), np.concatenate([past, v], axis=1)


def block_weights(params: dict[str, Array], i: int) -> dict[str, Array]:
    """The weights of block i, each under the last part of its name: "wq"."""
    return {name.split(".")[-2]: p for name, p in params.items() if name.startswith(f"layers.{i}.")}


def as_block_forward(block: Callable) -> Callable:
    """`block` in the place of Llama._block_forward."""

    def block_forward(self: Llama, i: int, x: Array, rotations: Array, mask: Array | None, starts, cache) -> tuple:  # type: ignore[no-untyped-def]
        if starts is not None:
            raise UsageError("the exercise's block takes one text a row: expected no packing (--packing none)")
        store = partial(cache.store, i) if cache is not None else None
        return block(x, block_weights(self.params, i), rotations, self.config, mask, store)

    return block_forward


def as_block_backward(block_backward: Callable) -> Callable:
    """`block_backward` in the place of Llama._block_backward."""

    def backward(self: Llama, i: int, dx: Array, saved: tuple, grads: dict[str, Array]) -> Array:
        dx, block_grads = block_backward(dx, saved)
        paths = {name.split(".")[-2]: name for name in self.config.param_shapes() if name.startswith(f"layers.{i}.")}
        grads.update({paths[name]: grad for name, grad in block_grads.items()})
        return dx

    return backward


@chapter.exercise(
    "core",
    cases=block_cases,
    returns=("y", "saved"),
    replaces="minillama.model:Llama._block_forward",
    adapt=as_block_forward,
    task="As `saved`, return whatever your block_backward will need: the `saved` of each op.",
    hints=(
        "q, saved_q = layers.linear(h, w['wq']), then q.reshape(B, T, config.n_heads, config.head_dim), then rope. Turn"
        " q and k, not v; k and v have config.n_kv_heads heads.",
        "If store is given: k, v = store(k, v), after rope. Then layers.attention(q, k, v, mask=mask,"
        " window=config.sliding_window) gives (B, T, H, D), and wo wants (B, T, H*D).",
        "There are two residual sums: x = x + (attention's), and then x + (feed-forward's), each from a fresh rmsnorm.",
    ),
)
def block(
    x: Array,
    w: dict[str, Array],
    rotations: Array,
    config: LlamaConfig,
    mask: Array | None = None,
    store: Callable | None = None,
) -> tuple[Array, tuple]:
    """One transformer block: x = x + attention(rmsnorm(x)), then y = x + w2 swiglu(w1 h, w3 h) with h = rmsnorm(x).

    x: (B, T, C). w: attention_norm (C,), wq (H*D, C), wk and wv (K*D, C), wo (C, H*D), ffn_norm (C,), w1 and w3 (F, C),
    w2 (C, F). rotations: for layers.rope. mask: (B, S) bool, for layers.attention. store: puts the turned k and v
    (B, T, K, D) into a KV cache and gives those of all positions so far (B, S, K, D); None without a cache.
    Returns y (B, T, C).
    """
    B, T, _ = x.shape
    D = config.head_dim
    h, norm1 = layers.rmsnorm(x, w["attention_norm"], config.norm_eps)
    q, wq = layers.linear(h, w["wq"])  # (B, T, C) -> (B, T, H*D)
    k, wk = layers.linear(h, w["wk"])  # (B, T, C) -> (B, T, K*D)
    v, wv = layers.linear(h, w["wv"])  # (B, T, C) -> (B, T, K*D)
    q, rope_q = layers.rope(q.reshape(B, T, config.n_heads, D), rotations)
    k, rope_k = layers.rope(k.reshape(B, T, config.n_kv_heads, D), rotations)
    v = v.reshape(B, T, config.n_kv_heads, D)
    if store is not None:
        k, v = store(k, v)  # (B, T, K, D) -> (B, S, K, D)
    out, attended = layers.attention(q, k, v, mask=mask, window=config.sliding_window)
    out, wo = layers.linear(out.reshape(B, T, -1), w["wo"])  # (B, T, H*D) -> (B, T, C)
    x = x + out

    h, norm2 = layers.rmsnorm(x, w["ffn_norm"], config.norm_eps)
    gate, w1 = layers.linear(h, w["w1"])  # (B, T, C) -> (B, T, F)
    up, w3 = layers.linear(h, w["w3"])
    h, act = layers.swiglu(gate, up)
    out, w2 = layers.linear(h, w["w2"])  # (B, T, F) -> (B, T, C)
    return x + out, (D, norm1, wq, wk, wv, rope_q, rope_k, attended, wo, norm2, w1, w3, act, w2)


chapter.edit(
    "block",
    "the first residual sum is missing: x + attention, not attention alone.",
    "x = x + out",
    "x = out",
)
chapter.edit(
    "block",
    "the second residual sum is missing: x + feed-forward, not feed-forward alone.",
    "return x + out,",
    "return out,",
)
chapter.edit(
    "block",
    "the feed-forward layer reads x as it is; it wants rmsnorm(x, ffn_norm).",
    'h, norm2 = layers.rmsnorm(x, w["ffn_norm"], config.norm_eps)',
    "h, norm2 = x, ()",
)
chapter.edit(
    "block",
    "gate and up are swapped: the gate is w1's, which goes through the sigmoid.",
    "layers.swiglu(gate, up)",
    "layers.swiglu(up, gate)",
)
chapter.edit(
    "block",
    "q is not turned: rope is for q and k.",
    "q, rope_q = layers.rope(q.reshape(B, T, config.n_heads, D), rotations)",
    "q, rope_q = q.reshape(B, T, config.n_heads, D), ()",
)
chapter.edit(
    "block",
    "k is not turned: rope is for q and k.",
    "k, rope_k = layers.rope(k.reshape(B, T, config.n_kv_heads, D), rotations)",
    "k, rope_k = k.reshape(B, T, config.n_kv_heads, D), ()",
)
chapter.edit(
    "block",
    "v is turned too; rope is for q and k only.",
    "v = v.reshape(B, T, config.n_kv_heads, D)",
    "v, _ = layers.rope(v.reshape(B, T, config.n_kv_heads, D), rotations)",
)
chapter.edit(
    "block",
    "wq is transposed: layers.linear(h, w) is h @ w.T already.",
    'layers.linear(h, w["wq"])',
    'layers.linear(h, w["wq"].T)',
)
chapter.edit(
    "block",
    "wo is transposed: layers.linear(out, w) is out @ w.T already.",
    'layers.linear(out.reshape(B, T, -1), w["wo"])',
    'layers.linear(out.reshape(B, T, -1), w["wo"].T)',
)
chapter.edit(
    "block",
    "the mask is not handed to attention: padding is seen.",
    "mask=mask, window",
    "window",
)
chapter.edit(
    "block",
    "store is not called: with a cache, queries must see the earlier keys too.",
    "if store is not None:",
    "if False:",
)
chapter.edit(
    "block",
    "q is read as (B, H, T, D): reshape to (B, T, H, D), the heads of a position lie side by side.",
    "q.reshape(B, T, config.n_heads, D)",
    "q.reshape(B, config.n_heads, T, D).swapaxes(1, 2)",
)


def block_there_and_back(own: Functions, dy: Array, **case: object) -> tuple:
    _, saved = own.block(**case)
    return own.block_backward(dy, saved)


def block_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in block_cases(rng):
        if "store" not in case:  # nothing is trained through a cache
            yield {**case, "dy": rng.standard_normal(case["x"].shape).astype(case["x"].dtype)}


def block_gradient(own: Functions) -> None:
    """Every element of x, and of each weight, by central differences of the learner's own forward pass."""
    case = tiny_block(np.random.default_rng(1), np.float64, length=2)
    names = list(case["w"])

    def forward(x: Array, *weights: Array) -> tuple[Array, tuple]:
        return own.block(x, dict(zip(names, weights, strict=True)), case["rotations"], TINY)

    def backward(dy: Array, saved: tuple) -> tuple[Array, ...]:
        dx, grads = own.block_backward(dy, saved)
        return dx, *(grads[name] for name in names)

    layers.gradcheck(forward, backward, case["x"], *case["w"].values())


@chapter.exercise(
    "core",
    cases=block_backward_cases,
    trial=block_there_and_back,
    proof=block_gradient,
    needs=("block",),
    returns=("dx", "grads"),
    replaces="minillama.model:Llama._block_backward",
    adapt=as_block_backward,
    task="Read your block from its end: each op has its backward, layers.linear_backward and so on.",
    hints=(
        "A residual sum y = x + f(x) hands dy to both: dx = dy + f_backward(dy).",
        "h feeds wq, wk and wv (and w1 and w3): its gradient is the sum of theirs.",
        "layers.attention_backward wants dout as (B, T, H, D); wo's dx comes as (B, T, H*D): keep D in saved.",
    ),
)
def block_backward(dy: Array, saved: tuple) -> tuple[Array, dict[str, Array]]:
    """Gradients of `block` (without a cache).

    dy: (B, T, C). Returns dx (B, T, C) and a dict with the gradient of each weight, under its name in `w`.
    """
    D, norm1, wq, wk, wv, rope_q, rope_k, attended, wo, norm2, w1, w3, act, w2 = saved
    grads = {}
    B, T, _ = dy.shape
    dh, grads["w2"] = layers.linear_backward(dy, w2)
    dgate, dup = layers.swiglu_backward(dh, act)
    dh_gate, grads["w1"] = layers.linear_backward(dgate, w1)
    dh_up, grads["w3"] = layers.linear_backward(dup, w3)
    dnorm, grads["ffn_norm"] = layers.rmsnorm_backward(dh_gate + dh_up, norm2)
    dx = dy + dnorm

    dout, grads["wo"] = layers.linear_backward(dx, wo)
    dq, dk, dv = layers.attention_backward(dout.reshape(B, T, -1, D), attended)  # (B, T, H*D) -> (B, T, H, D)
    dq = layers.rope_backward(dq, rope_q).reshape(B, T, -1)  # (B, T, H, D) -> (B, T, H*D)
    dk = layers.rope_backward(dk, rope_k).reshape(B, T, -1)  # (B, T, K, D) -> (B, T, K*D)
    dh_q, grads["wq"] = layers.linear_backward(dq, wq)
    dh_k, grads["wk"] = layers.linear_backward(dk, wk)
    dh_v, grads["wv"] = layers.linear_backward(dv.reshape(B, T, -1), wv)
    dnorm, grads["attention_norm"] = layers.rmsnorm_backward(dh_q + dh_k + dh_v, norm1)
    return dx + dnorm, grads


chapter.edit(
    "block_backward",
    "the first residual sum is missing in dx: dy reaches x beside the feed-forward layer too.",
    "dx = dy + dnorm",
    "dx = dnorm",
)
chapter.edit(
    "block_backward",
    "the last residual sum is missing: dx also has what flows beside the attention.",
    "return dx + dnorm,",
    "return dnorm,",
)
chapter.edit(
    "block_backward",
    "the gradient of h has only the gate's part; up read the same h.",
    "dh_gate + dh_up",
    "dh_gate",
)
chapter.edit(
    "block_backward",
    "the gradient of h has only q's part; k and v read the same h.",
    "dh_q + dh_k + dh_v",
    "dh_q",
)
chapter.edit(
    "block_backward",
    "dq is not turned back by rope_backward.",
    "layers.rope_backward(dq, rope_q).reshape",
    "dq.reshape",
)
chapter.edit(
    "block_backward",
    "dk is not turned back by rope_backward.",
    "layers.rope_backward(dk, rope_k).reshape",
    "dk.reshape",
)
chapter.edit(
    "block_backward",
    "wo gets dy, but it feeds the sum before the feed-forward layer, whose gradient is dx.",
    "layers.linear_backward(dx, wo)",
    "layers.linear_backward(dy, wo)",
)


# --- 8.6 and 8.7 the loss


def loss_cases(rng: np.random.Generator) -> Iterator[Case]:
    targets = rng.integers(0, 5, (2, 3))
    yield {"logits": rng.standard_normal((2, 3, 5)), "targets": targets, "mask": None}
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    yield {"logits": rng.standard_normal((2, 3, 5)), "targets": np.where(mask, targets, -100), "mask": mask}
    large = (200 * rng.standard_normal((2, 3, 5))).astype(np.float32)  # e^200 is more than a float32 can hold
    yield {"logits": large, "targets": targets, "mask": np.ones((2, 3), bool)}
    yield {"logits": rng.standard_normal((1, 2, 5)), "targets": np.array([[1, 2]]), "mask": np.zeros((1, 2), bool)}


def as_cross_entropy(cross_entropy: Callable) -> Callable:
    """`cross_entropy` in the place of layers.cross_entropy: a mean over another count is that many times as large."""

    def counted(
        logits: Array,
        targets: Array,
        mask: Array | None = None,
        *,
        count: float | None = None,
        overwrite: bool = False,  # a permission, which nobody has to use
    ) -> tuple[Array, tuple]:
        del overwrite
        loss, saved = cross_entropy(logits, targets, mask)
        here = targets.size if mask is None else mask.sum()
        share = 1.0 if count is None else float(max(here, 1) / count)
        return loss * share, (saved, share)

    return counted


def as_cross_entropy_backward(cross_entropy_backward: Callable) -> Callable:
    """`cross_entropy_backward` in the place of layers.cross_entropy_backward."""

    def backward(saved: tuple, dloss: float = 1.0) -> Array:
        own, share = saved
        return cross_entropy_backward(own, share * dloss)

    return backward


@chapter.exercise(
    "core",
    cases=loss_cases,
    returns=("loss", "saved"),
    replaces="minillama.layers:cross_entropy",
    adapt=as_cross_entropy,
    task="As `saved`, return whatever your cross_entropy_backward will need.",
    hints=(
        "Subtract each row's maximum first: softmax is the same, and e^x stays finite. log softmax = x - log Σ e^x.",
        "Take log-probabilities of the targets with np.take_along_axis, or by index on (N, V) rows.",
        "Divide by the number of true positions of the mask, at least 1; a masked target may be -100, so replace it"
        " before you index.",
    ),
)
def cross_entropy(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    """loss = -1/N Σ log softmax(logits)[target] over the N positions where `mask` is true.

    logits: (..., V) float. targets: (...) integers in [0, V), anything where the mask is false. mask: (...) bool, None
    for all. Returns the loss in nats as a 0-d array; 0 where nothing counts.
    """
    rows = logits.reshape(-1, logits.shape[-1])  # (..., V) -> (N, V)
    counts = np.ones(len(rows), bool) if mask is None else mask.reshape(-1)
    targets = np.where(counts, targets.reshape(-1), 0)
    z = rows - rows.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))  # (N, V)
    weight = counts.astype(rows.dtype) / max(int(counts.sum()), 1)  # each token's share of the mean, or 0
    loss = -log_p[np.arange(len(rows)), targets] @ weight
    return loss, (np.exp(log_p), targets, weight, logits.shape)


@chapter.wrong(
    "cross_entropy", "the loss is averaged over padding too: divide by the number of true positions in mask."
)
def averaged_over_padding(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    loss, saved = cross_entropy(logits, targets, mask)
    return loss if mask is None else loss * mask.mean(), saved


@chapter.wrong("cross_entropy", "the mask is not used: padding is scored like the rest.")
def mask_ignored(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    del mask
    return cross_entropy(logits, targets % logits.shape[-1])


@chapter.wrong("cross_entropy", "the losses are summed; the result is their mean over the tokens that count.")
def summed(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    loss, saved = cross_entropy(logits, targets, mask)
    return loss * (targets.size if mask is None else mask.sum()), saved


@chapter.wrong("cross_entropy", "e^x overflows for large logits: subtract each row's maximum first.")
def overflowing(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    loss, saved = cross_entropy(logits, targets, mask)
    with np.errstate(all="ignore"):
        finite = np.isfinite(np.exp(logits)).all()
    return (loss if finite else loss * np.nan), saved


@chapter.wrong("cross_entropy", "the sign is flipped: the loss is the *negative* mean log-probability.")
def positive_log(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    loss, saved = cross_entropy(logits, targets, mask)
    return -loss, saved


def loss_there_and_back(own: Functions, dloss: float, **case: object) -> Array:
    _, saved = own.cross_entropy(**case)
    return own.cross_entropy_backward(saved, dloss)


def loss_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case, dloss in zip(loss_cases(rng), (1.0, 1.0, 1.0, 0.5), strict=True):
        yield {**case, "dloss": dloss}
    yield {**next(loss_cases(rng)), "dloss": 0.25}


def loss_gradient(own: Functions) -> None:
    rng = np.random.default_rng(1)
    targets, mask = np.array([0, 3, 1]), np.array([True, False, True])
    layers.gradcheck(
        lambda logits: own.cross_entropy(logits, targets, mask),
        lambda dloss, saved: own.cross_entropy_backward(saved, dloss),
        rng.standard_normal((3, 4)),
    )


@chapter.exercise(
    "core",
    cases=loss_backward_cases,
    trial=loss_there_and_back,
    proof=loss_gradient,
    needs=("cross_entropy",),
    returns=("dlogits",),
    replaces="minillama.layers:cross_entropy_backward",
    adapt=as_cross_entropy_backward,
    hints=(
        "Start from the probabilities, subtract 1 at each target, multiply by dloss / N.",
        "Rows where the mask is false are 0. N is the number of tokens that count, not of all.",
    ),
)
def cross_entropy_backward(saved: tuple, dloss: float = 1.0) -> Array:
    """Gradient of `cross_entropy`: (softmax(logits) - onehot(target)) / N where the mask is true, 0 elsewhere.

    dloss: the gradient of the loss itself. Returns dlogits (..., V).
    """
    probs, targets, weight, shape = saved
    dlogits = probs.copy()
    dlogits[np.arange(len(targets)), targets] -= 1
    dlogits *= (weight * dloss)[:, None]  # (N,) -> (N, 1)
    return dlogits.reshape(shape)


@chapter.wrong("cross_entropy_backward", "the gradient is not zero where the mask is false: padding would be learned.")
def padding_learned(saved: tuple, dloss: float = 1.0) -> Array:
    probs, targets, weight, shape = saved
    share = 1 / max(int((weight > 0).sum()), 1)
    return cross_entropy_backward((probs, targets, np.full_like(weight, share), shape), dloss)


@chapter.wrong("cross_entropy_backward", "the gradient is divided by all positions; divide by the tokens that count.")
def divided_by_all(saved: tuple, dloss: float = 1.0) -> Array:
    _, _, weight, _ = saved
    return cross_entropy_backward(saved, dloss * int((weight > 0).sum()) / weight.size)


@chapter.wrong("cross_entropy_backward", "the gradient is not divided by the number of tokens that count.")
def not_divided(saved: tuple, dloss: float = 1.0) -> Array:
    _, _, weight, _ = saved
    return cross_entropy_backward(saved, dloss * max(int((weight > 0).sum()), 1))


@chapter.wrong("cross_entropy_backward", "the 1 at the target is not subtracted: these are the probabilities alone.")
def no_onehot(saved: tuple, dloss: float = 1.0) -> Array:
    probs, _, weight, shape = saved
    return (probs * (weight * dloss)[:, None]).reshape(shape)


@chapter.wrong("cross_entropy_backward", "dloss is not used: the gradient is proportional to it.")
def dloss_ignored(saved: tuple, dloss: float = 1.0) -> Array:
    del dloss
    return cross_entropy_backward(saved)


# --- 8.8 tied embeddings


def tied_cases(rng: np.random.Generator) -> Iterator[Case]:
    for tokens, dtype in (([[0, 3, 2], [4, 1, 6]], np.float64), ([[0, 3, 3], [3, 1, 0]], np.float32)):
        yield {
            "dlogits": rng.standard_normal((2, 3, 7)).astype(dtype),
            "hidden": rng.standard_normal((2, 3, 4)).astype(dtype),
            "dx": rng.standard_normal((2, 3, 4)).astype(dtype),
            "tokens": np.array(tokens),
        }


@chapter.exercise(
    "core",
    cases=tied_cases,
    returns=("dweight",),
    task="SmolLM2 and the stories models tie their embeddings: `weight` makes the logits too.",
    hints=(
        "What a value does in two places adds up: one gradient from the head, one from the lookup, their sum.",
        "The head is linear(hidden, weight): (N, V)ᵀ @ (N, C). For the lookup, np.add.at(dweight, tokens, dx) adds to"
        " a row as often as its token occurs; dweight[tokens] += dx would do so once.",
    ),
)
def tied_gradient(dlogits: Array, hidden: Array, dx: Array, tokens: Array) -> Array:
    """Gradient of a tied embedding weight (V, C), used twice: x = weight[tokens], …, logits = hidden weightᵀ.

    dlogits: (B, T, V), of the logits. hidden: (B, T, C), what the head read. dx: (B, T, C), of the embedded tokens.
    tokens: (B, T) integers. Returns dweight (V, C).
    """
    V, C = dlogits.shape[-1], hidden.shape[-1]
    dweight = dlogits.reshape(-1, V).T @ hidden.reshape(-1, C)  # (V, N) @ (N, C) -> (V, C)
    np.add.at(dweight, tokens, dx)
    return dweight


@chapter.wrong("tied_gradient", "only the head's part is there; the lookup of the tokens adds to the same weight.")
def only_head(dlogits: Array, hidden: Array, dx: Array, tokens: Array) -> Array:
    return tied_gradient(dlogits, hidden, np.zeros_like(dx), tokens)


@chapter.wrong("tied_gradient", "only the lookup's part is there; the head's logits come from the same weight.")
def only_lookup(dlogits: Array, hidden: Array, dx: Array, tokens: Array) -> Array:
    return tied_gradient(np.zeros_like(dlogits), hidden, dx, tokens)


@chapter.wrong(
    "tied_gradient", "a token that occurs twice counts once: dweight[tokens] += dx keeps the last; np.add.at adds."
)
def repeated_once(dlogits: Array, hidden: Array, dx: Array, tokens: Array) -> Array:
    dweight = only_head(dlogits, hidden, dx, tokens)
    dweight[tokens] += dx
    return dweight


@chapter.wrong("tied_gradient", "the lookup's part overwrites the head's; add them.")
def overwritten(dlogits: Array, hidden: Array, dx: Array, tokens: Array) -> Array:
    dweight = only_head(dlogits, hidden, dx, tokens)
    dweight[tokens] = only_lookup(dlogits, hidden, dx, tokens)[tokens]
    return dweight


# --- 8.9 the KV cache


def cache_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"used": 0, "new": 3, "pads": np.array([0, 0])}
    yield {"used": 5, "new": 1, "pads": np.array([0, 0])}
    yield {"used": 0, "new": 4, "pads": np.array([2, 0, 1])}
    yield {"used": 4, "new": 2, "pads": np.array([2, 0])}


def as_extend(cache_positions: Callable) -> Callable:
    """`cache_positions` in the place of KVCache.extend."""

    def extend(self: KVCache, T: int) -> tuple[Array, Array]:
        used, self.used = self.used, self.used + T
        pads = np.zeros(self.keys.shape[1], int) if self.pads is None else self.pads[:, 0]
        return cache_positions(used, T, pads)

    return extend


@chapter.exercise(
    "core",
    cases=cache_cases,
    returns=("positions", "mask"),
    replaces="minillama.model:KVCache.extend",
    adapt=as_extend,
    hints=(
        "slots = np.arange(used + new) are all slots in use; the new tokens take the last `new` of them.",
        "slots[used:] - pads[:, None] broadcasts to (B, new); np.maximum(…, 0) for padding itself.",
    ),
)
def cache_positions(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    """Positions of the next tokens of B sequences in a KV cache, and which of its slots hold real tokens.

    A slot of the cache is the same for all rows; prompts are padded on the left, so that row b's first pads[b] slots
    hold nothing and its first real token, in slot pads[b], has position 0. used: slots taken before. new: tokens a row
    now, in slots used … used + new - 1. pads: (B,) integers. Returns positions (B, new) integers, 0 for padding, and
    mask (B, used + new) bool, false for padding.
    """
    slots = np.arange(used + new)
    positions = np.maximum(slots[used:] - pads[:, None], 0)  # (new,) - (B, 1) -> (B, new)
    return positions, slots >= pads[:, None]  # (S,) >= (B, 1) -> (B, S)


@chapter.wrong("cache_positions", "positions start at 0 in every call; they go on where the cache ends, at `used`.")
def starting_again(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    return cache_positions(0, new, pads)[0], cache_positions(used, new, pads)[1]


@chapter.wrong("cache_positions", "positions are the slots; row b's first real token, in slot pads[b], has position 0.")
def slots_as_positions(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    return cache_positions(used, new, np.zeros_like(pads))[0], cache_positions(used, new, pads)[1]


@chapter.wrong("cache_positions", "padding has negative positions: they would index the rotations from the end. Use 0.")
def negative_positions(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    return np.arange(used, used + new) - pads[:, None], cache_positions(used, new, pads)[1]


@chapter.wrong("cache_positions", "the mask is off by one: slot pads[b] itself holds row b's first real token.")
def mask_off_by_one(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    return cache_positions(used, new, pads)[0], cache_positions(used, new, pads + 1)[1]


@chapter.wrong("cache_positions", "positions are off by one: the first real token of a row has position 0.")
def positions_off_by_one(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    positions, mask = cache_positions(used, new, pads)
    return positions + 1, mask


@chapter.wrong("cache_positions", "the mask covers the new slots alone; attention sees all used + new.")
def mask_of_new(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    positions, mask = cache_positions(used, new, pads)
    return positions, mask[:, used:]


# --- 8.10 the whole


def forward_cases(_: np.random.Generator) -> Iterator[Case]:
    for tied in (False, True):
        config = replace(TINY, tie_embeddings=tied)
        params = {name: 20 * x for name, x in Llama.init(config, dtype=np.float64).params.items()}
        yield {"tokens": np.array([[1, 5, 2], [6, 0, 0]]), "params": params, "config": config}


@chapter.exercise(
    "stretch",
    cases=forward_cases,
    returns=("logits",),
    needs=("block",),
    task="Call your own block.",
    hints=(
        "layers.embedding, the blocks in a loop, layers.rmsnorm with norm.weight, layers.linear for the head.",
        "The rotations: layers.rope_rotations(np.arange(T), frequencies, x.dtype.type), frequencies from"
        " layers.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling).",
        "A block's weights are the params whose names start with 'layers.' and its number; name.split('.')[-2] is their"
        " name in w.",
    ),
)
def forward(tokens: Array, params: dict[str, Array], config: LlamaConfig) -> Array:
    """The whole Llama: embedding, n_layers blocks, final norm, head.

    tokens: (B, T) integers. params: tok_embeddings.weight (V, C), layers.0.attention.wq.weight, …, norm.weight (C,),
    and output.weight (V, C), absent where config.tie_embeddings (config.param_shapes() lists all). Returns logits
    (B, T, V).
    """
    x, _ = layers.embedding(tokens, params["tok_embeddings.weight"])  # (B, T) -> (B, T, C)
    frequencies = layers.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    rotations = layers.rope_rotations(np.arange(tokens.shape[1]), frequencies, x.dtype.type)
    for i in range(config.n_layers):
        w = {name.split(".")[-2]: p for name, p in params.items() if name.startswith(f"layers.{i}.")}
        x, _ = block(x, w, rotations, config)
    x, _ = layers.rmsnorm(x, params["norm.weight"], config.norm_eps)
    head = "tok_embeddings.weight" if config.tie_embeddings else "output.weight"
    return layers.linear(x, params[head])[0]  # (B, T, C) -> (B, T, V)


chapter.edit(
    "forward",
    "the final norm is missing: rmsnorm(x, norm.weight) before the head.",
    'x, _ = layers.rmsnorm(x, params["norm.weight"], config.norm_eps)',
    "pass",
)
chapter.edit(
    "forward",
    "every block has the weights of layer 0.",
    'f"layers.{i}."',
    '"layers.0."',
)
chapter.edit(
    "forward",
    "with tied embeddings there is no output.weight: the head is tok_embeddings.weight.",
    '"tok_embeddings.weight" if config.tie_embeddings else "output.weight"',
    '"output.weight"',
)
chapter.edit(
    "forward",
    "without tied embeddings the head is output.weight.",
    '"tok_embeddings.weight" if config.tie_embeddings else "output.weight"',
    '"tok_embeddings.weight"',
)
