"""Every op once: its inputs, its backward pass and its naive form. The tests are loops over this list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minillama import layers
from tests.layers import naive


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@dataclass
class Case:
    """inputs: float64 ones are differentiated; `fixed` are keyword arguments of the forward pass."""

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]
    naive: Callable[..., Any]
    inputs: tuple[Any, ...]
    fixed: dict[str, Any] = field(default_factory=dict)


def _cross_entropy_backward(dy: Any, saved: Any) -> Any:
    return layers.cross_entropy_backward(saved, dy)


def _embedding_naive(tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.array([[weight[token] for token in row] for row in tokens])


def _rope_case(name: str, layout: str, positions: np.ndarray, theta: float = 100.0) -> Case:
    x = normal(*positions.shape, 3, 6)
    rotations = layers.rope_rotations(positions, layers.rope_frequencies(6, theta), np.float64)
    return Case(
        f"rope {name}",
        layers.rope,
        lambda dy, saved: layers.rope_backward(dy, saved),
        lambda x, rotations, layout: naive.rope(x, positions, theta, layout),
        (x, rotations),
        {"layout": layout},
    )


def _attention_case(
    name: str,
    B: int,
    T: int,
    S: int,
    H: int,
    K: int,
    D: int,
    mask: np.ndarray | None = None,
    window: int | None = None,
    starts: np.ndarray | None = None,
) -> Case:
    inputs = (normal(B, T, H, D), normal(B, S, K, D, seed=1), normal(B, S, K, D, seed=2))
    return Case(
        f"attention {name}",
        partial(layers.attention, starts=starts),  # on the host, whatever the device
        layers.attention_backward,
        partial(naive.attention, starts=starts),
        inputs,
        {"mask": mask, "window": window},
    )


def _lora_case(name: str, *shape: int, O: int, R: int, scale: float) -> Case:
    """The frozen weight comes inside a tuple, for there is no gradient of it to check."""
    I = shape[-1]
    return Case(
        f"lora_linear{name}",
        lambda x, frozen, a, b, scale: layers.lora_linear(x, *frozen, a, b, scale),
        layers.lora_linear_backward,
        lambda x, frozen, a, b, scale: naive.lora_linear(x, *frozen, a, b, scale),
        (normal(*shape), (normal(O, I, seed=1),), normal(R, I, seed=2), normal(O, R, seed=3)),
        {"scale": scale},
    )


LEFT_PADDED = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
RAGGED = np.arange(9) >= np.array([[3], [0], [7]])  # three texts of nine, padded on the left
PACKED = np.array([[0, 0, 0, 3, 3, 5, 6, 6, 6], [0] * 9, [0, 1, 1, 1, 1, 1, 1, 7, 7]])  # several texts a row
COUNTED = np.array([[1, 0, 1], [0, 0, 1]], bool)

CASES = [
    Case("linear", layers.linear, layers.linear_backward, naive.linear, (normal(2, 3, 5), normal(4, 5))),
    Case("linear, one row", layers.linear, layers.linear_backward, naive.linear, (normal(1, 1, 5), normal(4, 5))),
    Case("linear, many rows", layers.linear, layers.linear_backward, naive.linear, (normal(5, 13, 2), normal(3, 2))),
    Case(
        "frozen_linear",
        lambda x, frozen: layers.frozen_linear(x, *frozen),
        layers.frozen_linear_backward,
        lambda x, frozen: naive.linear(x, *frozen),
        (normal(2, 3, 5), (normal(4, 5),)),
    ),
    _lora_case("", 2, 3, 5, O=4, R=2, scale=1.5),
    _lora_case(", one row", 1, 1, 5, O=4, R=2, scale=0.5),
    _lora_case(", many rows", 5, 13, 3, O=2, R=1, scale=2.0),
    _lora_case(", a rank above the width", 2, 3, O=2, R=5, scale=0.25),
    Case(
        "embedding",
        layers.embedding,
        layers.embedding_backward,
        _embedding_naive,
        (np.array([[3, 0, 3], [1, 3, 0]]), normal(5, 4)),
    ),
    Case(
        "rmsnorm",
        layers.rmsnorm,
        layers.rmsnorm_backward,
        naive.rmsnorm,
        (normal(2, 3, 6), 1 + 0.1 * normal(6)),
        {"eps": 1e-5},
    ),
    Case(
        "rmsnorm, eps that matters",
        layers.rmsnorm,
        layers.rmsnorm_backward,
        naive.rmsnorm,
        (normal(2, 6), normal(6)),
        {"eps": 0.5},
    ),
    _rope_case("interleaved", "interleaved", np.array([[0, 1, 2, 3], [0, 0, 1, 40]])),
    _rope_case("half", "half", np.array([[0, 1, 2, 3], [0, 0, 1, 40]])),
    _attention_case("multi-head", 2, 4, 4, H=3, K=3, D=6),
    _attention_case("grouped-query", 2, 4, 4, H=4, K=2, D=6),
    _attention_case("multi-query", 1, 4, 4, H=3, K=1, D=2),
    _attention_case("one token", 2, 1, 1, H=4, K=2, D=4),
    _attention_case("after a cache", 2, 2, 5, H=4, K=2, D=4),
    _attention_case("padded on the left", 2, 5, 5, H=4, K=2, D=4, mask=LEFT_PADDED),
    _attention_case("padded on the right", 2, 5, 5, H=2, K=2, D=4, mask=LEFT_PADDED[:, ::-1]),
    _attention_case("sliding window", 1, 6, 6, H=2, K=1, D=4, window=3),
    _attention_case("window of one", 1, 4, 4, H=2, K=1, D=4, window=1),
    _attention_case("window, cache and padding", 2, 3, 5, H=2, K=1, D=4, mask=LEFT_PADDED, window=2),
    _attention_case("one new token in a window", 2, 1, 5, H=2, K=1, D=4, mask=LEFT_PADDED, window=3),
    _attention_case("three long texts", 3, 9, 9, H=2, K=1, D=2),
    _attention_case("three long texts, padded", 3, 9, 9, H=2, K=2, D=2, mask=RAGGED),
    _attention_case("three long texts in a window", 3, 9, 11, H=2, K=1, D=2, window=3),
    _attention_case("three long texts, padded, in a window", 3, 9, 9, H=2, K=1, D=2, mask=RAGGED, window=4),
    _attention_case("packed", 3, 9, 9, H=4, K=2, D=2, starts=PACKED),
    _attention_case("packed, in a window", 3, 9, 9, H=2, K=1, D=2, window=2, starts=PACKED),
    _attention_case("packed, padded", 3, 9, 9, H=2, K=2, D=2, mask=RAGGED, starts=PACKED),
    _attention_case("packed, one token", 2, 1, 1, H=2, K=2, D=2, starts=np.zeros((2, 1), int)),
    Case("swiglu", layers.swiglu, layers.swiglu_backward, naive.swiglu, (normal(2, 3, 4), normal(2, 3, 4, seed=1))),
    Case(
        "cross_entropy",
        layers.cross_entropy,
        _cross_entropy_backward,
        naive.cross_entropy,
        (normal(2, 3, 7), np.array([[6, 0, 2], [2, 2, 5]])),
    ),
    Case(
        "cross_entropy, masked",
        layers.cross_entropy,
        _cross_entropy_backward,
        naive.cross_entropy,
        (normal(2, 3, 7), np.array([[6, -100, 2], [-100, 99, 5]]), COUNTED),
    ),
    Case(
        "cross_entropy, a part of a larger batch",
        layers.cross_entropy,
        _cross_entropy_backward,
        naive.cross_entropy,
        (normal(2, 3, 7), np.array([[6, 0, 2], [2, 2, 5]])),
        {"count": 8.0},
    ),
    Case(
        "cross_entropy, masked, a part of a larger batch",
        layers.cross_entropy,
        _cross_entropy_backward,
        naive.cross_entropy,
        (normal(2, 3, 7), np.array([[6, -100, 2], [-100, 99, 5]]), COUNTED),
        {"count": 0.5},
    ),
    Case(
        "cross_entropy, nothing counts",
        layers.cross_entropy,
        _cross_entropy_backward,
        naive.cross_entropy,
        (normal(2, 3, 7), np.zeros((2, 3), int), np.zeros((2, 3), bool)),
    ),
    Case(
        "token_logprobs",
        layers.token_logprobs,
        layers.token_logprobs_backward,
        naive.token_logprobs,
        (normal(2, 3, 7), np.array([[6, 0, 2], [2, 2, 5]])),
    ),
    Case(
        "token_logprobs, at a temperature",
        layers.token_logprobs,
        layers.token_logprobs_backward,
        naive.token_logprobs,
        (normal(2, 3, 7), np.array([[6, 0, 2], [2, 2, 5]])),
        {"temperature": 0.6},
    ),
    Case(
        "token_logprobs, masked",
        layers.token_logprobs,
        layers.token_logprobs_backward,
        naive.token_logprobs,
        (normal(2, 3, 7), np.array([[6, -100, 2], [-100, 99, 5]]), COUNTED),
        {"temperature": 1.5},
    ),
]


def forward_of(case: Case) -> Callable[..., tuple[Any, Any]]:
    """The forward pass with its fixed arguments filled in."""
    return partial(case.forward, **case.fixed)
