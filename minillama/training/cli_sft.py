"""`minillama sft`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.errors import UsageError
from minillama.training.cli import INTERRUPTED
from minillama.training.options import (
    BatchSizeOption,
    DeviceOption,
    EpochsOption,
    LoraAlphaOption,
    LoraOption,
    LrOption,
    MicroBatchOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    PackingOption,
    RecomputeOption,
    ResumeOption,
    SaveEveryOption,
    SeedOption,
    SeqLenOption,
    TemplateOption,
    TensorBoardOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from minillama.training.finetune import Encoded, Job
    from minillama.training.loop import Progress
    from minillama.training.run_folder import RunFolder


def sft(
    model: ModelOption,
    out: OutOption,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="A .jsonl file of dialogues (messages, Alpaca's, hh-rlhf's), miniature or hh-rlhf.",
        ),
    ] = "miniature",
    template: TemplateOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    seq_len: SeqLenOption = None,
    lr: LrOption = None,
    packing: PackingOption = "packed",
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
    """Finetune a model on dialogues: it learns what the assistant says. The same command again goes on."""
    from minillama.backend import resolve_device
    from minillama.data.dialogues import find_dialogues
    from minillama.training import finetune as stage
    from minillama.training.distributed import connected
    from minillama.training.run_folder import RunFolder

    folder = RunFolder(out)
    check_flags("sft", folder, resume, overwrite)
    where = resolve_device(device)
    with connected(where) as comm:
        job = stage.job(
            model,
            find_dialogues(data, seed),
            template=template,
            epochs=epochs,
            batch_size=batch_size,
            size=seq_len,
            lr=lr,
            packing=packing,
            lora=lora,
            lora_alpha=lora_alpha,
            rows=micro_batch,
            threads=threads,
            recompute=recompute,
            save_every=save_every,
            tensorboard=tensorboard,
            seed=seed,
            device=where,
        )
        progress, data_read = stage.finetune(job, folder, comm, overwrite)
        if comm.rank == 0:
            report(folder, job, progress, data_read)
    if not folder.result():
        raise typer.Exit(INTERRUPTED)


def check_flags(command: str, folder: RunFolder, resume: bool, overwrite: bool) -> None:
    """Raise UsageError where --resume and --overwrite do not fit each other or the folder."""
    if resume and overwrite:
        raise UsageError(f"{command}: expected either --resume or --overwrite, found both")
    if resume and not folder.exists():
        raise UsageError(f"{folder.path}: expected a run to go on with, found none")


def report(folder: RunFolder, job: Job, progress: Progress, data: Encoded | None) -> None:
    """A table of what came out, and an answer; or how to go on."""
    from rich.console import Console
    from rich.table import Table

    if data is None:
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
    if data is not None:
        table.add_row("dialogues", f"{len(data.train):,}")
    table.add_row("steps", f"{progress.step:,}")
    for name, value in progress.validation.items():
        table.add_row(f"held-out {name}", f"{value:.4f}")
    table.add_row("time", f"{progress.seconds:.1f} s")
    Console(highlight=False).print(table)
    for notice in data.notices() if data is not None else ():
        print(notice, file=sys.stderr)
    if progress.sample:
        print(f"\n{progress.sample}")
