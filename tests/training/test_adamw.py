"""AdamW and clipping are PyTorch's, over ten steps; and what they do at the edges."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from minillama.errors import UsageError
from minillama.params import flatten, views
from minillama.training import adamw
from minillama.training.adamw import CHUNK, AdamW, clip_factor, global_norm
from minillama.training.threads import ONE_THREAD, Threads
from tests.training.steps import Arrays, Bugs, below, frozen, matrices_first, naive_adamw

CASES = frozen("adamw.npz")
TOLERANCE = {"float64": 1e-13, "float32": 5e-7}  # of a parameter near 1


def settings_of(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case["settings"][name] for name in ("betas", "eps", "weight_decay")}


def inputs(case: dict[str, Any]) -> tuple[Arrays, list[Arrays]]:
    """Parameters, and the gradients of ten steps."""
    grads = below(case, "grads")
    return below(case, "params"), [{name: g[t] for name, g in grads.items()} for t in range(10)]


def flat_gradients(grads: list[Arrays], dtype: str) -> np.ndarray:
    """(10, P), in the order of `flatten`."""
    return np.stack([np.concatenate([grad[n].ravel() for n in matrices_first(grad)]) for grad in grads]).astype(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_pytorch_s(name, dtype, arrays):
    if arrays.name == "fake-gpu" and dtype == "float64":
        pytest.skip("the imagined GPU has no float64")
    case = CASES[name]
    params, grads = inputs(case)
    params = {key: arrays.put(p.astype(dtype)) for key, p in params.items()}
    flat, matrices = flatten(params)
    optimizer = AdamW(flat, matrices, **settings_of(case))
    for t, grad in enumerate(flat_gradients(grads, dtype)):
        norm = case[f"{dtype}/norms"][t]
        optimizer.step(arrays.put(grad), float(case["lrs"][t]), clip_factor(float(norm), case["settings"]["limit"]))
        for key, p in params.items():
            assert p.dtype == dtype
            np.testing.assert_allclose(arrays.get(p), case[f"{dtype}/{key}"][t], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_norms_are_pytorch_s(name, dtype):
    case = CASES[name]
    norms = [global_norm(grad) for grad in flat_gradients(inputs(case)[1], dtype)]
    np.testing.assert_allclose(norms, case[f"{dtype}/norms"], rtol=1e-14 if dtype == "float64" else 3e-7)


def differs(case: dict[str, Any], bugs: Bugs) -> float:
    """The largest difference of the loops, with these bugs, from PyTorch's float64 over ten steps."""
    params, grads = inputs(case)
    steps = naive_adamw(params, grads, case["lrs"].tolist(), case["settings"], bugs)
    return max(np.abs(p[key] - case[f"float64/{key}"][t]).max() for t, (_, p) in enumerate(steps) for key in params)


@pytest.mark.parametrize("name", CASES)
def test_loops_are_pytorch_s(name):
    assert differs(CASES[name], Bugs()) < 1e-13


@pytest.mark.parametrize("bug", [field.name for field in fields(Bugs)])
def test_a_bug_would_be_seen(bug):
    """The frozen cases tell AdamW from each thing that people write instead, far outside the tolerances."""
    assert max(differs(case, Bugs(**{bug: True})) for case in CASES.values()) > 100 * TOLERANCE["float32"]


def test_moments_are_kept():
    """m and v themselves, which a checkpoint holds."""
    grads = np.array([[1.0, -2.0], [3.0, 0.5]])
    optimizer = AdamW(np.zeros(2), 2, betas=(0.5, 0.75), weight_decay=0.0)
    for grad in grads:
        optimizer.step(grad, 0.1)
    np.testing.assert_allclose(optimizer.m, 0.5 * 0.5 * grads[0] + 0.5 * grads[1])
    np.testing.assert_allclose(optimizer.v, 0.75 * 0.25 * grads[0] ** 2 + 0.25 * grads[1] ** 2)
    assert optimizer.steps == 2


def test_the_first_step_is_a_sign():
    """Of size lr, whatever the gradient's: what the corrections are for."""
    grads = np.array([1e-3, -5.0, 2e4])
    params = np.zeros(3)
    AdamW(params, 0, eps=1e-12).step(grads, 0.01)
    np.testing.assert_allclose(params, -0.01 * np.sign(grads), rtol=1e-8)


# --- edges


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_gradient_only_decays(dtype):
    params = np.arange(1.0, 7.0).astype(dtype)
    optimizer = AdamW(params, 4, weight_decay=0.5)
    for _ in range(3):
        optimizer.step(np.zeros(6, dtype), 0.1)
    shrunk = np.arange(1.0, 7.0) * np.where(np.arange(6) < 4, 0.95**3, 1)
    np.testing.assert_allclose(params, shrunk, rtol=1e-6 if dtype == "float32" else 1e-15)


def test_gradients_are_left_alone():
    grads = np.ones(5)
    AdamW(np.ones(5), 3).step(grads, 0.1, scale=0.5)
    np.testing.assert_array_equal(grads, 1)


SIZES = [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pieces_do_not_show(size, threads):
    """Chunks and threads divide the work at any place and change no bit, and the decay ends where it should."""
    rng = np.random.default_rng(size)
    start, grads = rng.standard_normal((2, size)).astype(np.float32)
    pool = Threads(threads)
    for decayed in {0, 1, size // 2, min(CHUNK - 1, size), min(CHUNK + 1, size), size}:
        params, whole = start.copy(), start.copy()
        optimizer, alone = AdamW(params, decayed), AdamW(whole, decayed)
        for _ in range(2):
            optimizer.step(grads, 0.01, 0.5, pool)
            one_piece_step(alone, grads, 0.01, 0.5)
        np.testing.assert_array_equal(params, whole)


def one_piece_step(optimizer: AdamW, grads: np.ndarray, lr: float, scale: float) -> None:
    """The step with all of each side of the edge as one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adamw, "CHUNK", 1 << 40)
        optimizer.step(grads, lr, scale, ONE_THREAD)


def test_fewer_parameters_than_threads():
    for size in (0, 1, 2):
        params = np.ones(size, np.float32)
        AdamW(params, size, weight_decay=0.0).step(np.ones(size, np.float32), 0.125, threads=Threads(4))
        np.testing.assert_allclose(params, 0.875, rtol=1e-5)
        assert global_norm(np.full(size, 3.0), Threads(4)) == pytest.approx(3 * math.sqrt(size))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_global_norm(threads, dtype):
    grads = np.random.default_rng(0).standard_normal(3 * CHUNK + 17).astype(dtype)
    exact = math.sqrt(math.fsum(float(g) ** 2 for g in grads))
    assert global_norm(grads, Threads(threads)) == pytest.approx(exact, rel=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("values", "norm"),
    [((1.0, math.nan), math.nan), ((math.inf, 1.0), math.inf), ((math.inf, -math.inf), math.inf)],
    ids=["nan", "inf", "two infinities"],
)
def test_a_norm_that_is_not_a_number(values, norm, dtype, threads):
    """Is found without a warning, in whichever piece it stands."""
    for at in ((0, 1), (0, CHUNK + 1), (2 * CHUNK, CHUNK)):
        grads = np.ones(2 * CHUNK + 1, dtype)
        grads[list(at)] = values
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_equal(global_norm(grads, Threads(threads)), norm)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e30), ("float64", 1e200), ("float64", 6e151)])
def test_a_norm_whose_squares_overflow(dtype, huge, threads):
    """Is infinite: gradients of 1e30 are a divergence too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert global_norm(np.full(3 * CHUNK, huge, dtype), Threads(threads)) == math.inf


def test_clip_factor():
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(4.0, None) == 1.0
    assert clip_factor(0.0, 1.0) == 1.0
    assert clip_factor(4.0, 2.0) == pytest.approx(0.5, rel=1e-6)
    assert clip_factor(4.0, 2.0) < 0.5  # never above the limit
    assert clip_factor(1.0, 1.0) == pytest.approx(1 / (1 + 1e-6), rel=1e-15)  # as PyTorch at the limit
    assert clip_factor(math.inf, 1.0) == 0.0


def test_clipped_gradients_have_the_limit_s_norm():
    grads = np.random.default_rng(1).standard_normal(100)
    clipped = grads * clip_factor(global_norm(grads), 1.5)
    assert global_norm(clipped) == pytest.approx(1.5, rel=1e-6)
    assert float(clipped @ grads) == pytest.approx(global_norm(clipped) * global_norm(grads))  # the direction stays


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (math.nan, 0.9)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"weight_decay": -0.1}, "weight decay"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UsageError, match=words):
        AdamW(np.zeros(3), 3, **settings)


def test_the_defaults_are_llama_2_s():
    """Section 2.2 of the paper."""
    optimizer = AdamW(np.zeros(1), 1)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.95), 1e-5, 0.1)


# --- parameters side by side


def test_flatten_puts_matrices_first(arrays):
    """The mask of the decay: matrices, the embedding among them, and no vector."""
    shapes = {"tok_embeddings": (5, 2), "norm": (2,), "wq": (2, 2), "scalar": (), "output": (5, 2)}
    values = {
        name: np.random.default_rng(i).standard_normal(shape, np.float32)
        for i, (name, shape) in enumerate(shapes.items())
    }
    params = {name: arrays.put(value) for name, value in values.items()}
    flat, matrices = flatten(params)
    assert list(params) == ["tok_embeddings", "wq", "output", "norm", "scalar"]
    assert (len(flat), matrices) == (27, 24)
    for name, value in values.items():
        np.testing.assert_array_equal(arrays.get(params[name]), value)
    flat[:] = 7
    assert all((arrays.get(p) == 7).all() for p in params.values())


def test_views_share_memory():
    flat = np.arange(8.0)
    parts = views(flat, {"a": (2, 3), "b": (2,)})
    parts["b"][0] = -1
    assert flat[6] == -1
    np.testing.assert_array_equal(parts["a"], [[0, 1, 2], [3, 4, 5]])
