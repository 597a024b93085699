"""Log-probabilities of given tokens, which preference losses and PPO are made of, and the entropy of a prediction."""

from __future__ import annotations

import numpy as np

from minillama.backend import Array, get_array_module
from minillama.errors import UsageError
from minillama.layers.blocks import row_blocks


def token_logprobs(
    logits: Array, targets: Array, mask: Array | None = None, *, temperature: float = 1.0
) -> tuple[Array, tuple]:
    """y = log softmax(logits / τ)[target].

    logits: (..., V) float. targets: (...) integers in [0, V), anything where the mask is false. mask: (...) bool, None
    for all. temperature: τ, the one that the tokens are sampled at: whatever is compared with the sampling policy, the
    reference too, must be divided by the same. Returns y (...), 0 where the mask is false; float32 where the logits
    are narrower. Raises UsageError where the temperature is not above 0.

    What is kept is two numbers a row; the backward pass makes the softmax anew.
    """
    _expect_positive(temperature)
    xp = get_array_module(logits)
    V = logits.shape[-1]
    rows = logits.reshape(-1, V)  # (..., V) -> (N, V)
    valid = None if mask is None else mask.reshape(-1)
    at = targets.reshape(-1) if valid is None else xp.where(valid, targets.reshape(-1), 0)
    dtype = np.result_type(logits.dtype, np.float32)
    logprobs, highest, log_total = (xp.empty(len(rows), dtype) for _ in range(3))
    for block in row_blocks(xp, len(rows), V):
        scores = rows[block].astype(dtype)
        highest[block] = scores.max(axis=1)
        _shift(scores, highest[block], temperature)
        logprobs[block] = scores[xp.arange(len(scores)), at[block]]
        xp.exp(scores, out=scores)
        log_total[block] = xp.log(scores.sum(axis=1))
    logprobs -= log_total
    if valid is not None:
        logprobs = xp.where(valid, logprobs, 0)
    return logprobs.reshape(targets.shape), (rows, logits.shape, at, valid, highest, log_total, temperature)


def token_logprobs_backward(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    """Gradient of `token_logprobs`: dlogits = dy (onehot(target) − softmax(logits / τ)) / τ, 0 where the mask is false.

    dy: (...). overwrite: let the gradient take the logits' memory, which is the largest array of a training step.
    Returns dlogits (..., V), of the logits' type.
    """
    rows, shape, at, valid, highest, log_total, temperature = saved
    xp = get_array_module(rows)
    dlogits = rows if overwrite else xp.empty_like(rows)
    weight = dy.reshape(-1) / temperature
    for block in row_blocks(xp, len(rows), rows.shape[1]):
        d = rows[block].astype(highest.dtype)
        _shift(d, highest[block], temperature)
        d -= log_total[block][:, None]
        xp.exp(d, out=d)
        d *= -weight[block][:, None]
        d[xp.arange(len(d)), at[block]] += weight[block]
        dlogits[block] = d
    if valid is not None:  # not by a weight of 0: infinite logits of a masked row would make NaN of it
        xp.copyto(dlogits, 0, where=~valid[:, None])
    return dlogits.reshape(shape)


def entropy(logits: Array, *, temperature: float = 1.0) -> Array:
    """H = −Σ p log p with p = softmax(logits / τ), in nats: to be watched, and so without a backward pass.

    logits: (..., V) float. Returns (...). Raises UsageError where the temperature is not above 0.
    """
    _expect_positive(temperature)
    xp = get_array_module(logits)
    rows = logits.reshape(-1, logits.shape[-1])  # (..., V) -> (N, V)
    dtype = np.result_type(logits.dtype, np.float32)
    nats = xp.empty(len(rows), dtype)
    for block in row_blocks(xp, len(rows), rows.shape[1]):
        scores = rows[block].astype(dtype)
        _shift(scores, scores.max(axis=1), temperature)
        exps = xp.exp(scores)
        total = exps.sum(axis=1)
        nats[block] = xp.log(total) - xp.einsum("nv,nv->n", exps, scores) / total  # −Σ p (score − log Σ)
    return nats.reshape(logits.shape[:-1])


def _shift(scores: Array, highest: Array, temperature: float) -> None:
    """(scores − highest of its row) / τ, in place: no exponential of it overflows."""
    scores -= highest[:, None]
    scores /= temperature


def _expect_positive(temperature: float) -> None:
    if not temperature > 0:
        raise UsageError(f"temperature: expected a positive number, found {temperature}")
