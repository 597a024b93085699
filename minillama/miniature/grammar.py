"""A recogniser of the world's language: is a sentence one that the grammar can produce, and is what it says true?

It is compiled from the very phrases that the generators use. A sentence is grammatical if it is an instance of one of
their sentences, each slot filled with a word of its class, and all slots of one role with forms of one and the same
entity ("Mia ... her", "the red kite ... the kite"). It says something true if, where a template speaks of a fact of the
world ({A.home.at}), the entity is one of which this is a fact. Nothing is said about how sentences follow each other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from operator import attrgetter

from minillama.miniature.chat_phrases import ANSWERS
from minillama.miniature.fact_phrases import RELATIONS, TEXT
from minillama.miniature.facts import CLASSES, COUNTED, NUMBERS
from minillama.miniature.story_phrases import STORY
from minillama.miniature.world import (
    CHARACTER,
    CHARACTERS,
    COLOURS,
    FOODS,
    PLACES,
    THINGS,
    TIMES,
    WEATHERS,
    Character,
    Entity,
    Item,
    capital,
)

# Any colour will do for grammar: a green kite is no thing of this world, but it is a phrase of its language.
_ANY_ITEM = tuple(Item(f"{colour} {thing}", colour, thing) for thing in THINGS for colour in COLOURS)
_ROLES: dict[str, tuple[Entity, ...]] = {
    **dict.fromkeys(("A", "B", "C"), CHARACTERS),
    **dict.fromkeys(("X", "Y"), _ANY_ITEM),
    **dict.fromkeys(("P", "Q"), PLACES),
    "W": WEATHERS,
}
_PRONOUNS = [{"he": "he", "him": "him", "his": "his"}, {"he": "she", "him": "her", "his": "her"}]
_TROUBLES = {thing.trouble.format(**forms) for thing in THINGS for forms in _PRONOUNS}
_MEMBERS = {name for _, members in CLASSES for name in members} | {c.name for c in CHARACTERS}
_WORDS: dict[str, set[str]] = {
    "T": set(TIMES),
    "F": set(FOODS),
    "did": {did for place in PLACES for _, did in place.doings},
    "doing": {doing for place in PLACES for doing, _ in place.doings},
    "spot": {spot for place in PLACES for spot in place.spots},
    "Spot": {spot for place in PLACES for spot in place.Spots},
    "trouble": _TROUBLES,
    "Trouble": set(map(capital, _TROUBLES)),
    "help": {thing.help.format(**forms) for thing in THINGS for forms in _PRONOUNS},
    "n": set(NUMBERS),
    "m": set(NUMBERS),
    "food": set(COUNTED),
    "class": {name for name, _ in CLASSES},
    "colour": set(COLOURS),
}
# Forms that state a fact. All others are forms of the name: they must agree, and say nothing about the world.
_FACTS = frozenset(
    form
    for forms in (
        "home.at home.At home.the home.to owns owns.a owns.the owns.The hobby Hobby food colour friend fear",
        "kind a_kind age job work family relative lies known_for use thing.play",
    )
    for form in forms.split()
)
_SLOT = re.compile(r"\{([^}]*)\}")
_END = re.compile(r"(?<=[.!?])\s+(?=[\"A-Z{])|(?<=[.!?]\")\s+(?=[\"A-Z{])")
_SPEAKER = re.compile(rf"^({'|'.join(c.name for c in CHARACTERS)}|Question|Answer): ")


@dataclass(frozen=True)
class Reading:
    """One way in which a sentence is an instance of a template.

    named: of each role, the entities whose forms all its slots can be. valid: those of them of whom it is also true.
    """

    named: dict[str, frozenset[Entity]]
    valid: dict[str, frozenset[Entity]]
    states: bool  # whether the template speaks of a fact


@dataclass(frozen=True)
class _Pattern:
    """A sentence of a template, as a regular expression that finds what may stand in its slots."""

    template: str
    roles: tuple[tuple[str, tuple[Entity, ...]], ...]  # which role is played by whom

    @cached_property  # not a cache beside it, which would hash the roles at every look
    def compiled(self) -> tuple[re.Pattern[str], list[str]]:
        """The expression, and which slots its groups are."""
        pieces = _SLOT.split(self.template)
        shapes = [re.escape(x) if i % 2 == 0 else f"({self.shape(x)})" for i, x in enumerate(pieces)]
        return re.compile("".join(shapes)), pieces[1::2]

    def forms(self, slot: str) -> dict[str, frozenset[Entity]]:
        """What may fill the slot, and whose form each of these is (nobody's, if it is a word)."""
        if slot in _WORDS:
            return dict.fromkeys(_WORDS[slot], frozenset())
        if slot in ("S", "s"):
            pronouns = _forms(CHARACTERS, "He" if slot == "S" else "he")
            return {**_forms(CHARACTERS, "name"), **pronouns}
        role, _, path = slot.partition(".")
        return _forms(dict(self.roles)[role], path or "name")

    def shape(self, slot: str) -> str:
        """What the filling looks like: so many words, if all have the same number. `read` checks which words."""
        words = r"[\w'-]+"
        if slot == "who":
            return rf"{words}(?:,? {words})*"
        counts = {len(form.split()) for form in self.forms(slot)}
        return rf"{words}(?: {words}){{{counts.pop() - 1}}}" if len(counts) == 1 else rf"{words}(?: {words})*?"

    def first_words(self) -> set[str]:
        """The words with which its instances can begin."""
        before, *rest = _SLOT.split(self.template, maxsplit=1)
        if before.strip('"') or not rest:
            return {_first_word(before)}
        if rest[0] == "who":
            return {_first_word(capital(name)) for name in _MEMBERS}
        return {_first_word(before + form) for form in self.forms(rest[0])}


@cache
def _forms(entities: tuple[Entity, ...], path: str) -> dict[str, frozenset[Entity]]:
    owners: dict[str, set[Entity]] = defaultdict(set)
    for entity in entities:
        owners[str(attrgetter(path)(entity))].add(entity)
    return {form: frozenset(those) for form, those in owners.items()}


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0].strip('".,!?:')


@cache
def _patterns() -> dict[str, list[_Pattern]]:
    """All sentences of all phrases, by the words that they can begin with."""
    story = tuple(_ROLES.items())
    sources = [(story, template) for name in STORY if name != "title" for template in _templates(STORY[name])]
    sources += [(story, template) for lines in (*TEXT.values(), *ANSWERS.values()) for template in _templates(lines)]
    for relation in RELATIONS:
        phrases = (relation.statements, relation.questions, relation.answers, relation.own_question, relation.own)
        about = tuple({**_ROLES, relation.role: relation.about}.items())
        sources += [(about, template) for lines in phrases for template in _templates(lines)]
    found: dict[str, dict[_Pattern, None]] = defaultdict(dict)
    for roles, template in sources:
        for sentence in _END.split(template):
            pattern = _Pattern(sentence, roles)
            for word in pattern.first_words():
                found[word][pattern] = None
    return {word: list(patterns) for word, patterns in found.items()}


def _templates(lines: list[list[str]]) -> list[str]:
    return [template for line in lines for template in line]


def _read(pattern: _Pattern, sentence: str) -> Reading | None:
    regex, slots = pattern.compiled
    match = regex.fullmatch(sentence)
    if match is None:
        return None
    named: dict[str, frozenset[Entity]] = {}
    valid: dict[str, frozenset[Entity]] = {}
    states = False
    for slot, form in zip(slots, match.groups(), strict=True):
        if slot == "who":
            if not all(name in _MEMBERS or name[0].lower() + name[1:] in _MEMBERS for name in _names(form)):
                return None
            continue
        fits = pattern.forms(slot).get(form)
        if fits is None:
            return None
        if slot in _WORDS:
            continue
        role, _, path = slot.partition(".")
        role = "A" if slot in ("S", "s") else role
        valid[role] = valid.get(role, fits) & fits
        if path in _FACTS:
            states = True
        else:
            named[role] = named.get(role, fits) & fits
            if not named[role]:
                return None
    return Reading(named, valid, states)


def _names(listed: str) -> list[str]:
    return re.split(r", | and ", listed)


@lru_cache(100_000)
def readings(sentence: str) -> tuple[Reading, ...]:
    """Every way in which the grammar can produce the sentence; none if it cannot."""
    word = _first_word(sentence) if sentence.strip('" ') else ""
    found = (_read(pattern, sentence) for pattern in _patterns().get(word, ()))
    return tuple(reading for reading in found if reading is not None)


def grammatical(sentence: str) -> bool:
    """Whether the grammar can produce the sentence."""
    return bool(readings(sentence))


def true(sentence: str, about: Character | None = None) -> bool | None:
    """Whether what the sentence says of the world is so; None if it says nothing, asks, or is not grammatical.

    about: whom "she", "he" or "I" means.
    """
    if sentence.endswith("?"):
        return None
    verdicts = [_holds(reading, about) for reading in readings(sentence) if reading.states]
    return any(verdicts) if verdicts else None


def _holds(reading: Reading, about: Character | None) -> bool:
    for role, entities in reading.valid.items():
        named = reading.named.get(role)
        if role == "A" and about is not None and (named is None or (len(named) > 1 and about in named)):
            entities = entities & {about}
        if not entities:
            return False
    return True


@dataclass(frozen=True)
class Examination:
    """What the recogniser says of a text: counts of sentences, and those that are wrong."""

    sentences: int
    ungrammatical: tuple[str, ...]
    statements: int  # sentences that speak of facts of the world
    untrue: tuple[str, ...]

    @property
    def grammatical(self) -> bool:
        """Whether all of the text is."""
        return self.sentences > 0 and not self.ungrammatical


def sentences(text: str) -> list[tuple[Character | None, str]]:
    """The sentences of a text, each with who says it where a line begins with a speaker; a title counts as one."""
    found: list[tuple[Character | None, str]] = []
    for line in text.split("\n"):
        marked = _SPEAKER.match(line)
        speaker = CHARACTER.get(marked.group(1)) if marked else None
        rest = line[marked.end() :] if marked else line
        found += [(speaker, sentence) for sentence in _END.split(rest.strip()) if sentence]
    return found


def examine(text: str, about: Character | None = None) -> Examination:
    """Sentence by sentence: is it grammatical, and is it true? A speaker's "I" is the speaker; "she" and "he" are the
    subject that was named last, and before any is named, `about`.
    """
    wrong, untrue, statements = [], [], 0
    found = sentences(text)
    for i, (speaker, sentence) in enumerate(found):
        if i == 0 and len(found) > 1 and _is_title(sentence):
            continue
        if not grammatical(sentence):
            wrong.append(sentence)
        verdict = true(sentence, speaker or about)
        if verdict is not None:
            statements += 1
            if not verdict:
                untrue.append(sentence)
        about = _subject(sentence) or about
    return Examination(len(found), tuple(wrong), statements, tuple(untrue))


def _subject(sentence: str) -> Character | None:
    """Whom the sentence is about, if it says so by name and all readings agree."""
    named = {reading.named.get("A", frozenset()) for reading in readings(sentence)}
    if len(named) != 1 or len(only := named.pop()) != 1:
        return None
    (subject,) = only
    return subject if isinstance(subject, Character) else None


def instance(sentence: str, *phrases: str) -> bool:
    """Whether the sentence is one of these phrases of the stories, such as "end found"."""
    return any(_read(pattern, sentence) is not None for pattern in _story_patterns(phrases))


@cache
def _story_patterns(phrases: tuple[str, ...]) -> list[_Pattern]:
    templates = (template for name in phrases for template in _templates(STORY[name]))
    found = (_Pattern(sentence, tuple(_ROLES.items())) for template in templates for sentence in _END.split(template))
    return list(dict.fromkeys(found))


def _is_title(line: str) -> bool:
    return instance(line, "title")
