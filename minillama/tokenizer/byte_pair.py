"""Tokenizers in the form of `tokenizer.json`: byte-level BPE, and SentencePiece-style BPE rewritten by Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillama.errors import MinillamaError
from minillama.tokenizer.base import TURN_NAMES, Framing, Span, Special, Tokenizer
from minillama.tokenizer.byte_level import bytes_of
from minillama.tokenizer.sentencepiece import SPACE, byte_of_name

# Vocabularies have holes, but not more than this many ids without a token: an id beyond is a damaged file.
_MOST_HOLES = 1 << 16


class BytePairTokenizer(Tokenizer):
    """A BPE tokenizer run by the `tokenizers` library.

    spec: the contents of a tokenizer.json. Its post-processor is not used; `framing` says what goes around a text.
    where: what to call the file in error messages. Raises MinillamaError.
    texts: id -> how the file writes the token.

    Control tokens are taken out of what the library sees, so that no text whatever can become one; those that a
    template writes are cut out before (`Tokenizer.encode`, allow_special).
    """

    def __init__(self, spec: dict[str, Any], framing: Framing, where: str = "tokenizer.json"):
        self.spec = spec
        self.where = where
        vocab = _vocab_of(spec, where)
        added = _added_of(spec, where)
        self.texts = {i: text for text, i in vocab.items()} | {token["id"]: token["content"] for token in added}
        size = max(self.texts, default=-1) + 1
        if size > len(self.texts) + _MOST_HOLES:
            raise MinillamaError(f"{where}: found an id of {size - 1} among {len(self.texts)} tokens")
        # A stop can be an ordinary token, a line's end say: only those added beside the vocabulary control anything.
        specials = {
            self.texts[i]: Special(i) for i in (framing.bos_id, framing.eos_id) if i is not None and i in self.texts
        } | {
            token["content"]: Special(token["id"], strip_left=token["lstrip"], strip_right=token["rstrip"])
            for token in added
            if token["special"] or token["id"] in framing.stop_ids or token["content"] in TURN_NAMES
        }
        self._verbatim = {token["content"] for token in added}
        kinds = {str(step.get("type")) for step in _steps(spec.get("decoder"))}
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and not kinds & {"ByteFallback", "Metaspace"}:
            found = ", ".join(sorted(kinds)) or "none"
            raise MinillamaError(f"{where}: expected a byte-level or SentencePiece-style decoder, found {found}")
        self._drops_first_space = any(
            (step.get("type") == "Strip" and step.get("content") == " " and step.get("start") not in (None, 0))
            or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in _steps(spec.get("decoder"))
        )
        super().__init__(size, framing, specials)
        plain = _without(spec, vocab, added, set(specials))
        self._engine = _engine(plain, where)
        # Some models put a space before the very beginning only, not after a control token.
        later = _prepending_nothing(plain["pre_tokenizer"])
        self._later_engine = (
            self._engine if later == plain["pre_tokenizer"] else _engine({**plain, "pre_tokenizer": later}, where)
        )

    @property
    def drops_first_space(self) -> bool:
        """True for SentencePiece-style models, whose decoder strips one space."""
        return self._drops_first_space

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json."""
        from minillama.tokenizer.folder import write_byte_pair

        write_byte_pair(self, Path(folder))

    def gguf_fields(self) -> dict[str, Any]:
        """The fields of llama.cpp's 'gpt2' tokenizer. Raises MinillamaError for a model that GGUF has no name for."""
        from minillama.tokenizer.gguf import byte_pair_fields

        return byte_pair_fields(self)

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        engine = self._engine if first else self._later_engine
        return engine.encode(text, add_special_tokens=False).ids

    def _encode_plain_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts, add_special_tokens=False)]

    def _rules(self) -> list[Any]:
        plain = {key: self.spec.get(key) for key in ("model", "normalizer", "pre_tokenizer")}
        return [plain, sorted(self.texts.items()), sorted(self.specials)]

    def _encode_plain_spans(self, text: str, first: bool) -> list[Span]:
        engine = self._engine if first else self._later_engine
        encoding = engine.encode(text, add_special_tokens=False)
        return [Span(i, start, end) for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def _bytes_of(self, token: int) -> bytes:
        text = self.texts.get(token, "")
        if text in self.specials:
            return b""
        if text in self._verbatim:
            return text.encode()
        if self._byte_level:
            return bytes_of(text)
        byte = byte_of_name(text)
        return bytes([byte]) if byte is not None else text.replace(SPACE, " ").encode()


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object out of a file's bytes. Raises MinillamaError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MinillamaError(f"{where}: expected JSON, found something else ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise MinillamaError(f"{where}: expected a JSON object, found a {type(value).__name__}")
    return value


def _vocab_of(spec: dict[str, Any], where: str) -> dict[str, int]:
    model = spec.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        kind = model.get("type") if isinstance(model, dict) else None
        raise MinillamaError(f"{where}: expected a BPE model with merges, found model type {kind!r}")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(map(_is_id, vocab.values())):
        raise MinillamaError(f"{where}: expected a vocabulary of texts and ids")
    if len(set(vocab.values())) != len(vocab):
        raise MinillamaError(f"{where}: two texts of the vocabulary have the same id")
    return vocab


def _added_of(spec: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The added tokens with every flag present."""
    added = spec.get("added_tokens") or []
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    for token in added if isinstance(added, list) else [None]:
        if not isinstance(token, dict) or not _is_id(token.get("id")) or not isinstance(token.get("content"), str):
            raise MinillamaError(f"{where}: expected added tokens with an id and a content, found {str(token)[:60]!r}")
        if not token["content"] or not all(isinstance(token.get(flag, False), bool) for flag in flags):
            raise MinillamaError(f"{where}: added token {token['id']} is empty or has a flag that is not true or false")
    return [{**dict.fromkeys(flags, False), **token} for token in added]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _steps(spec: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, whether it is a Sequence or not."""
    if not isinstance(spec, dict):
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(spec.get(key), list):
            for step in spec[key]:
                yield from _steps(step)
            return
    yield spec


def _without(
    spec: dict[str, Any], vocab: dict[str, int], added: list[dict[str, Any]], names: set[str]
) -> dict[str, Any]:
    """`spec` as the library gets it: no control tokens, no framing, nothing that cuts or pads."""
    model = spec["model"]
    ordinary = [token for token in added if token["content"] not in names]
    # The library numbers added tokens itself, unless the vocabulary knows them.
    texts = vocab | {token["content"]: token["id"] for token in ordinary}
    unknown = model.get("unk_token")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": ordinary,
        "normalizer": spec.get("normalizer"),
        "pre_tokenizer": spec.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": {**model, "type": "BPE", "vocab": {t: i for t, i in texts.items() if t not in names or t == unknown}},
    }


def _prepending_nothing(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {
            key: "never" if (key, value) == ("prepend_scheme", "first") else _prepending_nothing(value)
            for key, value in spec.items()
        }
    return [_prepending_nothing(item) for item in spec] if isinstance(spec, list) else spec


def _engine(spec: dict[str, Any], where: str) -> Any:
    from tokenizers import Tokenizer as Engine

    try:
        return Engine.from_str(json.dumps(spec))
    except BaseException as error:  # the library raises bare Exceptions, and PanicException beside them
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MinillamaError(f"{where}: the tokenizers library refuses it: {reason}") from None
