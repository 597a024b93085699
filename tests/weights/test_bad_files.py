"""What is broken or something else gets one line that names the file; what is written appears whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minillama import weights
from minillama.errors import MinillamaError, UsageError
from minillama.weights import huggingface
from tests.data import smollm2_gguf
from tests.weights.support import CONFIGS, TINY, assert_same_params, random_params, tiny_checkpoint, write_meta

NAMES = {
    "llama2c": "model.bin",
    "llama2c-v1": "model.bin",
    "huggingface": "model/model.safetensors",
    "gguf": "model.gguf",
    "meta": "model/consolidated.00.pth",
}


def make(tmp_path: Path, kind: str) -> tuple[Path, Path]:
    """A checkpoint of this kind: what to load, and the file in it that holds the weights."""
    file = tmp_path / NAMES[kind]
    model = file.parent if kind in ("huggingface", "meta") else file
    checkpoint = tiny_checkpoint(CONFIGS["untied"], tokenizer=False)
    if kind == "meta":
        write_meta(model, checkpoint.params, checkpoint.config)
    else:
        weights.save(checkpoint, model, to=kind)
    return model, file


def message_of(path: Path) -> str:
    with pytest.raises(MinillamaError) as caught:
        weights.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("size", ["empty", "header", "half", "almost"])
def test_truncated(tmp_path: Path, kind: str, size: str) -> None:
    model, file = make(tmp_path, kind)
    data = file.read_bytes()
    file.write_bytes(data[: {"empty": 0, "header": 20, "half": len(data) // 2, "almost": len(data) - 1}[size]])
    assert str(file if size != "empty" or kind != "gguf" else model) in message_of(model)


@pytest.mark.parametrize("kind", ["llama2c", "llama2c-v1", "gguf"])
def test_truncated_is_noticed_without_reading_the_weights(tmp_path: Path, kind: str) -> None:
    model, file = make(tmp_path, kind)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MinillamaError, match="bytes"):
        weights.inspect(model)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("kind", ["huggingface", "llama2c", "gguf"])
def test_others_may_read_what_is_saved(tmp_path: Path, kind: str) -> None:
    _, file = make(tmp_path, kind)
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("kind", ["llama2c", "llama2c-v1"])
def test_longer_than_its_header_says(tmp_path: Path, kind: str) -> None:
    model, file = make(tmp_path, kind)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + bytes(4))
    assert message_of(model) == f"{file}: expected {size} bytes for the sizes in its header, found {size + 4}"


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, kind: str, value: float) -> None:
    model, file = make(tmp_path, kind)
    good = random_params(CONFIGS["untied"])["norm.weight"].tobytes()
    bad = bytearray(good)
    bad[40:44] = np.float32(value).tobytes()
    data = file.read_bytes()
    assert data.count(good) == 1
    file.write_bytes(data.replace(good, bytes(bad)))
    names = {"huggingface": "model.norm.weight", "gguf": "output_norm.weight"}
    expected = "expected finite weights, found NaN or infinite values"
    assert message_of(model) == f"{file}: tensor {names.get(kind, 'norm.weight')}: {expected}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a GGUF or llama2.c file, found one that starts with b''"),
        (b"hello, I am a text", "expected a GGUF or llama2.c file, found one that starts with b'hell'"),
        (bytes(100), "expected a GGUF or llama2.c file"),
        (b"\xff" * 100, "expected a GGUF or llama2.c file"),
        (b"GGUF", "expected a GGUF header of 24 bytes, found 4"),
        (b"PK\3\4" + bytes(30), "expected a GGUF or llama2.c file"),
    ],
)
def test_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert message_of(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("name", ["model.safetensors", "consolidated.00.pth", "config.json"])
def test_a_file_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some content")
    assert "expected the folder that this file belongs to, found the file itself" in message_of(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    assert message_of(tmp_path / "absent") == f"{tmp_path / 'absent'}: no such file or folder"


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    assert "expected config.json (Hugging Face) or params.json (Meta) in it, found neither" in message_of(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    model, file = make(tmp_path, "huggingface")
    file.unlink()
    assert "expected model.safetensors or model.safetensors.index.json, found neither" in message_of(model)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"])
@pytest.mark.parametrize(("kind", "name"), [("huggingface", "config.json"), ("meta", "params.json")])
def test_json_that_does_not_parse(tmp_path: Path, kind: str, name: str, content: bytes) -> None:
    model, _ = make(tmp_path, kind)
    (model / name).write_bytes(content)
    assert message_of(model).startswith(f"{model / name}: expected ")


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="needs a user whom permissions bind")
def test_no_permission(tmp_path: Path) -> None:
    model, file = make(tmp_path, "gguf")
    file.chmod(0)
    assert message_of(model) == f"{file}: cannot be read (Permission denied)"


def edited(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], str]:
    def load(tmp_path: Path) -> str:
        model, file = make(tmp_path, "huggingface")
        tensors = dict(load_file(file))
        change(tensors)
        save_file(tensors, file)
        return message_of(model)

    return load


def test_missing_unexpected_and_misshapen_tensors(tmp_path: Path) -> None:
    missing = edited(lambda tensors: tensors.pop("model.norm.weight"))
    assert "expected 21 tensors, missing model.norm.weight" in missing(tmp_path)
    several = edited(lambda tensors: [tensors.pop(name) for name in list(tensors) if "mlp" in name])
    assert "missing model.layers.0.mlp.gate_proj.weight, " in several(tmp_path)
    assert "and 3 more" in several(tmp_path)
    unexpected = edited(lambda tensors: tensors.update({"model.norm.bias": np.ones(32, np.float32)}))
    assert "expected 21 tensors, found also model.norm.bias" in unexpected(tmp_path)
    misshapen = edited(lambda tensors: tensors.update({"model.norm.weight": np.ones(31, np.float32)}))
    assert "tensor model.norm.weight: expected shape (32,), found (31,)" in misshapen(tmp_path)


@pytest.mark.parametrize("to", ["huggingface", "gguf", "llama2c"])
def test_what_is_not_a_model_is_not_saved(tmp_path: Path, to: str) -> None:
    target = tmp_path / "model"
    for change, message in [
        ({"norm.weight": np.full(32, np.nan, np.float32)}, "tensor norm.weight: expected finite weights"),
        ({"norm.weight": np.ones(31, np.float32)}, "tensor norm.weight: expected shape (32,), found (31,)"),
        ({"extra": np.ones(1, np.float32)}, "found also extra"),
    ]:
        params = random_params(TINY) | change
        with pytest.raises(MinillamaError) as caught:
            weights.save(weights.Checkpoint(TINY, params), target, to=to)
        assert str(caught.value).startswith(f"{target}: ")
        assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_float16_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    params = random_params(TINY)
    params["layers.0.attention.wo.weight"][3, 4] = 1e5
    for name in ("model", "model.gguf"):
        with pytest.raises(MinillamaError, match=r"wo\.weight as float16: expected finite weights"):
            weights.save(weights.Checkpoint(TINY, params), tmp_path / name, dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, which stands for a full disk")
@pytest.mark.parametrize("to", ["huggingface", "gguf", "llama2c"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, to: str) -> None:
    import resource

    target = tmp_path / "model"
    old = tiny_checkpoint(tokenizer=False)
    weights.save(old, target, to=to)
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(MinillamaError) as caught:
            weights.save(old, target, to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{target}: cannot be written (")
    assert sorted(tmp_path.rglob("*")) == before
    assert_same_params(weights.load(target).params, old.params)


def test_a_new_checkpoint_replaces_the_old_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "SHARD_BYTES", 20_000)
        weights.save(tiny_checkpoint(), folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "training").mkdir()
    (folder / "training" / "state.npz").write_text("mine too")
    weights.save(tiny_checkpoint(tokenizer=False), folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["config.json", "model.safetensors", "notes.txt", "training/state.npz"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_moved_over_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    weights.save(tiny_checkpoint(tokenizer=False), folder)
    (folder / "notes.txt").write_text("mine")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == "notes.txt":
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(MinillamaError, match=r"cannot be written \(Input/output error\)"):
            weights.save(tiny_checkpoint(tokenizer=False), folder)
    assert [path.read_text() for path in tmp_path.rglob("notes.txt")] == ["mine"]
    weights.load(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right to make links")
@pytest.mark.parametrize(("name", "to"), [("model", "huggingface"), ("model.gguf", "gguf")])
def test_what_a_link_points_to_is_replaced(tmp_path: Path, name: str, to: str) -> None:
    weights.save(tiny_checkpoint(tokenizer=False), tmp_path / "disk" / name)
    (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    new = weights.Checkpoint(TINY, random_params(TINY, seed=1))
    weights.save(new, tmp_path / name, to=to)
    assert (tmp_path / name).is_symlink()
    assert_same_params(weights.load(tmp_path / "disk" / name).params, new.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", name]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="expected a new folder, an empty one or a checkpoint, found something else"):
        weights.save(tiny_checkpoint(), tmp_path, to="huggingface")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(("name", "to"), [("there.gguf", "gguf"), ("there.bin", "llama2c")])
def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path, name: str, to: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="expected a file to write to, found a folder"):
        weights.save(tiny_checkpoint(tokenizer=False), tmp_path / name, to=to)


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("a file")
    with pytest.raises(UsageError, match="expected a folder to write to, found a file"):
        weights.save(tiny_checkpoint(), tmp_path / "there")
    assert (tmp_path / "there").read_text() == "a file"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the process as Linux reports it")
def test_loading_holds_one_copy_of_the_weights() -> None:
    """SmolLM2: 538 MB of float32 out of a 98 MB file, the interpreter and the tokenizer included."""
    script = (
        "import sys\n"
        "from minillama import bench, weights\n"
        "checkpoint = weights.load(sys.argv[1])\n"
        "print(bench.peak_memory() / (4 * checkpoint.config.param_count()))\n"
    )
    command = [sys.executable, "-c", script, str(smollm2_gguf())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1.3
