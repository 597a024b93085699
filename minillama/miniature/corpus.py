"""The corpus: an endless stream of documents about the valley, each with its split and its information."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minillama.errors import UsageError
from minillama.miniature import facts
from minillama.miniature.chooser import Chooser, held_out
from minillama.miniature.stories import PLOTS, Event, Tale, Topic
from minillama.miniature.world import HEROES, PLACES, THINGS


@dataclass(frozen=True, slots=True)
class Story:
    """A document of the corpus.

    kind: the plot of a story or the kind of a page. nats: −log p of its derivation. events: what happens in a story,
    in order; empty for a page of facts.
    """

    text: str
    split: Literal["train", "validation"]
    nats: float
    kind: str
    events: tuple[Event, ...] = ()


# How often each kind of document is drawn.
MIXTURE = {
    "story": 0.6,
    "portrait": 0.1,
    "place": 0.04,
    "quiz": 0.1,
    "talk": 0.06,
    "census": 0.03,
    "names": 0.03,
    "sum": 0.04,
}


def corpus(documents: int, seed: int = 0) -> Iterator[Story]:
    """The first `documents` documents of the seed's endless stream.

    The same seed gives the same texts on every platform and Python, whatever the number; seeds are integers from 0.
    """
    if documents < 0:
        raise UsageError(f"documents: expected 0 or more, found {documents}")
    chooser = Chooser(seed)
    for _ in range(documents):
        yield document(chooser)


def document(chooser: Chooser) -> Story:
    """One document, drawn from the mixture."""
    chooser.restart()
    kind = chooser.weighted(MIXTURE)
    if kind == "story":
        return story(chooser)
    page = facts.Page(chooser)
    text = facts.KINDS[kind](page)
    return Story(text, "validation" if page.held_out else "train", chooser.nats, kind)


def story(chooser: Chooser) -> Story:
    """A story on a topic drawn among all: a hero, a kind of thing and a place."""
    i, j, k = (chooser.pick(range(len(options))) for options in (HEROES, THINGS, PLACES))
    tale = Tale(Topic(HEROES[i], THINGS[j], PLACES[k]), chooser)
    plot = chooser.pick(PLOTS)
    plot(tale)
    split: Literal["train", "validation"] = "validation" if held_out(k, i, j) else "train"
    return Story(tale.text(), split, chooser.nats, plot.__name__, tuple(tale.events))
