"""Preferences: of two answers to a prompt, the one that people chose. Records, files, and sets by name.

A line of JSONL is one pair, in either of these, also mixed in a file:

    {"prompt": [{"role": "user", "content": "…"}, …], "chosen": "…", "rejected": "…"}
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "\\n\\nHuman: …\\n\\nAssistant: …"}      of hh-rlhf

The first may have more: "rating" (how much better, in the paper's four words), "safe" (whether the chosen and the
rejected answer are, as a list of two), "domain" ("helpfulness" or "safety"), "split" ("train" or "validation").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from minillama.alignment.ranking import MARGINS
from minillama.chat import ROLES, Message
from minillama.data.comparisons import PUBLIC_SETS, located
from minillama.data.dialogues import human_assistant
from minillama.data.sources import check_split, file_sha256, jsonl_records
from minillama.errors import MinillamaError, UsageError
from minillama.weights.writing import replaced_file

RATINGS = tuple(MARGINS["small"])  # from the clearest to the least
DOMAINS = ("helpfulness", "safety")
HELD_OUT = 0.1  # the share of pairs that is not trained on, where they do not say themselves


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, and what is known of them.

    prompt: messages up to the user's that both answer. rating: one of RATINGS. safe: whether chosen and rejected are.
    domain: one of DOMAINS. split: "train" or "validation"; None: decided by the prompt's hash.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    rating: str | None = None
    safe: tuple[bool, bool] | None = None
    domain: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        """Raises MinillamaError for what no pair can have."""
        for i, message in enumerate(self.prompt):
            if not isinstance(message, Mapping) or message.get("role") not in ROLES:
                raise MinillamaError(
                    f"prompt, message {i}: expected a role of {', '.join(ROLES)}, found {_brief(message)}"
                )
            if not isinstance(message.get("content"), str):
                raise MinillamaError(f"prompt, message {i}: expected a text as content, found {_brief(message)}")
        if not self.prompt or self.prompt[-1]["role"] != "user":
            raise MinillamaError("prompt: expected messages, the last of them the user's, found another")
        for name in ("chosen", "rejected"):
            answer = getattr(self, name)
            if not isinstance(answer, str) or not answer.strip():
                raise MinillamaError(f"{name}: expected an answer, found {_brief(answer)}")
        if self.rating not in (None, *RATINGS):
            raise MinillamaError(f"rating: expected one of {', '.join(RATINGS)}, found {_brief(self.rating)}")
        if self.safe is not None and not (len(self.safe) == 2 and all(isinstance(s, bool) for s in self.safe)):
            raise MinillamaError(f"safe: expected true or false, of chosen and rejected, found {_brief(self.safe)}")
        if self.domain not in (None, *DOMAINS):
            raise MinillamaError(f"domain: expected one of {', '.join(DOMAINS)}, found {_brief(self.domain)}")

    @property
    def held_out_at(self) -> float:
        """A number in [0, 1) from what the user says first: of a dialogue's continuations all have the same."""
        asked = next(message["content"] for message in self.prompt if message["role"] == "user")
        digest = hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64


@dataclass
class Preferences:
    """Pairs, and what of their files was left out.

    malformed: of hh-rlhf, pairs that are not two answers to one prompt. identical: pairs whose answers are the same.
    files: name and checksum of each file, with the split and the domain that it was read with.
    """

    pairs: list[Pair] = field(default_factory=list)
    malformed: int = 0
    identical: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)

    def split(self, held_out: float = HELD_OUT) -> tuple[list[Pair], list[Pair]]:
        """Those to train on, and those held out: where pairs do not say it, a share `held_out` of the prompts."""
        if not 0 <= held_out < 1:
            raise UsageError(f"held out {held_out}: expected a share, at least 0 and below 1")
        kept: tuple[list[Pair], list[Pair]] = ([], [])
        for pair in self.pairs:
            out = pair.held_out_at < held_out if pair.split is None else pair.split == "validation"
            kept[out].append(pair)
        return kept

    def notices(self) -> list[str]:
        """What a user should know, a line each."""
        said = []
        if self.malformed:
            said.append(f"{self.malformed:,} pairs left out: not two answers to one prompt")
        if self.identical:
            said.append(f"{self.identical:,} pairs left out: both answers are the same")
        return said


def load(sources: Sequence[str | Path]) -> Preferences:
    """The pairs of all sources: `.jsonl` files (or `.gz` of them), or names, one of PUBLIC_SETS.

    The files of a name are looked for in the folder that MINILLAMA_DATA names (and its subfolder text), then in the
    cache, and else downloaded. Raises MinillamaError where a file cannot be had or read, naming file and line;
    UsageError for an unknown name.
    """
    found = Preferences()
    for source in sources:
        path, name = Path(source), str(source).lower()
        if path.is_file():
            _read(path, path.name, None, None, found)
        elif name in PUBLIC_SETS:
            for file, split, domain in PUBLIC_SETS[name]:
                _read(located(name, file), file.name, split, domain, found)
        elif path.suffix or len(path.parts) > 1:
            raise MinillamaError(f"{path}: no such file")
        else:
            raise UsageError(f"unknown preferences {name!r}: expected a .jsonl file or one of {', '.join(PUBLIC_SETS)}")
    return found


def save(pairs: Iterable[Pair], path: str | Path) -> None:
    """Write pairs as JSONL, a line each, beside first and then renamed. Raises MinillamaError."""
    with replaced_file(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        for pair in pairs:
            record = asdict(replace(pair, prompt=tuple(map(dict, pair.prompt))))
            known = {name: value for name, value in record.items() if value is not None}
            file.write(json.dumps(known, ensure_ascii=False) + "\n")


def _read(path: Path, name: str, split: str | None, domain: str | None, into: Preferences) -> None:
    """Add the pairs of a file. split, domain: of pairs that do not say theirs."""
    into.files.append({"name": name, "split": split, "domain": domain, "sha256": file_sha256(path)})
    for pair in _pairs(path, split, domain):
        if pair is None:
            into.malformed += 1
        elif pair.chosen == pair.rejected:
            into.identical += 1
        else:
            into.pairs.append(pair)


def _pairs(path: Path, split: str | None, domain: str | None) -> Iterator[Pair | None]:
    """The pairs of a file in order, None for a malformed one of hh-rlhf."""
    for where, record in jsonl_records(path):
        check_split(where, record.get("split"))
        if "prompt" not in record:
            pair = _human_assistant_pair(where, record)
            yield None if pair is None else replace(pair, split=split, domain=domain)
            continue
        prompt, safe = record["prompt"], record.get("safe")
        if not isinstance(prompt, list) or not isinstance(safe, list | None):
            raise MinillamaError(f"{where}: expected the prompt, and safe if it is there, to be lists")
        texts: dict[str, Any] = {name: record.get(name) for name in ("chosen", "rejected", "rating")}
        try:
            yield Pair(
                prompt=tuple(prompt),
                safe=None if safe is None else tuple(safe),
                domain=record.get("domain", domain),
                split=record.get("split", split),
                **texts,
            )
        except MinillamaError as error:
            raise MinillamaError(f"{where}: {error}") from None


def _human_assistant_pair(where: str, record: Mapping[str, Any]) -> Pair | None:
    """A pair out of two dialogues as hh-rlhf writes them; None where they are not two answers to one prompt."""
    for name in ("chosen", "rejected"):
        if not isinstance(record.get(name), str):
            found = ", ".join(map(repr, record)) or "nothing"
            raise MinillamaError(f"{where}: expected texts as chosen and rejected, found {found}")
    try:
        chosen, rejected = (human_assistant(where, record[name]) for name in ("chosen", "rejected"))
    except MinillamaError:
        return None
    turns = ["user", "assistant"] * (len(chosen) // 2)
    if chosen[:-1] != rejected[:-1] or any([m["role"] for m in dialogue] != turns for dialogue in (chosen, rejected)):
        return None
    if not chosen[-1]["content"] or not rejected[-1]["content"]:
        return None
    return Pair(tuple(chosen[:-1]), chosen[-1]["content"], rejected[-1]["content"])


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
