"""What every tokenizer does: text to token ids and back, with the control tokens kept apart from the text."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from minillama.errors import MinillamaError, UsageError

# Tokens that end an answer, by the names that chat models give them. A model's files often list only one of them.
END_NAMES = frozenset(
    ["</s>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>"]
)
# Tokens that open or close a turn. Some files list them as ordinary pieces; typed by a user they would forge a turn.
TURN_NAMES = END_NAMES | {
    "<s>",
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
}


@dataclass(frozen=True)
class Framing:
    """Which ids frame a text: begin and end of sequence, whether `encode` adds them unasked, where answers stop."""

    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Special:
    """A control token: its id, and whether it swallows the white space before or after it in a template's text."""

    id: int
    strip_left: bool = field(default=False, kw_only=True)
    strip_right: bool = field(default=False, kw_only=True)


class Span(NamedTuple):
    """A token and the characters text[start:end] that it stands for (several tokens can share one character)."""

    id: int
    start: int
    end: int


class Tokenizer(ABC):
    """Text to token ids and back. Made by `from_sentencepiece`, `from_llama2c`, `from_tokenizer_json`, `from_gguf`.

    vocab_size: how many ids there are; ids are 0 … vocab_size - 1.
    framing: the ids around a text and whether they are added unasked.
    specials: name -> control token. Plain text never becomes one of them.
    """

    def __init__(self, vocab_size: int, framing: Framing, specials: Mapping[str, Special]):
        for name, token_id in (("bos", framing.bos_id), ("eos", framing.eos_id)):
            if token_id is not None and not 0 <= token_id < vocab_size:
                raise MinillamaError(f"tokenizer: {name} id {token_id}, expected 0 to {vocab_size - 1}")
        if (framing.add_bos and framing.bos_id is None) or (framing.add_eos and framing.eos_id is None):
            raise MinillamaError("tokenizer: told to add a begin or end token, but none is named")
        self.vocab_size = vocab_size
        self.framing = framing
        self.specials = dict(specials)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a sequence."""
        return self.framing.bos_id

    @property
    def eos_id(self) -> int | None:
        """The token that ends a sequence."""
        return self.framing.eos_id

    @cached_property
    def sha256(self) -> str:
        """Identifies the tokenizer: the same after `save` and loading, another where some text gets other ids."""
        rules = json.dumps([self._rules(), self.bos_id, self.eos_id], sort_keys=True)
        return hashlib.sha256(rules.encode()).hexdigest()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens after which an answer is complete: end of sequence, end of turn."""
        return self.framing.stop_ids

    def encode(
        self, text: str, *, bos: bool | None = None, eos: bool | None = None, allow_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        bos, eos: whether to frame the text; None follows the model's own rule (Llama 2: bos only).
        allow_special: whether a control token's name in the text means that token. Leave it False for anything that a
        user wrote: '</s>' is then four ordinary characters.

        Raises UsageError when the text is not valid Unicode, or a frame is asked for that the model does not have.
        """
        ids: list[int] = []
        for run, special in self._runs(checked(text), allow_special):
            ids += [special.id] if special else self._encode_plain(run, first=not ids)
        return self._framed(ids, bos, eos)

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool | None = None, eos: bool | None = None
    ) -> list[list[int]]:
        """`encode` of each text, on all cores at once; control tokens' names are ordinary characters."""
        encoded = self._encode_plain_batch([checked(text) for text in texts])
        return [self._framed(ids, bos, eos) for ids in encoded]

    def encode_spans(self, text: str, *, allow_special: bool = False, seam: str = "") -> list[Span]:
        """Tokens of `text`, unframed, each with the characters it stands for.

        seam: a character that is no part of the text. It is taken out, but no control token may lie across it: it
        keeps a name typed by a user from being read as the token. Offsets count the text without it.
        """
        spans: list[Span] = []
        offset = 0
        for marked_run, special in self._runs(checked(text), allow_special):
            run = marked_run.replace(seam, "") if seam else marked_run
            if special:
                spans.append(Span(special.id, offset, offset + len(run)))
            elif run:
                plain = self._encode_plain_spans(run, first=offset == 0)
                spans += [Span(token, offset + start, offset + end) for token, start, end in plain]
            offset += len(run)
        return spans

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out; bytes that are not UTF-8 become U+FFFD. Raises UsageError."""
        return self._from_start(self.decode_bytes(ids)).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of each token of `ids`, joined: decode_bytes(a + b) == decode_bytes(a) + decode_bytes(b).

        A SentencePiece text begins with a space that `decode` and `StreamDecoder` leave out; here it is there.
        Raises UsageError for an id outside the vocabulary.
        """
        return b"".join(self._token_bytes[self._checked_id(token)] for token in ids)

    def piece(self, token: int) -> str:
        """A token as a reader wants to see it: a control token's name, else its text. Raises UsageError."""
        token = self._checked_id(token)
        return self._special_names.get(token) or self._token_bytes[token].decode("utf-8", errors="replace")

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer into a checkpoint folder, as `from_folder` and transformers read it."""

    @abstractmethod
    def gguf_fields(self) -> dict[str, Any]:
        """The `tokenizer.ggml.*` fields of a GGUF file, as plain values; `from_gguf` reads them back."""

    @property
    @abstractmethod
    def drops_first_space(self) -> bool:
        """Whether encoding put a space before the text, which decoding takes away."""

    @abstractmethod
    def _encode_plain(self, text: str, first: bool) -> list[int]:
        """Ids of `text` without reading control tokens in it. first: whether nothing stands before it."""

    @abstractmethod
    def _encode_plain_batch(self, texts: list[str]) -> list[list[int]]:
        """`_encode_plain` of each text, nothing standing before it."""

    @abstractmethod
    def _rules(self) -> list[Any]:
        """All that decides which ids a text gets, as JSON can hold it."""

    @abstractmethod
    def _encode_plain_spans(self, text: str, first: bool) -> list[Span]:
        """As `_encode_plain`, with the characters of each token."""

    @abstractmethod
    def _bytes_of(self, token: int) -> bytes:
        """The bytes that `token` stands for; none for a control token."""

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        return [self._bytes_of(token) for token in range(self.vocab_size)]

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {special.id: name for name, special in self.specials.items()}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        # Longest first, so that <|end|> does not win over <|end|><|more|>; no name at all matches nothing.
        names = sorted(self.specials, key=len, reverse=True)
        parts = [
            (r"\s*" if self.specials[n].strip_left else "")
            + f"({re.escape(n)})"
            + (r"\s*" if self.specials[n].strip_right else "")
            for n in names
        ]
        return re.compile("|".join(parts) or r"(?!)")

    def _runs(self, text: str, allow_special: bool) -> Iterator[tuple[str, Special | None]]:
        """`text` cut into control tokens and the plain runs between them."""
        start = 0
        if allow_special:
            for match in self._special_pattern.finditer(text):
                if match.start() > start:
                    yield text[start : match.start()], None
                yield match[0], self.specials[match[match.lastindex or 0]]
                start = match.end()
        if start < len(text):
            yield text[start:], None

    def _framed(self, ids: list[int], bos: bool | None, eos: bool | None) -> list[int]:
        if self.framing.add_bos if bos is None else bos:
            if self.bos_id is None:
                raise UsageError("this tokenizer has no begin-of-sequence token")
            ids.insert(0, self.bos_id)
        if self.framing.add_eos if eos is None else eos:
            if self.eos_id is None:
                raise UsageError("this tokenizer has no end-of-sequence token")
            ids.append(self.eos_id)
        return ids

    def _from_start(self, text: bytes) -> bytes:
        return text.removeprefix(b" ") if self.drops_first_space else text

    def _checked_id(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"token id {token}: expected 0 to {self.vocab_size - 1}")
        return int(token)


def checked(text: str) -> str:
    """`text`, if it can be written as UTF-8. Raises UsageError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"text is not valid Unicode: lone surrogate at character {error.start}") from None
    return text
