"""Speed of a whole training step, side by side: python -m benchmarks.train [CONFIG ...] [--rounds 3] [--json FILE]

Forward, backward, clipping and AdamW on random tokens in float32: minillama with a thread for each core, minillama
with a process for each core (ranks), and transformers' LlamaForCausalLM on PyTorch with SDPA and fused AdamW, eager and
compiled. Each engine runs in a process of its own; rounds alternate the engines, and medians are printed. Beside them
stands what the machine's sgemm reaches in the same run, and which part of it each engine turns into training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from minillama import bench
from minillama.config import LlamaConfig
from minillama.training.plan import training_flops


@dataclass(frozen=True)
class Setting:
    """A model, and the tokens (B, T) of a step. micro_batch: rows that a thread of minillama runs at once."""

    config: LlamaConfig
    batch: int
    length: int
    micro_batch: int


SETTINGS = {
    "A": Setting(LlamaConfig(128, 4, 4, 344, vocab_size=1024, n_kv_heads=2, max_seq_len=128), 32, 128, 8),
    "B": Setting(LlamaConfig(288, 6, 6, 768, vocab_size=32_000, max_seq_len=256), 8, 256, 4),
    "C": Setting(LlamaConfig(512, 8, 8, 1376, vocab_size=4096, n_kv_heads=2, max_seq_len=512), 4, 512, 2),
}
WARM_UP = 3  # steps that are not counted: page faults, compilation


def tokens_of(setting: Setting) -> np.ndarray:
    """The tokens (B, T + 1) of every step, the same for all engines."""
    shape = (setting.batch, setting.length + 1)
    return np.random.default_rng(0).integers(setting.config.vocab_size, size=shape)


def report(engine: str, seconds: list[float], loss: float) -> None:
    """A worker's last words: one line of JSON."""
    result = {"engine": engine, "seconds": seconds[WARM_UP:], "loss": loss, "peak": bench.peak_memory()}
    print(json.dumps(result))


def commands(name: str, steps: int) -> dict[str, list[str]]:
    """How each engine is measured: a program that prints one line of JSON, or exits with NOT_INSTALLED."""
    own = [sys.executable, "-m", "benchmarks.train_minillama", name, str(steps)]
    peer = [sys.executable, "-m", "benchmarks.train_transformers", name, str(steps)]
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    ranks = {"minillama, ranks": [mpiexec, "-n", str(bench.cores()), *own]} if mpiexec and bench.cores() > 1 else {}
    return {
        "minillama": own,
        **ranks,
        "transformers, eager": [*peer, "eager"],
        "transformers, compiled": [*peer, "compiled"],
    }


def run(command: list[str]) -> dict[str, Any] | str:
    """What a worker measured, or why it did not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode == bench.NOT_INSTALLED:
        return "not installed"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def sgemm(size: int = 4096, repeats: int = 5) -> float:
    """FLOP/s of a float32 matrix product on all cores, at best."""
    a, b = (np.random.default_rng(seed).random((size, size), np.float32) for seed in (0, 1))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def show(name: str, engines: dict[str, dict[str, Any]], rate: float) -> None:
    """The table of one setting."""
    setting = SETTINGS[name]
    config, tokens = setting.config, setting.batch * setting.length
    flops = training_flops(config, setting.length) * tokens
    table = Table(
        title=f"{name}: width {config.dim}, {config.n_layers} layers, vocabulary {config.vocab_size:,}, "
        f"{config.param_count() / 1e6:.1f}M parameters, {setting.batch} × {setting.length} tokens",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("engine")
    for column in ("ms a step", "tokens/s", "of sgemm", "peak MB", "minillama is"):
        table.add_column(column, justify="right")
    own = engines["minillama"]["seconds"]
    for engine, found in engines.items():
        seconds = found["seconds"]
        table.add_row(
            engine,
            f"{1e3 * seconds:.0f}",
            f"{tokens / seconds:,.0f}",
            f"{flops / seconds / rate:.0%}",
            f"{found['peak'] / 1e6:.0f}" if found["peak"] else "",
            f"{seconds / own:.2f} ×",
        )
    Console(highlight=False).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed side by side with PyTorch where it is installed.")
    parser.add_argument("settings", nargs="*", metavar="CONFIG", help="A, B or C (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--steps", type=int, default=10, help="counted in each round (default: 10)")
    parser.add_argument("--json", type=Path, help="write every round, the medians and the machine to this file")
    given = parser.parse_args()
    names = given.settings or list(SETTINGS)
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"unknown configuration {unknown[0]!r}: expected {', '.join(SETTINGS)}")

    rates, rounds, left_out = [], [], {}
    for _ in range(given.rounds):
        rates.append(sgemm())
        for name in names:
            for engine, command in commands(name, WARM_UP + given.steps).items():
                found = run(command)
                if isinstance(found, str):
                    left_out[engine] = found
                else:
                    rounds.append({"setting": name} | found | {"engine": engine, "version": found["engine"]})
    rate = median(rates)

    print(f"{bench.machine()}; sgemm {rate / 1e9:.0f} GFLOP/s; median of {given.rounds} rounds of {given.steps} steps")
    summary: dict[str, dict[str, Any]] = {}
    for name in names:
        for found in rounds:
            if found["setting"] == name:
                same = [r for r in rounds if (r["setting"], r["engine"]) == (name, found["engine"])]
                seconds = median(median(r["seconds"]) for r in same)
                peak = max((r["peak"] or 0) for r in same)
                summary.setdefault(name, {})[found["engine"]] = {"seconds": seconds, "peak": peak}
        if "minillama" not in summary.get(name, {}):
            sys.exit(f"minillama itself could not be measured: {left_out['minillama']}")
        show(name, summary[name], rate)
    for engine, reason in left_out.items():
        print(f"left out: {engine}: {reason}")
    if given.json:
        content = {
            "machine": bench.machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": sorted({found["version"] for found in rounds}),
            "sgemm_flops": rates,
            "steps": given.steps,
            "median": summary,
            "rounds": rounds,
        }
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
