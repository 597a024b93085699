"""Streaming: the text of tokens as they come is the text of all of them, and never half a character."""

from __future__ import annotations

import numpy as np
import pytest

from minillama.errors import UsageError
from minillama.tokenizer import StreamDecoder, Tokenizer, from_gguf, from_llama2c, from_sentencepiece, save_llama2c
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece
from tests.tokenizer.texts import TEXTS, random_texts


@pytest.fixture(scope="module", params=["sentencepiece", "llama2c", "byte-level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "byte-level":
        return from_gguf(byte_level_fields())
    model = from_sentencepiece(trained_sentencepiece())
    if request.param == "sentencepiece":
        return model
    path = tmp_path_factory.mktemp("stream") / "tok400.bin"
    save_llama2c(model, path)
    return from_llama2c(path, 400)


@pytest.mark.parametrize("text", TEXTS + random_texts(40, seed=5))
def test_pieces_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_many_tokens_at_once_are_the_same_tokens_one_by_one(tokenizer: Tokenizer) -> None:
    """Also where their bytes are no text."""
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(tokenizer.vocab_size, size=60).tolist()
        for continues in (False, True):
            together, apart = (StreamDecoder(tokenizer, continues=continues) for _ in range(2))
            one_by_one = "".join([apart.feed(token) for token in ids]) + apart.finish()
            assert together.feed(*ids) + together.finish() == one_by_one


def test_a_character_waits_for_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🦙", bos=False)
    assert len(ids) >= 5
    stream = StreamDecoder(tokenizer)
    assert [stream.feed(token) for token in ids[-4:]] == ["", "", "", "🦙"]
    assert stream.finish() == ""


def test_a_character_that_never_ends(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    first = tokenizer.encode("a🦙", bos=False)[-4:][0]
    assert stream.feed(first) == ""
    assert stream.finish() == "\ufffd"


def test_the_first_space(tokenizer: Tokenizer) -> None:
    (space, *_) = tokenizer.encode("  ", bos=False)
    dropped = len(tokenizer.decode_bytes([space])) - 1 if tokenizer.drops_first_space else None
    text = tokenizer.decode_bytes([space]).decode()
    assert StreamDecoder(tokenizer, continues=True).feed(space) == text
    assert len(StreamDecoder(tokenizer).feed(space)) == (len(text) if dropped is None else dropped)


def test_control_tokens_give_no_text(tokenizer: Tokenizer) -> None:
    """Not even the right to a dropped space: the first text after them is still the first."""
    ids = [tokenizer.bos_id, *tokenizer.encode("the dog", bos=False), tokenizer.eos_id]
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.feed, ids)) == "the dog"


def test_ids_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="expected 0 to"):
        StreamDecoder(tokenizer).feed(tokenizer.vocab_size)
