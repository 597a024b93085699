"""Chapter 2: tokens. Write the functions: byte-pair encoding, learned and used as SentencePiece does it.

    minillama exercises check ch02      what is right, and the first thing that is not
    minillama exercises hint ch02       the next hint

When 2.4 and 2.5 are right, they cut the prompts of a real model:

    minillama exercises run --with ch02 -- generate stories260k --prompt "Once upon a time"

A word is a tuple of parts, first its characters: ("▁", "c", "a", "t"). `words` says how often each occurs. ▁ stands for
a space.
"""

import re

# 2.1 · warm-up ---------------------------------------------------------------


def count_pairs(words: dict[tuple[str, ...], int]) -> dict[tuple[str, str], int]:
    """How often each two parts are neighbours, in all words.

    words: word -> how often it occurs. Returns pair -> count, without pairs that never occur. A pair that stands twice
    in a word counts twice, also where the two overlap: ("a", "a", "a") has ("a", "a") twice.
    """
    # Hint: itertools.pairwise(word), or zip(word, word[1:]), gives the pairs of neighbours of a word.
    raise NotImplementedError


# 2.2 · warm-up ---------------------------------------------------------------


def merge_pair(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    """`word` with every left and right that are neighbours joined to one part, from the first to the last.

    Returns a tuple of parts: ("a", "a", "a") with "a" and "a" becomes ("aa", "a").
    """
    # Hint: Go through the parts and build a list: where its last part is left and the next one is right, join the two.
    raise NotImplementedError


# 2.3 · core ------------------------------------------------------------------
# Use your count_pairs and merge_pair.


def learn_merges(words: dict[tuple[str, ...], int], count: int) -> list[str]:
    """Byte-pair encoding: the first `count` pieces, each made by joining the most frequent pair of neighbours.

    Of equally frequent pairs comes first the one with the shorter text, then the one earlier in the alphabet. A pair
    whose text is a piece already is passed over. Returns the pieces in the order in which they were made; fewer than
    `count` where no pair is left.
    """
    # Hint: In each round: count the pairs, choose one, append its text, merge it in every word.
    raise NotImplementedError


# 2.4 · core ------------------------------------------------------------------


def join_by_score(parts: list[str], scores: dict[str, float]) -> list[str]:
    """Joins neighbours to pieces as long as any two make one: first the two whose piece has the highest score.

    parts: mostly single characters. scores: piece -> score. Of equal scores the leftmost comes first. Returns the list
    of parts in which no two neighbours make a piece any more.
    """
    # Hint: In each round: the index i of the neighbours whose text parts[i] + parts[i + 1] has the highest score.
    raise NotImplementedError


# 2.5 · core ------------------------------------------------------------------
# Use your join_by_score.


def encode(text: str, ids: dict[str, int], scores: dict[str, float]) -> list[int]:
    """The tokens of `text`, as Llama 2's tokenizer cuts it, without <s>.

    A space goes before a text (not before an empty one), and every space is written ▁. Characters are joined by score;
    a part that is no piece becomes the tokens of its UTF-8 bytes, byte b being 3 + b.

    ids, scores: piece -> its token, its score. Returns a list of tokens.
    """
    # Hint: list("▁" + text.replace(" ", "▁")) are the characters to begin with; an empty text has none.
    raise NotImplementedError


# 2.6 · core ------------------------------------------------------------------


def decode(tokens: list[int], pieces: list[str]) -> str:
    """The text of `tokens`: the way back from `encode`.

    tokens: may hold 0 to 2, which have no text; 3 to 258 are bytes. pieces: the text of each token, ▁ for a space.
    Returns the text without the space that `encode` put before it. Bytes that are not UTF-8 become U+FFFD.
    """
    # Hint: Collect bytes, not text: bytes([token - 3]) for 3 to 258, else the piece with ▁ as a space, .encode().
    raise NotImplementedError


# 2.7 · stretch ---------------------------------------------------------------


def count_words(text: str) -> dict[tuple[str, ...], int]:
    """What BPE learns from: `text` cut where Llama 2's settings allow no merge, and how often each word occurs.

    A line begins with a space, written ▁ as every space, and lines without text are left out. A word is a run of
    letters or a run of other signs, with one ▁ before it where there is one; every digit is a word, and so is every ▁
    that is left. Letters, digits and signs never share a word. Returns word -> count; a word is a tuple of characters.
    """
    # Hint: Treat each line by itself: '▁' + line with every space written ▁; leave out lines without text.
    raise NotImplementedError
