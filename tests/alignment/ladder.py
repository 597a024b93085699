"""The evidence ladder for a loss: naive loops, central differences, float32 and a GPU's rules, a planted bug, pads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from minillama.layers import gradcheck
from tests.conftest import Arrays


@dataclass
class Loss:
    """A loss at a point. inputs: by name; `trained` of them, the first, are differentiated, the others are constants.

    naive: from the inputs as positional arguments, and `fixed` as keywords, to the loss.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Any]
    naive: Callable[..., float]
    inputs: dict[str, np.ndarray]
    trained: int
    fixed: dict[str, Any] = field(default_factory=dict)

    def at(self, *values: Any, **changed: Any) -> tuple[Any, Any]:
        """The forward pass, the trained inputs replaced by `values` and any by name."""
        inputs = self.inputs | dict(zip(self.inputs, values, strict=False)) | changed
        return self.forward(*inputs.values(), **self.fixed)

    def gradients(self, saved: Any, dloss: Any = 1.0) -> tuple[Any, ...]:
        grads = self.backward(saved, dloss)
        return grads if isinstance(grads, tuple) else (grads,)

    @property
    def point(self) -> list[np.ndarray]:
        return list(self.inputs.values())[: self.trained]


def equals_the_loops(loss: Loss) -> None:
    value, _ = loss.at()
    assert value == pytest.approx(loss.naive(*loss.inputs.values(), **loss.fixed), rel=1e-12, abs=1e-15)


def equals_central_differences(loss: Loss) -> None:
    gradcheck(loss.at, lambda dy, saved: loss.gradients(saved, dy), *loss.point)
    assert all(grad.any() for grad in loss.gradients(loss.at()[1])), "a gradient of 0 is no test"


def notices_a_planted_bug(loss: Loss) -> None:
    """Each gradient in turn 1 % too large at one element."""
    for i in range(loss.trained):

        def wrong(dy: Any, saved: Any, i: int = i) -> tuple:
            grads = [np.array(grad) for grad in loss.gradients(saved, dy)]
            at = np.unravel_index(np.argmax(np.abs(grads[i])), grads[i].shape)
            grads[i][at] *= 1.01
            return tuple(grads)

        with pytest.raises(AssertionError, match="central differences"):
            gradcheck(loss.at, wrong, *loss.point)


def is_float32_on_every_library(loss: Loss, arrays: Arrays) -> None:
    exact, exact_saved = loss.at()
    inputs = {name: arrays.put(_narrow(x)) for name, x in loss.inputs.items()}
    value, saved = loss.forward(*inputs.values(), **loss.fixed)
    for ours, expected in zip((value, *loss.gradients(saved)), (exact, *loss.gradients(exact_saved)), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(arrays.get(ours), expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


def adds_up_in_parts(loss: Loss, count: float) -> None:
    """1 × 8 = 4 × 2: with `count` that of the whole, losses and gradients of the parts add up to the whole's."""
    value, saved = loss.at()
    rows = len(loss.point[0])
    assert rows == 8
    total, parts = 0.0, []
    for row in range(0, rows, 2):
        part = {name: x[row : row + 2] for name, x in loss.inputs.items()}
        value_of_part, saved_of_part = loss.forward(*part.values(), **loss.fixed, count=count)
        total += value_of_part
        parts.append(loss.gradients(saved_of_part))
    assert total == pytest.approx(value, rel=1e-12)
    for whole, pieces in zip(loss.gradients(saved), zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-12, atol=0)


def ignores_garbage(loss: Loss, mask: np.ndarray) -> None:
    """Whatever stands where the mask is false, and whatever columns come after: the same loss, the same gradients."""
    value, saved = loss.at()
    expected = loss.gradients(saved)
    for garbage in (1e30, np.inf, -np.inf, np.nan):
        spoilt = {n: np.where(mask, x, garbage) if x.dtype.kind == "f" else x for n, x in loss.inputs.items()}
        spoilt_value, spoilt_saved = loss.forward(*spoilt.values(), **loss.fixed)
        assert spoilt_value == value
        for ours, grad in zip(loss.gradients(spoilt_saved), expected, strict=True):
            np.testing.assert_array_equal(ours, grad)
            assert not ours[~mask].any()
    for before, after in ((0, 3), (3, 0)):
        padding = [(0, 0), (before, after)]
        longer = {
            n: np.pad(x, padding, constant_values=np.nan if x.dtype.kind == "f" else 0) for n, x in loss.inputs.items()
        }
        longer_value, longer_saved = loss.forward(*longer.values(), **loss.fixed)
        assert longer_value == pytest.approx(value, rel=1e-14)
        for ours, grad in zip(loss.gradients(longer_saved), expected, strict=True):
            np.testing.assert_allclose(ours, np.pad(grad, padding), rtol=1e-14)


def is_zero_where_nothing_is_valid(loss: Loss) -> None:
    """A fully masked row changes nothing; a fully masked batch gives 0 and no NaN."""
    spoilt = {n: np.full_like(x, np.nan) if x.dtype.kind == "f" else np.zeros_like(x) for n, x in loss.inputs.items()}
    value, saved = loss.forward(*spoilt.values(), **loss.fixed)
    assert value == 0
    assert not any(grad.any() for grad in loss.gradients(saved))
    whole, whole_saved = loss.at()
    more = {n: np.concatenate([x, spoilt[n][:1]]) for n, x in loss.inputs.items()}
    value, saved = loss.forward(*more.values(), **loss.fixed)
    assert value == pytest.approx(whole, rel=1e-14)
    for ours, grad in zip(loss.gradients(saved), loss.gradients(whole_saved), strict=True):
        np.testing.assert_allclose(ours[:-1], grad, rtol=1e-14)
        assert not ours[-1].any()


def _narrow(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.kind == "f" else x
