"""The tokenizer that a GGUF file carries in its metadata, in both kinds that Llamas use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minillama.errors import MinillamaError
from minillama.tokenizer.base import END_NAMES, Framing, Tokenizer
from minillama.tokenizer.byte_pair import BytePairTokenizer
from minillama.tokenizer.pre_tokenizers import ADDS_BOS, COMPOSES, WHOLE_WORDS_FIRST, name_of, pre_tokenizer
from minillama.tokenizer.sentencepiece import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceTokenizer,
    build_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY = "tokenizer.ggml."
_TYPES = range(NORMAL, 7)
# Every key that can name a token which ends an answer.
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def from_gguf(fields: Mapping[str, Any], where: str = "GGUF file") -> Tokenizer:
    """The tokenizer in a GGUF file's metadata.

    fields: the file's metadata under its own keys ('tokenizer.ggml.model', …) with plain Python values: str, int,
    float, bool, and lists of them. Keys that do not begin with 'tokenizer.' are ignored.
    where: what to call the file in error messages. Raises MinillamaError.
    """
    kind = fields.get(_KEY + "model")
    if kind == "llama":
        return _sentencepiece(fields, where)
    if kind == "gpt2":
        return _byte_pair(fields, where)
    raise MinillamaError(f"{where}: expected a tokenizer of model 'llama' or 'gpt2', found {kind!r}")


def framing_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The GGUF fields that say what goes around a text."""
    framing = tokenizer.framing
    # Ends of a known name are found by it; the two other keys hold what is left.
    others = sorted(i for i in framing.stop_ids - {framing.eos_id} if tokenizer.piece(i) not in END_NAMES)
    ids = {"bos_token_id": framing.bos_id, "eos_token_id": framing.eos_id}
    ids |= dict(zip(_END_KEYS[1:], others, strict=False))
    return {
        _KEY + "add_bos_token": framing.add_bos,
        _KEY + "add_eos_token": framing.add_eos,
        **{_KEY + key: i for key, i in ids.items() if i is not None},
    }


def byte_pair_fields(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    """The fields of a byte-level BPE tokenizer. Raises MinillamaError where llama.cpp has no name for its rules."""
    spec, where = tokenizer.spec, tokenizer.where
    vocab: dict[str, int] = spec["model"]["vocab"]
    added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
    texts = {i: text for text, i in (vocab | added).items()}
    special_ids = {special.id for special in tokenizer.specials.values()}

    def kind_of(i: int) -> int:
        if i not in texts:
            return UNUSED
        if i in special_ids:
            return CONTROL
        return USER_DEFINED if texts[i] in added else NORMAL

    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    ids = range(tokenizer.vocab_size)
    return {
        _KEY + "model": "gpt2",
        _KEY + "pre": name_of(spec.get("pre_tokenizer"), where),
        _KEY + "tokens": [texts.get(i, f"[PAD{i}]") for i in ids],
        _KEY + "token_type": [kind_of(i) for i in ids],
        _KEY + "merges": merges,
        **framing_fields(tokenizer),
    }


def _sentencepiece(fields: Mapping[str, Any], where: str) -> Tokenizer:
    texts, types = _tokens(fields, where)
    scores = _list(fields, "scores", len(texts), _is_finite, "finite numbers", where)
    if scores is None:
        raise MinillamaError(f"{where}: expected {_KEY}scores, found none")
    pieces = [Piece(*piece) for piece in zip(texts, map(float, scores), types, strict=True)]
    model = build_model(
        pieces,
        add_space=_flag(fields, "add_space_prefix", True, where),
        collapse_spaces=_flag(fields, "remove_extra_whitespaces", False, where),
        where=where,
    )
    framing = _framing(fields, texts, types, adds_bos=True, where=where)
    return SentencePieceTokenizer(model, framing, where)


def _byte_pair(fields: Mapping[str, Any], where: str) -> Tokenizer:
    texts, types = _tokens(fields, where)
    merges = _list(fields, "merges", None, lambda m: isinstance(m, str) and m.count(" ") == 1, "pairs of pieces", where)
    if merges is None:
        raise MinillamaError(f"{where}: expected {_KEY}merges, found none")
    # A file that does not say was made before the field existed; llama.cpp then takes its own default.
    pre = str(fields.get(_KEY + "pre", "default"))
    framing = _framing(fields, texts, types, adds_bos=pre in ADDS_BOS, where=where)
    spec = {
        "added_tokens": [
            {"id": i, "content": text, "special": kind in (CONTROL, UNKNOWN)}
            for i, (text, kind) in enumerate(zip(texts, types, strict=True))
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre in COMPOSES else None,
        "pre_tokenizer": pre_tokenizer(pre, where),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, (text, kind) in enumerate(zip(texts, types, strict=True)) if kind != UNUSED},
            "merges": [merge.split(" ") for merge in merges],
            "ignore_merges": pre in WHOLE_WORDS_FIRST,
        },
    }
    return BytePairTokenizer(spec, framing, where)


def _tokens(fields: Mapping[str, Any], where: str) -> tuple[list[str], list[int]]:
    """The vocabulary in order of ids, and what each entry is."""
    texts = _list(fields, "tokens", None, lambda text: isinstance(text, str), "texts", where)
    if not texts:
        raise MinillamaError(f"{where}: expected {_KEY}tokens, found none")
    if len(set(texts)) != len(texts):
        raise MinillamaError(f"{where}: {_KEY}tokens: a text occurs twice")
    types = _list(
        fields, "token_type", len(texts), lambda kind: _is_int(kind) and kind in _TYPES, "types 1 to 6", where
    )
    return texts, types or [NORMAL] * len(texts)


def _framing(fields: Mapping[str, Any], texts: list[str], types: list[int], *, adds_bos: bool, where: str) -> Framing:
    ids = {key: _id(fields, key, len(texts), where) for key in ("bos_token_id", *_END_KEYS)}
    named = {i for i, text in enumerate(texts) if text in END_NAMES and types[i] in (CONTROL, USER_DEFINED)}
    stops = named | {ids[key] for key in _END_KEYS if ids[key] is not None}
    bos, eos = ids["bos_token_id"], ids["eos_token_id"]
    return Framing(
        bos,
        eos,
        add_bos=_flag(fields, "add_bos_token", adds_bos and bos is not None, where),
        add_eos=_flag(fields, "add_eos_token", False, where),
        stop_ids=frozenset(i for i in stops if i is not None),
    )


def _list(
    fields: Mapping[str, Any], key: str, length: int | None, holds: Callable[[Any], bool], what: str, where: str
) -> list[Any] | None:
    values = fields.get(_KEY + key)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or not all(map(holds, values)):
        raise MinillamaError(f"{where}: {_KEY}{key}: expected a list of {what}")
    if length is not None and len(values) != length:
        raise MinillamaError(f"{where}: {_KEY}{key}: expected {length} values, one for each token, found {len(values)}")
    return list(values)


def _flag(fields: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = fields.get(_KEY + key, default)
    if not isinstance(value, bool):
        raise MinillamaError(f"{where}: {_KEY}{key}: expected true or false, found {value!r}")
    return value


def _id(fields: Mapping[str, Any], key: str, size: int, where: str) -> int | None:
    value = fields.get(_KEY + key)
    if value is not None and not (_is_int(value) and 0 <= value < size):
        raise MinillamaError(f"{where}: {_KEY}{key}: expected an id below {size}, found {value!r}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
