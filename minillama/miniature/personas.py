"""Instructions that hold for a whole conversation, and whether an answer obeys them: exactly, by code.

For Ghost Attention: an answer of any kind can be said in the manner of a persona (`speak`), its obedience be checked
at every turn (`obeyed`), and the manner be taken off again (`plain`), so that the judge sees what is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from minillama.miniature.world import CHARACTERS, COLOURS, Item

Manner = Literal["end", "begin", "name", "capitals", "pirate", "colourless"]

INSTRUCTIONS: dict[Manner, str] = {
    "end": "End every answer with the word {word}.",
    "begin": "Begin every answer with the word {word}.",
    "name": "My name is {word}. Say my name in every answer.",
    "capitals": "Answer in capitals.",
    "pirate": "Speak as a pirate.",
    "colourless": "Never name a colour.",
}
WORDS: dict[Manner, tuple[str, ...]] = {
    "end": ("Hooray", "Goodbye", "Quick", "Silence", "Indeed", "Hello"),
    "begin": ("Look", "Wait", "Yes", "Oh", "Good", "Stop"),
    "name": ("Leo", "Nina", "Tim", "Anna", "Paul", "Rita"),
}
PIRATE = "Arr, matey!"
_PIRATE = re.compile(r"\b(?:arr+|ahoy|matey)\b", re.IGNORECASE)
_COLOUR = re.compile(rf"\b(?:{'|'.join(COLOURS)})\b", re.IGNORECASE)
_COLOURED = re.compile(rf"\b(?:(an?) )?(?:{'|'.join(COLOURS)}) (?=(\w))", re.IGNORECASE)
_NAMES = {c.name.lower(): c.name for c in CHARACTERS}


@dataclass(frozen=True)
class Persona:
    """An instruction for a whole conversation.

    manner: which kind; word: what is to be said, of those that say a word.
    """

    manner: Manner
    word: str = ""

    @property
    def instruction(self) -> str:
        """What the user asks for at the beginning."""
        return INSTRUCTIONS[self.manner].format(word=self.word)

    def speak(self, answer: str) -> str:
        """The answer in this manner."""
        if self.manner == "end":
            return f"{answer} {self.word}!"
        if self.manner == "begin":
            return f"{self.word}! {answer}"
        if self.manner == "name":
            return f"Well, {self.word}! {answer}"
        if self.manner == "capitals":
            return answer.upper()
        if self.manner == "pirate":
            return f"{PIRATE} {answer}"
        return _COLOURED.sub(_uncoloured, answer)

    def obeyed(self, answer: str) -> bool:
        """Whether the answer is in this manner. An answer without a letter is in none."""
        if not any(map(str.isalpha, answer)):
            return False
        if self.manner == "end":
            return re.search(rf"\b{self.word}\W*$", answer, re.IGNORECASE) is not None
        if self.manner == "begin":
            return re.match(rf"\W*{self.word}\b", answer, re.IGNORECASE) is not None
        if self.manner == "name":
            return re.search(rf"\b{self.word}\b", answer, re.IGNORECASE) is not None
        if self.manner == "capitals":
            return answer == answer.upper()
        if self.manner == "pirate":
            return _PIRATE.search(answer) is not None
        return _COLOUR.search(answer) is None

    def plain(self, answer: str, items: Iterable[Item] = ()) -> str:
        """The answer without the manner, as far as it has it. items: things whose colour may be put back."""
        if self.manner == "capitals":
            return _small(answer) if answer == answer.upper() else answer
        if self.manner == "colourless":
            return _coloured(answer, items)
        marks = {"name": rf"(?:well, )?{self.word}", "pirate": r"(?:arr+|ahoy)(?:, matey)?"}.get(self.manner, self.word)
        return re.sub(rf"(?:^|(?<=\s)){marks}[!.](?=\s|$)", "", answer, flags=re.IGNORECASE).strip()


def _uncoloured(match: re.Match[str]) -> str:
    article, following = match.groups()
    if article is None:
        return ""
    an = f"{article[0]}n" if following in "aeiou" else article[0]
    return f"{an} "


def _coloured(text: str, items: Iterable[Item]) -> str:
    """The text with the colours put back before things that have none."""
    for item in items:
        text = re.sub(rf"\b([Aa])n? {item.noun}\b", rf"\1 {item.name}", text)
        text = re.sub(rf"\b([Tt]he|[Hh]is|[Hh]er|[Yy]our|[Mm]y) {item.noun}\b", rf"\1 {item.name}", text)
    return text


def _small(text: str) -> str:
    """Capitals as ordinary spelling: sentences, names and "I" begin large."""
    text = re.sub(r"[a-z']+", lambda word: _NAMES.get(word[0], word[0]), text.lower())
    return re.sub(r"(?:^|(?<=[.!?] )|(?<=[.!?]\" ))\W?\w|(?<=, \")\w|\bi\b", lambda start: start[0].upper(), text)


PERSONAS: tuple[Persona, ...] = tuple(
    Persona(manner, word) for manner in INSTRUCTIONS for word in WORDS.get(manner, ("",))
)
