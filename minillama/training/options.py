"""The options that all commands which finetune have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Whose weights to begin with: a path or a name.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the run and its model go.")]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME",
        help="Chat template: llama2, llama2-tags or chatml.",
        show_default="the model's own, or what suits its vocabulary",
    ),
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", metavar="N", min=1, help="Times to read all.", show_default="2")
]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", metavar="B", min=1, help="Rows an update, of all ranks together.")
]
SeqLenOption = Annotated[
    int | None,
    typer.Option("--seq-len", metavar="T", min=1, help="Tokens of a row.", show_default="1024, or the context"),
]
LrOption = Annotated[
    float | None,
    typer.Option("--lr", metavar="X", help="Learning rate at its peak.", show_default="by width: 2e-5 at 4096"),
]
PackingOption = Annotated[
    str,
    typer.Option(
        "--packing",
        metavar="packed|concatenated|none",
        help="Dialogues of a row: apart; each seeing those before, as in the paper; or one a row.",
    ),
]
LoraOption = Annotated[
    int | None,
    typer.Option("--lora", metavar="RANK", min=1, help="Train adapters of this rank only.", show_default="all weights"),
]
LoraAlphaOption = Annotated[
    float | None,
    typer.Option("--lora-alpha", metavar="X", help="Adapters count X / RANK times.", show_default="twice the rank"),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Of this process.", show_default="all cores")
]
MicroBatchOption = Annotated[
    int | None,
    typer.Option("--micro-batch", metavar="B", min=1, help="Rows a thread runs at once.", show_default="fit the cache"),
]
RecomputeOption = Annotated[
    bool, typer.Option("--recompute", help="Keep less for the backward pass: less memory, a third more work.")
]
SaveEveryOption = Annotated[
    int | None, typer.Option("--save-every", metavar="N", min=1, help="Updates.", show_default="a tenth of all")
]
TensorBoardOption = Annotated[bool, typer.Option("--tensorboard", help="Log to FOLDER/tensorboard too.")]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Of all that is drawn: the same seed, the same model.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Only go on with a run; an error where there is none.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Remove the run in FOLDER and begin again.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda", help="Where to run.", show_default="cuda if usable")
]
