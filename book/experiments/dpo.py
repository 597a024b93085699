"""DPO on the first round's preferences, beside rejection sampling and PPO by its reward models, for chapter 20.

    python book/experiments/dpo.py      # in runs/dpo, then book/results/dpo.json

All begin with the model of Ghost Attention and know the preferences of V1, nothing else: DPO from the pairs themselves,
the others by the reward models of V1. PPO is run two more times for chapter 19: with the paper's one scale for both
reward models, and with one answer to a prompt. Stopped, the command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillama import bench, book
from minillama.evaluation.record import Evaluation, win_rate
from minillama.pipeline.plan import SCALES
from minillama.training.run_folder import RunFolder

RESULTS = Path(__file__).parents[1] / "results" / "dpo.json"
RATES = (None, "1e-4", "3e-4", "1e-3")  # None: what `minillama dpo` takes by itself
CHOSEN = "3e-4"
SEEDS = (0, 1, 2)
PPO = ("--iterations", str(SCALES["mini"].iterations), *SCALES["mini"].ppo)  # the pipeline's
COUNT = 300  # requests of each kind


def minillama(*arguments: object) -> None:
    """Run a command. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "minillama", *map(str, arguments)], check=True)


def trained(folder: Path, made: Path) -> dict[str, Path]:
    """All models by name, those that are not the pipeline's own trained here."""
    models = {name: made / name for name in ("gatt", "v1/random", "v1/reject")}
    pairs = [x for domain in ("helpfulness", "safety") for x in ("--data", made / f"v1/{domain}.jsonl")]
    runs = [(rate, 0) for rate in RATES] + [(CHOSEN, seed) for seed in SEEDS[1:]]
    for rate, seed in runs:
        name = f"dpo, {rate or 'default'}, seed {seed}"
        models[name] = folder / f"dpo-{rate or 'default'}-{seed}"
        given = ("--lr", rate) if rate else ()
        minillama("dpo", "--model", made / "gatt", *pairs, *given, "--seed", seed, "--out", models[name])
    rewards = ("--reward", made / "v1/reward", "--safety", made / "v1/safety")
    for name, given in (
        ("ppo", PPO),
        ("ppo, one scale", [x for x in PPO if x != "--own-scales"]),
        ("ppo, one answer", [*PPO, "--answers", "1"]),
    ):
        models[name] = folder / _file_name(name)
        minillama("ppo", "--model", made / "gatt", *rewards, *given, "--out", models[name])
    return models


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").replace("/", "-")


def measured(name: str, model: Path, folder: Path, made: Path) -> tuple[Evaluation, dict[str, Any]]:
    """What the judge finds of a model, and how it was trained."""
    file = folder / f"{_file_name(name)}.json"
    if not file.is_file():
        rewards = ("--reward", made / "v1/reward", "--safety", made / "v1/safety")
        asked = ("--count", COUNT, "--turns", 0)
        minillama("evaluate", model, *asked, *rewards, "--reference", made / "gatt", "--json", file)
    found = Evaluation.load(file)
    run = RunFolder(model)
    result, records = run.result() or {}, book.read_log(run)
    return found, {
        "seconds": result.get("seconds"),
        "lr": json.loads(run.record.read_text(encoding="utf-8"))["settings"].get("lr"),
        "log": [{"step": r["step"], **r["validation"]} for r in records if "validation" in r],
        "measures": {measure: list(value) for measure, value in found.measures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO beside rejection sampling and PPO, on the same preferences.")
    parser.add_argument("--out", type=Path, default=Path("runs/dpo"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()
    made = book.find("runs/mini/v1/reject/run.json", "make book").parents[2]

    given.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Any] = {}
    before: Evaluation | None = None
    for name, model in trained(given.out, made).items():
        found, runs[name] = measured(name, model, given.out, made)
        before = before or found
        runs[name]["win rate"] = list(win_rate(found, before))
    content = {
        "command": " ".join(["python", "book/experiments/dpo.py", *sys.argv[1:]]),
        "machine": bench.machine(),
        "count": COUNT,
        "runs": runs,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
