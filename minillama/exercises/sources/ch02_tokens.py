"""Chapter 2, tokens: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.tokenizer.sentencepiece import BYTE, CONTROL, UNKNOWN, SentencePieceTokenizer

chapter = Chapter(
    "ch02_tokens",
    "Tokens",
    """Chapter 2: tokens. Write the functions: byte-pair encoding, learned and used as SentencePiece does it.

    minillama exercises check ch02      what is right, and the first thing that is not
    minillama exercises hint ch02       the next hint

When 2.4 and 2.5 are right, they cut the prompts of a real model:

    minillama exercises run --with ch02 -- generate stories260k --prompt "Once upon a time"

A word is a tuple of parts, first its characters: ("▁", "c", "a", "t"). `words` says how often each occurs. ▁ stands for
a space.""",
)

WORDS = {tuple("▁hug"): 10, tuple("▁pug"): 5, tuple("▁pun"): 12, tuple("▁bun"): 4, tuple("▁hugs"): 5, tuple("aaaa"): 2}
RHYME = "the fat cat sat on the mat; that cat ate the rat, and the rat that sat on the mat ate 12 hats"


# --- 2.1 pairs


def pair_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"words": {("▁", "c", "a", "t"): 3, ("▁", "c", "a", "r"): 2}}
    yield {"words": {("b", "an", "an", "a"): 2, ("an", "b"): 1}}
    yield {"words": {("a", "a", "a"): 2, ("a",): 5}}
    yield {"words": WORDS}


@chapter.exercise(
    "warm-up",
    cases=pair_cases,
    returns=("pairs",),
    hints=(
        "itertools.pairwise(word), or zip(word, word[1:]), gives the pairs of neighbours of a word.",
        "Each occurrence counts as often as the word occurs: pairs[a, b] += times. A Counter starts at 0.",
    ),
)
def count_pairs(words: dict[tuple[str, ...], int]) -> dict[tuple[str, str], int]:
    """How often each two parts are neighbours, in all words.

    words: word -> how often it occurs. Returns pair -> count, without pairs that never occur. A pair that stands twice
    in a word counts twice, also where the two overlap: ("a", "a", "a") has ("a", "a") twice.
    """
    pairs: dict[tuple[str, str], int] = {}
    for word, times in words.items():
        for pair in pairwise(word):
            pairs[pair] = pairs.get(pair, 0) + times
    return pairs


chapter.edit("count_pairs", "each word counts once; it counts as often as it occurs.", "0) + times", "0) + 1")
chapter.edit(
    "count_pairs",
    "a pair counts once a word, even where it stands there twice.",
    "in pairwise(word)",
    "in set(pairwise(word))",
)
chapter.edit(
    "count_pairs",
    "the last occurrence overwrites those before: add to the count.",
    "pairs.get(pair, 0) + times",
    "times",
)
chapter.edit(
    "count_pairs",
    "a pair has an order: ('a', 't') is not ('t', 'a').",
    "pairs[pair] = pairs.get(pair, 0) + times",
    "key = tuple(sorted(pair)); pairs[key] = pairs.get(key, 0) + times",
)


# --- 2.2 a merge


def merge_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"word": ("▁", "c", "a", "t"), "left": "a", "right": "t"}
    yield {"word": ("b", "a", "n", "a", "n", "a"), "left": "a", "right": "n"}
    yield {"word": ("a", "a", "a", "b"), "left": "a", "right": "a"}
    yield {"word": ("a", "bc", "ab", "c"), "left": "ab", "right": "c"}
    yield {"word": ("t", "a"), "left": "a", "right": "t"}
    yield {"word": ("a",), "left": "a", "right": "a"}


@chapter.exercise(
    "warm-up",
    cases=merge_cases,
    returns=("merged",),
    hints=(
        "Go through the parts and build a list: where its last part is left and the next one is right, join the two.",
        "A part that was joined just now is no longer left, so overlaps take care of themselves.",
    ),
)
def merge_pair(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    """`word` with every left and right that are neighbours joined to one part, from the first to the last.

    Returns a tuple of parts: ("a", "a", "a") with "a" and "a" becomes ("aa", "a").
    """
    parts: list[str] = []
    for part in word:
        if parts and parts[-1] == left and part == right:
            parts[-1] = left + right
        else:
            parts.append(part)
    return tuple(parts)


@chapter.wrong("merge_pair", "only the first place is joined; go on to the end of the word.")
def first_place_only(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    for i, pair in enumerate(pairwise(word)):
        if pair == (left, right):
            return (*word[:i], left + right, *word[i + 2 :])
    return word


@chapter.wrong("merge_pair", "after a join the same part is used again; both parts are used up: go on two further.")
def overlapping_joins(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    parts = []
    for i, part in enumerate(word):
        if word[i : i + 2] == (left, right):
            parts.append(left + right)
        elif i == 0 or word[i - 1 : i + 1] != (left, right):
            parts.append(part)
    return tuple(parts)


@chapter.wrong(
    "merge_pair", "neighbours are joined whose text is that of left + right; the parts themselves must be those."
)
def joined_by_text(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and parts[-1] + part == left + right:
            parts[-1] = left + right
        else:
            parts.append(part)
    return tuple(parts)


@chapter.wrong("merge_pair", "overlaps are joined from the end of the word; begin at its first part.")
def from_the_end(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in reversed(word):
        if parts and part == left and parts[-1] == right:
            parts[-1] = left + right
        else:
            parts.append(part)
    return tuple(reversed(parts))


# --- 2.3 learning


def learn_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"words": WORDS, "count": 6}
    yield {"words": {tuple("▁" + word): 1 for word in RHYME.split()}, "count": 25}
    yield {"words": {tuple("ab"): 3, tuple("ba"): 3}, "count": 5}  # a tie, and nothing left after two
    yield {"words": {("a",): 7}, "count": 3}


@chapter.exercise(
    "core",
    cases=learn_cases,
    returns=("pieces",),
    needs=("count_pairs", "merge_pair"),
    task="Use your count_pairs and merge_pair.",
    hints=(
        "In each round: count the pairs, choose one, append its text, merge it in every word.",
        "max(pairs, key=lambda pair: (pairs[pair], …)) chooses; for 'smallest first' a key can be negative, or use min"
        " with -pairs[pair].",
        "Two words can become the same word; their counts then add. Leave the argument `words` as it is.",
    ),
)
def learn_merges(words: dict[tuple[str, ...], int], count: int) -> list[str]:
    """Byte-pair encoding: the first `count` pieces, each made by joining the most frequent pair of neighbours.

    Of equally frequent pairs comes first the one with the shorter text, then the one earlier in the alphabet. A pair
    whose text is a piece already is passed over. Returns the pieces in the order in which they were made; fewer than
    `count` where no pair is left.
    """
    pieces: list[str] = []
    while len(pieces) < count:
        pairs = {pair: n for pair, n in count_pairs(words).items() if pair[0] + pair[1] not in pieces}
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], len(pair[0] + pair[1]), pair[0] + pair[1], pair))
        pieces.append(left + right)
        merged: dict[tuple[str, ...], int] = {}
        for word, times in words.items():
            new = merge_pair(word, left, right)
            merged[new] = merged.get(new, 0) + times
        words = merged
    return pieces


chapter.edit(
    "learn_merges",
    "pairs are counted once, before the first merge; each merge makes new pairs: count again.",
    "words = merged",
    "pass",
)
chapter.edit(
    "learn_merges",
    "of equally frequent pairs, the one later in the alphabet is taken.",
    "min(pairs, key=lambda pair: (-pairs[pair], len(pair[0] + pair[1]), pair[0] + pair[1], pair))",
    "max(pairs, key=lambda pair: (pairs[pair], -len(pair[0] + pair[1]), pair[0] + pair[1], pair))",
)
chapter.edit(
    "learn_merges",
    "of equally frequent pairs, the longer text is not put behind the shorter.",
    "len(pair[0] + pair[1]), pair[0] + pair[1], pair",
    "pair[0] + pair[1], pair",
)
chapter.edit(
    "learn_merges",
    "it goes on when no pair is left; then there are no more pieces to make.",
    "        if not pairs:\n            break\n",
    "",
)
chapter.edit("learn_merges", "the rarest pair is taken; take the most frequent.", "(-pairs[pair]", "(pairs[pair]")


# --- 2.4 joining by score


def scores_of(pieces: list[str]) -> dict[str, float]:
    """Scores as SentencePiece gives them: 0, -1, -2, … in the order of the merges."""
    return {piece: -float(i) for i, piece in enumerate(pieces)}


def join_cases(_: np.random.Generator) -> Iterator[Case]:
    scores = scores_of(learn_merges({tuple("▁" + word): 1 for word in RHYME.split()}, 18))
    for text in ("▁the▁cat▁sat▁on▁that▁hat", "▁theatre", "tttat"):
        yield {"parts": list(text), "scores": scores}
    yield {"parts": list("abc"), "scores": {"ab": -1.0, "bc": 0.0}}
    yield {"parts": list("abc"), "scores": {"ab": 0.0, "bc": -1.0}}
    yield {"parts": list("abcd"), "scores": {"ab": 0.0, "abcd": -1.0, "bc": -2.0}}  # abcd cannot be reached
    yield {"parts": list("aaaaa"), "scores": {"aa": -1e9, "aaa": -1e9, "aaaa": -1e9}}
    yield {"parts": [], "scores": {"ab": 0.0}}


@chapter.exercise(
    "core",
    cases=join_cases,
    returns=("parts",),
    hints=(
        "In each round: the index i of the neighbours whose text parts[i] + parts[i + 1] has the highest score.",
        "max((scores[text], -i), …) prefers the higher score, then the smaller i.",
        "parts[i : i + 2] = [text] joins two neighbours in a list. Work on a copy: list(parts).",
    ),
)
def join_by_score(parts: list[str], scores: dict[str, float]) -> list[str]:
    """Joins neighbours to pieces as long as any two make one: first the two whose piece has the highest score.

    parts: mostly single characters. scores: piece -> score. Of equal scores the leftmost comes first. Returns the list
    of parts in which no two neighbours make a piece any more.
    """
    parts = list(parts)
    while True:
        joins = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joins:
            return parts
        i = -max(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


chapter.edit("join_by_score", "the lowest score is joined first; the highest should be.", "(scores[a", "(-scores[a")
chapter.edit(
    "join_by_score",
    "of equal scores, the rightmost is joined first; the leftmost should be.",
    "max(joins)[1]",
    "max(joins, key=lambda join: (join[0], -join[1]))[1]",
)


@chapter.wrong("join_by_score", "pieces are found from left to right, the longest first; join the highest score first.")
def longest_first(parts: list[str], scores: dict[str, float]) -> list[str]:
    text, out = "".join(parts), []
    while text:
        piece = next((text[:n] for n in range(len(text), 1, -1) if text[:n] in scores), text[0])
        out.append(piece)
        text = text[len(piece) :]
    return out


@chapter.wrong(
    "join_by_score", "neighbours are joined as they come, from left to right; the highest score comes first."
)
def as_they_come(parts: list[str], scores: dict[str, float]) -> list[str]:
    parts, i = list(parts), 0
    while i + 1 < len(parts):
        if parts[i] + parts[i + 1] in scores:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            i = 0
        else:
            i += 1
    return parts


@chapter.wrong(
    "join_by_score", "it stops after one pass over the scores; a join can make one of a higher score possible."
)
def each_score_once(parts: list[str], scores: dict[str, float]) -> list[str]:
    parts = list(parts)
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        i = 0
        while i + 1 < len(parts):
            if parts[i] + parts[i + 1] == piece:
                parts[i : i + 2] = [piece]
            i += 1
    return parts


# --- 2.5 encoding


def vocabulary() -> list[str]:
    """A vocabulary as Llama 2's is laid out: three special tokens, 256 bytes, merges, characters."""
    merges = learn_merges({tuple("▁" + word): 1 for word in RHYME.split()}, 18)
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merges, *"▁taehcsmnru,;"]


def encode_cases(_: np.random.Generator) -> Iterator[Case]:
    pieces = vocabulary()
    ids = {piece: i for i, piece in enumerate(pieces) if i >= 259}
    scores = {piece: -float(i) for i, piece in enumerate(pieces[259:])}
    for text in ("the cat", "that hat, the rat", "a café, 21 €", " the  mat", "x\n\ty", "🦙", ""):
        yield {"text": text, "ids": ids, "scores": scores}


def as_encode_plain(encode: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """`encode` in the place of SentencePieceTokenizer._encode_plain."""

    def encode_plain(self: SentencePieceTokenizer, text: str, first: bool) -> list[int]:
        del first
        usable = [(i, piece) for i, piece in enumerate(self.pieces) if piece.type not in (BYTE, CONTROL, UNKNOWN)]
        ids = {piece.text: i for i, piece in usable}
        return encode(text, ids, {piece.text: piece.score for _, piece in usable})

    return encode_plain


@chapter.exercise(
    "core",
    cases=encode_cases,
    returns=("tokens",),
    needs=("join_by_score",),
    replaces="minillama.tokenizer.sentencepiece:SentencePieceTokenizer._encode_plain",
    adapt=as_encode_plain,
    task="Use your join_by_score.",
    hints=(
        'list("▁" + text.replace(" ", "▁")) are the characters to begin with; an empty text has none.',
        "What join_by_score leaves is either in ids or a single character that is not.",
        "part.encode() gives the UTF-8 bytes of a character, each a number from 0 to 255; é has two.",
    ),
)
def encode(text: str, ids: dict[str, int], scores: dict[str, float]) -> list[int]:
    """The tokens of `text`, as Llama 2's tokenizer cuts it, without <s>.

    A space goes before a text (not before an empty one), and every space is written ▁. Characters are joined by score;
    a part that is no piece becomes the tokens of its UTF-8 bytes, byte b being 3 + b.

    ids, scores: piece -> its token, its score. Returns a list of tokens.
    """
    if not text:
        return []
    tokens: list[int] = []
    for part in join_by_score(list("▁" + text.replace(" ", "▁")), scores):
        tokens += [ids[part]] if part in ids else [3 + byte for byte in part.encode()]
    return tokens


chapter.edit(
    "encode", "there is no space before the text: its first word is cut as inside a word.", '"▁" + text', "text"
)
chapter.edit(
    "encode",
    "a character that is no piece becomes <unk>, token 0, and is lost; write its bytes.",
    "[3 + byte for byte in part.encode()]",
    "[0]",
)
chapter.edit(
    "encode", "byte b is token 3 + b: ids 0 to 2 are <unk>, <s> and </s>.", "[3 + byte for byte in", "[byte for byte in"
)
chapter.edit(
    "encode",
    "a character's code point is not its bytes: 'é' is 233, but its UTF-8 bytes are 195 and 169.",
    "[3 + byte for byte in part.encode()]",
    "[3 + ord(part)]",
)
chapter.edit("encode", "spaces inside the text are still spaces; write each as ▁.", '.replace(" ", "▁")', "")
chapter.edit("encode", "an empty text gets a space too; it has no tokens.", "if not text:", "if text is None:")
chapter.edit(
    "encode",
    "runs of spaces are made one; Llama 2 keeps each.",
    'text.replace(" ", "▁")',
    '" ".join(part for part in text.split(" ") if part).replace(" ", "▁")',
)


# --- 2.6 decoding


def decode_cases(_: np.random.Generator) -> Iterator[Case]:
    pieces = vocabulary()
    ids = {piece: i for i, piece in enumerate(pieces) if i >= 259}
    scores = {piece: -float(i) for i, piece in enumerate(pieces[259:])}
    for text in ("the cat", "a café, 21 €", "  the mat", "🦙"):
        yield {"tokens": [1, *encode(text, ids, scores), 2], "pieces": pieces}
    yield {"tokens": [3 + 0xC3, ids["t"]], "pieces": pieces}  # half a character
    yield {"tokens": [], "pieces": pieces}


@chapter.exercise(
    "core",
    cases=decode_cases,
    returns=("text",),
    hints=(
        "Collect bytes, not text: bytes([token - 3]) for 3 to 258, else the piece with ▁ as a space, .encode().",
        'Only at the end: data.decode("utf-8", errors="replace").',
        'removeprefix(" ") takes away one space, strip() would take all.',
    ),
)
def decode(tokens: list[int], pieces: list[str]) -> str:
    """The text of `tokens`: the way back from `encode`.

    tokens: may hold 0 to 2, which have no text; 3 to 258 are bytes. pieces: the text of each token, ▁ for a space.
    Returns the text without the space that `encode` put before it. Bytes that are not UTF-8 become U+FFFD.
    """
    data = b""
    for token in tokens:
        if 3 <= token < 259:
            data += bytes([token - 3])
        elif token >= 259:
            data += pieces[token].replace("▁", " ").encode()
    return data.decode("utf-8", errors="replace").removeprefix(" ")


chapter.edit(
    "decode", "all spaces at the beginning are gone; only one was put there.", '.removeprefix(" ")', ".lstrip()"
)
chapter.edit("decode", "the space that encode put before the text is still there.", '.removeprefix(" ")', "")
chapter.edit("decode", "▁ stands for a space; write spaces.", '.replace("▁", " ")', "")
chapter.edit("decode", "<s>, </s> and <unk> are no text.", "elif token >= 259", "else")


@chapter.wrong("decode", "each byte is decoded alone; a character's bytes belong together: decode once, at the end.")
def byte_by_byte(tokens: list[int], pieces: list[str]) -> str:
    texts = [
        bytes([token - 3]).decode(errors="replace") if token < 259 else pieces[token].replace("▁", " ")
        for token in tokens
        if token > 2
    ]
    return "".join(texts).removeprefix(" ")


@chapter.wrong("decode", "a byte is taken for a code point, chr(byte); bytes are UTF-8.")
def as_latin_1(tokens: list[int], pieces: list[str]) -> str:
    texts = [chr(token - 3) if token < 259 else pieces[token].replace("▁", " ") for token in tokens if token > 2]
    return "".join(texts).removeprefix(" ")


@chapter.wrong("decode", "bytes are written by their names, <0xC3>; they are bytes of the text.")
def names_of_bytes(tokens: list[int], pieces: list[str]) -> str:
    return "".join(pieces[token].replace("▁", " ") for token in tokens if token > 2).removeprefix(" ")


# --- 2.7 words


def word_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"text": "the cat and the dog"}
    yield {"text": 'She said, "No!" and\nShe ran.'}
    yield {"text": "In 1923, 42 cats"}
    yield {"text": "don't  stop\n\n"}


def words_learn_what_sentencepiece_learns(own: Functions) -> str | None:
    """The learner's words, and the pieces that come of them, against the package's tokenizer training."""
    from minillama.tokenizer import train

    text = "\n".join([RHYME, RHYME.title(), "The rat's hat (size 12) sat; 'twas the cat's!"])
    tokenizer = train([text], 320, character_coverage=1)
    theirs = [piece.text for piece in tokenizer.pieces[259:] if len(piece.text) > 1]
    ours = learn_merges(own.count_words(text), len(theirs))
    if ours != theirs:
        i = next(i for i, (a, b) in enumerate(zip([*ours, None], theirs, strict=False)) if a != b)
        found = repr(ours[i]) if i < len(ours) else "none"
        return f"SentencePiece's piece number {i} is {theirs[i]!r}; with your words it is {found}."
    return None


@chapter.exercise(
    "stretch",
    cases=word_cases,
    proof=words_learn_what_sentencepiece_learns,
    returns=("words",),
    hints=(
        "Treat each line by itself: '▁' + line with every space written ▁; leave out lines without text.",
        're.findall with alternatives: "▁?[^\\W\\d_]+" is a run of letters with the space before it, if there is one.',
        r"Signs are neither letters, digits nor ▁: [^\w▁] or _. A digit or a ▁ that is left over stands alone.",
    ),
)
def count_words(text: str) -> dict[tuple[str, ...], int]:
    """What BPE learns from: `text` cut where Llama 2's settings allow no merge, and how often each word occurs.

    A line begins with a space, written ▁ as every space, and lines without text are left out. A word is a run of
    letters or a run of other signs, with one ▁ before it where there is one; every digit is a word, and so is every ▁
    that is left. Letters, digits and signs never share a word. Returns word -> count; a word is a tuple of characters.
    """
    words: dict[tuple[str, ...], int] = {}
    for line in text.split("\n"):
        if line.strip():
            for run in re.findall(r"▁?[^\W\d_]+|▁?(?:[^\w▁]|_)+|\d|▁", "▁" + line.replace(" ", "▁")):
                words[tuple(run)] = words.get(tuple(run), 0) + 1
    return words


chapter.edit("count_words", "a line has no ▁ before its first word.", '"▁" + line', "line")
chapter.edit(
    "count_words",
    "digits are kept together, or with the space before them; each is a word of its own.",
    r"|\d|▁",
    r"|▁?\d+|▁",
)
chapter.edit(
    "count_words",
    "letters and signs share a word; a word is a run of one kind.",
    r"▁?[^\W\d_]+|▁?(?:[^\w▁]|_)+",
    r"▁?(?:[^\d▁])+",
)
chapter.edit("count_words", "the ▁ is cut off; it belongs to the word behind it.", r"▁?[^\W\d_]+|▁?(", r"[^\W\d_]+|(")
chapter.edit(
    "count_words",
    "a word is one string; make it a tuple of its characters.",
    "words[tuple(run)] = words.get(tuple(run), 0) + 1",
    "words[run] = words.get(run, 0) + 1",
)
chapter.edit(
    "count_words", "a line break is part of a word; each line is cut by itself.", r'text.split("\n")', "[text]"
)
