"""Documents out of text files, JSONL, folders of them, public sets by name, and the miniature world.

Files are streamed: memory does not grow with them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from minillama import catalog
from minillama.catalog import RemoteFile
from minillama.errors import MinillamaError, UsageError

SEPARATOR = "<|endoftext|>"
FIELD = "text"
SPLITS = ("train", "validation")
CHUNK = 1 << 20  # bytes read at a time
# Bytes of a text file's longest document; what is longer is cut after a line. A tokenizer takes some 45 times as much.
LONGEST_DOCUMENT = 1 << 22

_TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_STORIES = RemoteFile(
    f"{_TINYSTORIES}/TinyStories-train.txt", "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f"
)
# name -> its files, each with the split that its documents belong to; None: decided for each by its hash
PUBLIC_SETS: dict[str, list[tuple[RemoteFile, str | None]]] = {
    "tinystories": [  # Eldan and Li, arXiv:2305.07759; 1.9 GB, by GPT-3.5 and GPT-4
        (_STORIES, "train"),
        (
            RemoteFile(
                f"{_TINYSTORIES}/TinyStories-valid.txt",
                "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
            ),
            "validation",
        ),
    ],
    "tinystories-v2": [  # 2.2 GB, by GPT-4 alone
        (
            RemoteFile(
                f"{_TINYSTORIES}/TinyStoriesV2-GPT4-train.txt",
                "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
            ),
            "train",
        ),
        (
            RemoteFile(
                f"{_TINYSTORIES}/TinyStoriesV2-GPT4-valid.txt",
                "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
            ),
            "validation",
        ),
    ],
    "tinystories-sample": [  # the first 2 MiB of the first
        (
            RemoteFile(
                _STORIES.url,
                "5352b299dcb1a32898b2d779b145b5a05f3e1265953fd21c264c9f9f9c9ae33d",
                first=1 << 21,
                part="tinystories_sample.txt",
            ),
            None,
        )
    ],
}
MINIATURE = "miniature"
MINIATURE_DOCUMENTS = 60_000  # 'miniature:N' for another number
MINIATURE_CODE = (  # what its text comes from: miniature/corpus.py and all that it imports there
    "chooser",
    "corpus",
    "fact_phrases",
    "facts",
    "stories",
    "story_phrases",
    "valley",
    "world",
)
NAMES = (MINIATURE, *PUBLIC_SETS)


@dataclass(frozen=True)
class Document:
    """A text, and the split it belongs to; None: decided by the hash of its content."""

    text: str
    split: str | None = None


class Source(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What a message calls it."""

    @property
    def size(self) -> int | None:
        """Bytes of all its text, about; None where that is not known."""

    def documents(self) -> Iterator[Document]:
        """All documents, in the same order each time."""

    def identity(self) -> dict[str, Any]:
        """What the documents depend on, as JSON can hold it: equal where they are."""


def documents(
    source: str | Path, *, field: str = FIELD, separator: str = SEPARATOR, seed: int = 0
) -> Iterator[Document]:
    """The documents of `source`, one at a time.

    source: a text file (`.txt`: documents with `separator` between them, without white space around; one document
    where it does not occur), a `.jsonl` file (the text in `field`, the split in 'split' where there is one), either
    with `.gz`, a folder of such files, or a name: one of NAMES. A name's files are looked for in the folder that
    MINILLAMA_DATA names (and its subfolder text), then in the cache, and else downloaded. Documents without text are
    left out. seed: of the miniature world.

    Raises MinillamaError for a file that cannot be read, naming the place; UsageError for an unknown name.
    """
    return find_source(source, field=field, separator=separator, seed=seed).documents()


def find_source(source: str | Path, *, field: str = FIELD, separator: str = SEPARATOR, seed: int = 0) -> Source:
    """The source called `source`, as `documents` describes it, its files found but not read yet."""
    if not separator:
        raise UsageError("separator: expected a text between documents, found nothing")
    path, name = Path(source), str(source).lower()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
        if not found:
            raise MinillamaError(f"{path}: expected .txt or .jsonl files (or .gz of them) in the folder, found none")
        return Files(str(source), [(file, file.relative_to(path).as_posix(), None) for file in found], field, separator)
    if path.exists():
        if _kind(path) is None:
            raise UsageError(f"{path}: expected a name that ends in .txt or .jsonl (or .gz after it)")
        return Files(str(source), [(path, path.name, None)], field, separator)
    if name in PUBLIC_SETS:
        files = [(path, path.name, split) for path, (_, split) in zip(_locate(name), PUBLIC_SETS[name], strict=True)]
        return Files(name, files, field, SEPARATOR)
    if name.partition(":")[0] == MINIATURE:
        return Miniature(_miniature_documents(name), seed)
    if path.suffix or len(path.parts) > 1:
        raise MinillamaError(f"{path}: no such file or folder")
    raise UsageError(f"unknown data {str(source)!r}: expected a file, a folder or one of {', '.join(NAMES)}")


class Files:
    """Documents in files. files: path, name and split of each."""

    def __init__(self, name: str, files: list[tuple[Path, str, str | None]], field: str, separator: str) -> None:
        self.name, self.files, self.field, self.separator = name, files, field, separator
        packed = any(path.suffix == ".gz" for path, *_ in files)
        self.size = None if packed else sum(path.stat().st_size for path, *_ in files)

    def documents(self) -> Iterator[Document]:
        """The documents of one file after the other."""
        for path, _, split in self.files:
            if _kind(path) == ".jsonl":
                yield from _jsonl_documents(path, self.field, split)
            else:
                yield from (Document(text, split) for text in _texts(path, self.separator))

    def identity(self) -> dict[str, Any]:
        """The checksum of every file, and how it is cut into documents."""
        files = [{"name": name, "split": split, "sha256": file_sha256(path)} for path, name, split in self.files]
        return {"files": files, "field": self.field, "separator": self.separator}


class Miniature:
    """So many documents of the miniature world, told with `seed`."""

    def __init__(self, count: int, seed: int) -> None:
        self.name, self.size = MINIATURE, None
        self.count, self.seed = count, seed

    def documents(self) -> Iterator[Document]:
        """The world's stories; each knows its split."""
        from minillama import miniature

        return (Document(story.text, story.split) for story in miniature.corpus(self.count, self.seed))

    def identity(self) -> dict[str, Any]:
        """Number, seed, and the code that tells the stories: another version of it tells others."""
        from minillama import miniature

        code = hashlib.sha256()
        for module in MINIATURE_CODE:
            code.update((Path(miniature.__file__).parent / f"{module}.py").read_bytes())
        return {"miniature": self.count, "seed": self.seed, "code": code.hexdigest()}


def _kind(path: Path) -> str | None:
    """'.txt', '.jsonl', or None for what is neither."""
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return kind if kind in (".txt", ".jsonl") else None


def _miniature_documents(name: str) -> int:
    count = name.partition(":")[2] or str(MINIATURE_DOCUMENTS)
    if not count.isdecimal() or int(count) == 0:
        raise UsageError(f"{name}: expected {MINIATURE}:N with a number of documents N, found {count!r}")
    return int(count)


def _locate(name: str) -> list[Path]:
    """Where the files of the public set `name` lie, downloaded if need be."""
    files = [file for file, _ in PUBLIC_SETS[name]]
    data = os.environ.get("MINILLAMA_DATA")
    for folder in [Path(data), Path(data) / "text"] if data else []:
        if all((folder / file.name).is_file() for file in files):
            for file in files:
                catalog.check_sha256(folder / file.name, file)
            return [folder / file.name for file in files]
    folder = catalog.cache_folder()
    for file in files:
        if problem := catalog.fetch(file, folder):
            wanted = " and ".join(_wanted(file) for file in files if not (folder / file.name).is_file())
            raise MinillamaError(f"{name}: {problem}; get {wanted} and put what you get into {folder}")
    return [folder / file.name for file in files]


def _wanted(file: RemoteFile) -> str:
    return f"the first {file.first:,} bytes of {file.url} as {file.name}" if file.first else file.url


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where it is a `.gz`; what goes wrong while reading becomes a MinillamaError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except EOFError:
        raise MinillamaError(
            f"{path}: expected the end of the gzip stream, found the end of the file: truncated"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise MinillamaError(f"{path}: expected a gzip file, found something else ({error})") from None
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read ({error.strerror or error})") from None


def _texts(path: Path, separator: str) -> Iterator[str]:
    """The texts of a file between separators, without white space around them, none of them empty."""
    with _opened(path) as file:
        for offset, piece in _pieces(file, separator.encode()):
            text = _decoded(path, piece, offset).strip().removeprefix("\ufeff")
            if text:
                yield text


def _pieces(file: BinaryIO, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """What stands between separators, long pieces cut; each with its offset in the file."""
    offset, pending = 0, b""  # pending begins at offset
    while chunk := file.read(CHUNK):
        *whole, pending = (pending + chunk).split(separator)
        for piece in whole:
            yield from _cut(offset, piece)
            offset += len(piece) + len(separator)
        while len(pending) >= LONGEST_DOCUMENT + len(separator):  # so far in, no separator can have begun
            end = _first_cut(pending)
            yield offset, pending[:end]
            offset, pending = offset + end, pending[end:]
    yield from _cut(offset, pending)


def _cut(offset: int, piece: bytes) -> Iterator[tuple[int, bytes]]:
    """`piece` in parts of at most LONGEST_DOCUMENT bytes."""
    while len(piece) > LONGEST_DOCUMENT:
        end = _first_cut(piece)
        yield offset, piece[:end]
        offset, piece = offset + end, piece[end:]
    yield offset, piece


def _first_cut(piece: bytes) -> int:
    """Where the first part of a long piece ends: after its last line that is whole, else between characters."""
    return piece.rfind(b"\n", 0, LONGEST_DOCUMENT) + 1 or _character_start(piece, LONGEST_DOCUMENT)


def _character_start(data: bytes, index: int) -> int:
    """The last index up to `index` where a UTF-8 character begins; `index` itself in what is no UTF-8."""
    starts = (i for i in range(index, index - 4, -1) if data[i] & 0xC0 != 0x80)
    return next(starts, index)


def _jsonl_documents(path: Path, field: str, split: str | None) -> Iterator[Document]:
    """One document a line."""
    for where, record in jsonl_records(path):
        text, own = record.get(field), record.get("split", split)
        if not isinstance(text, str):
            found = ", ".join(map(repr, record)) or "no field"
            raise MinillamaError(f"{where}: expected a text in the field {field!r}, found {found}")
        check_split(where, own)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MinillamaError(f"{where}: expected Unicode text, found a lone surrogate at {error.start}") from None
        if text.strip():
            yield Document(text, own)


def check_split(where: str, split: Any) -> None:
    """Raise MinillamaError unless a record's split is one that there is, or None."""
    if split not in (None, *SPLITS):
        raise MinillamaError(f"{where}: expected 'train' or 'validation' as the split, found {split!r}")


def jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a `.jsonl` file (or `.gz` of one), each with its place for messages: the file and the line.

    Raises MinillamaError for a line that is something else; empty lines are left out.
    """
    with _opened(path) as file:
        offset = 0
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            record = _record(_decoded(path, line, offset).removeprefix("\ufeff"), where)
            offset += len(line)
            if record is not None:
                yield where, record


def _record(line: str, where: str) -> dict[str, Any] | None:
    """The JSON object on a line; None for an empty line."""
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MinillamaError(f"{where}: expected JSON, found something else ({error})") from None
    if not isinstance(record, dict):
        raise MinillamaError(f"{where}: expected a JSON object, found a {type(record).__name__}")
    return record


def _decoded(path: Path, data: bytes, offset: int) -> str:
    """`data`, which stands at `offset` in the file, as text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise MinillamaError(f"{path}: expected UTF-8 text, found byte {data[error.start]:#04x} at {place}") from None


def file_sha256(path: Path) -> str:
    """The checksum of a file, with a progress bar where it takes long."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"checking {path.name}", disable=None, delay=2)
        with path.open("rb") as file, bar:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()
