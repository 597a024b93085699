"""Chapter 4, RoPE: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minillama import layers
from minillama.backend import Array
from minillama.config import RopeScaling
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.layers.rope import Layout
from minillama.weights import rope_order

chapter = Chapter(
    "ch04_rope",
    "Rotary position embeddings",
    """Chapter 4: rotary position embeddings (RoPE). Write the functions; the chapter derives each formula.

    minillama exercises check ch04      what is right, and the first thing that is not
    minillama exercises hint ch04       the next hint

When 4.1 to 4.3 are right, your RoPE can tell a story with real weights:

    minillama exercises run --with ch04 -- generate stories260k --prompt "Once upon a time"

B batch, T time, H heads, D head width: D/2 pairs of numbers, pair j of position m is turned by the angle m θ_j.""",
)


def frequency_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"head_dim": 8}
    yield {"head_dim": 6, "theta": 500.0}
    yield {"head_dim": 2, "theta": 10_000.0}


chapter.exercise(
    "warm-up",
    cases=frequency_cases,
    returns=("frequencies",),
    task="Leave `scaling` aside here: exercise 4.7 is about it.",
    hints=(
        "np.arange(0, head_dim, 2) counts 2j; a power of an array is an array.",
        "The exponent is negative: pair 0 turns by one radian a position, the last pair slowest.",
        "Divide by head_dim, the number of numbers, not by the number of pairs.",
    ),
)(layers.rope_frequencies)


@chapter.wrong("rope_frequencies", "the exponent is positive: θ_j falls with j, theta^(-2j/D).")
def growing_frequencies(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> Array:
    return 1 / layers.rope_frequencies(head_dim, theta, scaling)


@chapter.wrong("rope_frequencies", "the exponent is -j/D; the formula says -2j/D.")
def half_exponent(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> Array:
    return layers.rope_frequencies(head_dim, theta, scaling) ** 0.5


@chapter.wrong("rope_frequencies", "the exponent is divided by the number of pairs; divide by head_dim.")
def divided_by_pairs(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> Array:
    return layers.rope_frequencies(head_dim, theta, scaling) ** 2


@chapter.wrong("rope_frequencies", "one frequency for each number; a pair shares one, so there are D/2.")
def frequency_for_each_number(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> Array:
    return np.repeat(layers.rope_frequencies(head_dim, theta, scaling), 2)


@chapter.wrong("rope_frequencies", "theta is fixed at 10,000; use the argument: Llama 3 has 500,000.")
def fixed_theta(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> Array:
    del theta
    return layers.rope_frequencies(head_dim, 10_000.0, scaling)


def rotation_cases(_: np.random.Generator) -> Iterator[Case]:
    frequencies = layers.rope_frequencies(8)
    yield {"positions": np.arange(5), "frequencies": frequencies, "dtype": np.float64}
    yield {"positions": np.array([[3, 4], [0, 1]]), "frequencies": frequencies, "dtype": np.float64}
    yield {"positions": np.array([8_191, 123_457]), "frequencies": layers.rope_frequencies(6), "dtype": np.float32}


chapter.exercise(
    "warm-up",
    cases=rotation_cases,
    returns=("rotations",),
    hints=(
        "First the angles m θ_j: positions[..., None] * frequencies has shape (..., D/2). Then np.exp(1j * angles).",
        "Compute in float64 and convert at the end: a float32 angle of 8,000 radians is off by 5e-4.",
        "float32 vectors want complex64 rotations, float64 ones complex128: np.result_type(dtype, np.complex64).",
    ),
)(layers.rope_rotations)


@chapter.wrong("rope_rotations", "positions are counted from 1; the first token stands at 0 and is not turned.")
def counted_from_one(positions: Array, frequencies: Array, dtype: type = np.float32) -> Array:
    return layers.rope_rotations(positions + 1, frequencies, dtype)


@chapter.wrong("rope_rotations", "the angle's sign: e^{+i m θ_j} turns counterclockwise.")
def turned_backward(positions: Array, frequencies: Array, dtype: type = np.float32) -> Array:
    return layers.rope_rotations(-positions, frequencies, dtype)


@chapter.wrong("rope_rotations", "the angles are rounded to float32 before exp; positions of 8,000 need float64.")
def angles_in_float32(positions: Array, frequencies: Array, dtype: type = np.float32) -> Array:
    angles = (positions[..., None] * frequencies).astype(dtype)
    return np.exp(1j * angles).astype(np.result_type(dtype, np.complex64))


@chapter.wrong("rope_rotations", "these are arange(T) angles; use the positions that are given: a cache starts later.")
def positions_ignored(positions: Array, frequencies: Array, dtype: type = np.float32) -> Array:
    return layers.rope_rotations(np.broadcast_to(np.arange(positions.shape[-1]), positions.shape), frequencies, dtype)


def rope_cases(rng: np.random.Generator) -> Iterator[Case]:
    for layout in ("interleaved", "half"):
        for shape, dtype in (((2, 3, 3, 8), np.float64), ((1, 4, 2, 6), np.float32)):
            x = rng.standard_normal(shape).astype(dtype)
            rotations = layers.rope_rotations(np.arange(shape[1]), layers.rope_frequencies(shape[-1]), dtype)
            yield {"x": x, "rotations": rotations, "layout": layout}
    positions = np.array([[0, 1, 2], [5, 6, 7]])  # a batch whose rows stand at different positions
    x = rng.standard_normal((2, 3, 1, 4))
    rotations = layers.rope_rotations(positions, layers.rope_frequencies(4), np.float64)
    yield {"x": x, "rotations": rotations, "layout": "interleaved"}


chapter.exercise(
    "core",
    cases=rope_cases,
    returns=("y", "saved"),
    task="As `saved`, return whatever your rope_backward will need.",
    hints=(
        "rotations[..., None, :] is the same for every head. With cos and sin its .real and .imag, a pair (a, b)"
        " becomes (a cos - b sin, a sin + b cos).",
        "Interleaved: a = x[..., 0::2], b = x[..., 1::2]. Write both results into an np.empty_like(x) the same way.",
        "Half: a = x[..., :D//2], b = x[..., D//2:], and np.concatenate on the last axis.",
    ),
)(layers.rope)


@chapter.wrong(
    "rope", "your 'interleaved' result is in the half layout: pair j is (x[2j], x[2j+1]), not (x[j], x[j + D/2])."
)
def half_for_interleaved(x: Array, rotations: Array, layout: str = "interleaved") -> tuple[Array, tuple]:
    del layout
    return layers.rope(x, rotations, "half")


@chapter.wrong("rope", "your 'half' result is interleaved: there pair j is (x[j], x[j + D/2]), not (x[2j], x[2j+1]).")
def interleaved_for_half(x: Array, rotations: Array, layout: str = "interleaved") -> tuple[Array, tuple]:
    del layout
    return layers.rope(x, rotations, "interleaved")


@chapter.wrong("rope", "it turns clockwise: the first of the pair is a cos - b sin, the second a sin + b cos.")
def clockwise(x: Array, rotations: Array, layout: Layout = "interleaved") -> tuple[Array, tuple]:
    return layers.rope(x, rotations.conj(), layout)


@chapter.wrong(
    "rope", "the angle follows the head, not the position: rotations needs an axis for heads, [..., None, :]."
)
def angle_by_head(x: Array, rotations: Array, layout: Layout = "interleaved") -> tuple[Array, tuple]:
    assert rotations.shape[-2] in (1, x.shape[-2]), "the rotations do not broadcast"
    return layers.rope(x.swapaxes(-2, -3), rotations, layout)[0].swapaxes(-2, -3), ()


@chapter.wrong("rope", "the sin terms are missing: x is scaled by cos, not turned.")
def only_cosines(x: Array, rotations: Array, layout: Layout = "interleaved") -> tuple[Array, tuple]:
    return layers.rope(x, rotations.real.astype(rotations.dtype), layout)


@chapter.wrong("rope", "the second of the pair is made from the first one already turned: keep a copy of a.")
def first_overwritten(x: Array, rotations: Array, layout: Layout = "interleaved") -> tuple[Array, tuple]:
    y = x.copy()
    half = x.shape[-1] // 2
    first, second = (y[..., 0::2], y[..., 1::2]) if layout == "interleaved" else (y[..., :half], y[..., half:])
    cos, sin = rotations[..., None, :].real, rotations[..., None, :].imag
    first[...] = first * cos - second * sin
    second[...] = first * sin + second * cos
    return y, ()


def rope_there_and_back(own: Functions, x: Array, rotations: Array, layout: str, dy: Array) -> Array:
    _, saved = own.rope(x, rotations, layout)
    return own.rope_backward(dy, saved)


def rope_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in rope_cases(rng):
        yield {**case, "dy": rng.standard_normal(case["x"].shape).astype(case["x"].dtype)}


def rope_gradient(own: Functions) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 2, 6))
    rotations = layers.rope_rotations(np.arange(3), layers.rope_frequencies(6), np.float64)
    layers.gradcheck(lambda x: own.rope(x, rotations), own.rope_backward, x)


chapter.exercise(
    "core",
    cases=rope_backward_cases,
    trial=rope_there_and_back,
    proof=rope_gradient,
    needs=("rope",),
    returns=("dx",),
    hints=(
        "Write the turn as a matrix R: y = R x, so dx = Rᵀ dy. What is the transpose of a rotation?",
        "e^{-iφ} is the conjugate of e^{iφ}: the same function with sin negated.",
    ),
)(layers.rope_backward)


@chapter.wrong("rope_backward", "dy is turned on by the same angles; the transpose turns it back: negate sin.")
def turned_on(dy: Array, saved: tuple) -> Array:
    rotations, layout = saved
    return layers.rope_backward(dy, (rotations.conj(), layout))


@chapter.wrong("rope_backward", "dy is handed on unturned.")
def unturned(dy: Array, saved: tuple) -> Array:
    del saved
    return dy


@chapter.wrong("rope_backward", "the layout is not kept: save it beside the rotations.")
def layout_forgotten(dy: Array, saved: tuple) -> Array:
    return layers.rope_backward(dy, (saved[0], "interleaved"))


def row_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"weight": np.arange(12.0).reshape(12, 1), "head_dim": 6}
    yield {"weight": rng.standard_normal((16, 5)).astype(np.float32), "head_dim": 8}


chapter.exercise(
    "core",
    cases=row_cases,
    returns=("weight",),
    replaces="minillama.weights.huggingface:half_to_interleaved",
    task="Hugging Face's checkpoints hold the rows of Wq and Wk for the half layout; minillama wants them interleaved.",
    hints=(
        "Within each head of D rows, the new order is 0, D/2, 1, D/2 + 1, 2, …",
        "Seen as (heads, 2, D/2, C) the halves are an axis of their own; swap it with the next and flatten again.",
    ),
)(rope_order.half_to_interleaved)


@chapter.wrong(
    "half_to_interleaved", "this is the way back, interleaved to half: swap what you swap, in the other order."
)
def other_way(weight: Array, head_dim: int) -> Array:
    return rope_order.interleaved_to_half(weight, head_dim)


@chapter.wrong("half_to_interleaved", "the heads are mixed: reorder the rows within each head of head_dim rows.")
def across_heads(weight: Array, head_dim: int) -> Array:
    del head_dim
    return rope_order.half_to_interleaved(weight, len(weight))


@chapter.wrong("half_to_interleaved", "the weight is only reshaped: the two halves' axes must be swapped.")
def only_reshaped(weight: Array, head_dim: int) -> Array:
    del head_dim
    return weight


def score_cases(rng: np.random.Generator) -> Iterator[Case]:
    for distance in (0, 1, -3, 40):
        q, k = rng.standard_normal((2, 8))
        yield {"q": q, "k": k, "distance": distance, "frequencies": layers.rope_frequencies(8)}


def score_is_relative(own: Functions) -> str | None:
    """The learner's score of the distance, against two vectors turned by rope at several places of the text."""
    q, k = np.random.default_rng(2).standard_normal((2, 1, 1, 1, 6))
    frequencies = layers.rope_frequencies(6)
    for m, n in ((7, 2), (105, 100), (1005, 1000)):
        rotations = layers.rope_rotations(np.array([m, n]), frequencies, np.float64)
        turned = [layers.rope(x, rotations[[i]])[0].ravel() for i, x in enumerate((q, k))]
        score = own.relative_score(q.ravel(), k.ravel(), m - n, frequencies)
        if abs(score - turned[0] @ turned[1]) > 1e-9:
            return (
                f"A query at {m} and a key at {n} score {turned[0] @ turned[1]:.6f} with rope, {score:.6f} with yours."
            )
    return None


@chapter.exercise(
    "stretch",
    cases=score_cases,
    proof=score_is_relative,
    returns=("score",),
    hints=(
        "Make each vector D/2 complex numbers; q · k is then the real part of Σ q_j conj(k_j).",
        "Turning q_j by m θ_j and k_j by n θ_j multiplies the product by e^{i (m - n) θ_j}.",
    ),
)
def relative_score(q: Array, k: Array, distance: int, frequencies: Array) -> float:
    """rope(q at m) · rope(k at n), from the distance m - n alone: why RoPE is a *relative* position embedding.

    q, k: (D,) float64, not yet turned, interleaved. frequencies: (D/2,). Returns the score. Turn neither vector to an
    absolute position: multiply the pairs of q and k first, then turn the products.
    """
    products = q.view(np.complex128) * k.view(np.complex128).conj()  # (D,) -> (D/2,)
    return float(np.sum(products * np.exp(1j * distance * frequencies)).real)


@chapter.wrong("relative_score", "the distance has the wrong sign: it is the query's position minus the key's.")
def distance_negated(q: Array, k: Array, distance: int, frequencies: Array) -> float:
    return relative_score(q, k, -distance, frequencies)


@chapter.wrong(
    "relative_score", "k is not conjugated: q_j k_j is turned by the sum of the angles, q_j conj(k_j) is not."
)
def not_conjugated(q: Array, k: Array, distance: int, frequencies: Array) -> float:
    return relative_score(q, k.reshape(-1, 2) @ np.diag([1.0, -1.0]).ravel(), distance, frequencies)


@chapter.wrong("relative_score", "position plays no role: this is q · k.")
def no_position(q: Array, k: Array, distance: int, frequencies: Array) -> float:
    del distance
    return relative_score(q, k, 0, frequencies)


@chapter.wrong("relative_score", "the pairs are in the half layout; q and k are interleaved.")
def half_pairs(q: Array, k: Array, distance: int, frequencies: Array) -> float:
    q, k = (np.ascontiguousarray(x.reshape(2, -1).T).ravel() for x in (q, k))
    return relative_score(q, k, distance, frequencies)


def scaling_cases(_: np.random.Generator) -> Iterator[Case]:
    for scaling in (RopeScaling("linear", 4.0), RopeScaling("ntk", 8.0), RopeScaling("llama3", 8.0)):
        yield {"frequencies": layers.rope_frequencies(16, 500_000.0), "scaling": scaling}


@chapter.exercise(
    "stretch",
    cases=scaling_cases,
    returns=("frequencies",),
    task="With it, give 4.1 its `scaling`, and your RoPE runs Llama 3.1.",
    hints=(
        "linear is one division. For ntk, write theta^(-2j/D) with theta' and see what multiplies θ_j.",
        "llama3: turns = original_max_seq_len * frequencies / 2π, and np.clip((turns - low) / (high - low), 0, 1).",
    ),
)
def scaled_frequencies(frequencies: Array, scaling: RopeScaling) -> Array:
    """RoPE's frequencies stretched to a context `scaling.factor` (s) times longer, by the rule `scaling.kind`:

    linear: θ_j / s. ntk: theta becomes theta s^(D/(D-2)), so θ_j becomes θ_j s^(-2j/(D-2)). llama3: with n_j the turns
    that pair j makes over original_max_seq_len, and g_j = (n_j - low_freq_factor) / (high_freq_factor -
    low_freq_factor) clipped to [0, 1], θ_j becomes g_j θ_j + (1 - g_j) θ_j / s.

    frequencies: (D/2,) float64, D > 2. Returns (D/2,) float64.
    """
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "ntk":
        j = np.arange(len(frequencies))
        return frequencies * scaling.factor ** (-j / (len(frequencies) - 1))
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


@chapter.wrong("scaled_frequencies", "frequencies are multiplied by the factor; a longer context turns more slowly.")
def faster(frequencies: Array, scaling: RopeScaling) -> Array:
    return frequencies * scaling.factor


@chapter.wrong("scaled_frequencies", "every kind is scaled linearly.")
def always_linear(frequencies: Array, scaling: RopeScaling) -> Array:
    return frequencies / scaling.factor


@chapter.wrong("scaled_frequencies", "llama3 is the wrong way round: pairs that turn often keep their frequency.")
def blend_reversed(frequencies: Array, scaling: RopeScaling) -> Array:
    scaled = scaled_frequencies(frequencies, scaling)
    if scaling.kind != "llama3":
        return scaled
    return frequencies + frequencies / scaling.factor - scaled
