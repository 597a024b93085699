"""`minillama gatt` with tiny models: on a file with instructions, on the miniature, stopped, and with bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from minillama import weights
from minillama.alignment import ghost_attention
from minillama.chat import builtin
from minillama.cli import app
from minillama.model import Llama
from minillama.training import finetune
from minillama.weights import Checkpoint
from tests.training.chats import jsonl, lively, records, said, tags_tokenizer

HOW = ("--seq-len", 256, "--batch-size", 2, "--lr", 0.01, "--threads", 1, "--device", "cpu", "--max-new-tokens", 6)
HOW += ("--epochs", 1, "--turns", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template; it says anything."""
    folder = tmp_path_factory.mktemp("models") / "sft"
    llama = lively(tags_tokenizer(), max_seq_len=1024)
    weights.save(Checkpoint(llama.config, llama.params, tags_tokenizer(), builtin("llama2-tags")), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Dialogues whose requests are asked, and instructions."""
    folder = tmp_path_factory.mktemp("data")
    lines = [{**record, "split": "train"} for record in records(12, turns=(1, 2, 3, 4))]
    instructions = folder / "instructions.txt"
    instructions.write_text("Say yes.\n\n  Act as Ann. \n", encoding="utf-8")
    return jsonl(folder / "d.jsonl", lines), instructions


def run(*arguments: object) -> Result:
    """`minillama gatt` in this process."""
    return CliRunner().invoke(app, ["gatt", *map(str, arguments)])


def gatt(model: Path, data: tuple[Path, Path], out: Path, *more: object) -> Result:
    """A run on the file that must succeed."""
    result = run("--model", model, "--data", data[0], "--instructions", data[1], "--out", out, *HOW, *more)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(model: Path, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that has ended, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "gatt"
    return out, gatt(model, data, out)


def sampled(out: Path) -> list[list[dict[str, Any]]]:
    lines = (out / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def test_the_dialogues_are_in_the_folder(trained: tuple[Path, Result], data: tuple[Path, Path]) -> None:
    """The file's requests in their order, up to three; an instruction before the first alone, the last answer alone
    learned. Of three turns there are two examples: the first two, and all.
    """
    found = sampled(trained[0])
    whole = [json.loads(line)["messages"] for line in data[0].read_text().splitlines()]
    expected = [turns[:end] for turns in map(user, whole) for end in (2, 3) if len(turns) >= end]
    assert len(found) == len(expected) == 15
    instructions = set()
    for messages, turns in zip(found, expected, strict=True):
        requests = user(messages)
        assert requests[0].endswith(f" {turns[0]}") and requests[1:] == turns[1:]
        instructions.add(requests[0].removesuffix(f" {turns[0]}"))
        weights_of = [m["weight"] for m in messages if m["role"] == "assistant"]
        assert weights_of == [0] * (len(turns) - 1) + [1]
    assert instructions == {"Say yes.", "Act as Ann."}


def user(messages: list[dict[str, Any]]) -> list[str]:
    """What the user says."""
    return [m["content"] for m in messages if m["role"] == "user"]


def test_the_folder_is_a_chat_model_that_learned(trained: tuple[Path, Result], model: Path) -> None:
    out, result = trained
    checkpoint = weights.load(out)
    assert checkpoint.chat_template is not None and checkpoint.tokenizer is not None
    before = Llama.load(model).params
    assert any(abs(p - before[name]).max() > 1e-3 for name, p in checkpoint.params.items())
    assert json.loads((out / "run.json").read_text())["settings"]["stage"] == "gatt"
    assert "trained" in result.stdout and "steps" in result.stdout
    arguments = ["chat", str(out), "--max-new-tokens", "3", "--device", "cpu", "--seed", "0"]
    assert CliRunner().invoke(app, arguments, input="Ann?\n").exit_code == 0


def test_the_same_command_again_finds_it_done(
    trained: tuple[Path, Result], model: Path, data: tuple[Path, Path]
) -> None:
    again = gatt(model, data, trained[0], "--resume")
    assert again.stderr == f"{trained[0]}: this run has ended already (--overwrite begins it again)\n"


def test_what_was_sampled_is_not_sampled_again(
    model: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: tuple[Path, Result]
) -> None:
    """Stopped after the sampling, the run goes on with the dialogues that are there, to the same bits."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "train", stop)
        result = run("--model", model, "--data", data[0], "--instructions", data[1], "--out", out, *HOW)
    assert result.exit_code == 1 and "the power is gone" in result.stderr
    kept = (out / "dialogues.jsonl").read_bytes()
    assert kept == (trained[0] / "dialogues.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ghost_attention, "ghost_dialogues", stop)
        gatt(model, data, out)
    assert (out / "dialogues.jsonl").read_bytes() == kept
    assert (out / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def stop(*_: Any, **__: Any) -> Any:
    raise OSError("the power is gone")


def test_sampling_that_was_stopped_begins_again(
    model: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ghost_attention, "ghost_dialogues", stop)
        assert run("--model", model, "--data", data[0], "--instructions", data[1], "--out", out, *HOW).exit_code == 1
    assert not (out / "dialogues.jsonl").exists()
    gatt(model, data, out, "--resume")
    assert len(sampled(out)) == 15


def test_overwrite_samples_again(model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    gatt(model, data, tmp_path / "run")
    first = sampled(tmp_path / "run")
    gatt(model, data, tmp_path / "run", "--overwrite", "--seed", 1)
    assert sampled(tmp_path / "run") != first


def test_on_the_miniature_with_replay(model: Path, tmp_path: Path) -> None:
    more = ("--replay", "miniature:3", "--temperature", 0)
    result = run("--model", model, "--data", "miniature:4", "--out", tmp_path / "run", *HOW, *more)
    assert result.exit_code == 0, result.stderr
    requests, instructions = ghost_attention.miniature_requests(4, 3)
    dialogues = sampled(tmp_path / "run")
    asked = list(map(user, dialogues))
    for turns, instruction in zip(requests, instructions, strict=True):
        assert [f"{instruction} {turns[0]}", *turns[1:]] in asked
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["data"]["0"]["requests"] == 4 and settings["data"]["1"]["miniature"] == 3
    # Those of the training split, sampled and replayed.
    found = next(line for line in result.stdout.splitlines() if line.startswith("dialogues"))
    assert len(dialogues) - 3 < int(found.split()[-1]) - 3 <= len(dialogues)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (("--turns", 2), "turns 3, not 2"),
        (("--temperature", 0.5), "temperature 0.7, not 0.5"),
        (("--max-new-tokens", 5), "max_new_tokens 6, not 5"),
        (("--lr", 0.5), "lr 0.01, not 0.5"),
        (("--replay", "miniature:3"), "data."),
    ],
)
def test_other_settings_are_refused_with_what_differs(
    model: Path, data: tuple[Path, Path], trained: tuple[Path, Result], change: tuple[object, ...], differs: str
) -> None:
    kept = (trained[0] / "dialogues.jsonl").read_bytes()
    arguments = ("--model", model, "--data", data[0], "--instructions", data[1], "--out", trained[0], *HOW, *change)
    result = run(*arguments)
    assert result.exit_code == 2, result.stderr
    assert "a run of other settings: " in result.stderr and differs in result.stderr
    assert result.stderr.count("\n") == 1
    assert (trained[0] / "dialogues.jsonl").read_bytes() == kept


def test_other_instructions_are_other_settings(
    model: Path, data: tuple[Path, Path], tmp_path: Path, trained: tuple[Path, Result]
) -> None:
    (tmp_path / "i.txt").write_text("Say no.\nAct as Ann.\n")
    result = run("--model", model, "--data", data[0], "--instructions", tmp_path / "i.txt", "--out", trained[0], *HOW)
    assert result.exit_code == 2 and "data.sha256" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "{data}"), 2, "gatt: a .jsonl file needs --instructions FILE, and the miniature has its own"),
        (("--data", "miniature:4", "--instructions", "{file}"), 2, "gatt: a .jsonl file needs --instructions FILE"),
        (("--data", "nowhere.jsonl"), 1, "nowhere.jsonl: no such file"),
        (("--data", "{data}", "--instructions", "nowhere.txt"), 1, "nowhere.txt: cannot be read (No such file"),
        (("--data", "{data}", "--instructions", "{empty}"), 1, "empty.txt: expected an instruction a line, found none"),
        (("--data", "{data}", "--instructions", "{bytes}"), 1, "bytes.txt: expected UTF-8 text, found something else"),
        (("--data", "{single}", "--instructions", "{file}"), 1, "expected some of two turns or more, found none"),
        (("--data", "miniature:4", "--temperature", -1), 2, "temperature -1.0: expected a number of at least 0"),
        (("--data", "miniature:4", "--turns", 1), 2, "--turns"),
        (("--data", "miniature:4", "--lr", -1), 2, "learning rate -1.0: expected a positive number"),
        (("--data", "miniature:4", "--replay", "alpaca"), 2, "unknown dialogues 'alpaca'"),
        (("--data", "miniature:4", "--resume"), 2, "expected a run to go on with, found none"),
        (("--data", "miniature:4", "--resume", "--overwrite"), 2, "gatt: expected either --resume or --overwrite"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_sampled(
    model: Path,
    data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"One\xff")
    places = {"{data}": data[0], "{file}": data[1]}
    places |= {"{empty}": tmp_path / "empty.txt", "{bytes}": tmp_path / "bytes.txt"}
    places["{single}"] = jsonl(tmp_path / "single.jsonl", [{"messages": said("a", "b")}])
    monkeypatch.setattr(ghost_attention, "ghost_dialogues", stop)
    result = run("--model", model, "--out", tmp_path / "run", *HOW, *(places.get(str(a), a) for a in arguments))
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("minillama: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_context_that_no_second_turn_fits_is_one_line(data: tuple[Path, Path], tmp_path: Path) -> None:
    llama = lively(tags_tokenizer(), max_seq_len=60)
    checkpoint = Checkpoint(llama.config, llama.params, tags_tokenizer(), builtin("llama2-tags"))
    weights.save(checkpoint, tmp_path / "small")
    arguments = ("--model", tmp_path / "small", "--data", data[0], "--instructions", data[1], "--out", tmp_path / "run")
    result = run(*arguments, *HOW, "--seq-len", 60, "--max-new-tokens", 60)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
    assert "nothing to learn: expected dialogues to train on, found none" in result.stderr


def test_help_has_an_example() -> None:
    assert "minillama gatt --model runs/mini/sft --out runs/mini/gatt --replay miniature:2000" in " ".join(
        run("--help").stdout.split()
    )
