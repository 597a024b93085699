"""Documents out of files, folders and names, whatever way they are stored, and one line for what cannot be read."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minillama import miniature
from minillama.catalog import RemoteFile
from minillama.data import Document, documents, sources
from minillama.errors import MinillamaError, UsageError
from tests.corpus.texts import SEPARATOR, stories, text_file
from tests.data import data_file


def texts(source: str | Path, **options: str) -> list[str]:
    return [document.text for document in documents(source, **options)]


def jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_text_is_cut_at_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"\n one\n\ntwo \n{SEPARATOR}\n{SEPARATOR} \n {SEPARATOR}three".encode())
    assert list(documents(path)) == [Document("one\n\ntwo"), Document("three")]


def test_text_without_a_separator_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\n\ntwo\n".encode())
    assert texts(path) == ["one\n\ntwo"]
    assert texts(path, separator="\n\n") == ["one", "two"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 13, 64, 1 << 20])
def test_no_chunk_border_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    expected = stories(30)
    monkeypatch.setattr(sources, "CHUNK", chunk)
    assert texts(text_file(tmp_path / "a.txt", expected)) == expected


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_a_long_document_is_cut_after_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 16)
    path = tmp_path / "a.txt"
    path.write_bytes(f"short\nlonger line\nend{SEPARATOR}next".encode())
    assert texts(path) == ["short", "longer line\nend", "next"]


def test_a_long_line_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 10)
    for text in ("é" * 50, "x" + "日本" * 20, "🦙" * 33, "xy" + "🦙" * 33):
        path = tmp_path / "a.txt"
        path.write_bytes(text.encode())
        pieces = texts(path)
        assert "".join(pieces) == text
        assert all(len(piece.encode()) <= 10 for piece in pieces)


def test_jsonl(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [{"text": " one\n"}, {"text": "two", "split": "train"}, {"text": " "}, {"split": "validation", "text": "café"}],
    )
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))  # an empty line means nothing
    assert list(documents(path)) == [Document(" one\n"), Document("two", "train"), Document("café", "validation")]


def test_jsonl_of_another_field(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"story": "one", "text": 3}])
    assert texts(path, field="story") == ["one"]


def test_gzip_holds_the_same(tmp_path: Path) -> None:
    expected = stories(20)
    plain = [
        text_file(tmp_path / "a.txt", expected),
        jsonl(tmp_path / "b.jsonl", [{"text": text} for text in expected]),
    ]
    for path in plain:
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert texts(path) == texts(packed) == expected


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    text_file(tmp_path / "b.txt", ["three", "four"])
    text_file(tmp_path / "a.txt", ["one", "two"])
    jsonl(tmp_path / "deeper" / "a.jsonl", [{"text": "five"}])
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"six"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert sorted(texts(tmp_path)) == sorted(["one", "two", "three", "four", "five", "six"])
    assert texts(tmp_path) == [
        text for file in sorted(tmp_path.rglob("*")) if file.is_file() and file.suffix != ".png" for text in texts(file)
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    data = f"café{SEPARATOR}日本".encode() + b"\xff" + b"rest"
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    with pytest.raises(MinillamaError, match=rf"{name}: expected UTF-8 text, found byte 0xff at {data.index(0xFF)}$"):
        texts(path)


def test_not_utf8_in_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "\xe9"}\n')
    with pytest.raises(MinillamaError, match=r"a\.jsonl: expected UTF-8 text, found byte 0xe9 at 26$"):
        texts(path)


def test_utf16_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one".encode("utf-16"))
    with pytest.raises(MinillamaError, match=r"found byte 0xf[ef] at 0$"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "two"', "expected JSON, found something else"),
        ("[" * 100_000, "expected JSON, found something else"),
        ('["two"]', "expected a JSON object, found a list"),
        ('{"story": "two", "n": 1}', "expected a text in the field 'text', found 'story', 'n'"),
        ("{}", "expected a text in the field 'text', found no field"),
        ('{"text": null}', "expected a text in the field 'text', found 'text'"),
        ('{"text": "two", "split": "test"}', "expected 'train' or 'validation' as the split, found 'test'"),
        ('{"text": "two", "split": ["train"]}', "expected 'train' or 'validation' as the split"),
        (r'{"text": "two \ud83e"}', "expected Unicode text, found a lone surrogate at 4"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n')
    with pytest.raises(MinillamaError) as caught:
        texts(path)
    assert str(caught.value).startswith(f"{path}: line 3: {problem}")
    assert "\n" not in str(caught.value)


def test_gzip_that_is_truncated_or_altered(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(stories(200)).encode())
    path = tmp_path / "a.txt.gz"
    for length in (5, 12, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MinillamaError, match=r"a\.txt\.gz: expected the end of the gzip stream, .*: truncated$"):
            texts(path)
    for content in (b"no gzip", whole[:-8] + bytes(8), whole[:20] + bytes(20) + whole[40:]):
        path.write_bytes(content)
        with pytest.raises(MinillamaError, match=r"a\.txt\.gz: expected "):
            texts(path)


def test_names_and_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="unknown data 'tinystorys': expected a file, a folder or one of miniature, ti"
    ):
        documents("tinystorys")
    with pytest.raises(MinillamaError, match=r"absent\.txt: no such file or folder$"):
        documents(tmp_path / "absent.txt")
    with pytest.raises(MinillamaError, match=r"expected \.txt or \.jsonl files .* in the folder, found none$"):
        documents(tmp_path)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UsageError, match=r"a\.parquet: expected a name that ends in \.txt or \.jsonl"):
        documents(tmp_path / "a.parquet")
    text_file(tmp_path / "a.txt", ["one"])
    with pytest.raises(UsageError, match="separator: expected a text between documents"):
        documents(tmp_path / "a.txt", separator="")


@pytest.mark.parametrize("name", ["miniature:", "miniature:0", "miniature:-1", "miniature:x", "miniature:1.5"])
def test_the_number_of_miniature_documents(name: str) -> None:
    if name == "miniature:":
        assert sources.find_source(name).count == sources.MINIATURE_DOCUMENTS  # type: ignore[attr-defined]
    else:
        with pytest.raises(UsageError, match="expected miniature:N with a number of documents N"):
            documents(name)


def test_miniature() -> None:
    told = list(documents("miniature:20", seed=3))
    assert len(told) == 20
    assert {document.split for document in told} <= {"train", "validation"}
    assert told == list(documents("Miniature:20", seed=3))
    assert told != list(documents("miniature:20", seed=4))
    identities = [
        sources.find_source(f"miniature:{n}", seed=seed).identity() for n, seed in ((20, 3), (21, 3), (20, 4))
    ]
    assert len({json.dumps(identity) for identity in identities}) == 3


def test_the_code_of_the_miniature_s_text_is_known() -> None:
    """Its identity covers the modules that the corpus comes from, all of them and no others."""
    folder = Path(miniature.__file__).parent
    found, todo = set(), ["corpus"]
    while todo:
        module = todo.pop()
        if module in found or not (folder / f"{module}.py").is_file():
            continue
        found.add(module)
        for node in ast.walk(ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minillama.miniature"):
                todo += [node.module.rpartition(".")[2], *(name.name for name in node.names)]
    assert sorted(found) == sorted(sources.MINIATURE_CODE)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    piece = f"{'word ' * 200}\n{SEPARATOR}\n".encode() * 1000
    with path.open("wb") as file:
        for _ in range(40):  # 40 MB
            file.write(piece)
    tracemalloc.start()
    try:
        assert sum(1 for _ in documents(path)) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 8 * sources.CHUNK
    finally:
        tracemalloc.stop()


CONTENT = f"\n{SEPARATOR}\n".join(stories(50)).encode()


class Server:
    """Stands in for the real one: serves CONTENT under any name, or as much of it as is asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range", "")
                server.requests.append(asked)
                content = CONTENT[: int(asked.partition("-")[2]) + 1] if asked else CONTENT
                self.send_response(206 if asked else 200)
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
    """'tinystories' and 'tinystories-sample' on a server of our own, an empty cache, and no folder of data."""
    server = Server()
    whole = hashlib.sha256(CONTENT).hexdigest()
    part = RemoteFile(f"{server.url}/train.txt", hashlib.sha256(CONTENT[:500]).hexdigest(), first=500, part="part.txt")
    stories = [RemoteFile(f"{server.url}/{name}.txt", whole) for name in ("train", "valid")]
    monkeypatch.setitem(sources.PUBLIC_SETS, "tinystories", [(stories[0], "train"), (stories[1], "validation")])
    monkeypatch.setitem(sources.PUBLIC_SETS, "tinystories-sample", [(part, None)])
    monkeypatch.setenv("MINILLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINILLAMA_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_public_set_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    found = list(documents("TinyStories"))
    assert [document.text for document in found] == stories(50) * 2
    assert [document.split for document in found] == ["train"] * 50 + ["validation"] * 50
    assert list(documents("tinystories")) == found
    assert server.requests == ["", ""]
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == ["train.txt", "valid.txt"]


def test_a_part_of_a_file_is_downloaded_as_such(server: Server, tmp_path: Path) -> None:
    assert "".join(texts("tinystories-sample"))[:100] == "".join(stories(50))[:100]
    assert server.requests == ["bytes=0-499"]
    assert (tmp_path / "cache" / "part.txt").read_bytes() == CONTENT[:500]


@pytest.mark.parametrize("below", ["", "text"])
def test_the_folder_of_data_comes_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    folder = tmp_path / "data" / below
    folder.mkdir(parents=True)
    monkeypatch.setenv("MINILLAMA_DATA", str(tmp_path / "data"))
    for name in ("train.txt", "valid.txt"):
        (folder / name).write_bytes(CONTENT)
    assert texts("tinystories") == stories(50) * 2
    assert server.requests == []
    (folder / "valid.txt").write_bytes(CONTENT[:-1])
    with pytest.raises(MinillamaError, match=r"valid\.txt: expected sha256 .*, found .*: damaged or partial"):
        documents("tinystories")


def test_without_a_network(server: Server, tmp_path: Path) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(MinillamaError) as caught:
        documents("tinystories")
    cache = tmp_path / "cache"
    assert str(caught.value) == (
        f"tinystories: train.txt cannot be downloaded (ConnectionError); get {server.url}/train.txt and "
        f"{server.url}/valid.txt and put what you get into {cache}"
    )
    with pytest.raises(MinillamaError, match=r"get the first 500 bytes of http://.*/train\.txt as part\.txt and put"):
        documents("tinystories-sample")
    for name in ("train.txt", "valid.txt"):  # as the message says
        cache.mkdir(exist_ok=True)
        (cache / name).write_bytes(CONTENT)
    assert len(texts("tinystories")) == 100


def test_public_sets_are_pinned() -> None:
    for files in sources.PUBLIC_SETS.values():
        for file, split in files:
            assert "/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/" in file.url  # what the checksums are of
            assert len(bytes.fromhex(file.sha256)) == 32
            assert split in (None, "train", "validation")


def test_the_sample_of_tinystories() -> None:
    data_file("text/tinystories_sample.txt")
    found = texts("tinystories-sample")
    assert len(found) == 2317
    assert found[0].startswith("One day, a little girl named Lily found a needle in her room.")
