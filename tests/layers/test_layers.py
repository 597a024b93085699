"""The evidence ladder for every op: naive loops, central differences, float32, a GPU's rules, planted bugs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minillama import layers
from minillama.layers import gradcheck
from tests.conftest import Arrays
from tests.layers import naive
from tests.layers.cases import CASES, COUNTED, Case, forward_of, normal

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(params=[None, (2, 1, 1), (4, 4 * 2 * 9 * 2, 8)], ids=["one block", "small blocks", "uneven blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops take their rows in blocks, and attention its queries and sequences: all at once, one or two by two, and so
    that something is left over: of nine queries one, of three sequences one.
    """
    import sys

    if request.param:
        queries, scores, numbers = request.param
        monkeypatch.setattr(sys.modules["minillama.layers.attention"], "QUERIES", queries)
        monkeypatch.setattr(sys.modules["minillama.layers.attention"], "CACHED", scores)
        monkeypatch.setattr(sys.modules["minillama.layers.blocks"], "CACHED", numbers)


@pytest.mark.usefixtures("block")
@each_case
def test_forward_equals_the_loops(case: Case) -> None:
    y, _ = forward_of(case)(*case.inputs)
    np.testing.assert_allclose(y, case.naive(*case.inputs, **case.fixed), rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("block")
@each_case
def test_backward_equals_central_differences(case: Case) -> None:
    gradcheck(forward_of(case), case.backward, *case.inputs)


@pytest.mark.usefixtures("block")
@each_case
def test_float32_on_every_library(case: Case, arrays: Arrays) -> None:
    """float32 gives the float64 numbers to rounding, in float32, on NumPy, on a GPU, and under a GPU's rules."""
    exact, exact_saved = forward_of(case)(*case.inputs)
    dy = np.random.default_rng(1).standard_normal(np.shape(exact))
    exact_grads = _tuple(case.backward(dy, exact_saved))

    inputs, fixed = arrays.put(_narrow(case.inputs)), arrays.put(case.fixed)
    y, saved = case.forward(*inputs, **fixed)
    grads = _tuple(case.backward(arrays.put(_narrow(dy)), saved))
    scale = max(np.abs(exact).max(), 1e-6)  # of gradients too: some are zero by symmetry
    for ours, expected in zip((y, *grads), (exact, *exact_grads), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(arrays.get(ours) - expected).max() <= 2e-6 * max(scale, np.abs(expected).max())


@each_case
def test_inputs_are_left_alone(case: Case) -> None:
    before = [x.copy() if isinstance(x, np.ndarray) else x for x in case.inputs]
    y, saved = forward_of(case)(*case.inputs)
    dy = np.random.default_rng(1).standard_normal(np.shape(y))
    dy_before = dy.copy()
    case.backward(dy, saved)
    np.testing.assert_array_equal(dy, dy_before)
    for x, copy in zip(case.inputs, before, strict=True):
        np.testing.assert_array_equal(x, copy)


@each_case
def test_a_planted_bug_is_caught(case: Case) -> None:
    """Each gradient in turn 1 % too large at one element: the check that found nothing above must find it."""
    count = len([x for x in case.inputs if isinstance(x, np.ndarray) and x.dtype == np.float64])
    for i in range(count):

        def wrong(dy: Any, saved: Any, i: int = i) -> tuple:
            grads = [np.array(grad) for grad in _tuple(case.backward(dy, saved))]
            at = np.unravel_index(np.argmax(np.abs(grads[i])), grads[i].shape)
            grads[i][at] += 0.01 * grads[i][at] + 1e-4
            return tuple(grads)

        with pytest.raises(AssertionError, match="central differences"):
            gradcheck(forward_of(case), wrong, *case.inputs)


def test_gradcheck_wants_every_gradient_in_shape() -> None:
    x, w = normal(2, 3), normal(4, 3)
    with pytest.raises(AssertionError, match="1 gradients for 2"):
        gradcheck(layers.linear, lambda dy, saved: layers.linear_backward(dy, saved)[0], x, w)
    with pytest.raises(AssertionError, match=r"shape \(3, 4\), the input \(4, 3\)"):
        gradcheck(
            layers.linear, lambda dy, saved: (lambda dx, dw: (dx, dw.T))(*layers.linear_backward(dy, saved)), x, w
        )
    with pytest.raises(AssertionError, match="nan"):
        gradcheck(layers.linear, lambda dy, saved: tuple(g * np.nan for g in layers.linear_backward(dy, saved)), x, w)


def test_attention_of_a_query_that_sees_nothing_is_zero() -> None:
    """A padded query on the left has no key at all: 0 out, and 0 in every gradient that passes through it."""
    q, k, v = normal(1, 3, 2, 4), normal(1, 3, 1, 4, seed=1), normal(1, 3, 1, 4, seed=2)
    out, saved = layers.attention(q, k, v, mask=np.array([[False, False, True]]))
    assert np.all(out[:, :2] == 0) and np.all(out[:, 2] != 0)
    dq, dk, dv = layers.attention_backward(np.ones_like(out), saved)
    assert np.all(dq[:, :2] == 0) and np.all(dk[:, :2] == 0) and np.all(dv[:, :2] == 0)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("window", [None, 2])
def test_what_sees_nothing_stays_finite_in_float32(arrays: Arrays, window: int | None) -> None:
    """A sum of no exponentials, and gradients and scores as large as they come: no NaN, no infinity, no warning."""
    seen = np.array([[0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    q, k, v = (arrays.put(1e10 * normal(3, 6, 2, 4, seed=i).astype(np.float32)) for i in range(3))
    out, saved = layers.attention(q, k, v, mask=arrays.put(seen), window=window)
    dout = arrays.put(np.full((3, 6, 2, 4), 1e15, np.float32))
    for result in (out, *layers.attention_backward(dout, saved)):
        assert np.all(np.isfinite(arrays.get(result)))
        assert np.all(arrays.get(result)[2] == 0)
    assert np.all(arrays.get(out)[0, :5] == 0) and np.all(arrays.get(out)[0, 5] != 0)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("mask", [None, COUNTED], ids=["all count", "masked"])
def test_cross_entropy_overwrites_when_told(arrays: Arrays, mask: np.ndarray | None) -> None:
    targets, exact = arrays.put(np.array([[6, 0, 2], [2, 2, 5]])), normal(2, 3, 7).astype(np.float32)
    logits = arrays.put(exact)
    expected_loss, expected = layers.cross_entropy(logits, targets, arrays.put(mask))
    np.testing.assert_array_equal(arrays.get(logits), exact)
    loss, saved = layers.cross_entropy(logits, targets, arrays.put(mask), overwrite=True)
    assert arrays.get(loss) == arrays.get(expected_loss)
    dlogits = layers.cross_entropy_backward(saved)
    np.testing.assert_array_equal(arrays.get(dlogits), arrays.get(expected[0]))
    np.testing.assert_array_equal(arrays.get(logits), arrays.get(dlogits))  # it is where the logits were
    half = layers.cross_entropy_backward(saved, 0.5)
    np.testing.assert_array_equal(arrays.get(half), arrays.get(expected[0]) / 2)
    np.testing.assert_array_equal(arrays.get(logits), arrays.get(dlogits))


def test_masked_infinities_stay_out_of_the_loss() -> None:
    logits = normal(1, 2, 4)
    mask = np.array([[True, False]])
    expected, _ = layers.cross_entropy(logits[:, :1], np.array([[1]]))
    with np.errstate(invalid="ignore"):
        loss, saved = layers.cross_entropy(np.where(mask[..., None], logits, np.inf), np.array([[1, 0]]), mask)
        dlogits = layers.cross_entropy_backward(saved)
    assert loss == expected
    assert np.all(dlogits[0, 1] == 0) and np.all(np.isfinite(dlogits))


def test_swiglu_far_out() -> None:
    """Where e^-x overflows, silu is 0 or x: never NaN, never a warning."""
    x = np.array([-1e4, -100, 0, 100, 1e4], np.float32)
    y, saved = layers.swiglu(x, np.ones_like(x))
    np.testing.assert_array_equal(y, [0, 0, 0, 100, 1e4])
    dgate, _ = layers.swiglu_backward(np.ones_like(x), saved)
    np.testing.assert_array_equal(dgate, [0, 0, 0.5, 1, 1])


def test_attention_keeps_nothing_when_told_so() -> None:
    q, k, v = normal(1, 3, 2, 4), normal(1, 3, 1, 4, seed=1), normal(1, 3, 1, 4, seed=2)
    out, saved = layers.attention(q, k, v, keep=False)
    assert saved is None
    np.testing.assert_array_equal(out, layers.attention(q, k, v)[0])


@pytest.mark.parametrize("window", [None, 1, 3, 5, 9])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_attention_of_one_query_that_keeps_nothing(K: int, padded: bool, window: int | None, arrays: Arrays) -> None:
    """A decoded token takes a way of its own; a row that sees nothing gets 0 there as well."""
    q, k, v = normal(3, 1, 4, 6), normal(3, 5, K, 6, seed=1), normal(3, 5, K, 6, seed=2)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1], [0, 0, 0, 0, 0]], bool) if padded else None
    expected = naive.attention(q, k, v, mask, window)
    out, saved = layers.attention(q, k, v, mask=mask, window=window, keep=False)
    assert saved is None
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-13)
    ours, _ = layers.attention(*arrays.put(_narrow((q, k, v))), mask=arrays.put(mask), window=window, keep=False)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(arrays.get(ours), expected, rtol=0, atol=2e-6)
    huge, _ = layers.attention(1000 * q, 1000 * k, v, mask=mask, window=window, keep=False)
    assert np.isfinite(huge).all()


def _tuple(x: Any) -> tuple:
    return x if isinstance(x, tuple) else (x,)


def _narrow(x: Any) -> Any:
    """float64 -> float32 and complex128 -> complex64, inside tuples as well."""
    if isinstance(x, tuple):
        return tuple(map(_narrow, x))
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "fc":
        return np.asarray(x).astype({"f": np.float32, "c": np.complex64}[x.dtype.kind])
    return x
