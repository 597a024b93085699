"""From base model to chat, three seeds: supervised finetuning and Ghost Attention, for chapters 15 and 16.

    python book/experiments/chat.py      # of the models in runs/mini and runs/pipeline, to book/results/chat.json

The models are those of `python book/experiments/pipeline.py`, judged on conversations held out by content.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillama import Llama, bench, book, weights
from minillama.alignment.rollout import Chatter
from minillama.data.dialogues import find_dialogues
from minillama.evaluation import miniature
from minillama.evaluation.statistics import Estimate
from minillama.training import finetune
from minillama.training.distributed import SingleProcess
from minillama.training.run_folder import RunFolder

RESULTS = Path(__file__).parents[1] / "results" / "chat.json"
STAGES = ("base", "sft", "gatt")
COUNT = 500  # conversations of a kind
DIALOGUES, TURNS = 200, 20  # under an instruction


def trained(seed: int, folder: Path) -> Path:
    """Where the models of a seed are, which `python book/experiments/pipeline.py` has made."""
    here = Path("runs/mini") if seed == 0 else folder / f"seed-{seed}"
    return book.find(f"{here}/gatt/run.json", "python book/experiments/pipeline.py").parents[1]


def measured(path: Path, seed: int) -> dict[str, Any]:
    """What the judge finds of a model, each a mean with its 95 % interval."""
    checkpoint = weights.load(path)
    asked = miniature.held_out("helpful", COUNT)
    if checkpoint.chat_template is None:
        model = Llama(checkpoint.config, checkpoint.params)
        judged = miniature.base_judged(model, checkpoint.tokenizer, asked, seed=seed)
        return {"helpfulness": _json(judged.helpfulness())}
    chatter = _chatter(path)
    unsafe, borderline = (
        miniature.judged(chatter, miniature.held_out(kind, COUNT), seed=seed) for kind in ("unsafe", "borderline")
    )
    obedience = miniature.obedience(chatter, DIALOGUES, TURNS, seed=seed)
    return {
        "helpfulness": _json(miniature.judged(chatter, asked, seed=seed).helpfulness()),
        "violations": _json(unsafe.share("violation")),
        "false_refusals": _json(borderline.share("false_refusal")),
        "obeyed": [_json(turn) for turn in obedience.by_turn()],
        "helpful_by_turn": obedience.helpfulness.mean(axis=0).round(4).tolist(),
    }


def packings(models: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Supervised finetuning with dialogues packed, as it is in `models`, and as the paper's, one after the other."""
    job = finetune.job(str(models / "base"), find_dialogues("miniature", seed), packing="concatenated", seed=seed)
    concatenated = RunFolder(folder / "concatenated")
    finetune.finetune(job, concatenated, SingleProcess())
    found, asked = {}, miniature.held_out("helpful", COUNT)
    for name, run in (("packed", RunFolder(models / "sft")), ("concatenated", concatenated)):
        progress = run.result() or {}
        found[name] = {
            "loss": progress["validation"]["loss"],
            "steps": progress["step"],
            "seconds": round(progress["seconds"], 1),
            "helpfulness": _json(miniature.judged(_chatter(run.path), asked, seed=seed).helpfulness()),
        }
    return found


def _chatter(path: Path) -> Chatter:
    checkpoint = weights.load(path)
    return Chatter(Llama(checkpoint.config, checkpoint.params), checkpoint.tokenizer, checkpoint.chat_template)


def _json(estimate: Estimate) -> list[float]:
    return [round(float(value), 4) for value in estimate]


def main() -> None:
    parser = argparse.ArgumentParser(description="From base model to chat, for chapters 15 and 16 of the book.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/pipeline"), metavar="FOLDER", help="the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()

    runs = []
    for seed in given.seeds:
        models = trained(seed, given.out)
        runs.append({"seed": seed, **{stage: measured(models / stage, seed) for stage in STAGES}})
        helpfulness = ", ".join(f"{stage} {runs[-1][stage]['helpfulness'][0]:.3f}" for stage in STAGES)
        print(f"seed {seed}: helpfulness {helpfulness}; obeyed at turn 10: {runs[-1]['gatt']['obeyed'][9][0]:.3f}")
    content = {
        "command": "python book/experiments/chat.py",
        "machine": bench.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "conversations": COUNT,
        "dialogues": DIALOGUES,
        "runs": runs,
        "packings": packings(trained(given.seeds[0], given.out), given.seeds[0], given.out / "packings"),
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
