"""Small tokenizers made on the spot, for tests that need no data."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from tests.tokenizer.texts import TEXTS

STORY = "the little girl was happy and the dog ran to the big red house once upon a time there was a boy named Tim"
LINES = [STORY[i:] + " " + STORY[:i] for i in range(0, len(STORY), 5)] + [t for t in TEXTS if t.isascii() and t.strip()]


@cache
def trained_sentencepiece(**options: Any) -> bytes:
    """A SentencePiece BPE model with Llama 2's settings, trained on a few lines."""
    from sentencepiece import SentencePieceTrainer

    settings: dict[str, Any] = {
        "vocab_size": 400,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "minloglevel": 2,
    }
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, num_threads=1, **(settings | dict(options))
    )
    return model.getvalue()


def byte_alphabet() -> list[str]:
    """GPT-2's 256 characters for bytes, from the library and in its order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def byte_level_fields(pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """The GGUF fields of a byte-level BPE with three merges and ChatML's control tokens."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "he", "ll", "hell"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }
