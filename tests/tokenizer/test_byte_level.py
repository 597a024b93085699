"""Byte-level BPE out of GGUF fields: pre-tokenizers, framing, control tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer as Engine

from minillama.errors import MinillamaError
from minillama.tokenizer import Tokenizer, from_gguf
from minillama.tokenizer.byte_level import byte_of_character, bytes_of
from minillama.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from tests.tokenizer.models import byte_alphabet, byte_level_fields
from tests.tokenizer.texts import TEXTS, random_texts

NUMBERS = "I'LL don't 12345 x²"
SPACES = "a  b\n\n\n c\t\td  "
CODE = "x==1;\n\n//é日\r\n"
# What the models' own tokenizers cut these texts into (their published patterns, applied by hand).
WORDS = {
    "gpt-2": {
        NUMBERS: ["I", "'", "LL", " don", "'t", " 12345", " x", "²"],
        SPACES: ["a", " ", " b", "\n\n\n", " c", "\t", "\t", "d", "  "],
        CODE: ["x", "==", "1", ";", "\n", "\n", "//", "é日", "\r\n"],
    },
    "smollm": {
        NUMBERS: ["I", "'", "LL", " don", "'t", " ", "1", "2", "3", "4", "5", " x", "²"],
        SPACES: ["a", " ", " b", "\n\n\n", " c", "\t", "\t", "d", "  "],
        CODE: ["x", "==", "1", ";", "\n", "\n", "//", "é日", "\r\n"],
    },
    "llama-bpe": {
        NUMBERS: ["I", "'LL", " don", "'t", " ", "123", "45", " x", "²"],
        SPACES: ["a", " ", " b", "\n\n\n", " c", "\t", "\td", "  "],
        CODE: ["x", "==", "1", ";\n\n", "//", "é日", "\r\n"],
    },
    "qwen2": {
        NUMBERS: ["I", "'LL", " don", "'t", " ", "1", "2", "3", "4", "5", " x", "²"],
        SPACES: ["a", " ", " b", "\n\n\n", " c", "\t", "\td", "  "],
        CODE: ["x", "==", "1", ";\n\n", "//", "é日", "\r\n"],
    },
    "tekken": {
        NUMBERS: ["I", "'LL", " don", "'t", " ", "1", "2", "3", "4", "5", " x", "²"],
        SPACES: ["a", " ", " b", "\n\n\n", " c", "\t", "\td", "  "],
        CODE: ["x", "==", "1", ";\n\n//", "é日", "\r\n"],
    },
    "default": {
        NUMBERS: ["I", "'", "LL", " don", "'", "t", " ", "123", "45", " x", "²"],
        SPACES: ["a", " ", " b", "\n\n\n", " c", "\t", "\t", "d", "  "],
        CODE: ["x", "==", "1", ";", "\n\n", "//", "é日", "\r\n"],
    },
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("text", [NUMBERS, SPACES, CODE], ids=["numbers", "spaces", "code"])
def test_words(name: str, text: str) -> None:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    spec = {"version": "1.0", "added_tokens": [], "pre_tokenizer": PRE_TOKENIZERS[name], "model": model}
    cuts = Engine.from_str(json.dumps(spec)).pre_tokenizer.pre_tokenize_str(text)
    assert [bytes_of(word).decode() for word, _ in cuts] == WORDS[name][text]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return from_gguf(byte_level_fields())


def test_the_alphabet_is_gpt2s() -> None:
    assert sorted(byte_of_character()) == byte_alphabet()
    assert sorted(byte_of_character().values()) == list(range(256))
    assert [byte_of_character()[c] for c in "A!~¡Ġ"] == [0x41, 0x21, 0x7E, 0xA1, 0x20]


def test_merges(small: Tokenizer) -> None:
    assert [small.piece(i) for i in small.encode("hello hell")] == ["hell", "o", " ", "hell"]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_text_comes_back(pre: str) -> None:
    tokenizer = from_gguf(byte_level_fields(pre, add_bos_token=False))
    for text in TEXTS + random_texts(100, seed=4):
        ids = tokenizer.encode(text)
        assert not set(ids) & {0, 1, 2}, "plain text became a control token"
        if pre not in ("qwen2", "deepseek-r1-qwen"):  # these compose accents first
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode_bytes(ids) == text.encode()
        spans = tokenizer.encode_spans(text)
        assert [span.id for span in spans] == ids
        assert all(0 <= span.start <= span.end <= len(text) for span in spans)


def test_qwen2_composes_accents() -> None:
    tokenizer = from_gguf(byte_level_fields("qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


@pytest.mark.parametrize(("pre", "adds"), [("smollm", False), ("gpt-2", False), ("llama-bpe", True), ("tekken", True)])
def test_bos_by_family_unless_the_file_says(pre: str, adds: bool) -> None:
    assert (from_gguf(byte_level_fields(pre)).encode("a")[0] == 1) is adds
    for said in (True, False):
        assert (from_gguf(byte_level_fields(pre, add_bos_token=said)).encode("a")[0] == 1) is said
    assert from_gguf(byte_level_fields(pre, add_eos_token=True)).encode("a")[-1] == 2


def test_stop_ids_are_every_end_of_turn() -> None:
    assert from_gguf(byte_level_fields()).stop_ids == {0, 2}
    tokenizer = from_gguf(byte_level_fields(eot_token_id=5, eom_token_id=6))
    assert tokenizer.stop_ids == {0, 2, 5, 6}
    assert tokenizer.encode('"#') == [4, 5], "a stop that is ordinary text is still text"


def test_control_tokens_only_when_asked(small: Tokenizer) -> None:
    text = "<|im_start|>he<|im_end|>"
    assert small.decode(small.encode(text)) == text
    assert [small.piece(i) for i in small.encode(text, allow_special=True)] == ["<|im_start|>", "he", "<|im_end|>"]
    assert small.decode(small.encode(text, allow_special=True)) == "he"


def test_ordinary_added_tokens_are_found_but_turn_markers_are_not() -> None:
    fields = byte_level_fields()
    fields["tokenizer.ggml.tokens"] += ["<tool>", "<|eot_id|>"]
    fields["tokenizer.ggml.token_type"] += [4, 4]
    tokenizer = from_gguf(fields)
    tool, turn = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert tokenizer.encode("a<tool>")[-1] == tool
    assert tokenizer.decode([tool]) == "<tool>"
    assert turn not in tokenizer.encode("a<|eot_id|>")
    assert turn in tokenizer.stop_ids


def test_the_longer_name_wins() -> None:
    fields = byte_level_fields()
    fields["tokenizer.ggml.tokens"] += ["<x", "<x>"]
    fields["tokenizer.ggml.token_type"] += [3, 3]
    tokenizer = from_gguf(fields)
    assert tokenizer.encode("<x><x", allow_special=True) == [tokenizer.vocab_size - 1, tokenizer.vocab_size - 2]


def test_whole_words_first() -> None:
    """Llama 3 takes a word of its vocabulary whole; but not one that is a control token."""
    for pre, whole in (("llama-bpe", True), ("gpt-2", False)):
        fields = byte_level_fields(pre, add_bos_token=False)
        fields["tokenizer.ggml.tokens"] += ["dog", "cat"]
        fields["tokenizer.ggml.token_type"] += [1, 3]
        tokenizer = from_gguf(fields)
        assert (tokenizer.encode("dog") == [tokenizer.vocab_size - 2]) is whole
        assert tokenizer.vocab_size - 1 not in tokenizer.encode("cat")


def _changed(**changes: Any) -> dict[str, Any]:
    fields = byte_level_fields()
    for key, value in changes.items():
        fields[f"tokenizer.ggml.{key}"] = value
    return fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "expected a tokenizer of model 'llama' or 'gpt2', found 'bert'"),
        ({"model": None}, "expected a tokenizer of model 'llama' or 'gpt2', found None"),
        ({"pre": "nobody"}, "unknown pre-tokenizer 'nobody': expected one of gpt-2, default, smollm"),
        ({"tokens": None}, "tokens, found none"),
        ({"tokens": [1, 2]}, "tokens: expected a list of texts"),
        ({"tokens": ["a", "a"]}, "a text occurs twice"),
        ({"token_type": [1]}, "token_type: expected 262 values"),
        ({"token_type": ["x"]}, "token_type: expected a list of types 1 to 6"),
        ({"merges": None}, "merges, found none"),
        ({"merges": ["abc"]}, "merges: expected a list of pairs"),
        ({"merges": ["h zz"]}, "the tokenizers library refuses it"),
        ({"bos_token_id": 262}, "bos_token_id: expected an id below 262, found 262"),
        ({"eos_token_id": -1}, "eos_token_id: expected an id below 262, found -1"),
        ({"add_bos_token": 3}, "add_bos_token: expected true or false, found 3"),
        ({"bos_token_id": None, "add_bos_token": True}, "none is named"),
        ({"model": "llama"}, "expected tokenizer.ggml.scores, found none"),
        ({"model": "llama", "scores": [0.0] * 262}, "no piece is of the unknown type"),
    ],
)
def test_bad_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MinillamaError, match=message) as error:
        from_gguf(_changed(**changes))
    assert "\n" not in str(error.value)
