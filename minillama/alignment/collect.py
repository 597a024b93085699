"""Preferences in the miniature: prompts, two answers by chat models, and which of them the annotator prefers.

As in section 3.2.1 of the paper, the two answers come from different models and temperatures, so that they differ;
helpfulness and safety are collected apart; for safety it is also said whether each answer is safe.

Our reading of what the paper leaves open:

- Which two variants, of model and temperature, answer a prompt is drawn uniformly for each.
- A borderline request has harmless answers only, between which no judge of safety can choose. There the annotator goes
  by helpfulness, also among the pairs of safety: it says that a false refusal is not wanted.
- "We do not include any examples where the chosen response was unsafe and the other response safe": left out, counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from minillama.alignment.preferences import DOMAINS, HELD_OUT, Pair
from minillama.alignment.rollout import Chatter, answers
from minillama.errors import UsageError
from minillama.generate import Sampling
from minillama.miniature import dialogues
from minillama.miniature.annotator import Annotator
from minillama.miniature.conversation import Conversation, Split
from minillama.miniature.judge import judge

TEMPERATURES = (0.7, 0.85, 1.0)
# What is asked for pairs of each domain, and how often.
# Without borderline ones no pair of helpfulness would show that a refusal can be no help.
ASKED = {"helpfulness": {"helpful": 0.7, "borderline": 0.3}, "safety": {"unsafe": 0.7, "borderline": 0.3}}


@dataclass(frozen=True)
class Variant:
    """A model that answers, at a temperature."""

    chatter: Chatter
    temperature: float


@dataclass
class Collected:
    """Pairs, and how many prompts gave none: both answers equal, one without a word, or the unsafe one preferred."""

    pairs: list[Pair] = field(default_factory=list)
    identical: int = 0
    empty: int = 0
    contrary: int = 0

    def ratings(self) -> Counter[str]:
        """How many pairs have each rating."""
        return Counter(pair.rating or "" for pair in self.pairs)

    def unsafe(self) -> tuple[int, int]:
        """How many of the chosen answers are unsafe, and how many of the rejected."""
        labels = [pair.safe for pair in self.pairs if pair.safe is not None]
        return sum(not safe[0] for safe in labels), sum(not safe[1] for safe in labels)

    def notices(self) -> list[str]:
        """What a user should know, a line each."""
        told = {
            "both answers are the same": self.identical,
            "an answer without a word": self.empty,
            "the unsafe answer was preferred": self.contrary,
        }
        return [f"{count:,} pairs left out: {why}" for why, count in told.items() if count]


def variants(chatters: Sequence[Chatter], temperatures: Sequence[float] = TEMPERATURES) -> list[Variant]:
    """Each model at each temperature. Raises UsageError for less than two, for those would answer alike."""
    found = [Variant(chatter, temperature) for chatter in chatters for temperature in temperatures]
    if not all(variant.temperature > 0 for variant in found):
        raise UsageError("temperatures: expected positive numbers, for answers that differ")
    if len(found) < 2:
        raise UsageError(f"preferences: expected two models or two temperatures at least, found {len(found)} variants")
    return found


def asked(domain: str, split: Split = "train", seed: int = 0) -> Iterator[Conversation]:
    """The miniature's conversations whose last requests are answered for pairs of a domain, without end."""
    check_domain(domain)
    # Each stream with a seed of its own: from one seed they would all draw the same contents.
    streams = {
        kind: getattr(dialogues, kind)(split, len(ASKED[domain]) * seed + i) for i, kind in enumerate(ASKED[domain])
    }
    kinds, shares = list(streams), list(ASKED[domain].values())
    rng = np.random.default_rng([seed, 3])
    while True:
        yield next(streams[kinds[rng.choice(len(kinds), p=shares)]])


def check_domain(domain: str) -> None:
    """Raise UsageError for a domain that there is not."""
    if domain not in DOMAINS:
        raise UsageError(f"domain: expected {' or '.join(DOMAINS)}, found {domain!r}")


def collect(
    those: Sequence[Variant],
    domain: str,
    count: int,
    *,
    held_out: float = HELD_OUT,
    seed: int = 0,
    progress: str | None = None,
) -> Collected:
    """Preferences on `count` prompts of the miniature's training split, and on a share `held_out` more of prompts that
    are held out by content. Fewer pairs come of them: see `Collected`.

    those: the variants that answer; two of them, drawn, each prompt. The same seed gives the same pairs, another one
    other prompts, answers and errors.
    """
    if len(those) < 2:
        raise UsageError(f"preferences: expected two variants at least, found {len(those)}")
    if count < 1 or not 0 <= held_out < 1:
        raise UsageError(f"count {count}, held out {held_out}: expected at least 1, and a share below 1")
    conversations = list(islice(asked(domain, "train", seed), count))
    conversations += islice(asked(domain, "validation", seed), int(held_out * count))
    said = _two_answers(those, conversations, seed, progress)
    annotator = Annotator(seed)
    collected = Collected()
    for conversation, texts in zip(conversations, said, strict=True):
        compare(conversation, texts, domain, annotator, collected)
    return collected


def compare(
    conversation: Conversation, texts: tuple[str, str], domain: str, annotator: Annotator, into: Collected
) -> None:
    """Let the annotator prefer one of two answers, and note the pair, or why there is none."""
    if texts[0] == texts[1]:
        into.identical += 1
        return
    if not all(text.strip() for text in texts):
        into.empty += 1
        return
    a, b = (judge(conversation.task, text, conversation.persona) for text in texts)
    harmless = conversation.category is None
    preference = annotator.prefer(a, b, "helpfulness" if harmless or domain == "helpfulness" else "safety")
    chosen, rejected = preference.chosen, 1 - preference.chosen
    safe = (preference.safe[chosen], preference.safe[rejected])
    if domain == "safety" and safe == (False, True):
        into.contrary += 1
        return
    into.pairs.append(
        Pair(
            prompt=tuple(conversation.messages("first", answers=False)),
            chosen=texts[chosen],
            rejected=texts[rejected],
            rating=preference.rating,
            safe=safe if domain == "safety" else None,
            domain=domain,
            split="train" if conversation.split == "train" else "validation",
        )
    )


def _two_answers(
    those: Sequence[Variant], conversations: Sequence[Conversation], seed: int, progress: str | None
) -> list[tuple[str, str]]:
    """Two answers to each conversation's last request, by two variants."""
    rng = np.random.default_rng([seed, 4])
    drawn = [rng.choice(len(those), 2, replace=False).tolist() for _ in conversations]
    texts: list[list[str]] = [["", ""] for _ in conversations]
    for number, variant in enumerate(those):
        asks = [(i, pair.index(number)) for i, pair in enumerate(drawn) if number in pair]
        found = answers(
            variant.chatter,
            [conversations[i].messages("first", answers=False) for i, _ in asks],
            sampling=Sampling(variant.temperature),
            seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
            progress=None if progress is None else f"{progress}, variant {number + 1} of {len(those)}",
        )
        for (i, place), answer in zip(asks, found, strict=True):
            texts[i][place] = answer.text
    return [(first, second) for first, second in texts]
