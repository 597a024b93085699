"""llama2.c's tokenizer.bin: ids of run.c's own algorithm, files back bit by bit."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer import from_gguf, from_llama2c, from_sentencepiece, save_llama2c
from tests.data import data_file
from tests.tokenizer import run_c
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece
from tests.tokenizer.texts import TEXTS, random_texts

TEXTS_HERE = TEXTS + random_texts(300, seed=3)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "tok400.bin"
    save_llama2c(from_sentencepiece(trained_sentencepiece()), path)
    return path


def _assert_as_run_c(path: Path, vocab_size: int) -> None:
    tokenizer = from_llama2c(path, vocab_size)
    pieces, scores = run_c.read(path.read_bytes())
    wrong = [text for text in TEXTS_HERE if tokenizer.encode(text, bos=False) != run_c.encode(text, pieces, scores)]
    assert not wrong
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS_HERE] == TEXTS_HERE


def test_ids_are_those_of_run_c(small: Path) -> None:
    _assert_as_run_c(small, 400)


def test_tok512() -> None:
    _assert_as_run_c(data_file("weights/tok512.bin"), 512)


def test_tok512_comes_back_bit_by_bit(tmp_path: Path) -> None:
    path = data_file("weights/tok512.bin")
    save_llama2c(from_llama2c(path, 512), tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_llama2_as_llama2c(tmp_path: Path) -> None:
    original = from_sentencepiece(data_file("weights/llama2_32k.model"))
    save_llama2c(original, tmp_path / "tokenizer.bin")
    again = from_llama2c(tmp_path / "tokenizer.bin", 32_000)
    texts = [text for text in TEXTS_HERE if "▁" not in text]  # run.c takes ▁ for itself, SentencePiece for a space
    assert [again.encode(text) for text in texts] == [original.encode(text) for text in texts]
    assert again.framing == original.framing


def test_other_tokenizers_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SentencePiece tokenizers only"):
        save_llama2c(from_gguf(byte_level_fields()), tmp_path / "x.bin")
    with pytest.raises(UsageError, match="bos 1, eos 2"):
        save_llama2c(from_sentencepiece(trained_sentencepiece(bos_id=2, eos_id=1)), tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


def test_bad_files(small: Path) -> None:
    data = small.read_bytes()

    def refused(content: bytes, vocab_size: int = 400) -> str:
        small.write_bytes(content)
        with pytest.raises(MinillamaError) as error:
            from_llama2c(small, vocab_size)
        message = str(error.value)
        assert message.startswith(f"{small}: ")
        assert "\n" not in message
        return message

    assert "expected 400 pieces, found 0" in refused(b"")
    assert "expected 400 pieces, found 399" in refused(data[:-1])
    assert "expected 500 pieces, found 400" in refused(data, 500)
    assert "more bytes after them" in refused(data, 300)
    assert "has length 1073741824" in refused(data[:8] + struct.pack("<i", 1 << 30) + data[12:])
    assert "score nan" in refused(data[:4] + struct.pack("<f", float("nan")) + data[8:])
    assert "expected the pieces <0x00> to <0xFF>" in refused(data.replace(b"<0x0A>", b"<0x0B>", 1))
    with pytest.raises(MinillamaError, match=r"absent\.bin: cannot be read"):
        from_llama2c(small.with_name("absent.bin"), 400)
