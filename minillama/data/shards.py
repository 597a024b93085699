"""Tokens on disk: text is tokenized once, and read from then on as if it were in memory.

A folder of prepared data holds `tokens.json` and one subfolder, which the index names: for each split the tokens of its
documents, one after the other, each as BOS + tokens + EOS, cut into files of equal length (little-endian uint16, or
uint32 for a vocabulary above 65,536); the position where each document starts (int64); and the tokenizer. The index is
replaced last and at once, so a kill at any moment leaves the old data or the new.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from minillama.data.sources import FIELD, SEPARATOR, SPLITS, Document, Source, find_source
from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer import Tokenizer, from_folder
from minillama.tokenizer.atomic import write_bytes

INDEX = "tokens.json"
VERSION = 1  # of the index and of how documents become tokens
SHARD_TOKENS = 1 << 26
BATCH = 1 << 20  # characters tokenized at a time
_AGAIN = "make it again with `minillama data prepare`"


class TokenSplit:
    """The tokens of one split, memory-mapped. `split[start:stop]` is a new int64 array; `len(split)` counts tokens.

    documents: how many there are. bytes: of their text in UTF-8. starts: (documents,) int64, where each begins.
    shards: how many files hold the tokens.
    """

    def __init__(self, folder: Path, dtype: np.dtype, record: dict[str, Any]) -> None:
        """record: what the index says. Raises MinillamaError for a file that is not as long as it says."""
        self.documents = int(record["documents"])
        self.bytes = int(record["bytes"])
        self.starts = _mapped(folder / record["starts"], np.dtype("<i8"), self.documents)
        self._shards = [_mapped(folder / shard["file"], dtype, shard["tokens"]) for shard in record["shards"]]
        self.shards = len(self._shards)
        self._bounds = [0]  # of the shards among the tokens
        for shard in self._shards:
            self._bounds.append(self._bounds[-1] + len(shard))

    def __len__(self) -> int:
        return self._bounds[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise UsageError(f"tokens are read in order: expected a slice of step 1, found {step}")
        tokens = np.empty(max(0, stop - start), np.int64)
        filled = 0
        while filled < len(tokens):
            at = start + filled
            shard = bisect_right(self._bounds, at) - 1
            piece = self._shards[shard][at - self._bounds[shard] : stop - self._bounds[shard]]
            tokens[filled : filled + len(piece)] = piece
            filled += len(piece)
        return tokens


class TokenData:
    """Prepared data, opened from its folder: `train` and `validation`, and the tokenizer that made them.

    source: what it was made from, by the name it was given. inputs: all that the tokens depend on, as JSON can hold it:
    the source's checksums, the tokenizer's hash, the settings.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises MinillamaError for a folder that holds no prepared data, or data that is damaged."""
        self.folder = Path(folder)
        index = _read_index(self.folder)
        try:
            self.inputs: dict[str, Any] = index["inputs"]
            self.tokenizer_sha256: str = self.inputs["tokenizer"]
            self.source = str(index["source"])
            self.vocab_size = int(index["vocab_size"])
            self._tokens_folder = self.folder / index["folder"]
            self._records = {name: index["splits"][name] for name in SPLITS}
            dtype = np.dtype(index["dtype"])
            self.train, self.validation = (
                TokenSplit(self._tokens_folder, dtype, self._records[name]) for name in SPLITS
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MinillamaError(
                f"{self.folder / INDEX}: expected an index of tokens, found {error!r}; {_AGAIN}"
            ) from None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which was saved with the tokens."""
        tokenizer = from_folder(self._tokens_folder)
        if tokenizer is None:
            raise MinillamaError(f"{self._tokens_folder}: expected a tokenizer, found none; {_AGAIN}")
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises MinillamaError where `tokenizer` is not the one that made the tokens."""
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise MinillamaError(
                f"{self.folder}: expected the tokenizer that made it ({self.tokenizer_sha256[:12]}…, "
                f"{self.vocab_size} tokens), found another ({tokenizer.sha256[:12]}…, {tokenizer.vocab_size}); {_AGAIN}"
            )

    def verify(self) -> None:
        """Read all tokens. Raises MinillamaError where a file's checksum is not the one it was written with."""
        from tqdm import tqdm

        shards = [shard for record in self._records.values() for shard in record["shards"]]
        for shard in tqdm(shards, desc="checking", disable=None, delay=2):
            path = self._tokens_folder / shard["file"]
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != shard["sha256"]:
                raise MinillamaError(f"{path}: expected sha256 {shard['sha256']}, found {found}: altered; {_AGAIN}")


def is_prepared(folder: str | Path) -> bool:
    """Whether `folder` holds prepared data (which may yet be damaged)."""
    return (Path(folder) / INDEX).is_file()


def tokenize(
    source: str | Path,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    validation: float = 0.05,
    seed: int = 0,
    field: str = FIELD,
    separator: str = SEPARATOR,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenData:
    """The tokens of `source` (see `documents`), prepared in `folder` unless they are there already.

    They are there where the source's content, the tokenizer and the settings are what they were. Every document is
    BOS + tokens + EOS. validation: the share of documents that is kept apart, chosen by the hash of their text and
    `seed`, so that equal documents are never on both sides; documents that know their own split go there.
    shard_tokens: at most so many tokens a file.

    Raises MinillamaError where the source cannot be read or is empty, or the folder cannot be written; what was in the
    folder before is then as it was.
    """
    folder = Path(folder)
    if not 0 <= validation < 1:
        raise UsageError(f"validation {validation}: expected a share from 0 to below 1")
    if seed < 0 or shard_tokens < 1:
        raise UsageError(f"seed {seed}, shard_tokens {shard_tokens}: expected 0 or more, and 1 or more")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder to write to, found a file")
    if folder.is_dir() and any(folder.iterdir()) and not is_prepared(folder) and not _unfinished(folder):
        raise UsageError(f"{folder}: expected a new folder, an empty one or prepared data, found something else")
    found = find_source(source, field=field, separator=separator, seed=seed)
    inputs = {
        "version": VERSION,
        "source": found.identity(),
        "tokenizer": tokenizer.sha256,
        "validation": validation,
        "seed": seed,
        "shard_tokens": shard_tokens,
    }
    data = _reusable(folder, inputs)
    if data is None:
        _write(folder, found, tokenizer, inputs)
        data = TokenData(folder)
    return data


def _reusable(folder: Path, inputs: dict[str, Any]) -> TokenData | None:
    """The data in `folder` if it is whole and was made from `inputs`."""
    if not is_prepared(folder):
        return None
    try:
        data = TokenData(folder)
    except MinillamaError:
        return None  # damaged: made again
    return data if data.inputs == inputs else None


def _write(folder: Path, source: Source, tokenizer: Tokenizer, inputs: dict[str, Any]) -> None:
    """Tokenize into a new subfolder, then let the index name it."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    partial = folder / f"tokens-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        tokenizer.save(partial)
        with _Writer(partial, dtype, inputs["shard_tokens"]) as writer:
            _fill(writer, source, tokenizer, inputs["validation"], inputs["seed"])
        records = writer.records()
        for record in records.values():
            TokenSplit(partial, dtype, record)  # all there, though another process may be at work in this folder
        index = {
            "source": source.name,
            "inputs": inputs,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.str,
            "folder": partial.name,
            "splits": records,
        }
        write_bytes(folder / INDEX, json.dumps(index, indent=1).encode())  # from here on the new data counts
    except OSError as error:
        raise MinillamaError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        _remove_others(folder)


def _fill(writer: _Writer, source: Source, tokenizer: Tokenizer, validation: float, seed: int) -> None:
    """Every document of `source` to its split."""
    from tqdm import tqdm

    counts = dict.fromkeys(SPLITS, 0)
    with tqdm(total=source.size, unit="B", unit_scale=True, desc="tokenizing", disable=None, delay=2) as bar:
        for batch in _batches(source.documents()):
            encoded = tokenizer.encode_batch([document.text for document in batch], bos=True, eos=True)
            for document, ids in zip(batch, encoded, strict=True):
                text = document.text.encode()
                split = document.split or _split_of(text, validation, seed)
                writer.add(split, ids, len(text))
                counts[split] += 1
                bar.update(len(text))
    if not counts["train"]:
        found = f"{counts['validation']} for validation only" if counts["validation"] else "no document"
        raise MinillamaError(f"{source.name}: expected text to train on, found {found}")


def _split_of(text: bytes, validation: float, seed: int) -> str:
    """'validation' for a share of all texts, chosen by their hash."""
    digest = hashlib.blake2b(b"%d %b" % (seed, text), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "little") < validation * 2**64 else "train"


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents together, until they have BATCH characters."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """The files of both splits, as they grow."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self._splits = {name: _SplitWriter(folder, name, dtype, shard_tokens) for name in SPLITS}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.close()

    def add(self, split: str, ids: list[int], size: int) -> None:
        """A document of `size` bytes."""
        self._splits[split].add(ids, size)

    def records(self) -> dict[str, Any]:
        """What the index says of each split."""
        return {name: split.record() for name, split in self._splits.items()}


class _SplitWriter:
    """The files of one split."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int) -> None:
        self._folder, self._name, self._dtype, self._shard_tokens = folder, name, dtype, shard_tokens
        self._starts: IO[bytes] = (folder / f"{name}-starts.bin").open("wb")
        self._shard: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._shards: list[dict[str, Any]] = []
        self._documents = self._bytes = self._tokens = 0

    def add(self, ids: list[int], size: int) -> None:
        self._starts.write(np.array(self._tokens, "<i8").tobytes())
        self._documents += 1
        self._bytes += size
        self._tokens += len(ids)
        tokens = np.array(ids, self._dtype)
        while len(tokens):
            if self._shard is None:
                path = self._folder / f"{self._name}-{len(self._shards):05}.bin"
                self._shard = path.open("wb")
                self._digest = hashlib.sha256()
                self._shards.append({"file": path.name, "tokens": 0})
            fitting = tokens[: self._shard_tokens - self._shards[-1]["tokens"]]
            self._shard.write(fitting.tobytes())
            self._digest.update(fitting.tobytes())
            self._shards[-1]["tokens"] += len(fitting)
            if self._shards[-1]["tokens"] == self._shard_tokens:
                self._end_shard()
            tokens = tokens[len(fitting) :]

    def close(self) -> None:
        try:
            self._starts.close()
        finally:
            self._end_shard()

    def record(self) -> dict[str, Any]:
        return {
            "documents": self._documents,
            "bytes": self._bytes,
            "starts": f"{self._name}-starts.bin",
            "shards": self._shards,
        }

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shards[-1]["sha256"] = self._digest.hexdigest()
            self._shard = None


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MinillamaError(f"{folder}: expected prepared data with a {INDEX}, found none; {_AGAIN}") from None
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise MinillamaError(f"{path}: expected JSON, found something else; {_AGAIN}") from None
    inputs = index.get("inputs") if isinstance(index, dict) else None
    version = inputs.get("version") if isinstance(inputs, dict) else None
    if version != VERSION:
        raise MinillamaError(f"{path}: expected an index of version {VERSION}, found {version}; {_AGAIN}")
    return index


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """`count` numbers in a file, memory-mapped."""
    expected = count * dtype.itemsize
    try:
        found = path.stat().st_size
    except OSError as error:
        raise MinillamaError(
            f"{path}: expected {expected} bytes, cannot be read ({error.strerror}); {_AGAIN}"
        ) from None
    if found != expected:
        raise MinillamaError(f"{path}: expected {expected} bytes, found {found}; {_AGAIN}")
    return np.memmap(path, dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype)


def _unfinished(folder: Path) -> bool:
    """Whether all that `folder` holds was left by a run that was killed."""
    return all(entry.name.startswith(("tokens-", INDEX)) for entry in folder.iterdir())


def _remove_others(folder: Path) -> None:
    """Remove the tokens that the index does not name: older ones, and what a killed run left."""
    kept = None
    if is_prepared(folder):
        try:
            kept = _read_index(folder)["folder"]
        except (MinillamaError, KeyError):
            return  # not ours to judge
    for entry in folder.glob("tokens-*"):
        if entry.name != kept:
            shutil.rmtree(entry, ignore_errors=True)  # where another process still reads it, it stays
    for entry in folder.glob(f"{INDEX}.*"):
        entry.unlink(missing_ok=True)
