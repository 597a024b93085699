"""Texts that state the world's facts: portraits, places, questions with answers, talks, lists and sums.

A `Page` is such a text as it is being written. It notes what it says, and in which words, because some combinations are
held out (`chooser.held_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillama.miniature.chooser import Chooser, held_out
from minillama.miniature.fact_phrases import RELATIONS, TEXT, Lines, Relation
from minillama.miniature.world import (
    ANIMALS,
    CHARACTERS,
    CHILDREN,
    COLOURS,
    FOODS,
    PLACES,
    THINGS,
    TIMES,
    Character,
    Entity,
    Place,
    capital,
)

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTED = ("apples", "plums", "nuts", "cookies", "berries", "eggs")  # what sums count
ENTITIES: tuple[Entity, ...] = (*CHARACTERS, *PLACES, *THINGS)
FACTS = tuple((entity, relation) for relation in RELATIONS for entity in relation.about)
OF = {entity: tuple(r for e, r in FACTS if e is entity) for entity in ENTITIES}
DWELLERS = {place: tuple(c for c in CHARACTERS if c.home is place) for place in PLACES}
FANS = {colour: tuple(c for c in CHARACTERS if c.colour == colour) for colour in COLOURS}
_POSITION = {entity: i for i, entity in enumerate(ENTITIES)}
_RELATION = {relation.name: i for i, relation in enumerate(RELATIONS)}


def listed(names: Sequence[object]) -> str:
    """Mia, Ben and Tom."""
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last


class Page:
    """A text of facts as it is being written: its choices, and whether any of what it says is held out."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.held_out = False

    def fact(self, lines: Lines, entity: Entity, relation: Relation, pronoun: bool = False) -> str:
        """The fact in one of the ways of `lines`; with `pronoun`, half of the time she or he instead of the name."""
        line = self.chooser.pick(range(len(lines)))
        if len(lines) > 1:  # else the fact itself would be held out
            self.content(_POSITION[entity], _RELATION[relation.name], line, one_in=60)  # a page has several
        template = self.chooser.pick(lines[line])
        forms: dict[str, object] = {relation.role: entity}
        if "{S}" in template or "{s}" in template:
            assert isinstance(entity, Character)
            short = pronoun and self.chooser.chance(0.5)
            forms["S"], forms["s"] = (entity.He, entity.he) if short else (entity.name, entity.name)
        return template.format(**forms)

    def content(self, i: int, j: int, k: int, one_in: int = 20) -> None:
        """Note what the page says; if any of it is held out, the page is."""
        self.held_out = self.held_out or held_out(i, j, k, one_in)

    def text(self, name: str, **roles: Any) -> str:
        """A phrase of `TEXT`; a role given as a tuple is drawn from it if the phrase speaks of it."""
        template = self.chooser.phrase(TEXT[name])
        for role, entity in roles.items():
            if type(entity) is tuple and "{" + role in template:
                roles[role] = self.chooser.pick(entity)
        return template.format(**roles)

    def some(self, options: Sequence, n: int) -> list:
        """n of the options, in the order in which they were drawn."""
        left, drawn = list(options), []
        for _ in range(n):
            drawn.append(self.chooser.pick(left))
            left.remove(drawn[-1])
        return drawn


def portrait(page: Page) -> str:
    """Who somebody is, and three to six facts more about them."""
    who = page.chooser.pick(CHARACTERS)
    first, *rest = OF[who]
    lines = [page.fact(first.statements, who, first)]
    for relation in page.some(rest, page.chooser.pick((3, 4, 5, 6))):
        lines.append(page.fact(relation.statements, who, relation, pronoun=True))
    return " ".join(lines)


def place(page: Page) -> str:
    """Where a place lies, who lives there and what one does there."""
    where = page.chooser.pick(PLACES)
    lines = [page.fact(relation.statements, where, relation) for relation in page.some(OF[where], 2)]
    if DWELLERS[where] and page.chooser.chance(0.6):
        lines.append(dwellers(page, where))
    doings = page.some(range(len(where.doings)), page.chooser.pick((1, 2, 3)))
    page.content(PLACES.index(where), doings[0], len(doings))
    lines += [page.text("doing", P=where, doing=where.doings[doing][0]) for doing in doings]
    return " ".join(lines)


def dwellers(page: Page, where: Place) -> str:
    """Who lives there."""
    who = DWELLERS[where]
    return page.text("dwellers" if len(who) > 1 else "one dweller", who=listed(who), P=where)


def quiz(page: Page) -> str:
    """Two to five questions, each with its answer: one after the other, or each on a line that is marked."""
    pairs = []
    for entity, relation in page.some(FACTS, page.chooser.pick((2, 3, 4, 5))):
        question = page.fact(relation.questions, entity, relation)
        pairs.append((question, page.chooser.phrase(relation.answers).format(**{relation.role: entity})))
    return asked(page, pairs)


def asked(page: Page, pairs: Sequence[tuple[str, str]]) -> str:
    """Questions and answers, as running text or as marked lines."""
    if page.chooser.chance(0.5):
        return " ".join(f"{question} {answer}" for question, answer in pairs)
    return "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)


def talk(page: Page) -> str:
    """Two meet, and one asks the other about themselves."""
    asks, answers = page.some(CHARACTERS, 2)
    lines = [
        f"{asks}: {page.text('hello', A=answers, T=TIMES)}",
        f"{answers}: {page.text('hello back', A=asks, T=TIMES)}",
    ]
    for relation in page.some([r for r in OF[answers] if r.own], page.chooser.pick((2, 3, 4))):
        lines.append(f"{asks}: {page.fact(relation.own_question, answers, relation)}")
        lines.append(f"{answers}: {page.chooser.phrase(relation.own).format(A=answers)}")
    lines.append(f"{asks}: {page.text('goodbye', A=answers)}")
    return "\n".join(lines)


def census(page: Page) -> str:
    """Who lives somewhere, or who likes a colour, and perhaps how many that is."""
    if page.chooser.chance(0.6):
        where = page.chooser.pick(INHABITED)
        position, who = INHABITED.index(where), DWELLERS[where]
        question, answer = page.text("ask dwellers", P=where), dwellers(page, where)
    else:
        colour = page.chooser.pick(LOVED)
        position, who = LOVED.index(colour), FANS[colour]
        question = page.text("ask fans", colour=colour)
        answer = page.text("fans" if len(who) > 1 else "one fan", who=listed(who), colour=colour)
    counted = len(who) > 1 and page.chooser.chance(0.5)
    page.content(position, len(who), counted)
    if counted:
        answer += " " + page.text("how many", n=NUMBERS[len(who)])
    return asked(page, [(question, answer)])


def names(page: Page) -> str:
    """Some members of a class, in any order."""
    name, members = page.chooser.pick(CLASSES)
    n = page.chooser.pick((2, 3, 4, 5))
    drawn = page.some(range(len(members)), n)
    page.content(drawn[0], drawn[1], n)
    question = page.text("name some", n=NUMBERS[n], **{"class": name})
    return asked(page, [(question, page.text("named", who=capital(listed([members[i] for i in drawn]))))])


def total(page: Page) -> str:
    """A sum or a difference of small numbers, told as a story."""
    a, b = page.some(range(len(CHARACTERS)), 2)
    food = page.chooser.pick(COUNTED)
    A, B = CHARACTERS[a], CHARACTERS[b]
    adds = page.chooser.chance(0.5)
    n, m = page.chooser.pick(SUMS if adds else DIFFERENCES)
    page.content(a, n, m)
    roles = {"A": A, "B": B, "food": food, "P": PLACES}
    lines = [
        page.text("has", n=NUMBERS[n], **roles),
        page.text("more" if adds else "fewer", m=NUMBERS[m], **roles),
        page.text("sum", n=NUMBERS[n + m if adds else n - m], **roles),
    ]
    return " ".join(lines)


INHABITED = tuple(place for place in PLACES if DWELLERS[place])
LOVED = tuple(colour for colour in COLOURS if FANS[colour])
CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("children", tuple(c.name for c in CHILDREN)),
    ("animals", tuple(c.name for c in ANIMALS)),
    ("places", tuple(p.the for p in PLACES)),
    ("things", tuple(t.a for t in THINGS)),
    ("colours", COLOURS),
    ("foods", FOODS),
)
SUMS = tuple((n, m) for n in range(2, 9) for m in range(1, 9) if n + m <= 10)
DIFFERENCES = tuple((n, m) for n in range(3, 11) for m in range(1, 9) if n - m >= 2)

KINDS: dict[str, Callable[[Page], str]] = {
    "portrait": portrait,
    "place": place,
    "quiz": quiz,
    "talk": talk,
    "census": census,
    "names": names,
    "sum": total,
}
