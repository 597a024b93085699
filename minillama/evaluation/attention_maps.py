"""What a model attends to, for pictures: the probabilities that its attention gave, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minillama.errors import UsageError
from minillama.model import Llama

ATTENDED = 6  # where the attention's part stands in what a block keeps for its backward pass (`Llama._block_forward`)


def attention_maps(model: Llama, tokens: Sequence[int]) -> np.ndarray:
    """The softmax of every head, softmax(q kᵀ / √D), as the forward pass made it.

    tokens: of one text, T of them. Returns (L, H, T, T) in the model's dtype, on the host: [l, h, t, s] is how much of
    what head h of layer l takes to position t comes from position s; rows sum to 1, and s > t has 0. The memory is
    L·H·T² numbers. Raises UsageError for tokens that do not fit the model, or none.
    """
    if len(tokens) == 0:
        raise UsageError("tokens: expected at least one, found none")
    _, (_, blocks, _) = model.forward(np.asarray(tokens, np.int64)[None])
    T, H, K = len(tokens), model.config.n_heads, model.config.n_kv_heads
    maps = np.zeros((len(blocks), H, T, T), model.dtype)
    for layer, saved in zip(maps, blocks, strict=True):
        *_, parts = saved[ATTENDED]
        for _, queries, seen, exps, inverse in parts:  # a block of queries: E = e^(score - highest), and 1 / Σ E
            P = exps[0].swapaxes(1, 2) * inverse[0]  # (K, s, t*G) -> (K, t*G, s)
            P = P.reshape(K, -1, H // K, P.shape[2]).swapaxes(1, 2)  # (K, t*G, s) -> (K, t, G, s) -> (K, G, t, s)
            rows = slice(queries.start * K // H, queries.stop * K // H)
            P = P.reshape(H, -1, P.shape[3])  # (K, G, t, s) -> (H, t, s)
            layer[:, rows, seen] = P if isinstance(P, np.ndarray) else P.get()
    return maps
