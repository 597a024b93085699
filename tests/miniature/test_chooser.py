"""Choices have the probabilities they are charged for, and grammars are unambiguous."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

from minillama.errors import UsageError
from minillama.miniature import facts
from minillama.miniature.chooser import Chooser, held_out, phrases, variants
from minillama.miniature.stories import Tale, Topic
from minillama.miniature.world import CHARACTER, PLACES, THINGS
from tests.miniature.derivations import derivations, surprise

CHOICES: dict[str, tuple[Callable[[Chooser], object], dict[object, float]]] = {
    "pick": (lambda c: c.pick("abcdefg"), dict.fromkeys("abcdefg", 1 / 7)),
    "chance": (lambda c: c.chance(0.35), {True: 0.35, False: 0.65}),
    "weighted": (lambda c: c.weighted({"x": 0.6, "y": 0.3, "z": 0.1}), {"x": 0.6, "y": 0.3, "z": 0.1}),
    "phrase": (lambda c: c.phrase(phrases("a (b|c|d)\ne")), {"a b": 1 / 6, "a c": 1 / 6, "a d": 1 / 6, "e": 1 / 2}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_frequencies_are_the_stated_probabilities(name: str) -> None:
    choose, expected = CHOICES[name]
    chooser, counts = Chooser(11), Counter()
    for _ in range(20_000):
        chooser.restart()
        option = choose(chooser)
        assert chooser.nats == pytest.approx(-math.log(expected[option]))
        counts[option] += 1
    assert surprise(counts, expected) < 4


def test_a_wrong_probability_would_be_noticed() -> None:
    chooser = Chooser(11)
    counts = Counter(chooser.chance(0.35) for _ in range(20_000))
    assert surprise(counts, {True: 0.37, False: 0.63}) > 4


def tale(*what: str) -> Callable[[Chooser], str]:
    """A writer of a story about Mia, a kite and the mill that says these things."""

    def write(chooser: Chooser) -> str:
        story = Tale(Topic(CHARACTER["Mia"], THINGS[0], PLACES[0]), chooser)
        story.roles["B"] = CHARACTER["Ben"]
        for phrase in what:
            story.say(phrase)
        return " ".join(story.sentences)

    return write


GRAMMARS: dict[str, Callable[[Chooser], str]] = {
    "census": lambda c: facts.census(facts.Page(c)),
    "open": tale("open", "glad"),
    "have": tale("have", "do"),
    "find": tale("find new", "think of"),
    "end": tale("thank", "end given", "title"),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_sums_to_one_and_is_unambiguous(name: str) -> None:
    """p over all derivations is 1, and no two give the same text: so nats are exactly −log p(text)."""
    texts, total = [], 0.0
    for text, nats in derivations(GRAMMARS[name]):
        texts.append(text)
        total += math.exp(-nats)
    assert len(texts) > 100
    assert total == pytest.approx(1, abs=1e-9)
    assert len(set(texts)) == len(texts)


def test_the_mean_of_nats_is_the_entropy() -> None:
    """Of a grammar small enough to sum over: the samples' mean and Σ −p log p."""
    exact = sum(nats * math.exp(-nats) for _, nats in derivations(GRAMMARS["open"]))
    chooser, total, n = Chooser(5), 0.0, 4000
    for _ in range(n):
        chooser.restart()
        GRAMMARS["open"](chooser)
        total += chooser.nats
    assert total / n == pytest.approx(exact, rel=0.02)


def test_variants_of_a_line() -> None:
    assert variants("a (b|c|) d (e|f).") == ["a b d e.", "a b d f.", "a c d e.", "a c d f.", "a d e.", "a d f."]


def test_a_phrase_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a b' stands twice"):
        phrases("a (b|c)\na b")


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None])
def test_a_seed_is_a_natural_number(seed: object) -> None:
    with pytest.raises(UsageError, match="seed: expected an integer of 0 or more"):
        Chooser(seed)  # type: ignore[arg-type]


def test_held_out_is_one_in_twenty_and_every_pair_is_met_in_training() -> None:
    shape = (16, 20, 16)
    out = {(i, j, k) for i in range(16) for j in range(20) for k in range(16) if held_out(i, j, k)}
    assert len(out) == 16 * 20 * 16 / 20
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = Counter((key[first], key[second]) for key in out)
        (third,) = {0, 1, 2} - {first, second}
        assert max(pairs.values()) <= 2 < shape[third]
