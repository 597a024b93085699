"""`minillama gatt`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from minillama.errors import MinillamaError, UsageError
from minillama.training.cli import INTERRUPTED
from minillama.training.cli_sft import check_flags, report
from minillama.training.options import (
    BatchSizeOption,
    DeviceOption,
    EpochsOption,
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
    SeqLenOption,
    TemplateOption,
    ThreadsOption,
)


def gatt(
    model: ModelOption,
    out: OutOption,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="Whose requests are asked: miniature, miniature:N, or a .jsonl file of dialogues of several turns.",
        ),
    ] = "miniature:250",
    instructions: Annotated[
        Path | None,
        typer.Option("--instructions", metavar="FILE", help="One a line, for a .jsonl file: what is to be remembered."),
    ] = None,
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=2, help="Of a dialogue, at most.")] = 20,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="SOURCE", help="Dialogues to train on beside: what shall not be forgotten."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", help="Of the sampled answers.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of an answer.")] = 64,
    template: TemplateOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    seq_len: SeqLenOption = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", help="Learning rate at its peak.", show_default="half of sft's"),
    ] = None,
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
    """Ghost Attention: teach a chat model that an instruction of the first turn holds for all. Samples, then trains."""
    from minillama.alignment import ghost_attention
    from minillama.alignment.rollout import Chatter
    from minillama.backend import resolve_device
    from minillama.data.dialogues import (
        DialogueSource,
        GeneratedDialogues,
        MiniatureDialogues,
        MixedDialogues,
        find_dialogues,
    )
    from minillama.generate import Sampling
    from minillama.training import finetune as stage
    from minillama.training.distributed import connected
    from minillama.training.pretrain import load_initial
    from minillama.training.run_folder import RunFolder

    folder = RunFolder(out)
    check_flags("gatt", folder, resume, overwrite)
    where = resolve_device(device)
    asked = find_dialogues(data, seed)
    if isinstance(asked, MiniatureDialogues) == (instructions is not None):
        raise UsageError("gatt: a .jsonl file needs --instructions FILE, and the miniature has its own")
    sampling = Sampling(temperature)
    if isinstance(asked, MiniatureDialogues):
        requests, said = ghost_attention.miniature_requests(asked.count, turns, seed)
    else:
        assert instructions is not None
        requests, said = ghost_attention.requests_of(asked, read_lines(instructions), turns, seed)
    inputs: dict[str, Any] = {
        "requests": len(requests),
        "sha256": hashlib.sha256(json.dumps([requests, said]).encode()).hexdigest(),
        "turns": turns,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    with connected(where) as comm:
        llama, tokenizer, own = load_initial(model, where)
        chatter = Chatter(llama, tokenizer, stage.chat_template(template, own, tokenizer), max_new_tokens)

        def records() -> Any:
            dialogues = ghost_attention.ghost_dialogues(
                chatter, requests, said, sampling=sampling, seed=seed, progress="sampling"
            )
            return ghost_attention.records(dialogues, seed)

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
            lr=stage.recipe(llama.config, lora is not None).lr / 2 if lr is None else lr,  # it is a second finetuning
            lora=lora,
            lora_alpha=lora_alpha,
            rows=micro_batch,
            threads=threads,
            recompute=recompute,
            save_every=save_every,
            seed=seed,
            device=where,
            stage="gatt",
        )
        progress, data_read = stage.finetune(job, folder, comm, overwrite)
        if comm.rank == 0:
            report(folder, job, progress, data_read)
    if not folder.result():
        raise typer.Exit(INTERRUPTED)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises MinillamaError where there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise MinillamaError(f"{path}: expected UTF-8 text, found something else at byte {error.start}") from None
    if not lines:
        raise MinillamaError(f"{path}: expected an instruction a line, found none")
    return lines
