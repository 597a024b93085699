"""`minillama preferences`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from minillama.errors import UsageError
from minillama.training.options import DeviceOption, SeedOption, TemplateOption


def preferences(
    model: Annotated[
        list[str],
        typer.Option("--model", metavar="MODEL", help="A chat model that answers; may be given again."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .jsonl file to write.")],
    domain: Annotated[
        str, typer.Option("--domain", metavar="helpfulness|safety", help="What is asked, and what is preferred.")
    ] = "helpfulness",
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Prompts to train on.")] = 2000,
    held_out: Annotated[
        float,
        typer.Option("--held-out", metavar="X", min=0, max=0.9, help="Share of more prompts, held out by content."),
    ] = 0.1,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature", metavar="X", help="Of the answers; may be given again.", show_default="0.7, 0.85, 1"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of an answer.")] = 128,
    template: TemplateOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Preferences in the miniature: two answers to each prompt, by any of the models, and which the annotator prefers.

    The file is what `minillama reward` and `minillama dpo` read.
    """
    from rich.console import Console
    from rich.table import Table

    from minillama.alignment import collect
    from minillama.alignment.preferences import RATINGS, save
    from minillama.alignment.rollout import Chatter
    from minillama.backend import resolve_device
    from minillama.training.finetune import chat_template
    from minillama.training.pretrain import load_initial

    if out.exists() and not force:
        raise UsageError(f"{out}: is there already (--force overwrites it)")
    collect.check_domain(domain)
    where = resolve_device(device)
    chatters = []
    for name in model:
        llama, tokenizer, own = load_initial(name, where)
        chatters.append(Chatter(llama, tokenizer, chat_template(template, own, tokenizer), max_new_tokens))
    variants = collect.variants(chatters, temperature or collect.TEMPERATURES)
    collected = collect.collect(variants, domain, count, held_out=held_out, seed=seed, progress="answers")
    save(collected.pairs, out)
    table = Table(title=str(out), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", min_width=28)
    table.add_column(justify="right")
    table.add_row("pairs", f"{len(collected.pairs):,}")
    for rating in RATINGS:
        table.add_row(rating, f"{collected.ratings()[rating]:,}")
    if domain == "safety":
        for which, number in zip(("chosen", "rejected"), collected.unsafe(), strict=True):
            table.add_row(f"{which} answers unsafe", f"{number:,}")
    Console(highlight=False).print(table)
    for notice in collected.notices():
        print(notice, file=sys.stderr)
