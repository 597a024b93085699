"""`minillama exercises ...`: the learner's loop."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.errors import UsageError

if TYPE_CHECKING:
    from minillama.exercises.chapter import Chapter, Exercise

app = typer.Typer(
    name="exercises",
    help="Write the package's functions yourself: check them, get hints, and let real weights run through them.",
    epilog="Start with: minillama exercises status",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ChapterArgument = Annotated[str, typer.Argument(metavar="CHAPTER", help="ch04, ch08, …", show_default=False)]
ExerciseArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[EXERCISE]", help="Its name or number; the next one to do if left out.", show_default=False
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="Your files, if not in exercises, here or in a folder above.", show_default=False),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.callback(invoke_without_command=True)
def _whole(context: typer.Context) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a θ that the terminal does not know is no reason to stop
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog="Example: minillama exercises check ch04")
def check(
    chapter: Annotated[
        str | None,
        typer.Argument(metavar="[CHAPTER]", help="The first that is not solved if left out.", show_default=False),
    ] = None,
    exercise: Annotated[
        str | None,
        typer.Argument(metavar="[EXERCISE]", help="The one to explain, by name or number.", show_default=False),
    ] = None,
    folder: FolderOption = None,
) -> None:
    """Say what is right in a chapter, and explain the first thing that is not."""
    from minillama.exercises.chapter import all_chapters, load_chapter
    from minillama.exercises.report import report
    from minillama.exercises.runner import run_checks
    from minillama.exercises.workspace import find_folder, learner_file

    found = find_folder(folder)
    for of_chapter in [load_chapter(chapter)] if chapter else all_chapters():
        path = learner_file(found, of_chapter)
        verdicts = run_checks(of_chapter, path)
        if chapter or any(verdict.state != "solved" for verdict in verdicts):
            break
    about = of_chapter.find(exercise) if exercise else None
    print(report(of_chapter, path, verdicts, about))
    if any(verdict.state != "solved" for verdict in verdicts if about is None or verdict.name in (about.name, "")):
        raise typer.Exit(1)


@app.command(epilog="Example: minillama exercises status")
def status(folder: FolderOption = None) -> None:
    """Show how far you are, chapter by chapter."""
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console

    from minillama.exercises.chapter import all_chapters
    from minillama.exercises.report import status_table
    from minillama.exercises.runner import run_checks
    from minillama.exercises.workspace import find_folder, learner_file

    found = find_folder(folder)
    chapters = [chapter for chapter in all_chapters() if learner_file(found, chapter).is_file()]
    if not chapters:
        raise UsageError(f"{found}: no exercises there; `minillama exercises reset --folder {found}` writes them")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(lambda chapter: run_checks(chapter, learner_file(found, chapter)), chapters))
    Console().print(status_table(list(zip(chapters, verdicts, strict=True))))


@app.command(epilog="Example: minillama exercises hint ch04 rope")
def hint(chapter: ChapterArgument, exercise: ExerciseArgument = None, folder: FolderOption = None) -> None:
    """Show the next hint for an exercise."""
    from minillama.exercises.chapter import load_chapter
    from minillama.exercises.report import wrap
    from minillama.exercises.workspace import find_folder, hints_shown, note_hints

    of_chapter, found = load_chapter(chapter), find_folder(folder)
    chosen = of_chapter.find(exercise) if exercise else _next_exercise(of_chapter, found)
    if chosen is None:
        print(f"{of_chapter.code} is solved; name an exercise to see its hints.")
        return
    shown = min(hints_shown(found, of_chapter, chosen.name) + 1, len(chosen.hints))
    note_hints(found, of_chapter, chosen.name, shown)
    print(f"{chosen.number} {chosen.name}, hint {shown} of {len(chosen.hints)}:")
    print(wrap(chosen.hints[shown - 1]))
    if shown == len(chosen.hints):
        print(f"\nThat was the last one. A solution:\n  minillama exercises solution {of_chapter.code} {chosen.name}")


@app.command(epilog="Example: minillama exercises solution ch04 rope")
def solution(
    chapter: ChapterArgument, exercise: ExerciseArgument = None, yes: YesOption = False, folder: FolderOption = None
) -> None:
    """Show a solution, after asking."""
    from rich.console import Console
    from rich.syntax import Syntax

    from minillama.exercises.chapter import load_chapter
    from minillama.exercises.skeleton import solution_source
    from minillama.exercises.workspace import find_folder

    of_chapter = load_chapter(chapter)
    chosen = of_chapter.find(exercise) if exercise else _next_exercise(of_chapter, find_folder(folder))
    if chosen is None:
        print(f"{of_chapter.code} is solved; name an exercise to see its solution.")
        return
    if not yes and not _confirm(f"Show the solution of {chosen.number} {chosen.name}?"):
        raise typer.Exit(1)
    source = solution_source(chosen)
    if sys.stdout.isatty():
        Console().print(Syntax(source, "python", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        print(source)
    if chosen.solution.__module__.startswith("minillama.exercises."):
        return
    print(f"\n# minillama runs this very code: {chosen.solution.__module__}")


@app.command(epilog="Example: minillama exercises reset ch04")
def reset(
    chapter: Annotated[
        str | None, typer.Argument(metavar="[CHAPTER]", help="All chapters if left out.", show_default=False)
    ] = None,
    yes: YesOption = False,
    folder: FolderOption = None,
) -> None:
    """Restore a chapter's skeleton; your file is kept beside it."""
    from minillama.exercises import workspace
    from minillama.exercises.chapter import all_chapters, load_chapter

    chapters = [load_chapter(chapter)] if chapter else all_chapters()
    found = workspace.find_folder(folder)
    files = [workspace.learner_file(found, of_chapter) for of_chapter in chapters]
    present = [file.name for file in files if file.exists()]
    if present and not yes and not _confirm(f"Restore {', '.join(present)}? Your work is kept beside."):
        raise typer.Exit(1)
    for of_chapter, file in zip(chapters, files, strict=True):
        kept = workspace.reset(found, of_chapter)
        print(f"{file} is new" + (f"; yours is now {kept.name}" if kept else ""))


@app.command(
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
    epilog='Example: minillama exercises run --with ch04 ch08 -- generate stories260k --prompt "Once upon a time"',
)
def run(
    context: typer.Context,
    chapter: Annotated[str, typer.Option("--with", metavar="CHAPTER…", help="Whose functions to take from you.")],
    folder: FolderOption = None,
) -> None:
    """Run a minillama command with your functions in the place of the package's."""
    from minillama import cli
    from minillama.exercises.chapter import load_chapter
    from minillama.exercises.swap import swapped
    from minillama.exercises.workspace import find_folder

    chapters, command = _split([chapter, *context.args])
    if not command:
        raise UsageError("run: expected a command after --, such as: -- generate stories260k")
    with swapped(find_folder(folder), [load_chapter(name) for name in chapters]) as (yours, unwritten):
        rest = f" · not written yet: {', '.join(unwritten)}" if unwritten else ""
        print(f"your code runs: {', '.join(yours)}{rest}", file=sys.stderr)
        raise typer.Exit(cli.app(command, prog_name="minillama", standalone_mode=False) or 0)


@app.command(hidden=True, epilog="Example: minillama exercises generate exercises")
def generate(folder: Annotated[Path, typer.Argument(help="Where to write, over what is there.")]) -> None:
    """For authors: write all skeletons and their tests from the package and the marked sources."""
    from minillama.exercises import skeleton

    for path in skeleton.write(folder):
        print(path)


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """Chapters, and the command after them; a shell or an outer parser may have taken the -- between."""
    from typer.main import get_group

    from minillama import cli
    from minillama.exercises.chapter import load_chapter

    if "--" in args:
        border = args.index("--")
        return args[:border], args[border + 1 :]
    chapters, commands = [args[0]], get_group(cli.app).commands
    for name in args[1:]:
        if name in commands:  # sft is the topic of a chapter too
            break
        try:
            load_chapter(name)
        except UsageError:
            break
        chapters.append(name)
    return chapters, args[len(chapters) :]


def _next_exercise(chapter: Chapter, folder: Path) -> Exercise | None:
    """The first exercise that is not solved, None when all are."""
    from minillama.exercises.runner import run_checks
    from minillama.exercises.workspace import learner_file

    verdicts = run_checks(chapter, learner_file(folder, chapter))
    states = {verdict.name: verdict.state for verdict in verdicts}
    return next((exercise for exercise in chapter.exercises if states.get(exercise.name) != "solved"), None)


def _confirm(question: str) -> bool:
    """Asks at a terminal. Raises UsageError where nobody can answer."""
    if not _can_answer():
        raise UsageError(f"{question} Nobody is there to answer; say --yes")
    return typer.confirm(question)


def _can_answer() -> bool:
    return sys.stdin.isatty()
