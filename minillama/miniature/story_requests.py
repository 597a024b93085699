"""Requests about stories: tell one, say how one ends, answer a question about one. The stories are brief.

A brief story has some six sentences, from the phrases of `story_phrases.py`: a hero comes to a place, something happens
with a thing, and it ends. What happens is known as events, so that questions about it have answers.
"""

from __future__ import annotations

from collections.abc import Callable

from minillama.miniature.chat_phrases import REQUESTS
from minillama.miniature.conversation import Draw, Task, Turn
from minillama.miniature.grammar import sentences
from minillama.miniature.instructions import NAMES, places_but, sets
from minillama.miniature.stories import Tale, Topic, questions
from minillama.miniature.story_phrases import STORY
from minillama.miniature.world import CHARACTERS, HEROES, ITEMS, PLACES, THINGS, Character, Place, capital

# Which role answers a question about a story.
_ANSWER = {
    "first place": "P",
    "met": "B",
    "finder": "A",
    "spot": "P",
    "loser": "A",
    "giver": "A",
    "gift": "X",
    "helper": "A",
    "holder": "A",
}


def story(draw: Draw) -> Turn:
    """Tell a story with a hero, a thing and a place in it."""
    return _request(draw, brief_story(draw))


def ending(draw: Draw) -> Turn:
    """Tell how a story goes on, and end it."""
    while True:
        tale = brief_story(draw)
        cut = draw.pick(range(3, len(tale.sentences)))
        told, rest = " ".join(tale.sentences[:cut]), " ".join(tale.sentences[cut:])
        known = [c for c in CHARACTERS if c.name in told]
        if any(c.name in rest for c in known):  # else nothing would tell that the end is of this story
            break
    fit = {name.lower() for c in (*known, *tale.cast) for name in (c.name, c.friend)}
    task = Task(
        "continue",
        (frozenset(c.name.lower() for c in known),),
        rivals=NAMES - fit,
        subject=tale.hero,
        items=(tale.item,),
        sentences=(1, 6),
        given=tuple(sentence for _, sentence in sentences(told)),
        ending=True,
    )
    return Turn(draw.phrase(REQUESTS["continue"]).format(text=told), rest, task)


def told(draw: Draw) -> Turn:
    """A question about a story that the user tells."""
    tale = brief_story(draw)
    question = _question(draw, tale)
    return Turn(f"{' '.join(tale.sentences)}\n{question.request}", question.answer, question.task)


def story_and_question(draw: Draw) -> tuple[Turn, Turn]:
    """A story is asked for and told by the assistant; then a question about it."""
    tale = brief_story(draw)
    return _request(draw, tale), _question(draw, tale)


def _request(draw: Draw, tale: BriefTale) -> Turn:
    """The request that this story answers."""
    hero, thing, place = tale.topic
    task = Task(
        "story",
        sets(hero.name, thing.name, place.name),
        subject=hero,
        items=(tale.item,),
        sentences=(4, 10),
        ending=True,
    )
    request = draw.phrase(REQUESTS["story"]).format(A=hero, Z=thing, P=place)
    return Turn(request, " ".join(tale.sentences), task)


def _question(draw: Draw, tale: BriefTale) -> Turn:
    """A question about what happens in a story. Wrong are others who could be the answer, and whoever is not in it."""
    about, roles = draw.pick([(about, roles) for about, roles in questions(tale.events) if about in _ANSWER])
    right, item = roles[_ANSWER[about]], roles.get("X")
    request = draw.phrase(STORY[f"ask {about}"]).format(**roles)
    answer = draw.phrase(STORY[f"tell {about}"]).format(**roles)
    # Those whom the question names may be named, even where the answer is somebody else.
    asked = {c.name.lower() for c in CHARACTERS if c.name in request}
    rivals = set(NAMES)
    if isinstance(right, Place):
        rivals |= places_but(right)
    elif not isinstance(right, Character):
        rivals |= {other.name for other in ITEMS} | {thing.name for thing in THINGS if thing is not right.thing}
    if about in ("giver", "gift", "helper"):  # the other way round
        rivals |= {f"{roles['B']} {did}".lower() for did in ("gave", "helped")}
    named = {item.name} if item is not None else set()
    task = Task(
        "told",
        sets(right.name),
        rivals=frozenset(rivals - asked - {right.name.lower()}),
        topic=frozenset({"it", "he", "she", "there"} | asked | named),
        subject=roles["A"],
        items=(item,) if item is not None else (),
    )
    return Turn(request, answer, task)


# --- Brief stories ----------------------------------------------------------------------------------------------------
class BriefTale(Tale):
    """A tale that knows its topic and whoever is in it."""

    def __init__(self, topic: Topic, draw: Draw) -> None:
        super().__init__(topic, draw)
        self.topic = topic

    @property
    def cast(self) -> list[Character]:
        """Who is in it, the hero first."""
        return self._cast

    def begin(self) -> None:
        """The hero comes to the place."""
        self.event("go", self.hero, where=self.place)
        self.say("open")


def brief_story(draw: Draw) -> BriefTale:
    """A brief story on a topic of the split."""
    tale = BriefTale(Topic(*draw.content(HEROES, THINGS, PLACES)), draw)
    draw.pick(BRIEF)(tale)
    return tale


def _loss(tale: BriefTale) -> None:
    """The hero loses a thing and finds it again."""
    hero, item, place = tale.hero, tale.item, tale.place
    tale.begin()
    tale.have()
    blown = item.thing.slips == "wind" and not place.indoors
    lies = tale.elsewhere(place) if blown else place
    tale.event("lose", hero, item, where=lies)
    tale.say("left" if place.indoors and item.thing.slips == "wind" else item.thing.slips)
    if blown:
        tale.go(hero, lies)
    tale.event("find", hero, item, where=lies)
    tale.say("find", P=lies)
    tale.say("end found")


def _gift(tale: BriefTale) -> None:
    """The hero finds a thing and gives it to somebody."""
    hero, item = tale.hero, tale.item
    tale.begin()
    tale.event("find", hero, item, where=tale.place)
    tale.say("find new")
    B = tale.roles["B"] = tale.friend()
    tale.say("think of")
    tale.give(hero, item, B)
    tale.thank(B, hero)
    tale.say("end given")


def _rescue(tale: BriefTale) -> None:
    """Somebody is in a trouble that the hero's thing can end."""
    hero, item = tale.hero, tale.item
    B = tale.roles["B"] = tale.friend()
    forms = {"he": B.he, "him": B.him, "his": B.his}
    trouble = item.thing.trouble.format(**forms)
    tale.begin()
    tale.have()
    tale.meet(B, tale.place)
    tale.say("trouble", trouble=trouble, Trouble=capital(trouble))
    tale.event("help", hero, item, B)
    tale.say("help", help=item.thing.help.format(**forms))
    tale.say("end friends")


def _present(tale: BriefTale) -> None:
    """The hero gets a thing from somebody."""
    hero, item = tale.hero, tale.item
    tale.begin()
    B = tale.roles["B"] = tale.friend()
    tale.say("come back")
    tale.event("give", B, item, hero)
    tale.say("give", A=B, B=hero)
    tale.thank(hero, B, 0.8)
    tale.play(item)
    tale.say("home")


BRIEF: tuple[Callable[[BriefTale], None], ...] = (_loss, _gift, _rescue, _present)
