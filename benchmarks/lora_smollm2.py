"""LoRA on a laptop: SmolLM2-135M finetuned on a small JSONL file, on the CPU.

    python -m benchmarks.lora_smollm2      # minutes; writes benchmarks/results/lora_smollm2_cpu.json

The file holds short dialogues of the miniature's world, of which the model knows nothing. Measured are the loss of
dialogues held out by content, before and after, and the time; with PEFT installed, how far its logits with the saved
adapter are from ours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minillama import Llama, bench, catalog, weights
from minillama.data.dialogues import find_dialogues, write_records
from minillama.miniature.dialogues import helpful
from minillama.miniature.export import record
from minillama.training import finetune
from minillama.training.distributed import SingleProcess
from minillama.training.run_folder import RunFolder

TRAIN, HELD_OUT = 160, 24  # dialogues
RANK = 8


def dialogues(path: Path) -> Path:
    """The JSONL file, its validation split held out by content."""
    kinds = (("train", TRAIN), ("validation", HELD_OUT))
    write_records(path, ({**record(c), "split": split} for split, n in kinds for c in islice(helpful(split), n)))
    return path


def peft_difference(adapter: Path, tokens: np.ndarray) -> float | None:
    """The largest difference between PEFT's logits and ours, in units of the largest logit; None without PEFT."""
    try:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    gguf = catalog.resolve("smollm2")
    base = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, str(adapter)).eval()(torch.from_numpy(tokens)).logits.numpy()
    checkpoint = weights.load(adapter)
    model = Llama(checkpoint.config, checkpoint.params)
    ours = model.logits(model.forward(tokens)[0])
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Train, and say what came of it."""
    job = finetune.job(
        "smollm2", find_dialogues(dialogues(folder / "dialogues.jsonl")), lora=RANK, size=256, batch_size=4, seed=seed
    )
    data = finetune.encode_all(job.source, job.template, job.tokenizer, job.recipe.size)
    before = finetune.Finetuning(data, job.recipe.size, job.recipe.batch_size, 1).validate(job.model)
    started, cpu = time.perf_counter(), time.process_time()
    progress, _ = finetune.finetune(job, RunFolder(folder / "adapter"), SingleProcess())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    tokens = np.array([data.validation[0].tokens])
    return {
        "seed": seed,
        "rank": RANK,
        "trained": sum(p.size for p in job.model.trained.values()),
        "dialogues": TRAIN,
        "steps": progress.step,
        "lr": job.recipe.lr,
        "loss_before": before["loss"],
        "loss_after": progress.validation["loss"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peft_difference": peft_difference(folder / "adapter", tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="LoRA on SmolLM2, on the CPU.")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/lora_smollm2_cpu.json"), metavar="FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.seed, Path(folder))
    lower = 1 - found["loss_after"] / found["loss_before"]
    print(
        f"held-out loss {found['loss_before']:.3f} -> {found['loss_after']:.3f} ({100 * lower:.0f} % lower) in "
        f"{found['seconds']:.0f} s, {found['steps']} steps of {found['trained']:,} trained parameters; "
        f"PEFT's logits differ by {found['peft_difference']} of the largest"
    )
    content = {
        "command": "python -m benchmarks.lora_smollm2",
        "machine": bench.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **found,
    }
    given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
