"""`minillama pretrain`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.errors import UsageError

if TYPE_CHECKING:
    from minillama.training.loop import Progress
    from minillama.training.pretrain import Job
    from minillama.training.run_folder import RunFolder

INTERRUPTED = 130  # as a shell says it of Ctrl-C


def pretrain(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the run and its model go.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="A .txt or .jsonl file, a folder of them, prepared data, or a name: miniature, tinystories, …",
        ),
    ] = "miniature",
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help="Size and recipe: mini, small, base, …", show_default="mini"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", metavar="L", min=1, help="Size on one dial instead; mini is 4.")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option("--init-from", metavar="MODEL", help="Go on from this model's weights and tokenizer.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="MODEL", help="A .model file or a checkpoint.", show_default="trained"),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", metavar="V", help="Of a tokenizer to train.", show_default="the preset's"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Updates.", show_default="the recipe's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="B", min=1, help="Sequences an update, of all ranks together.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", metavar="T", min=1, help="Tokens of a sequence.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="X", help="Learning rate at its peak.")] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", metavar="N", min=0, help="Updates until the peak.")] = None,
    weight_decay: Annotated[float, typer.Option("--weight-decay", metavar="X", help="Of the matrices.")] = 0.1,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", metavar="B", min=1, help="Sequences a thread runs at once.", show_default="fit the cache"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Of this process.", show_default="all cores")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Keep less for the backward pass: less memory, a third more work.")
    ] = False,
    validate_every: Annotated[
        int | None, typer.Option("--validate-every", metavar="N", min=1, help="Updates.", show_default="a tenth of all")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option("--save-every", metavar="N", min=1, help="Updates.", show_default="a tenth of all")
    ] = None,
    keep_last: Annotated[
        int, typer.Option("--keep-last", metavar="N", min=1, help="Checkpoints to keep besides the best.")
    ] = 3,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to FOLDER/tensorboard too.")] = False,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What samples begin with.")] = "",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of weights and order: the same seed, the same model.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with a run; an error where FOLDER holds none.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run in FOLDER and begin again.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="cpu|cuda", help="Where to run.", show_default="cuda if usable")
    ] = None,
) -> None:
    """Train a language model on text, from tokenizer to sample. The same command again goes on where it was stopped."""
    from minillama import config as shapes
    from minillama.backend import resolve_device
    from minillama.data import TokenData, is_prepared
    from minillama.tokenizer.cli import load as load_tokenizer
    from minillama.training import pretrain as stage
    from minillama.training.distributed import connected
    from minillama.training.loop import Options
    from minillama.training.run_folder import RunFolder

    given = {"--preset": preset, "--depth": depth, "--init-from": init_from}
    sizes = [name for name, value in given.items() if value is not None]
    if len(sizes) > 1:
        raise UsageError(f"pretrain: expected one of {', '.join(given)}, found {' and '.join(sizes)}")
    if init_from is not None and tokenizer is not None:
        raise UsageError("pretrain: --init-from brings its tokenizer: expected no --tokenizer")
    if resume and overwrite:
        raise UsageError("pretrain: expected either --resume or --overwrite, found both")
    folder = RunFolder(out)
    if resume and not folder.exists():
        raise UsageError(f"{out}: expected a run to go on with, found none")
    where = resolve_device(device)
    with connected(where) as comm:
        initial, vocabulary = None, None
        if init_from is not None:
            initial, vocabulary, _ = stage.load_initial(init_from, where)
        elif tokenizer is not None:
            vocabulary = load_tokenizer(tokenizer)
        elif is_prepared(data):
            vocabulary = TokenData(data).tokenizer
        if vocabulary is not None and vocab_size not in (None, vocabulary.vocab_size):
            raise UsageError(
                f"--vocab-size {vocab_size}: the tokenizer that is there has {vocabulary.vocab_size} tokens"
            )
        preset = "mini" if preset is None and not depth else preset
        config = initial.config if initial else shapes.scaled(depth) if depth else shapes.preset(str(preset))
        recipe = stage.recipe(preset, config).changed(steps, batch_size, seq_len, lr, warmup)
        config = (
            initial.config
            if initial
            else replace(
                config,
                vocab_size=vocabulary.vocab_size if vocabulary else vocab_size or config.vocab_size,
                max_seq_len=max(config.max_seq_len, recipe.seq_len),
            )
        )
        tenth = max(1, recipe.steps // 10)
        options = Options(
            recipe.steps,
            recipe.lr,
            recipe.warmup_steps,
            weight_decay=weight_decay,
            micro_batch=micro_batch or stage.micro_batch(recipe.seq_len),
            threads=threads,
            validate_every=validate_every or tenth,
            save_every=save_every or tenth,
            keep_last=keep_last,
            tensorboard=tensorboard,
        )
        job = stage.Job(config, data, recipe, options, seed, prompt, recompute, vocabulary, initial, where)
        progress, before = stage.pretrain(job, folder, comm, overwrite)
        if comm.rank == 0:
            _report(folder, job, progress, before)
    if progress.step < recipe.steps:
        raise typer.Exit(INTERRUPTED)


def _report(folder: RunFolder, job: Job, progress: Progress, before: bool) -> None:
    """A table of what came out, and a sample; or how to go on."""
    from rich.console import Console
    from rich.table import Table

    if before:
        print(f"{folder.path}: this run has ended already (--overwrite begins it again)", file=sys.stderr)
    if progress.step < job.recipe.steps:
        print(
            f"{folder.path}: interrupted after step {progress.step} of {job.recipe.steps}, and saved; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return
    table = Table(title=str(folder.path), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", min_width=15)
    table.add_column(justify="right")
    table.add_column()
    table.add_row("parameters", f"{job.config.param_count():,}")
    table.add_row("tokens", f"{progress.tokens:,}")
    for name, value in progress.validation.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    if progress.best_step not in (None, progress.step):
        table.add_row("lowest loss", f"{progress.best_loss:.4f}", f"checkpoints/step-{progress.best_step:06d}")
    table.add_row("time", f"{progress.seconds:.1f} s")
    table.add_row("tokens/s", f"{progress.tokens / progress.seconds:,.0f}")
    Console(highlight=False).print(table)
    if progress.sample:
        print(f"\n{progress.sample}")
