"""The world as objects: the entities of the tables in `valley.py`, each with the forms that sentences need.

An entity knows how it is spoken of ("in the mill", "her"), so that a phrase may say `{A} lives {A.home.at}` and be read
as English. Everything here is fixed; stories draw what happens, and never contradict it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from minillama.miniature import valley

COLOURS = ("red", "blue", "green", "yellow", "white", "brown", "black", "silver", "golden", "pink")
FOODS = ("bread", "cheese", "honey", "soup", "cake", "milk", "berries", "nuts", "plums", "cookies")
TIMES = ("morning", "afternoon", "evening")


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[0].upper() + text[1:]


def article(noun: str) -> str:
    """The noun after a or an."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _form() -> str:
    """A field that follows from the others."""
    return field(init=False)


@dataclass(frozen=True, eq=False, repr=False)
class Entity:
    """Anything with a name. Two entities are the same only if they are one object."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _derive(self, **forms: object) -> None:
        """Set forms that follow from the fields."""
        for name, form in forms.items():
            object.__setattr__(self, name, form)


@dataclass(frozen=True, eq=False, repr=False)
class Place(Entity):
    """A place. `lies` and `known_for` complete "The mill ..." and "... is known for ..."; `doings` are what one does
    there, as (present, past); `spots` are where a thing may lie.
    """

    preposition: str
    lies: str
    known_for: str
    doings: tuple[tuple[str, str], ...]
    spots: tuple[str, ...]
    Spots: tuple[str, ...] = field(init=False)
    indoors: bool = field(init=False)
    the: str = _form()
    The: str = _form()
    at: str = _form()
    At: str = _form()
    to: str = _form()

    def __post_init__(self) -> None:
        self._derive(the=f"the {self.name}", The=f"The {self.name}", to=f"to the {self.name}")
        self._derive(at=f"{self.preposition} {self.the}", At=f"{capital(self.preposition)} {self.the}")
        self._derive(Spots=tuple(map(capital, self.spots)), indoors=self.name in valley.INDOORS)


@dataclass(frozen=True, eq=False, repr=False)
class Thing(Entity):
    """A kind of thing. `use` completes "A kite is for ..."; `slips` is how one loses it: wind, roll, pocket or left;
    `trouble`, `help` and `play` are templates about the one in trouble: {he}, {him}, {his}.
    """

    colours: tuple[str, ...]
    use: str
    slips: str
    trouble: str
    help: str
    play: str
    a: str = _form()
    A: str = _form()

    def __post_init__(self) -> None:
        self._derive(a=article(self.name), A=capital(article(self.name)))


@dataclass(frozen=True, eq=False, repr=False)
class Item(Entity):
    """One thing of one colour, such as "red kite"."""

    colour: str
    thing: Thing
    Colour: str = _form()
    noun: str = _form()
    a: str = _form()
    A: str = _form()
    the: str = _form()
    The: str = _form()

    def __post_init__(self) -> None:
        self._derive(noun=self.thing.name, Colour=capital(self.colour), a=f"a {self.name}", A=f"A {self.name}")
        self._derive(the=f"the {self.name}", The=f"The {self.name}")


@dataclass(frozen=True, eq=False, repr=False)
class Character(Entity):
    """Someone who lives in the valley: a child has an age, a grown-up a job, an animal neither ("").

    family, relative: father and Hugo for a child; father and Mia for a grown-up, who is hers; owner and Mia for a pet.
    """

    kind: str
    he: str
    home: Place
    age: str
    job: str
    work: str
    family: str
    relative: str
    hobby: str
    food: str
    colour: str
    owns: Item
    friend: str
    fear: str
    full: str = _form()
    a_kind: str = _form()
    him: str = _form()
    his: str = _form()
    He: str = _form()
    His: str = _form()
    Hobby: str = _form()

    def __post_init__(self) -> None:
        him, his = ("him", "his") if self.he == "he" else ("her", "her")
        title = "" if self.age else self.job or self.kind
        self._derive(full=f"{self.name} the {title}" if title else self.name, Hobby=capital(self.hobby))
        self._derive(a_kind=article(self.kind), him=him, his=his, He=capital(self.he), His=capital(his))


@dataclass(frozen=True, eq=False, repr=False)
class Weather(Entity):
    """`name` goes before "morning"; `clause` says what one sees."""

    clause: str
    Clause: str = _form()

    def __post_init__(self) -> None:
        self._derive(Clause=capital(self.clause))


def _rows(table: str) -> Iterator[list[str]]:
    """The rows of a table below its head, "-" as ""."""
    for line in table.strip().splitlines()[1:]:
        yield [cell.strip().replace("-", "", cell.strip() == "-") for cell in line.split("|")]


def _doing(text: str) -> tuple[str, str]:
    """("watch the wheel", "watched the wheel") of "watch/watched the wheel"."""
    verbs, rest = text.split(" ", 1)
    now, then = verbs.split("/")
    return f"{now} {rest}", f"{then} {rest}"


def _places() -> Iterator[Place]:
    tables = zip(_rows(valley.PLACES), _rows(valley.DOINGS), _rows(valley.SPOTS), strict=True)
    for (name, preposition, lies, known_for), (_, doings), (_, spots) in tables:
        can_do = tuple(_doing(doing) for doing in doings.split("; "))
        yield Place(name, preposition, lies, known_for, can_do, tuple(spots.split("; ")))


def _things() -> Iterator[Thing]:
    for (name, colours, use, slips), (_, *deeds) in zip(_rows(valley.THINGS), _rows(valley.DEEDS), strict=True):
        yield Thing(name, tuple(colours.split(", ")), use, slips, *deeds)


def _characters() -> Iterator[Character]:
    for row, (_, *tastes) in zip(_rows(valley.WHO), _rows(valley.TASTES), strict=True):
        name, kind, he, home, age, job, work, tie = row
        family, _, relative = tie.partition(" ")
        hobby, food, colour, owns, friend, fear = tastes
        place = next(place for place in PLACES if place.name == home)
        item = next(item for item in ITEMS if item.name == owns)
        likes = (hobby, food, colour, item, friend, fear)
        yield Character(name, kind, he, place, age, job, work, family, relative, *likes)


PLACES = tuple(_places())
INDOORS = tuple(place for place in PLACES if place.indoors)
OUTDOORS = tuple(place for place in PLACES if not place.indoors)
THINGS = tuple(_things())
ITEMS = tuple(Item(f"{colour} {thing}", colour, thing) for thing in THINGS for colour in thing.colours)
ITEM = {(item.colour, item.thing): item for item in ITEMS}
CHARACTERS = tuple(_characters())
CHILDREN = tuple(c for c in CHARACTERS if c.age)
GROWN_UPS = tuple(c for c in CHARACTERS if c.job)
ANIMALS = tuple(c for c in CHARACTERS if not c.age and not c.job)
HEROES = CHILDREN + ANIMALS  # whom stories are about; the grown-ups help
CHARACTER = {c.name: c for c in CHARACTERS}
WEATHERS = tuple(Weather(*row) for row in _rows(valley.WEATHERS))
