"""A model of a million parameters on TinyStories, trained here and by PyTorch: python -m benchmarks.tinystories

Both start from the same weights and see the same batches in the same order with the same schedule; the number of steps
is what minillama does in the given minutes. Prints both losses side by side, and the validation loss in nats per byte.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minillama import bench
from minillama.config import preset
from minillama.model import Llama
from minillama.training.distributed import SingleProcess
from minillama.training.loop import Options
from minillama.training.pretrain import Job, Recipe, micro_batch, pretrain
from minillama.training.run_folder import RunFolder

SEED = 0
CALIBRATION = 30  # steps by which the speed is measured


@dataclass(frozen=True)
class Plan:
    """What the peer needs to know to train the same model in the same way; all else lies in the run's folder."""

    steps: int
    batch_size: int
    seq_len: int
    lr: float
    warmup_steps: int
    validate_every: int
    seed: int = SEED


def ours(source: str, folder: Path, plan: Plan) -> dict[str, Any]:
    """Train with minillama. Returns the losses, the validations, a sample and the seconds spent in steps."""
    recipe = Recipe(plan.steps, plan.batch_size, plan.seq_len, plan.lr, plan.warmup_steps)
    options = Options(
        plan.steps,
        plan.lr,
        plan.warmup_steps,
        micro_batch=micro_batch(plan.seq_len),
        validate_every=plan.validate_every,
        save_every=plan.steps,
    )
    run = RunFolder(folder)
    job = Job(preset("mini"), source, recipe, options, plan.seed, prompt="Once upon a time")
    progress, _ = pretrain(job, run, SingleProcess(), overwrite=True)
    records = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    return {
        "loss": [[r["step"], r["loss"]] for r in records if "loss" in r],
        "validation": [[r["step"], r["validation"]["nats_per_byte"]] for r in records if "validation" in r],
        "sample": progress.sample,
        "seconds": progress.seconds,
    }


def peers(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """Train with transformers on PyTorch, from the same initial weights; None where it is not installed."""
    data = RunFolder(folder).data
    vocabulary = Llama.load(folder).config
    initial = folder / "initial"
    Llama.init(vocabulary, plan.seed).save(initial)
    command = [sys.executable, "-m", "benchmarks.tinystories_transformers", str(initial), str(data)]
    done = subprocess.run([*command, json.dumps(asdict(plan))], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == bench.NOT_INSTALLED:
        return None
    if done.returncode:
        sys.exit(f"transformers: exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def show(plan: Plan, results: dict[str, dict[str, Any]]) -> None:
    """Validation losses side by side, and what it took."""
    table = Table(title=f"{plan.steps} steps of {plan.batch_size} × {plan.seq_len} tokens", title_justify="left")
    table.add_column("nats per byte after step", justify="right")
    for name in results:
        table.add_column(name, justify="right")
    for row in zip(*(result["validation"] for result in results.values()), strict=True):
        table.add_row(f"{row[0][0]:,}", *(f"{value:.4f}" for _, value in row))
    table.add_row("minutes", *(f"{result['seconds'] / 60:.1f}" for result in results.values()))
    Console(highlight=False).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="TinyStories here and by PyTorch, from the same start.")
    parser.add_argument("--source", default="tinystories-sample", help="default: tinystories-sample")
    parser.add_argument("--minutes", type=float, default=10, help="of training with minillama (default: 10)")
    parser.add_argument("--lr", type=float, default=3e-3, help="at its peak (default: 0.003)")
    parser.add_argument("--out", type=Path, default=Path("runs/tinystories"), help="default: runs/tinystories")
    parser.add_argument("--json", type=Path, help="write curves, sample and machine to this file")
    given = parser.parse_args()

    probe = Plan(CALIBRATION, 32, 256, given.lr, 0, CALIBRATION)
    seconds = ours(given.source, given.out, probe)["seconds"]
    steps = max(50, int(given.minutes * 60 / (seconds / CALIBRATION)))
    plan = Plan(steps, 32, 256, given.lr, warmup_steps=min(100, steps // 10), validate_every=max(1, steps // 20))
    results = {"minillama": ours(given.source, given.out, plan)}
    peer = peers(given.out, plan)
    if peer is not None:
        results["transformers, eager"] = peer
    show(plan, results)
    difference = None
    if peer is not None:
        pairs = zip(results["minillama"]["loss"][:50], peer["loss"][:50], strict=True)
        difference = max(abs(a - b) for (_, a), (_, b) in pairs)
        print(f"first 50 steps: the losses differ by at most {difference:.1e}")
    print(results["minillama"]["sample"])
    if given.json:
        content = {
            "machine": bench.machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": given.source,
            "steps": steps,
            "plan": asdict(plan),
            "ours": _thinned(results["minillama"]),
            "peer": None if peer is None else _thinned(peer),
            "first50_max_difference": difference,
        }
        given.json.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _thinned(result: dict[str, Any]) -> dict[str, Any]:
    """All of the first 50 losses, then every tenth, rounded: small enough to keep."""
    kept = [[step, round(loss, 6)] for step, loss in result["loss"] if step <= 50 or step % 10 == 0]
    return result | {"loss": kept}


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all")
