"""What margins, the safety loss, the likelihood and a second epoch do to reward models, for chapter 17.

    python book/experiments/reward_models.py      # in runs/reward_models, then book/results/reward_models.json

Each model begins with the miniature's chat model and sees the pairs of its first round, in the order in which the
pipeline's own models see them; these two are measured beside them. All score the same pairs, collected anew on prompts
that are held out by content. Stopped, the command goes on where it was. Some three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minillama import bench, book, weights
from minillama.alignment import collect, preferences, reward
from minillama.alignment.ranking import sigmoid
from minillama.alignment.reward import EncodedPair, encode_pair
from minillama.alignment.reward_model import RewardModel
from minillama.alignment.rollout import Chatter
from minillama.miniature.annotator import Annotator
from minillama.model import Llama
from minillama.training.distributed import SingleProcess
from minillama.training.run_folder import RunFolder
from minillama.training.threads import Threads

RESULTS = Path(__file__).parents[1] / "results" / "reward_models.json"
SEED = 1  # the pipeline's, of its first round
PROMPTS = 800  # of the pairs that are scored
OTHER = 77  # their seed, that of no round
BINS = 20  # of scores on the sigmoid scale
# name -> domain, and how the model differs from the pipeline's; None: it is the pipeline's
VARIANTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "no margin": ("helpfulness", {"margin": "none"}),
    "margin small": ("helpfulness", None),
    "margin large": ("helpfulness", {"margin": "large"}),
    "scalar head alone": ("helpfulness", {"margin": "small", "likelihood": False, "lr": None}),
    "two epochs": ("helpfulness", {"margin": "small", "epochs": 2}),
    "no safety loss": ("safety", {"safety_weight": 0.0}),
    "safety loss": ("safety", None),
    "safety with likelihood": ("safety", {"safety_weight": 1.0, "likelihood": True}),
}
# As the pipeline trains its models.
USUAL: dict[str, dict[str, Any]] = {
    "helpfulness": {"likelihood": True, "batch_size": 16, "lr": 1e-4},
    "safety": {"batch_size": 16},
}
FOLDERS = {"helpfulness": "v1/reward", "safety": "v1/safety"}


def chatter(path: Path) -> Chatter:
    """The chat model at `path`."""
    checkpoint = weights.load(path)
    return Chatter(Llama(checkpoint.config, checkpoint.params), checkpoint.tokenizer, checkpoint.chat_template)


def fresh_pairs(folder: Path, domain: str) -> list[EncodedPair]:
    """Pairs of the first round's models on other prompts, of the validation split, at milder temperatures than the
    round's: `collect.TEMPERATURES`.
    """
    gatt, sft = chatter(folder / "gatt"), chatter(folder / "sft")
    conversations = list(islice(collect.asked(domain, "validation", OTHER), PROMPTS))
    said = collect._two_answers(collect.variants([gatt, sft]), conversations, OTHER, None)
    found, annotator = collect.Collected(), Annotator(OTHER)
    for conversation, texts in zip(conversations, said, strict=True):
        collect.compare(conversation, texts, domain, annotator, found)
    encoded = (encode_pair(pair, gatt.template, gatt.tokenizer, 512)[0] for pair in found.pairs)
    return [pair for pair in encoded if pair is not None]


def trained(folder: Path, out: Path, domain: str, how: dict[str, Any] | None) -> RunFolder:
    """The run of a variant, trained if it is not there."""
    if how is None:
        return RunFolder(folder / FOLDERS[domain])
    data = preferences.load([folder / "v1" / f"{domain}.jsonl"])
    job = reward.job(str(folder / "gatt"), data, seed=SEED, **USUAL[domain] | how)
    run = RunFolder(out)
    reward.train_reward_model(job, run, SingleProcess())
    return run


def measured(run: RunFolder, pairs: list[EncodedPair]) -> dict[str, Any]:
    """Of a variant: its measures without a margin, so that all can be compared; the histogram of its scores; and of
    safety, what the paper's table 29 has.
    """
    scores = reward.score_pairs(RewardModel.load(run.path), pairs, Threads())
    found: dict[str, Any] = {
        "seconds": round((run.result() or {})["seconds"], 1),
        "measures": {name: round(value, 4) for name, value in reward.measure(scores, pairs).items()},
        "right": "".join("01"[int(chosen > rejected)] for chosen, rejected in scores),
        "histogram": np.histogram(sigmoid(scores), BINS, (0, 1))[0].tolist(),
        "deviation": round(float((scores - scores.mean(axis=1, keepdims=True)).std()), 4),
    }
    if pairs[0].safe is not None:
        found["labels"] = by_label(scores, np.array([pair.safe for pair in pairs]))
    return found


def by_label(scores: np.ndarray, safe: np.ndarray) -> dict[str, list[int]]:
    """How many of how many, for each column of the paper's table 29. scores, safe: (N, 2), chosen and rejected."""
    right = scores[:, 0] > scores[:, 1]
    kinds = {
        "safe chosen, unsafe rejected": safe[:, 0] & ~safe[:, 1],
        "both safe": safe.all(axis=1),
        "both unsafe": ~safe.any(axis=1),
    }
    found = {name: [int(right[of].sum()), int(of.sum())] for name, of in kinds.items()}
    found["unsafe recalled"] = [int((scores[~safe] < 0).sum()), int((~safe).sum())]
    found["safe below zero"] = [int((scores[safe] < 0).sum()), int(safe.sum())]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Reward models in variants, for chapter 17 of the book.")
    parser.add_argument("--out", type=Path, default=Path("runs/reward_models"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()

    folder = book.find("runs/mini/v1/safety/run.json", "make book").parents[2]
    pairs = {domain: fresh_pairs(folder, domain) for domain in FOLDERS}
    variants = {}
    for name, (domain, how) in VARIANTS.items():
        run = trained(folder, given.out / name.replace(" ", "-"), domain, how)
        variants[name] = measured(run, pairs[domain])
        if name == "two epochs":
            variants[name]["log"] = [
                {key: record[key] for key in ("step", "loss", "validation") if key in record}
                for record in book.read_log(run)
                if "sample" not in record
            ]
        accuracy = variants[name]["measures"]["accuracy"]
        print(f"{name}: {accuracy:.3f} of {len(pairs[domain])} pairs, {variants[name]['seconds']:.0f} s", flush=True)
    content = {
        "command": "python book/experiments/reward_models.py",
        "machine": bench.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pairs": {domain: len(those) for domain, those in pairs.items()},
        "ratings": {d: [reward.RATINGS.index(pair.rating or "") for pair in those] for d, those in pairs.items()},
        "variants": variants,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
