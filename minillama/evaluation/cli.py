"""`minillama evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.errors import MinillamaError, UsageError
from minillama.training.options import DeviceOption

if TYPE_CHECKING:
    from minillama.evaluation.statistics import Estimate


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint in any known format, or a name.", show_default=False),
    ],
    count: Annotated[int, typer.Option("--count", metavar="N", min=2, help="Conversations of each kind.")] = 100,
    turns: Annotated[
        int, typer.Option("--turns", metavar="T", min=0, help="Of a conversation under an instruction; 0: none.")
    ] = 20,
    reward: Annotated[
        str | None,
        typer.Option("--reward", metavar="MODEL", help="A helpfulness reward model that scores, too."),
    ] = None,
    safety: Annotated[
        str | None, typer.Option("--safety", metavar="MODEL", help="A safety reward model that scores, too.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="MODEL", help="Measure the KL divergence from this model.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", min=0, help="Of the answers; the requests are always the same.")
    ] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers and all answers to a file.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Judge a model's answers in the miniature world: how helpful, how safe, how obedient. Requests are held out."""
    from minillama.alignment.rollout import Chatter
    from minillama.alignment.scorer import Rewards, Scorer
    from minillama.backend import resolve_device
    from minillama.evaluation import miniature, record
    from minillama.training.pretrain import load_initial

    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise UsageError(f"{json_file}: expected a file in a folder that is there")
    where = resolve_device(device)
    llama, tokenizer, template = load_initial(model, where)
    if llama.config.head is not None:
        raise MinillamaError(f"{model}: expected a model that writes text, found a reward model, which scores it")
    if template is None:
        asked = miniature.held_out("helpful", count)
        judged = miniature.base_judged(llama, tokenizer, asked, seed=seed, progress="helpful")
        found = record.Evaluation(model, count, seed, base=True, measures={"helpfulness": judged.helpfulness()})
        print(
            f"{model} has no chat template: a base model, asked after {miniature.SHOTS} examples; nothing but its "
            "helpfulness can be judged",
            file=sys.stderr,
        )
    else:
        scorers = [Scorer.load(name, device=where) if name else None for name in (reward, safety)]
        found = record.evaluate(
            Chatter(llama, tokenizer, template),
            count,
            turns,
            seed,
            name=model,
            rewards=Rewards(*scorers) if any(scorers) else None,
            reference=load_initial(reference, where)[0] if reference else None,
        )
    show(model, count, found.measures)
    if json_file is not None:
        found.save(json_file)


def show(model: str, count: int, found: dict[str, Estimate]) -> None:
    """A table of the measures."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    of = {
        "helpfulness": "of harmless requests",
        "violations": "of unsafe requests",
        "false refusals": "of harmless requests that sound unsafe",
        "words": "of an answer to a harmless request",
        "reward": "of answers of all kinds, by the reward models",
        "KL": "nats an answer, from the reference",
    }
    title = escape(f"{model}, {count} conversations of each kind")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for name, estimate in found.items():
        told = of.get(name, "of an instruction given in turn 1")
        table.add_row(name, f"{estimate.mean:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}", told)
    Console(highlight=False).print(table)
