"""The recogniser accepts all that the generators write, and little else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from minillama.miniature import corpus, examine
from minillama.miniature.fact_phrases import RELATIONS
from minillama.miniature.grammar import grammatical, sentences, true
from minillama.miniature.world import CHARACTER, CHARACTERS


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [story.text for story in corpus(600, seed=4)]


def test_all_that_the_world_says_is_grammatical_and_true(texts: list[str]) -> None:
    found = [examine(text) for text in texts]
    assert [wrong for e in found for wrong in e.ungrammatical] == []
    assert [wrong for e in found for wrong in e.untrue] == []
    assert sum(e.statements for e in found) > 500


def swap(words: list[str], rng: random.Random) -> None:
    i = rng.randrange(len(words) - 1)
    words[i], words[i + 1] = words[i + 1], words[i]


def cut_off(words: list[str], rng: random.Random) -> None:
    del words[rng.randrange(1, len(words)) :]


def leave_out(words: list[str], rng: random.Random) -> None:
    del words[rng.randrange(len(words))]


def say_twice(words: list[str], rng: random.Random) -> None:
    i = rng.randrange(len(words))
    words.insert(i, words[i])


def another_word(words: list[str], rng: random.Random) -> None:
    words[rng.randrange(len(words))] = rng.choice(("the", "was", "Mia", "kite", "ran", "her", "of", "green", "and"))


@pytest.mark.parametrize("corrupt", [swap, cut_off, leave_out, say_twice, another_word])
def test_corrupted_sentences_are_rejected(texts: list[str], corrupt: Callable) -> None:
    rng = random.Random(0)
    whole = [sentence for text in texts for _, sentence in sentences(text) if len(sentence.split()) > 3]
    rejected = total = 0
    for sentence in rng.sample(whole, 300):
        words = sentence.split()
        corrupt(words, rng)
        if words != sentence.split():
            total += 1
            rejected += not grammatical(" ".join(words))
    assert rejected / total > 0.97


@pytest.mark.parametrize(
    "sentence",
    [
        "Mia was proud of his red kite.",
        "Hoot the frog liked to be at the farm, and one warm evening she went there again.",
        "The red kite belong to Mia.",
        "Mia lives at the mill.",
        "mia lives in the mill.",
        "Mia lives in the mill",
        '"I am sorry, said Mia.',
        "Mia found a red kite in the castle.",
        "",
        '"',
    ],
)
def test_wrong_agreement_and_words_that_are_not_of_the_world(sentence: str) -> None:
    assert not grammatical(sentence)


def test_the_colour_of_a_thing_is_no_matter_of_grammar() -> None:
    assert grammatical("Mia had a green kite with her.")


def test_truth() -> None:
    assert true("Mia lives in the mill.") is True
    assert true("Mia lives at the farm.") is False
    assert true("Hugo is the father of Mia.") is True
    assert true("Hugo is the mother of Mia.") is False
    assert true("Where does Mia live?") is None
    assert true("Mia smiled.") is None
    assert true("She lives in the mill.", about=CHARACTER["Mia"]) is True
    assert true("She lives in the mill.", about=CHARACTER["Ada"]) is False
    assert true("I live in the mill.", about=CHARACTER["Ada"]) is False


def test_each_statement_is_true_of_those_of_whom_it_is_a_fact_only() -> None:
    """Every phrase of a relation, filled for one and with another's name put in its place."""
    rng = random.Random(1)
    for relation in RELATIONS:
        if relation.role != "A":
            continue
        for template in (template for line in relation.statements for template in line):
            if "{S}" not in template and "{A}" not in template:
                continue
            who = rng.choice(relation.about)
            assert true(template.format(A=who, S=who, s=who)) is True
            for other in CHARACTERS:
                said = template.replace("{S}", other.name).replace("{A}", other.name).format(A=who, s=other.name)
                if grammatical(said):
                    so = other in relation.about and said == template.format(A=other, S=other, s=other)
                    assert true(said) is so, said


def test_examine_says_what_is_wrong() -> None:
    found = examine("Mia and the kite\nMia is a girl. She lives at the farm. Her kite the is red.")
    assert found.sentences == 4 and not found.grammatical
    assert found.ungrammatical == ("Her kite the is red.",)
    assert found.statements == 2 and found.untrue == ("She lives at the farm.",)


def test_a_talk_is_about_its_speakers() -> None:
    assert examine("Ben: Where do you live?\nMia: I live in the mill.").untrue == ()
    assert examine("Ben: Where do you live?\nMia: I live at the farm.").untrue == ("I live at the farm.",)


def test_an_empty_text_is_not_grammatical() -> None:
    assert not examine("").grammatical
