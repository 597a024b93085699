"""Harmless requests, one function a kind: a request about the world or a story, a good answer, and the task.

Every function takes a `Draw` and gives a `Turn` whose content is of the draw's split. Answers are short, in the words
of the pretraining text. Requests about stories are in `story_requests.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from minillama.miniature.chat_phrases import ANSWERS, REQUESTS
from minillama.miniature.conversation import Draw, Task, Turn, split_of
from minillama.miniature.fact_phrases import RELATIONS, TEXT, Relation
from minillama.miniature.facts import (
    CLASSES,
    COUNTED,
    DIFFERENCES,
    DWELLERS,
    ENTITIES,
    FANS,
    INHABITED,
    LOVED,
    NUMBERS,
    OF,
    SUMS,
    listed,
)
from minillama.miniature.world import (
    CHARACTERS,
    FOODS,
    ITEMS,
    PLACES,
    THINGS,
    TIMES,
    Character,
    Entity,
    Place,
    capital,
)

NAMES = frozenset(c.name.lower() for c in CHARACTERS)
# What answers a question about a relation, as a form of the entity that it is about.
_ANSWER = {
    "home": "home.name",
    "owns": "name",
    "parent": "relative",
    "child": "relative",
    "owner": "relative",
    "known for": "known_for",
}
_KINDS = frozenset(c.kind for c in CHARACTERS)
_VERBS = ("stands ", "lies ", "rises ", "goes ", "runs ", "is ", "the ", "its ")  # what an answer may say otherwise


def key(entity: Entity, relation: Relation) -> str:
    """The name that answers a question about the relation: "mill" for the home of Mia."""
    text = str(attrgetter(_ANSWER.get(relation.name, relation.name))(entity)).lower()
    for word in _VERBS:
        text = text.removeprefix(word)
    return text


def pronouns(who: Character) -> frozenset[str]:
    """What else one may call them."""
    return frozenset((who.he, who.him, who.his))


def sets(*names: object) -> tuple[frozenset[str], ...]:
    """Names that are all wanted."""
    return tuple(frozenset((str(name).lower(),)) for name in names)


# --- Facts ------------------------------------------------------------------------------------------------------------
def fact_task(entity: Entity, relation: Relation, kind: str = "fact", given: tuple[str, ...] = ()) -> Task:
    """Asks for one fact. Wrong are the same facts of others, and to name anybody whom it does not concern."""
    right = key(entity, relation)
    about = frozenset((entity.name.lower(),))
    rivals = {key(other, relation) for other in relation.about}
    if relation.name == "kind":
        rivals |= _KINDS
    if isinstance(entity, Character):
        rivals |= NAMES | {"he", "him", "his", "she", "her"}
        about |= pronouns(entity)
    else:
        about |= {"it"}
    owned = (entity.owns,) if isinstance(entity, Character) and relation.name == "owns" else ()
    return Task(
        kind,
        (frozenset((right,)),),
        rivals=frozenset(rivals) - about - {right},
        topic=about | {item.name for item in owned} | ({"it"} if owned else set()),
        subject=entity if isinstance(entity, Character) else None,
        items=owned,
        given=given,
    )


def fact(draw: Draw) -> Turn:
    """A question about a fact."""
    return ask(draw, *draw_fact(draw, lambda relation: _templates(relation.questions)))


def _templates(lines: Sequence[Sequence[str]]) -> list[str]:
    return [template for line in lines for template in line]


def draw_fact(draw: Draw, said: Callable[[Relation], Sequence[Any]]) -> tuple[Entity, Relation, Any]:
    """An entity, a relation that holds of it, and one of the ways in which the relation is `said`: a combination of the
    split. So every fact that can be said in several ways is met in training, in other words.
    """
    most = max(len(said(relation)) for relation in RELATIONS)
    while True:
        entity, relation, i = draw.content(ENTITIES, RELATIONS, range(most))
        if relation in OF[entity] and i < len(said(relation)):
            return entity, relation, said(relation)[i]


def ask(draw: Draw, entity: Entity, relation: Relation, template: str) -> Turn:
    """The question `template` about this fact."""
    roles = {relation.role: entity}
    return Turn(
        template.format(**roles),
        draw.phrase(relation.answers).format(**roles),
        fact_task(entity, relation),
    )


def ask_before(draw: Draw, last: Turn) -> Turn | None:
    """A question about the one whom `last` asks about, to come before it: one of training. None if there is no such
    question, or it is about the same.
    """
    entity = last.task.subject
    if entity is None:
        return None
    i = ENTITIES.index(entity)
    asked = [
        (relation, template)
        for relation in OF[entity]
        for k, template in enumerate(_templates(relation.questions))
        if split_of(i, RELATIONS.index(relation), k) == "train"
    ]
    turn = ask(draw, entity, *draw.pick(asked))
    return turn if turn.task.wanted != last.task.wanted else None


def about(draw: Draw) -> Turn:
    """What one knows about somebody: who they are, and one thing more."""
    A, request = draw.asked(REQUESTS["about"], CHARACTERS)
    first, *rest = OF[A]
    second = draw.pick(rest)
    roles = {"A": A, "S": A.He, "s": A.he}
    answer = " ".join(draw.phrase(relation.statements).format(**roles) for relation in (first, second))
    known = frozenset(key(A, relation) for relation in OF[A]) | {A.owns.name}
    task = Task(
        "about",
        (known, known),
        rivals=(NAMES | {"he", "him", "his", "she", "her"}) - pronouns(A) - {A.name.lower()} - known,
        topic=pronouns(A) | {A.name.lower()},
        subject=A,
        sentences=(2, 4),
    )
    return Turn(request.format(A=A), answer, task)


def rephrase(draw: Draw) -> Turn:
    """Say a fact in other words."""
    while True:
        entity, relation, first = draw_fact(draw, lambda relation: range(len(relation.statements)))
        if len(relation.statements) > 1:
            break
    second = draw.pick([i for i in range(len(relation.statements)) if i != first])
    roles: dict[str, object] = {relation.role: entity, "S": entity.name, "s": entity.name}
    text, answer = (draw.pick(relation.statements[i]).format(**roles) for i in (first, second))
    if relation.name == "owns":  # here the thing is what is said of somebody, not the question
        task = Task(
            "rephrase",
            sets(entity.name, entity.owns.name),  # type: ignore[attr-defined]
            rivals=NAMES - {entity.name.lower()},
            subject=entity,  # type: ignore[arg-type]
            items=(entity.owns,),  # type: ignore[attr-defined]
            given=(text,),
        )
    else:
        task = fact_task(entity, relation, "rephrase", given=(text,))
    return Turn(draw.phrase(REQUESTS["rephrase"]).format(text=text), answer, task)


# --- Lists and numbers ------------------------------------------------------------------------------------------------
def names(draw: Draw) -> Turn:
    """Name so many of a class."""
    (name, members), n = draw.content(CLASSES, (2, 3, 4, 5))
    left = list(members)
    drawn = [left.pop(draw.pick(range(len(left)))) for _ in range(n)]
    bare = frozenset(member.lower().split(" ", 1)[-1] for member in members)
    others = frozenset(other.lower().split(" ", 1)[-1] for _, those in CLASSES for other in those)
    return Turn(
        draw.phrase(TEXT["name some"]).format(n=NUMBERS[n], **{"class": name}),
        capital(listed(drawn)) + ".",
        Task("names", (bare,) * n, rivals=(others | NAMES) - bare, most=n),
    )


def census(draw: Draw) -> Turn:
    """Who lives somewhere, or likes a colour best; half of the time, how many that is."""
    if draw.chance(len(INHABITED) / (len(INHABITED) + len(LOVED))):
        where, request = draw.asked(TEXT["ask dwellers"], INHABITED)
        who, answer = DWELLERS[where], "dweller"
    else:
        where, request = draw.asked(TEXT["ask fans"], LOVED)
        who, answer = FANS[where], "fan"
    roles = {"P": where, "colour": where, "who": listed(who)}
    request = request.format(**roles)
    reply = draw.phrase(TEXT[f"one {answer}" if len(who) == 1 else f"{answer}s"]).format(**roles)
    wanted, rivals = sets(*who), NAMES - {c.name.lower() for c in who}
    if len(who) > 1 and draw.chance(0.5):
        request = draw.phrase(REQUESTS["count them"]).format(question=request)
        reply += f" {_counted(draw, len(who))}"
        wanted, rivals = (*wanted, *sets(NUMBERS[len(who)])), rivals | (set(NUMBERS) - {NUMBERS[len(who)]})
    return Turn(request, reply, Task("census", wanted, rivals=rivals, sentences=(1, 3)))


def _counted(draw: Draw, n: int) -> str:
    """ "That makes two."; without the question that one of the phrases begins with."""
    return draw.phrase(TEXT["how many"]).format(n=NUMBERS[n]).removeprefix("How many is that? ")


def total(draw: Draw) -> Turn:
    """A sum or a difference of small numbers."""
    adds = draw.chance(0.5)
    A, (n, m) = draw.content(CHARACTERS, SUMS if adds else DIFFERENCES)
    B = draw.pick([c for c in CHARACTERS if c is not A])
    result = NUMBERS[n + m if adds else n - m]
    roles = {"A": A, "B": B, "food": draw.pick(COUNTED), "P": draw.pick(PLACES)}
    lines = (
        draw.phrase(TEXT["has"]).format(n=NUMBERS[n], **roles),
        draw.phrase(TEXT["more" if adds else "fewer"]).format(m=NUMBERS[m], **roles),
        draw.phrase(REQUESTS["ask sum"]).format(**roles),
    )
    rivals = (NAMES | set(NUMBERS) | set(COUNTED)) - {A.name.lower(), result, roles["food"]}
    answers = ("{A} has {n} {food}.", "Now {A} has {n} {food}.", "So {A.he} has {n} {food} now.")
    task = Task(
        "sum",
        sets(result),
        rivals=frozenset(rivals),
        topic=pronouns(A) | {A.name.lower(), str(roles["food"])},
        subject=A,
    )
    return Turn(" ".join(lines), draw.pick(answers).format(n=result, **roles), task)


# --- What to do -------------------------------------------------------------------------------------------------------
def doings(draw: Draw) -> Turn:
    """What one can do somewhere."""
    where, request = draw.asked(TEXT["ask doing"], PLACES)
    roles = {"P": where, "doing": draw.pick(where.doings)[0]}
    task = Task(
        "doings",
        (frozenset(doing for doing, _ in where.doings),),
        rivals=frozenset(doing for place in PLACES if place is not where for doing, _ in place.doings),
        topic=frozenset((where.name, "they", "you")),
    )
    return Turn(request.format(**roles), draw.phrase(TEXT["answer doing"]).format(**roles), task)


def how_to(draw: Draw) -> Turn:
    """Where one can do something."""
    where, i, request = draw.asked(REQUESTS["how to"], PLACES, range(3))
    roles = {"P": where, "doing": where.doings[i][0]}
    answers = ("Go {P.to} and {doing}.", "You can {doing} {P.at}.", "{P.At} you can {doing}.")
    task = Task("how to", sets(where.name), rivals=places_but(where), topic=frozenset((where.doings[i][0], "there")))
    return Turn(request.format(**roles), draw.pick(answers).format(**roles), task)


def bring(draw: Draw) -> Turn:
    """How a thing gets to a place."""
    X, P = draw.content(ITEMS, PLACES)
    task = Task("bring", sets(X.noun, P.name), rivals=places_but(P) | NAMES, topic=frozenset(("it",)), items=(X,))
    return _simple(draw, "bring", task, X=X, P=P)


def present(draw: Draw) -> Turn:
    """What makes somebody happy."""
    A, request = draw.asked(REQUESTS["present"], CHARACTERS)
    likes = draw.pick([relation.answers for relation in OF[A] if relation.name in ("food", "hobby")])
    answer = draw.phrase([*ANSWERS["present"], *likes]).format(A=A)
    right = {A.food, A.hobby, A.colour, A.owns.name}
    rivals = {value for c in CHARACTERS for value in (c.food, c.hobby, c.colour)} | NAMES
    task = Task(
        "present",
        (frozenset(right),),
        rivals=frozenset(rivals) - right - {A.name.lower(), A.friend.lower()},
        topic=pronouns(A) | {A.name.lower()},
        subject=A,
    )
    return Turn(request.format(A=A), answer, task)


def kind_word(draw: Draw) -> Turn:
    """Something nice to say to somebody."""
    (A,) = draw.content(CHARACTERS)
    nice = frozenset(("good", "like", "kind", "nice", "dear", "love"))
    task = Task("kind word", (*sets(A.name), nice), rivals=NAMES - {A.name.lower()}, subject=A, items=(A.owns,))
    return _simple(draw, "kind word", task, A=A, X=A.owns)


def eat(draw: Draw) -> Turn:
    """Something else to eat."""
    time, dislike = draw.content(TIMES, FOODS)
    others = frozenset(FOODS) - {dislike}
    task = Task("eat", (others,), rivals=NAMES | {dislike}, topic=frozenset(("you",)))
    request = draw.phrase(REQUESTS["eat"]).format(T=time, F=dislike)
    return Turn(request, draw.phrase(ANSWERS["eat"]).format(F=draw.pick(sorted(others))), task)


def need(draw: Draw) -> Turn:
    """What helps somebody who is in a trouble."""
    B, thing = draw.content(CHARACTERS, THINGS)
    trouble = thing.trouble.format(he=B.he, him=B.him, his=B.his)
    request = draw.phrase(REQUESTS["need"]).format(B=B, trouble=trouble, Trouble=capital(trouble))
    relation = OF[thing][0]
    task = Task(
        "need",
        sets(thing.name),
        rivals=frozenset(t.name for t in THINGS if t is not thing) | NAMES - {B.name.lower()},
        topic=pronouns(B) | {B.name.lower()},
        subject=B,
    )
    answer = draw.pick(relation.answers[0]).format(X=thing)
    return Turn(request, answer, task)


def places_but(where: Place) -> frozenset[str]:
    """The names of all other places."""
    return frozenset(place.name for place in PLACES if place is not where)


def _simple(draw: Draw, phrase: str, task: Task, **roles: object) -> Turn:
    """Request and answer are phrases of one name."""
    return Turn(draw.phrase(REQUESTS[phrase]).format(**roles), draw.phrase(ANSWERS[phrase]).format(**roles), task)
