"""What the tests of finetuning share: dialogues of a few words, and models that learn them in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minillama import weights
from minillama.chat import TAGS
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.tokenizer import Tokenizer, from_gguf, from_sentencepiece
from minillama.tokenizer import train as train_tokenizer
from minillama.weights import Checkpoint
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece

WHO, WHAT = ("Ann", "Ben", "Cleo", "Dan"), ("apples", "boats", "clouds", "drums")
CONFIG = LlamaConfig(16, 2, 2, 32, vocab_size=330, n_kv_heads=1, max_seq_len=128, tie_embeddings=True)


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages in turns, the user's first."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def exchange(number: int) -> tuple[str, str]:
    """A question and its answer, different for each number."""
    who, what = WHO[number % 4], WHAT[number // 4 % 4]
    return f"{number}: Does {who} like {what}?", f"Yes, {who} likes {what}."


def records(count: int, turns: Sequence[int] = (1, 2, 3)) -> list[dict[str, Any]]:
    """Dialogues of several turns, as OpenAI's format has them."""
    found = []
    for i in range(count):
        several = [exchange(i + 5 * turn) for turn in range(turns[i % len(turns)])]
        found.append({"messages": said(*(text for pair in several for text in pair))})
    return found


def jsonl(path: Path, lines: Sequence[object]) -> Path:
    """A file with a record a line."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@cache
def tags_tokenizer() -> Tokenizer:
    """Llama 2's, small, with the tags of its chat template among its tokens."""
    texts = [" ".join(exchange(i)) for i in range(64)]
    return train_tokenizer(texts, CONFIG.vocab_size, control=TAGS)


@cache
def plain_tokenizer() -> Tokenizer:
    """Llama 2's, small; tags are letters like others."""
    return from_sentencepiece(trained_sentencepiece())


@cache
def chatml_tokenizer() -> Tokenizer:
    """Byte-level, with ChatML's tags among its tokens."""
    return from_gguf(byte_level_fields())


def lively(tokenizer: Tokenizer, dtype: type = np.float32, **changes: Any) -> Llama:
    """A model of a tokenizer's vocabulary whose every part matters: ten times the usual spread."""
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size, **changes)
    model = Llama.init(config, 1, np.float64)
    return Llama(config, {name: (p * 10 if p.ndim > 1 else p).astype(dtype) for name, p in model.params.items()})


def saved(folder: Path, tokenizer: Tokenizer | None, **changes: Any) -> Path:
    """A base model with fresh weights, on disk."""
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size if tokenizer else CONFIG.vocab_size, **changes)
    weights.save(Checkpoint(config, Llama.init(config, seed=2).params, tokenizer), folder)
    return folder
