"""Learning a vocabulary: Llama 2's settings, a naive trainer to compare with, the same bytes everywhere, bad input."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from minillama import LlamaConfig, MinillamaError, UsageError, weights
from minillama.cli import app
from minillama.model import Llama
from minillama.tokenizer import from_sentencepiece, from_tokenizer_json, save_sentencepiece, train
from minillama.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, SentencePieceTokenizer, parse_model
from minillama.tokenizer.training import CHARACTER_COVERAGE, _sample, _sentences
from minillama.weights import Checkpoint
from tests.data import data_file
from tests.tokenizer.texts import TEXTS, random_texts

ROOT = Path(__file__).parents[2]


def story(words: int = 1500, seed: int = 0) -> str:
    """Text like English in what matters here: few words often, many rarely; capitals, points, numbers, line breaks."""
    rng = random.Random(seed)
    known = ["".join(rng.choices("etaoinshrdlucm", k=rng.randint(1, 9))) for _ in range(120)]
    parts = []
    for _ in range(words):
        word = known[min(int(rng.expovariate(0.06)), 119)]
        word = word.capitalize() if rng.random() < 0.1 else word
        parts.append(word + rng.choice(["", "", "", "", "", ",", ".", ".\n", f" {rng.randint(0, 99)}"]))
    return " ".join(parts)


STORY = story()


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return train([STORY], 400)


# --- the settings


def test_every_setting_is_llama_2_s() -> None:
    """Field by field; only what names Meta's files and machine differs, and where Meta sampled, we do it ourselves."""
    ours = train([STORY], 400).proto
    theirs = parse_model(data_file("weights/llama2_32k.model").read_bytes(), "Llama 2")
    own_affair = {"input", "model_prefix", "vocab_size", "num_threads", "input_sentence_size"}
    for part in ("trainer_spec", "normalizer_spec", "denormalizer_spec"):
        a, b = getattr(ours, part), getattr(theirs, part)
        different = {f.name for f in a.DESCRIPTOR.fields if getattr(a, f.name) != getattr(b, f.name)}
        assert different == (own_affair if part == "trainer_spec" else set())


def test_the_vocabulary_is_laid_out_as_llama_2_s(tokenizer: SentencePieceTokenizer) -> None:
    theirs = from_sentencepiece(data_file("weights/llama2_32k.model"))
    assert tokenizer.pieces[:259] == theirs.pieces[:259]
    for pieces in (tokenizer.pieces, theirs.pieces):
        lengths = [len(piece.text) for piece in pieces[259:]]
        merges = lengths.index(1)
        assert all(length > 1 for length in lengths[:merges]) and all(length == 1 for length in lengths[merges:])
        for i, piece in enumerate(pieces[259:]):
            spaces_only = not piece.text.strip("▁")
            assert piece == (piece.text, -1e9 if spaces_only else -i, NORMAL)


def test_ids_and_frames(tokenizer: SentencePieceTokenizer) -> None:
    kinds = [piece.type for piece in tokenizer.pieces]
    assert kinds == [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 141
    assert [piece.text for piece in tokenizer.pieces[:4]] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (400, 1, 2, {2})


@pytest.mark.parametrize("text", [*TEXTS, *random_texts(40, seed=5)])
def test_any_text_comes_back(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert not {0, 1, 2} & set(ids[1:])


def test_digits_stand_alone(tokenizer: SentencePieceTokenizer) -> None:
    assert [
        piece.text for piece in tokenizer.pieces if re.search("[0-9].|.[0-9]", piece.text) and piece.type == 1
    ] == []
    assert [tokenizer.piece(i) for i in tokenizer.encode("1923", bos=False)] == [" ", "1", "9", "2", "3"]


def test_rare_characters_are_left_to_the_bytes() -> None:
    text = "a b c d e " * 4000 + "ÿ"
    assert "ÿ" not in {piece.text for piece in train([text], 270).pieces}
    assert "ÿ" in {piece.text for piece in train([text], 270, character_coverage=1).pieces}
    assert train([text], 270).encode("ÿ", bos=False)[1:] == [3 + byte for byte in "ÿ".encode()]


def test_a_word_is_the_same_after_many_spaces() -> None:
    """The score of a run of spaces: without it, an even number of spaces would eat the word's own."""
    trained = train([STORY] + ["    code"] * 99, 420)
    word = trained.encode("code", bos=False)
    assert any(piece.text == "▁▁" for piece in trained.pieces)
    for spaces in range(1, 12):
        assert trained.encode(" " * spaces + "code", bos=False)[-len(word) :] == word


def test_a_line_break_is_a_byte() -> None:
    trained = train(["one\ntwo\n" * 200], 275, character_coverage=1)
    assert not any("\n" in piece.text for piece in trained.pieces)
    assert trained.encode("\n", bos=False)[-1] == 3 + ord("\n")


# --- the algorithm


def naive_merges(text: str, count: int) -> list[str]:
    """The first `count` pieces by counting all pairs anew each time: what BPE says, in the fewest lines."""
    lines = ["▁" + line.replace(" ", "▁") for line in text.split("\n") if line.strip()]
    words = Counter(tuple(word) for line in lines for word in re.findall("▁?[^▁]+|▁+", line))
    merged: list[str] = []
    while len(merged) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        # Letters and signs are of two scripts and never joined, digits never at all; a tie goes to the shorter piece,
        # then to the first in the alphabet.
        ranked = sorted((-n, len(a + b), a + b, a) for (a, b), n in pairs.items() if may_join(a + b, merged))
        if not ranked:
            break
        *_, piece, left = ranked[0]
        merged.append(piece)
        words = Counter({key: n for word, n in words.items() for key in [join(word, left, piece.removeprefix(left))]})
    return merged


def may_join(piece: str, merged: list[str]) -> bool:
    body = piece.removeprefix("▁")
    return len(piece) <= 16 and (body.isalpha() or not re.search(r"\w", body)) and piece not in merged


def join(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and parts[-1] == left and part == right:
            parts[-1] = left + right
        else:
            parts.append(part)
    return tuple(parts)


def test_merges_are_those_of_the_naive_algorithm() -> None:
    pieces = [piece.text for piece in train([STORY], 520).pieces[259:] if len(piece.text) > 1]
    assert len(pieces) > 200
    assert naive_merges(STORY, len(pieces)) == pieces


def naive_encode(tokenizer: SentencePieceTokenizer, text: str) -> list[int]:
    """Join the neighbours whose piece has the highest score, the leftmost of equals; what is no piece becomes bytes."""
    ids = {piece.text: i for i, piece in enumerate(tokenizer.pieces) if piece.type == NORMAL}
    parts = list(("▁" + text.replace(" ", "▁")) if text else "")
    while True:
        joins = [(tokenizer.pieces[ids[a + b]].score, -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joins:
            break
        i = -max(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


@pytest.mark.parametrize("text", [STORY[:700], *TEXTS[:40]])
def test_encoding_is_that_of_the_naive_algorithm(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.encode(text, bos=False) == naive_encode(tokenizer, text)


# --- the same bytes everywhere


def test_the_same_text_gives_the_same_bytes(tokenizer: SentencePieceTokenizer) -> None:
    assert train([STORY], 400).model == tokenizer.model
    assert train(STORY.split("\n"), 400).model == tokenizer.model  # however it is cut into documents
    assert train(reversed(STORY.split("\n")), 400).model == tokenizer.model  # and in any order
    assert train([STORY], 401).model != tokenizer.model


def test_control_tokens_come_first_and_no_text_becomes_one() -> None:
    tagged = train([STORY], 400, control=["[A]", "<<B>>"])
    assert [piece.text for piece in tagged.pieces[:6]] == ["<unk>", "<s>", "</s>", "[A]", "<<B>>", "<0x00>"]
    assert {name: special.id for name, special in tagged.specials.items()} == {
        "<s>": 1,
        "</s>": 2,
        "[A]": 3,
        "<<B>>": 4,
    }
    assert not {3, 4} & set(tagged.encode("[A] and <<B>>"))
    assert tagged.decode(tagged.encode("[A] and <<B>>")) == "[A] and <<B>>"
    assert tagged.encode("[A]", bos=False, allow_special=True) == [3]
    with pytest.raises(UsageError, match="expected at least 262"):
        train([STORY], 261, control=["[A]", "<<B>>"])


def test_no_thread_count_changes_a_byte(tokenizer: SentencePieceTokenizer) -> None:
    """In another process, which sees one core only, with other hash seeds and thread settings."""
    code = (
        "import os, sys, hashlib\n"
        "if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from minillama.tokenizer import train\n"
        "from tests.tokenizer.test_training import STORY\n"
        "print(hashlib.sha256(train([STORY], 400).model).hexdigest())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "7", "PYTHONHASHSEED": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(tokenizer.model).hexdigest()
    assert done.stderr == ""


def test_the_bytes_of_a_known_text() -> None:
    """Frozen: another SentencePiece, Python or machine must give this file."""
    model = train(["the cat sat on the mat; the rat sat on the cat 10 times"] * 3, 290).model
    assert hashlib.sha256(model).hexdigest() == FROZEN


FROZEN = "fcfedb636705ea1cf202cea27e8b0b9666a9c93978ccb40e558d23c2be03c224"


# --- big sources


def test_a_sample_is_bounded_fair_and_seeded() -> None:
    lines = [b"%d" % i for i in range(1000)]
    sample = _sample(iter(lines), 50, seed=1)
    assert len(sample) == len(set(sample)) == 50
    assert sample == _sample(iter(lines), 50, seed=1) != _sample(iter(lines), 50, seed=2)
    assert _sample(iter(lines), 1000, seed=1) == lines
    drawn = Counter(int(line) // 100 for seed in range(200) for line in _sample(iter(lines), 50, seed))
    assert all(abs(drawn[part] - 1000) < 5 * np.sqrt(1000 * 0.9) for part in range(10))


def test_the_seed_chooses_the_sample() -> None:
    lines = STORY.split("\n")
    one, same, other = (train(lines, 330, max_sentences=40, seed=seed).model for seed in (1, 1, 2))
    assert one == same != other


def test_long_lines_are_cut_between_words() -> None:
    """SentencePiece drops lines of more than 4,192 bytes; no word of theirs may be lost, or become two."""
    line = STORY.replace("\n", "")
    assert len(line.encode()) > 4192
    cut = list(_sentences([line]))
    assert max(map(len, cut)) <= 1024 and b" ".join(cut).decode() == line
    by_words = train([line], 400)
    assert [p.text for p in by_words.pieces] == [p.text for p in train(line.split(" "), 400).pieces]
    endless = "🦙" * 5000  # no space to cut at, four bytes a character
    assert b"".join(_sentences([endless])).decode() == endless
    assert max(map(len, _sentences([endless]))) <= 4192


# --- into models and other formats


@pytest.mark.parametrize("form", ["huggingface", "gguf", "llama2c"])
def test_a_trained_tokenizer_travels_with_a_model(tmp_path: Path, tokenizer: SentencePieceTokenizer, form: str) -> None:
    config = LlamaConfig(32, 1, 4, 48, vocab_size=tokenizer.vocab_size, n_kv_heads=2, max_seq_len=64)
    path = tmp_path / {"huggingface": "folder", "gguf": "model.gguf", "llama2c": "model.bin"}[form]
    weights.save(Checkpoint(config, Llama.init(config).params, tokenizer), path, to=form)
    back = weights.load(path).tokenizer
    assert back is not None
    for text in [STORY[:300], *TEXTS]:
        if form != "llama2c" or "▁" not in text:  # llama2.c has no sign for a space, so there it is a character
            assert back.encode(text) == tokenizer.encode(text)
    assert (back.bos_id, back.eos_id, back.stop_ids) == (1, 2, {2})


def test_tokenizer_json_agrees_on_runs_of_spaces(tmp_path: Path) -> None:
    """Where scores are equal, the order of merges in the other form decides."""
    trained = train([STORY] + [" " * n + "code" for n in range(20)] * 20, 440)
    trained.save(tmp_path)
    rewritten = from_tokenizer_json(tmp_path / "tokenizer.json")
    for text in [" " * n + end for n in range(40) for end in ("", "code", "1", "\n ")]:
        assert rewritten.encode(text) == trained.encode(text)


def test_a_saved_model_is_the_model(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    path = tmp_path / "new" / "tokenizer.model"
    save_sentencepiece(tokenizer, path)
    assert path.read_bytes() == tokenizer.model
    assert from_sentencepiece(path).pieces == tokenizer.pieces
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.model"]


# --- bad input


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", "  \n\t\n"]])
def test_no_text(texts: list[str]) -> None:
    with pytest.raises(MinillamaError, match=r"^stories: expected text to learn a vocabulary from, found none$"):
        train(texts, 300, where="stories")


def test_a_vocabulary_larger_than_the_text_supports_names_the_largest(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MinillamaError) as error:
        train([STORY[:200]], 30_000, where="stories")
    line = str(error.value)
    found = re.fullmatch(
        r"stories: expected a vocabulary of at most (\d+), the most that this text supports, found 30,000", line
    )
    assert found, line
    most = int(found[1])
    assert train([STORY[:200]], most).vocab_size == most
    with pytest.raises(MinillamaError, match=f"at most {most},"):
        train([STORY[:200]], most + 1)
    assert capfd.readouterr() == ("", "")  # SentencePiece's own log stays silent


def test_a_vocabulary_smaller_than_bytes_and_characters_names_the_smallest(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MinillamaError) as error:
        train([STORY], 262, where="stories")
    found = re.fullmatch(
        r"stories: expected a vocabulary of at least (\d+) \(256 bytes, 3 special tokens and this text's (\d+) "
        r"characters\), found 262",
        str(error.value),
    )
    assert found, error.value
    assert int(found[1]) == 259 + int(found[2])
    assert train([STORY], int(found[1])).vocab_size == int(found[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [-1, 0, 259, 2**31, 10**12])
def test_sizes_that_no_text_supports(size: int) -> None:
    with pytest.raises(UsageError, match=rf"^vocabulary of {size}: expected at least 260, and below 2\^31$"):
        train([STORY], size)


def test_the_smallest_size_of_all() -> None:
    assert train(["▁"], 260).vocab_size == 260


def test_other_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"^character coverage 0.5: expected 0.98 to 1$"):
        train([STORY], 300, character_coverage=0.5)
    with pytest.raises(UsageError, match=r"^sample of 0 sentences: expected at least 1$"):
        train([STORY], 300, max_sentences=0)
    with pytest.raises(UsageError, match="lone surrogate at character 2"):
        train(["ab\ud800"], 300)
    assert pytest.approx(0.99995) == CHARACTER_COVERAGE


# --- the commands


def tokenizer_command(*args: object) -> Result:
    return CliRunner().invoke(app, ["tokenizer", *map(str, args)])


def test_train_writes_the_file_that_the_function_makes(tmp_path: Path) -> None:
    source, out = tmp_path / "story.txt", tmp_path / "made" / "tokenizer.model"
    source.write_text(STORY, encoding="utf-8")
    result = tokenizer_command("train", source, "--vocab-size", 400, "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"400 tokens from 1 documents, {len(STORY):,} bytes of text" in result.stderr
    assert out.read_bytes() == train([STORY], 400).model


def test_train_keeps_what_is_there(tmp_path: Path) -> None:
    source, out = tmp_path / "story.txt", tmp_path / "tokenizer.model"
    source.write_text(STORY, encoding="utf-8")
    out.write_bytes(b"precious")
    result = tokenizer_command("train", source, "--vocab-size", 400, "--out", out)
    assert (result.exit_code, out.read_bytes()) == (2, b"precious")
    assert result.stderr == f"minillama: {out}: is there already (--force overwrites it)\n"
    assert tokenizer_command("train", source, "--vocab-size", 9999, "--out", out, "--force").exit_code == 1
    assert out.read_bytes() == b"precious"  # a failure leaves it
    assert tokenizer_command("train", source, "--vocab-size", 400, "--out", out, "--force").exit_code == 0
    assert from_sentencepiece(out).vocab_size == 400
    result = tokenizer_command("train", source, "--vocab-size", 400, "--out", tmp_path)
    assert (result.exit_code, result.stderr) == (
        2,
        f"minillama: {tmp_path}: is a folder, expected the name of a file to write\n",
    )


@pytest.mark.parametrize(
    ("content", "size", "line"),
    [
        (b"", 300, r"found none$"),
        (b"good \xff bad", 300, r"byte (offset )?5|at 5"),
        (b"abc " * 50, 5000, r"expected a vocabulary of at most \d+, the most that this text supports, found 5,000$"),
        (b"abc " * 50, 261, r"expected a vocabulary of at least 263 "),
    ],
)
def test_train_says_what_is_wrong_in_a_line(tmp_path: Path, content: bytes, size: int, line: str) -> None:
    source, out = tmp_path / "story.txt", tmp_path / "tokenizer.model"
    source.write_bytes(content)
    result = tokenizer_command("train", source, "--vocab-size", size, "--out", out)
    assert result.exit_code == 1 and not out.exists()
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"minillama: {source}: ")
    assert re.search(line, result.stderr.strip())


def test_show_prints_a_line_for_each_token(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    save_sentencepiece(tokenizer, path)
    result = tokenizer_command("show", path, "é 1")
    assert result.exit_code == 0
    space, one = tokenizer.encode("1", bos=False)
    expected = [(1, "<s>"), (space, "' '"), (198, "c3"), (172, "a9"), (space, "' '"), (one, "'1'")]
    assert result.stdout.splitlines() == [f"{token:>6}  {text}" for token, text in expected]
    assert result.stderr == "6 tokens, 4 bytes: 0.67 bytes a token\n"
    result = tokenizer_command("show", tmp_path / "absent.model", "x")
    assert (result.exit_code, result.stderr) == (1, f"minillama: {tmp_path / 'absent.model'}: no such file or folder\n")
