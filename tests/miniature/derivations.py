"""Every derivation of a small grammar, by replaying the choices of a `Chooser` in all ways; how odd counts are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from minillama.miniature.chooser import Chooser

T = TypeVar("T")


class Replay(Chooser):
    """A chooser that follows `path`, the option to take at each choice, and then takes the first option of each."""

    __slots__ = ("path", "sizes", "taken")

    def __init__(self, path: list[int]) -> None:
        super().__init__(0)
        self.path, self.taken, self.sizes = path, [], []

    def _next(self, n: int) -> int:
        i = self.path[len(self.taken)] if len(self.taken) < len(self.path) else 0
        self.taken.append(i)
        self.sizes.append(n)
        return i

    def pick(self, options: Sequence[T]) -> T:
        self.nats += math.log(len(options))
        return options[self._next(len(options))]

    def chance(self, p: float) -> bool:
        yes = self._next(2) == 0
        self.nats -= math.log(p if yes else 1 - p)
        return yes

    def weighted(self, options: Mapping[T, float]) -> T:
        option = list(options)[self._next(len(options))]
        self.nats -= math.log(options[option])
        return option


def derivations(write: Callable[[Chooser], str]) -> Iterator[tuple[str, float]]:
    """(text, nats) of each derivation of what `write` can write."""
    path: list[int] = []
    while True:
        chooser = Replay(path)
        text = write(chooser)
        yield text, chooser.nats
        taken, sizes = chooser.taken, chooser.sizes
        while taken and taken[-1] == sizes[len(taken) - 1] - 1:
            taken.pop()
        if not taken:
            return
        path = [*taken[:-1], taken[-1] + 1]


def surprise(counts: Counter, expected: dict[object, float]) -> float:
    """Pearson's χ² of the counts, in standard deviations above its mean."""
    n = sum(counts.values())
    assert set(counts) <= set(expected)
    chi2 = sum((counts[k] - n * p) ** 2 / (n * p) for k, p in expected.items())
    freedom = len(expected) - 1
    return (chi2 - freedom) / math.sqrt(2 * freedom)
