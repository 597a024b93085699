"""What this machine can do at best, to hold the other numbers against: python -m benchmarks.floor [--device cuda]

Copying memory, one product of a vector with all weights of SmolLM2-135M (the floor of a decoded token at batch 1),
matrix products at the shapes of the model, and the cost of an op on four numbers (the floor of any op).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from minillama import bench
from minillama.backend import get_array_module, resolve_device, to_device
from minillama.config import PRESETS
from minillama.params import empty_params

REPEATS = 7


def seconds(work: Callable[[], Any], wait: Callable[[], None], times: int = 1) -> float:
    """The shortest of several measurements of `work`, each the mean of `times` runs."""
    work()
    wait()
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        best = min(best, (time.perf_counter() - started) / times)
    return best


def measure(device: str) -> dict[str, float]:
    """Name with unit -> value."""
    config = PRESETS["smollm2-135m"]
    params = empty_params(config, np.float32)
    rng = np.random.default_rng(0)
    for p in params.values():
        p[...] = rng.standard_normal(p.shape, dtype=np.float32)
    weights = {name: to_device(p, device) for name, p in params.items() if p.ndim == 2}  # type: ignore[arg-type]
    xp = get_array_module(weights["tok_embeddings.weight"])

    def wait() -> None:
        if xp is not np:
            xp.cuda.runtime.deviceSynchronize()

    source = xp.zeros(1 << 26, dtype=np.float32)
    target = xp.empty_like(source)
    found = {"copy, GB/s read and written": 2 * source.nbytes / seconds(lambda: xp.copyto(target, source), wait) / 1e9}
    vectors = {width: xp.ones((1, width), dtype=np.float32) for width in (config.dim, config.ffn_dim)}
    sweep = seconds(lambda: [vectors[w.shape[1]] @ w.T for w in weights.values()], wait)
    found["vector times all weights, GB/s"] = sum(w.nbytes for w in weights.values()) / sweep / 1e9
    found["vector times all weights, ms"] = 1e3 * sweep
    for rows in (32, 512, 4096):
        x = xp.ones((rows, config.dim), dtype=np.float32)
        w = weights["layers.0.feed_forward.w1.weight"]
        found[f"({rows}, 576) times (576, 1536), GFLOP/s"] = (
            2 * rows * w.size / seconds(lambda x=x, w=w: x @ w.T, wait, 20) / 1e9
        )
    few = xp.ones(4, dtype=np.float32)
    found["an op on 4 numbers, µs"] = 1e6 * seconds(lambda: few + few, wait, 1000)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What this machine can do at best, in float32.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, help="write the numbers and the machine to this file")
    given = parser.parse_args()
    device = resolve_device(given.device)
    found = measure(device)
    table = Table(title=f"{device} of {bench.machine()}", title_justify="left", title_style="bold")
    table.add_column("float32")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:,.1f}")
    Console(highlight=False).print(table)
    if given.json:
        report = {"machine": bench.machine(), "device": device, "measured": found}
        given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
