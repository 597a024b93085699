"""Token shards hold what the tokenizer says, are made once, and are whole or refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from minillama.data import TokenData, TokenSplit, shards, sources, tokenize
from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer import Framing, Tokenizer
from tests.corpus.texts import other_tokenizer, stories, text_file, tokenizer
from tests.data import data_file

AGAIN = "make it again with `minillama data prepare`"


def framed(texts: list[str]) -> list[int]:
    """The tokens of `texts`, each as BOS + tokens + EOS."""
    return [token for text in texts for token in tokenizer().encode(text, bos=True, eos=True)]


def tokens_of(split: TokenSplit) -> list[int]:
    return split[:].tolist()


def texts_of(split: TokenSplit) -> list[str]:
    """The documents of a split as text, cut where they start."""
    bounds = [*split.starts.tolist(), len(split)]
    return [tokenizer().decode(split[start:stop]) for start, stop in pairwise(bounds)]


def tokens_folder(folder: Path) -> Path:
    """The one subfolder; nothing but the index is beside it."""
    (found,) = (entry for entry in folder.iterdir() if entry.name != "tokens.json")
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return text_file(tmp_path / "corpus.txt", stories(60))


@pytest.fixture
def prepared(tmp_path: Path, corpus: Path) -> Path:
    tokenize(corpus, tokenizer(), tmp_path / "data", shard_tokens=100, validation=0.2)
    return tmp_path / "data"


@pytest.mark.parametrize("shard_tokens", [1, 2, 3, 64, 1 << 20])
@pytest.mark.parametrize("batch", [1, 100, 1 << 20])
def test_tokens_are_those_of_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_tokens: int, batch: int
) -> None:
    texts = stories(12)
    monkeypatch.setattr(shards, "BATCH", batch)
    data = tokenize(
        text_file(tmp_path / "a.txt", texts), tokenizer(), tmp_path / "data", validation=0, shard_tokens=shard_tokens
    )
    expected = framed(texts)
    assert tokens_of(data.train) == expected
    assert (len(data.train), data.train.documents) == (len(expected), len(texts))
    assert data.train.bytes == len("".join(texts).encode())
    assert data.train.shards == -(-len(expected) // shard_tokens)
    assert texts_of(data.train) == texts
    assert (len(data.validation), data.validation.documents, len(data.validation.starts)) == (0, 0, 0)
    assert tokens_of(data.validation) == []


def test_slices_are_those_of_the_whole(prepared: Path) -> None:
    split = TokenData(prepared).train
    whole = split[:]
    assert whole.dtype == np.int64
    assert split.shards > 3
    rng = np.random.default_rng(0)
    for start, stop in rng.integers(-len(split) - 5, len(split) + 5, (300, 2)).tolist():
        np.testing.assert_array_equal(split[start:stop], whole[start:stop])
    for start in range(95, 105):  # around the first border
        np.testing.assert_array_equal(split[start : start + 1], whole[start : start + 1])
    np.testing.assert_array_equal(split[-7:], whole[-7:])
    with pytest.raises(UsageError, match="expected a slice of step 1, found 2"):
        split[::2]


def test_a_slice_is_a_copy(prepared: Path) -> None:
    split = TokenData(prepared).train
    before = split[:10]
    split[:10][:] = 0
    np.testing.assert_array_equal(split[:10], before)


class Numbers(Tokenizer):
    """A tokenizer of any size: a text is one number, its token."""

    drops_first_space = False

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, Framing(bos_id=0, eos_id=vocab_size - 1), {})

    def save(self, folder: str | Path) -> None:
        pass

    def gguf_fields(self) -> dict[str, object]:
        raise NotImplementedError

    def _encode_plain(self, text: str, first: bool) -> list[int]:  # noqa: ARG002
        return [int(text)]

    def _encode_plain_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(text)] for text in texts]

    def _rules(self) -> list[object]:
        return [self.vocab_size]

    def _encode_plain_spans(self, text: str, first: bool) -> list:
        raise NotImplementedError

    def _bytes_of(self, token: int) -> bytes:  # noqa: ARG002
        return b""


@pytest.mark.parametrize(("vocab_size", "width"), [(300, 2), (65_536, 2), (65_537, 4), (200_000, 4)])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, width: int) -> None:
    texts = ["1", str(vocab_size - 2)]
    data = tokenize(text_file(tmp_path / "a.txt", texts), Numbers(vocab_size), tmp_path / "data", validation=0)
    assert tokens_of(data.train) == [0, 1, vocab_size - 1, 0, vocab_size - 2, vocab_size - 1]
    assert (tokens_folder(tmp_path / "data") / "train-00000.bin").stat().st_size == 6 * width
    assert data.vocab_size == vocab_size


def test_a_tokenizer_without_a_frame_is_refused(tmp_path: Path, corpus: Path) -> None:
    unframed = Numbers(300)
    unframed.framing = Framing(eos_id=1)
    with pytest.raises(UsageError, match="no begin-of-sequence token"):
        tokenize(text_file(corpus, ["1"]), unframed, tmp_path / "data")


def test_equal_documents_stay_on_one_side(tmp_path: Path) -> None:
    texts = stories(200)
    rng = np.random.default_rng(1)
    shuffled = [texts[i] for i in rng.permutation(np.tile(np.arange(200), 3))]
    data = tokenize(text_file(tmp_path / "a.txt", shuffled), tokenizer(), tmp_path / "a", validation=0.3)
    train, validation = set(texts_of(data.train)), set(texts_of(data.validation))
    assert not train & validation
    assert train | validation == set(texts)
    alone = tokenize(text_file(tmp_path / "b.txt", texts), tokenizer(), tmp_path / "b", validation=0.3)
    assert set(texts_of(alone.validation)) == validation  # neither order nor number matters


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_the_share_of_validation(tmp_path: Path, share: float) -> None:
    path = text_file(tmp_path / "a.txt", [str(i) for i in range(2000)])
    sizes = [
        tokenize(path, Numbers(2001), tmp_path / str(seed), validation=share, seed=seed).validation.documents
        for seed in range(3)
    ]
    for size in sizes:
        assert abs(size - 2000 * share) <= 5 * np.sqrt(2000 * share * (1 - share))  # five standard deviations
    assert share == 0 or len(set(sizes)) > 1


def test_the_seed_chooses_others(tmp_path: Path, corpus: Path) -> None:
    kept = [
        texts_of(tokenize(corpus, tokenizer(), tmp_path / f"{seed}", validation=0.5, seed=seed).validation)
        for seed in (0, 1, 10**40)
    ]
    assert len({tuple(texts) for texts in kept}) == 3


def test_documents_that_know_their_split(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    splits = ["validation", "train", "train", "validation", "train"]
    path.write_text("".join(json.dumps({"text": f"{i}", "split": split}) + "\n" for i, split in enumerate(splits)))
    data = tokenize(path, tokenizer(), tmp_path / "data", validation=0)
    assert texts_of(data.train) == ["1", "2", "4"]
    assert texts_of(data.validation) == ["0", "3"]


def test_what_is_there_is_not_made_again(
    tmp_path: Path, corpus: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(shards, "_fill", refuse)
    before = tokens_folder(prepared)
    os.utime(corpus)  # another date is no other text
    data = tokenize(corpus, tokenizer(), prepared, shard_tokens=100, validation=0.2)
    assert tokens_of(data.train) == tokens_of(TokenData(prepared).train)
    moved = Path(shutil.move(prepared, tmp_path / "elsewhere"))
    tokenize(corpus, tokenizer(), moved, shard_tokens=100, validation=0.2)
    assert tokens_folder(moved).name == before.name


@pytest.mark.parametrize(
    "change",
    [
        {"validation": 0.3},
        {"seed": 1},
        {"shard_tokens": 99},
        {"separator": "\n"},
        {"text": "one more"},
        {"other": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changed_is_made_again(corpus: Path, prepared: Path, change: dict) -> None:
    before = tokens_folder(prepared)
    if change.pop("text", None):
        corpus.write_bytes(corpus.read_bytes().replace(b"girl", b"lady"))
    used = other_tokenizer() if change.pop("other", None) else tokenizer()
    data = tokenize(corpus, used, prepared, **{"shard_tokens": 100, "validation": 0.2, **change})
    assert tokens_folder(prepared) != before
    assert data.tokenizer_sha256 == used.sha256
    again = tokenize(corpus, used, prepared.with_name("fresh"), **{"shard_tokens": 100, "validation": 0.2, **change})
    assert tokens_of(data.train) == tokens_of(again.train)
    assert tokens_of(data.validation) == tokens_of(again.validation)


def test_the_tokenizer_is_kept(prepared: Path) -> None:
    data = TokenData(prepared)
    assert data.vocab_size == data.tokenizer.vocab_size == tokenizer().vocab_size
    assert data.tokenizer.encode("a café 🦙", bos=True, eos=True) == tokenizer().encode("a café 🦙", bos=True, eos=True)
    data.check_tokenizer(tokenizer())


def test_another_tokenizer_is_refused(prepared: Path) -> None:
    with pytest.raises(MinillamaError) as caught:
        TokenData(prepared).check_tokenizer(other_tokenizer())
    assert str(caught.value) == (
        f"{prepared}: expected the tokenizer that made it ({tokenizer().sha256[:12]}…, 400 tokens), found another "
        f"({other_tokenizer().sha256[:12]}…, 380); {AGAIN}"
    )


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00002.bin", "validation-00000.bin", "train-starts.bin"])
def test_a_file_of_another_length(corpus: Path, prepared: Path, name: str) -> None:
    path = tokens_folder(prepared) / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:-2], b"", whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(MinillamaError) as caught:
            TokenData(prepared)
        assert str(caught.value) == f"{path}: expected {len(whole)} bytes, found {len(content)}; {AGAIN}"
    path.unlink()
    with pytest.raises(MinillamaError, match=rf"{name}: expected {len(whole)} bytes, cannot be read \(No such file"):
        TokenData(prepared)
    data = tokenize(corpus, tokenizer(), prepared, shard_tokens=100, validation=0.2)
    data.verify()
    assert (tokens_folder(prepared) / name).read_bytes() == whole


def test_a_flipped_bit_is_found(prepared: Path) -> None:
    data = TokenData(prepared)
    data.verify()
    path = tokens_folder(prepared) / "train-00001.bin"
    content = bytearray(path.read_bytes())
    content[17] ^= 4
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(MinillamaError, match=rf"train-00001\.bin: expected sha256 [0-9a-f]+, found {found}: altered; "):
        data.verify()


def test_folders_that_hold_no_prepared_data(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(MinillamaError, match=r"absent: expected prepared data with a tokens\.json, found none; make"):
        TokenData(tmp_path / "absent")
    with pytest.raises(UsageError, match="expected a new folder, an empty one or prepared data, found something else"):
        tokenize(corpus, tokenizer(), tmp_path)
    with pytest.raises(UsageError, match=r"corpus\.txt: expected a folder to write to, found a file"):
        tokenize(corpus, tokenizer(), corpus)
    (tmp_path / "empty").mkdir()
    tokenize(corpus, tokenizer(), tmp_path / "empty")


def test_a_damaged_index_gets_one_line(corpus: Path, prepared: Path) -> None:
    path = prepared / "tokens.json"
    whole = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    text = json.dumps(whole)
    damaged = [text[:length] for length in rng.integers(0, len(text) - 1, 50)]
    damaged += ["[]", "3", "{}", '{"inputs": {"version": 2}}', '{"inputs": []}', '{"inputs": {"version": 1}}']
    for key in whole.keys() - {"source"}:
        damaged += [json.dumps({**whole, key: value}) for value in (None, "x", [])]
    train = whole["splits"]["train"]
    for key in train:
        changed = [{**train, key: value} for value in (None, "x", [3], [{"file": "x"}])]
        damaged += [json.dumps({**whole, "splits": {**whole["splits"], "train": each}}) for each in changed]
    for content in damaged:
        path.write_text(content)
        with pytest.raises(MinillamaError) as caught:
            TokenData(prepared)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    tokenize(corpus, tokenizer(), prepared)
    assert TokenData(prepared).train.documents + TokenData(prepared).validation.documents == 60


@pytest.mark.parametrize("content", ["", " \n", "<|endoftext|>\n<|endoftext|>"])
def test_an_empty_corpus(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(MinillamaError, match=r"a\.txt: expected text to train on, found no document$"):
        tokenize(path, tokenizer(), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "split": "validation"}\n')
    with pytest.raises(MinillamaError, match=r"expected text to train on, found 1 for validation only$"):
        tokenize(path, tokenizer(), tmp_path / "data")


@pytest.mark.parametrize(
    "options", [{"validation": 1}, {"validation": -0.1}, {"validation": float("nan")}, {"seed": -1}]
)
def test_settings_out_of_range(tmp_path: Path, corpus: Path, options: dict) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} .*: expected"):
        tokenize(corpus, tokenizer(), tmp_path / "data", **options)


def test_a_source_that_fails_on_the_way_changes_nothing(
    corpus: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH", 10)
    before = tokens_of(TokenData(prepared).train)
    corpus.write_bytes(corpus.read_bytes() + b"\xff")
    with pytest.raises(MinillamaError, match="expected UTF-8 text"):
        tokenize(corpus, tokenizer(), prepared, shard_tokens=100)
    tokens_folder(prepared)
    assert tokens_of(TokenData(prepared).train) == before


def test_ctrl_c_changes_nothing(corpus: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    before = tokens_of(TokenData(prepared).train)
    monkeypatch.setattr(shards._SplitWriter, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenize(corpus, tokenizer(), prepared, seed=5)
    tokens_folder(prepared)
    assert tokens_of(TokenData(prepared).train) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_changes_nothing(tmp_path: Path, prepared: Path) -> None:
    """A limit on the size of files stands in for the disk: writing fails in the same place."""
    import resource

    before = tokens_of(TokenData(prepared).train)
    larger = text_file(tmp_path / "larger.txt", stories(2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(MinillamaError, match=r"data: cannot be written \(File too large\)$"):
            tokenize(larger, tokenizer(), prepared)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tokens_folder(prepared)
    assert tokens_of(TokenData(prepared).train) == before


def test_no_space_for_the_index_changes_nothing(prepared: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tokens_of(TokenData(prepared).train)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MinillamaError, match=r"cannot be written: No space left on device$"):
        tokenize(corpus, tokenizer(), prepared, seed=5)
    tokens_folder(prepared)
    assert tokens_of(TokenData(prepared).train) == before


def test_two_writers_of_one_folder_do_not_mix(prepared: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tokens_of(TokenData(prepared).train)
    fill = shards._fill

    def fill_and_lose(*arguments: object) -> None:
        fill(*arguments)  # type: ignore[arg-type]
        for entry in prepared.glob("tokens-*/train-00000.bin"):  # as the other writer does when it is done
            if entry.parent.name != json.loads((prepared / "tokens.json").read_text())["folder"]:
                entry.unlink()

    monkeypatch.setattr(shards, "_fill", fill_and_lose)
    with pytest.raises(MinillamaError, match=r"train-00000\.bin: expected \d+ bytes, cannot be read"):
        tokenize(corpus, tokenizer(), prepared, seed=5)
    assert tokens_of(TokenData(prepared).train) == before


KILLED = """
import os, sys
from pathlib import Path
from minillama.data import shards
from minillama.tokenizer import from_sentencepiece

moment, corpus, folder, model = sys.argv[1:]
write = shards.write_bytes

def die(*arguments):
    if moment == "in the index":
        Path(folder, "tokens.json.1.part").write_bytes(b"{")
    if moment == "after the index":
        write(*arguments)
    os._exit(9)

if moment == "among the tokens":
    add, count = shards._SplitWriter.add, iter(range(30))
    shards._SplitWriter.add = lambda *arguments: add(*arguments) if next(count, None) is not None else die()
else:
    shards.write_bytes = die
shards.tokenize(corpus, from_sentencepiece(model), folder, seed=1, validation=0.2, shard_tokens=100)
"""


@pytest.mark.parametrize("moment", ["among the tokens", "before the index", "in the index", "after the index"])
def test_killed_at_any_moment(tmp_path: Path, corpus: Path, prepared: Path, moment: str) -> None:
    settings = {"seed": 1, "validation": 0.2, "shard_tokens": 100}
    old = tokens_of(TokenData(prepared).validation)
    new = tokens_of(tokenize(corpus, tokenizer(), tmp_path / "new", **settings).validation)
    assert old != new
    tokenizer().save(tmp_path)
    model = tmp_path / "tokenizer.model"
    for folder in (prepared, tmp_path / "first"):
        command = [sys.executable, "-c", KILLED, moment, str(corpus), str(folder), str(model)]
        assert subprocess.run(command).returncode == 9
        if folder == prepared or moment == "after the index":
            expected = new if moment == "after the index" else old
            assert tokens_of(TokenData(folder).validation) == expected
        data = tokenize(corpus, tokenizer(), folder, **settings)
        assert tokens_of(data.validation) == new
        if moment != "after the index":  # what the dead process left is gone; else nothing had to be made
            tokens_folder(folder)


def test_miniature(tmp_path: Path) -> None:
    data = tokenize("miniature:50", tokenizer(), tmp_path / "data", validation=0)
    documents = list(sources.documents("miniature:50"))
    for name, split in (("train", data.train), ("validation", data.validation)):
        assert texts_of(split) == [document.text for document in documents if document.split == name]


def test_tinystories(tmp_path: Path) -> None:
    data_file("text/tinystories_sample.txt")
    from minillama.tokenizer import from_sentencepiece

    data = tokenize("tinystories-sample", from_sentencepiece(data_file("weights/llama2_32k.model")), tmp_path / "data")
    assert data.train.documents + data.validation.documents == 2317
    assert 80 <= data.validation.documents <= 150
    assert data.tokenizer.decode(data.train[:20]).startswith("One day, a little girl named Lily")
