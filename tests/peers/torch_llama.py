"""Llama in PyTorch, written from the formulas for autograd to differentiate: the engine our backward pass answers to.

It reads minillama's config and flat parameter dict and shares no arithmetic with the package: rotations are complex
products, K and V are repeated for each query head, the mask is one additive matrix. Slow and plain on purpose. Whatever
dtype the parameters have is the dtype of everything, so float64 parameters give float64 gradients.
`test_torch_llama.py` checks it against transformers.
"""

from __future__ import annotations

import math

import torch

from minillama.config import LlamaConfig, RopeScaling


def inverse_frequencies(config: LlamaConfig) -> torch.Tensor:
    """Angle per position of each of the D/2 rotated pairs, float64."""
    pairs = torch.arange(config.head_dim // 2, dtype=torch.float64)
    theta, scaling = config.rope_theta, config.rope_scaling
    if scaling is not None and scaling.kind == "ntk":
        # The base that stretches the slowest pair by exactly `factor` and leaves the fastest one alone.
        theta = theta * scaling.factor ** (config.head_dim / (config.head_dim - 2))
    frequencies = theta ** (-2 * pairs / config.head_dim)
    if scaling is not None and scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    if scaling is not None and scaling.kind == "llama3":
        frequencies = torch.stack([_llama3(frequency, scaling) for frequency in frequencies])
    return frequencies


def _llama3(frequency: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1: pairs that turn often within the original context keep their frequency, slow ones are divided."""
    turns = scaling.original_max_seq_len * frequency / (2 * math.pi)
    if turns > scaling.high_freq_factor:
        return frequency
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Neighbours (2i, 2i+1) as one complex number, turned by its angle. x (B, T, heads, D), angles (B, T, D/2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # (B, T, heads, D/2)
    turn = torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)
    return torch.view_as_real(pairs * turn[:, :, None]).flatten(-2)


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * weight


def visible(config: LlamaConfig, real: torch.Tensor) -> torch.Tensor:
    """(B, T, T) bool: may query i look at key j? A padded query sees itself, so that its softmax stays finite."""
    length = real.shape[1]
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    allowed = key <= query
    if config.sliding_window is not None:
        allowed = allowed & (query - key < config.sliding_window)
    return (allowed[None] & real[:, None, :]) | torch.eye(length, dtype=torch.bool)


def forward(
    config: LlamaConfig, params: dict[str, torch.Tensor], tokens: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Hidden states after the final norm, (B, T, C). mask (B, T) bool marks real tokens; None: all are."""
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    positions = (real.cumsum(1) - 1).clamp(min=0)  # the first real token of a row stands at 0
    dtype = params["tok_embeddings.weight"].dtype
    angles = (positions[..., None] * inverse_frequencies(config)).to(dtype)  # (B, T, D/2)
    bias = torch.where(visible(config, real), 0.0, -math.inf).to(dtype)[:, None]  # (B, 1, T, T)
    repeats = config.n_heads // config.n_kv_heads
    x = params["tok_embeddings.weight"][tokens]
    for i in range(config.n_layers):
        layer = {name.removeprefix(f"layers.{i}."): p for name, p in params.items() if name.startswith(f"layers.{i}.")}
        normed = rmsnorm(x, layer["attention_norm.weight"], config.norm_eps)
        # (B, T, C) -> (B, T, heads * D) -> (B, T, heads, D)
        q = (normed @ layer["attention.wq.weight"].T).unflatten(-1, (config.n_heads, config.head_dim))
        k = (normed @ layer["attention.wk.weight"].T).unflatten(-1, (config.n_kv_heads, config.head_dim))
        v = (normed @ layer["attention.wv.weight"].T).unflatten(-1, (config.n_kv_heads, config.head_dim))
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(config.head_dim) + bias
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
        x = x + mixed @ layer["attention.wo.weight"].T
        normed = rmsnorm(x, layer["ffn_norm.weight"], config.norm_eps)
        gate, up = normed @ layer["feed_forward.w1.weight"].T, normed @ layer["feed_forward.w3.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ layer["feed_forward.w2.weight"].T
    return rmsnorm(x, params["norm.weight"], config.norm_eps)


def logits(config: LlamaConfig, params: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """(B, T, C) -> (B, T, V)."""
    return hidden @ params["tok_embeddings.weight" if config.tie_embeddings else "output.weight"].T


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of -log softmax(scores)[target] over the tokens where mask (B, T) is True."""
    chosen = scores.gather(-1, targets[..., None])[..., 0]
    losses = scores.logsumexp(-1) - chosen  # (B, T)
    return losses.mean() if mask is None else losses[mask].mean()
