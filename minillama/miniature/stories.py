"""Stories: a small world state, the acts that change it, and the plots that string them together.

A plot is a function of a `Tale`. It decides what happens, by the state and by choices, and tells it with the phrases of
`story_phrases.py`. What happens is also kept as `Event`s, so that code can know who has the kite at the end.
"""

from __future__ import annotations

from collections.abc import Callable
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
)


class Event(NamedTuple):
    """Something that happened in a story, by the names of those concerned; "" for what it does not concern.

    Verbs: go (who, where), have (who, what), lose (who, what, where), find (who, what, where), give (who, what, whom),
    meet (who, whom, where), take (who, what, from whom).
    """

    verb: str
    who: str
    what: str = ""
    whom: str = ""
    where: str = ""


class Topic(NamedTuple):
    """What a story is about, drawn before anything else; the split is decided by it."""

    hero: Character
    thing: Thing
    place: Place


class Tale:
    """A story as it is being told: who is where, who holds what, and the sentences so far."""

    def __init__(self, topic: Topic, chooser: Chooser) -> None:
        self.topic, self.chooser = topic, chooser
        self.hero, self.place = topic.hero, topic.place
        self.sentences: list[str] = []
        self.events: list[Event] = []
        self._cast = [self.hero]
        self._subject: Character | None = None  # who may be called she or he in the next sentence
        self.item = self._item(topic.thing)

    # --- choices -----------------------------------------------------------------------------------------------------
    def _item(self, thing: Thing) -> Item:
        """The hero's own, where the hero owns such a thing; else one of any of its colours."""
        if self.hero.owns.thing is thing:
            return self.hero.owns
        return ITEM[self.chooser.pick(thing.colours), thing]

    def other(self, among: tuple[Character, ...] = CHARACTERS) -> Character:
        """Someone who is not yet in the story."""
        someone = self.chooser.pick([c for c in among if c not in self._cast])
        self._cast.append(someone)
        return someone

    def friend(self) -> Character:
        """The hero's best friend, three times in ten; else someone other."""
        best: Character = CHARACTER[self.hero.friend]
        if self.chooser.chance(0.3):
            self._cast.append(best)
            return best
        someone = self.chooser.pick([c for c in CHARACTERS if c not in self._cast and c is not best])
        self._cast.append(someone)
        return someone

    def elsewhere(self, *but: Place) -> Place:
        """A place that is none of those."""
        return self.chooser.pick([p for p in PLACES if p not in but])

    def other_item(self) -> Item:
        return self.chooser.pick([i for i in ITEMS if i.thing is not self.item.thing])

    def maybe(self, p: float = 0.5) -> bool:
        return self.chooser.chance(p)

    # --- telling -----------------------------------------------------------------------------------------------------
    def say(self, phrase: str, A: Character, **roles: Any) -> None:
        """Tell something in one of the ways that `STORY[phrase]` lists.

        A is the one who acts, called she or he half of the time where the sentence before had the same subject and
        nobody else who could be meant. A role given as a tuple is drawn from it, if the phrase speaks of it at all: a
        choice that leaves no trace in the text would count as information that is not there.
        """
        template = self.chooser.phrase(STORY[phrase])
        for role, entity in roles.items():
            if type(entity) is tuple and "{" + role in template:
                roles[role] = self.chooser.pick(entity)
        if "{S}" in template or "{s}" in template:
            if A is self._subject and self.chooser.chance(0.5):
                roles["S"], roles["s"] = A.He, A.he
            else:
                roles["S"] = roles["s"] = A.name
        self.sentences.append(template.format(A=A, **roles))
        B = roles.get("B")
        self._subject = None if isinstance(B, Character) and B.he == A.he else A

    def do(self, A: Character, place: Place, phrase: str = "do", **roles: Any) -> None:
        """A does one of the things that one does at the place."""
        self.say(phrase, A, did=self.chooser.pick(place.doings)[1], **roles)

    # --- what happens: an event and its sentence ----------------------------------------------------------------------
    def open(self) -> None:
        """The hero comes to the place of the story."""
        self.event("go", self.hero, where=self.place)
        self.say("open", self.hero, P=self.place, W=WEATHERS, T=TIMES)

    def go(self, who: Character, place: Place) -> None:
        self.event("go", who, where=place)
        self.say("go", who, P=place)

    def have(self, who: Character, item: Item) -> None:
        self.event("have", who, item)
        self.say("have", who, X=item)

    def meet(self, who: Character, whom: Character, place: Place) -> None:
        self.event("meet", who, whom=whom, where=place)
        self.say("meet", who, B=whom, P=place)

    def give(self, who: Character, item: Item, whom: Character) -> None:
        self.event("give", who, item, whom)
        self.say("give", who, X=item, B=whom)

    def event(
        self,
        verb: str,
        who: Character,
        what: Item | None = None,
        whom: Character | None = None,
        where: Place | None = None,
    ) -> None:
        """Keep what a sentence tells."""
        self.events.append(Event(verb, who.name, *("" if x is None else x.name for x in (what, whom, where))))


def lost(tale: Tale) -> None:
    """The hero loses a thing, asks, and gets it back."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    tale.open()
    tale.have(hero, item)
    if maybe():
        tale.do(hero, place)
    slips = "left" if item.thing.slips == "wind" and place.indoors else item.thing.slips
    tale.say(slips, hero, X=item)
    lies = tale.elsewhere(place) if slips == "wind" else place  # the rest lies where it fell
    tale.event("lose", hero, item, where=lies)
    if maybe(0.4):
        tale.go(hero, tale.elsewhere(place, lies))
    if slips != "wind":
        tale.say("gone", hero, X=item)
    if maybe(0.6):
        tale.say("sad", hero)
    if maybe(0.4):
        helper = tale.other()
        asked = tale.elsewhere(place, lies)
        tale.meet(hero, helper, asked)
        tale.say("ask seen", hero, X=item, B=helper)
        tale.say("not seen", hero, B=helper)
    helper = tale.friend()
    if maybe(0.6):
        tale.meet(hero, helper, tale.elsewhere(place, lies))
        tale.say("ask seen", hero, X=item, B=helper)
        tale.say("seen", hero, X=item, B=helper, Q=lies)
        tale.go(hero, lies)
        tale.event("find", hero, item, where=lies)
        tale.say("find", hero, X=item, P=lies, spot=lies.spots, Spot=lies.Spots)
        tale.say("glad", hero)
    else:
        tale.event("find", helper, item, where=lies)
        tale.event("give", helper, item, hero)
        tale.say("come back", hero, B=helper)
        tale.say("brought back", hero, X=item, B=helper, Q=lies)
        if maybe():
            tale.say("glad", hero)
        tale.say("thank", hero, B=helper)
    tale.say("end found", hero, X=item)


def gift(tale: Tale) -> None:
    """The hero finds a thing and brings it to somebody."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    tale.open()
    if maybe():
        tale.do(hero, place)
    tale.event("find", hero, item, where=place)
    tale.say("find new", hero, spot=place.spots, Spot=place.Spots, X=item)
    if maybe(0.3):
        tale.say("glad", hero)
    friend = tale.friend()
    tale.say("think of", hero, B=friend)
    if friend.colour == item.colour:
        tale.say("favourite", hero, B=friend, X=item)
    else:
        tale.say("reason", hero, B=friend)
    tale.go(hero, friend.home)
    tale.give(hero, item, friend)
    tale.say("glad", friend)
    if maybe(0.7):
        tale.say("thank", friend, B=hero)
    if maybe(0.4):
        tale.say("food", hero, B=friend, F=FOODS)
    if maybe():
        tale.say("play", hero, B=friend, play=item.thing.play)
    tale.say("end given", hero, X=item, B=friend)


def rescue(tale: Tale) -> None:
    """Somebody is in a trouble that the hero's thing can end."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    friend = tale.friend()
    thing = item.thing
    tale.open()
    tale.have(hero, item)
    if maybe(0.6):
        tale.do(hero, place)
    tale.meet(hero, friend, place)
    trouble = thing.trouble.format(he=friend.he, him=friend.him, his=friend.his)
    tale.say("trouble", hero, B=friend, trouble=trouble, Trouble=trouble[0].upper() + trouble[1:])
    tale.event("help", hero, item, friend)
    tale.say("help", hero, help=thing.help.format(he=friend.he, him=friend.him, his=friend.his))
    tale.say("thank", friend, B=hero)
    if maybe():
        tale.say("food", hero, B=friend, F=FOODS)
    if maybe():
        tale.do(hero, place, "both do")
    tale.say("end friends", hero, B=friend)


def swap(tale: Tale) -> None:
    """The hero wants what a friend has and offers something for it."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    friend, wanted = tale.friend(), tale.other_item()
    tale.open()
    tale.have(hero, item)
    if maybe(0.6):
        tale.do(hero, place)
    tale.meet(hero, friend, place)
    tale.event("have", friend, wanted)
    tale.say("has other", hero, B=friend, Y=wanted)
    tale.say("offer", hero, B=friend, X=item, Y=wanted)
    if maybe(0.35):
        tale.say("no", hero, B=friend, Y=wanted)
        tale.say("play", hero, B=friend, play=tale.chooser.pick((item, wanted)).thing.play)
        tale.say("end friends", hero, B=friend)
        return
    tale.say("yes", hero, B=friend)
    tale.event("give", hero, item, friend)
    tale.event("give", friend, wanted, hero)
    tale.say("swap", hero, B=friend, X=item, Y=wanted)
    if maybe():
        tale.say("both glad", hero, B=friend)
    if maybe():
        tale.say("play", hero, B=friend, play=tale.chooser.pick((item, wanted)).thing.play)
    tale.say("home", hero)


def quarrel(tale: Tale) -> None:
    """Two want the same thing, and a third knows what to do."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    friend = tale.friend()
    judge = tale.other((*GROWN_UPS, CHARACTER["Hoot"]))
    tale.event("go", hero, where=place)
    tale.event("go", friend, where=place)
    tale.say("together", hero, B=friend, P=place, W=WEATHERS, T=TIMES)
    tale.do(hero, place, "both do")
    tale.say("both find", hero, spot=place.spots, Spot=place.Spots, X=item, B=friend)
    tale.say("both want", hero, B=friend)
    tale.event("meet", hero, whom=judge, where=place)
    tale.say("heard", hero, C=judge)
    end = tale.chooser.pick(("turns", "play", "owner"))
    tale.say(f"advise {end}", hero, B=friend, C=judge, X=item)
    if end == "owner":
        tale.event("give", hero, item, judge)
        tale.say("return", hero, B=friend, C=judge, X=item)
        if maybe():
            tale.say("thank", judge, B=hero)
        tale.say("end friends", hero, B=friend)
    else:
        tale.event("have", hero, item)
        if end == "turns":
            tale.say("turns", hero, B=friend, X=item)
        else:
            tale.say("play", hero, B=friend, play=item.thing.play)
        if maybe():
            tale.say("both glad", hero, B=friend)
        tale.say("end lesson share", hero)


def errand(tale: Tale) -> None:
    """A grown-up sends the hero with a thing to somebody; on the way there is something better to do."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    sender, receiver = tale.other(GROWN_UPS), tale.other()
    tale.event("go", hero, where=sender.home)
    tale.say("visit", hero, C=sender, P=sender.home, W=WEATHERS, T=TIMES)
    tale.event("give", sender, item, hero)
    tale.say("send", hero, X=item, B=receiver, C=sender, P=place)
    late = False
    if maybe(0.7):
        tempter, between = tale.other(), tale.elsewhere(place, sender.home)
        _, did = tale.chooser.pick(between.doings)
        tale.event("meet", hero, whom=tempter, where=between)
        tale.say("tempt", hero, B=tempter, P=between)
        late = maybe()
        if late:
            tale.say("stay", hero, did=did)
            tale.say("late", hero, X=item)
        else:
            tale.say("refuse", hero, C=receiver, X=item)
    tale.event("go", hero, where=place)
    tale.event("give", hero, item, receiver)
    tale.say("deliver", hero, B=receiver, X=item, P=place)
    if late:
        tale.say("too late", hero, B=receiver)
        tale.say("promise", hero)
    else:
        tale.say("in time", hero, B=receiver)
        tale.say("food", hero, B=receiver, F=FOODS)
    tale.say("home", hero)


def storm(tale: Tale) -> None:
    """Two are surprised by a storm; a thing makes the waiting short."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    friend = tale.friend()
    shelter = place if place.indoors else tale.chooser.pick(INDOORS)
    outside = tale.chooser.pick(OUTDOORS) if place.indoors else place
    tale.event("go", hero, where=outside)
    tale.event("go", friend, where=outside)
    tale.say("together", hero, B=friend, P=outside, W=WEATHERS, T=TIMES)
    tale.do(hero, outside, "both do")
    tale.say("storm", hero)
    tale.event("go", hero, where=shelter)
    tale.event("go", friend, where=shelter)
    tale.say("shelter", hero, B=friend, P=shelter)
    if maybe(0.7):
        tale.say("afraid", hero, B=friend)
    tale.event("have", hero, item)
    tale.say("comfort", hero, X=item, play=item.thing.play)
    tale.say("over", hero)
    tale.say("end friends", hero, B=friend)


def seek(tale: Tale) -> None:
    """Hide and seek; a thing gives the hider away."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    friend = tale.friend()
    tale.event("go", hero, where=place)
    tale.event("go", friend, where=place)
    tale.say("together", hero, B=friend, P=place, W=WEATHERS, T=TIMES)
    if maybe(0.3):
        tale.do(hero, place, "both do")
    tale.say("game", hero, B=friend)
    tale.say("count", hero, B=friend)
    spots = list(place.spots)
    first = tale.chooser.pick(spots)
    spots.remove(first)
    tale.say("not here", hero, B=friend, spot=first)
    if maybe():
        second = tale.chooser.pick(spots)
        spots.remove(second)
        tale.say("nor here", hero, spot=second)
    tale.event("have", friend, item)
    tale.say("sign", hero, B=friend, X=item, spot=tuple(spots))
    tale.event("find", hero, whom=friend, where=place)
    tale.say("found you", hero, B=friend)
    if maybe(0.6):
        tale.say("turn over", hero, B=friend)
    if maybe(0.6):
        tale.say("food", hero, B=friend, F=FOODS)
    if maybe():
        tale.say("play", hero, B=friend, play=item.thing.play)
    tale.say("end friends", hero, B=friend)


def birthday(tale: Tale) -> None:
    """A party: who brings what."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    guests = [tale.friend(), tale.other(), tale.other()]
    second = tale.other_item()
    for guest in [hero, *guests]:
        tale.event("go", guest, where=place)
    tale.say("birthday", hero, P=place)
    tale.event("give", guests[0], item, hero)
    tale.say("bring", hero, B=guests[0], X=item)
    if maybe(0.4):
        tale.say("thank", hero, B=guests[0])
    tale.event("give", guests[1], second, hero)
    tale.say("bring", hero, B=guests[1], X=second)
    tale.say("bring food", hero, B=guests[2], F=FOODS)
    if maybe(0.6):
        tale.say("two presents", hero, X=item, Y=second)
    best = item
    if second.colour == hero.colour:
        best = second
    if maybe(0.6):
        tale.do(hero, place, "both do")
    tale.say("best", hero, X=best)


def taking(tale: Tale) -> None:
    """The hero takes what belongs to another, and is sorry."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    owner = tale.friend()
    tale.open()
    if maybe(0.6):
        tale.do(hero, place)
    tale.event("have", owner, item)
    tale.say("belongs", hero, spot=place.spots, Spot=place.Spots, B=owner, X=item)
    tale.event("take", hero, item, owner)
    tale.say("take", hero, B=owner, X=item)
    tale.say("misses", hero, B=owner, X=item)
    tale.say("guilt", hero, X=item)
    tale.event("give", hero, item, owner)
    tale.say("confess", hero, B=owner, X=item)
    tale.say("forgive", hero, B=owner)
    if maybe():
        tale.say("play", hero, B=owner, play=item.thing.play)
    tale.say("end lesson take", hero)


def unkind(tale: Tale) -> None:
    """Somebody laughs at what the hero fears, and makes it good."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    mocker, consoler = tale.other(), tale.friend()
    tale.open()
    if maybe(0.4):
        tale.do(hero, place)
    tale.meet(hero, mocker, place)
    tale.say("mock", hero, B=mocker)
    tale.say("hurt", hero, spot=place.spots, Spot=place.Spots)
    tale.meet(hero, consoler, place)
    tale.say("console", hero, C=consoler)
    tale.say("scold", hero, B=mocker, C=consoler)
    tale.event("give", mocker, item, hero)
    tale.say("apologise", hero, B=mocker, X=item)
    if maybe():
        tale.say("play", hero, B=mocker, play=item.thing.play)
    tale.say("end lesson kind", hero, B=mocker)


def illness(tale: Tale) -> None:
    """Somebody is ill, and only the doctor knows what helps."""
    hero, item, place, maybe = tale.hero, tale.item, tale.place, tale.maybe
    ill = tale.friend() if hero.friend != "Ida" else tale.other()
    tale.event("go", hero, where=place)
    tale.event("go", ill, where=place)
    tale.say("together", hero, B=ill, P=place, W=WEATHERS, T=TIMES)
    tale.say("ill", hero, B=ill)
    if maybe(0.7):
        tale.say("wrong cure", hero, B=ill)
        tale.say("right cure", hero, B=ill)
    else:
        tale.say("call doctor", hero, B=ill)
    tale.say("rest", hero, B=ill)
    if maybe():
        tale.do(hero, place)
    tale.event("give", hero, item, ill)
    tale.say("beside", hero, X=item, B=ill)
    tale.say("well", hero, B=ill)


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
