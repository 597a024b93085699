"""Causal scaled dot-product attention with grouped queries (Vaswani et al., arXiv:1706.03762; Ainslie et al.,
arXiv:2305.13245).

H query heads share K key/value heads: G = H/K neighbouring query heads read the same one. The queries of a group stand
side by side, (B, K, T*G, D), so that keys and values are never repeated.

Scores are made a block at a time: t queries of b sequences with the s keys that they may see, of which none comes
after the last of the queries. A block of scores is (b, K, s, t*G), keys first, and small enough to stay in a core's
cache from the product that makes it to the product that uses it. What is kept of it is E = e^(score - highest) and
1 / Σ E; their product, the softmax, is never written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillama.backend import Array, get_array_module

QUERIES = 64  # a block's, of each sequence and head: fewer means smaller products, more means less saved by causality
CACHED = 1 << 19  # scores at a time: 2 MB


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    window: int | None = None,
    starts: np.ndarray | None = None,
    keep: bool = True,
) -> tuple[Array, tuple | None]:
    """out = softmax(q kᵀ / √D) v, each query seeing the keys up to its own position.

    q: (B, T, H, D) float. k, v: (B, S, K, D), S ≥ T: the queries are the last T of the S positions (the others are a
    KV cache). mask: (B, S) bool, false where a key is padding. window: see only the last `window` positions, oneself
    included. starts: (B, T) integers on the host, the first position that each query sees: of several texts in one row,
    where its own begins; S = T then. keep: whether to keep what the backward pass needs. Returns out (B, T, H, D); a
    query that may see nothing gets 0.
    """
    xp = get_array_module(q)
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    q = _group(q, K) * (1 / math.sqrt(D))  # (B, K, T*G, D)
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # (B, S, K, D) -> (B, K, S, D), views
    if T == 1 and starts is None and not keep:
        return _ungroup(_one_query(xp, q, keys, values, mask, window), 1), None
    out = xp.empty((B, K, T * (H // K), D), q.dtype)
    blocks = []
    for rows, queries, seen, hidden in _blocks(xp, B, T, S, K, H // K, mask, window, starts):
        scores = keys[rows, :, seen] @ q[rows, :, queries].swapaxes(2, 3)  # (b, K, s, D) @ (b, K, D, t*G)
        if hidden is not None:
            xp.copyto(scores[:, :, -hidden.shape[2] :], -math.inf, where=hidden)
        total = _exp_and_sum(xp, scores)  # (b, K, 1, t*G); from here on `scores` holds E
        inverse = (1 / total).swapaxes(2, 3)  # (b, K, t*G, 1)
        # out = (E v) / Σ E: the sum divides t*G rows of D numbers, and not s * t*G exponentials.
        out[rows, :, queries] = scores.swapaxes(2, 3) @ values[rows, :, seen]  # (b, K, t*G, s) @ (b, K, s, D)
        out[rows, :, queries] *= inverse
        if keep:
            blocks.append((rows, queries, seen, scores, inverse))
    return _ungroup(out, T), (q, keys, values, out, blocks) if keep else None


def _one_query(xp: Any, q: Array, keys: Array, values: Array, mask: Array | None, window: int | None) -> Array:
    """`attention` of the last position alone: of a token that is being decoded.

    Scores are (B, K, G, s), keys last: a group has few queries, and the softmax then runs along memory.
    q: (B, K, G, D), divided by √D. keys, values: (B, K, S, D). Returns (B, K, G, D).
    """
    S = keys.shape[2]
    seen = slice(0 if window is None else max(0, S - window), S)
    scores = q @ keys[:, :, seen].swapaxes(2, 3)  # (B, K, G, D) @ (B, K, D, s)
    if mask is not None:
        xp.copyto(scores, -math.inf, where=~mask[:, None, None, seen])
    _exp(xp, scores, axis=3)
    total = scores.sum(axis=3, keepdims=True)  # (B, K, G, 1)
    total += total == 0
    out = scores @ values[:, :, seen]  # (B, K, G, s) @ (B, K, s, D)
    out /= total
    return out


def attention_backward(dout: Array, saved: tuple) -> tuple[Array, Array, Array]:
    """Gradients of `attention`. With P = softmax(A), A = q kᵀ / √D:

    dv = Pᵀ dout, dP = dout vᵀ, dA = P * (dP - rowsum(dP * P)), dq = dA k / √D, dk = dAᵀ q / √D.

    rowsum(dP * P) = dout · out, so it needs no array of the size of P. P is kept as E / Σ E, and the sum divides dout
    instead: P * dP = E * (dout / Σ E) vᵀ. dout: (B, T, H, D). Returns dq (B, T, H, D), dk and dv (B, S, K, D); a
    key/value head's gradient is the sum over the query heads that share it.
    """
    q, keys, values, out, blocks = saved  # q is already divided by √D
    xp = get_array_module(dout)
    T, D = dout.shape[1], dout.shape[3]
    dout = _group(dout, keys.shape[1])  # (B, K, T*G, D)
    dq = xp.empty_like(q)
    dk, dv = xp.zeros(keys.shape, q.dtype), xp.zeros(values.shape, q.dtype)
    for rows, queries, seen, exps, inverse in blocks:
        d = dout[rows, :, queries] * inverse  # (b, K, t*G, D)
        dot = xp.einsum("bknd,bknd->bkn", d, out[rows, :, queries])[:, :, None]  # (b, K, 1, t*G)
        dv[rows, :, seen] += exps @ d  # (b, K, s, t*G) @ (b, K, t*G, D)
        dscores = values[rows, :, seen] @ d.swapaxes(2, 3)  # (b, K, s, D) @ (b, K, D, t*G)
        dscores -= dot
        dscores *= exps
        dq[rows, :, queries] = dscores.swapaxes(2, 3) @ keys[rows, :, seen]  # (b, K, t*G, s) @ (b, K, s, D)
        dk[rows, :, seen] += dscores @ q[rows, :, queries]  # (b, K, s, t*G) @ (b, K, t*G, D)
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
    xp: Any,
    B: int,
    T: int,
    S: int,
    K: int,
    G: int,
    mask: Array | None,
    window: int | None,
    starts: np.ndarray | None,
) -> Iterator[tuple[slice, slice, slice, Array | None]]:
    """For each block: its sequences, its queries in (B, K, T*G, D), the keys they may see, and which pairs are hidden.

    What is hidden is (1 or b, 1, s', t*G) bool for the last s' of the keys, the others are seen by all; or None.
    """
    past = S - T  # query t stands at position past + t
    size = QUERIES if xp is np else 4 * QUERIES
    # As many sequences as have CACHED scores together. On a GPU, all: there a block is a launch, and nothing is cached.
    sequences = max(1, CACHED // (min(T, size) * G * K * S)) if xp is np else B
    for start in range(0, T, size):
        stop = min(start + size, T)
        first = 0 if window is None else max(0, past + start - window + 1)
        last = past + stop
        queries = slice(start * G, stop * G)
        query = xp.repeat(xp.arange(past + start, last), G)  # (t*G,)
        for row in range(0, B, sequences):
            rows = slice(row, min(row + sequences, B))
            hidden = None
            begin = None if starts is None else starts[rows, start:stop]  # (b, t)
            seen = slice(first if begin is None else max(first, int(begin.min())), last)
            # With causality alone all keys before the block are seen: only the block's own triangle is hidden.
            causal = window is None and mask is None and begin is None
            key = xp.arange(past + start if causal else seen.start, last)[:, None]  # (s', 1)
            if stop - start > 1:
                hidden = key > query  # (s', t*G)
                if window is not None:
                    hidden |= key <= query - window
                hidden = hidden[None, None]  # (1, 1, s', t*G)
            if begin is not None:
                before = key < xp.repeat(xp.asarray(begin), G, axis=1)[:, None, None]  # (s', 1) < (b, 1, 1, t*G)
                hidden = before if hidden is None else before | hidden
            if mask is not None:
                padding = ~mask[rows, None, seen, None]  # (b, 1, s, 1)
                hidden = padding if hidden is None else padding | hidden
            yield rows, queries, seen, hidden


def _exp_and_sum(xp: Any, scores: Array) -> Array:
    """Put e^(score - highest) into `scores` (b, K, s, n), the highest of each column; returns the sums (b, K, 1, n).

    A column of -inf, which sees nothing, becomes 0 with the sum 1.
    """
    _exp(xp, scores, axis=2)
    total = xp.ones((1, scores.shape[2]), scores.dtype) @ scores  # (1, s) @ (b, K, s, n): a sum at a product's speed
    total += total == 0
    return total


def _exp(xp: Any, scores: Array, axis: int) -> None:
    """Put e^(score - highest) into `scores`, the highest along `axis`; where all are -inf, 0."""
    highest = scores.max(axis=axis, keepdims=True)
    xp.maximum(highest, xp.finfo(scores.dtype).min, out=highest)  # -inf - -inf would be NaN
    scores -= highest
    xp.exp(scores, out=scores)
