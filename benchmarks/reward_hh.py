"""A reward model from SmolLM2-135M on real preferences, harmless-base of hh-rlhf: python -m benchmarks.reward_hh

Prompts are divided into folds by the hash of what the user says first. For each fold a model is trained on the pairs of
the others, one epoch of LoRA adapters and a head by the recipe of `minillama reward`, and scores the pairs of its own:
every pair is held out once, by one model. Each fold is a run of its own that goes on where it was stopped; what is
measured is kept in the folder too. Beside it stands what the lengths of the answers alone would say.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from minillama import bench
from minillama.alignment import preferences, reward
from minillama.alignment.preferences import Preferences
from minillama.alignment.reward import EncodedPair, Job
from minillama.alignment.reward_model import RewardModel
from minillama.training.distributed import SingleProcess
from minillama.training.run_folder import RunFolder
from minillama.training.threads import Threads


def run_fold(job: Job, held_out: Preferences, folder: Path) -> dict[str, Any]:
    """Train on the job's data, score those held out, or read what has been found before.

    Returns both parts' sizes, seconds on the clock and of all cores, and the scores.
    """
    kept = folder.with_suffix(".json")
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    clock, cores = time.perf_counter(), time.process_time()
    progress, _ = reward.train_reward_model(job, RunFolder(folder), SingleProcess())
    if not RunFolder(folder).result():
        raise SystemExit(f"{folder}: stopped after step {progress.step}; the same command goes on from there")
    trained = time.perf_counter() - clock, time.process_time() - cores
    pairs = encoded(job, held_out)
    clock, cores = time.perf_counter(), time.process_time()
    scores = reward.score_pairs(RewardModel.load(folder), pairs, Threads(job.threads))
    found = {
        "steps": progress.step,
        "train_step_seconds": progress.seconds,
        "train_seconds": trained[0],
        "train_core_seconds": trained[1],
        "score_seconds": time.perf_counter() - clock,
        "score_core_seconds": time.process_time() - cores,
        "scores": [[round(float(s), 5) for s in row] for row in scores],
        "lengths": [[len(pair.chosen), len(pair.rejected)] for pair in pairs],
    }
    kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def encoded(job: Job, data: Preferences) -> list[EncodedPair]:
    """Those pairs that fit the job's length."""
    found = (reward.encode_pair(pair, job.template, job.tokenizer, job.recipe.max_length)[0] for pair in data.pairs)
    return [pair for pair in found if pair is not None]


def shorter_is_better(lengths: Sequence[Sequence[int]]) -> dict[str, float]:
    """How often the chosen answer is the shorter one, the longer one: what a model of lengths alone could use."""
    chosen, rejected = np.array(lengths).T
    return {"shorter": float((chosen < rejected).mean()), "longer": float((chosen > rejected).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description="A reward model on hh-rlhf, every pair held out once.")
    parser.add_argument("--model", default="smollm2", help="default: smollm2")
    parser.add_argument("--data", default="hh-rlhf-sample", help="default: hh-rlhf-sample")
    parser.add_argument("--max-length", type=int, default=96, help="tokens of prompt and answer (default: 96)")
    parser.add_argument("--lora", type=int, default=8, help="rank of the adapters (default: 8)")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs (default: 16)")
    parser.add_argument("--lr", type=float, help="at its peak (default: the recipe's)")
    parser.add_argument("--folds", type=int, default=2, help="default: 2")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--micro-batch", type=int, default=2, help="pairs a thread runs at once (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("runs/reward_hh"), help="default: runs/reward_hh")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    given = parser.parse_args()

    data = preferences.load([given.data])
    folds = []
    for fold in range(given.folds):
        ours = [int(pair.held_out_at * given.folds) == fold for pair in data.pairs]
        train, held_out = (
            replace(data, pairs=[pair for pair, own in zip(data.pairs, ours, strict=True) if own == out])
            for out in (False, True)
        )
        train.files = [*data.files, {"fold": fold, "of": given.folds}]
        job = reward.job(
            given.model,
            train,
            template="chatml",  # without the system message of SmolLM2's own, 22 tokens a row
            batch_size=given.batch_size,
            max_length=given.max_length,
            lr=given.lr,
            lora=given.lora,
            held_out=0.0,
            threads=given.threads,
            rows=given.micro_batch,
            seed=given.seed,
        )
        folds.append(run_fold(job, held_out, given.out / f"fold-{fold}"))
        print(f"fold {fold}: {told(folds[-1:])}")
    print(f"all: {told(folds)}")
    if given.json:
        scores, pairs = together(folds)
        content = {
            "machine": bench.machine(),
            "load": os.getloadavg()[0],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": given.model,
            "data": data.files,
            "left_out": data.notices(),
            "recipe": asdict(job.recipe),
            "lora": given.lora,
            "seed": given.seed,
            "measures": reward.measure(scores, pairs),
            "p": p_value(scores),
            "lengths": shorter_is_better([row for fold in folds for row in fold["lengths"]]),
            "folds": folds,
        }
        given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


def together(folds: Sequence[dict[str, Any]]) -> tuple[np.ndarray, list[EncodedPair]]:
    """The scores of all folds, and as many pairs without content, for `reward.measure`."""
    scores = np.array([row for fold in folds for row in fold["scores"]])
    return scores, [EncodedPair([], [])] * len(scores)


def p_value(scores: np.ndarray) -> float:
    """Of so many right by chance."""
    return reward.binomial_p(int((scores[:, 0] > scores[:, 1]).sum()), len(scores))


def told(folds: Sequence[dict[str, Any]]) -> str:
    """A line of results."""
    scores, pairs = together(folds)
    measures = reward.measure(scores, pairs)
    lengths = shorter_is_better([row for fold in folds for row in fold["lengths"]])
    seconds = {name: sum(fold[name] for fold in folds) for name in ("train_core_seconds", "score_core_seconds")}
    return (
        f"accuracy {100 * measures['accuracy']:.1f} % of {len(pairs)} pairs held out, p = {p_value(scores):.2g}; "
        f"loss {measures['loss']:.4f}, calibration error {measures['calibration_error']:.3f}; the chosen answer is "
        f"shorter in {100 * lengths['shorter']:.1f} %, longer in {100 * lengths['longer']:.1f} %; core seconds: "
        f"training {seconds['train_core_seconds']:.0f}, scoring {seconds['score_core_seconds']:.0f}"
    )


if __name__ == "__main__":
    main()
