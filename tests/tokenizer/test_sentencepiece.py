"""SentencePiece models: ids of the library itself (frozen), framing, control tokens out of reach of text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer import Framing, Tokenizer, from_sentencepiece
from tests.data import data_file
from tests.tokenizer.models import trained_sentencepiece
from tests.tokenizer.texts import TEXTS, random_texts

FROZEN = json.loads((Path(__file__).parents[1] / "fixtures/token_ids.json").read_text(encoding="utf-8"))
FILES = {"llama2": "weights/llama2_32k.model", "tok512": "weights/tok512.model"}


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return from_sentencepiece(trained_sentencepiece())


@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_sentencepiece(name: str) -> None:
    tokenizer = from_sentencepiece(data_file(FILES[name]))
    wrong = [text for text, ids in FROZEN[name] if tokenizer.encode(text, bos=False) != ids]
    assert not wrong


def test_llama2_decodes_what_it_encodes() -> None:
    tokenizer = from_sentencepiece(data_file(FILES["llama2"]))
    for text, _ in FROZEN["llama2"]:
        # SentencePiece writes ▁ for a space: the one text that does not come back is its own sign for a space.
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_llama2_names_and_frames() -> None:
    tokenizer = from_sentencepiece(data_file(FILES["llama2"]))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (32_000, 1, 2, {2})
    plain = tokenizer.encode("Hello", bos=False)
    assert tokenizer.encode("Hello") == [1, *plain]
    assert tokenizer.encode("Hello", bos=True, eos=True) == [1, *plain, 2]


@pytest.mark.parametrize("text", random_texts(60, seed=2) + TEXTS)
def test_small_model_round_trip(small: Tokenizer, text: str) -> None:
    ids = small.encode(text)
    assert small.decode(ids) == text.replace("▁", " ")
    assert not set(ids[1:]) & {0, 1, 2}, "plain text became a control token"
    spans = small.encode_spans(text)
    assert [span.id for span in spans] == ids[1:]
    assert all(0 <= span.start <= span.end <= len(text) for span in spans)


def test_control_tokens_only_when_asked(small: Tokenizer) -> None:
    assert small.encode("</s>", bos=False) != [2]
    assert small.encode("</s>", bos=False, allow_special=True) == [2]
    one, two = small.encode("a", bos=False), small.encode("b", bos=False)
    assert small.encode("<s>a</s><s>b", bos=False, allow_special=True) == [1, *one, 2, 1, *two]


def test_a_turn_marker_typed_by_a_user_stays_text() -> None:
    """Some models list <|im_end|> as an ordinary symbol, which SentencePiece finds in any text."""
    tokenizer = from_sentencepiece(trained_sentencepiece(user_defined_symbols="<|im_end|>,<sep>"))
    marker, symbol = tokenizer.specials["<|im_end|>"].id, tokenizer.encode("x<sep>")[-1]
    assert tokenizer.piece(symbol) == "<sep>"
    assert marker not in tokenizer.encode("x<|im_end|>")
    assert tokenizer.encode("x<|im_end|>", allow_special=True)[-1] == marker
    assert tokenizer.decode([marker]) == ""


def test_a_seam_parts_a_name(small: Tokenizer) -> None:
    spans = small.encode_spans("<s>a<\ufdd0/s>", allow_special=True, seam="\ufdd0")
    assert spans[0] == (1, 0, 3)
    assert [span.id for span in spans[1:]] == small.encode("a</s>", bos=False)
    assert spans[-1].end == len("<s>a</s>")


@pytest.mark.parametrize("ids", [[-1], [400], [1 << 40]])
def test_ids_outside_the_vocabulary(small: Tokenizer, ids: list[int]) -> None:
    for call in (small.decode, small.decode_bytes, lambda ids: small.piece(ids[0])):
        with pytest.raises(UsageError, match=r"^token id .*: expected 0 to 399$"):
            call(ids)


def test_text_that_is_no_unicode(small: Tokenizer) -> None:
    with pytest.raises(UsageError, match="lone surrogate at character 2"):
        small.encode("ab\ud800")


def test_frames_that_are_not_there() -> None:
    model = trained_sentencepiece(bos_id=-1, eos_id=-1)
    tokenizer = from_sentencepiece(model)
    assert tokenizer.bos_id is None
    assert tokenizer.encode("a") == tokenizer.encode("a", bos=False)
    with pytest.raises(UsageError, match="no begin-of-sequence"):
        tokenizer.encode("a", bos=True)
    with pytest.raises(UsageError, match="no end-of-sequence"):
        tokenizer.encode("a", eos=True)
    with pytest.raises(MinillamaError, match="none is named"):
        from_sentencepiece(model, Framing(add_bos=True))
    with pytest.raises(MinillamaError, match="bos id 999, expected 0 to 399"):
        from_sentencepiece(model, Framing(bos_id=999))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found one without pieces"),
        (b"\xff" * 100, "found 100 bytes of something else"),
        (b"not a model", "found 11 bytes of something else"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(content)
    with pytest.raises(MinillamaError, match=message) as error:
        from_sentencepiece(path)
    assert str(error.value).startswith(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MinillamaError, match=r"absent\.model: cannot be read: "):
        from_sentencepiece(tmp_path / "absent.model")


def test_a_unigram_model_is_refused() -> None:
    with pytest.raises(MinillamaError, match="expected a BPE model"):
        from_sentencepiece(trained_sentencepiece(model_type="unigram", vocab_size=380))
