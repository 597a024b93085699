"""The reference side of a comparison: loss, hidden states, logits and every gradient by PyTorch's autograd."""

from __future__ import annotations

import numpy as np
import torch

from minillama.config import LlamaConfig
from tests.peers import torch_llama


def random_params(config: LlamaConfig, seed: int) -> dict[str, np.ndarray]:
    """float32 weights under which attention scores have a deviation near 1; the norm gains lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in config.param_shapes().items():
        values = torch.randn(shape, generator=generator)
        params[name] = (1 + 0.3 * values if len(shape) == 1 else values / shape[1] ** 0.5).numpy()
    return params


def random_batch(
    config: LlamaConfig, batch: int, length: int, seed: int, *, padding: bool = False, masked: bool = False
) -> dict[str, np.ndarray]:
    """tokens and targets (B, T); with `padding` a mask with left pads of unequal lengths (row 0 has none), with
    `masked` a token_mask that lets about half of the real targets count; no pad ever counts."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, config.vocab_size, (2, batch, length))
    arrays = {"tokens": tokens, "targets": targets}
    if padding:
        pads = np.minimum(np.arange(batch) * 2, length - 1)
        arrays["mask"] = np.arange(length) >= pads[:, None]
    if padding or masked:
        counts = arrays.get("mask", np.ones((batch, length), bool)).copy()
        if masked:
            counts &= rng.random((batch, length)) < 0.5
            counts[:, -1] = True
        arrays["token_mask"] = counts
    return arrays


def loss_and_gradients(
    config: LlamaConfig,
    params: dict[str, np.ndarray],
    tokens: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray | None = None,
    token_mask: np.ndarray | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[float, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The same four things as `tests.reference.loss_and_gradients`, by the PyTorch Llama."""
    leaves = {name: torch.from_numpy(p).to(dtype).requires_grad_() for name, p in params.items()}
    as_bool = [None if m is None else torch.from_numpy(m) for m in (mask, token_mask)]
    hidden = torch_llama.forward(config, leaves, torch.from_numpy(tokens), as_bool[0])
    scores = torch_llama.logits(config, leaves, hidden)
    loss = torch_llama.cross_entropy(scores, torch.from_numpy(targets), as_bool[1])
    loss.backward()
    grads = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return loss.item(), hidden.detach().numpy(), scores.detach().numpy(), grads
