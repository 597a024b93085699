"""Chapter 8: the whole Llama. Write the functions; the chapter derives each formula.

    minillama exercises check ch08      what is right, and the first thing that is not
    minillama exercises hint ch08       the next hint

When 8.4 is right, your block carries every layer of a real model:

    minillama exercises run --with ch04 ch08 -- generate stories260k --prompt "Once upon a time"

B batch, T time, S key positions, C model width, H query heads, K KV heads, D head width, F feed-forward width,
V vocabulary. The ops of the other chapters are there: layers.linear, layers.rope, layers.attention, layers.swiglu, …,
each with its backward. Give one's `saved` to the other.
"""

from collections.abc import Callable

import numpy as np

from minillama import layers
from minillama.backend import Array
from minillama.config import LlamaConfig

# 8.1 · warm-up ---------------------------------------------------------------


def param_count(config: LlamaConfig) -> int:
    """How many parameters a Llama of this shape has: 6,738,415,616 for Llama 2 7B.

    config: dim C, n_layers, n_heads H, n_kv_heads K, head_dim D, ffn_dim F, vocab_size V; tie_embeddings says that
    the embedding is the head too. There are no biases. Returns an int.
    """
    # Hint: A layer has wq and wo (H*D, C), wk and wv (K*D, C), w1, w2 and w3 (F, C), and two norms (C,).
    raise NotImplementedError


# 8.2 · warm-up ---------------------------------------------------------------
# As `saved`, return whatever your rmsnorm_backward will need.


def rmsnorm(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    """y = x / sqrt(mean(x²) + eps) * weight, the mean over the last axis.

    x: (..., C) float. weight: (C,). Returns y (..., C).
    """
    # Hint: keepdims=True keeps the axis of the mean, so that it divides every element of its vector.
    raise NotImplementedError


# 8.3 · core ------------------------------------------------------------------


def rmsnorm_backward(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """Gradients of `rmsnorm`. With r = 1/rms, x̂ = r x and g = dy * weight:

    dx = r (g - x̂ mean(g x̂)), dweight = Σ dy x̂ over all vectors.

    dy: (..., C). Returns dx (..., C) and dweight (C,).
    """
    # Hint: r depends on every x of the vector: the second term of dx is what flows back through it.
    raise NotImplementedError


# 8.4 · core ------------------------------------------------------------------
# As `saved`, return whatever your block_backward will need: the `saved` of each op.


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
    # Hint: q, saved_q = layers.linear(h, w['wq']), then q.reshape(B, T, config.n_heads, config.head_dim), then rope.
    # Turn q and k, not v; k and v have config.n_kv_heads heads.
    raise NotImplementedError


# 8.5 · core ------------------------------------------------------------------
# Read your block from its end: each op has its backward, layers.linear_backward and so on.


def block_backward(dy: Array, saved: tuple) -> tuple[Array, dict[str, Array]]:
    """Gradients of `block` (without a cache).

    dy: (B, T, C). Returns dx (B, T, C) and a dict with the gradient of each weight, under its name in `w`.
    """
    # Hint: A residual sum y = x + f(x) hands dy to both: dx = dy + f_backward(dy).
    raise NotImplementedError


# 8.6 · core ------------------------------------------------------------------
# As `saved`, return whatever your cross_entropy_backward will need.


def cross_entropy(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    """loss = -1/N Σ log softmax(logits)[target] over the N positions where `mask` is true.

    logits: (..., V) float. targets: (...) integers in [0, V), anything where the mask is false. mask: (...) bool, None
    for all. Returns the loss in nats as a 0-d array; 0 where nothing counts.
    """
    # Hint: Subtract each row's maximum first: softmax is the same, and e^x stays finite. log softmax = x - log Σ e^x.
    raise NotImplementedError


# 8.7 · core ------------------------------------------------------------------


def cross_entropy_backward(saved: tuple, dloss: float = 1.0) -> Array:
    """Gradient of `cross_entropy`: (softmax(logits) - onehot(target)) / N where the mask is true, 0 elsewhere.

    dloss: the gradient of the loss itself. Returns dlogits (..., V).
    """
    # Hint: Start from the probabilities, subtract 1 at each target, multiply by dloss / N.
    raise NotImplementedError


# 8.8 · core ------------------------------------------------------------------
# SmolLM2 and the stories models tie their embeddings: `weight` makes the logits too.


def tied_gradient(dlogits: Array, hidden: Array, dx: Array, tokens: Array) -> Array:
    """Gradient of a tied embedding weight (V, C), used twice: x = weight[tokens], …, logits = hidden weightᵀ.

    dlogits: (B, T, V), of the logits. hidden: (B, T, C), what the head read. dx: (B, T, C), of the embedded tokens.
    tokens: (B, T) integers. Returns dweight (V, C).
    """
    # Hint: What a value does in two places adds up: one gradient from the head, one from the lookup, their sum.
    raise NotImplementedError


# 8.9 · core ------------------------------------------------------------------


def cache_positions(used: int, new: int, pads: Array) -> tuple[Array, Array]:
    """Positions of the next tokens of B sequences in a KV cache, and which of its slots hold real tokens.

    A slot of the cache is the same for all rows; prompts are padded on the left, so that row b's first pads[b] slots
    hold nothing and its first real token, in slot pads[b], has position 0. used: slots taken before. new: tokens a row
    now, in slots used … used + new - 1. pads: (B,) integers. Returns positions (B, new) integers, 0 for padding, and
    mask (B, used + new) bool, false for padding.
    """
    # Hint: slots = np.arange(used + new) are all slots in use; the new tokens take the last `new` of them.
    raise NotImplementedError


# 8.10 · stretch --------------------------------------------------------------
# Call your own block.


def forward(tokens: Array, params: dict[str, Array], config: LlamaConfig) -> Array:
    """The whole Llama: embedding, n_layers blocks, final norm, head.

    tokens: (B, T) integers. params: tok_embeddings.weight (V, C), layers.0.attention.wq.weight, …, norm.weight (C,),
    and output.weight (V, C), absent where config.tie_embeddings (config.param_shapes() lists all). Returns logits
    (B, T, V).
    """
    # Hint: layers.embedding, the blocks in a loop, layers.rmsnorm with norm.weight, layers.linear for the head.
    raise NotImplementedError
