"""Softmax cross-entropy: the mean negative log-likelihood of the targets over the tokens that count."""

from __future__ import annotations

from minillama.backend import Array, get_array_module
from minillama.layers.blocks import row_blocks


def cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, *, count: float | None = None, overwrite: bool = False
) -> tuple[Array, tuple]:
    """loss = -1/N Σ log softmax(logits)[target] over the positions where `mask` is true.

    logits: (..., V) float. targets: (...) integers in [0, V), anything where the mask is false. mask: (...) bool, None
    for all. count: N, where these positions are a part of a larger batch; None for the number that count here.
    overwrite: let the gradient take the logits' memory, which is the largest array of a training step. Returns the
    loss in nats as a 0-d array; 0 where nothing counts.

    The gradient, (softmax(logits) - onehot(target)) / N, needs all that the loss needs: it is made at once, while a row
    is in the cache.
    """
    xp = get_array_module(logits)
    V = logits.shape[-1]
    rows = logits.reshape(-1, V)  # (..., V) -> (N, V)
    dlogits = rows if overwrite else xp.empty_like(rows)
    targets = targets.reshape(-1)
    weight = xp.ones(targets.shape, rows.dtype) if mask is None else mask.reshape(-1).astype(rows.dtype)
    weight /= xp.maximum(weight.sum(), 1) if count is None else count  # each token's share of the mean, or 0
    if mask is not None:
        targets = xp.where(mask.reshape(-1), targets, 0)  # a masked target may be any number, -100 for one
    losses = xp.empty(targets.shape, rows.dtype)
    for block in row_blocks(xp, len(rows), V):
        d, at = dlogits[block], (xp.arange(len(rows[block])), targets[block])  # d[at]: each row's number at its target
        xp.subtract(rows[block], rows[block].max(axis=-1, keepdims=True), out=d)
        loss = -d[at]
        xp.exp(d, out=d)
        total = d.sum(axis=-1)
        loss += xp.log(total)
        losses[block] = loss
        d *= (weight[block] / total)[:, None]
        d[at] -= weight[block]
    if mask is not None:  # where, not a product: a masked row of infinities must not turn anything into NaN
        losses = xp.where(mask.reshape(-1), losses, 0)
        xp.copyto(dlogits, 0, where=~mask.reshape(-1, 1))
    return losses @ weight, (dlogits.reshape(logits.shape),)


def cross_entropy_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `cross_entropy`: (softmax(logits) - onehot(target)) / N where the mask is true, 0 elsewhere.

    dloss: the gradient of the loss itself. Returns dlogits (..., V): where dloss is 1, the array that the forward pass
    has made, and not a copy.
    """
    (dlogits,) = saved
    return dlogits if isinstance(dloss, float) and dloss == 1.0 else dlogits * dloss
