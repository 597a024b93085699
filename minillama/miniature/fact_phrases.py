"""The words of the facts: for each relation, how it is stated, asked for and answered, and how one says it of oneself.

Notation and slots as in `story_phrases.py`; here {A}, {P} and {X} are the character, place or thing that the fact is
about, and {A.food}, {P.lies}, {X.use} the fact. A sentence is true if the world fills its slots the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillama.miniature.chooser import phrases
from minillama.miniature.world import ANIMALS, CHARACTERS, CHILDREN, GROWN_UPS, PLACES, THINGS, Entity

Lines = list[list[str]]


@dataclass(frozen=True)
class Relation:
    """One kind of fact, whom it holds of, and its phrases. `own` is what they say themselves: "I live in the mill"."""

    name: str
    role: str  # A, P or X
    about: tuple[Entity, ...]
    statements: Lines
    questions: Lines
    answers: Lines
    own_question: Lines
    own: Lines


def _relation(name: str, role: str, about: tuple, text: str) -> Relation:
    """`text`: a line for each phrase, marked = statement, ? question, > answer, you? question to oneself, I answer."""
    marks = {"=": "", "?": "", ">": "", "you?": "", "I": ""}
    for line in text.strip().splitlines():
        mark, phrase = line.split(maxsplit=1)
        marks[mark] += phrase + "\n"
    return Relation(name, role, about, *(phrases(marks[mark]) for mark in marks))


_OWNED = tuple(c for c in ANIMALS if c.relative)

RELATIONS: tuple[Relation, ...] = (
    _relation(
        "kind",
        "A",
        CHILDREN + ANIMALS,
        """
        = {A} is {A.a_kind}.
        ? (What|Who) is {A}?
        > {A} is {A.a_kind}.
        you? (What|Who) are you?
        I I am {A}, and I am {A.a_kind}.
        """,
    ),
    _relation(
        "age",
        "A",
        CHILDREN,
        """
        = {S} is {A.age} years old.
        = {S} is {A.age}.
        ? How old is {A}?
        > {A} is {A.age} years old.
        > {A.He} is {A.age}.
        you? How old are you?
        I I am {A.age} years old.
        I I am {A.age}.
        """,
    ),
    _relation(
        "job",
        "A",
        GROWN_UPS,
        """
        = {A} is the {A.job}.
        = The {A.job} is called {A}.
        ? What is the work of {A}?
        ? Who is {A}?
        > {A} is the {A.job}.
        you? What is your work?
        I I am the {A.job}.
        """,
    ),
    _relation(
        "work",
        "A",
        GROWN_UPS,
        """
        = {S} {A.work}.
        = Every day {s} {A.work}.
        ? What does {A} do (all|every) day?
        > {A} {A.work}.
        > {A.He} {A.work}.
        """,
    ),
    _relation(
        "home",
        "A",
        CHARACTERS,
        """
        = {S} lives {A.home.at}.
        = {A.His} home is {A.home.the}.
        = {A.home.At} lives {A}.
        ? Where does {A} live?
        ? Where is the home of {A}?
        > {A} lives {A.home.at}.
        > {A.He} lives {A.home.at}.
        you? Where do you live?
        you? Where is your home?
        I I live {A.home.at}.
        I My home is {A.home.the}.
        """,
    ),
    _relation(
        "hobby",
        "A",
        CHARACTERS,
        """
        = {S} likes {A.hobby}.
        = {S} loves {A.hobby}.
        = {A.Hobby} makes {A.him} happy.
        ? What does {A} like?
        ? What makes {A} happy?
        > {A} likes {A.hobby}.
        > {A.He} loves {A.hobby}.
        you? What do you like?
        I I like {A.hobby}.
        I I love {A.hobby}.
        """,
    ),
    _relation(
        "food",
        "A",
        CHARACTERS,
        """
        = {A.His} favourite food is {A.food}.
        = {S} likes {A.food} more than any other food.
        = Nothing tastes as good to {A} as {A.food}.
        ? What is the favourite food of {A}?
        ? What food does {A} like best?
        > {A} likes {A.food} best.
        > The favourite food of {A} is {A.food}.
        you? What is your favourite food?
        you? What food do you like best?
        I I like {A.food} best.
        I My favourite food is {A.food}.
        """,
    ),
    _relation(
        "colour",
        "A",
        CHARACTERS,
        """
        = {A.His} favourite colour is {A.colour}.
        = The colour {s} likes best is {A.colour}.
        ? What is the favourite colour of {A}?
        ? Which colour does {A} like best?
        > {A} likes {A.colour} best.
        > The favourite colour of {A} is {A.colour}.
        you? What is your favourite colour?
        you? Which colour do you like best?
        I I like {A.colour} best.
        I My favourite colour is {A.colour}.
        """,
    ),
    _relation(
        "owns",
        "A",
        CHARACTERS,
        """
        = {S} has {A.owns.a}.
        = {A.owns.The} belongs to {A}.
        = {S} takes good care of {A.his} {A.owns}.
        ? Whose is {A.owns.the}?
        ? Who has {A.owns.a}?
        > It belongs to {A}.
        > {A.owns.The} belongs to {A}.
        > {A} has {A.owns.a}.
        you? What do you have?
        I I have {A.owns.a}.
        I {A.owns.The} is mine.
        """,
    ),
    _relation(
        "friend",
        "A",
        CHARACTERS,
        """
        = {A.His} best friend is {A.friend}.
        = {S} and {A.friend} are best friends.
        = {S} often plays with {A.friend}.
        ? Who is the best friend of {A}?
        > {A.friend} is the best friend of {A}.
        > {A.His} best friend is {A.friend}.
        you? Who is your best friend?
        I {A.friend} is my best friend.
        I My best friend is {A.friend}.
        """,
    ),
    _relation(
        "fear",
        "A",
        CHARACTERS,
        """
        = {S} is afraid of {A.fear}.
        = {S} does not like {A.fear}.
        = Only {A.fear} can make {A.him} afraid.
        ? What is {A} afraid of?
        > {A} is afraid of {A.fear}.
        > {A.He} is afraid of {A.fear}.
        you? What are you afraid of?
        I I am afraid of {A.fear}.
        I I do not like {A.fear}.
        """,
    ),
    _relation(
        "parent",
        "A",
        CHILDREN,
        """
        = {A.relative} is the {A.family} of {A}.
        = {A.His} {A.family} is {A.relative}.
        ? Who is the {A.family} of {A}?
        > {A.relative} is the {A.family} of {A}.
        > {A.His} {A.family} is {A.relative}.
        you? Who is your {A.family}?
        I My {A.family} is {A.relative}.
        I {A.relative} is my {A.family}.
        """,
    ),
    _relation(
        "child",
        "A",
        GROWN_UPS,
        """
        = {S} is the {A.family} of {A.relative}.
        ? Whose {A.family} is {A}?
        > {A} is the {A.family} of {A.relative}.
        > {A.He} is the {A.family} of {A.relative}.
        you? Whose {A.family} are you?
        I I am the {A.family} of {A.relative}.
        """,
    ),
    _relation(
        "owner",
        "A",
        _OWNED,
        """
        = {S} belongs to {A.relative}.
        = {A.relative} takes good care of {A}.
        ? Whose {A.kind} is {A}?
        ? Who takes care of {A}?
        > {A} belongs to {A.relative}.
        > {A} is the {A.kind} of {A.relative}.
        you? Who takes care of you?
        I {A.relative} takes good care of me.
        """,
    ),
    _relation(
        "lies",
        "P",
        PLACES,
        """
        = {P.The} {P.lies}.
        ? Where is {P.the}?
        ? How do I find {P.the}?
        > {P.The} {P.lies}.
        > It {P.lies}.
        """,
    ),
    _relation(
        "known for",
        "P",
        PLACES,
        """
        = {P.The} is known for {P.known_for}.
        = Everyone knows {P.the} for {P.known_for}.
        ? What is {P.the} known for?
        > {P.The} is known for {P.known_for}.
        > It is known for {P.known_for}.
        """,
    ),
    _relation(
        "use",
        "X",
        THINGS,
        """
        = {X.A} is for {X.use}.
        = {X.A} is good for {X.use}.
        ? What is {X.a} for?
        ? What is {X.a} good for?
        > {X.A} is for {X.use}.
        > It is for {X.use}.
        """,
    ),
)

TEXT: dict[str, Lines] = {
    name: phrases(text)
    for name, text in {
        # What one does at a place
        "doing": """
            {P.At} you can {doing}.
            Go {P.to} and {doing}.
            Some people go {P.to} to {doing}.
            """,
        "ask doing": """
            What can you do {P.at}?
            What do people do {P.at}?
            """,
        "answer doing": """
            You can {doing} {P.at}.
            They {doing}.
            """,
        # Who belongs together: {who} is a name or "Mia, Ben and Tom"
        "ask dwellers": """
            Who lives {P.at}?
            Who has a home {P.at}?
            """,
        "one dweller": """
            {who} lives {P.at}.
            """,
        "dwellers": """
            {who} live {P.at}.
            """,
        "ask fans": """
            Who likes {colour} best?
            Whose favourite colour is {colour}?
            """,
        "one fan": """
            {who} likes {colour} best.
            """,
        "fans": """
            {who} like {colour} best.
            """,
        "name some": """
            Name {n} {class}.
            Can you name {n} {class}?
            Tell me {n} {class}.
            """,
        "named": """
            {who}.
            """,
        "how many": """
            How many is that? That is {n}.
            That makes {n}.
            """,
        # Talks
        "hello": """
            Hello, {A}!
            Good {T}, {A}!
            How nice to see you, {A}!
            """,
        "hello back": """
            Hello, {A}! How are you?
            Oh, {A}, it is you!
            Good {T} to you, too!
            """,
        "goodbye": """
            Goodbye, {A}!
            See you soon, {A}!
            I must go home now.
            """,
        # Sums
        "has": """
            {A} has {n} {food}.
            There are {n} {food} in the basket of {A}.
            {A} finds {n} {food} {P.at}.
            """,
        "more": """
            {B} gives {A.him} {m} more.
            Then {A} gets {m} more from {B}.
            Then {A.he} finds {m} more.
            """,
        "fewer": """
            {A} eats {m} of them.
            {A.He} gives {m} of them to {B}.
            Then {B} takes {m} of them.
            """,
        "sum": """
            Now {A} has {n} {food}.
            How many does {A} have now? {A} has {n} {food}.
            So {A.he} has {n} {food} now.
            """,
    }.items()
}
