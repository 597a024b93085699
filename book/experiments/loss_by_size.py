"""Loss by size: models of several sizes pretrained on the miniature, for chapter 11.

    make book                                    # or what it begins with, `minillama pretrain ...`: the tokens
    python book/experiments/loss_by_size.py      # 12 runs in runs/loss_by_size, then book/results/loss_by_size.json

Each run is one of `minillama pretrain --depth L`; stopped, the command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillama import bench, book
from minillama.config import scaled
from minillama.data import TokenData
from minillama.training.distributed import SingleProcess
from minillama.training.loop import Options
from minillama.training.pretrain import Job, micro_batch, pretrain, recipe
from minillama.training.run_folder import RunFolder

TOKENS = 1_638_400  # that every size reads
RESULTS = Path(__file__).parents[1] / "results" / "loss_by_size.json"


def job(depth: int, seed: int, steps: int | None, data: Path) -> Job:
    """The run of one size with one seed, as `minillama pretrain --depth` does it; validated at its end only.

    steps None: as many as it takes to read TOKENS.
    """
    config = scaled(depth, vocab_size=TokenData(data).vocab_size)
    usual = recipe(None, config)
    chosen = usual.changed(steps or TOKENS // (usual.batch_size * usual.seq_len), None, None, None, None)
    options = Options(
        chosen.steps,
        chosen.lr,
        chosen.warmup_steps,
        micro_batch=micro_batch(chosen.seq_len),
        validate_every=chosen.steps,
        save_every=chosen.steps,
    )
    return Job(config, str(data), chosen, options, seed)


def result(depth: int, seed: int, todo: Job, folder: RunFolder) -> dict[str, Any]:
    """Train, or go on, or find the run ended; what came of it."""
    progress, _ = pretrain(todo, folder, SingleProcess())
    return {
        "depth": depth,
        "seed": seed,
        "parameters": todo.config.param_count(),
        "embedding": todo.config.vocab_size * todo.config.dim,
        "recipe": asdict(todo.recipe),
        "losses": [round(record["loss"], 4) for record in book.read_log(folder) if "loss" in record],
        "validation": progress.validation,
        "seconds": round(progress.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss by size, for chapter 11 of the book.")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4], metavar="L")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help=f"of each run (default: to read {TOKENS:,} tokens)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="prepared (default: of the run of `make book`)")
    parser.add_argument("--out", type=Path, default=Path("runs/loss_by_size"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()

    data = given.data or book.find("runs/mini/base/data/tokens.json", "make book").parent
    runs = []
    for depth in given.depths:
        for seed in given.seeds:
            todo = job(depth, seed, given.steps, data)
            folder = RunFolder(given.out / f"depth-{depth}-seed-{seed}-steps-{todo.recipe.steps}")
            found = result(depth, seed, todo, folder)
            runs.append(found)
            print(
                f"depth {depth}, seed {seed}: {found['parameters']:,} parameters, "
                f"validation {found['validation']['loss']:.4f}, {found['seconds']:.0f} s"
            )
    content = {
        "command": "python book/experiments/loss_by_size.py",
        "machine": bench.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
