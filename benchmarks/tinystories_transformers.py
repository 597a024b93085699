"""The peer of benchmarks/tinystories.py: python -m benchmarks.tinystories_transformers MODEL DATA PLAN

MODEL: the initial weights, a Hugging Face folder. DATA: prepared tokens. PLAN: JSON, the fields of `Plan`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from itertools import islice

from benchmarks.tinystories import Plan
from minillama.bench import NOT_INSTALLED, cores
from minillama.data import TokenData
from minillama.training.batches import Windows, in_order
from minillama.training.pretrain import VALIDATION_TOKENS
from minillama.training.schedule import CosineSchedule

try:
    import torch
    import transformers
except ImportError:
    sys.exit(NOT_INSTALLED)


def cross_entropy(model: transformers.PreTrainedModel, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of every token (B, T), in nats."""
    logits = model(input_ids=tokens).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


@torch.inference_mode()
def nats_per_byte(model: transformers.PreTrainedModel, data: TokenData, seq_len: int) -> float:
    """As `Pretraining.validate` measures it."""
    split, nats, count = data.validation, 0.0, 0
    batches = in_order(split, seq_len, batch_size=max(1, 2048 // seq_len))
    for batch in islice(batches, math.ceil(VALIDATION_TOKENS / max(2048, seq_len))):
        mask = torch.from_numpy(batch["loss_mask"]).flatten()
        losses = cross_entropy(model, torch.from_numpy(batch["tokens"]), torch.from_numpy(batch["targets"]))
        nats += float(losses[mask].sum(dtype=torch.float64))
        count += int(mask.sum())
    return nats / count * len(split) / split.bytes


def main() -> None:
    folder, data, plan = sys.argv[1], TokenData(sys.argv[2]), Plan(**json.loads(sys.argv[3]))
    torch.set_num_threads(cores())
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", use_cache=False
    ).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-5,
        fused=True,
    )
    schedule = CosineSchedule(plan.lr, plan.steps, plan.warmup_steps)
    windows = Windows(data.train, plan.seq_len, plan.batch_size, plan.seed)
    losses, validations, seconds = [], [], 0.0
    for step in range(plan.steps):
        started = time.perf_counter()
        batch = {name: torch.from_numpy(x) for name, x in windows.batch(step).items()}
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        loss = cross_entropy(model, batch["tokens"], batch["targets"]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append([step + 1, loss.item()])
        seconds += time.perf_counter() - started
        if (step + 1) % plan.validate_every == 0 or step + 1 == plan.steps:
            validations.append([step + 1, nats_per_byte(model, data, plan.seq_len)])
    print(json.dumps({"loss": losses, "validation": validations, "seconds": seconds}))


if __name__ == "__main__":
    main()
