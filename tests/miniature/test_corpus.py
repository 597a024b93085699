"""The corpus: reproducible, split by content, every fact learnable."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import islice

import pytest

from minillama.errors import UsageError
from minillama.miniature import Story, corpus, entropy
from minillama.miniature.chooser import held_out
from minillama.miniature.corpus import MIXTURE
from minillama.miniature.fact_phrases import RELATIONS
from minillama.miniature.facts import ENTITIES, FACTS
from minillama.miniature.stories import PLOTS, holders, questions
from minillama.miniature.world import HEROES, PLACES, THINGS
from tests.miniature.derivations import surprise

GOLDEN = "674838daa65f6698ed3085aa5c28e6fac24ede6d14d4c119d249f2a8d2cd6859"  # of the first texts of seed 0


@pytest.fixture(scope="module")
def documents() -> list[Story]:
    return list(corpus(6000, seed=1))


def test_the_texts_of_a_seed_are_these_on_every_platform() -> None:
    texts = "\n\n".join(f"{story.split} {story.text}" for story in corpus(500, seed=0))
    assert hashlib.sha256(texts.encode()).hexdigest() == GOLDEN


def test_a_longer_corpus_begins_with_the_shorter() -> None:
    assert list(islice(corpus(1000, 3), 50)) == list(corpus(50, 3))


def test_other_seeds_give_other_texts() -> None:
    first, second = ({story.text for story in corpus(300, seed)} for seed in (1, 2))
    assert len(first & second) < 10  # only lists of names are short enough to come twice


def test_a_number_of_documents_is_not_negative() -> None:
    with pytest.raises(UsageError, match="documents: expected 0 or more, found -1"):
        list(corpus(-1))


def test_all_kinds_come_and_about_one_in_twenty_is_held_out(documents: list[Story]) -> None:
    kinds = Counter(story.kind for story in documents)
    held = Counter(story.kind for story in documents if story.split == "validation")
    assert len(kinds) == len(PLOTS) + 7
    assert 0.04 < sum(held.values()) / len(documents) < 0.07
    assert all(0.005 < held[kind] / n < 0.2 for kind, n in kinds.items())


def test_kinds_and_topics_are_as_frequent_as_their_nats_say(documents: list[Story]) -> None:
    plots = {plot.__name__: MIXTURE["story"] / len(PLOTS) for plot in PLOTS}
    pages = {kind: p for kind, p in MIXTURE.items() if kind != "story"}
    assert surprise(Counter(story.kind for story in documents), plots | pages) < 4
    topics = [story.topic for story in documents if story.topic]
    for role, options in (("hero", HEROES), ("thing", THINGS), ("place", PLACES)):
        assert surprise(Counter(getattr(topic, role) for topic in topics), dict.fromkeys(options, 1 / len(options))) < 4


def test_stories_are_split_by_their_topic(documents: list[Story]) -> None:
    topics: dict[str, set] = {"train": set(), "validation": set()}
    for story in documents:
        if story.topic:
            hero, thing, place = story.topic
            topics[story.split].add(story.topic)
            out = held_out(HEROES.index(hero), THINGS.index(thing), PLACES.index(place))
            assert (story.split == "validation") == out
    assert topics["validation"] and not topics["train"] & topics["validation"]


def test_what_a_page_says_in_held_out_words_is_never_trained_on(documents: list[Story]) -> None:
    lines = [
        line
        for relation in RELATIONS
        for entity in relation.about
        for i, line in enumerate(relation.statements)
        if len(relation.statements) > 1 and held_out(ENTITIES.index(entity), RELATIONS.index(relation), i, 60)
        for line in (template.format(S=entity, s=entity, **{relation.role: entity}) for template in line)
        if entity.name in line
    ]
    assert lines
    portraits = [story for story in documents if story.kind in ("portrait", "place")]
    found = Counter(story.split for story in portraits for line in lines if line in story.text)
    assert found["validation"] > 0 and found["train"] == 0


def test_every_fact_is_stated_in_training() -> None:
    """Of each fact there is a phrase about it, in words, among the documents to train on."""
    text = "\n".join(story.text for story in corpus(15_000, seed=2) if story.split == "train")
    for entity, relation in FACTS:
        phrases = [*relation.statements, *relation.answers]
        said = {template.format(S=entity, s=entity, **{relation.role: entity}) for line in phrases for template in line}
        assert any(entity.name.lower() in sentence.lower() and sentence in text for sentence in said), (
            entity,
            relation.name,
        )


def test_what_happens_is_in_the_text(documents: list[Story]) -> None:
    """No event is hidden: whoever and whatever it names, the story names."""
    for story in documents:
        for event in story.events:
            named = [entity for entity in event[1:] if entity is not None]
            assert all(entity.name in story.text for entity in named if not isinstance(entity, str)), (event, story)


def test_nobody_gives_what_somebody_else_has(documents: list[Story]) -> None:
    for story in documents:
        for i, event in enumerate(story.events):
            if event.verb in ("give", "lose", "help"):
                holder = holders(story.events[:i]).get(event.what)
                assert holder in (None, event.who), story


def test_answers_about_a_story_are_right(documents: list[Story]) -> None:
    """Who has it at the end is who holds it after all events; no question is asked that has two answers."""
    asked = 0
    for story in documents:
        held = {what.name: who.name for what, who in holders(story.events).items()}
        for item, name in re.findall(r"Who has the (\w+ \w+) (?:now|at the end)\?\nAnswer: (\w+)", story.text):
            asked += 1
            assert held[item] == name, story
        if story.events:
            met = [(roles["A"], roles["P"]) for about, roles in questions(story.events) if about == "met"]
            assert len(set(met)) == len(met)
    assert asked > 50


def test_heroes_have_what_they_own(documents: list[Story]) -> None:
    """A story about a kite of Mia, who owns a red one, is about her red one."""
    seen = 0
    for story in documents:
        if story.topic and story.topic.hero.owns.thing is story.topic.thing:
            seen += 1
            assert story.topic.hero.owns.name in story.text
    assert seen > 0


def test_the_same_text_has_the_same_information(documents: list[Story]) -> None:
    """Two derivations of one text would mostly differ in their probability."""
    nats: dict[str, float] = {}
    again = 0
    for story in documents:
        again += story.text in nats
        assert nats.setdefault(story.text, story.nats) == pytest.approx(story.nats, abs=1e-9), story.text
    assert again > 30


def test_entropy_is_below_what_words_alone_need(documents: list[Story]) -> None:
    assert 0.08 < entropy(documents) < 0.13
    assert all(story.nats > 0 for story in documents)
