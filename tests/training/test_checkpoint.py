"""Checkpoints: what is in them, which are kept, what damage and a full disk do."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minillama import weights
from minillama.errors import MinillamaError
from minillama.model import Llama
from minillama.params import flatten
from minillama.training import checkpoint
from minillama.training.checkpoint import Checkpoints
from minillama.weights import Checkpoint
from tests.training.tiny import CONFIG, run


def save(checkpoints: Checkpoints, step: int, seed: int = 0) -> Llama:
    """A checkpoint of a fresh model, its optimizer's state made of the step's number."""
    model = Llama.init(CONFIG, seed)
    size = CONFIG.param_count()
    state = {"m": np.full(size, step, np.float32), "v": np.full(size, step / 3, np.float32), "steps": np.array(step)}
    checkpoints.save(step, Checkpoint(CONFIG, model.params), state, {"progress": step, "text": "ä"})
    return model


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    model = save(checkpoints, 12)
    saved, problems = checkpoints.newest()
    assert saved is not None and not problems
    assert saved.path == tmp_path / "step-000012"
    assert saved.trainer == {"progress": 12, "text": "ä"}
    assert saved.optimizer["steps"] == 12
    for name, value in (("m", np.float32(12)), ("v", np.float32(4))):
        assert saved.optimizer[name].dtype == np.float32
        assert (saved.optimizer[name] == value).all()
    for name, p in model.params.items():
        assert saved.model.params[name].tobytes() == p.tobytes()
    assert Llama.load(saved.path).config == CONFIG  # a checkpoint like any other


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    folder = tmp_path / "step-000001"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert [line.split("  ")[1] for line in lines] == [name for name in names(folder) if name != "SHA256SUMS"]


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").newest() == (None, [])


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    (tmp_path / "notes").mkdir()
    for step in (2, 4, 6, 8, 1_000_000):
        save(checkpoints, step)
        checkpoints.prune(step, best=4)
    assert names(tmp_path) == ["notes", "step-000004", "step-000008", "step-1000000"]
    checkpoints.prune(8, best=None)  # the run is at step 8 again, since what came after was damaged
    assert names(tmp_path) == ["notes", "step-000004", "step-000008"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "trainer.json", "SHA256SUMS")


@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5)
    save(checkpoints, 10)
    damage(tmp_path / "step-000010" / file)
    saved, problems = checkpoints.newest()
    assert saved is not None and saved.path.name == "step-000005"
    assert len(problems) == 1 and "\n" not in problems[0]
    assert str(tmp_path / "step-000010") in problems[0]


def test_checkpoints_that_are_all_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10):
        save(checkpoints, step)
        truncate(tmp_path / f"step-{step:06d}" / "optimizer.safetensors")
    with pytest.raises(MinillamaError) as error:
        checkpoints.newest()
    path = tmp_path / "step-000010" / "optimizer.safetensors"
    assert str(error.value).startswith(f"{path}: expected the file that was saved, found another: damaged; ")
    assert "--overwrite" in str(error.value)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = run(tmp_path / "whole", 20)
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(tmp_path / "whole" / "run.json", tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step-000020" / "model.safetensors")
    model, _ = run(tmp_path / "run", 20)
    said = capsys.readouterr().err
    assert "step-000020/model.safetensors: expected the file that was saved" in said.replace("\\", "/")
    assert "going on after step 16" in said
    for name, p in model.params.items():
        assert p.tobytes() == expected.params[name].tobytes()
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest()[1] == []


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk(*_: object, **__: object) -> None:
    raise FULL


@pytest.mark.parametrize(
    "function",
    ["os.fsync", "os.rename", "safetensors.numpy.save_file", "pathlib.Path.write_text", "pathlib.Path.mkdir"],
)
def test_a_full_disk_leaves_the_old_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5)
    with monkeypatch.context() as patch:
        patch.setattr(function, full_disk)
        with pytest.raises(MinillamaError) as error:
            save(checkpoints, 10)
    path = tmp_path / "step-000010"
    assert str(error.value).startswith(str(path)), error.value
    assert "No space left on device" in str(error.value)
    assert str(error.value).endswith(f"the run is safe up to {tmp_path / 'step-000005'}")
    assert "\n" not in str(error.value) and "partial" not in str(error.value)
    assert names(tmp_path) == ["step-000005"]
    saved, problems = checkpoints.newest()
    assert saved is not None and saved.path.name == "step-000005" and not problems
    save(checkpoints, 10)  # there is room again
    assert names(tmp_path) == ["step-000005", "step-000010"]


FILE_TOO_LARGE = """
import resource, sys
from pathlib import Path
from tests.training.tiny import run
from minillama.errors import MinillamaError

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    run(folder, 24)
except MinillamaError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
@pytest.mark.parametrize(
    ("limit", "file"),
    [(100, "log.jsonl"), (1000, "checkpoints/step-000004"), (30_000, "checkpoints/step-000004/optimizer.safetensors")],
)
def test_when_the_system_refuses_to_write_the_run_stops_and_goes_on_later(
    tmp_path: Path, limit: int, file: str
) -> None:
    """The system's own limit on a file's size: the log, the weights, or the optimizer's state does not fit."""
    expected, _ = run(tmp_path / "whole", 24)
    run_folder = tmp_path / "run"
    command = [sys.executable, "-c", FILE_TOO_LARGE, str(run_folder), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"{run_folder / file}: cannot be written ("), result.stdout
    left = names(run_folder / "checkpoints") if (run_folder / "checkpoints").is_dir() else []
    assert not [name for name in left if name.startswith(".")]
    model, _ = run(run_folder, 24)
    for name, p in model.params.items():
        assert p.tobytes() == expected.params[name].tobytes()


def test_the_optimizer_is_saved_in_the_order_of_the_flat_parameters(tmp_path: Path) -> None:
    model, _ = run(tmp_path, 4)
    state = load_file(tmp_path / "checkpoints" / "step-000004" / "optimizer.safetensors")
    params, matrices = flatten(model.params)
    assert state["m"].shape == state["v"].shape == params.shape
    assert state["steps"] == 4
    assert np.abs(state["m"][matrices:]).max() > 0  # the norms', which come last
    trainer = json.loads((tmp_path / "checkpoints" / "step-000004" / "trainer.json").read_text())
    assert trainer["progress"]["step"] == 4
    assert trainer["settings"]["steps"] == 4


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    model = save(checkpoints, 1)
    model.params["norm.weight"][0] = np.nan
    with pytest.raises(MinillamaError, match=r"norm.weight: expected finite weights.*safe up to .*step-000001"):
        checkpoints.save(2, Checkpoint(CONFIG, model.params), {"steps": np.array(2)}, {})
    assert names(tmp_path) == ["step-000001"]


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = checkpoint.sync, os.rename
    monkeypatch.setattr(checkpoint, "sync", lambda path: (events.append(path.name), sync(path)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(f"rename to {Path(b).name}"), rename(a, b)))
    save(Checkpoints(tmp_path / "c"), 3)
    at = events.index("rename to step-000003")
    saved = names(tmp_path / "c" / "step-000003")
    assert {*saved, ".step-000003.partial"} <= set(events[:at])
    assert events[at + 1 :] == ["c"]
    assert weights.detect_format(tmp_path / "c" / "step-000003") == "huggingface"
