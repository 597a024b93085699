"""Causal scaled dot-product attention with grouped queries (Vaswani et al., arXiv:1706.03762; Ainslie et al.,
arXiv:2305.13245).

H query heads share K key/value heads: G = H/K neighbouring query heads read the same one. The queries of a group are
stacked under one another, so that keys and values are never repeated. Queries are taken in blocks: a block of a causal
attention needs no key after its own last position, and no more than one block of scores is alive at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from minillama.backend import Array, get_array_module

BLOCK = 256  # queries at a time


def attention(
    q: Array, k: Array, v: Array, *, mask: Array | None = None, window: int | None = None, keep: bool = True
) -> tuple[Array, tuple | None]:
    """out = softmax(q kᵀ / √D) v, each query seeing the keys up to its own position.

    q: (B, T, H, D) float. k, v: (B, S, K, D), S ≥ T: the queries are the last T of the S positions (the others are a
    KV cache). mask: (B, S) bool, false where a key is padding. window: see only the last `window` positions, oneself
    included. keep: whether to keep what the backward pass needs. Returns out (B, T, H, D); a query that may see
    nothing gets 0.
    """
    xp = get_array_module(q)
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    G = H // K
    q = _group(q, K) * (1 / math.sqrt(D))  # (B, K, T*G, D)
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # (B, S, K, D) -> (B, K, S, D), views
    out = xp.empty((B, K, T * G, D), q.dtype)
    blocks = []
    for rows, seen, bias in _blocks(xp, T, S, G, mask, window, q.dtype):
        scores = q[:, :, rows] @ keys[:, :, seen].swapaxes(2, 3)  # (B, K, t*G, D) @ (B, K, D, s) -> (B, K, t*G, s)
        if bias is not None:
            scores += bias
        probs = _softmax(xp, scores)
        out[:, :, rows] = probs @ values[:, :, seen]  # (B, K, t*G, s) @ (B, K, s, D) -> (B, K, t*G, D)
        if keep:
            blocks.append((rows, seen, probs))
    return _ungroup(out, T), (q, keys, values, out, blocks) if keep else None


def attention_backward(dout: Array, saved: tuple) -> tuple[Array, Array, Array]:
    """Gradients of `attention`. With P = softmax(A), A = q kᵀ / √D:

    dv = Pᵀ dout, dP = dout vᵀ, dA = P * (dP - rowsum(dP * P)), dq = dA k / √D, dk = dAᵀ q / √D.

    rowsum(dP * P) = dout · out, so it needs no array of the size of P. dout: (B, T, H, D). Returns dq (B, T, H, D),
    dk and dv (B, S, K, D); a key/value head's gradient is the sum over the query heads that share it.
    """
    q, keys, values, out, blocks = saved  # q is already divided by √D
    xp = get_array_module(dout)
    T, D = dout.shape[1], dout.shape[3]
    dout = _group(dout, keys.shape[1])  # (B, K, T*G, D)
    dot = xp.einsum("bknd,bknd->bkn", dout, out)[..., None]  # (B, K, T*G, 1)
    dq = xp.empty_like(q)
    dk, dv = xp.zeros(keys.shape, q.dtype), xp.zeros(values.shape, q.dtype)
    for rows, seen, probs in blocks:
        dv[:, :, seen] += probs.swapaxes(2, 3) @ dout[:, :, rows]  # (B, K, s, t*G) @ (B, K, t*G, D)
        dscores = dout[:, :, rows] @ values[:, :, seen].swapaxes(2, 3)  # (B, K, t*G, D) @ (B, K, D, s)
        dscores -= dot[:, :, rows]
        dscores *= probs
        dq[:, :, rows] = dscores @ keys[:, :, seen]  # (B, K, t*G, s) @ (B, K, s, D)
        dk[:, :, seen] += dscores.swapaxes(2, 3) @ q[:, :, rows]  # (B, K, s, t*G) @ (B, K, t*G, D)
    dq *= 1 / math.sqrt(D)
    return _ungroup(dq, T), dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)


def _group(x: Array, K: int) -> Array:
    """(B, T, H, D) -> (B, K, T*G, D): the G query heads of a key/value head one under another, time first."""
    B, T, H, D = x.shape
    return x.reshape(B, T, K, H // K, D).transpose(0, 2, 1, 3, 4).reshape(B, K, T * (H // K), D)


def _ungroup(x: Array, T: int) -> Array:
    """(B, K, T*G, D) -> (B, T, H, D), the inverse of `_group`."""
    B, K, N, D = x.shape
    return x.reshape(B, K, T, N // T, D).transpose(0, 2, 1, 3, 4).reshape(B, T, K * (N // T), D)


def _blocks(
    xp: Any, T: int, S: int, G: int, mask: Array | None, window: int | None, dtype: Any
) -> Iterator[tuple[slice, slice, Array | None]]:
    """For each block of queries: its rows in (B, K, T*G, D), the keys it may see, and 0 or -inf for each pair.

    The bias is (1 or B, 1, t*G, s), or None where every query sees every key, as a single new token does.
    """
    past = S - T  # query t stands at position past + t
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        first = 0 if window is None else max(0, past + start - window + 1)
        last = past + stop
        hidden = None
        if stop - start > 1:
            query = xp.arange(past + start, last)[:, None]  # (t, 1)
            key = xp.arange(first, last)  # (s,)
            hidden = key > query  # (t, s)
            if window is not None:
                hidden |= key <= query - window
            hidden = xp.repeat(hidden, G, axis=0)[None, None]  # (1, 1, t*G, s)
        if mask is not None:
            padding = ~mask[:, None, None, first:last]  # (B, 1, 1, s)
            hidden = padding if hidden is None else hidden | padding
        bias = None if hidden is None else xp.where(hidden, dtype.type(-math.inf), dtype.type(0))
        yield slice(start * G, stop * G), slice(first, last), bias


def _softmax(xp: Any, scores: Array) -> Array:
    """Softmax over the last axis, in place; a row of -inf, which sees nothing, becomes 0."""
    highest = scores.max(axis=-1, keepdims=True)
    xp.maximum(highest, xp.finfo(scores.dtype).min, out=highest)  # -inf - -inf would be NaN
    scores -= highest
    xp.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    xp.maximum(total, xp.finfo(scores.dtype).tiny, out=total)
    scores /= total
    return scores
