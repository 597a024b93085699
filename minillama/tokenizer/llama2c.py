"""llama2.c's `tokenizer.bin`: pieces and scores, and nothing else."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer.atomic import write_bytes
from minillama.tokenizer.base import Framing, Tokenizer
from minillama.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    Piece,
    SentencePieceTokenizer,
    build_model,
)

# llama2.c fixes what the file does not say: the first three ids, and the 256 bytes after them.
_UNK, _BOS, _EOS, _FIRST_BYTE = 0, 1, 2, 3
_LONGEST_PIECE = 1 << 16  # bytes; far above any real one, so that a damaged length is noticed


def from_llama2c(path: str | Path, vocab_size: int) -> SentencePieceTokenizer:
    """The tokenizer in a llama2.c `tokenizer.bin`, whose ids are those of its `run.c`.

    The file: int32 longest piece, then for each of `vocab_size` pieces float32 score, int32 length, UTF-8 bytes.
    vocab_size: as the model's config says; the file does not. Raises MinillamaError.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read: {error.strerror}") from None
    entries = _entries(data, vocab_size, str(path))
    # In the file a space is a space. Left so, because run.c takes a ▁ in the text for the character that it is.
    model = build_model(_typed(entries, str(path)), escape_spaces=False, where=str(path))
    return SentencePieceTokenizer(model, Framing(_BOS, _EOS, add_bos=True, stop_ids=frozenset([_EOS])), where=str(path))


def save_llama2c(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes `tokenizer` as a llama2.c `tokenizer.bin`. Raises UsageError for one that the format cannot hold."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UsageError(f"{path}: llama2.c holds SentencePiece tokenizers only, this one is byte-level BPE")
    pieces = tokenizer.pieces
    if (tokenizer.bos_id, tokenizer.eos_id) != (_BOS, _EOS) or [p.text for p in pieces[3:259]] != _byte_names():
        raise UsageError(f"{path}: llama2.c expects bos 1, eos 2 and bytes as ids 3 to 258, this tokenizer has others")
    texts = [piece.text.replace(SPACE, " ").encode() for piece in pieces]
    # What run.c would print for the two frames, on lines of their own.
    texts[_BOS], texts[_EOS] = b"\n<s>\n", b"\n</s>\n"
    body = b"".join(struct.pack("<fi", p.score, len(t)) + t for p, t in zip(pieces, texts, strict=True))
    write_bytes(Path(path), struct.pack("<i", max(map(len, texts))) + body)


def _entries(data: bytes, vocab_size: int, where: str) -> list[tuple[str, float]]:
    """(text, score) of each piece, in order of ids."""
    entries = []
    at = 4
    for i in range(vocab_size):
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, 0)
        if not 0 <= length <= _LONGEST_PIECE or not math.isfinite(score):
            raise MinillamaError(f"{where}: piece {i} has length {length} and score {score}: not a llama2.c tokenizer")
        if at + 8 + length > len(data):
            raise MinillamaError(
                f"{where}: expected {vocab_size} pieces, found {i}: the file is truncated or another's"
            )
        at += 8
        try:
            entries.append((data[at : at + length].decode("utf-8"), score))
        except UnicodeDecodeError:
            raise MinillamaError(f"{where}: piece {i} is not UTF-8: not a llama2.c tokenizer") from None
        at += length
    if at != len(data):
        raise MinillamaError(f"{where}: expected {vocab_size} pieces, found {len(data) - at} more bytes after them")
    return entries


def _typed(entries: list[tuple[str, float]], where: str) -> list[Piece]:
    """The pieces with the types that run.c takes for granted."""
    if [text for text, _ in entries[_FIRST_BYTE : _FIRST_BYTE + 256]] != _byte_names():
        raise MinillamaError(f"{where}: expected the pieces <0x00> to <0xFF> as ids 3 to 258: not a llama2.c tokenizer")
    pieces = [Piece(text, score, NORMAL) for text, score in entries]
    for i, name, kind in ((_UNK, "<unk>", UNKNOWN), (_BOS, "<s>", CONTROL), (_EOS, "</s>", CONTROL)):
        pieces[i] = pieces[i]._replace(text=name, type=kind)
    for i in range(_FIRST_BYTE, _FIRST_BYTE + 256):
        pieces[i] = pieces[i]._replace(type=BYTE)
    return pieces


def _byte_names() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]
