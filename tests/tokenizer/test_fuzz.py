"""Damaged files: whatever is cut off or flipped, a reader works or says so in one line."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillama.chat import JinjaTemplate, builtin
from minillama.errors import MinillamaError
from minillama.tokenizer import Tokenizer, from_folder, from_gguf, from_llama2c, from_sentencepiece, save_llama2c
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece

ROUNDS = 150
TEXT = "Hello 12  日本 🦙 </s><|im_end|>\n"


def _survives(read: Callable[[], Tokenizer | None]) -> bool:
    """Reads and uses a tokenizer; False where it was refused, properly."""
    start = time.perf_counter()
    try:
        tokenizer = read()
        if tokenizer is not None:
            for special in (False, True):
                tokenizer.encode(TEXT, allow_special=special)
                ids = [span.id for span in tokenizer.encode_spans(TEXT, allow_special=special)]
                tokenizer.decode(ids)
            tokenizer.decode(range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 500))
        return True
    except MinillamaError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert len(message) < 500
        return False
    finally:
        assert time.perf_counter() - start < 5


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` cut off, or with some bits flipped."""
    if rng.random() < 0.3:
        data = data[: rng.randrange(len(data))]
    flipped = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 20]) if flipped else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


JUNK = [None, True, -1, 0, 7, 1 << 40, 1.5, float("nan"), "", "x", "▁", "Ġ", [], ["a", "b"], [1], {}, {"type": "BPE"}]


def _rearranged(value: Any, rng: random.Random) -> Any:
    """A copy of nested lists and dicts with one to three places replaced, dropped or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            action = rng.random()
            if action < 0.2:
                del place[key]
            elif action < 0.3 and isinstance(place, list):
                place.insert(key, copy.deepcopy(place[key]))
            else:
                place[key] = copy.deepcopy(rng.choice(JUNK))
            break
    return value


def test_sentencepiece() -> None:
    rng, data = random.Random(0), trained_sentencepiece()
    results = [_survives(lambda: from_sentencepiece(_damaged(data, rng))) for _ in range(ROUNDS)]
    assert set(results) == {True, False}


def test_sentencepiece_with_normalization() -> None:
    """The table of a normalizer is walked by C++ code: its damage must not be."""
    rng, data = random.Random(1), trained_sentencepiece(normalization_rule_name="nmt_nfkc")
    results = [_survives(lambda: from_sentencepiece(_damaged(data, rng))) for _ in range(ROUNDS)]
    assert set(results) == {True, False}


def test_llama2c(tmp_path: Path) -> None:
    path = tmp_path / "tok400.bin"
    save_llama2c(from_sentencepiece(trained_sentencepiece()), path)
    rng, data = random.Random(2), path.read_bytes()

    def read() -> Tokenizer:
        path.write_bytes(_damaged(data, rng))
        return from_llama2c(path, 400)

    assert {_survives(read) for _ in range(ROUNDS)} == {True, False}


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_folder(tmp_path: Path, kind: str, file: str) -> None:
    make = {"sentencepiece": lambda: from_sentencepiece(trained_sentencepiece())}
    make.get(kind, lambda: from_gguf(byte_level_fields()))().save(tmp_path)
    (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    path = tmp_path / file
    rng, data = random.Random(3), path.read_bytes()

    def flipped() -> Tokenizer | None:
        path.write_bytes(_damaged(data, rng))
        return from_folder(tmp_path)

    def rearranged() -> Tokenizer | None:
        path.write_text(json.dumps(_rearranged(json.loads(data), rng)))
        return from_folder(tmp_path)

    assert {_survives(flipped) for _ in range(ROUNDS)} == {True, False}
    assert True in {_survives(rearranged) for _ in range(ROUNDS)}  # nearly nothing in the settings is needed


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_gguf(kind: str) -> None:
    rng = random.Random(4)
    fields = (
        from_sentencepiece(trained_sentencepiece()).gguf_fields() if kind == "sentencepiece" else byte_level_fields()
    )
    assert {_survives(lambda: from_gguf(_rearranged(fields, rng))) for _ in range(2 * ROUNDS)} == {True, False}


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_chat_templates() -> None:
    rng, tokenizer = random.Random(5), from_gguf(byte_level_fields())
    dialogue = [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b"}]
    refusals = []
    for source in (builtin("llama2").source, builtin("chatml").source):
        for _ in range(ROUNDS):
            damaged = list(source[: rng.randrange(len(source))] if rng.random() < 0.3 else source)
            for _ in range(rng.choice([0, 1, 2, 5])):
                damaged.insert(rng.randrange(len(damaged) + 1), rng.choice("{}%'[]().+-|<>=! \nabm_0"))
                del damaged[rng.randrange(len(damaged))]
            try:
                JinjaTemplate("".join(damaged)).encode(dialogue, tokenizer, add_generation_prompt=False)
            except MinillamaError as error:
                refusals.append(str(error))
    assert 0 < len(refusals) < 2 * ROUNDS
    assert not [message for message in refusals if "\n" in message]
