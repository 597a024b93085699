"""`minillama tokenizer ...`: learn a vocabulary, see how a text is cut."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.errors import MinillamaError, UsageError

if TYPE_CHECKING:
    from minillama.data.sources import Source
    from minillama.tokenizer.base import Tokenizer

app = typer.Typer(
    name="tokenizer",
    help="Learn a vocabulary from text, see how a text is cut into tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(epilog="Example: minillama tokenizer train stories.txt --vocab-size 4096 --out tokenizer.model")
def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .txt or .jsonl file (or .gz of it), a folder of them, or a name: miniature, tinystories, …",
        ),
    ],
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", metavar="V", help="How many tokens, bytes and special ones included.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .model file to write.")] = Path(
        "tokenizer.model"
    ),
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Of JSONL: where the text is.")] = "text",
    max_sentences: Annotated[
        int, typer.Option("--max-sentences", metavar="N", min=1, help="Learn from a sample of so many lines.")
    ] = 1_000_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the sample.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Learn a SentencePiece vocabulary in Llama 2's settings: BPE, bytes for rare characters, single digits."""
    from rich.console import Console

    from minillama import tokenizer as tokenizers
    from minillama.data.sources import find_source

    if out.is_dir():
        raise UsageError(f"{out}: is a folder, expected the name of a file to write")
    if out.exists() and not force:
        raise UsageError(f"{out}: is there already (--force overwrites it)")
    started = time.perf_counter()
    text = Reading(find_source(source, field=field, seed=seed))
    learning = Console(stderr=True).status(f"learning {vocab_size:,} tokens")  # shows nothing without a terminal
    try:
        tokenizer = tokenizers.train(
            text.texts(then=learning.start), vocab_size, max_sentences=max_sentences, seed=seed, where=source
        )
    finally:
        learning.stop()
    tokenizers.save_sentencepiece(tokenizer, out)
    print(
        f"{out}: {tokenizer.vocab_size:,} tokens from {text.documents:,} documents, {text.bytes:,} bytes of text, "
        f"in {time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


@app.command(epilog='Example: minillama tokenizer show smollm2 "Once upon a time"')
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A .model file, a checkpoint in any known format, or a name.")
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to cut into tokens.")],
) -> None:
    """How a text is cut: a line for each token, its id and the text or bytes that it stands for."""
    tokenizer = load(model)
    ids = tokenizer.encode(text)
    for token in ids:
        print(f"{token:>6}  {_written(tokenizer, token)}")
    size = len(text.encode())
    print(f"{len(ids)} tokens, {size} bytes: {size / max(len(ids), 1):.2f} bytes a token", file=sys.stderr)


def load(name: str) -> Tokenizer:
    """The tokenizer in a SentencePiece `.model` file, or that of a checkpoint. Raises MinillamaError."""
    from minillama import catalog, weights
    from minillama.tokenizer import from_sentencepiece

    path = catalog.resolve(name)
    if path.is_file() and path.suffix == ".model":
        return from_sentencepiece(path)
    tokenizer = weights.inspect(path).tokenizer
    if tokenizer is None:
        raise MinillamaError(f"{path}: expected a tokenizer with the weights, found none")
    return tokenizer


class Reading:
    """The texts of a source, without those that it keeps for validation; counted, with a bar that shows how far."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.documents = self.bytes = 0

    def texts(self, then: Callable[[], None]) -> Iterator[str]:
        """One text after the other; calls `then` after the last."""
        from tqdm import tqdm

        size, what = self.source.size, f"reading {self.source.name}"
        with tqdm(total=size, unit="B", unit_scale=True, desc=what, disable=None, delay=2, leave=False) as bar:
            for document in self.source.documents():
                text_bytes = len(document.text.encode())
                bar.update(text_bytes)
                if document.split != "validation":
                    self.documents += 1
                    self.bytes += text_bytes
                    yield document.text
        then()


def _written(tokenizer: Tokenizer, token: int) -> str:
    """A token as its quoted text, the hexadecimal bytes of a part of a character, or the name of a control token."""
    data = tokenizer.decode_bytes([token])
    if not data:
        return tokenizer.piece(token)
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return data.hex(" ")
