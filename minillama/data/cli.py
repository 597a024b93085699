"""`minillama data ...`: text to tokens on disk, and what is in them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from minillama.data.shards import TokenData

app = typer.Typer(
    name="data",
    help="Tokenize text once, for training to read; see what was prepared.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(epilog="Example: minillama data prepare tinystories-sample --tokenizer stories15m --out data/stories")
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .txt or .jsonl file (or .gz of it), a folder of them, or a name: miniature, tinystories, "
            "tinystories-v2, tinystories-sample.",
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", metavar="MODEL", help="A .model file, a checkpoint in any known format, or a model's name."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the tokens go.")],
    validation: Annotated[
        float,
        typer.Option("--validation", metavar="SHARE", help="Of the documents that name no split, chosen by content."),
    ] = 0.05,
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Of JSONL: where the text is.")] = "text",
    separator: Annotated[
        str, typer.Option("--separator", metavar="TEXT", help=r"Between the documents of a .txt; \n is a line's end.")
    ] = "<|endoftext|>",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the choice for validation, and of the miniature.")
    ] = 0,
) -> None:
    """Tokenize text into FOLDER, unless the same text is there already, by the same tokenizer and settings."""
    from minillama.data.shards import tokenize
    from minillama.tokenizer.cli import load

    started = time.perf_counter()
    data = tokenize(
        source,
        load(tokenizer),
        out,
        validation=validation,
        seed=seed,
        field=field,
        separator=separator.replace(r"\n", "\n"),
    )
    _show(data)
    print(f"{out}: ready in {time.perf_counter() - started:.1f} s", file=sys.stderr)


@app.command(epilog="Example: minillama data info data/stories")
def info(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made by `minillama data prepare`.")]) -> None:
    """What prepared data holds, after checking that it is whole."""
    from minillama.data.shards import TokenData

    data = TokenData(folder)
    data.verify()
    _show(data)


def _show(data: TokenData) -> None:
    """The sizes of both splits."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{data.source} in {data.folder}", title_justify="left", title_style="bold")
    table.add_column("split")
    for name in ("documents", "tokens", "bytes", "bytes/token", "files"):
        table.add_column(name, justify="right")
    for name, split in (("train", data.train), ("validation", data.validation)):
        sizes = (split.documents, len(split), split.bytes)
        per_token = f"{split.bytes / len(split):.2f}" if len(split) else ""
        table.add_row(name, *(f"{size:,}" for size in sizes), per_token, str(split.shards))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"tokenizer: {data.vocab_size:,} tokens, {data.tokenizer_sha256[:12]}…")
