"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

import codecs

from minillama.tokenizer.base import Tokenizer


class StreamDecoder:
    """Turns tokens into text one at a time; what it gives out, joined, is `tokenizer.decode` of all of them.

    A token can end inside a UTF-8 character: its bytes wait for the next token.

    continues: whether text stands before the first token (a prompt that is completed). A SentencePiece space at the
    very start of a text is an artefact of encoding and is dropped; in a continuation it is a real space.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False):
        self._tokenizer = tokenizer
        self._at_start = tokenizer.drops_first_space and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, *tokens: int) -> str:
        """The text that these tokens complete; may be empty. Raises UsageError for an id outside the vocabulary."""
        new = self._tokenizer.decode_bytes(tokens)
        if new and self._at_start:
            new = new.removeprefix(b" ")
            self._at_start = False
        return self._decoder.decode(new)

    def finish(self) -> str:
        """What is left at the end: U+FFFD where a character was never completed."""
        return self._decoder.decode(b"", final=True)
