"""Meta's folders: slices put together, pickles read and never run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from minillama import weights
from minillama.config import PRESETS, RopeScaling
from minillama.errors import MinillamaError
from minillama.weights.meta import config_from_params, ffn_dim
from minillama.weights.pickled import read_tensors
from tests.weights.support import (
    CONFIGS,
    TINY,
    PickleWriter,
    assert_same_params,
    random_params,
    tiny_tokenizer,
    write_archive,
    write_meta,
    write_pth,
)

META = replace(CONFIGS["untied"], max_seq_len=4096)


@pytest.mark.parametrize("embedding_axis", [0, 1])  # Llama 3; Llama 1 and 2
@pytest.mark.parametrize("n_files", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_slices_are_put_together(tmp_path: Path, dtype: type, n_files: int, embedding_axis: int) -> None:
    params = random_params(META, dtype)
    write_meta(tmp_path, params, META, n_files, embedding_axis)
    loaded = weights.load(tmp_path)
    assert loaded.format == "meta"
    assert loaded.config == META
    assert_same_params(loaded.params, {name: value.astype(np.float32) for name, value in params.items()})


def test_eight_slices_of_grouped_queries(tmp_path: Path) -> None:
    """As 70B: each of eight files has one key head."""
    config = replace(META, dim=64, n_heads=16, n_kv_heads=8, head_dim=4, ffn_dim=128, vocab_size=256)
    params = random_params(config)
    write_meta(tmp_path, params, config, n_files=8)
    assert_same_params(weights.load(tmp_path).params, params)


# params.json as published with each model.
PUBLISHED = {
    "llama1-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1},
    "llama1-65b": {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-06, "vocab_size": -1},
    "llama2-13b": {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-05, "vocab_size": -1},
    "llama2-70b": {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "codellama-34b": {
        "dim": 8192,
        "n_layers": 48,
        "n_heads": 64,
        "n_kv_heads": 8,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-05,
        "rope_theta": 1000000,
        "vocab_size": -1,
    },
    "llama3-8b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "multiple_of": 1024,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
    },
    "llama3.1-70b": {
        "dim": 8192,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 4096,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
        "vocab_size": 128256,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_params_json_are_our_presets(name: str) -> None:
    preset = PRESETS[name]
    shapes = preset.param_shapes()
    assert config_from_params(Path("params.json"), PUBLISHED[name], shapes) == preset


def test_llama32_stretches_further() -> None:
    settings = {
        "dim": 2048,
        "ffn_dim_multiplier": 1.5,
        "multiple_of": 256,
        "n_heads": 32,
        "n_kv_heads": 8,
        "n_layers": 16,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
        "vocab_size": 128256,
    }
    config = config_from_params(Path("params.json"), settings, {"output.weight": (128_256, 2048)})
    assert config.rope_scaling == RopeScaling("llama3", 32.0)
    assert config.ffn_dim == 8192


@pytest.mark.parametrize(("dim", "multiple_of", "expected"), [(4096, 256, 11_008), (6656, 256, 17_920), (288, 32, 768)])
def test_feed_forward_width(dim: int, multiple_of: int, expected: int) -> None:
    assert ffn_dim(dim, multiple_of) == expected


@pytest.mark.parametrize("where", [".", ".."])
def test_tokenizer_beside_or_above(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "llama-2-7b"
    write_meta(folder, random_params(META), META)
    (folder / where / "tokenizer.model").write_bytes(tiny_tokenizer().model)
    loaded = weights.load(folder)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("a a") == tiny_tokenizer().encode("a a")


def test_llama3s_list_of_tokens_is_left_alone(tmp_path: Path) -> None:
    write_meta(tmp_path, random_params(META), META)
    lines = [base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    assert weights.load(tmp_path).tokenizer is None


class Malicious:
    """Unpickling this makes a file, were it ever unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    pickled = pickle.dumps({"norm.weight": Malicious(trap)}, protocol)
    folder = tmp_path / "model"
    write_meta(folder, random_params(META), META)
    write_archive(folder / "consolidated.00.pth", pickled)
    with pytest.raises(MinillamaError) as caught:
        weights.load(folder)
    assert str(caught.value).startswith(f"{folder / 'consolidated.00.pth'}: refused: its pickle ")
    assert not trap.exists()
    pickle.loads(pickled)  # the trap works
    assert trap.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",  # GLOBAL and REDUCE
        b"(S'echo'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'echo'\no.",  # OBJ
        b"\x80\x02cos\nsystem\n)\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.",  # STACK_GLOBAL
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n.",  # close to what is known, and not it
        b"\x80\x02\x82\x01.",  # EXT1: the extension registry
        b"\x80\x02\x8a\x01\x05Q\x97.",  # NEXT_BUFFER
    ],
)
def test_every_way_to_a_call_is_refused(tmp_path: Path, code: bytes) -> None:
    write_archive(tmp_path / "a.pth", code)
    with pytest.raises(MinillamaError, match=r"a\.pth: (refused: its pickle|expected a pickled dict)"):
        read_tensors(tmp_path / "a.pth")


def test_integers_are_left_out_and_other_objects_refused(tmp_path: Path) -> None:
    write_pth(tmp_path / "a.pth", {"x": np.ones(3, np.float32), "steps": np.ones(1, np.int64)})
    assert list(read_tensors(tmp_path / "a.pth")) == ["x"]
    writer = PickleWriter()
    writer.write({"epoch": 3})
    write_archive(tmp_path / "a.pth", writer.finish())
    with pytest.raises(MinillamaError, match=r"a\.pth: expected a dict of tensors, found int under 'epoch'"):
        read_tensors(tmp_path / "a.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    write_pth(tmp_path / "a.pth", {"x": np.ones(300, np.float32)})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        for name, content in contents.items():
            compress = zipfile.ZIP_DEFLATED if name.endswith("data/0") else zipfile.ZIP_STORED
            archive.writestr(name, content, compress)
    with pytest.raises(MinillamaError, match="data/0 to be stored uncompressed"):
        read_tensors(tmp_path / "b.pth")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    write_pth(tmp_path / "a.pth", {"x": np.ones(300, np.float32)})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        pickled = archive.read("consolidated/data.pkl")
    write_archive(tmp_path / "a.pth", pickled, [bytes(1196)])
    with pytest.raises(MinillamaError, match="tensor x: expected 1200 bytes of values, found 1196"):
        read_tensors(tmp_path / "a.pth")


def test_transposed_values_are_refused(tmp_path: Path) -> None:
    write_pth(tmp_path / "a.pth", {"x": np.ones((3, 4), np.float32).T})
    with pytest.raises(MinillamaError, match=r"tensor x: expected contiguous values, found strides \(1, 4\)"):
        read_tensors(tmp_path / "a.pth")


def test_a_file_is_missing(tmp_path: Path) -> None:
    write_meta(tmp_path, random_params(META), META, n_files=2)
    (tmp_path / "consolidated.00.pth").rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(MinillamaError, match=r"expected consolidated\.00\.pth and those that follow it, found cons"):
        weights.load(tmp_path)


def test_slices_of_two_models(tmp_path: Path) -> None:
    write_meta(tmp_path, random_params(META), META, n_files=2)
    write_pth(tmp_path / "consolidated.01.pth", {"norm.weight": np.ones(32, np.float32)})
    with pytest.raises(MinillamaError, match=r"01\.pth: expected the tensors of consolidated\.00\.pth, found"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "params.json: expected dim, found no such key"),
        ({"dim": "32"}, "params.json: expected dim to be of type int, found '32'"),
        ({"dim": 10**400}, "params.json: expected dim to be of type int"),
        ({"multiple_of": 0}, "params.json: expected multiple_of to be positive, found 0"),
        ({"n_layers": 3}, "missing layers.2.attention_norm.weight"),
        ({"n_layers": 10**8}, "expected tensors for 100000000 layers, found 21 tensors"),
        ({"vocab_size": 263}, "tensor tok_embeddings.weight: expected shape (263, 32), found (262, 32)"),
    ],
)
def test_params_json_that_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_meta(tmp_path, random_params(META), META)
    settings = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(settings | changes))
    with pytest.raises(MinillamaError) as caught:
        weights.load(tmp_path)
    assert message in str(caught.value)


def test_meta_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MinillamaError, match="unknown format 'meta': expected huggingface, gguf, llama2c"):
        weights.save(weights.Checkpoint(TINY, random_params(TINY)), tmp_path / "model", to="meta")
