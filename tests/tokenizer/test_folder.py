"""Folders and round trips: what is written is read back with the same ids, in every format that can hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minillama.errors import MinillamaError
from minillama.tokenizer import Framing, Tokenizer, from_folder, from_gguf, from_sentencepiece, from_tokenizer_json
from minillama.tokenizer.byte_pair import BytePairTokenizer
from minillama.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece
from tests.tokenizer.texts import TEXTS, random_texts

TEXTS_HERE = TEXTS + random_texts(150, seed=6)
MAKERS = {
    "llama": lambda: from_sentencepiece(trained_sentencepiece()),
    "collapsing": lambda: from_sentencepiece(trained_sentencepiece(remove_extra_whitespaces=True)),
    "no first space": lambda: from_sentencepiece(trained_sentencepiece(add_dummy_prefix=False)),
    "symbols": lambda: from_sentencepiece(trained_sentencepiece(user_defined_symbols="<sep>,<|im_end|>")),
    "adds eos": lambda: from_sentencepiece(trained_sentencepiece(), Framing(1, 2, True, True, frozenset([2, 7]))),
    **{pre: (lambda pre=pre: from_gguf(byte_level_fields(pre))) for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2")},
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param]()


def _assert_same(again: Tokenizer | None, tokenizer: Tokenizer, *, stops: bool = True) -> None:
    assert again is not None
    for text in TEXTS_HERE:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == tokenizer.decode(ids)
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
    assert (again.vocab_size, again.bos_id, again.eos_id) == (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    assert not stops or again.stop_ids == tokenizer.stop_ids


def test_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    # The checkpoint's writer puts stop ids that have no name into generation_config.json.
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(tokenizer.stop_ids)}))
    again = from_folder(tmp_path)
    _assert_same(again, tokenizer)
    assert type(again) is type(tokenizer)


def test_tokenizer_json_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What the tokenizers library makes of our tokenizer.json is what SentencePiece makes of the model."""
    tokenizer.save(tmp_path)
    _assert_same(from_tokenizer_json(tmp_path / "tokenizer.json"), tokenizer, stops=False)


def test_gguf(tokenizer: Tokenizer) -> None:
    _assert_same(from_gguf(tokenizer.gguf_fields()), tokenizer)


def test_saving_twice_gives_the_same_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    from_folder(tmp_path / "a").save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert from_folder(tmp_path) is None


def test_a_model_file_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    assert from_folder(tmp_path).framing == Framing(1, 2, True, False, frozenset([2]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "add_eos_token": True}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert from_folder(tmp_path).framing == Framing(1, 2, False, True, frozenset([2, 9]))


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))


def test_tokens_added_later_are_in_the_json_only(tmp_path: Path) -> None:
    """Fine-tuned Llamas keep the original tokenizer.model beside a tokenizer.json with more tokens."""
    from_sentencepiece(trained_sentencepiece()).save(tmp_path)
    assert isinstance(from_folder(tmp_path), SentencePieceTokenizer)
    added = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    _edit(tmp_path, added_tokens=[*added, {**added[0], "id": 400, "content": "<|im_end|>"}])
    tokenizer = from_folder(tmp_path)
    assert isinstance(tokenizer, BytePairTokenizer)
    assert tokenizer.vocab_size == 401
    assert tokenizer.stop_ids == {2, 400}
    assert 400 not in tokenizer.encode("a<|im_end|>")
    assert tokenizer.encode("a<|im_end|>", allow_special=True)[-1] == 400


def test_a_space_before_the_very_beginning_only(tmp_path: Path) -> None:
    """Metaspace 'first', as newer Llama folders have it: no space after a control token."""
    from_sentencepiece(trained_sentencepiece()).save(tmp_path)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    _edit(tmp_path, normalizer=None, pre_tokenizer=metaspace)
    tokenizer = from_tokenizer_json(tmp_path / "tokenizer.json")

    def pieces(text: str) -> bytes:
        return tokenizer.decode_bytes(tokenizer.encode(text, bos=False, allow_special=True))

    assert (pieces("a"), pieces("<s>a"), pieces("a</s>b")) == (b" a", b"a", b" ab")
    for text in ("a", "<s>a", "a</s>b"):
        ids = tokenizer.encode(text, bos=False, allow_special=True)
        assert [span.id for span in tokenizer.encode_spans(text, allow_special=True)] == ids


def test_pieces_made_special_later_are_in_the_json_only(tmp_path: Path) -> None:
    original = from_sentencepiece(trained_sentencepiece())
    original.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    added = {**data["added_tokens"][0], "id": 390, "content": original.pieces[390].text}
    _edit(tmp_path, added_tokens=[*data["added_tokens"], added])
    assert from_folder(tmp_path).specials.keys() == {"<s>", "</s>", added["content"]}


def test_control_tokens_that_swallow_space(tmp_path: Path) -> None:
    from_gguf(byte_level_fields()).save(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    _edit(tmp_path, added_tokens=[{**token, "rstrip": token["id"] == 1, "lstrip": token["id"] == 2} for token in added])
    tokenizer = from_folder(tmp_path)
    ids = tokenizer.encode("<|im_start|> \n a \t<|im_end|> b", allow_special=True)
    assert [tokenizer.piece(i) for i in ids] == ["<|im_start|>", "a", "<|im_end|>", " ", "b"]
    spans = tokenizer.encode_spans("<|im_start|> \n a", allow_special=True)
    assert spans[-1][1:] == (len("<|im_start|> \n "), len("<|im_start|> \n a"))


def test_frames_from_the_files_beside(tmp_path: Path) -> None:
    from_gguf(byte_level_fields()).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert from_folder(tmp_path).framing == Framing(None, None, stop_ids=frozenset([0, 2]))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 0]}))
    assert from_folder(tmp_path).framing == Framing(1, 2, stop_ids=frozenset([0, 2]))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert from_folder(tmp_path).eos_id == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "expected a BPE model with merges, found model type None"),
        (
            {"model": {"type": "WordPiece", "vocab": {}}},
            "expected a BPE model with merges, found model type 'WordPiece'",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "expected a vocabulary of texts and ids"),
        ({"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}, "merges": []}}, "have the same id"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}}, "found an id of 1099511627776 among"),
        ({"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["a b"]}}, "the tokenizers library refuses it: "),
        ({"decoder": {"type": "WordPiece"}}, "expected a byte-level or SentencePiece-style decoder, found WordPiece"),
        ({"decoder": None}, "expected a byte-level or SentencePiece-style decoder, found none"),
        ({"added_tokens": [{"id": "x", "content": "y"}]}, "expected added tokens with an id and a content"),
        ({"added_tokens": {"a": 1}}, "expected added tokens"),
        ({"pre_tokenizer": {"type": "Nobody"}}, "the tokenizers library refuses it: "),
    ],
)
def test_bad_json(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    from_gguf(byte_level_fields()).save(tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(MinillamaError, match=message) as error:
        from_folder(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(MinillamaError, match=r"expected (a )?JSON") as error:
        from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_nested_without_end(tmp_path: Path) -> None:
    from_gguf(byte_level_fields()).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    data, depth = path.read_text("utf-8"), 900
    at = data.index('"decoder":') + len('"decoder":')
    path.write_text(data[:at] + '{"decoders":[' * depth + "]}" * depth + "," + '"old":' + data[at:], encoding="utf-8")
    # Which of them depends on how deep this Python's JSON goes.
    said = r"nested without end|expected JSON|refuses|expected a byte-level"
    with pytest.raises(MinillamaError, match=said) as error:
        from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pre_tokenizer_without_a_gguf_name(tmp_path: Path) -> None:
    from_gguf(byte_level_fields()).save(tmp_path)
    _edit(
        tmp_path, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    )
    with pytest.raises(MinillamaError, match="GGUF has no name for this tokenizer's pre-tokenizer"):
        from_folder(tmp_path).gguf_fields()


def test_nothing_is_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way")
    with pytest.raises(MinillamaError, match="cannot be written"):
        from_sentencepiece(trained_sentencepiece()).save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
