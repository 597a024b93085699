"""The whole pipeline on three seeds, for the chapters on chat models.

    python book/experiments/pipeline.py      # in runs/pipeline, then book/results/pipeline.json

Seed 0 is that of `make book`. Stopped, the command goes on where it was. `--base 1=FOLDER` begins a seed with a base
model that is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillama import bench

RESULTS = Path(__file__).parents[1] / "results" / "pipeline.json"


def place(seed: int, folder: Path) -> Path:
    """Where the pipeline of a seed is."""
    return Path("runs/mini") if seed == 0 else folder / f"seed-{seed}"


def run(seed: int, folder: Path, base: str | None) -> dict[str, Any]:
    """The pipeline of a seed, and what it came to."""
    out = place(seed, folder)
    command = [
        sys.executable,
        "-m",
        "minillama",
        "pipeline",
        "--preset",
        "mini",
        "--seed",
        str(seed),
        "--out",
        str(out),
    ]
    subprocess.run([*command, *(("--base", base) if base else ())], check=True)
    return {"seed": seed, "base": base is not None, **json.loads((out / "results.json").read_text(encoding="utf-8"))}


def main() -> None:
    parser = argparse.ArgumentParser(description="The whole pipeline on several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--base", nargs="+", default=[], metavar="N=FOLDER", help="base models that are there")
    parser.add_argument("--out", type=Path, default=Path("runs/pipeline"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()
    bases = dict(each.split("=", 1) for each in given.base)

    content = {
        "command": " ".join(["python", "book/experiments/pipeline.py", *sys.argv[1:]]),
        "machine": bench.machine(),
        "runs": [run(seed, given.out, bases.get(str(seed))) for seed in given.seeds],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
