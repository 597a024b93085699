"""Decoding speed, several rounds: python -m benchmarks.decode [MODEL] [--rounds 3] [--json FILE]

A round measures minillama and every engine that is installed, one after another, each in a process of its own, as
`minillama bench decode` does once. Rounds alternate the engines, so that a machine that warms up or is busy for a
while touches all of them; the medians of the rounds are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from minillama import bench, catalog, reports, weights
from minillama.bench import DECODE_PROMPT, Speed


def medians(rounds: Sequence[Speed]) -> Speed:
    """The median of each number of one engine."""
    peaks = [speed.peak for speed in rounds if speed.peak is not None]
    return Speed(
        engine=rounds[0].engine,
        load=median(speed.load for speed in rounds),
        prefill=median(speed.prefill for speed in rounds),
        decode={batch: median(speed.decode[batch] for speed in rounds) for batch in rounds[0].decode},
        peak=int(median(peaks)) if peaks else None,
    )


def memory_floor(path: Path, batches: Sequence[int], prompt_tokens: int, new_tokens: int) -> int:
    """Bytes of the float32 weights and of the largest KV cache that the measurement needs."""
    config = weights.inspect(path).config
    cache = max(
        config.kv_cache_bytes(1, prompt_tokens),
        *(config.kv_cache_bytes(batch, DECODE_PROMPT + new_tokens) for batch in batches),
    )
    return 4 * config.param_count() + cache


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding speed side by side with the engines that are installed.")
    parser.add_argument("model", nargs="?", default="smollm2", help="a path or a name (default: smollm2)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--batch", type=int, action="append", help="may be given again (default: 1, 8, 32)")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of the prefill (default: 512)")
    parser.add_argument("--new-tokens", type=int, default=64, help="a row to decode (default: 64)")
    parser.add_argument("--json", type=Path, help="write every round, the medians and the machine to this file")
    given = parser.parse_args()

    path, batches = catalog.resolve(given.model), given.batch or [1, 8, 32]
    found: dict[str, list[Speed]] = {}
    for seed in range(given.rounds):
        speeds, left_out = bench.compare(path, batches, given.prompt_tokens, given.new_tokens, seed, "cpu")
        for speed in speeds:
            found.setdefault(speed.engine, []).append(speed)
    summary = [medians(rounds) for rounds in found.values()]
    floor = memory_floor(path, batches, given.prompt_tokens, given.new_tokens)

    reports.show_speeds(f"{given.model} on {bench.machine()}, median of {given.rounds}", summary)
    if summary[0].peak is not None:
        print(f"minillama's peak is {summary[0].peak / floor:.2f} x float32 weights and cache ({floor / 1e6:.0f} MB)")
    for line in left_out:
        print(f"left out: {line}")
    if given.json:
        report: dict[str, Any] = {
            "model": given.model,
            "machine": bench.machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {"batches": batches, "prompt_tokens": given.prompt_tokens, "new_tokens": given.new_tokens},
            "weights_and_cache_bytes": floor,
            "median": [asdict(speed) for speed in summary],
            "rounds": [asdict(speed) for rounds in found.values() for speed in rounds],
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
