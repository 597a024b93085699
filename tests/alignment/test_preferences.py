"""Preference pairs: what a pair must be, files of either kind, what is left out, splits, names."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minillama import catalog
from minillama.alignment import preferences
from minillama.alignment.preferences import RATINGS, Pair, Preferences
from minillama.data.comparisons import PUBLIC_SETS
from minillama.errors import MinillamaError, UsageError
from tests.data import data_file

PROMPT = ({"role": "user", "content": "How?"},)
PAIRS = [
    Pair(PROMPT, "So.", "No."),
    Pair(({"role": "system", "content": "Be kind."}, *PROMPT), "Ünïcode\n\nand lines", '"quoted"', RATINGS[0]),
    Pair(PROMPT, "a", "b", None, (True, False), "safety", "validation"),
]


def hh(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    preferences.save(PAIRS, tmp_path / "pairs.jsonl")
    loaded = preferences.load([tmp_path / "pairs.jsonl"])
    assert loaded.pairs == PAIRS
    assert (loaded.malformed, loaded.identical, loaded.notices()) == (0, 0, [])
    preferences.save(loaded.pairs, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "pairs.jsonl").read_bytes()
    twice = preferences.load([tmp_path / "pairs.jsonl", tmp_path / "again.jsonl"])
    assert twice.pairs == PAIRS * 2
    assert [file["name"] for file in twice.files] == ["pairs.jsonl", "again.jsonl"]
    assert len({file["sha256"] for file in twice.files}) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": ()}, "prompt: expected messages, the last of them the user's"),
        ({"prompt": (*PROMPT, {"role": "assistant", "content": "x"})}, "the last of them the user's"),
        ({"prompt": ({"role": "human", "content": "x"},)}, "message 0: expected a role of"),
        ({"prompt": ("x",)}, "message 0: expected a role of"),
        ({"prompt": ({"role": "user", "content": None},)}, "message 0: expected a text as content"),
        ({"prompt": ({"role": "user"},)}, "message 0: expected a text as content"),
        ({"chosen": None}, "chosen: expected an answer, found None"),
        ({"rejected": " \n"}, "rejected: expected an answer"),
        ({"rating": "good"}, "rating: expected one of significantly better, better"),
        ({"safe": (True,)}, "safe: expected true or false, of chosen and rejected"),
        ({"safe": (True, 0)}, "safe: expected true or false"),
        ({"domain": "art"}, "domain: expected one of helpfulness, safety, found 'art'"),
    ],
)
def test_what_is_no_pair(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    """Refused when it is built, and in a file with the file's name and the line."""
    with pytest.raises(MinillamaError, match=problem):
        replace(PAIRS[0], **changes)
    record = {"prompt": list(PROMPT), "chosen": "a", "rejected": "b"} | changes
    path = write(tmp_path / "pairs.jsonl", {"prompt": list(PROMPT), "chosen": "a", "rejected": "b"}, record)
    with pytest.raises(MinillamaError, match=rf"pairs\.jsonl: line 2: .*{problem}"):
        preferences.load([path])


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected a JSON object"),
        ({"chosen": "a"}, "expected texts as chosen and rejected, found 'chosen'"),
        ({"chosen": ["a"], "rejected": "b"}, "expected texts as chosen and rejected"),
        ({}, "expected texts as chosen and rejected, found nothing"),
        ({"prompt": "text", "chosen": "a", "rejected": "b"}, "to be lists"),
        ({"prompt": list(PROMPT), "chosen": "a", "rejected": "b", "safe": True}, "to be lists"),
        ({"prompt": list(PROMPT), "chosen": "a", "rejected": "b", "split": "test"}, "expected 'train' or 'validation'"),
    ],
)
def test_lines_that_are_no_pair(tmp_path: Path, record: Any, problem: str) -> None:
    path = write(tmp_path / "pairs.jsonl", {"chosen": hh("q", "a"), "rejected": hh("q", "b")}, "", record)
    with pytest.raises(MinillamaError, match=rf"pairs\.jsonl: line 3: .*{problem}") as error:
        preferences.load([path])
    assert "\n" not in str(error.value)


def test_hh_rlhf(tmp_path: Path) -> None:
    """Texts become messages; what is not two answers to one prompt is counted, as are answers that are the same."""
    good = {"chosen": hh("q", "a", "q2\n\nmore: x", "Human: c"), "rejected": hh("q", "a", "q2\n\nmore: x", "d")}
    malformed = [
        {"chosen": hh("q", "a"), "rejected": hh("r", "b")},  # another prompt
        {"chosen": hh("q", "a"), "rejected": hh("q", "a", "r", "b")},  # another number of turns
        {"chosen": hh("q", "a", "r"), "rejected": hh("q", "a", "s")},  # no answers
        {"chosen": hh("q", ""), "rejected": hh("q", "b")},
        {"chosen": "\n\nHuman: q\n\nHuman: r\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nHuman: r\n\nAssistant: b"},
        {"chosen": "text", "rejected": hh("q", "b")},
        {"chosen": "", "rejected": ""},
    ]
    same = {"chosen": hh("q", "a"), "rejected": hh("q", "a")}
    lines = "".join(json.dumps(record) + "\n" for record in [good, *malformed, same])
    path = tmp_path / "hh.jsonl.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    found = preferences.load([path])
    assert (found.malformed, found.identical) == (len(malformed), 1)
    assert [said.split()[0] for said in found.notices()] == ["7", "1"]
    (pair,) = found.pairs
    assert [m["role"] for m in pair.prompt] == ["user", "assistant", "user"]
    assert [m["content"] for m in pair.prompt] == ["q", "a", "q2\n\nmore: x"]
    assert (pair.chosen, pair.rejected) == ("Human: c", "d")
    assert (pair.rating, pair.safe, pair.domain, pair.split) == (None, None, None, None)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"chosen": hh("q", "a"), "rejected": hh("q", "b")}).encode())[:-9])
    with pytest.raises(MinillamaError, match=r"hh\.jsonl\.gz: expected the end of the gzip stream"):
        preferences.load([path])


def test_held_out_by_the_prompt() -> None:
    """About the share asked for; a dialogue's continuations on one side; independent of the answers and the order."""

    def asked(text: str, *more: str, **changes: Any) -> Pair:
        turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate((text, *more))]
        return Pair(tuple(turns), **{"chosen": "a", "rejected": "b"} | changes)

    pairs = [asked(f"question {i}") for i in range(2000)]
    continued = [asked(f"question {i}", "answer", "and then?", chosen="c") for i in range(2000)]
    training, held_out = Preferences(pairs + continued).split(0.1)
    assert len(training) + len(held_out) == 4000
    assert abs(len(held_out) - 400) < 4 * (2 * 2000 * 0.1 * 0.9) ** 0.5 * 2**0.5
    sides = [{pair.prompt[0]["content"] for pair in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    again, held_out_again = Preferences((pairs + continued)[::-1]).split(0.1)
    assert (again[::-1], held_out_again[::-1]) == (training, held_out)
    more = Preferences(pairs).split(0.3)[1]
    assert set(sides[1]) <= {pair.prompt[0]["content"] for pair in more}, "a larger share holds out the same and more"
    told = [replace(pairs[0], split="validation"), replace(pairs[1], split="train")]
    assert Preferences(told).split(0.0) == ([told[1]], [told[0]])
    assert Preferences(pairs).split(0.0) == (pairs, [])
    for share in (1.0, -0.1):
        with pytest.raises(UsageError, match="held out"):
            Preferences(pairs).split(share)


def test_unknown_sources(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown preferences 'nobody': expected a \.jsonl file or one of hh-rlhf"):
        preferences.load(["nobody"])
    with pytest.raises(MinillamaError, match="no such file"):
        preferences.load([tmp_path / "absent.jsonl"])


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name's files are looked for in MINILLAMA_DATA and its folder text, with their checksums, splits and domains."""
    record = {"chosen": hh("q", "a"), "rejected": hh("q", "b")}
    monkeypatch.setenv("MINILLAMA_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    (train, _, _), (test, _, _) = PUBLIC_SETS["hh-rlhf"]
    write(tmp_path / "text" / train.name, json.dumps(record))
    with pytest.raises(MinillamaError, match=rf"{train.name}: expected sha256 {train.sha256}"):
        preferences.load(["hh-rlhf"])
    monkeypatch.setattr(catalog, "check_sha256", lambda *_: None)
    monkeypatch.setattr(preferences, "jsonl_records", lambda path: [(path.name, record)])
    write(tmp_path / test.name, json.dumps(record))
    found = preferences.load(["HH-RLHF"])
    assert [(pair.split, pair.domain) for pair in found.pairs] == [
        ("train", "helpfulness"),
        ("validation", "helpfulness"),
    ]
    (tmp_path / test.name).unlink()
    monkeypatch.setattr(catalog, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(catalog, "fetch", lambda file, folder: f"{file.name} cannot be downloaded (Timeout)")
    with pytest.raises(MinillamaError, match=rf"cannot be downloaded .*; get https.*test\.jsonl\.gz .*as {test.name}"):
        preferences.load(["hh-rlhf"])
    with pytest.raises(MinillamaError, match="hh-rlhf-sample: expected hh_harmless_base_sample"):
        preferences.load(["hh-rlhf-sample"])


def test_real_pairs() -> None:
    """The sample of harmless-base: 1,312 lines, 7 of which are not two answers to one prompt."""
    data_file("text/hh_harmless_base_sample.jsonl.gz")
    found = preferences.load(["hh-rlhf-sample"])
    assert (len(found.pairs), found.malformed, found.identical) == (1305, 7, 0)
    assert {pair.domain for pair in found.pairs} == {"safety"}
    training, held_out = found.split()
    assert len(training) + len(held_out) == 1305
    assert 0.06 < len(held_out) / 1305 < 0.14
