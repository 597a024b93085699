"""`minillama pretrain` on a small text: from the tokenizer to the sample, again, in a terminal, and with bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from minillama import data, tokenizer, weights
from minillama.cli import app
from minillama.config import PRESETS, scaled
from minillama.generate import generate
from minillama.model import Llama

STEPS = 12
SIZE = ("--depth", 1, "--vocab-size", 300, "--batch-size", 4, "--seq-len", 16, "--threads", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred little stories of who likes what."""
    rng = np.random.default_rng(0)
    names, things = ("Ann", "Ben", "Cleo", "Dan"), ("apples", "boats", "clouds", "drums")
    stories = [f"{rng.choice(names)} likes {rng.choice(things)}.\nSo does {rng.choice(names)}." for _ in range(400)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    """`minillama pretrain` in this process."""
    return CliRunner().invoke(app, ["pretrain", *map(str, arguments)])


def pretrain(text: Path, out: Path, *more: object) -> Result:
    """A run that must succeed."""
    result = run("--data", text, "--out", out, *SIZE, *([] if "--steps" in more else ["--steps", STEPS]), *more)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that has ended, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "base"
    return out, pretrain(text, out)


def log(out: Path, kind: str = "loss") -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if kind in line]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_printed(trained: tuple[Path, Result]) -> None:
    out, result = trained
    table = [line.rstrip().rpartition(" ") for line in result.stdout.splitlines()]
    lines = {name.strip(): value for name, _, value in table}
    assert lines["tokens"] == f"{STEPS * 4 * 16}"
    validation = log(out, "validation")[-1]["validation"]
    assert float(lines["loss"]) == pytest.approx(validation["loss"], abs=1e-4)
    assert float(lines["nats per byte"]) == pytest.approx(validation["nats_per_byte"], abs=1e-4)
    assert result.stdout.rstrip().endswith(log(out, "sample")[-1]["sample"].rstrip())
    assert result.stderr.splitlines()[0].startswith(f"step 1 of {STEPS}: loss 5.")
    assert f"step {STEPS} of {STEPS}: loss" in result.stderr
    assert f"step {STEPS}: validation loss" in result.stderr


def test_the_folder_is_the_model(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    checkpoint = weights.load(out)
    assert checkpoint.config.vocab_size == 300 and checkpoint.tokenizer is not None
    model = Llama.load(out)
    tokens = checkpoint.tokenizer.encode("Ann likes")
    completion = generate(model, [tokens], max_new_tokens=5)[0]
    assert len(completion.tokens) <= 5
    last = weights.load(out / "checkpoints" / f"step-{STEPS:06d}")
    for name, p in last.params.items():
        assert p.tobytes() == checkpoint.params[name].tobytes()
    result = CliRunner().invoke(app, ["generate", str(out), "--prompt", "Ann", "--max-new-tokens", "3"])
    assert result.exit_code == 0 and result.stdout.startswith("Ann")


def test_validation_is_of_the_whole_held_out_text(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    held_out = data.TokenData(out / "data").validation
    assert 5 < held_out.documents < 50
    model = Llama.load(out)
    nats, tokens = 0.0, held_out[:]
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        hidden, _ = model.forward(window[None, :-1])
        logits = model.logits(hidden)[0].astype(np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        nats -= logits[np.arange(len(window) - 1), window[1:]].sum()
    measured = log(out, "validation")[-1]["validation"]
    assert measured["loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    per_byte = nats / (len(tokens) - 1) * len(tokens) / held_out.bytes
    assert measured["nats_per_byte"] == pytest.approx(per_byte, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(np.exp(nats / (len(tokens) - 1)), rel=1e-4)


def test_the_same_command_again_finds_it_done(text: Path, trained: tuple[Path, Result]) -> None:
    out, first = trained
    before = files(out)
    again = pretrain(text, out)
    assert again.stdout == first.stdout
    assert again.stderr == f"{out}: this run has ended already (--overwrite begins it again)\n"
    assert files(out) == before


def test_how_it_runs_may_change(text: Path, trained: tuple[Path, Result]) -> None:
    out, _ = trained
    assert "ended already" in pretrain(text, out, "--threads", 2, "--micro-batch", 1, "--save-every", 3).stderr


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (("--steps", 13), "steps 12, not 13"),
        (("--lr", 0.5), "not 0.5"),
        (("--seed", 1), "seed 0, not 1"),
        (("--depth", 2), "model.dim 20, not 48, model.n_layers 1, not 2, model.n_heads 1, not 2 and "),
    ],
)
def test_other_settings_are_refused(
    text: Path, trained: tuple[Path, Result], change: tuple[object, ...], differs: str
) -> None:
    out, _ = trained
    before = files(out)
    result = run("--data", text, "--out", out, *SIZE, "--steps", STEPS, *change)
    assert result.exit_code == 2
    assert f"{out / 'run.json'}: a run of other settings: " in result.stderr and differs in result.stderr
    assert result.stderr.count("\n") == 1
    assert files(out) == before


def test_another_text_under_the_same_name_is_refused(text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "text.txt"
    copy.write_bytes(text.read_bytes())
    pretrain(copy, tmp_path / "run", "--steps", 2)
    copy.write_text(copy.read_text() + "More.")
    result = run("--data", copy, "--out", tmp_path / "run", *SIZE, "--steps", 2)
    assert result.exit_code == 2 and "data.files" in result.stderr
    assert "ended already" not in pretrain(copy, tmp_path / "run", "--steps", 2, "--overwrite").stderr


def test_the_seed_gives_the_model(text: Path, tmp_path: Path, trained: tuple[Path, Result]) -> None:
    pretrain(text, tmp_path / "same")
    pretrain(text, tmp_path / "other", "--seed", 1)
    expected, same, other = (
        (folder / "model.safetensors").read_bytes() for folder in (trained[0], tmp_path / "same", tmp_path / "other")
    )
    assert expected == same != other


def test_recomputing_changes_no_loss(text: Path, tmp_path: Path, trained: tuple[Path, Result]) -> None:
    pretrain(text, tmp_path / "run", "--recompute")
    losses = [[record["loss"] for record in log(out)] for out in (trained[0], tmp_path / "run")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_from_another_model_and_prepared_data(text: Path, tmp_path: Path, trained: tuple[Path, Result]) -> None:
    out, _ = trained
    data.tokenize(text, weights.load(out).tokenizer, tmp_path / "tokens")  # type: ignore[arg-type]
    arguments = ["--init-from", out, "--data", tmp_path / "tokens", "--out", tmp_path / "more"]
    arguments += ["--steps", 3, "--batch-size", 4, "--seq-len", 16, "--lr", 0.001, "--threads", 1, "--device", "cpu"]
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert log(tmp_path / "more")[0]["loss"] < log(out)[0]["loss"] - 0.3
    assert not (tmp_path / "more" / "data").exists()
    assert "ended already" in run(*arguments).stderr
    model = weights.load(out)
    model.params["norm.weight"][0] += 1
    weights.save(model, out)
    result = run(*arguments)
    assert result.exit_code == 2 and "initial" in result.stderr
    model.params["norm.weight"][0] -= 1
    weights.save(model, out)


def test_a_tokenizer_that_is_there(text: Path, tmp_path: Path, trained: tuple[Path, Result]) -> None:
    without = SIZE[:2] + SIZE[4:]
    result = run("--data", text, "--out", tmp_path / "run", "--tokenizer", trained[0], *without, "--steps", 2)
    assert result.exit_code == 0, result.stderr
    assert weights.load(tmp_path / "run").config.vocab_size == 300
    given, used = (tokenizer.from_folder(folder) for folder in (trained[0], tmp_path / "run"))
    assert given is not None and used is not None and given.sha256 == used.sha256


def test_tensorboard_shows_the_same_numbers(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(text, tmp_path, "--tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == {record["step"]: pytest.approx(record["loss"]) for record in log(tmp_path)}
    assert {"train/lr", "train/grad_norm", "train/tokens_per_second"} <= {*events.Tags()["scalars"]}
    last = events.Scalars("validation/nats_per_byte")[-1]
    assert last.value == pytest.approx(log(tmp_path, "validation")[-1]["validation"]["nats_per_byte"])


def test_without_tensorboard(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    result = run("--data", text, "--out", tmp_path / "run", *SIZE, "--steps", 2, "--tensorboard")
    assert result.exit_code == 2
    assert result.stderr == "minillama: --tensorboard: not installed (pip install 'minillama[tensorboard]')\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to a process alone")
def test_ctrl_c_and_on(text: Path, tmp_path: Path) -> None:
    pretrain(text, tmp_path / "whole", "--steps", 1500, "--validate-every", 500)
    arguments = ["--data", text, "--out", tmp_path / "run", *SIZE, "--steps", 1500, "--validate-every", 500]
    command = [sys.executable, "-m", "minillama", "pretrain", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(30_000):
        if (tmp_path / "run" / "log.jsonl").exists() and log_length(tmp_path / "run") > 20:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert printed == ""
    done = log(tmp_path / "run")[-1]["step"]
    assert 20 <= done < 1500
    assert f"{tmp_path / 'run'}: interrupted after step {done} of 1500, and saved; the same command goes on" in said
    assert "Traceback" not in said
    result = run(*arguments, "--resume")
    assert result.exit_code == 0
    assert f"going on after step {done}" in result.stderr
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert models[0] == models[1]


def log_length(out: Path) -> int:
    return (out / "log.jsonl").read_bytes().count(b"\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_bar_on_a_terminal(text: Path, tmp_path: Path) -> None:
    import pty
    import termios

    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 120))
    arguments = ["--data", text, "--out", tmp_path / "run", *SIZE, "--steps", 150]
    command = [sys.executable, "-m", "minillama", "pretrain", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=writer)
    os.close(writer)
    shown = b""
    while True:
        try:
            piece = os.read(reader, 1 << 16)
        except OSError:  # Linux says so when the other side has closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    os.close(reader)
    found = shown.decode()
    assert "| step " in found and "/150 [" in found and "tokens/s" in found and ", loss " in found
    assert "step 150: validation loss" in found
    assert "step 1 of 150" not in found


@pytest.mark.parametrize(
    ("content", "more", "code", "message"),
    [
        (b"", (), 1, "expected text"),
        (b"One two \xff three", (), 1, "text.txt: expected UTF-8 text, found byte 0xff at 8"),
        (b"A short text. " * 3, (), 1, "expected a vocabulary of at most"),
        (None, ("--vocab-size", 5000), 1, "expected a vocabulary of at most"),
        (None, ("--vocab-size", 10), 2, "vocabulary of 10: expected at least 264"),
        (None, ("--seq-len", 100_000), 1, "sequence length 100000: expected more tokens than that to train on"),
        (None, ("--lr", -1), 2, "learning rate -1.0: expected a positive number"),
        (None, ("--warmup", 50), 2, "50 warm-up steps: expected between 0 and the 12 steps"),
        (None, ("--preset", "mini"), 2, "expected one of --preset, --depth, --init-from, found --preset and --depth"),
        (None, ("--tokenizer", "nowhere.model"), 1, "nowhere.model: no such file or folder"),
        (None, ("--resume",), 2, "expected a run to go on with, found none"),
        (None, ("--data", "nowhere.txt"), 1, "nowhere.txt: no such file or folder"),
    ],
)
def test_bad_input_is_one_line(
    text: Path, tmp_path: Path, content: bytes | None, more: tuple[object, ...], code: int, message: str
) -> None:
    source = text
    if content is not None:
        source = tmp_path / "text.txt"
        source.write_bytes(content)
    result = run("--data", source, "--out", tmp_path / "run", *SIZE, "--steps", STEPS, *more)
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("minillama: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr


def test_after_bad_input_the_same_folder_will_do(text: Path, tmp_path: Path) -> None:
    result = run("--data", text, "--out", tmp_path / "run", *SIZE, "--vocab-size", 5000)
    assert result.exit_code == 1
    pretrain(text, tmp_path / "run", "--steps", 2)


@pytest.mark.parametrize("more", [("--vocab-size", 301), ("--init-from", "{}", "--tokenizer", "{}")])
def test_a_tokenizer_that_cannot_be(
    text: Path, tmp_path: Path, trained: tuple[Path, Result], more: tuple[object, ...]
) -> None:
    arguments = [trained[0] if argument == "{}" else argument for argument in more]
    if "--tokenizer" not in more:
        arguments += ["--tokenizer", trained[0]]
    result = run("--data", text, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.count("\n") == 1 and "tokenizer" in result.stderr
    assert not (tmp_path / "run").exists()


def test_prepared_data_of_another_tokenizer(text: Path, tmp_path: Path, trained: tuple[Path, Result]) -> None:
    pretrain(text, tmp_path / "other", "--vocab-size", 290, "--steps", 2)
    result = run("--data", tmp_path / "other" / "data", "--init-from", trained[0], "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "expected the tokenizer that made it" in result.stderr and result.stderr.count("\n") == 1


def test_a_file_where_the_folder_should_be(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--data", text, "--out", tmp_path / "file", *SIZE)
    assert result.exit_code == 2
    assert result.stderr == f"minillama: {tmp_path / 'file'}: expected a folder to write to, found a file\n"


def test_a_truncated_shard(text: Path, tmp_path: Path, trained: tuple[Path, Result]) -> None:
    tokens = tmp_path / "tokens"
    data.tokenize(text, weights.load(trained[0]).tokenizer, tokens)  # type: ignore[arg-type]
    shard = next(tokens.rglob("train-00000.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    result = run("--data", tokens, "--out", tmp_path / "run", *SIZE, "--steps", 2)
    assert result.exit_code == 1
    assert str(shard) in result.stderr and result.stderr.count("\n") == 1


def test_one_dial_makes_the_family() -> None:
    assert scaled(4) == PRESETS["mini"]
    counts = [scaled(depth).param_count() for depth in range(1, 9)]
    assert counts == sorted(counts)
    assert 20_000 < counts[0] < 50_000 and 3e6 < counts[5] < 5e6
    assert scaled(8).dim == PRESETS["small"].dim and scaled(12).dim == PRESETS["base"].dim


def test_help_has_an_example() -> None:
    assert "minillama pretrain --preset mini --data miniature --out" in run("--help").stdout
