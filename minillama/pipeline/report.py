"""What a pipeline came to, for people: a table in the terminal, and a page with curves that needs nothing else."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from minillama.alignment.preferences import RATINGS
from minillama.pipeline.plan import LAST
from minillama.pipeline.results import Results
from minillama.tokenizer.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# column: the measure, and how it is written
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "helpful": ("helpfulness", lambda x: f"{x:.3f}"),
    "violations": ("violations", lambda x: f"{100 * x:.1f} %"),
    "false ref.": ("false refusals", lambda x: f"{100 * x:.1f} %"),
    "wins": ("win rate", lambda x: f"{100 * x:.0f} %"),
    "KL": ("KL", lambda x: f"{x:.1f}"),
    "words": ("words", lambda x: f"{x:.1f}"),
    "reward": ("reward", lambda x: f"{x:+.2f}"),
    "obeys": ("obedience, turn 10", lambda x: f"{100 * x:.0f} %"),
}
TOLD = (
    "helpful: the judge's score of answers to harmless requests · violations: of unsafe requests · false ref.: of "
    "harmless requests that sound unsafe · wins: against sft, on both · KL: nats an answer, from sft · words: of an "
    "answer · reward: by the last reward models · obeys: an instruction of turn 1, at turn 10"
)


def cells(found: Results) -> list[list[str]]:
    """The table of models: a name, then COLUMNS; empty where it was not measured."""
    rows = []
    for row in found.rows:
        of = {column: row.measures.get(measure) for column, (measure, _) in COLUMNS.items()}
        rows.append([row.name, *("" if x is None else COLUMNS[column][1](x.mean) for column, x in of.items())])
    return rows


def accuracies(found: Results) -> list[list[str]]:
    """The table of reward models: accuracy on held-out pairs, of all and by rating, and the calibration error."""
    rows = []
    for name, measures in found.reward_models.items():
        shares = [measures.get(x) for x in ("accuracy", *(f"accuracy, {rating}" for rating in RATINGS))]
        rows.append(
            [
                name,
                f"{measures.get('pairs', 0):,.0f}",
                *("" if x is None else f"{100 * x:.0f} %" for x in shares),
                f"{measures.get('calibration_error', math.nan):.3f}",
            ]
        )
    return rows


ACCURACIES = ("pairs", "all", "significant", "better", "slightly", "unsure", "calib. error")


def show(found: Results, title: str) -> None:
    """Print both tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for name, header, rows in (
        (title, tuple(COLUMNS), cells(found)),
        ("reward models: accuracy on pairs held out, by rating", ACCURACIES, accuracies(found)),
    ):
        table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for column in header:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print(TOLD, style="dim")
    console.print(f"{found.seconds:,.0f} s in all, {found.peak / 1e9:.2f} GB of memory at most")


def write(found: Results, out: Path) -> Path:
    """Write the page to `out`/report.html. Raises MinillamaError."""
    page = out / "report.html"
    longest = sorted(found.stages.items(), key=lambda stage: -stage[1])[:8]
    body = [
        f"<h1>{html.escape(out.name)}: from nothing to a chat model</h1>",
        f"<p>{found.seconds:,.0f} seconds in all, {found.peak / 1e9:.2f} GB of memory at most.</p>",
        _table(("", *COLUMNS), cells(found)),
        f"<p class=small>{html.escape(TOLD)}</p>",
        *_curves(found, out),
        "<h2>Reward models</h2>",
        _table(("", *ACCURACIES), accuracies(found)),
        "<h2>Where the time goes</h2>",
        _table(("stage", "seconds"), [[name, f"{seconds:.0f}"] for name, seconds in longest]),
    ]
    write_bytes(page, _PAGE.format(title=html.escape(out.name), body="\n".join(body)).encode())
    return page


def _table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    def line(tag: str, row: tuple[str, ...] | list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return f"<div class=wide><table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table></div>"


def _curves(found: Results, out: Path) -> list[str]:
    """Helpfulness against violations, stage by stage, and PPO's curves; a note where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ["<p>No curves: matplotlib is not installed (pip install matplotlib).</p>"]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    safe, ppo = figure.subplots(1, 2)
    _stages(found, safe)
    _ppo(out, ppo)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    return [drawing.getvalue()[drawing.getvalue().index("<svg") :]]  # without the head of an XML file


def _stages(found: Results, axes: Axes) -> None:
    chat = [row for row in found.rows if "violations" in row.measures]
    places = range(len(chat))
    for measure, color in (("helpfulness", "#0072b2"), ("violations", "#d55e00"), ("false refusals", "#a87900")):
        of = [row.measures[measure] for row in chat]
        low, high = ([abs(getattr(x, end) - x.mean) for x in of] for end in ("low", "high"))
        axes.errorbar(places, [x.mean for x in of], [low, high], color=color, marker="o", label=measure, capsize=2)
    axes.set_xticks(places, [row.name for row in chat], rotation=45, ha="right")
    axes.set(ylabel="share, or score from 0 to 1", ylim=(0, 1), title="After each stage, by the judge")
    axes.legend(frameon=False)


def _ppo(out: Path, axes: Axes) -> None:
    from minillama.alignment.ppo_log import read_log

    log = read_log(out / LAST)
    axes.plot(log.training["step"], log.training["score"], color="#0072b2", alpha=0.4, label="score, training")
    axes.plot(log.validation["step"], log.validation["score"], color="#0072b2", marker="o", label="score, held out")
    axes.plot(log.training["step"], log.training["kl"], color="#d55e00", label="KL (nats an answer)")
    axes.set(xlabel="iteration", title="PPO")
    axes.legend(frameon=False)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: #fff }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }} .wide {{ overflow-x: auto }}
th, td {{ padding: .25rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }} .small {{ font-size: .85rem; color: #555 }}
svg {{ max-width: 100%; height: auto }}
</style></head><body>
{body}
</body></html>
"""
