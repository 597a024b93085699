"""The formulas as loops: slow, and plain enough to be believed. Forward passes only; float64."""

from __future__ import annotations

import math

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    y = np.zeros((*x.shape[:-1], weight.shape[0]))
    for at in np.ndindex(y.shape):
        for i in range(weight.shape[1]):
            y[at] += x[at[:-1]][i] * weight[at[-1], i]
    return y


def lora_linear(x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    merged = weight.copy()
    for o, i in np.ndindex(weight.shape):
        for r in range(len(a)):
            merged[o, i] += scale * b[o, r] * a[r, i]
    return linear(x, merged)


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        square = sum(value * value for value in x[at]) / x.shape[-1]
        for c in range(x.shape[-1]):
            y[at][c] = x[at][c] / math.sqrt(square + eps) * weight[c]
    return y


def rope(x: np.ndarray, positions: np.ndarray, theta: float, layout: str) -> np.ndarray:
    B, T, H, D = x.shape
    y = np.zeros(x.shape)
    for b, t, h, j in np.ndindex(B, T, H, D // 2):
        angle = positions[b, t] * theta ** (-2 * j / D)
        first, second = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, j + D // 2)
        y[b, t, h, first] = x[b, t, h, first] * math.cos(angle) - x[b, t, h, second] * math.sin(angle)
        y[b, t, h, second] = x[b, t, h, first] * math.sin(angle) + x[b, t, h, second] * math.cos(angle)
    return y


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    window: int | None = None,
    starts: np.ndarray | None = None,
) -> np.ndarray:
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(B, T, H):
        position, head = S - T + t, h // (H // K)
        first = 0 if starts is None else starts[b, t]
        seen = [
            s
            for s in range(first, position + 1)
            if (window is None or s > position - window) and (mask is None or mask[b, s])
        ]
        scores = [math.exp(sum(q[b, t, h] * k[b, s, head]) / math.sqrt(D)) for s in seen]
        for s, score in zip(seen, scores, strict=True):
            out[b, t, h] += score / sum(scores) * v[b, s, head]
    return out


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    y = np.zeros(gate.shape)
    for at in np.ndindex(gate.shape):
        y[at] = gate[at] / (1 + math.exp(-gate[at])) * up[at]
    return y


def cross_entropy(
    logits: np.ndarray, targets: np.ndarray, mask: np.ndarray | None = None, count: float | None = None
) -> float:
    losses = []
    for at in np.ndindex(targets.shape):
        if mask is None or mask[at]:
            total = sum(math.exp(value) for value in logits[at])
            losses.append(math.log(total) - logits[at][targets[at]])
    return sum(losses) / (len(losses) if count is None else count) if losses else 0.0


def token_logprobs(
    logits: np.ndarray, targets: np.ndarray, mask: np.ndarray | None = None, temperature: float = 1.0
) -> np.ndarray:
    y = np.zeros(targets.shape)
    for at in np.ndindex(targets.shape):
        if mask is None or mask[at]:
            total = sum(math.exp(value / temperature) for value in logits[at])
            y[at] = math.log(math.exp(logits[at][targets[at]] / temperature) / total)
    return y


def entropy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    y = np.zeros(logits.shape[:-1])
    for at in np.ndindex(y.shape):
        total = sum(math.exp(value / temperature) for value in logits[at])
        for value in logits[at]:
            p = math.exp(value / temperature) / total
            y[at] -= p * math.log(p)
    return y
