"""Dialogues to finetune on, out of the formats in which they are published, and the miniature's.

A line of JSONL is one dialogue, in any of these, also mixed in a file:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}    OpenAI's, and most others
    {"instruction": "…", "input": "…", "output": "…"}                                          Alpaca's
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", …}                                              Anthropic's hh-rlhf

An assistant's message may have a "weight", 0 or 1, as in OpenAI's format: what has weight 0 is read and not learned.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from minillama.chat import ROLES, Message
from minillama.data.comparisons import PUBLIC_SETS, located
from minillama.data.sources import check_split, file_sha256, jsonl_records
from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer.atomic import write_bytes

MINIATURE, HARMLESS = "miniature", "harmless"
SHORT = 3  # turns of a harmless dialogue, at most
MINIATURE_DIALOGUES = 7_000  # to train on; 'miniature:N' for another number
VALIDATION = 0.05  # the share of dialogues that is kept apart, where they do not say themselves
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class ChatExample:
    """A dialogue to learn from.

    messages: as a chat template takes them. learned: for each of the assistant's messages, whether it is learned.
    split: "train" or "validation". where: its place in a file, for messages to the user.
    """

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    split: str
    where: str = ""


class DialogueSource(Protocol):
    """Where dialogues come from."""

    def examples(self) -> Iterator[ChatExample]:
        """All of them, in the same order each time."""

    def identity(self) -> dict[str, Any]:
        """What they depend on, as JSON can hold it: equal where they are."""


def find_dialogues(source: str | Path, seed: int = 0) -> DialogueSource:
    """The dialogues called `source`: a `.jsonl` file (or `.gz` of one), 'miniature' or 'miniature:N', or 'harmless',
    'harmless:N': those of the miniature that are short and ask for nothing unsafe; or, by the name of a public set of
    comparisons ('hh-rlhf'), the dialogues with the answers that were preferred.

    seed: of the miniature's. Raises MinillamaError where there is no such file, UsageError for an unknown name.
    """
    path, name = Path(source), str(source).lower()
    if path.is_file():
        return DialogueFile(path)
    if path.is_dir():
        raise UsageError(f"{path}: expected a .jsonl file of dialogues, found a folder")
    kind = name.partition(":")[0]
    if kind in (MINIATURE, HARMLESS):
        count = name.partition(":")[2] or str(MINIATURE_DIALOGUES)
        if not count.isdecimal() or int(count) == 0:
            raise UsageError(f"{name}: expected {kind}:N with a number of dialogues N, found {count!r}")
        return MiniatureDialogues(int(count), seed, harmless=kind == HARMLESS)
    if name in PUBLIC_SETS:
        return MixedDialogues(*(DialogueFile(located(name, file), split) for file, split, _ in PUBLIC_SETS[name]))
    if path.suffix or len(path.parts) > 1:
        raise MinillamaError(f"{path}: no such file")
    expected = ", ".join((MINIATURE, HARMLESS, *PUBLIC_SETS))
    raise UsageError(f"unknown dialogues {str(source)!r}: expected a .jsonl file or one of {expected}")


class DialogueFile:
    """The dialogues of a JSONL file. split: of those that do not say it themselves; None: by their hash."""

    def __init__(self, path: Path, split: str | None = None) -> None:
        self.path, self.split = path, split

    def examples(self) -> Iterator[ChatExample]:
        """One a line. Raises MinillamaError with file and line for a line that is none."""
        for where, record in jsonl_records(self.path):
            messages = messages_of(where, record)
            check_split(where, record.get("split"))
            split = record.get("split") or self.split or split_of(messages)
            learned = tuple(_weight(where, m) for m in messages if m["role"] == "assistant")
            yield ChatExample(tuple({k: m[k] for k in ("role", "content")} for m in messages), learned, split, where)

    def identity(self) -> dict[str, Any]:
        """The checksum of the file."""
        return {"name": self.path.name, "sha256": file_sha256(self.path)}


class MiniatureDialogues:
    """So many of the miniature's instruction data, and a twentieth more of its validation split. harmless: only of
    those that ask for nothing unsafe and have SHORT turns at most.
    """

    def __init__(self, count: int, seed: int, harmless: bool = False) -> None:
        self.count, self.seed, self.harmless = count, seed, harmless

    def examples(self) -> Iterator[ChatExample]:
        """First those to train on."""
        from minillama.miniature.dialogues import instruction_data

        for split, count in (("train", self.count), ("validation", max(1, int(VALIDATION * self.count)))):
            found = instruction_data(split, self.seed)  # type: ignore[arg-type]
            if self.harmless:
                found = (c for c in found if c.category is None and len(c.turns) <= SHORT)
            for conversation in islice(found, count):
                messages = tuple(conversation.messages("every"))
                yield ChatExample(messages, (True,) * (len(messages) // 2), split)

    def identity(self) -> dict[str, Any]:
        """A checksum of the dialogues themselves: they come from code."""
        digest = hashlib.sha256()
        for example in self.examples():
            digest.update(json.dumps(example.messages).encode())
        kind = HARMLESS if self.harmless else MINIATURE
        return {kind: self.count, "seed": self.seed, "sha256": digest.hexdigest()}


class GeneratedDialogues:
    """Dialogues that a model writes: made once, when they are first read, and kept in a JSONL file.

    inputs: what they depend on, as JSON can hold it. make: gives the records of the file.
    """

    def __init__(self, path: Path, inputs: dict[str, Any], make: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self.path, self.inputs, self.make = path, inputs, make

    def examples(self) -> Iterator[ChatExample]:
        """One a line of the file."""
        if not self.path.is_file():
            write_records(self.path, self.make())
        return DialogueFile(self.path).examples()

    def identity(self) -> dict[str, Any]:
        """The inputs."""
        return self.inputs


class MixedDialogues:
    """All dialogues of several sources."""

    def __init__(self, *sources: DialogueSource) -> None:
        self.sources = sources

    def examples(self) -> Iterator[ChatExample]:
        """Those of one source after those of the other."""
        for source in self.sources:
            yield from source.examples()

    def identity(self) -> dict[str, Any]:
        """Of each."""
        return {str(number): source.identity() for number, source in enumerate(self.sources)}


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file, one record a line, whole or not at all. Raises MinillamaError."""
    write_bytes(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode())


def human_assistant(where: str, text: str) -> list[dict[str, str]]:
    """A dialogue as hh-rlhf writes it, "\\n\\nHuman: …\\n\\nAssistant: …", as messages.

    where: what to call its place in an error. Raises MinillamaError where it does not begin with a turn.
    """
    start, *rest = _HH_TURN.split(text)
    if start.strip() or not rest:
        raise MinillamaError(f"{where}: expected turns after Human: and Assistant:, found {text[:40]!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(rest[::2], rest[1::2], strict=True)]


def messages_of(where: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dialogue in a record of any of the formats."""
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not messages:
            raise MinillamaError(f"{where}: expected messages to be a list of at least one")
        for i, message in enumerate(messages):
            if (
                not isinstance(message, dict)
                or message.get("role") not in ROLES
                or not isinstance(message.get("content"), str)
            ):
                raise MinillamaError(
                    f"{where}: message {i}: expected a role ({', '.join(ROLES)}) and a text as content, "
                    f"found {str(message)[:60]}"
                )
        return messages
    if isinstance(record.get("chosen"), str):
        return human_assistant(where, record["chosen"])
    if isinstance(record.get("instruction"), str) and isinstance(record.get("output"), str):
        given = record.get("input") or ""
        if not isinstance(given, str):
            raise MinillamaError(f"{where}: expected a text as input, found {given!r}")
        request = "\n\n".join(text for text in (record["instruction"], given) if text)
        return [{"role": "user", "content": request}, {"role": "assistant", "content": record["output"]}]
    found = ", ".join(map(repr, record)) or "nothing"
    raise MinillamaError(f"{where}: expected messages, instruction and output, or chosen, found {found}")


def _weight(where: str, message: Mapping[str, Any]) -> bool:
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise MinillamaError(f"{where}: expected 0 or 1 as the weight of a message, found {weight!r}")
    return bool(weight)


def split_of(messages: Sequence[Message]) -> str:
    """By the hash of what the user says first, so that answers to one request are never on both sides."""
    asked = next((m["content"] for m in messages if m["role"] == "user"), "")
    digest = hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "little") < VALIDATION * 2**64 else "train"
