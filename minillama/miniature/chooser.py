"""Random choices that add up what they cost, and the notation in which phrases are written.

A text is made by a derivation: a sequence of choices, each among alternatives with known probabilities. `Chooser`
makes them and sums −log p. Where no two derivations give the same text, the sum is exactly −log p(text); where some
do, it is more, because p(text) is the sum over all derivations of the text. So the mean of `nats` over texts is the
entropy of the generator or an upper bound on it, and no model of the texts has a lower expected loss than the entropy.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from minillama.errors import UsageError

T = TypeVar("T")

_LOG = [0.0, *(math.log(n) for n in range(1, 10_000))]


class Chooser:
    """Choices from one seed, and the nats they have cost since `restart`.

    Only `random.Random.random` is used, whose numbers are the same on every platform and version of Python.
    """

    __slots__ = ("nats", "random")

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or seed < 0:
            raise UsageError(f"seed: expected an integer of 0 or more, found {seed!r}")
        self.random = random.Random(seed).random
        self.nats = 0.0

    def restart(self) -> None:
        """Begin a new text: nothing chosen yet."""
        self.nats = 0.0

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each with the same probability."""
        n = len(options)
        self.nats += _LOG[n]
        return options[int(self.random() * n)]

    def chance(self, p: float) -> bool:
        """True with probability p, where 0 < p < 1."""
        if self.random() < p:
            self.nats -= math.log(p)
            return True
        self.nats -= math.log1p(-p)
        return False

    def weighted(self, options: Mapping[T, float]) -> T:
        """One of the keys, each with the probability that is its value; the values sum to 1."""
        at = self.random()
        for option, p in options.items():  # noqa: B007 - the option at which it stops
            at -= p
            if at < 0:
                break
        self.nats -= math.log(p)
        return option

    def phrase(self, lines: Sequence[Sequence[str]]) -> str:
        """A template of the lines that `phrases` read: first a line, then one of its variants."""
        return self.pick(self.pick(lines))


_INNERMOST = re.compile(r"\(([^()]*)\)")


def variants(line: str) -> list[str]:
    """Every text that a line stands for: `a (b|c|) d` is one of `a b d`, `a c d`, `a d`. Does not
    nest."""
    match = _INNERMOST.search(line)
    if match is None:
        return [" ".join(line.split())]
    before, after = line[: match.start()], line[match.end() :]
    return [text for option in match.group(1).split("|") for text in variants(before + option + after)]


def phrases(text: str) -> list[list[str]]:
    """Lines of templates, each as the list of its variants. Raises ValueError where a template stands twice, because
    the grammar would be ambiguous and its entropy only bounded.
    """
    lines = [variants(line) for line in text.strip().splitlines() if line.strip()]
    seen: set[str] = set()
    for template in (template for line in lines for template in line):
        if template in seen:
            raise ValueError(f"{template!r} stands twice among the phrases")
        seen.add(template)
    return lines


def held_out(i: int, j: int, k: int, one_in: int = 20) -> bool:
    """Whether a combination of three things, given by their positions, is held out of training.

    A Latin pattern: whatever two of the three are, one value in `one_in` of the third is held out, if it has as many.
    So every member and every pair is met in training, and only the combination is new.
    """
    return (7 * i + 3 * j + k) % one_in == 7
