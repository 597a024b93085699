"""Stories: a small world state, the acts that change it, and the plots that string them together.

A plot is a function of a `Tale`. It decides what happens, by the state and by choices, and tells it with the phrases of
`story_phrases.py`. What happens is also kept as `Event`s, so that code can know who has the kite at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from minillama.miniature.chooser import Chooser
from minillama.miniature.story_phrases import STORY
from minillama.miniature.world import (
    CHARACTER,
    CHARACTERS,
    FOODS,
    GROWN_UPS,
    INDOORS,
    ITEM,
    ITEMS,
    OUTDOORS,
    PLACES,
    TIMES,
    WEATHERS,
    Character,
    Item,
    Place,
    Thing,
    capital,
)


class Event(NamedTuple):
    """Something that happened in a story.

    verb: go (who, where), meet (who, whom, where), have (who, what), find (who, what, where), lose (who, what; where it
    lies then), give (who, what, whom), take (who, what, from whom), help (who, with what, whom).
    """

    verb: str
    who: Character
    what: Item | None = None
    whom: Character | None = None
    where: Place | None = None


def holders(events: Iterable[Event]) -> dict[Item, Character]:
    """Who holds what after these events."""
    held: dict[Item, Character] = {}
    for verb, who, what, whom, _ in events:
        if what is None:
            continue
        if verb == "lose":
            held.pop(what, None)
        elif verb == "give" and whom is not None:
            held[what] = whom
        else:
            held[what] = who
    return held


_ASKED = {
    "find": ("finder", "spot"),
    "lose": ("loser",),
    "give": ("giver", "gift"),
    "take": ("taker",),
    "help": ("helper",),
}


def questions(events: Sequence[Event]) -> list[tuple[str, dict[str, Any]]]:
    """What can be asked about a story: for each question its phrase ("ask ..." and "tell ...") and its roles.

    Left out is what has more than one answer.
    """
    found: list[tuple[str, dict[str, Any]]] = [("first place", {"A": events[0].who, "P": events[0].where})]
    meetings = [(who, where) for verb, who, _, _, where in events if verb == "meet"]
    for verb, who, what, whom, where in events:
        roles = {"A": who, "X": what, "B": whom, "P": where}
        if verb == "meet" and where is not None and meetings.count((who, where)) == 1:
            found.append(("met", roles))
        found += [(about, roles) for about in _ASKED.get(verb, ())]
    found += [("holder", {"A": who, "X": what}) for what, who in holders(events).items()]
    return found


class Topic(NamedTuple):
    """What a story is about, drawn before anything else; the split is decided by it."""

    hero: Character
    thing: Thing
    place: Place


class Tale:
    """A story as it is being told: who plays which role, where it is, and the sentences and events so far.

    roles: what fills the slots of phrases; A is the hero, X the hero's item, P the place of the present scene.
    """

    def __init__(self, topic: Topic, chooser: Chooser) -> None:
        self.chooser = chooser
        self.pick, self.maybe = chooser.pick, chooser.chance
        self.sentences: list[str] = []
        self.events: list[Event] = []
        self.hero, thing, self.place = topic
        # The hero's own, where the hero owns such a thing; else one of any of its colours.
        own = self.hero.owns
        self.item = own if own.thing is thing else ITEM[self.pick(thing.colours), thing]
        self.roles: dict[str, Any] = {"A": self.hero, "X": self.item, "P": self.place}
        self._cast = [self.hero]
        self._subject: Character | None = None  # who may be called she or he in the next sentence

    # --- who and what else is in it ----------------------------------------------------------------------------------
    def other(self, among: tuple[Character, ...] = CHARACTERS) -> Character:
        """Someone who is not yet in the story."""
        return self.join(self.pick([c for c in among if c not in self._cast]))

    def friend(self) -> Character:
        """The hero's best friend, three times in ten; else someone other."""
        best = CHARACTER[self.hero.friend]
        if self.maybe(0.3):
            return self.join(best)
        return self.join(self.pick([c for c in CHARACTERS if c not in self._cast and c is not best]))

    def join(self, someone: Character) -> Character:
        """From now on, this one is in the story."""
        self._cast.append(someone)
        return someone

    def elsewhere(self, *but: Place) -> Place:
        """A place that is none of those."""
        return self.pick([p for p in PLACES if p not in but])

    def other_item(self) -> Item:
        """An item of another kind than the hero's."""
        return self.pick([i for i in ITEMS if i.thing is not self.item.thing])

    # --- telling -----------------------------------------------------------------------------------------------------
    def say(self, phrase: str, **roles: Any) -> None:
        """Tell something in one of the ways that `STORY[phrase]` lists, with `roles` beside those of the tale.

        What the chosen template leaves open (the weather, a spot) is drawn only now: a choice that leaves no trace in
        the text would count as information that is not there.
        """
        template = self.chooser.phrase(STORY[phrase])
        roles = {**self.roles, **roles}
        A = roles["A"]
        names_other = False
        for slot in _SLOTS[template]:
            if slot == "S":
                roles["S"], roles["s"] = (A.He, A.he) if self._pronoun(A) else (A.name, A.name)
            elif slot == "B":
                names_other = names_other or roles["B"].he == A.he
            elif slot == "C":
                names_other = names_other or roles["C"].he == A.he
            elif slot not in roles:
                roles[slot] = self._drawn(slot, roles["P"])
        self.sentences.append(template.format(**roles))
        self._subject = None if names_other else A

    def _pronoun(self, A: Character) -> bool:
        """Whether A is called she or he: half of the time, where the sentence before was about A and nobody else whom
        the pronoun could mean.
        """
        return A is self._subject and self.maybe(0.5)

    def _drawn(self, slot: str, place: Place) -> Any:
        if slot == "did":
            return self.pick(place.doings)[1]
        if slot == "spot":
            return self.pick(place.spots)
        if slot == "Spot":
            return self.pick(place.Spots)
        return self.pick({"W": WEATHERS, "T": TIMES, "F": FOODS}[slot])

    def text(self) -> str:
        """The story; half of the stories have a title above, one in five has questions below."""
        text = " ".join(self.sentences)
        if self.maybe(0.5):
            text = f"{self.phrase('title', A=self.hero, X=self.item, P=self.place)}\n{text}"
        if self.maybe(0.2):
            left = questions(self.events)
            for _ in range(self.pick(range(1, min(3, len(left)) + 1))):
                about, roles = left.pop(self.pick(range(len(left))))
                text += f"\nQuestion: {self.phrase(f'ask {about}', **roles)}"
                text += f"\nAnswer: {self.phrase(f'tell {about}', **roles)}"
        return text

    def phrase(self, phrase: str, **roles: Any) -> str:
        """One of the ways to say something, outside the story."""
        return self.chooser.phrase(STORY[phrase]).format(**roles)

    def aside(self, P: Place, p: float = 0.35) -> None:
        """Perhaps a sentence at P that changes nothing."""
        if self.maybe(p):
            self.say("aside", P=P)

    # --- what happens: an event and its sentence ---------------------------------------------------------------------
    def event(
        self,
        verb: str,
        who: Character,
        what: Item | None = None,
        whom: Character | None = None,
        where: Place | None = None,
    ) -> None:
        """Keep what the next sentence tells."""
        self.events.append(Event(verb, who, what, whom, where))

    def open(self) -> None:
        """The hero comes to the place of the story, and perhaps does what one does there."""
        self.event("go", self.hero, where=self.place)
        self.say("open")
        self.aside(self.place)
        if self.maybe(0.5):
            self.say("do")

    def open_both(self, B: Character, P: Place) -> None:
        """The hero and B come to P and do what one does there."""
        self.event("go", self.hero, where=P)
        self.event("go", B, where=P)
        self.say("together", P=P)
        self.aside(P, 0.2)
        if self.maybe(0.6):
            self.say("both do", P=P)

    def go(self, who: Character, P: Place) -> None:
        self.event("go", who, where=P)
        self.say("go", A=who, P=P)
        self.aside(P, 0.15)

    def have(self) -> None:
        self.event("have", self.hero, self.item)
        self.say("have")

    def meet(self, B: Character, P: Place) -> None:
        """The hero meets B at P, which is named if it is not the place of the scene."""
        self.event("meet", self.hero, whom=B, where=P)
        self.say("meet" if P is self.roles["P"] else "meet at", B=B, P=P)

    def give(self, who: Character, X: Item, whom: Character) -> None:
        self.event("give", who, X, whom)
        self.say("give", A=who, X=X, B=whom)

    def glad(self, who: Character, p: float = 0.6) -> None:
        if self.maybe(p):
            self.say("glad", A=who)

    def thank(self, who: Character, whom: Character, p: float = 0.6) -> None:
        if self.maybe(p):
            self.say("thank", A=who, B=whom)

    def play(self, X: Item, p: float = 0.5) -> None:
        """A and B play with X."""
        if self.maybe(p):
            self.say("play", X=X)

    def eat(self, p: float = 0.4) -> None:
        """B shares food with A."""
        if self.maybe(p):
            self.say("food")


_DRAWN = re.compile(r"\{(S|s|B|C|W|T|F|did|spot|Spot)[.}]")


def _slots(template: str) -> tuple[str, ...]:
    """The slots of a template that `say` has to see to, each once."""
    return tuple(dict.fromkeys("S" if slot == "s" else slot for slot in _DRAWN.findall(template)))


_SLOTS = {template: _slots(template) for lines in STORY.values() for line in lines for template in line}


def lost(tale: Tale) -> None:
    """The hero loses a thing, asks, and gets it back."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    tale.open()
    tale.have()
    slips = "left" if item.thing.slips == "wind" and place.indoors else item.thing.slips
    lies = tale.elsewhere(place) if slips == "wind" else place  # the rest lies where it fell
    tale.event("lose", hero, item, where=lies)
    tale.say(slips)
    if maybe(0.4):
        tale.go(hero, tale.elsewhere(place, lies))
    if slips != "wind":
        tale.say("gone")
    if maybe(0.6):
        tale.say("sad")
    if maybe(0.4):
        B = tale.other()
        tale.meet(B, tale.elsewhere(place, lies))
        tale.say("ask seen", B=B)
        tale.say("not seen", B=B)
    B = tale.roles["B"] = tale.friend()
    if maybe(0.6):
        tale.meet(B, tale.elsewhere(place, lies))
        tale.say("ask seen")
        tale.say("seen", Q=lies)
        tale.go(hero, lies)
        tale.event("find", hero, item, where=lies)
        tale.say("find", P=lies)
        tale.glad(hero)
    else:
        tale.event("find", B, item, where=lies)
        tale.event("give", B, item, hero)
        tale.say("come back")
        tale.say("brought back", Q=lies)
        tale.glad(hero)
        tale.thank(hero, B)
    tale.say("end found")


def gift(tale: Tale) -> None:
    """The hero finds a thing and brings it to somebody."""
    hero, item = tale.hero, tale.item
    tale.open()
    tale.event("find", hero, item, where=tale.place)
    tale.say("find new")
    tale.glad(hero, 0.3)
    B = tale.roles["B"] = tale.friend()
    tale.say("think of")
    tale.say("favourite" if B.colour == item.colour else "reason")
    tale.go(hero, B.home)
    tale.give(hero, item, B)
    tale.glad(B)
    tale.thank(B, hero)
    tale.eat()
    tale.play(item)
    tale.say("end given")


def rescue(tale: Tale) -> None:
    """Somebody is in a trouble that the hero's thing can end."""
    hero, item, thing = tale.hero, tale.item, tale.item.thing
    B = tale.roles["B"] = tale.friend()
    forms = {"he": B.he, "him": B.him, "his": B.his}
    trouble = thing.trouble.format(**forms)
    tale.open()
    tale.have()
    tale.meet(B, tale.place)
    tale.say("trouble", trouble=trouble, Trouble=capital(trouble))
    tale.event("help", hero, item, B)
    tale.say("help", help=thing.help.format(**forms))
    tale.glad(B, 0.4)
    tale.thank(B, hero, 0.8)
    tale.eat()
    if tale.maybe(0.4):
        tale.say("both do")
    tale.say("end friends")


def swap(tale: Tale) -> None:
    """The hero wants what a friend has and offers something for it."""
    hero, item = tale.hero, tale.item
    B, Y = tale.friend(), tale.other_item()
    tale.roles |= {"B": B, "Y": Y}
    tale.open()
    tale.have()
    tale.meet(B, tale.place)
    tale.event("have", B, Y)
    tale.say("has other")
    tale.say("offer")
    if tale.maybe(0.35):
        tale.say("no")
        if tale.maybe(0.4):
            tale.say("sad")
        tale.say("play", X=tale.pick((item, Y)))
        tale.say("end friends")
        return
    tale.say("yes")
    tale.event("give", hero, item, B)
    tale.event("give", B, Y, hero)
    tale.say("swap")
    if tale.maybe(0.5):
        tale.say("both glad")
    if tale.maybe(0.5):
        tale.say("play", X=tale.pick((item, Y)))
    tale.say("home")


def quarrel(tale: Tale) -> None:
    """Two want the same thing, and a third knows what to do."""
    hero, item = tale.hero, tale.item
    B = tale.roles["B"] = tale.friend()
    C = tale.roles["C"] = tale.other((*GROWN_UPS, CHARACTER["Hoot"]))
    tale.open_both(B, tale.place)
    tale.say("both find")
    tale.say("both want")
    tale.say("heard")
    end = tale.pick(("turns", "play", "owner"))
    tale.say(f"advise {end}")
    if end == "owner":
        tale.event("give", hero, item, C)
        tale.say("return")
        tale.thank(C, hero)
        tale.eat(0.3)
        tale.say("end friends")
    else:
        if end == "turns":
            tale.say("turns")
        else:
            tale.say("play")
        if tale.maybe(0.5):
            tale.say("both glad")
        tale.say("end lesson share")


def errand(tale: Tale) -> None:
    """A grown-up sends the hero with a thing to somebody; on the way there is something better to do."""
    hero, item, place = tale.hero, tale.item, tale.place
    sender = tale.other(tuple(c for c in GROWN_UPS if c.home is not place))
    receiver = tale.other()
    tale.event("go", hero, where=sender.home)
    tale.say("visit", C=sender, P=sender.home)
    tale.event("give", sender, item, hero)
    tale.say("send", B=receiver, C=sender)
    late = False
    if tale.maybe(0.7):
        tempter, between = tale.other(), tale.elsewhere(place, sender.home)
        tale.event("meet", hero, whom=tempter, where=between)
        tale.say("tempt", B=tempter, P=between)
        late = tale.maybe(0.5)
        if late:
            tale.say("stay", P=between)
            tale.say("late")
        else:
            tale.say("refuse", C=receiver)
    else:
        tale.aside(sender.home, 0.7)
    B = tale.roles["B"] = receiver
    tale.event("go", hero, where=place)
    tale.event("give", hero, item, B)
    tale.say("deliver", C=sender)
    if late:
        tale.say("too late")
        tale.say("promise")
    else:
        tale.say("in time")
        tale.glad(B, 0.3)
        tale.eat(0.7)
    tale.say("home")


def storm(tale: Tale) -> None:
    """Two are surprised by a storm; a thing makes the waiting short."""
    hero, place = tale.hero, tale.place
    B = tale.roles["B"] = tale.friend()
    shelter = place if place.indoors else tale.pick(INDOORS)
    outside = tale.pick(OUTDOORS) if place.indoors else place
    tale.open_both(B, outside)
    tale.say("storm")
    tale.roles["P"] = shelter
    tale.event("go", hero, where=shelter)
    tale.event("go", B, where=shelter)
    tale.say("shelter")
    if tale.maybe(0.6):
        tale.say("afraid")
    tale.event("have", hero, tale.item)
    tale.say("comfort")
    tale.eat()
    tale.say("over")
    tale.say("end friends")


def seek(tale: Tale) -> None:
    """Hide and seek; a thing gives the hider away."""
    item, place = tale.item, tale.place
    B = tale.roles["B"] = tale.friend()
    tale.open_both(B, place)
    tale.say("game")
    tale.say("count")
    spots = list(place.spots)
    for phrase in ("not here", "nor here") if tale.maybe(0.5) else ("not here",):
        spot = tale.pick(spots)
        spots.remove(spot)
        tale.say(phrase, spot=spot)
    tale.event("have", B, item)
    spot = tale.pick(spots) if len(spots) > 1 else spots[0]
    tale.say("sign", spot=spot)
    tale.say("found you")
    if tale.maybe(0.5):
        tale.say("turn over")
    tale.eat()
    tale.play(item)
    tale.say("end friends")


def birthday(tale: Tale) -> None:
    """A party: who brings what."""
    hero, item, place = tale.hero, tale.item, tale.place
    first, second, third = tale.friend(), tale.other(), tale.other()
    Y = tale.roles["Y"] = tale.other_item()
    for guest in (hero, first, second, third):
        tale.event("go", guest, where=place)
    tale.say("birthday")
    tale.aside(place)
    tale.event("give", first, item, hero)
    tale.say("bring", B=first)
    tale.glad(hero, 0.3)
    tale.thank(hero, first, 0.4)
    tale.event("give", second, Y, hero)
    tale.say("bring", B=second, X=Y)
    tale.thank(hero, second, 0.4)
    tale.say("bring food", B=third)
    if tale.maybe(0.6):
        tale.say("two presents")
    if tale.maybe(0.6):
        tale.say("both do")
    tale.say("best", X=Y if Y.colour == hero.colour else item)  # the favourite colour decides


def taking(tale: Tale) -> None:
    """The hero takes what belongs to another, and is sorry."""
    hero, item = tale.hero, tale.item
    B = tale.roles["B"] = tale.friend()
    tale.open()
    tale.event("have", B, item)
    tale.say("belongs")
    tale.event("take", hero, item, B)
    tale.say("take")
    tale.say("misses")
    if tale.maybe(0.7):
        tale.say("guilt")
    tale.event("give", hero, item, B)
    tale.say("confess")
    tale.say("forgive")
    tale.play(item)
    tale.say("end lesson take")


def unkind(tale: Tale) -> None:
    """Somebody laughs at what the hero fears, and makes it good."""
    hero, item, place = tale.hero, tale.item, tale.place
    B = tale.roles["B"] = tale.other()
    C = tale.roles["C"] = tale.friend()
    tale.open()
    tale.meet(B, place)
    tale.say("mock")
    tale.say("hurt")
    tale.meet(C, place)
    tale.say("console")
    tale.say("scold")
    tale.event("give", B, item, hero)
    tale.say("apologise")
    tale.play(item)
    tale.say("end lesson kind")


def illness(tale: Tale) -> None:
    """Somebody is ill, and only the doctor knows what helps."""
    hero, item = tale.hero, tale.item
    doctor = tale.join(CHARACTER["Ida"])
    B = tale.roles["B"] = tale.other()
    tale.open_both(B, tale.place)
    tale.say("ill")
    if tale.maybe(0.6):
        tale.say("wrong cure")
        tale.say("right cure")
    else:
        tale.say("call doctor")
    tale.event("meet", B, whom=doctor)
    tale.say("rest")
    tale.event("give", hero, item, B)
    tale.say("beside")
    tale.thank(B, hero, 0.3)
    tale.say("well")


PLOTS: tuple[Callable[[Tale], None], ...] = (
    lost,
    gift,
    rescue,
    swap,
    quarrel,
    errand,
    storm,
    seek,
    birthday,
    taking,
    unkind,
    illness,
)
