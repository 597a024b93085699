"""Runs that are stopped, in order or not, and go on: to the bit what they would have been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama.errors import MinillamaError, UsageError
from minillama.model import Llama
from minillama.training.checkpoint import Checkpoints
from minillama.training.run_folder import RunFolder
from minillama.weights import load
from tests.training.tiny import Counting, run

ROOT = Path(__file__).parents[2]
KILLS, STEPS = 20, 200
KILLED = -signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM


def start(*arguments: object, script: str | None = None) -> subprocess.Popen[str]:
    """tests/training/tiny.py, or a script, in a process of its own."""
    what = ["-m", "tests.training.tiny"] if script is None else ["-c", script]
    return subprocess.Popen(
        [sys.executable, *what, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_logged(folder: Path) -> list[int]:
    """The steps in a log, each line of which must be whole."""
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["step"] for record in lines if "loss" in record]


def same_bits(first: Llama, second: Llama) -> bool:
    return all(p.tobytes() == second.params[name].tobytes() for name, p in first.params.items())


def without_time(folder: Path) -> list[dict[str, Any]]:
    """A log without what differs from one run to the next."""
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: x for name, x in line.items() if "second" not in name} for line in lines]


def test_killed_twenty_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole", STEPS)
    folder = tmp_path / "killed"
    rng = random.Random(time.time_ns())  # a new set of moments each time
    for step in sorted(rng.randrange(STEPS - 50) for _ in range(KILLS)):
        saved = max(Checkpoints(folder / "checkpoints").steps(), default=0)
        process = start(folder, STEPS, max(step, saved), rng.uniform(0, 0.02))
        _, errors = process.communicate(timeout=300)
        assert process.returncode == KILLED, errors
        assert saved == 0 or f"going on after step {saved}" in errors
    assert start(folder, STEPS).wait(timeout=300) == 0
    model = Llama.load(folder)
    assert same_bits(expected, model)
    assert steps_logged(folder) == [*range(1, STEPS + 1)]
    assert without_time(folder) == without_time(tmp_path / "whole")
    for file in ("m", "v"):
        states = [
            Checkpoints(tmp_path / name / "checkpoints").load(STEPS).optimizer[file] for name in ("whole", "killed")
        ]
        assert states[0].tobytes() == states[1].tobytes()
    assert not [path for path in folder.rglob("*") if "part" in path.name or path.name == ".final"]


WAITING = """
import sys, time
from pathlib import Path
from tests.training.tiny import Counting, run

def slowly(step):
    if step >= 8:  # after which no checkpoint is due
        Path(sys.argv[1], "begun").touch()
        time.sleep(float(sys.argv[2]))

_, progress = run(Path(sys.argv[1]), 30, Counting(slowly))
sys.exit(130 if progress.step < 30 else 0)
"""


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(30_000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail(f"{path} is not there")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to a process alone")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_step_and_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    expected, _ = run(tmp_path / "whole", 30)
    folder = tmp_path / "run"
    process = start(folder, 0.5, script=WAITING)
    wait_for(folder / "begun", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "once more leaves at once" in errors
    done = steps_logged(folder)[-1]
    assert done >= 9
    assert Checkpoints(folder / "checkpoints").steps()[-1] == done
    assert not (folder / "config.json").exists()  # it has not ended
    model, progress = run(folder, 30)
    assert progress.step == 30
    assert same_bits(expected, model)
    assert steps_logged(folder) == [*range(1, 31)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to a process alone")
def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "run", 1000, script=WAITING)
    wait_for(tmp_path / "run" / "begun", process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    _, progress = run(tmp_path / "run", 30)
    assert progress.step == 30


def test_handlers_of_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tmp_path, 3)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_a_thread_that_gets_no_signals(tmp_path: Path) -> None:
    import threading

    thread = threading.Thread(target=run, args=(tmp_path, 3))
    thread.start()
    thread.join()
    assert RunFolder(tmp_path).result()


class Stopping(Counting):
    """Fails as step `at` begins."""

    def __init__(self, at: int) -> None:
        def fail(step: int) -> None:
            if step == at:
                raise KeyError("the power is gone")

        super().__init__(fail)


def stopped(folder: Path, at: int, steps: int = 30, **options: Any) -> None:
    with pytest.raises(KeyError):
        run(folder, steps, Stopping(at), **options)


def test_with_other_threads_it_goes_on_to_rounding_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = run(tmp_path / "whole", 30)
    stopped(tmp_path / "run", 13)
    capsys.readouterr()
    model, _ = run(tmp_path / "run", 30, threads=2, micro_batch=2)
    said = capsys.readouterr().err
    assert "going on after step 12" in said
    assert "threads 2 (before 1), micro batch 2 (before 8): from here the numbers agree to rounding" in said
    for name, p in model.params.items():
        np.testing.assert_allclose(p, expected.params[name], rtol=0, atol=2e-4)


def test_two_threads_stopped_and_gone_on_are_two_threads(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole", 20, threads=2, micro_batch=2)
    stopped(tmp_path / "run", 10, 20, threads=2, micro_batch=2)
    model, _ = run(tmp_path / "run", 20, threads=2, micro_batch=2)
    assert same_bits(expected, model)


def test_the_best_so_far_is_remembered(tmp_path: Path) -> None:
    stopped(tmp_path, 25)
    _, progress = run(tmp_path, 30, save_every=30)
    losses = {r["step"]: r["validation"]["loss"] for r in without_time(tmp_path) if "validation" in r}
    assert sorted(losses) == [10, 20, 30]
    assert progress.best_loss == min(losses.values()) and losses[progress.best_step or 0] == progress.best_loss


def test_a_log_cut_in_the_middle_of_a_line(tmp_path: Path) -> None:
    stopped(tmp_path, 13)
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 12, "lo')
    run(tmp_path, 30)
    assert steps_logged(tmp_path) == [*range(1, 31)]


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole", 8)
    stopped(tmp_path / "run", 3, 8)
    assert steps_logged(tmp_path / "run") == [1, 2, 3]
    model, _ = run(tmp_path / "run", 8)
    assert same_bits(expected, model)
    assert steps_logged(tmp_path / "run") == [*range(1, 9)]


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path, 13)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as error:
        run(tmp_path, 40)
    assert str(error.value) == (
        f"{tmp_path / 'run.json'}: a run of other settings: steps 30, not 40; "
        "expected the same command, another --out, or --overwrite to begin again"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "other", 10)
    (tmp_path / "run").mkdir()
    os.rename(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "run.json").write_text('{"settings": {"stage": "tiny", "seed": 0, "steps": 30}}')
    with pytest.raises(UsageError, match=r"trainer.json: a run of other settings: steps 10, not 30"):
        run(tmp_path / "run", 30)


def test_a_trainer_state_that_is_none(tmp_path: Path) -> None:
    import hashlib

    stopped(tmp_path, 5)
    folder = tmp_path / "checkpoints" / "step-000004"
    content = json.loads((folder / "trainer.json").read_text())
    old = hashlib.sha256((folder / "trainer.json").read_bytes()).hexdigest()
    content["progress"] = {"steps": 4}
    (folder / "trainer.json").write_text(json.dumps(content))
    new = hashlib.sha256((folder / "trainer.json").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text().replace(old, new))
    with pytest.raises(MinillamaError, match=r"trainer.json: expected the progress of a run, found something else"):
        run(tmp_path, 30)


def test_overwrite_begins_again(tmp_path: Path) -> None:
    stopped(tmp_path, 13)
    place = RunFolder(tmp_path)
    with place.begun({"stage": "another"}, overwrite=True):
        assert {path.name for path in tmp_path.iterdir()} == {"run.json", ".lock"}
    assert place.result() is None


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with (
            pytest.raises(UsageError, match="expected a new folder, an empty one or a run's, found something else"),
            RunFolder(tmp_path).begun({}, overwrite),
        ):
            pass
    file = tmp_path / "thesis.tex"
    with pytest.raises(UsageError, match="expected a folder to write to, found a file"), RunFolder(file).begun({}):
        pass
    assert file.read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [file]


def test_what_kills_have_left_is_swept_away(tmp_path: Path) -> None:
    stopped(tmp_path, 13)
    left = [
        tmp_path / ".final" / "config.json",
        tmp_path / "..final.12.partial" / "model.safetensors",
        tmp_path / ".log.jsonl.12.partial",
        tmp_path / "tokenizer.model.12.part",
        tmp_path / ".run.json.12.partial",
        tmp_path / "checkpoints" / ".step-000012.partial" / "config.json",
        tmp_path / "checkpoints" / "..step-000012.partial.12.partial" / "config.json",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    run(tmp_path, 30)
    found = {path.name for path in [*tmp_path.iterdir(), *(tmp_path / "checkpoints").iterdir()]}
    expected = {".lock", "run.json", "log.jsonl", "checkpoints", "config.json", "model.safetensors"}
    assert found == expected | {"step-000028", "step-000030", "step-000024"}


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    process = start(tmp_path, 1000, script=WAITING)
    wait_for(tmp_path / "begun", process)
    with pytest.raises(MinillamaError, match="another process is training here"):
        run(tmp_path, 30)
    process.kill()
    process.communicate()
    _, progress = run(tmp_path, 30)
    assert progress.step == 30


def test_a_run_json_that_a_kill_left_half_written(tmp_path: Path) -> None:
    (tmp_path / ".run.json.4711.partial").write_text('{"sett')
    run(tmp_path, 3)
    assert load(tmp_path).config.vocab_size == 32


def test_a_kill_while_the_final_model_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(tmp_path / "whole", 5)
    replace, calls = os.replace, 0

    def killed(source: Any, destination: Any) -> None:
        nonlocal calls
        if ".final" in str(source):
            calls += 1
            if calls == 2:
                raise KeyError("killed")
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyError):
            run(tmp_path / "run", 5)
    assert RunFolder(tmp_path / "run").result() is None
    run(tmp_path / "run", 5)
    assert same_bits(expected, Llama.load(tmp_path / "run"))
