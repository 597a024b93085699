"""How a learner's value differs from the expected one, in words: shape, first differing element, dtype."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

# Allowed difference, relative to the element and to the largest element: rounding in another order of operations.
TOLERANCE = {"float32": 2e-5, "float64": 1e-9}


@dataclass(frozen=True)
class Difference:
    """What differs, in words, and what may have caused it (None: unknown)."""

    text: str
    cause: str | None = None
    dtype_only: bool = False


def compare(name: str, expected: Any, got: Any) -> Difference | None:
    """None where `got` equals `expected` to rounding; else the first difference. `name` is how the value is called."""
    if isinstance(expected, dict):
        return _compare_dict(name, expected, got)
    if isinstance(expected, np.ndarray | np.generic | int | float):
        return _compare_array(name, expected, got)
    if isinstance(expected, list | tuple) and type(got) is type(expected):
        return _compare_list(name, expected, got)
    if type(got) is not type(expected) or got != expected:
        return Difference(f"{name} is {_short(got)}; expected {_short(expected)}.")
    return None


def describe(value: Any) -> str:
    """An argument in a few characters: shape and dtype of an array, else its value."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, dict) and any(isinstance(item, np.ndarray) for item in value.values()):
        return f"a dict of {len(value)} arrays"
    if callable(value):
        return value.__name__
    text = repr(value)
    length = f" of {len(value)}" if isinstance(value, Sized) else ""
    return text if len(text) <= 40 else f"a {type(value).__name__}{length}"


def _compare_dict(name: str, expected: dict[str, Any], got: Any) -> Difference | None:
    if not isinstance(got, dict):
        return Difference(f"{name} is {_kind(got)}; expected a dict with the keys {', '.join(map(repr, expected))}.")
    missing = [key for key in expected if key not in got]
    if missing:
        return Difference(f"{name} lacks {', '.join(map(repr, missing))}.")
    extra = [key for key in got if key not in expected]
    if extra:
        return Difference(f"{name} has {', '.join(map(repr, extra))}, which is not expected.")
    for key, value in expected.items():
        difference = compare(f"{name}[{key!r}]", value, got[key])
        if difference:
            return difference
    return None


def _compare_list(name: str, expected: Sequence[Any], got: Sequence[Any]) -> Difference | None:
    for i, (want, have) in enumerate(zip(expected, got, strict=False)):
        difference = compare(f"{name}[{i}]", want, have)
        if difference:
            return difference
    if len(got) != len(expected):
        ahead = f"{name} has {len(got)} elements; expected {len(expected)}."
        i = min(len(got), len(expected))
        rest = f"lacks {_short(expected[i])}" if len(got) < len(expected) else f"has {_short(got[i])} too many"
        return Difference(f"{ahead} After the first {i}, which are right, it {rest}.")
    return None


def _compare_array(name: str, expected: Any, got: Any) -> Difference | None:
    want = np.asarray(expected)
    if got is None:
        return Difference(f"{name} is None; expected {_kind(expected)}.")
    if isinstance(expected, np.ndarray) and not isinstance(got, np.ndarray | np.generic):
        return Difference(f"{name} is {_kind(got)}; expected {_kind(expected)}.")
    have = np.asarray(got)
    if have.dtype == object or not (np.issubdtype(have.dtype, np.number) or have.dtype == bool):
        return Difference(f"{name} is {_kind(got)}; expected {_kind(expected)}.")
    if have.shape != want.shape:
        return Difference(f"{name} has shape {have.shape}; expected {want.shape}.", _cause_of_shape(want, have))
    wrong = ~_close(want, have)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f"{name}[{', '.join(map(str, index))}]" if index else name
        a, b = _numbers(want[index], have[index])
        count = f" {int(wrong.sum())} of {wrong.size} values differ; this is the first." if wrong.size > 1 else ""
        return Difference(f"{place} is {b}; expected {a}.{count}", _cause_of_values(want, have))
    if isinstance(expected, np.ndarray) and have.dtype != want.dtype:
        cause = None
        if want.dtype == np.float32 and have.dtype == np.float64:
            cause = "an intermediate is float64 and lifts the rest; bring it to the dtype of the input."
        return Difference(f"{name} has dtype {have.dtype}; expected {want.dtype}. The values are right.", cause, True)
    return None


def _close(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    if want.size == 0:
        return np.ones(want.shape, bool)
    if not np.issubdtype(want.dtype, np.inexact):
        return want == have
    tolerance = TOLERANCE[want.real.dtype.name]
    with np.errstate(all="ignore"):
        largest = np.max(np.abs(want), where=np.isfinite(want), initial=0.0)
        near = np.abs(want - have) <= tolerance * (np.abs(want) + largest)
    return near | (want == have) | (np.isnan(want) & np.isnan(have))


def _cause_of_shape(want: np.ndarray, have: np.ndarray) -> str | None:
    if want.ndim > 1 and have.shape == want.shape[::-1]:
        return "the axes are in reverse order: a transposition too much or too few."
    if sorted(have.shape) == sorted(want.shape):
        return "the axes are right but in another order."
    if have.ndim < want.ndim and have.size < want.size:
        return "an axis was summed or averaged away that should stay."
    return None


def _cause_of_values(want: np.ndarray, have: np.ndarray) -> str | None:
    """A cause that can be seen in the numbers alone."""
    if not np.issubdtype(want.dtype, np.inexact) or not np.issubdtype(have.dtype, np.number):
        return None
    if np.isnan(have).any():
        return "not a number: a division 0/0, inf - inf, or an array from np.empty that was not filled."
    if not have.any():
        return "all values are zero: the result is never written."
    if _close(want, -have).all():
        return "the sign is flipped everywhere."
    nonzero = np.abs(want) > 1e-6 * np.abs(want).max()
    if nonzero.sum() > 1:
        with np.errstate(all="ignore"):
            ratio = float(np.median((have[nonzero] / want[nonzero]).real))
        if np.isfinite(ratio) and ratio != 0 and _close(want * ratio, have).all():
            return f"all values are {ratio:.6g} times what they should be: a factor is missing, or there twice."
    if want.ndim > 1:
        if want.shape[-1] == want.shape[-2] and _close(want, np.swapaxes(have, -1, -2)).all():
            return "the result is transposed."
        for axis, size in enumerate(want.shape):
            if size > 1 and any(_close(want, np.roll(have, step, axis)).all() for step in (1, -1)):
                return f"the values are shifted by one along axis {axis}."
    return None


def _numbers(want: Any, have: Any) -> tuple[str, str]:
    """Both numbers with as many digits as it takes to tell them apart."""
    if not isinstance(want, np.inexact) or not isinstance(have, np.inexact):
        return str(want), str(have)
    for digits in (5, 8, 12):
        a, b = f"{want:.{digits}g}", f"{have:.{digits}g}"
        if a != b:
            return a, b
    return repr(want.item()), repr(have.item())


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
