"""`minillama pipeline`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from minillama.errors import UsageError
from minillama.training.options import SeedOption, ThreadsOption


def pipeline(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where all models and measurements go.")],
    preset: Annotated[
        str, typer.Option("--preset", metavar="mini|small|base", help="The size: mini takes minutes on a laptop.")
    ] = "mini",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="A base model that is there.", show_default="pretrained first"),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="STAGE", help="Stop after this one.", show_default="the last"),
    ] = None,
    show: Annotated[bool, typer.Option("--plan", help="Show the commands, and run none.")] = False,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
) -> None:
    """From nothing to a chat model, by all of Llama 2's stages. The same command again goes on where it was stopped.

    Ends with a table of what each stage came to, FOLDER/results.json and FOLDER/report.html.
    """
    from minillama.pipeline import plan, report, results, runner

    stages = plan.stages(preset, seed, base)
    if until is not None:
        names = [stage.name for stage in stages]
        if until not in names:
            raise UsageError(f"--until {until!r}: expected one of {', '.join(names)}")
        stages = stages[: names.index(until) + 1]
    if show:
        for stage in stages:
            print(shlex.join(["minillama", *stage.arguments(out)]))
        return
    try:
        runner.run(stages, out, threads)
    except typer.Exit:
        print(f"{out}: interrupted; the same command goes on from there", file=sys.stderr)
        raise
    if until is not None:
        return
    found = results.collect(out)
    found.save(out / "results.json")
    page = report.write(found, out)
    report.show(found, str(out))
    print(f"{page}: the same with curves", file=sys.stderr)
