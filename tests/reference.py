"""What the comparisons with an independent engine share: our loss and gradients of one batch, and the measure."""

from __future__ import annotations

import numpy as np

from minillama import layers
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.params import accumulate


def relative_error(actual: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """max |actual - expected| / max |expected|: the worst entry, in units of the tensor's own largest one.

    Where the exact values are all zero, as the gradients of wq and wk are for a single token, `floor` is the unit.
    """
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    worst, unit = float(np.abs(actual - expected).max()), float(np.abs(expected).max()) or floor
    return worst / unit if unit else (0.0 if worst == 0 else float("inf"))


def gradient_errors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """`relative_error` of every gradient; one that is exactly zero is measured by the largest gradient of the model."""
    assert actual.keys() == expected.keys()
    largest = max(float(np.abs(grad).max()) for grad in expected.values())
    return {name: relative_error(actual[name], grad, floor=largest) for name, grad in expected.items()}


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
    return float(loss), hidden, logits, accumulate(grads, model.backward(dhidden, saved))
