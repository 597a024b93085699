"""Losses: each runs the model forward, a head, and everything backward, and returns (loss, gradients)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minillama import layers
from minillama.backend import Array
from minillama.model import Llama
from minillama.params import Params, accumulate


def next_token_loss(
    model: Llama,
    tokens: Array,
    targets: Array,
    *,
    loss_mask: Array | None = None,
    mask: Array | None = None,
    starts: np.ndarray | None = None,
    count: float | None = None,
    recompute: bool = False,
) -> tuple[Array, Params]:
    """Mean cross-entropy of the next token, and its gradient for every parameter.

    tokens, targets: (B, T) integers; targets[b, t] is the token that follows tokens[b, t]. loss_mask: (B, T) bool,
    true where a target counts. mask: (B, T) bool, false where a token is padding. starts: (B, T) integers on the host,
    of packed rows: see `Llama.forward`. count: what the sum over the targets
    is divided by, where these rows are a part of a larger batch; None: the targets that count here. recompute: see
    `Llama.forward`. Returns the loss (0-d, nats) and a dict under the parameters' names.
    """
    hidden, saved = model.forward(tokens, mask=mask, starts=starts, recompute=recompute)
    logits = model.logits(hidden)
    loss_mask = None if loss_mask is None else model.xp.asarray(loss_mask)
    loss, saved_loss = layers.cross_entropy(logits, model.xp.asarray(targets), loss_mask, count=count, overwrite=True)
    dlogits = layers.cross_entropy_backward(saved_loss)
    dhidden, head_grads = model.logits_backward(dlogits, hidden)
    del logits, dlogits, saved_loss  # the largest arrays, before the backward pass makes its own
    return loss, accumulate(model.backward(dhidden, saved), head_grads)


def summed_loss(model: Llama, batch: Mapping[str, np.ndarray]) -> float:
    """Cross-entropy of a batch in nats, summed over the targets that count; forward only.

    batch: "tokens", "targets" and "loss_mask" (B, T), and "starts" where rows are packed: see `next_token_loss`.
    """
    targets, mask = (model.xp.asarray(batch[name]) for name in ("targets", "loss_mask"))
    with np.errstate(over="ignore", invalid="ignore"):  # the number says it
        hidden, _ = model.forward(batch["tokens"], starts=batch.get("starts"))
        return float(layers.cross_entropy(model.logits(hidden), targets, mask, count=1.0, overwrite=True)[0])
