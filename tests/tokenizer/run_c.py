"""What llama2.c's `run.c` does to a text, as slowly and plainly as it can be said: the reference for `from_llama2c`."""

from __future__ import annotations

import struct


def read(data: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces and scores of a tokenizer.bin."""
    pieces, scores, at = [], [], 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return pieces, scores


def encode(text: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """Ids of `text`, unframed: a space in front, a piece or bytes for each character, then merges, best score first."""
    lookup = {piece: i for i, piece in enumerate(pieces)}
    ids = [lookup[b" "]] if text else []
    for character in text:
        encoded = character.encode()
        ids += [lookup[encoded]] if encoded in lookup else [byte + 3 for byte in encoded]
    while True:
        best, best_at, best_id = -1e10, -1, -1
        for i in range(len(ids) - 1):
            merged = lookup.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if merged is not None and scores[merged] > best:
                best, best_at, best_id = scores[merged], i, merged
        if best_at < 0:
            return ids
        ids[best_at : best_at + 2] = [best_id]
