"""Over-optimization: PPO with and without a price on the divergence, judged as it goes, for chapter 22.

    python book/experiments/pipeline.py            # the chat models and the reward models
    python book/experiments/overoptimization.py    # in runs/overoptimization, then book/results/overoptimization.json

The policy begins as the chat model after Ghost Attention; its rewards are those of the first round's reward models. At
some iterations the judge, who is no part of the reward, sees the same requests answered. Each seed has its own models,
prompts and answers. A run that has ended is not done again.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import place
from safety import once

from minillama import bench
from minillama.alignment import ppo
from minillama.alignment.ppo_prompts import PPO_MIXTURE, encode_prompts, end_token, find_prompts
from minillama.alignment.ppo_trainer import Trainer
from minillama.alignment.rollout import Chatter
from minillama.alignment.scorer import Rewards, Scorer
from minillama.evaluation import record
from minillama.evaluation.record import Evaluation

RESULTS = Path(__file__).parents[1] / "results" / "overoptimization.json"
BETAS = {"free": 0.0, "priced": 0.5}  # what a nat of divergence costs
LR = 1e-4
WARMUP = 4  # iterations of the value model alone
ITERATIONS = 40
JUDGED = (0, 6, 8, 10, 12, 16, 20, 24, 32, 40)
COUNT = 200  # requests of each kind that the judge sees answered
LONGEST = 96  # tokens of an answer


def overoptimized(models: Path, seed: int, beta: float) -> dict[str, Any]:
    """A run of PPO, and what is measured of it on the way."""
    names = {name: str(models / "v1" / name) for name in ("reward", "safety")}
    job = ppo.job(
        str(models / "gatt"),
        find_prompts("miniature", seed, mixture=PPO_MIXTURE),
        helpfulness=names["reward"],
        safety=names["safety"],
        seed=seed,
        beta=beta,
        lr=LR,
        value_warmup=WARMUP,
        iterations=ITERATIONS,
        max_new_tokens=LONGEST,
    )
    prompts = encode_prompts(job.source, job.template, job.tokenizer, job.longest_prompt)
    end = end_token(job.template, job.tokenizer)
    trainer = Trainer(job.models, prompts, job.tokenizer, end, job.recipe, job.how, job.seed)
    chatter = Chatter(job.models.policy, job.tokenizer, job.template, LONGEST)
    rewards = Rewards(Scorer.load(names["reward"]), Scorer.load(names["safety"]))
    judged, training = [], []
    for step in range(ITERATIONS + 1):
        if step in JUDGED:
            found = record.evaluate(chatter, COUNT, 0, seed, rewards=rewards, reference=job.models.reference)
            judged.append(summary(step, found))
            print(f"seed {seed}, β {beta:g}, after {step}: {judged[-1]['measures']}", flush=True)
        if step < ITERATIONS:
            noted = trainer.iterate()
            training.append([round(noted[name], 4) for name in ("score", "kl", "answer_length", "entropy")])
    return {"beta": beta, "judged": judged, "training": training}


def summary(step: int, found: Evaluation) -> dict[str, Any]:
    """Of an evaluation: all measures, the reward models' means, the share of harmless requests refused, and an answer
    of each kind.
    """
    means = {
        f"{kind} {name}": round(float(found.values(kind, name).mean()), 4)
        for kind in record.KINDS
        for name in ("reward", "helpfulness", "safety", "refusal")
    }
    return {
        "step": step,
        "measures": {name: [round(float(x), 4) for x in estimate] for name, estimate in found.measures.items()},
        "means": means,
        "answers": {kind: found.answers[kind][0]["text"] for kind in record.KINDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO with and without a price on the divergence, for chapter 22.")
    parser.add_argument("--models", type=Path, default=Path("runs/pipeline"), metavar="FOLDER", help="of the pipelines")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimization"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()

    runs: list[dict[str, Any]] = [{"seed": seed} for seed in given.seeds]
    for run in runs:
        models, seed = place(run["seed"], given.models), run["seed"]
        for name, beta in BETAS.items():
            run[name] = once(given.out / f"seed-{seed}-{name}.json", partial(overoptimized, models, seed, beta))
    content = {
        "command": "python book/experiments/overoptimization.py",
        "machine": bench.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "lr": LR,
        "warmup": WARMUP,
        "requests": COUNT,
        "runs": runs,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
