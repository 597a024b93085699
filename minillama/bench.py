"""How fast a model decodes here. Each engine is measured in a process of its own, so that peak memory is its own.

A worker is a program that measures one engine: `WORKER MODEL BATCHES PROMPT NEW SEED`, such as
`… model.gguf 1,8,32 512 64 0`. It prints one line of JSON, the fields of `Speed`, or exits with NOT_INSTALLED.
`python -m minillama.bench` is minillama's own. Workers of other engines are `benchmarks/decode_*.py` of a checkout.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minillama.errors import MinillamaError

NOT_INSTALLED = 3  # exit code of a worker whose engine is not there
WORKERS = Path(__file__).parents[1] / "benchmarks"
REPEATS = 3  # the best is kept: everything else on the machine only ever slows it down
DECODE_PROMPT = 16  # tokens before the ones that are timed


@dataclass(frozen=True)
class Speed:
    """What a worker found. Rates are tokens a second.

    load: seconds until the model is ready. prefill: of one prompt. decode: by batch size, all rows together, greedy,
    after a prompt of DECODE_PROMPT tokens. peak: bytes of memory at most, None where the system does not say.
    """

    engine: str
    load: float
    prefill: float
    decode: dict[int, float]
    peak: int | None


def measure(
    source: str, batches: Sequence[int], prompt_tokens: int, new_tokens: int, seed: int = 0, device: str | None = None
) -> Speed:
    """minillama's own speed on the model at `source`, a path or a name. Prompts are random tokens."""
    from minillama import __version__
    from minillama.generate import stream
    from minillama.model import Llama

    started = time.perf_counter()
    model = Llama.load(source, device=device)  # type: ignore[arg-type]  # checked where it is loaded
    load = time.perf_counter() - started
    rng = np.random.default_rng(seed)

    def seconds(batch: int, prompt: int, new: int) -> tuple[float, float]:
        """Seconds to the first tokens, and from there to the last."""
        prompts = rng.integers(model.config.vocab_size, size=(batch, prompt)).tolist()
        begun = time.perf_counter()
        marks = [time.perf_counter() - begun for _ in stream(model, prompts, max_new_tokens=new)]
        return marks[0], marks[-1] - marks[batch - 1]

    seconds(1, DECODE_PROMPT, 2)  # a first run pays for page faults and thread pools
    prefill = min(seconds(1, prompt_tokens, 1)[0] for _ in range(REPEATS))
    decode = {}
    for batch in batches:
        best = min(seconds(batch, DECODE_PROMPT, new_tokens)[1] for _ in range(REPEATS))
        decode[batch] = batch * (new_tokens - 1) / best
    return Speed(f"minillama {__version__}, {model.device}", load, prompt_tokens / prefill, decode, peak_memory())


def peak_memory() -> int | None:
    """Most memory that this process has held, in bytes; None on Windows."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: its getrusage begins with the peak of the process that started this one
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def compare(
    path: Path, batches: Sequence[int], prompt_tokens: int, new_tokens: int, seed: int, device: str | None
) -> tuple[list[Speed], list[str]]:
    """Measure minillama and every engine that has a worker here. Returns the speeds, and a line for each one left out.

    Raises MinillamaError where minillama itself cannot be measured.
    """
    arguments = [str(path), ",".join(map(str, batches)), str(prompt_tokens), str(new_tokens), str(seed)]
    own = _run([sys.executable, "-m", "minillama.bench", *arguments, *([device] if device else [])])
    if not isinstance(own, Speed):
        raise MinillamaError(own)
    speeds, left_out = [own], []
    for worker in sorted(WORKERS.glob("decode_*.py")):
        peer = _run([sys.executable, str(worker), *arguments])
        if isinstance(peer, Speed):
            speeds.append(peer)
        else:
            left_out.append(f"{worker.stem.removeprefix('decode_')}: {peer}")
    return speeds, left_out


def machine() -> str:
    """The processor, its cores that may be used, and the versions that matter."""
    return f"{_processor()}, {cores()} cores; Python {platform.python_version()}, NumPy {np.__version__}"


def cores() -> int:
    """Cores that this process may use: every engine gets as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _run(command: list[str]) -> Speed | str:
    """What a worker measured, or why it did not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == NOT_INSTALLED:
        return "not installed"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    found = json.loads(done.stdout.splitlines()[-1])
    return Speed(**found | {"decode": {int(batch): rate for batch, rate in found["decode"].items()}})


def main() -> None:
    """minillama's own worker."""
    source, batches, prompt, new, seed, *device = sys.argv[1:]
    try:
        speed = measure(
            source,
            [int(b) for b in batches.split(",")],
            int(prompt),
            int(new),
            int(seed),
            device[0] if device else None,
        )
    except MinillamaError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    main()
