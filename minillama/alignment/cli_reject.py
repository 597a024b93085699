"""`minillama reject`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from minillama.training.cli import INTERRUPTED
from minillama.training.cli_sft import check_flags, report
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
    RecomputeOption,
    ResumeOption,
    SaveEveryOption,
    SeedOption,
    SeqLenOption,
    TemplateOption,
    ThreadsOption,
)


def reject(
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
        typer.Option(
            "--data", metavar="SOURCE", help="A .jsonl file of prompts or dialogues, miniature, miniature:N or hh-rlhf."
        ),
    ] = "miniature:1000",
    samples: Annotated[int, typer.Option("--samples", metavar="K", min=1, help="Answers to each prompt.")] = 8,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature",
            metavar="X",
            help="Of the answers; of several, the one whose best answers score highest on a few prompts is taken.",
            show_default="1",
        ),
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option("--pool", metavar="FILE", help="Of the round before: its FOLDER/pool.jsonl.", show_default=False),
    ] = None,
    pick: Annotated[
        str, typer.Option("--pick", metavar="best|random", help="Which answer is learned; random is the control.")
    ] = "best",
    replay: Annotated[
        str | None,
        typer.Option(
            "--replay",
            metavar="SOURCE",
            help="Dialogues to train on beside, that they be not forgotten: a .jsonl file, miniature:N, or harmless:N, "
            "the miniature's short and harmless ones.",
            show_default=False,
        ),
    ] = None,
    replay_seed: Annotated[
        int | None,
        typer.Option(
            "--replay-seed",
            metavar="N",
            help="Of the miniature's replayed dialogues: the finetuning's, for the ones it has seen.",
            show_default="the seed",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of an answer.")] = 128,
    template: TemplateOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    seq_len: SeqLenOption = None,
    lr: LrOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    micro_batch: MicroBatchOption = None,
    threads: ThreadsOption = None,
    recompute: RecomputeOption = False,
    save_every: SaveEveryOption = None,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
) -> None:
    """A round of rejection sampling: of K answers to a prompt, learn the one with the highest reward.

    The round's pool, with all of the round before, is FOLDER/pool.jsonl.
    """
    from minillama.alignment import rejection
    from minillama.alignment.ppo_prompts import find_prompts
    from minillama.alignment.rollout import Chatter
    from minillama.alignment.scorer import Rewards, Scorer
    from minillama.backend import resolve_device
    from minillama.data.dialogues import DialogueSource, GeneratedDialogues, MixedDialogues, find_dialogues
    from minillama.data.sources import file_sha256
    from minillama.generate import Sampling
    from minillama.tokenizer.atomic import write_bytes
    from minillama.training import finetune as stage
    from minillama.training.distributed import connected
    from minillama.training.pretrain import load_initial
    from minillama.training.run_folder import RunFolder

    folder = RunFolder(out)
    check_flags("reject", folder, resume, overwrite)
    rejection.check_pick(pick, pool is not None)
    temperatures = temperature or [1.0]
    for t in temperatures:
        Sampling(t)
    where = resolve_device(device)
    earlier = rejection.Pool.load(pool) if pool else None
    prompts = find_prompts(data, seed, safety is not None)
    with connected(where) as comm:
        llama, tokenizer, own = load_initial(model, where)
        chatter = Chatter(llama, tokenizer, stage.chat_template(template, own, tokenizer), max_new_tokens)
        scorers = [Scorer.load(name, threads=threads, device=where) if name else None for name in (reward, safety)]
        rewards = Rewards(*scorers)
        inputs: dict[str, Any] = {
            "prompts": prompts.identity(),
            "rewards": rewards.identity(),
            "pool": file_sha256(pool) if pool else None,
            "pick": pick,
            "samples": samples,
            "temperatures": temperatures,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }

        def records() -> Iterator[dict[str, Any]]:
            found = rejection.one_round(
                chatter,
                prompts.prompts(),
                rewards,
                samples,
                temperatures,
                pick=pick,
                earlier=earlier,
                seed=seed,
                progress="sampling",
            )
            if found.pool is not None:
                found.pool.save(out / "pool.jsonl")
            summary = found.summary()
            write_bytes(out / "sampling.json", (json.dumps(summary, indent=1) + "\n").encode())
            for name, value in summary.items():
                if isinstance(value, int | float):
                    print(f"{name}: {value:,.4g}", file=sys.stderr)
            return rejection.records(found.chosen)

        source: DialogueSource = GeneratedDialogues(out / "dialogues.jsonl", inputs, records)
        if replay is not None:
            source = MixedDialogues(source, find_dialogues(replay, seed if replay_seed is None else replay_seed))
        job = stage.job(
            model,
            source,
            template=template,
            epochs=epochs,
            batch_size=batch_size,
            size=seq_len,
            lr=lr,
            lora=lora,
            lora_alpha=lora_alpha,
            rows=micro_batch,
            threads=threads,
            recompute=recompute,
            save_every=save_every,
            seed=seed,
            device=where,
            stage="reject",
        )
        progress, data_read = stage.finetune(job, folder, comm, overwrite)
        if comm.rank == 0:
            report(folder, job, progress, data_read)
    if not folder.result():
        raise typer.Exit(INTERRUPTED)
