"""Softmax cross-entropy: the mean negative log-likelihood of the targets over the tokens that count."""

from __future__ import annotations

from minillama.backend import Array, get_array_module


def cross_entropy(logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    """loss = -1/N Σ log softmax(logits)[target] over the N positions where `mask` is true.

    logits: (..., V) float. targets: (...) integers in [0, V), anything where the mask is false. mask: (...) bool, None
    for all. Returns the loss in nats as a 0-d array; 0 where nothing counts.
    """
    xp = get_array_module(logits)
    V = logits.shape[-1]
    rows = logits.reshape(-1, V)  # (..., V) -> (N, V)
    targets = targets.reshape(-1)
    if mask is None:
        mask = xp.ones(targets.shape, bool)
    mask = mask.reshape(-1)
    targets = xp.where(mask, targets, 0)  # a masked target may be any number, -100 for one
    probs = rows - rows.max(axis=-1, keepdims=True)
    index = xp.arange(targets.size)
    loss = -probs[index, targets]  # (N,)
    xp.exp(probs, out=probs)
    total = probs.sum(axis=-1, keepdims=True)  # (N, 1)
    probs /= total
    loss += xp.log(total[:, 0])
    weight = mask.astype(logits.dtype)
    weight /= xp.maximum(weight.sum(), 1)  # each counted token's share of the mean, 0 for the rest
    # where, not a product: a masked row of infinities must not turn the loss into NaN
    mean = xp.where(mask, loss, 0) @ weight
    return mean, (probs, targets, mask, weight, logits.shape)


def cross_entropy_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `cross_entropy`: (softmax(logits) - onehot(target)) / N where the mask is true, 0 elsewhere.

    dloss: the gradient of the loss itself. Returns dlogits (..., V).
    """
    probs, targets, mask, weight, shape = saved
    xp = get_array_module(probs)
    dlogits = xp.where(mask[:, None], probs, 0)  # (N, V)
    dlogits[xp.arange(targets.size), targets] -= mask
    dlogits *= (weight * dloss)[:, None]
    return dlogits.reshape(shape)
