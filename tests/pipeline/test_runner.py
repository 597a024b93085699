"""Stages run once: what was made of the same inputs stays, what has changed is made anew, a kill is gone on from."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from minillama import miniature
from minillama.errors import MinillamaError, UsageError
from minillama.pipeline import plan, runner
from minillama.pipeline.runner import Made, Record, Stage, keys, run

BASE = Stage("base", ("pretrain", "--steps", "3"))
CHAT = Stage("chat", ("sft", "--model", Made("base")))
PAIRS = Stage("pairs.jsonl", ("preferences", "--model", Made("chat"), "--seed", "1"))
JUDGED = Stage("judged/chat.json", ("evaluate", Made("chat", "model")), "--json")
STAGES = [BASE, CHAT, PAIRS, JUDGED]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands in the place of which a file is written, which says what was asked for."""
    commands: list[list[str]] = []

    def command(arguments: list[str]) -> None:
        commands.append(arguments)
        to = Path(arguments[next(i for i, x in enumerate(arguments) if x in ("--out", "--json")) + 1])
        if to.suffix:
            to.write_text(" ".join(arguments))
        else:
            to.mkdir(exist_ok=True)
            (to / "model").write_text(" ".join(arguments))

    monkeypatch.setattr(runner, "_command", command)
    return commands


def test_every_stage_runs_once_in_order(said: list[list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(STAGES, out)
    assert [arguments[0] for arguments in said] == ["pretrain", "sft", "preferences", "evaluate"]
    assert said[1] == ["sft", "--model", f"{out}/base", "--out", f"{out}/chat", "--overwrite"]
    assert said[2][-3:] == ["--out", f"{out}/pairs.jsonl", "--force"]
    assert said[3] == ["evaluate", f"{out}/chat/model", "--json", f"{out}/judged/chat.json"]
    assert record.peak > 1e6 and record.seconds >= 0
    run(STAGES, out)
    assert len(said) == 4


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (
            [Stage("base", ("pretrain", "--steps", "4")), CHAT, PAIRS, JUDGED],
            ["pretrain", "sft", "preferences", "evaluate"],
        ),
        ([BASE, CHAT, Stage("pairs.jsonl", (*PAIRS.command[:-1], "2")), JUDGED], ["preferences"]),
        ([BASE, CHAT, PAIRS], []),
    ],
)
def test_what_has_changed_is_made_anew_and_all_that_reads_it(
    said: list[list[str]], tmp_path: Path, changed: list[Stage], again: list[str]
) -> None:
    run(STAGES, tmp_path)
    del said[:]
    run(changed, tmp_path)
    assert [arguments[0] for arguments in said] == again


def test_another_model_from_outside_is_another_input(said: list[list[str]], tmp_path: Path) -> None:
    run([Stage("chat", ("sft",), checksum="a"), PAIRS], tmp_path)
    run([Stage("chat", ("sft",), checksum="b"), PAIRS], tmp_path)
    assert [arguments[0] for arguments in said] == ["sft", "preferences"] * 2


def test_what_has_been_removed_is_made_again(said: list[list[str]], tmp_path: Path) -> None:
    run(STAGES, tmp_path)
    (tmp_path / "pairs.jsonl").unlink()
    del said[:]
    run(STAGES, tmp_path)
    assert [arguments[0] for arguments in said] == ["preferences"]


def test_a_stage_that_was_stopped_goes_on_and_begins_anew_where_it_cannot(
    said: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = runner._command

    def stopped(arguments: list[str]) -> None:
        right(arguments)
        if arguments[0] == "sft":
            raise typer.Exit(130)

    monkeypatch.setattr(runner, "_command", stopped)
    with pytest.raises(typer.Exit):
        run(STAGES, tmp_path)
    assert not Record.load(tmp_path / runner.RECORD).stages["chat"]["made"]
    monkeypatch.setattr(runner, "_command", right)
    del said[:]
    run(STAGES, tmp_path)
    assert "--overwrite" not in said[0] and [x[0] for x in said] == ["sft", "preferences", "evaluate"]

    def damaged(arguments: list[str]) -> None:
        if "--overwrite" not in arguments:
            raise MinillamaError("run.json: cut off")
        right(arguments)

    record = Record.load(tmp_path / runner.RECORD)
    record.note("chat", keys(STAGES)["chat"], False, 1.0)
    monkeypatch.setattr(runner, "_command", damaged)
    run(STAGES, tmp_path)
    assert "begun anew, for it cannot go on: run.json: cut off" in capsys.readouterr().err


def test_an_error_of_a_stage_is_the_pipelines(
    said: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(arguments: list[str]) -> None:
        raise MinillamaError(f"{arguments[0]}: no")

    monkeypatch.setattr(runner, "_command", failing)
    with pytest.raises(MinillamaError, match="pretrain: no"):
        run(STAGES, tmp_path)
    assert not said


def test_threads_are_for_what_trains(said: list[list[str]], tmp_path: Path) -> None:
    run(STAGES, tmp_path, threads=3)
    assert [arguments[arguments.index("--threads") + 1] for arguments in said if "--threads" in arguments] == ["3", "3"]


def test_a_plan_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chat reads base, which no stage before it makes"):
        keys([CHAT, BASE])
    with pytest.raises(UsageError, match="two stages are called base"):
        keys([BASE, BASE])
    with pytest.raises(UsageError, match="expected one of mini, small, base"):
        plan.stages("huge")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder to write to, found a file"):
        run(STAGES, tmp_path / "file")


@pytest.mark.parametrize("content", ["[1]", '{"stages": 1, "peak": 2}', "{"])
def test_a_record_of_something_else_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / runner.RECORD).write_text(content)
    with pytest.raises(MinillamaError) as raised:
        run(STAGES, tmp_path)
    assert runner.RECORD in str(raised.value)


def _slow(out: str) -> None:
    """A pipeline whose second stage is killed."""

    def command(arguments: list[str]) -> None:
        to = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else Path(arguments[-1])
        if arguments[0] == "sft":
            time.sleep(60)
        to.mkdir(exist_ok=True)

    runner._command = command  # type: ignore[assignment]
    run(STAGES, Path(out))


def test_a_kill_loses_the_running_stage_alone(said: list[list[str]], tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_slow, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stages = Record.load(tmp_path / runner.RECORD).stages
        if "chat" in stages:
            break
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert Record.load(tmp_path / runner.RECORD).stages["base"]["made"]
    run(STAGES, tmp_path)
    assert [arguments[0] for arguments in said] == ["sft", "preferences", "evaluate"]
    assert "--overwrite" not in said[0]


@pytest.mark.parametrize("preset", sorted(plan.SCALES))
def test_every_plan_holds_together(preset: str) -> None:
    """Its commands are ones that there are, with options that they have; a seed changes all of it."""
    import typer.main

    from minillama.cli import app

    stages = plan.stages(preset)
    commands: Any = typer.main.get_command(app)
    for stage in stages:
        name, *arguments = stage.arguments(Path("out"))
        command = commands.commands[name]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {argument for argument in arguments if argument.startswith("--")} <= options, stage.name
    one, two = keys(stages), keys(plan.stages(preset, seed=1))
    assert list(one) == list(two) and not set(one.values()) & set(two.values())
    assert json.dumps(one) == json.dumps(keys(plan.stages(preset)))
    assert stages[0].name == "base" and {"v1/random", "v5/ppo", "judged/v5-ppo.json"} <= set(one)


@pytest.mark.parametrize("begin", [None, "runs/base"])
def test_another_miniature_makes_everything_anew(
    begin: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dialogues come from code, which no command names: also where the base model comes from outside."""
    monkeypatch.setattr(plan, "_checksum", lambda model: "weights")
    world = tmp_path / "miniature"
    shutil.copytree(Path(miniature.__file__).parent, world, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(miniature, "__file__", str(world / "__init__.py"))
    before = keys(plan.stages("mini", begin=begin))
    assert keys(plan.stages("mini", begin=begin)) == before
    source = world / "dialogues.py"
    source.write_text(source.read_text().replace("WORDY = 0.5", "WORDY = 0.4"))
    after = keys(plan.stages("mini", begin=begin))
    assert list(before) == list(after) and not set(before.values()) & set(after.values())
