"""`minillama reward`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.training.cli import INTERRUPTED
from minillama.training.cli_sft import check_flags
from minillama.training.options import (
    DeviceOption,
    LoraAlphaOption,
    LoraOption,
    MicroBatchOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    RecomputeOption,
    ResumeOption,
    SaveEveryOption,
    SeedOption,
    TemplateOption,
    TensorBoardOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from rich.table import Table

    from minillama.alignment.reward import Encoded, Job
    from minillama.training.loop import Progress
    from minillama.training.run_folder import RunFolder


def reward(
    model: ModelOption,
    out: OutOption,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="A .jsonl file of pairs (prompt, chosen, rejected, or hh-rlhf's), or hh-rlhf; may be given again.",
        ),
    ],
    margin: Annotated[
        str,
        typer.Option("--margin", metavar="none|small|large", help="How far the ratings shall move scores apart."),
    ] = "none",
    safety_loss: Annotated[
        float,
        typer.Option(
            "--safety-loss", metavar="W", min=0, help="Weight of the loss of telling safe answers from unsafe ones."
        ),
    ] = 0.0,
    held_out: Annotated[
        float,
        typer.Option("--held-out", metavar="X", min=0, max=0.9, help="Share of prompts kept apart to measure on."),
    ] = 0.1,
    likelihood: Annotated[
        bool,
        typer.Option("--likelihood", help="Let the likelihood of an answer count too: for models of a few layers."),
    ] = False,
    template: TemplateOption = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="Times to read all.", show_default="1")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="B", min=1, help="Pairs an update, of all ranks together.", show_default="32"
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="T",
            min=2,
            help="Tokens of prompt and answer; longer dialogues lose their first turns.",
            show_default="512, or the context",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", help="Learning rate at its peak.", show_default="1e-5 · 4096 / width"),
    ] = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    micro_batch: MicroBatchOption = None,
    threads: ThreadsOption = None,
    recompute: RecomputeOption = False,
    save_every: SaveEveryOption = None,
    tensorboard: TensorBoardOption = False,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
) -> None:
    """Make a reward model: it learns which of two answers people prefer. The same command again goes on."""
    from minillama.alignment import preferences
    from minillama.alignment import reward as stage
    from minillama.backend import resolve_device
    from minillama.training.distributed import connected
    from minillama.training.run_folder import RunFolder

    folder = RunFolder(out)
    check_flags("reward", folder, resume, overwrite)
    where = resolve_device(device)
    with connected(where) as comm:
        job = stage.job(
            model,
            preferences.load(data),
            template=template,
            epochs=epochs,
            batch_size=batch_size,
            max_length=max_length,
            lr=lr,
            lora=lora,
            lora_alpha=lora_alpha,
            likelihood=likelihood,
            margin=margin,
            safety_weight=safety_loss,
            held_out=held_out,
            rows=micro_batch,
            threads=threads,
            recompute=recompute,
            save_every=save_every,
            tensorboard=tensorboard,
            seed=seed,
            device=where,
        )
        progress, encoded = stage.train_reward_model(job, folder, comm, overwrite)
        if comm.rank == 0:
            _report(folder, job, progress, encoded)
    if not folder.result():
        raise typer.Exit(INTERRUPTED)


def _report(folder: RunFolder, job: Job, progress: Progress, encoded: Encoded | None) -> None:
    """Tables of what came out, and a pair; or how to go on."""
    from rich.console import Console
    from rich.table import Table

    if encoded is None:
        print(f"{folder.path}: this run has ended already (--overwrite begins it again)", file=sys.stderr)
    elif not folder.result():
        print(
            f"{folder.path}: interrupted after step {progress.step}, and saved; the same command goes on from there",
            file=sys.stderr,
        )
        return
    table = Table(title=str(folder.path), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", min_width=15)
    table.add_column(justify="right")
    trained = sum(p.size for p in job.model.trained.values())
    table.add_row("trained", f"{trained:,} of {job.model.config.param_count():,}")
    if encoded is not None:
        table.add_row("pairs", f"{len(encoded.train):,}")
    table.add_row("steps", f"{progress.step:,}")
    table.add_row("time", f"{progress.seconds:.1f} s")
    for name in ("loss", "calibration_error"):
        if name in progress.validation:
            table.add_row(f"held-out {name.replace('_', ' ')}", f"{progress.validation[name]:.4f}")
    console = Console(highlight=False)
    console.print(table)
    if progress.validation:
        console.print(_held_out(progress.validation))
    for notice in (*job.data.notices(), *encoded.notices()) if encoded is not None else ():
        print(notice, file=sys.stderr)
    if progress.sample:
        print(f"\n{progress.sample}")


def _held_out(measures: dict[str, float]) -> Table:
    """What was measured on pairs held out: all of them, those of a rating, those of a confidence."""
    from rich.table import Table

    from minillama.alignment.reward import binomial_p

    table = Table(box=None, pad_edge=False)
    table.add_column("held out", min_width=26)
    for name in ("pairs", "accuracy", "by chance"):
        table.add_column(name, justify="right")
    for name, pairs in measures.items():
        kind, _, which = name.partition(", ")
        if kind != "pairs":
            continue
        share = measures.get("accuracy" + name.removeprefix("pairs"), measures.get(f"right, {which}", 0.0))
        p = binomial_p(round(share * pairs), int(pairs))
        table.add_row(which or "all", f"{pairs:,.0f}", f"{100 * share:.1f} %", f"p = {p:.2g}")
    return table
