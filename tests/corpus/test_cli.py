"""`minillama data`: what it prints where, and its exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from minillama.cli import app
from minillama.data import TokenData
from tests.corpus.texts import other_tokenizer, stories, text_file, tokenizer


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables on lines long enough to be searched."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer().save(tmp_path / "model")
    return tmp_path / "model" / "tokenizer.model"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return text_file(tmp_path / "corpus.txt", stories(40))


def test_prepare_and_info(tmp_path: Path, corpus: Path, model: Path) -> None:
    out = tmp_path / "data"
    made = run("data", "prepare", corpus, "--tokenizer", model, "--out", out, "--validation", "0.2")
    assert made.exit_code == 0, made.stderr
    data = TokenData(out)
    assert data.train.documents + data.validation.documents == 40
    assert data.inputs["validation"] == 0.2
    for name, split in (("train", data.train), ("validation", data.validation)):
        row = rf"{name} +│ +{split.documents} │ +{len(split):,} │ +{split.bytes:,} │ +\d\.\d\d │ +1 │"
        assert re.search(row, made.stdout), made.stdout
    assert re.fullmatch(rf"{re.escape(str(out))}: ready in \d+\.\d s\n", made.stderr)
    shown = run("data", "info", out)
    assert (shown.exit_code, shown.stderr, shown.stdout) == (0, "", made.stdout)


def test_prepare_with_everything_named(tmp_path: Path, model: Path) -> None:
    lines, jsonl = tmp_path / "lines.txt", tmp_path / "a.jsonl"
    lines.write_text("one\n\ntwo\n\nthree")
    jsonl.write_text('{"story": "one"}\n')
    command = ("--tokenizer", model, "--validation", 0, "--seed", 3)
    assert run("data", "prepare", lines, *command, "--out", tmp_path / "a", "--separator", r"\n\n").exit_code == 0
    assert TokenData(tmp_path / "a").train.documents == 3
    assert run("data", "prepare", jsonl, *command, "--out", tmp_path / "b", "--field", "story").exit_code == 0
    assert TokenData(tmp_path / "b").train.documents == 1


def test_what_goes_wrong_takes_one_line(tmp_path: Path, corpus: Path, model: Path) -> None:
    out = tmp_path / "data"
    for command, code, message in (
        (("prepare", "absent.txt", "--tokenizer", model, "--out", out), 1, "absent.txt: no such file or folder"),
        (("prepare", "absent", "--tokenizer", model, "--out", out), 2, "unknown data 'absent': expected a file"),
        (("prepare", corpus, "--tokenizer", corpus, "--out", out), 1, "corpus.txt"),
        (("prepare", corpus, "--tokenizer", model, "--out", corpus), 2, "expected a folder to write to, found a file"),
        (("prepare", corpus, "--tokenizer", model), 2, "--out"),
        (("prepare", corpus, "--tokenizer", model, "--out", out, "--validation", "2"), 2, "expected a share from 0"),
        (("info", out), 1, "expected prepared data with a tokens.json, found none"),
    ):
        result = run("data", *command)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr
        assert result.stderr.startswith("minillama: ")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
    assert not out.exists()


def test_info_reads_every_byte(tmp_path: Path, corpus: Path, model: Path) -> None:
    out = tmp_path / "data"
    run("data", "prepare", corpus, "--tokenizer", model, "--out", out)
    (path,) = out.glob("tokens-*/train-00000.bin")
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    result = run("data", "info", out)
    assert result.exit_code == 1
    assert re.match(r"minillama: .*train-00000\.bin: expected sha256 .*: altered; make it again with", result.stderr)
    other_tokenizer().save(tmp_path / "model")
    assert run("data", "prepare", corpus, "--tokenizer", model, "--out", out).exit_code == 0
    assert run("data", "info", out).exit_code == 0


def test_help_has_an_example() -> None:
    for name in ("prepare", "info"):
        assert "Example" in run("data", name, "--help").stdout
    assert "prepare" in run("data").stdout
