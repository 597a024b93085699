"""What a pipeline has come to, out of its files: stage by stage, and each reward model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillama.errors import MinillamaError
from minillama.evaluation.record import Evaluation, win_rate
from minillama.evaluation.statistics import Estimate
from minillama.pipeline.runner import RECORD, Record
from minillama.tokenizer.atomic import write_bytes
from minillama.training.run_folder import RunFolder

FIRST = "sft"  # whom the others are compared with


@dataclass(frozen=True)
class Row:
    """A model. measures: those of its evaluation, and "win rate" against the first chat model, over harmless and unsafe
    requests together; "helpful win rate" and "safety win rate" are its parts.
    """

    name: str
    measures: dict[str, Estimate]


@dataclass(frozen=True)
class Results:
    """rows: the models that are judged, in their order. reward_models: stage -> its measures on held-out pairs.
    seconds, peak: of the whole pipeline, on the clock and bytes of memory; stages: seconds of each.
    """

    rows: list[Row]
    reward_models: dict[str, dict[str, float]]
    losses: dict[str, dict[str, float]]
    seconds: float
    peak: int
    stages: dict[str, float]

    def row(self, name: str) -> dict[str, Estimate]:
        """The measures of a model."""
        return next(row.measures for row in self.rows if row.name == name)

    def save(self, path: Path) -> None:
        """As JSON. Raises MinillamaError."""
        write_bytes(path, (json.dumps(self.as_json(), indent=1) + "\n").encode())

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "seconds": round(self.seconds, 1),
            "peak": self.peak,
            "stages": self.stages,
            "losses": self.losses,
            "reward_models": self.reward_models,
            "models": {
                row.name: {name: [round(float(x), 4) for x in estimate] for name, estimate in row.measures.items()}
                for row in self.rows
            },
        }


def collect(out: Path) -> Results:
    """Of the pipeline in `out`. Raises MinillamaError where it has not been run."""
    record = Record.load(out / RECORD)
    judged = {name: out / name for name in record.stages if name.startswith("judged/")}
    if not judged or not all(path.is_file() for path in judged.values()):
        raise MinillamaError(f"{out}: expected a pipeline that has ended, found none")
    found = {path.stem: Evaluation.load(path) for path in judged.values()}
    rows = []
    for name, of in found.items():
        measures = dict(of.measures)
        if not of.base:
            measures["win rate"] = win_rate(of, found[FIRST])
            measures["helpful win rate"] = win_rate(of, found[FIRST], ["helpful"])
            measures["safety win rate"] = win_rate(of, found[FIRST], ["unsafe"])
        rows.append(Row(name, measures))
    runs = {name: (RunFolder(out / name).result() or {}).get("validation", {}) for name in trained(record)}
    models = {name: runs.pop(name) for name in list(runs) if name.rpartition("/")[2] in ("reward", "safety")}
    return Results(
        rows,
        models,
        runs,
        record.seconds,
        record.peak,
        {name: stage["seconds"] for name, stage in record.stages.items()},
    )


def trained(record: Record) -> list[str]:
    """The stages that are runs."""
    return [name for name in record.stages if not name.endswith((".json", ".jsonl"))]
