"""Conversations with the miniature's assistant: what is asked, a good answer, and what the judge must know.

A `Turn` holds a request, a good answer and the `Task`: what the request asks for, as data. The judge reads the task,
never the request. A `Conversation` is one or more turns; an answer is judged by the task of the last.

**Splits** are by content, as in the corpus. Each turn begins by drawing its content, at most three things such as a
(hero, thing, place) or an (entity, relation), whose positions decide its split, the same for every seed:
`chooser.held_out` is "test", one in twenty, and so is what pretraining holds out of its stories; another twentieth is
"validation"; the rest is "train". A conversation is of the split of its last turn; what comes before is of the same
split or of training. A fact or a set of elements that a test asks about is never asked about in training, in whatever
words, though every member of it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from minillama.errors import UsageError
from minillama.miniature.chooser import Chooser, held_out
from minillama.miniature.personas import Persona
from minillama.miniature.world import Character, Item

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """What a request asks for, as the judge sees it. All names are in small letters.

    wanted: what a complete answer names: of each set one, and no name twice.
    rivals: names that would be wrong here. most: how many wanted names an answer may give, counting those it repeats;
    None: any number.
    topic: names and pronouns of what it is about; an answer is on topic if it names any of these or of the wanted.
    subject: whom "she" means before anybody is named. items: things that it speaks of, with their colour.
    sentences: how many are fit, at least and at most. given: sentences that were told before and are not to come again.
    ending: whether the last sentence shall be one that ends a story.
    category: of an unsafe request, its risk (a key of `prompts.RISKS`); gives: names that only a complying answer says.
    """

    kind: str
    wanted: tuple[frozenset[str], ...]
    rivals: frozenset[str] = frozenset()
    most: int | None = None
    topic: frozenset[str] = frozenset()
    subject: Character | None = None
    items: tuple[Item, ...] = ()
    sentences: tuple[int, int] = (1, 2)
    given: tuple[str, ...] = ()
    ending: bool = False
    category: str | None = None
    gives: frozenset[str] = frozenset()

    @cached_property
    def right(self) -> frozenset[str]:
        """All names that are wanted."""
        return frozenset(name for those in self.wanted for name in those)

    @cached_property
    def names(self) -> frozenset[str]:
        """All names that matter."""
        return self.right | self.rivals | self.topic


@dataclass(frozen=True)
class Turn:
    """A request, a good answer to it, and what it asks for."""

    request: str
    answer: str
    task: Task


@dataclass(frozen=True)
class Conversation:
    """Turns of one split.

    kind: that of the last turn's task, or "unsafe", "borderline" or "persona". category, strategy: of an unsafe request
    its risk and the disguise of the last turn; a borderline one has a strategy too.
    """

    turns: tuple[Turn, ...]
    split: Split
    kind: str
    persona: Persona | None = None
    category: str | None = None
    strategy: str | None = None

    @property
    def task(self) -> Task:
        """What the last turn asks."""
        return self.turns[-1].task

    def messages(self, instruction: Literal["first", "every", "none"] = "first", answers: bool = True) -> list[Message]:
        """The conversation as messages, {"role": "user" | "assistant", "content": text}.

        instruction: which of the user's turns begin with the persona's instruction, if there is a persona.
        answers: with the last answer, as for training; without, as a prompt.
        """
        messages: list[Message] = []
        for i, turn in enumerate(self.turns):
            says = self.persona is not None and (instruction == "every" or (instruction == "first" and i == 0))
            request = f"{self.persona.instruction} {turn.request}" if says and self.persona else turn.request
            messages += [{"role": "user", "content": request}, {"role": "assistant", "content": turn.answer}]
        return messages if answers else messages[:-1]


class Draw(Chooser):
    """Choices for conversations of one split. seed: an integer from 0."""

    __slots__ = ("split",)

    def __init__(self, split: Split, seed: int) -> None:
        if split not in SPLITS:
            raise UsageError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
        super().__init__(seed)
        self.split = split

    def content(self, *options: Sequence[Any]) -> list[Any]:
        """One of each of the options, which must be one to three sequences: a combination of this split."""
        while True:
            at = [int(self.random() * len(those)) for those in options]
            if split_of(*at) == self.split:
                return [those[i] for those, i in zip(options, at, strict=True)]

    def asked(self, lines: Sequence[Sequence[str]], *options: Sequence[Any]) -> list[Any]:
        """One of each of the options, one or two sequences, and a template of the lines that `phrases` read: the words
        belong to the combination, so that what a held-out request asks about is met in training, in other words.
        """
        return self.content(*options, [template for line in lines for template in line])


def split_of(i: int, j: int = 0, k: int = 0) -> Split:
    """The split of a combination of things, given by their positions."""
    if held_out(i, j, k):
        return "test"
    return "validation" if held_out(i, j, k + 10) else "train"
