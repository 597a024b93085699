"""`minillama distill`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from minillama.alignment.cli_gatt import read_lines
from minillama.errors import UsageError
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


def distill(
    model: ModelOption,
    out: OutOption,
    safety: Annotated[str, typer.Option("--safety", metavar="MODEL", help="The safety reward model.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="SOURCE", help="A .jsonl file of adversarial prompts, or miniature:N of its unsafe ones."
        ),
    ] = "miniature:1000",
    preprompts: Annotated[
        Path | None,
        typer.Option(
            "--preprompts", metavar="FILE", help="One a line: how to ask for safe answers.", show_default="built-in"
        ),
    ] = None,
    put: Annotated[
        str,
        typer.Option("--put", metavar="prefix|system", help="A preprompt as the beginning of the request, or apart."),
    ] = "prefix",
    gate: Annotated[
        bool,
        typer.Option("--gate/--no-gate", help="Learn only answers that the safety model scores higher than before."),
    ] = True,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="SOURCE", help="Dialogues to train on beside: what shall not be forgotten."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", help="Of the sampled answers.")] = 0.7,
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
    """Safety context distillation: learn, without a preprompt, the safe answers that a preprompt asks for."""
    from minillama.alignment import distillation
    from minillama.alignment.ppo_prompts import MiniaturePrompts, find_prompts
    from minillama.alignment.rollout import Chatter
    from minillama.alignment.scorer import Scorer
    from minillama.backend import resolve_device
    from minillama.data.dialogues import DialogueSource, GeneratedDialogues, MixedDialogues, find_dialogues
    from minillama.generate import Sampling
    from minillama.tokenizer.atomic import write_bytes
    from minillama.training import finetune as stage
    from minillama.training.distributed import connected
    from minillama.training.pretrain import load_initial
    from minillama.training.run_folder import RunFolder

    folder = RunFolder(out)
    check_flags("distill", folder, resume, overwrite)
    distillation.check_put(put)
    sampling = Sampling(temperature)
    where = resolve_device(device)
    prompts = find_prompts(data, seed)
    miniature = isinstance(prompts, MiniaturePrompts)
    if isinstance(prompts, MiniaturePrompts):
        prompts = MiniaturePrompts(prompts.count, seed, {"unsafe": 1.0})
    lines = read_lines(preprompts) if preprompts else distillation.PREPROMPTS["miniature" if miniature else "general"]
    with connected(where) as comm:
        llama, tokenizer, own = load_initial(model, where)
        chatter = Chatter(llama, tokenizer, stage.chat_template(template, own, tokenizer), max_new_tokens)
        scorer = Scorer.load(safety, threads=threads, device=where)
        inputs: dict[str, Any] = {
            "prompts": prompts.identity(),
            "safety": scorer.identity(),
            "preprompts": list(lines),
            "put": put,
            "gate": gate,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }

        def records() -> Iterator[dict[str, Any]]:
            asked = list(prompts.prompts())
            found = distillation.distil(
                chatter, asked, lines, scorer, put=put, sampling=sampling, seed=seed, progress="sampling"
            )
            learned = distillation.kept(found, gate)
            counts = {**distillation.counts(found), "learned": len(learned)}
            write_bytes(out / "sampling.json", (json.dumps(counts, indent=1) + "\n").encode())
            print(", ".join(f"{name}: {count:,}" for name, count in counts.items()), file=sys.stderr)
            if not learned:
                raise UsageError("the gate: expected answers that a preprompt makes safer, found none")
            return distillation.records(learned)

        source: DialogueSource = GeneratedDialogues(out / "dialogues.jsonl", inputs, records)
        if replay is not None:
            source = MixedDialogues(source, find_dialogues(replay, seed))
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
            stage="distill",
        )
        progress, data_read = stage.finetune(job, folder, comm, overwrite)
        if comm.rank == 0:
            report(folder, job, progress, data_read)
    if not folder.result():
        raise typer.Exit(INTERRUPTED)
