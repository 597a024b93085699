"""SentencePiece tokenizers: Llama 2's own, and those that llama2.c and GGUF files carry in other wrappings."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minillama.errors import MinillamaError
from minillama.tokenizer.base import END_NAMES, TURN_NAMES, Framing, Span, Special, Tokenizer

SPACE = "▁"  # how SentencePiece writes a space inside a piece
# Types of a piece, as in sentencepiece_model.proto; GGUF uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNKNOWN_TEXT = " \N{DOUBLE QUESTION MARK} "  # what SentencePiece prints for a character that it could not encode


class Piece(NamedTuple):
    """One entry of the vocabulary; among possible merges the one of the highest score comes first."""

    text: str
    score: float
    type: int


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece BPE model.

    model: the serialized ModelProto. framing: None takes bos and eos from the model, and adds bos as Llama does.
    where: what to call the model in error messages. Raises MinillamaError.
    """

    def __init__(self, model: bytes, framing: Framing | None = None, where: str = "SentencePiece model"):
        from sentencepiece import SentencePieceProcessor

        self.model = model
        self.proto = parse_model(model, where)
        escaped = self.proto.normalizer_spec.escape_whitespaces
        self.pieces = [
            Piece(p.piece if escaped else p.piece.replace(" ", SPACE), p.score, p.type) for p in self.proto.pieces
        ]
        framing = framing or _framing_of(self.proto, self.pieces)
        turns = framing.stop_ids | {i for i, piece in enumerate(self.pieces) if piece.text in TURN_NAMES}
        specials = {
            piece.text: Special(i)
            for i, piece in enumerate(self.pieces)
            if piece.type == CONTROL
            or i in (framing.bos_id, framing.eos_id)
            or (piece.type == USER_DEFINED and i in turns)
        }
        try:
            self._processor = SentencePieceProcessor(model_proto=_guarded(self.proto, specials))
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
            raise MinillamaError(f"{where}: SentencePiece refuses it: {reason}") from None
        super().__init__(len(self.pieces), framing, specials)

    @property
    def drops_first_space(self) -> bool:
        """True where the model puts a space before every text."""
        return self.proto.normalizer_spec.add_dummy_prefix

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.model (exact), and tokenizer.json with tokenizer_config.json for transformers."""
        from minillama.tokenizer.folder import write_sentencepiece

        write_sentencepiece(self, Path(folder))

    def gguf_fields(self) -> dict[str, Any]:
        """The fields of llama.cpp's 'llama' tokenizer: pieces, scores, types, and the rules around them."""
        from minillama.tokenizer.gguf import framing_fields

        spec = self.proto.normalizer_spec
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [piece.text for piece in self.pieces],
            "tokenizer.ggml.scores": [piece.score for piece in self.pieces],
            "tokenizer.ggml.token_type": [piece.type for piece in self.pieces],
            "tokenizer.ggml.add_space_prefix": spec.add_dummy_prefix,
            "tokenizer.ggml.remove_extra_whitespaces": spec.remove_extra_whitespaces,
            **framing_fields(self),
        }

    def _encode_plain(self, text: str, first: bool) -> list[int]:  # noqa: ARG002
        # Every run between control tokens gets its own space in front, as Meta encodes each turn apart.
        return self._processor.encode(text)

    def _encode_plain_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=os.cpu_count() or 1)

    def _rules(self) -> list[Any]:
        spec = self.proto.normalizer_spec
        charsmap = spec.precompiled_charsmap.hex()
        return [self.pieces, charsmap, spec.add_dummy_prefix, spec.remove_extra_whitespaces]

    def _encode_plain_spans(self, text: str, first: bool) -> list[Span]:  # noqa: ARG002
        mapping = self._processor.encode_as_offset_mapping(text)
        return [Span(token, start, end) for token, (start, end) in zip(mapping["ids"], mapping["offsets"], strict=True)]

    def _bytes_of(self, token: int) -> bytes:
        text, _, kind = self.pieces[token]
        if kind == BYTE and (byte := byte_of_name(text)) is not None:
            return bytes([byte])
        if kind == UNKNOWN:
            return _UNKNOWN_TEXT.encode()
        if kind == CONTROL or text in self.specials:
            return b""
        return text.replace(SPACE, " ").encode()


def from_sentencepiece(source: str | Path | bytes, framing: Framing | None = None) -> SentencePieceTokenizer:
    """The tokenizer in a SentencePiece `.model` file, or in its bytes.

    With Llama 2's model the ids are those of Meta's reference code: the text's pieces, bos first, eos on request.
    Raises MinillamaError for a file that is missing, truncated or something else.
    """
    if isinstance(source, bytes):
        return SentencePieceTokenizer(source, framing)
    try:
        model = Path(source).read_bytes()
    except OSError as error:
        raise MinillamaError(f"{source}: cannot be read: {error.strerror}") from None
    return SentencePieceTokenizer(model, framing, where=str(source))


def build_model(
    pieces: Sequence[Piece],
    *,
    escape_spaces: bool = True,
    add_space: bool = True,
    collapse_spaces: bool = False,
    where: str,
) -> bytes:
    """A serialized SentencePiece BPE model with byte fallback over `pieces`, and no normalization of the text.

    escape_spaces: whether pieces write a space as ▁. add_space: whether a space is put before the text.
    collapse_spaces: whether runs of spaces become one. Raises MinillamaError.
    """
    model = _new_proto()
    for text, score, kind in pieces:
        model.pieces.add(piece=text, score=score, type=kind)
    types = [piece.type for piece in pieces]
    if UNKNOWN not in types:
        raise MinillamaError(f"{where}: no piece is of the unknown type, expected one")
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = BYTE in types
    # SentencePiece finds these three by their text, whatever ids the file means to use.
    trainer.unk_id = types.index(UNKNOWN)
    trainer.unk_piece = pieces[trainer.unk_id].text
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = add_space
    normalizer.remove_extra_whitespaces = collapse_spaces
    normalizer.escape_whitespaces = escape_spaces
    return model.SerializeToString()


def parse_model(model: bytes, where: str) -> Any:
    """The parts of a serialized ModelProto, checked here because the C++ library trusts them. Raises MinillamaError."""
    from google.protobuf.message import DecodeError

    proto = _new_proto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        raise MinillamaError(
            f"{where}: expected a SentencePiece model, found {len(model)} bytes of something else"
        ) from None
    if not proto.pieces:
        raise MinillamaError(f"{where}: expected a SentencePiece model, found one without pieces")
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise MinillamaError(
            f"{where}: expected a BPE model, found SentencePiece model type {proto.trainer_spec.model_type}"
        )
    seen: set[str] = set()
    for i, piece in enumerate(proto.pieces):
        text = piece.piece
        if not isinstance(text, str) or not text or text in seen:  # protobuf gives bytes for what is not UTF-8
            raise MinillamaError(f"{where}: piece {i} is {str(text)[:40]!r}, expected a text that no other piece has")
        seen.add(text)
        if not math.isfinite(piece.score):
            raise MinillamaError(f"{where}: piece {i} has score {piece.score}, expected a finite number")
        if piece.type == BYTE and byte_of_name(text) is None:
            raise MinillamaError(f"{where}: byte piece {i} is {text[:40]!r}, expected a name like <0x0A>")
    return proto


def _guarded(proto: Any, specials: Mapping[str, Special]) -> bytes:
    """The model with every special typed as a control piece: SentencePiece finds those of other types in plain text."""
    copy = _new_proto()
    copy.CopyFrom(proto)
    for special in specials.values():
        if copy.pieces[special.id].type in (NORMAL, USER_DEFINED):
            copy.pieces[special.id].type = CONTROL
    return copy.SerializeToString()


def _new_proto() -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when the module is imported


def byte_of_name(text: str) -> int | None:
    """10 for '<0x0A>', None for what is no byte piece."""
    if len(text) == 6 and text.startswith("<0x") and text[5] == ">" and set(text[3:5]) <= set("0123456789ABCDEF"):
        return int(text[3:5], 16)
    return None


def _framing_of(proto: Any, pieces: Sequence[Piece]) -> Framing:
    """Llama's rule, with the model's own ids: bos in front, and no eos unless asked for."""
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type == CONTROL}
    bos, eos = ids.get(proto.trainer_spec.bos_piece), ids.get(proto.trainer_spec.eos_piece)
    stops = {i for i, p in enumerate(pieces) if p.text in END_NAMES and p.type in (CONTROL, USER_DEFINED)}
    stops |= {eos} if eos is not None else set()
    return Framing(bos, eos, add_bos=bos is not None, stop_ids=frozenset(stops))
