"""`minillama ppo`."""

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
    SeedOption,
    TemplateOption,
    TensorBoardOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from minillama.alignment.ppo import Job
    from minillama.alignment.ppo_prompts import Prompts
    from minillama.alignment.ppo_trainer import Progress
    from minillama.training.run_folder import RunFolder


def ppo(
    model: ModelOption,
    out: OutOption,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="MODEL", help="The helpfulness reward model.", show_default=False)
    ] = None,
    safety: Annotated[
        str | None,
        typer.Option(
            "--safety", metavar="MODEL", help="The safety reward model; one of the two is needed.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option("--data", metavar="SOURCE", help="A .jsonl file of prompts or dialogues, miniature or hh-rlhf."),
    ] = "miniature",
    template: TemplateOption = None,
    iterations: Annotated[
        int | None, typer.Option("--iterations", metavar="N", min=1, help="At most.", show_default="200")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="B", min=1, help="Answers an iteration.", show_default="512; small: 64"),
    ] = None,
    minibatch: Annotated[
        int | None,
        typer.Option("--minibatch", metavar="B", min=1, help="Answers an update.", show_default="64; small: 16"),
    ] = None,
    answers: Annotated[
        int | None,
        typer.Option(
            "--answers",
            metavar="K",
            min=1,
            help="Answers of an iteration to the same prompt, compared with each other.",
            show_default="1",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="Times to use a batch.", show_default="1")
    ] = None,
    value_warmup: Annotated[
        int | None,
        typer.Option(
            "--value-warmup",
            metavar="N",
            min=0,
            help="Iterations at first in which the value model alone learns.",
            show_default="0",
        ),
    ] = None,
    own_scales: Annotated[
        bool | None,
        typer.Option(
            "--own-scales", help="Whiten the scores of the two reward models apart, not together.", show_default="off"
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option("--beta", metavar="X", help="What a nat of KL costs.", show_default="0.01")
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option("--clip", metavar="X", help="How far ratios and values may move.", show_default="0.2"),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", help="Learning rate, constant.", show_default="1e-6 · 4096 / width"),
    ] = None,
    value_lr: Annotated[
        float | None,
        typer.Option("--value-lr", metavar="X", help="Of the value model.", show_default="ten times --lr"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Of an answer.", show_default="128"),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="X", help="Divides all logits, those of the losses too.")
    ] = 1.0,
    kl_limit: Annotated[
        float | None,
        typer.Option("--kl-limit", metavar="X", help="Stop where the mean KL is above.", show_default="none"),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            metavar="N",
            min=1,
            help="Stop after N validations in a row without a better reward.",
            show_default="never",
        ),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option("--validate-every", metavar="N", min=1, help="Iterations.", show_default="a tenth of all"),
    ] = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    micro_batch: MicroBatchOption = None,
    threads: ThreadsOption = None,
    recompute: RecomputeOption = False,
    save_every: Annotated[
        int, typer.Option("--save-every", metavar="N", min=1, help="Iterations between checkpoints.")
    ] = 1,
    tensorboard: TensorBoardOption = False,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
) -> None:
    """Make a chat model's answers score higher, by PPO. The same command again goes on."""
    from minillama.alignment import ppo as stage
    from minillama.alignment.ppo_prompts import PPO_MIXTURE, find_prompts
    from minillama.alignment.ppo_trainer import How
    from minillama.backend import resolve_device
    from minillama.training.run_folder import RunFolder

    folder = RunFolder(out)
    check_flags("ppo", folder, resume, overwrite)
    job = stage.job(
        model,
        find_prompts(data, seed, safety is not None, PPO_MIXTURE),
        helpfulness=reward,
        safety=safety,
        template=template,
        lora=lora,
        lora_alpha=lora_alpha,
        seed=seed,
        device=resolve_device(device),
        how=How(threads, micro_batch, recompute, save_every, tensorboard=tensorboard),
        iterations=iterations,
        batch_size=batch_size,
        minibatch=minibatch,
        answers=answers,
        epochs=epochs,
        value_warmup=value_warmup,
        own_scales=own_scales,
        beta=beta,
        clip=clip,
        lr=lr,
        value_lr=value_lr,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        kl_limit=kl_limit,
        patience=patience,
        validate_every=validate_every,
    )
    progress, prompts = stage.train_ppo(job, folder, overwrite)
    _report(folder, job, progress, prompts)
    if not folder.result():
        raise typer.Exit(INTERRUPTED)


def _report(folder: RunFolder, job: Job, progress: Progress, prompts: Prompts | None) -> None:
    """A table of what came out, and an answer; or how to go on."""
    from rich.console import Console
    from rich.table import Table

    if prompts is None:
        print(f"{folder.path}: this run has ended already (--overwrite begins it again)", file=sys.stderr)
    elif not folder.result():
        print(
            f"{folder.path}: interrupted after iteration {progress.step}, and saved; the same command goes on from "
            "there",
            file=sys.stderr,
        )
        return
    table = Table(title=str(folder.path), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", min_width=15)
    table.add_column(justify="right")
    trained = sum(p.size for p in job.models.policy.trained.values())
    table.add_row("trained", f"{trained:,} of {job.models.policy.config.param_count():,}")
    if prompts is not None:
        table.add_row("prompts", f"{len(prompts.train):,}")
    table.add_row("iterations", f"{progress.step:,}{' (stopped)' if progress.stopped else ''}")
    if progress.best_reward is not None:
        table.add_row("best, after", f"{progress.best_step:,}")
        table.add_row("held-out reward", f"{progress.best_reward:+.3f}")
    for name in ("score", "kl", "answer_length", "finished"):
        if name in progress.validation:
            table.add_row(f"last held-out {name.replace('_', ' ')}", f"{progress.validation[name]:.3f}")
    table.add_row("time", f"{progress.seconds:.1f} s")
    Console(highlight=False).print(table)
    for notice in prompts.notices() if prompts is not None else ():
        print(notice, file=sys.stderr)
    if progress.sample:
        print(f"\n{progress.sample}")
