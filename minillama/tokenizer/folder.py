"""The tokenizer of a Hugging Face folder: `tokenizer.json`, `tokenizer.model` and the settings beside them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from minillama.errors import MinillamaError
from minillama.tokenizer.atomic import write_bytes
from minillama.tokenizer.base import END_NAMES, Framing, Tokenizer
from minillama.tokenizer.byte_pair import BytePairTokenizer, parse_json
from minillama.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceTokenizer,
    build_model,
    from_sentencepiece,
)


def from_folder(folder: str | Path) -> Tokenizer | None:
    """The tokenizer in a Hugging Face (or our own) checkpoint folder; None where there is none.

    `tokenizer.model` is taken where it says everything, because it is the original; `tokenizer.json` where it is alone
    or adds tokens. Raises MinillamaError for a damaged file.
    """
    folder = Path(folder)
    as_json, as_model = folder / "tokenizer.json", folder / "tokenizer.model"
    if not as_json.is_file():
        return from_sentencepiece(as_model, _framing_beside(as_model)) if as_model.is_file() else None
    tokenizer = from_tokenizer_json(as_json)
    if as_model.is_file():
        original = from_sentencepiece(as_model, tokenizer.framing)
        if _says_the_same(original, tokenizer):
            return original
    return tokenizer


def _says_the_same(original: SentencePieceTokenizer, rewritten: BytePairTokenizer) -> bool:
    """Whether the two files have the same tokens, ordinary and special (only one of them calls <unk> special)."""
    unknown = {piece.text for piece in original.pieces if piece.type == UNKNOWN}
    return (
        dict(enumerate(piece.text for piece in original.pieces)) == rewritten.texts
        and original.specials.keys() - unknown == rewritten.specials.keys() - unknown
    )


def from_tokenizer_json(path: str | Path) -> BytePairTokenizer:
    """The tokenizer in a `tokenizer.json`, run by the `tokenizers` library.

    Which tokens begin and end a text is read from the files beside it where they exist (tokenizer_config.json,
    special_tokens_map.json, config.json, generation_config.json); whether they are added unasked, from the
    post-processor. Raises MinillamaError.
    """
    path = Path(path)
    spec = parse_json(_read(path), str(path))
    try:
        return BytePairTokenizer(spec, _framing_of(path, spec), str(path))
    except RecursionError:
        raise MinillamaError(f"{path}: expected a tokenizer, found lists nested without end") from None


def write_byte_pair(tokenizer: BytePairTokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json. Raises MinillamaError."""
    spec = {**_EMPTY, **tokenizer.spec, "post_processor": _post_processor(tokenizer)}
    if not tokenizer.spec.get("added_tokens"):
        spec["added_tokens"] = []
    spec["added_tokens"] = [
        {**_FLAGS, **token, "special": token["content"] in tokenizer.specials} for token in spec["added_tokens"]
    ]
    _write(tokenizer, spec, folder)


def write_sentencepiece(tokenizer: SentencePieceTokenizer, folder: Path) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json. Raises MinillamaError."""
    normalizer = tokenizer.proto.normalizer_spec
    model = tokenizer.model
    if not normalizer.escape_whitespaces:
        model = build_model(
            tokenizer.pieces,
            add_space=normalizer.add_dummy_prefix,
            collapse_spaces=normalizer.remove_extra_whitespaces,
            where="tokenizer.model",
        )
    write_bytes(folder / "tokenizer.model", model)
    pieces = tokenizer.pieces
    unknown = next(piece.text for piece in pieces if piece.type == UNKNOWN)
    spec = {
        **_EMPTY,
        "added_tokens": [
            {**_FLAGS, "id": i, "content": piece.text, "special": piece.type != USER_DEFINED}
            for i, piece in enumerate(pieces)
            if piece.type in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(tokenizer)},
        "post_processor": _post_processor(tokenizer),
        "decoder": {"type": "Sequence", "decoders": _decoders(tokenizer)},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == BYTE for piece in pieces),
            "vocab": {piece.text: i for i, piece in enumerate(pieces)},
            "merges": _merges(tokenizer),
        },
    }
    _write(tokenizer, spec, folder)


_EMPTY: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None}
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _write(tokenizer: Tokenizer, spec: dict[str, Any], folder: Path) -> None:
    config: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; the Llama class would rebuild half of it by other rules.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.framing.add_bos,
        "add_eos_token": tokenizer.framing.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.bos_id is not None:
        config["bos_token"] = tokenizer.piece(tokenizer.bos_id)
    if tokenizer.eos_id is not None:
        config["eos_token"] = tokenizer.piece(tokenizer.eos_id)
    write_bytes(folder / "tokenizer.json", json.dumps(spec, ensure_ascii=False).encode())
    write_bytes(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())


def _normalizers(tokenizer: SentencePieceTokenizer) -> list[dict[str, Any]]:
    spec = tokenizer.proto.normalizer_spec
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": SPACE + r"+\z"}, "content": ""})
    return steps


def _decoders(tokenizer: SentencePieceTokenizer) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if tokenizer.drops_first_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _merges(tokenizer: SentencePieceTokenizer) -> list[list[str]]:
    """The pairs that make up a piece, best score first: what the scores mean, in the words of the other library."""
    ids = {
        piece.text: i for i, piece in enumerate(tokenizer.pieces) if piece.type not in (CONTROL, UNKNOWN, BYTE, UNUSED)
    }
    merges = [
        (-tokenizer.pieces[i].score, ids[text[:cut]], ids[text[cut:]], [text[:cut], text[cut:]])
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [pair for *_, pair in sorted(merges)]


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers puts around a text."""
    bos, eos = [  # each no name or one
        [tokenizer.piece(i)] if added and i is not None else []
        for i, added in (
            (tokenizer.bos_id, tokenizer.framing.add_bos),
            (tokenizer.eos_id, tokenizer.framing.add_eos),
        )
    ]
    frames = {name: {"id": name, "ids": [tokenizer.specials[name].id], "tokens": [name]} for name in bos + eos}

    def framed(sequence: str, type_id: int) -> list[dict[str, Any]]:
        return [
            *({"SpecialToken": {"id": name, "type_id": type_id}} for name in bos),
            {"Sequence": {"id": sequence, "type_id": type_id}},
            *({"SpecialToken": {"id": name, "type_id": type_id}} for name in eos),
        ]

    single = framed("A", 0)
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + framed("B", 1),
        "special_tokens": frames,
    }


def _framing_of(path: Path, spec: dict[str, Any]) -> Framing:
    config = _beside(path, "tokenizer_config.json")
    names = {**_beside(path, "special_tokens_map.json"), **config}
    model = {**_beside(path, "config.json"), **_beside(path, "generation_config.json")}
    ids = _ids_by_text(spec)
    before, after = _template(spec.get("post_processor"))

    def frame(key: str, fallback: list[str]) -> int | None:
        name = names.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        found = _ids([ids.get(n) for n in (name, *fallback) if isinstance(n, str)])
        listed = [i for i in _ids(model.get(f"{key}_token_id")) if i in ids.values()]
        return next(iter(found + listed), None)

    bos, eos = frame("bos", before), frame("eos", after)
    ends = {ids[name] for name in END_NAMES & ids.keys()}
    listed = {i for i in _ids(model.get("eos_token_id")) if i in ids.values()}
    stops = ends | listed | ({eos} if eos is not None else set())
    return Framing(
        bos,
        eos,
        add_bos=bos is not None and [bos] == [ids.get(name) for name in before],
        add_eos=eos is not None and [eos] == [ids.get(name) for name in after],
        stop_ids=frozenset(stops),
    )


def _ids_by_text(spec: dict[str, Any]) -> dict[str, int]:
    """Every token of a tokenizer.json; what is no token in it is for the tokenizer itself to refuse."""
    model, added = spec.get("model"), spec.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    listed = [(t.get("content"), t.get("id")) for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    pairs = [*(vocab.items() if isinstance(vocab, dict) else ()), *listed]
    return {text: i for text, i in pairs if isinstance(text, str) and isinstance(i, int)}


def _framing_beside(path: Path) -> Framing:
    """For a folder that has only a SentencePiece model: its own ids, added as tokenizer_config.json says."""
    framing = from_sentencepiece(path).framing
    config = _beside(path, "tokenizer_config.json")
    stops = set(_ids(_beside(path, "generation_config.json").get("eos_token_id")))
    return Framing(
        framing.bos_id,
        framing.eos_id,
        add_bos=config.get("add_bos_token", True) is True and framing.bos_id is not None,
        add_eos=config.get("add_eos_token", False) is True and framing.eos_id is not None,
        stop_ids=framing.stop_ids | stops,
    )


def _template(post_processor: Any) -> tuple[list[str], list[str]]:
    """The names of the tokens that a post-processor puts before and after a text."""
    steps = post_processor.get("processors") if isinstance(post_processor, dict) else None
    for step in steps if isinstance(steps, list) else [post_processor]:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list):
            parts = [part for part in step["single"] if isinstance(part, dict)]
            text = next((i for i, part in enumerate(parts) if "Sequence" in part), len(parts))
            names = [
                str(part["SpecialToken"].get("id")) if isinstance(part.get("SpecialToken"), dict) else ""
                for part in parts
            ]
            return [n for n in names[:text] if n], [n for n in names[text:] if n]
    return [], []


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]


def _beside(path: Path, name: str) -> dict[str, Any]:
    other = path.with_name(name)
    return parse_json(_read(other), str(other)) if other.is_file() else {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read: {error.strerror}") from None
