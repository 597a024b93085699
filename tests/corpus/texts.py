"""What the tests of the data pipeline share: a tokenizer, documents, and files of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from minillama.tokenizer import Tokenizer, from_sentencepiece
from tests.tokenizer.models import STORY, trained_sentencepiece

SEPARATOR = "<|endoftext|>"


@cache
def tokenizer() -> Tokenizer:
    """A small SentencePiece tokenizer with bytes."""
    return from_sentencepiece(trained_sentencepiece())


@cache
def other_tokenizer() -> Tokenizer:
    """Another one."""
    return from_sentencepiece(trained_sentencepiece(vocab_size=380))


def stories(count: int, seed: int = 0) -> list[str]:
    """Different texts of one to forty words, with characters of one to four bytes."""
    rng = np.random.default_rng(seed)
    words = [*STORY.split(), "café", "日本", "🦙", "12.5", "\n"]
    texts = (" ".join(rng.choice(words, size=rng.integers(1, 40))).strip() for _ in range(count))
    return [f"{number} {text}".strip() for number, text in enumerate(texts)]


def text_file(path: Path, texts: list[str]) -> Path:
    """A .txt file of `texts`."""
    path.write_bytes(f"\n{SEPARATOR}\n".join(texts).encode())
    return path
