"""Many texts at once, and the hash that identifies a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillama.errors import UsageError
from minillama.tokenizer import Framing, Tokenizer, from_folder, from_gguf, from_llama2c, from_sentencepiece
from minillama.tokenizer.sentencepiece import build_model
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece
from tests.tokenizer.texts import TEXTS

TOKENIZERS = {
    "sentencepiece": lambda: from_sentencepiece(trained_sentencepiece()),
    "byte-level": lambda: from_gguf(byte_level_fields()),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize("frame", [{}, {"bos": True, "eos": True}, {"bos": False}])
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer, frame: dict[str, bool]) -> None:
    texts = [*TEXTS, "", "<s> </s> <|im_start|>"]
    assert tokenizer.encode_batch(texts, **frame) == [tokenizer.encode(text, **frame) for text in texts]
    assert tokenizer.encode_batch([], **frame) == []


def test_a_batch_with_a_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="lone surrogate at character 1"):
        tokenizer.encode_batch(["fine", "a\ud83e"])


def test_the_hash_survives_saving(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = from_folder(tmp_path)
    assert again is not None
    assert again.sha256 == tokenizer.sha256
    again.save(tmp_path / "twice")
    twice = from_folder(tmp_path / "twice")
    assert twice is not None
    assert twice.sha256 == tokenizer.sha256


def test_the_hash_of_what_came_from_llama2c(tmp_path: Path) -> None:
    from minillama.tokenizer import save_llama2c

    original = from_sentencepiece(trained_sentencepiece())
    save_llama2c(original, tmp_path / "tokenizer.bin")
    tokenizer = from_llama2c(tmp_path / "tokenizer.bin", original.vocab_size)
    tokenizer.save(tmp_path)
    again = from_folder(tmp_path)
    assert again is not None
    assert again.sha256 == tokenizer.sha256


def test_other_tokenizers_have_other_hashes() -> None:
    model = trained_sentencepiece()
    pieces = from_sentencepiece(model).pieces
    tokenizers = [
        from_sentencepiece(model),
        from_sentencepiece(model, Framing(bos_id=2, eos_id=1)),
        from_sentencepiece(trained_sentencepiece(vocab_size=380)),
        from_sentencepiece(trained_sentencepiece(normalization_rule_name="nfkc")),
        from_sentencepiece(build_model(pieces, add_space=False, where="")),
        from_sentencepiece(build_model(pieces, collapse_spaces=True, where="")),
        from_sentencepiece(build_model([*pieces[:-1], pieces[-1]._replace(score=-1e6)], where="")),
        from_gguf(byte_level_fields()),
        from_gguf(byte_level_fields("llama-bpe")),
        from_gguf(byte_level_fields(merges=["l l", "h e", "he ll"])),
    ]
    assert len({tokenizer.sha256 for tokenizer in tokenizers}) == len(tokenizers)
    assert from_sentencepiece(model).sha256 == from_sentencepiece(model).sha256
