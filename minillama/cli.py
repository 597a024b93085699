"""The command line. Text goes to stdout, statistics and progress to stderr; 0 is fine, 1 a failure, 2 wrong use.

Whatever a command needs is imported when it runs, so that `minillama --help` is there at once.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from minillama.alignment.cli_distill import distill
from minillama.alignment.cli_dpo import dpo
from minillama.alignment.cli_gatt import gatt
from minillama.alignment.cli_ppo import ppo
from minillama.alignment.cli_preferences import preferences
from minillama.alignment.cli_reject import reject
from minillama.alignment.cli_reward import reward
from minillama.data.cli import app as data
from minillama.errors import MinillamaError, UsageError
from minillama.evaluation.cli import evaluate
from minillama.exercises.cli import app as exercises
from minillama.pipeline.cli import pipeline
from minillama.tokenizer.cli import app as tokenizers
from minillama.training.cli import pretrain
from minillama.training.cli_plan import plan
from minillama.training.cli_sft import sft

if TYPE_CHECKING:
    from minillama.chat import ChatTemplate
    from minillama.model import Llama
    from minillama.tokenizer import Tokenizer


CTRL_C = 130  # 128 + SIGINT, as a shell says it
ANSWER = 512  # tokens of an answer, unless told otherwise: a small model can repeat itself until the context is full


class OneLineErrors(TyperGroup):
    """The command line as a whole: an error becomes one line and an exit code, `--debug` shows where it came from."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        args.sort(key=lambda argument: argument != "--debug")  # an option of the whole, but wanted at the end
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()  # a reader that has gone is noticed here and not when Python shuts down
        except Exception as error:
            if not standalone_mode or "--debug" in args:
                raise
            code = _report(error)
        if not standalone_mode:
            return code
        if code == CTRL_C:
            print(file=sys.stderr)  # the shell's prompt starts on a line of its own
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    """Say `error` in one line on stderr. Returns the exit code."""
    if isinstance(error, BrokenPipeError):
        return _leave_quietly()
    if isinstance(error, MinillamaError):
        message, code = str(error), 2 if isinstance(error, UsageError) else 1
    elif isinstance(error, typer.TyperException):  # a wrong option or argument
        context = getattr(error, "ctx", None)
        message, code = error.format_message().rstrip("."), 2
        if message and context:
            message += f" (see {context.command_path} --help)"
    elif isinstance(error, MemoryError):
        message, code = f"not enough memory: {error}", 1
    elif isinstance(error, OSError):
        message, code = f"{error.filename or 'input or output'}: {error.strerror or error}", 1
    else:
        message, code = f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1
    if message:  # empty where a group of commands has shown its help instead
        print("minillama:", " ".join(message.split()), file=sys.stderr)
    return code


def _leave_quietly() -> int:
    """Whoever read our output has gone, as `head` does: nothing more to say, not even when Python shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


app = typer.Typer(
    name="minillama",
    cls=OneLineErrors,
    help="Llama 2 from scratch in arrays: load real weights, generate, chat, convert, measure.",
    epilog="Start with: minillama chat smollm2",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A checkpoint in any known format, or a name such as smollm2.", show_default=False
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda", help="Where to run.", show_default="cuda if usable")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same text.", show_default="a new one"),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="T", help="Boldness of the choice among likely tokens; 0 is greedy.")
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="Choose among the fewest tokens whose probabilities reach P."),
]
TopKOption = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Choose among the K most likely tokens.")]
MinPOption = Annotated[
    float | None,
    typer.Option("--min-p", metavar="P", help="Choose among tokens at least P times as likely as the first."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="llama2|chatml", help="For a model without one.", show_default="the model's"),
]
AnswerOption = Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")]


@app.callback(invoke_without_command=True)
def _whole(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
) -> None:
    if version:
        import minillama

        print("minillama", minillama.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog="Examples: minillama info smollm2    minillama info --preset llama2-70b")
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A checkpoint in any known format, or a name.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help="A shape of the family instead of a model: llama2-7b, …"),
    ] = None,
) -> None:
    """What a model is: its sizes, parameters, memory, tokenizer and chat template."""
    from minillama import config, reports

    if (model is None) == (preset is None):
        raise UsageError("info: expected either MODEL or --preset NAME")
    if preset is not None:
        reports.show_config(preset, config.preset(preset))
        return
    from minillama import catalog, weights

    assert model is not None
    path = catalog.resolve(model)
    reports.show_checkpoint(model, path, weights.inspect(path))


@app.command(epilog='Example: minillama generate smollm2 --prompt "The capital of France is" --temperature 0')
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="The text to complete; - reads stdin.")] = "",
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="The text to complete, from a file.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="At most so many.")] = 256,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", metavar="N", min=1, help="Write so many completions, in one batch.")
    ] = 1,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; may be given again.")
    ] = None,
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt before its completion.")] = True,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Complete a text, streaming it as it is written."""
    from minillama.generate import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p)
    if prompt and prompt_file:
        raise UsageError("generate: expected either --prompt or --prompt-file, found both")
    if prompt == "-" or prompt_file:
        prompt = _read_prompt(prompt_file or "-")
    seed = secrets.randbelow(2**31) if seed is None else seed
    llama, tokenizer, _ = _load(model, device)
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise UsageError(
            f"the prompt is empty, and {model} knows no token to begin a text with: expected --prompt TEXT"
        )
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed, "stop_strings": stop or ()}
    if num_samples == 1:
        _generate_one(llama, tokenizer, tokens, prompt if echo else "", options)
    else:
        _generate_many(llama, tokenizer, [tokens] * num_samples, prompt if echo else "", options)


def _generate_one(llama: Llama, tokenizer: Tokenizer, tokens: list[int], prompt: str, options: dict[str, Any]) -> None:
    """Print a completion as it comes, then how fast it came."""
    from minillama.generate import stream

    clock = Clock(len(tokens))
    print(prompt, end="", flush=True)
    for step in stream(llama, [tokens], tokenizer=tokenizer, stop_ids=tokenizer.stop_ids, **options):
        clock.tick()
        print(step.text, end="", flush=True)
    print(flush=True)
    _say(f"{clock} · ended by {step.finish_reason}{_seed(options)}")


def _generate_many(
    llama: Llama, tokenizer: Tokenizer, prompts: list[list[int]], prompt: str, options: dict[str, Any]
) -> None:
    """Print several completions of a prompt when all are there, each under a line with its number."""
    from tqdm import tqdm

    from minillama.generate import stream

    clock = Clock(sum(map(len, prompts)))
    texts = [prompt] * len(prompts)
    with tqdm(unit=" tokens", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as bar:
        for step in stream(llama, prompts, tokenizer=tokenizer, stop_ids=tokenizer.stop_ids, **options):
            clock.tick()
            bar.update()
            texts[step.row] += step.text
    for number, text in enumerate(texts, 1):
        print(f"=== sample {number} of {len(texts)}\n{text}")
    _say(f"{clock}{_seed(options)}")


def _seed(options: dict[str, Any]) -> str:
    """The seed that writes the same text again; greedy choice has none."""
    return f" · seed {options['seed']}" if options["sampling"].temperature else ""


@app.command(epilog='Example: minillama chat smollm2 --system "You answer in one sentence."')
def chat(
    model: ModelArgument,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="Tell the model who it is.", show_default="its template's"),
    ] = None,
    template: TemplateOption = None,
    max_new_tokens: AnswerOption = ANSWER,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.9,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Talk with a model, turn by turn, in the template it was trained with. Reads lines from stdin when piped."""
    from minillama.chat import builtin, require
    from minillama.chat_loop import Answerer, ChatLoop
    from minillama.generate import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p)
    seed = secrets.randbelow(2**31) if seed is None else seed
    llama, tokenizer, own_template = _load(model, device)
    chat_template = builtin(template) if template else require(own_template, model)
    answer = Answerer(llama, tokenizer, chat_template, sampling, seed, max_new_tokens)
    ChatLoop(answer, system).run()


@app.command(epilog="Example: minillama serve smollm2    then open http://127.0.0.1:8000")
def serve(
    model: ModelArgument,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Where to listen; only this machine reaches the default."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8000,
    template: TemplateOption = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="B", min=1, help="Sequences computed together; others wait in line.")
    ] = 16,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", metavar="N", min=2, help="Longest prompt with answer.", show_default="what the model has"
        ),
    ] = None,
    max_new_tokens: AnswerOption = ANSWER,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.9,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    device: DeviceOption = None,
) -> None:
    """Serve a model over HTTP: OpenAI's endpoints, and a page to chat with it. Requests are computed together.

    Sampling and --max-new-tokens hold where a request does not say otherwise.
    """
    from minillama.chat import builtin
    from minillama.generate import Sampling
    from minillama.serving import server
    from minillama.serving.app import Service, application
    from minillama.serving.engine import Engine
    from minillama.serving.protocol import Defaults, Limits

    sampling = Sampling(temperature, top_k, top_p, min_p)
    bound = server.bind(host, port)  # a port that is taken is said before a model is loaded
    llama, tokenizer, own_template = _load(model, device)
    most = min(context or llama.config.max_seq_len, llama.config.max_seq_len)
    service = Service(
        name=Path(model).name or model,
        engine=Engine(llama, tokenizer, rows=batch),
        template=builtin(template) if template else own_template,
        defaults=Defaults(sampling, min(max_new_tokens, most)),
        limits=Limits(context=most, n=batch),
        hosts=server.LOCAL_NAMES if server.is_loopback(bound) else ["*"],
    )
    _say(f"{service.name} at {server.url(bound)}: a page to chat, and OpenAI's API under /v1. Ctrl-C ends.")
    if not server.is_loopback(bound):
        _say("Whoever reaches this address can use the model: there are no passwords.")
    server.run(application(service), service.engine, bound)


@app.command(epilog="Example: minillama convert smollm2 smollm2-hf --to huggingface --dtype bfloat16")
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint in any known format, or a name.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder (huggingface) or file to write.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="huggingface|llama2c|gguf", help="Format.", show_default="by the name of DST"),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="float32|float16|bfloat16", help="Type of the weights.")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Overwrite DST.")] = False,
) -> None:
    """Write a checkpoint in another format, tokenizer and chat template included."""
    from minillama import catalog, weights
    from minillama.weights.writing import as_dtype

    on_disk = as_dtype(dtype)
    if destination.exists() and not force:
        raise UsageError(f"{destination}: is there already (--force overwrites it)")
    path = catalog.resolve(source)
    if destination.exists() and destination.samefile(path):
        raise UsageError(f"{destination}: expected another place than the source itself")
    started = time.perf_counter()
    checkpoint = weights.load(path)
    weights.save(checkpoint, destination, to=to, dtype=on_disk)
    _say(
        f"{destination}: {checkpoint.config.param_count():,} parameters from {path} ({checkpoint.format}) in "
        f"{time.perf_counter() - started:.1f} s"
    )


bench = typer.Typer(
    help="Speed on this machine, side by side with the engines that are installed.", no_args_is_help=True
)
app.add_typer(bench, name="bench")
app.add_typer(exercises, name="exercises")
app.add_typer(tokenizers, name="tokenizer")
app.add_typer(data, name="data")
app.command(epilog="Example: minillama pretrain --preset mini --data miniature --out runs/mini/base")(pretrain)
app.command(epilog="Example: minillama sft --model runs/mini/base --data miniature --out runs/mini/sft")(sft)
app.command(epilog="Example: minillama reward --model runs/mini/sft --data hh-rlhf --out runs/mini/helpful")(reward)
app.command(epilog="Example: minillama gatt --model runs/mini/sft --out runs/mini/gatt --replay miniature:2000")(gatt)
app.command(epilog="Example: minillama preferences --model runs/mini/sft --out runs/mini/pairs.jsonl")(preferences)
app.command(epilog="Example: minillama reject --model runs/mini/sft --reward runs/mini/helpful --out runs/rs")(reject)
app.command(epilog="Example: minillama dpo --model runs/mini/sft --data runs/mini/pairs.jsonl --out runs/mini/dpo")(dpo)
app.command(epilog="Example: minillama distill --model runs/mini/sft --safety runs/mini/safe --out runs/cd")(distill)
app.command(epilog="Example: minillama ppo --model runs/mini/sft --reward runs/mini/helpful --out runs/mini/ppo")(ppo)
app.command(epilog="Example: minillama pipeline --preset mini --out runs/mini")(pipeline)
app.command(epilog="Example: minillama evaluate runs/mini/sft --json sft.json")(evaluate)
app.command(epilog="Example: minillama plan --preset llama2-70b --gpus 2048")(plan)


@bench.command("decode", epilog="Example: minillama bench decode smollm2 --batch 1 --batch 32")
def bench_decode(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A checkpoint in any known format, or a name.")
    ] = "smollm2",
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", metavar="B", min=1, help="May be given again.", show_default="1, 8, 32"),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", min=1, help="Prompt of the prefill.")
    ] = 512,
    new_tokens: Annotated[int, typer.Option("--new-tokens", metavar="N", min=2, help="Tokens a row to decode.")] = 64,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the prompts, which are random tokens.")
    ] = 0,
    device: DeviceOption = None,
) -> None:
    """Tokens a second when generating, by batch size; prefill; peak memory."""
    from rich.console import Console

    from minillama import bench, catalog, reports
    from minillama.backend import resolve_device

    path = catalog.resolve(model)
    batches = batch or [1, 8, 32]
    with Console(stderr=True).status(f"measuring {model}"):
        speeds, left_out = bench.compare(path, batches, prompt_tokens, new_tokens, seed, resolve_device(device))
    reports.show_speeds(f"{model} on {bench.machine()}", speeds)
    for line in left_out:
        _say(f"left out: {line}")


class Clock:
    """How long a prompt took to its first token, and how fast the tokens came after that one."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.tokens = prompt_tokens, 0
        self.started = self.first = self.last = time.perf_counter()

    def tick(self) -> None:
        """One more token is there."""
        self.last = time.perf_counter()
        self.tokens += 1
        if self.tokens == 1:
            self.first = self.last

    def __str__(self) -> str:
        rate = (self.tokens - 1) / (self.last - self.first) if self.last > self.first else 0.0
        return (
            f"prompt {self.prompt_tokens} tokens, {self.first - self.started:.2f} s · "
            f"{self.tokens} tokens, {self.last - self.started:.2f} s, {rate:.0f} tokens/s"
        )


def _load(name: str, device: str | None) -> tuple[Llama, Tokenizer, ChatTemplate | None]:
    """The model called `name` on `device`, with the tokenizer and the chat template that came with it."""
    from rich.console import Console

    from minillama import catalog, weights
    from minillama.backend import resolve_device, to_device
    from minillama.model import Llama

    where = resolve_device(device)
    path = catalog.resolve(name)
    with Console(stderr=True).status(f"loading {name}"):  # shows nothing where stderr is no terminal
        checkpoint = weights.load(path)
        params = {key: to_device(value, where) for key, value in checkpoint.params.items()}
    if checkpoint.config.head is not None:
        raise MinillamaError(f"{path}: expected a model that writes text, found a reward model, which scores it")
    if checkpoint.tokenizer is None:
        raise MinillamaError(f"{path}: expected a tokenizer with the weights, found none")
    return Llama(checkpoint.config, params), checkpoint.tokenizer, checkpoint.chat_template


def _read_prompt(source: str | Path) -> str:
    """The text of a file, or of stdin for '-', without the newline that ends it."""
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise MinillamaError(f"{source}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise MinillamaError(
            f"{source}: expected UTF-8 text, found byte {data[error.start]:#x} at {error.start}"
        ) from None


def _say(line: str) -> None:
    """Statistics and notices: on stderr, apart from the text."""
    print(line, file=sys.stderr)


def main() -> None:
    """Entry point of the `minillama` command."""
    app(prog_name="minillama")
