"""The printable alphabet in which byte-level BPE vocabularies write bytes (GPT-2's)."""

from __future__ import annotations

from functools import cache


@cache
def byte_of_character() -> dict[str, int]:
    """Character -> byte. Printable Latin-1 stands for itself; the other 68 bytes follow U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def bytes_of(text: str) -> bytes:
    """The bytes that a vocabulary entry stands for; an entry outside the alphabet (padding) is taken literally."""
    table = byte_of_character()
    if all(character in table for character in text):
        return bytes(table[character] for character in text)
    return text.encode()
