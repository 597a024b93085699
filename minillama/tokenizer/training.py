"""A new SentencePiece vocabulary from text, in the settings of Llama 2's (paper section 2.2)."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer.atomic import write_bytes
from minillama.tokenizer.base import checked
from minillama.tokenizer.sentencepiece import NORMAL, SPACE, SentencePieceTokenizer, parse_model

# What Llama 2's tokenizer.model says of itself where it departs from SentencePiece's defaults. Not taken over are the
# names of Meta's files and their 80 threads: the file would depend on the machine.
LLAMA2: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,  # a character that is no piece is written as its UTF-8 bytes
    "split_digits": True,  # every digit is a token
    "allow_whitespace_only_pieces": True,  # a run of spaces can be one token
    "normalization_rule_name": "identity",  # text comes back as it was
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": True,  # a text begins with a space, so that its first word is a word like others
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "input_format": "text",
    "num_threads": 1,
}
CHARACTER_COVERAGE = 0.99995  # Llama 2's; the rarest characters, one in 20,000 of a text's, are left to the bytes
SMALLEST = 256 + 3 + 1  # the bytes; unknown, begin and end of sequence; the space before every text
_LONGEST = 1024  # characters of a sentence: SentencePiece drops those of more than 4,192 bytes
_SPACES_LAST = -1e9


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    character_coverage: float = CHARACTER_COVERAGE,
    max_sentences: int = 1_000_000,
    control: Sequence[str] = (),
    seed: int = 0,
    where: str = "text",
) -> SentencePieceTokenizer:
    """A tokenizer of `vocab_size` pieces, learned from `texts`: byte-pair encoding in Llama 2's settings.

    Ids: 0 <unk>, 1 <s>, 2 </s>, then the 256 bytes, the merges from the first to the last, the single characters from
    the most frequent to the rarest. A line of a text is a sentence, so no piece holds a line break: that is a byte.
    character_coverage: the share of the characters of all texts, 0.98 to 1, that get a piece of their own.
    max_sentences: a source of more sentences is sampled, each sentence with the same chance; that bounds the memory.
    control: names of further control tokens, which no text becomes: the tags of a chat template. They have the ids
    after </s>. seed: of the sample. The same texts, sizes and seed give the same bytes of `.model` on any machine.
    where: what to call the texts in error messages.

    Raises MinillamaError where the texts are empty or cannot support `vocab_size`, UsageError for sizes that no text
    can. Source: arXiv:1508.07909 (the algorithm), arXiv:1808.06226 (the library).
    """
    smallest = SMALLEST + len(control)
    if not smallest <= vocab_size < 2**31:
        raise UsageError(f"vocabulary of {vocab_size}: expected at least {smallest}, and below 2^31")
    if not 0.98 <= character_coverage <= 1:
        raise UsageError(f"character coverage {character_coverage}: expected 0.98 to 1")
    if max_sentences < 1:
        raise UsageError(f"sample of {max_sentences} sentences: expected at least 1")
    sample = _sample(_sentences(texts), max_sentences, seed)
    if not sample:
        raise MinillamaError(f"{where}: expected text to learn a vocabulary from, found none")
    return SentencePieceTokenizer(
        _spaces_last(_train(sample, vocab_size, character_coverage, control, where)), where=where
    )


def save_sentencepiece(tokenizer: SentencePieceTokenizer, path: str | Path) -> None:
    """Writes the `.model` file that `from_sentencepiece` reads. Raises MinillamaError."""
    write_bytes(Path(path), tokenizer.model)


def _sentences(texts: Iterable[str]) -> Iterator[bytes]:
    """The lines of all texts in UTF-8, without empty ones; a long line is cut, between two words where it has any."""
    for text in texts:
        for line in checked(text).split("\n"):
            while len(line) > _LONGEST:
                cut = line.rfind(" ", 1, _LONGEST)
                cut = cut if cut > 0 else _LONGEST
                yield line[:cut].encode()
                line = line[cut:].removeprefix(" ")  # every sentence begins with a space, unwritten
            if line.strip():
                yield line.encode()


def _sample(sentences: Iterable[bytes], most: int, seed: int) -> list[bytes]:
    """At most `most` of `sentences`, each with the same chance, in one pass (Vitter 1985, algorithm R).

    SentencePiece can sample too, but by its C++ library's random numbers, which are not the same everywhere.
    """
    rng = random.Random(seed)
    kept: list[bytes] = []
    for count, sentence in enumerate(sentences, 1):
        if count <= most:
            kept.append(sentence)
        # of all methods, random() alone is the same in every Python
        elif (place := int(rng.random() * count)) < most:
            kept[place] = sentence
    return kept


def _train(sample: list[bytes], vocab_size: int, coverage: float, control: Sequence[str], where: str) -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=coverage,
            control_symbols=list(control),
            minloglevel=2,  # errors only, and those are raised
            **LLAMA2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = _in_our_words(str(error), vocab_size, len(control))
        raise MinillamaError(f"{where}: {reason}") from None
    return model.getvalue()


def _in_our_words(message: str, vocab_size: int, control: int) -> str:
    """What SentencePiece's two errors about sizes mean; another one as it is."""
    if most := re.search(r"set it to a value <= (\d+)", message):
        return (
            f"expected a vocabulary of at most {int(most[1]):,}, the most that this text supports, found {vocab_size:,}"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        characters = int(least[1]) - 259 - control
        return (
            f"expected a vocabulary of at least {int(least[1]):,} (256 bytes, {3 + control} special tokens and this "
            f"text's {characters:,} characters), found {vocab_size:,}"
        )
    return (
        f"SentencePiece cannot learn a vocabulary from it: {message.splitlines()[-1] if message else 'no reason given'}"
    )


def _spaces_last(model: bytes) -> bytes:
    """The model as Llama 2's is, where pieces of nothing but spaces are joined after all others.

    A word then keeps the space before it, and is the same token, however many spaces precede that one.
    """
    proto = parse_model(model, "SentencePiece")
    for piece in proto.pieces:
        if piece.type == NORMAL and not piece.piece.strip(SPACE):
            piece.score = _SPACES_LAST
    return proto.SerializeToString(deterministic=True)
