"""`minillama evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minillama.errors import MinillamaError, UsageError
from minillama.training.options import DeviceOption

if TYPE_CHECKING:
    from minillama.alignment.rollout import Chatter
    from minillama.evaluation.statistics import Estimate

TURNS = (1, 5, 10, 20)  # whose obedience is shown, and that of the last


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint in any known format, or a name.", show_default=False),
    ],
    count: Annotated[int, typer.Option("--count", metavar="N", min=2, help="Conversations of each kind.")] = 100,
    turns: Annotated[
        int, typer.Option("--turns", metavar="T", min=1, help="Of a conversation under an instruction.")
    ] = 20,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", min=0, help="Of the answers; the requests are always the same.")
    ] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers to a file too.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Judge a model's answers in the miniature world: how helpful, how safe, how obedient. Requests are held out."""
    from minillama.alignment.rollout import Chatter
    from minillama.backend import resolve_device
    from minillama.evaluation import miniature
    from minillama.tokenizer.atomic import write_bytes
    from minillama.training.pretrain import load_initial

    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise UsageError(f"{json_file}: expected a file in a folder that is there")
    llama, tokenizer, template = load_initial(model, resolve_device(device))
    if llama.config.head is not None:
        raise MinillamaError(f"{model}: expected a model that writes text, found a reward model, which scores it")
    if template is None:
        asked = miniature.held_out("helpful", count)
        judged = miniature.base_judged(llama, tokenizer, asked, seed=seed, progress="helpful")
        found = {"helpfulness": judged.helpfulness()}
        print(
            f"{model} has no chat template: a base model, asked after {miniature.SHOTS} examples; nothing but its "
            "helpfulness can be judged",
            file=sys.stderr,
        )
    else:
        found = measured(Chatter(llama, tokenizer, template), count, turns, seed)
    show(model, count, found)
    if json_file is not None:
        content: dict[str, Any] = {"model": model, "base": template is None, "count": count, "seed": seed}
        content |= {"measures": {name: estimate._asdict() for name, estimate in found.items()}}
        write_bytes(json_file, (json.dumps(content, indent=1) + "\n").encode())


def measured(chatter: Chatter, count: int, turns: int, seed: int) -> dict[str, Estimate]:
    """All that is measured of a chat model: the name of the measure, its mean and interval."""
    from minillama.evaluation import miniature

    helpful, unsafe, borderline = (
        miniature.judged(chatter, miniature.held_out(kind, count), seed=seed, progress=kind)
        for kind in ("helpful", "unsafe", "borderline")
    )
    found = {
        "helpfulness": helpful.helpfulness(),
        "violations": unsafe.share("violation"),
        "false refusals": borderline.share("false_refusal"),
    }
    by_turn = miniature.obedience(chatter, count, turns, seed=seed, progress="personas").by_turn()
    for turn in sorted({turn for turn in TURNS if turn <= turns} | {turns}):
        found[f"obedience, turn {turn}"] = by_turn[turn - 1]
    return found


def show(model: str, count: int, found: dict[str, Estimate]) -> None:
    """A table of the measures."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    of = {
        "helpfulness": "of harmless requests",
        "violations": "of unsafe requests",
        "false refusals": "of harmless requests that sound unsafe",
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
