"""What the chapters of the book use: the package's own source on the page, figures, tables, numbers for the prose, and
what lies beside them in the checkout: results that were measured, runs that `make book` makes.

Needs the `book` extra (matplotlib, IPython); nothing else in the package imports this module.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats

import minillama
from minillama.errors import MinillamaError
from minillama.training.run_folder import RunFolder

# Told apart by people with any kind of colour vision, and at least 3:1 against white. The book's pages replace each by
# a lighter one when the reader chooses dark.
PALETTE = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#00866a",
    "purple": "#a8578b",
    "gold": "#a87900",
    "grey": "#6b7280",
}
# Text and axes, and grid lines: greys that can be read on white and on black, for readers of the bare notebook.
INK = {"ink": "#717681", "faint": "#8b909a"}

_NUMBER = re.compile(r"[<~≈]? ?[-+−±]?[\d,]+(\.\d+)?(e[-+]?\d+)?( ?[%×])?|–?")  # or a dash, where there is none


def use_style() -> None:
    """Set up matplotlib for a chapter: SVG figures, transparent, in the colours of `PALETTE`."""
    set_matplotlib_formats("svg", metadata={"Date": None})
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.facecolor": "none",
            "axes.prop_cycle": cycler(color=list(PALETTE.values())),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "axes.edgecolor": INK["ink"],
            "axes.labelcolor": INK["ink"],
            "axes.titlecolor": INK["ink"],
            "text.color": INK["ink"],
            "xtick.color": INK["ink"],
            "ytick.color": INK["ink"],
            "grid.color": INK["faint"],
            "grid.alpha": 0.3,
            "grid.linewidth": 0.7,
            "lines.linewidth": 2.0,
            "legend.frameon": False,
            "image.cmap": "cividis",
            "font.size": 12.0,
            "mathtext.fontset": "cm",
            "svg.fonttype": "path",  # the same letters on every machine
            "svg.hashsalt": "minillama",  # the same file on every build
        }
    )


def show_source(*objects: Callable[..., Any] | type, docstring: bool = True) -> Markdown:
    """The package's own source of functions or classes, highlighted, with file and lines: what runs is what is shown.

    docstring: False leaves the docstrings out, where the page has just said the same.
    """
    return Markdown("\n\n".join(_source_block(thing, docstring) for thing in objects))


def _source_block(thing: Callable[..., Any] | type, docstring: bool) -> str:
    lines, start = inspect.getsourcelines(thing)
    path = Path(inspect.getfile(inspect.unwrap(thing))).relative_to(Path(minillama.__file__).parents[1]).as_posix()
    code = textwrap.dedent("".join(lines))
    if not docstring:
        code = _without_docstrings(code)
    return f"`{path}`, lines {start}–{start + len(lines) - 1}\n\n```python\n{code.rstrip()}\n```"


def _without_docstrings(code: str) -> str:
    lines = code.splitlines()
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            first = node.body[0]
            dropped |= set(range(first.lineno - 1, first.end_lineno or first.lineno))
    return "\n".join(line for i, line in enumerate(lines) if i not in dropped)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    """A small table of results: columns of numbers right-aligned, text left. Format the numbers before."""
    cells = [[str(value) for value in row] for row in rows]
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(header))]
    rule = ["---:" if right else ":---" for right in numeric]
    return Markdown("\n".join("| " + " | ".join(row) + " |" for row in [list(header), rule, *cells]))


def glue(**values: object) -> None:
    """Store values for the prose: after `glue(error=f"{x:.1e}")`, the text says {glue:text}`error`."""
    for name, value in values.items():
        prefix = "application/papermill.record/"  # the convention of scrapbook and MyST-NB: stored, not displayed
        display(
            {prefix + "text/plain": repr(value)},
            raw=True,
            metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
        )


def find(path: str, made_by: str) -> Path:
    """A file or folder of the checkout, such as "book/results/x.json": in the working folder or one above it, else
    where the package lies. Raises MinillamaError where it is missing, with the command that it is `made_by`.
    """
    for place in (Path.cwd(), *Path.cwd().parents, Path(minillama.__file__).parents[1]):
        if (place / path).exists():
            return place / path
    raise MinillamaError(f"{path}: expected what `{made_by}` makes, found nothing")


def run(name: str = "mini/base") -> RunFolder:
    """The run of that name in `runs`. Raises MinillamaError where it is missing or has not ended."""
    folder = RunFolder(find(f"runs/{name}/run.json", "make book").parent)
    if folder.result() is None:
        raise MinillamaError(f"runs/{name}: expected a run that has ended, found one that has not; `make book` goes on")
    return folder


def read_log(run: RunFolder) -> list[dict[str, Any]]:
    """The records of a run's `log.jsonl`, in order; what they hold is said in `minillama.training.logs`."""
    try:
        return [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise MinillamaError(f"{run.log}: cannot be read ({error}); `make clean book` makes it again") from None
