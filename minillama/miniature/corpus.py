"""The corpus: an endless stream of documents about the valley, each with its split and its information.

**Held out** is content, never a line. A story is held out by its topic, the (hero, thing, place) that is drawn first;
whoever else is in it is free. A page of facts is held out by what it says in which words, such as (who, relation, line
of the phrases). Any two of the three are met in training, and so is every fact, in other words; only the combination is
new. The rule is `chooser.held_out`, the same for every seed.

**Entropy.** `Story.nats` is −log p of the document's derivation under the whole generator: its kind, topic, title and
questions and the decision to end included. The sum over documents by the sum of their bytes (`entropy`) estimates the
generator's entropy in nats per byte, from above: exactly where no text has two derivations. The documents of one split
come from the generator *given that split*: −log p(text | split) = nats + log P(split). In training that is 0.05 nats a
document less; in validation it is 3.0 less, of about 37, but only for one who knows what is held out. A model that
takes the unseen combinations to be as likely as the others can reach `entropy` of the validation documents, no less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

    kind: the plot of a story or the kind of a page. nats: −log p of its derivation. topic: what a story is about, and
    events: what happens in it, in order; a page of facts has neither.
    """

    text: str
    split: Literal["train", "validation"]
    nats: float
    kind: str
    topic: Topic | None = None
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
    topic = Topic(HEROES[i], THINGS[j], PLACES[k])
    tale = Tale(topic, chooser)
    plot = chooser.pick(PLOTS)
    plot(tale)
    text = tale.text()
    split: Literal["train", "validation"] = "validation" if held_out(i, j, k) else "train"
    return Story(text, split, chooser.nats, plot.__name__, topic, tuple(tale.events))


def entropy(documents: Iterable[Story]) -> float:
    """Nats per byte of UTF-8: of many documents, the estimate of the generator's entropy."""
    nats, size = 0.0, 0
    for document in documents:
        nats += document.nats
        size += len(document.text.encode())
    return nats / size
