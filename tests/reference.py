"""What the comparisons with an independent engine share: our loss and gradients of one batch, and the measure."""

from __future__ import annotations

import numpy as np

from minillama import layers
from minillama.config import LlamaConfig
from minillama.model import Llama


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual - expected| / max |expected|: the worst entry, in units of the tensor's own largest one.

    An expected tensor of zeros must be met exactly (0), anything else is infinitely wrong.
    """
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    worst, scale = np.abs(actual - expected).max(), np.abs(expected).max()
    return 0.0 if worst == 0 else float(worst / scale) if scale > 0 else float("inf")


def loss_and_gradients(
    config: LlamaConfig,
    params: dict[str, np.ndarray],
    tokens: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray | None = None,
    token_mask: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Loss, hidden states (B, T, C), logits (B, T, V) and the gradient of every parameter, by minillama.

    mask (B, T) marks real tokens (attention), token_mask (B, T) the targets that count (loss).
    """
    model = Llama(config, params)
    hidden, saved = model.forward(tokens, mask=mask)
    logits = model.logits(hidden)
    loss, saved_loss = layers.cross_entropy(logits, targets, token_mask)
    dhidden, grads = model.logits_backward(layers.cross_entropy_backward(saved_loss), hidden)
    for name, grad in model.backward(dhidden, saved).items():
        grads[name] = grads[name] + grad if name in grads else grad  # tied: the head and the embedding share one
    return float(loss), hidden, logits, grads
