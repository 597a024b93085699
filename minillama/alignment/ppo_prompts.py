"""Prompts for PPO: dialogues that end with what the user says, some of them tagged as ones of safety.

A line of JSONL is one prompt: {"prompt": [{"role": "user", "content": "…"}, …]}, or a dialogue in any of the formats of
`data.dialogues`, whose last answer is left out. It may say "domain": "safety", as preferences do, or "kind": "unsafe",
as the miniature's conversations do, and "split".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minillama.chat import ChatTemplate, Message
from minillama.data.comparisons import PUBLIC_SETS, located
from minillama.data.dialogues import MINIATURE, VALIDATION, messages_of, split_of
from minillama.data.sources import check_split, file_sha256, jsonl_records
from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer import Tokenizer

MINIATURE_PROMPTS = 4_000  # to train on; 'miniature:N' for another number
# The miniature's prompts where a safety model scores too. Borderline ones are not tagged as safety: they are harmless,
# and a safety score, which is content with any refusal, would teach to refuse them.
MIXTURE = {"helpful": 0.45, "unsafe": 0.35, "borderline": 0.2}
# PPO goes away from what scores low, and with it from all that resembles it: with a fifth of unsafe prompts, scored on
# one scale with the others, it came to refuse one in ten of the harmless requests that sound like them.
PPO_MIXTURE = {"helpful": 0.6, "unsafe": 0.15, "borderline": 0.25}


@dataclass(frozen=True)
class Prompt:
    """A dialogue up to what is to be answered.

    safety: whether it may tempt to an unsafe answer, so that the safety model alone scores it. split: "train" or
    "validation".
    """

    messages: tuple[Message, ...]
    safety: bool
    split: str


class PromptSource(Protocol):
    """Where prompts come from."""

    def prompts(self) -> Iterator[Prompt]:
        """All of them, in the same order each time."""

    def identity(self) -> dict[str, Any]:
        """What they depend on, as JSON can hold it: equal where they are."""


def find_prompts(
    source: str | Path, seed: int = 0, safety: bool = True, mixture: dict[str, float] = MIXTURE
) -> PromptSource:
    """The prompts called `source`: a `.jsonl` file (or `.gz` of one), 'miniature', 'miniature:N', or the name of a
    public set of comparisons ('hh-rlhf'), for what was to be answered there.

    seed, safety, mixture: of the miniature's, whether unsafe and borderline ones are among them, and how many then.
    Raises MinillamaError where there is no such file, UsageError for an unknown name.
    """
    path, name = Path(source), str(source).lower()
    if path.is_file():
        return PromptFile(path)
    if name.partition(":")[0] == MINIATURE:
        count = name.partition(":")[2] or str(MINIATURE_PROMPTS)
        if not count.isdecimal() or int(count) == 0:
            raise UsageError(f"{name}: expected {MINIATURE}:N with a number of prompts N, found {count!r}")
        return MiniaturePrompts(int(count), seed, mixture if safety else {"helpful": 1.0})
    if path.is_dir():
        raise UsageError(f"{path}: expected a .jsonl file of prompts, found a folder")
    if name in PUBLIC_SETS:
        return PublicPrompts(name)
    if path.suffix or len(path.parts) > 1:
        raise MinillamaError(f"{path}: no such file")
    expected = ", ".join((MINIATURE, *PUBLIC_SETS))
    raise UsageError(f"unknown prompts {str(source)!r}: expected a .jsonl file or one of {expected}")


class PromptFile:
    """The prompts of a JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prompts(self) -> Iterator[Prompt]:
        """One a line. Raises MinillamaError with file and line for a line that is none."""
        for where, record in jsonl_records(self.path):
            check_split(where, record.get("split"))
            content = {"messages": record["prompt"]} if "prompt" in record else record
            messages = [{k: m[k] for k in ("role", "content")} for m in messages_of(where, content)]
            while messages and messages[-1]["role"] != "user":
                messages.pop()
            if not messages:
                raise MinillamaError(f"{where}: expected something that the user says, found nothing")
            safety = record.get("domain") == "safety" or record.get("kind") == "unsafe"
            yield Prompt(tuple(messages), safety, record.get("split") or split_of(messages))

    def identity(self) -> dict[str, Any]:
        """The checksum of the file."""
        return {"name": self.path.name, "sha256": file_sha256(self.path)}


class PublicPrompts:
    """The prompts of a public set of comparisons; those of its safety files are tagged."""

    def __init__(self, name: str) -> None:
        self.files = [(PromptFile(located(name, file)), split, domain) for file, split, domain in PUBLIC_SETS[name]]

    def prompts(self) -> Iterator[Prompt]:
        """File after file."""
        for file, split, domain in self.files:
            for prompt in file.prompts():
                yield replace(prompt, safety=domain == "safety", split=split or prompt.split)

    def identity(self) -> dict[str, Any]:
        """The checksums of the files."""
        return {str(number): file.identity() for number, (file, _, _) in enumerate(self.files)}


class MiniaturePrompts:
    """So many prompts of the miniature's training split, and a twentieth more of its validation split.

    mixture: the share of each kind, in the streams of `miniature.dialogues`.
    """

    def __init__(self, count: int, seed: int, mixture: dict[str, float]) -> None:
        self.count, self.seed, self.mixture = count, seed, mixture

    def prompts(self) -> Iterator[Prompt]:
        """First those to train on."""
        from minillama.miniature import dialogues

        for split, count in (("train", self.count), ("validation", max(1, int(VALIDATION * self.count)))):
            streams = [getattr(dialogues, kind)(split, self.seed) for kind in self.mixture]
            rng = np.random.default_rng([self.seed, split == "validation"])
            for i in rng.choice(len(streams), size=count, p=list(self.mixture.values())):
                conversation = next(streams[i])
                messages = tuple(conversation.messages("first", answers=False))
                yield Prompt(messages, conversation.kind == "unsafe", split)

    def identity(self) -> dict[str, Any]:
        """A checksum of the prompts themselves: they come from code."""
        digest = hashlib.sha256()
        for prompt in self.prompts():
            digest.update(json.dumps([prompt.messages, prompt.safety]).encode())
        return {"miniature": self.count, "seed": self.seed, "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in tokens. asked: what the user said last."""

    tokens: list[int]
    safety: bool
    asked: str


@dataclass
class Prompts:
    """Prompts in tokens, and how many were left out, for being too long or refused by the chat template."""

    train: list[EncodedPrompt] = field(default_factory=list)
    held_out: list[EncodedPrompt] = field(default_factory=list)
    too_long: int = 0
    refused: int = 0

    def batch(self, iteration: int, size: int, seed: int) -> list[EncodedPrompt]:
        """The prompts of `iteration` = 0, 1, …: each epoch has every prompt once, in an order drawn from (seed, epoch).

        A batch may hold the end of an epoch and the beginning of the next.
        """
        orders: dict[int, np.ndarray] = {}
        batch = []
        for number in range(iteration * size, (iteration + 1) * size):
            epoch, place = divmod(number, len(self.train))
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([seed, 0, epoch]).permutation(len(self.train))
            batch.append(self.train[orders[epoch][place]])
        return batch

    def notices(self) -> list[str]:
        """What a user should know, a line each."""
        told = {"too long": self.too_long, "refused by the chat template": self.refused}
        return [f"{count:,} prompts left out: {why}" for why, count in told.items() if count]


def encode_prompts(source: PromptSource, template: ChatTemplate, tokenizer: Tokenizer, longest: int) -> Prompts:
    """All prompts of a source that have at most `longest` tokens. Raises MinillamaError where none is left to train
    on.
    """
    from tqdm import tqdm

    found = Prompts()
    for prompt in tqdm(source.prompts(), "encoding", unit=" prompts", disable=None, delay=2, leave=False):
        try:
            tokens = template.encode(prompt.messages, tokenizer).tokens
        except UsageError:
            found.refused += 1
            continue
        if len(tokens) > longest:
            found.too_long += 1
            continue
        into = found.train if prompt.split == "train" else found.held_out
        into.append(EncodedPrompt(tokens, prompt.safety, prompt.messages[-1]["content"]))
    if not found.train:
        why = "; ".join(found.notices()) or "none is there to train on"
        raise MinillamaError(f"no prompt to answer: {why}")
    return found


def end_token(template: ChatTemplate, tokenizer: Tokenizer) -> int:
    """The token that ends an answer in training, so the one that tells whether a sampled answer is finished.

    Raises UsageError where generation would not stop at it.
    """
    said: Sequence[Message] = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "a"})
    dialogue = template.encode(said, tokenizer, add_generation_prompt=False)
    learned = [token for token, counts in zip(dialogue.tokens, dialogue.loss_mask, strict=True) if counts]
    if not learned or learned[-1] not in tokenizer.stop_ids:
        found = f"token {learned[-1]}" if learned else "no token"
        raise UsageError(f"chat template ({template}): expected answers to end with a stop token, found {found}")
    return learned[-1]
