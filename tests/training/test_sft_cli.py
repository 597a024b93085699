"""`minillama sft` on a few dialogues: from a base model to a chat, killed and gone on, and with bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from minillama import weights
from minillama.chat import builtin
from minillama.cli import app
from tests.training.chats import chatml_tokenizer, jsonl, records, said, saved, tags_tokenizer

HOW = ("--seq-len", 100, "--batch-size", 2, "--lr", 0.02, "--threads", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with fresh weights."""
    return saved(tmp_path_factory.mktemp("models") / "base", tags_tokenizer())


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty, two of them held out."""
    lines = [{**record, "split": "validation" if i % 10 == 4 else "train"} for i, record in enumerate(records(20))]
    return jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", lines)


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six, all of them to train on: nothing is measured, shown or saved on the way."""
    return jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", [{**record, "split": "train"} for record in records(6)])


def run(*arguments: object) -> Result:
    """`minillama sft` in this process."""
    return CliRunner().invoke(app, ["sft", *map(str, arguments)])


def sft(base: Path, dialogues: Path | str, out: Path, *more: object) -> Result:
    """A run that must succeed."""
    result = run("--model", base, "--data", dialogues, "--out", out, *HOW, *more)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(base: Path, dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that has ended, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "sft"
    return out, sft(base, dialogues, out)


def log(out: Path, kind: str = "loss") -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if kind in line]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_printed(trained: tuple[Path, Result]) -> None:
    out, result = trained
    lines = {
        name.strip(): value
        for name, _, value in (line.rstrip().rpartition("  ") for line in result.stdout.splitlines())
    }
    steps = log(out)
    assert lines["dialogues"].strip() == "18"
    assert lines["steps"].strip() == f"{len(steps)}"
    parameters = weights.inspect(out).config.param_count()
    assert f"{parameters:,} of {parameters:,}" in result.stdout
    validation = log(out, "validation")[-1]["validation"]
    assert float(lines["held-out loss"]) == pytest.approx(validation["loss"], abs=1e-4)
    assert float(lines["held-out perplexity"]) == pytest.approx(validation["perplexity"], abs=1e-4)
    assert result.stdout.rstrip().endswith(log(out, "sample")[-1]["sample"].rstrip())
    assert "Does" in log(out, "sample")[-1]["sample"] and " → " in log(out, "sample")[-1]["sample"]
    assert validation["loss"] < log(out, "validation")[0]["validation"]["loss"]


def test_the_folder_is_a_chat_model(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    checkpoint = weights.load(out)
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.sha256 == tags_tokenizer().sha256
    assert checkpoint.chat_template is not None
    assert checkpoint.chat_template.source == builtin("llama2-tags").source
    arguments = ["chat", str(out), "--max-new-tokens", "8", "--temperature", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, input="Does Ann like apples?\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_three_times_it_ends_with_the_same_bits(base: Path, dialogues: Path, tmp_path: Path) -> None:
    """By kill -9, wherever it is then: reading, in a step, saving."""
    more = ("--epochs", 6, "--save-every", 3)
    expected = sft(base, dialogues, tmp_path / "whole", *more)
    steps = len(log(tmp_path / "whole"))
    out = tmp_path / "killed"
    arguments = ["--model", base, "--data", dialogues, "--out", out, *HOW, *more]
    command = [sys.executable, "-m", "minillama", "sft", *map(str, arguments)]
    kills = 0
    for kill in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = steps * kill // 4 + 2  # steps to be seen before the kill
        while process.poll() is None:
            if (out / "log.jsonl").exists() and (out / "log.jsonl").read_bytes().count(b'"lr"') >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                break
            time.sleep(0.005)
    assert kills >= 2
    result = sft(base, dialogues, out, *more)
    assert "going on after step" in result.stderr or "ended already" in result.stderr
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    without_time = [
        [{name: x for name, x in line.items() if "second" not in name} for line in log(folder, "step")]
        for folder in (tmp_path / "whole", out)
    ]
    assert without_time[0] == without_time[1]
    assert table(result.stdout) == table(expected.stdout)


def table(printed: str) -> list[list[str]]:
    """What is printed, without the folder and the time."""
    return [line.split() for line in printed.splitlines() if line.startswith(("dialogues", "steps", "held-out"))]


def test_the_same_command_again_finds_it_done(base: Path, dialogues: Path, trained: tuple[Path, Result]) -> None:
    out, _ = trained
    before = files(out)
    for more in ((), ("--resume",), ("--threads", 2, "--micro-batch", 1, "--save-every", 5, "--recompute")):
        again = sft(base, dialogues, out, *more)
        assert again.stderr == f"{out}: this run has ended already (--overwrite begins it again)\n"
    assert files(out) == before


def test_overwrite_begins_again(base: Path, unmeasured: Path, tmp_path: Path) -> None:
    sft(base, unmeasured, tmp_path / "run", "--epochs", 1)
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = sft(base, unmeasured, tmp_path / "run", "--epochs", 1, "--seed", 1, "--overwrite")
    assert "ended already" not in again.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != first
    sft(base, unmeasured, tmp_path / "run", "--epochs", 1, "--overwrite")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (("--epochs", 3), "epochs 2, not 3"),
        (("--lr", 0.5), "lr 0.02, not 0.5"),
        (("--seed", 1), "seed 0, not 1"),
        (("--batch-size", 4), "batch_size 2, not 4"),
        (("--seq-len", 90), "size 100, not 90"),
        (("--packing", "none"), 'packing "packed", not "none"'),
        (("--template", "llama2"), "template "),
        (("--lora", 2), "lora.rank nothing, not 2"),
    ],
)
def test_other_settings_are_refused_with_what_differs(
    base: Path, dialogues: Path, trained: tuple[Path, Result], change: tuple[object, ...], differs: str
) -> None:
    out, _ = trained
    before = files(out)
    result = run("--model", base, "--data", dialogues, "--out", out, *HOW, *change)
    assert result.exit_code == 2
    assert f"{out / 'run.json'}: a run of other settings: " in result.stderr and differs in result.stderr
    assert result.stderr.count("\n") == 1
    assert files(out) == before


def test_other_data_and_another_model_are_refused(
    base: Path, dialogues: Path, tmp_path: Path, trained: tuple[Path, Result]
) -> None:
    out, _ = trained
    other = jsonl(tmp_path / dialogues.name, records(21))
    result = run("--model", base, "--data", other, "--out", out, *HOW)
    assert result.exit_code == 2 and "data.sha256" in result.stderr
    result = run("--model", out, "--data", dialogues, "--out", out, *HOW)
    assert result.exit_code == 2 and "initial" in result.stderr


def test_adapters_from_the_command_line(base: Path, unmeasured: Path, tmp_path: Path) -> None:
    before = files(base)
    result = sft(base, unmeasured, tmp_path / "lora", "--lora", 2, "--epochs", 1)
    assert files(base) == before
    adapters = weights.load(tmp_path / "lora", merge=False)
    assert adapters.lora is not None and (adapters.lora.rank, adapters.lora.alpha) == (2, 4)
    trained = sum(p.size for p in adapters.params.values())
    assert f"{trained:,} of " in result.stdout
    arguments = ["chat", str(tmp_path / "lora"), "--max-new-tokens", "3", "--device", "cpu", "--seed", "1"]
    assert CliRunner().invoke(app, arguments, input="Does Ann like apples?\n").exit_code == 0


def test_the_miniature_is_learned_in_the_template_that_suits(tmp_path: Path) -> None:
    """With a byte-level vocabulary: ChatML."""
    base = saved(tmp_path / "base", chatml_tokenizer(), max_seq_len=256)
    result = run("--model", base, "--data", "miniature:6", "--out", tmp_path / "run", "--epochs", 1, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    template = weights.load(tmp_path / "run").chat_template
    assert template is not None and template.source == builtin("chatml").source
    assert "longer than a row: cut there" in result.stderr


def test_what_was_left_out_is_said(base: Path, tmp_path: Path) -> None:
    unlearned = {"messages": [*said("a"), {"role": "assistant", "content": "b", "weight": 0}]}
    lines = [*records(4), unlearned, {"messages": said("a", "b")[::-1]}, {"messages": said("a " * 90, "b")}]
    lines = [{**line, "split": "train"} for line in lines]
    path = jsonl(tmp_path / "d.jsonl", lines)
    result = sft(base, path, tmp_path / "run", "--epochs", 1)
    said_last = result.stderr.splitlines()[-3:]
    assert said_last[0] == "1 dialogues are longer than a row: cut there"
    assert said_last[1] == "2 dialogues left out: no token of theirs is learned"  # one of them cut
    assert said_last[2].startswith(f"1 dialogues left out, the first of them {path}: line 6: ")


@pytest.mark.parametrize(
    ("content", "more", "code", "message"),
    [
        ("{", (), 1, "d.jsonl: line 1: expected JSON"),
        ("", (), 1, "nothing to learn: expected dialogues to train on, found none"),
        ('{"messages": [{"role": "user", "content": "x"}]}', (), 1, "found 1 of which no token counts"),
        (None, ("--data", "nowhere.jsonl"), 1, "nowhere.jsonl: no such file"),
        (
            None,
            ("--data", "alpaca"),
            2,
            "unknown dialogues 'alpaca': expected a .jsonl file or one of miniature, harmless, hh-rlhf",
        ),
        (None, ("--data", "miniature:none"), 2, "with a number of dialogues N, found 'none'"),
        (
            None,
            ("--template", "alpaca"),
            2,
            "unknown chat template 'alpaca': expected one of llama2, llama2-tags, chat",
        ),
        (None, ("--packing", "tight"), 2, "packing 'tight': expected one of packed, concatenated, none"),
        (None, ("--lr", -1), 2, "learning rate -1.0: expected a positive number"),
        (None, ("--seq-len", 1000), 2, "rows of 1000 tokens: expected at most the context of 128"),
        (None, ("--lora-alpha", 3), 2, "LoRA alpha 3.0: expected a rank with it, found none"),
        (None, ("--resume",), 2, "expected a run to go on with, found none"),
        (None, ("--resume", "--overwrite"), 2, "sft: expected either --resume or --overwrite, found both"),
        (None, ("--model", "nowhere/model"), 1, "nowhere/model"),
    ],
)
def test_bad_input_is_one_line(
    base: Path,
    dialogues: Path,
    tmp_path: Path,
    content: str | None,
    more: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    source = dialogues
    if content is not None:
        source = tmp_path / "d.jsonl"
        source.write_text(content)
    result = run("--model", base, "--data", source, "--out", tmp_path / "run", *HOW, *more)
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("minillama: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr


def test_a_model_without_a_tokenizer(dialogues: Path, tmp_path: Path) -> None:
    result = run("--model", saved(tmp_path / "mute", None), "--data", dialogues, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "expected a tokenizer with the weights, found none" in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_has_an_example() -> None:
    assert "minillama sft --model runs/mini/base --data miniature --out" in " ".join(run("--help").stdout.split())
