"""The worker of `minillama bench decode` for transformers: generate() in float32 on the CPU, with its KV cache.

python benchmarks/decode_transformers.py MODEL BATCHES PROMPT NEW SEED; see minillama/bench.py for what that means.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from minillama.bench import DECODE_PROMPT, NOT_INSTALLED, REPEATS, Speed, cores, peak_memory

try:
    import torch
    import transformers
except ImportError:
    sys.exit(NOT_INSTALLED)


class Clock(transformers.StoppingCriteria):
    """Asked after every step whether to stop: never, but it notes the time."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # noqa: ARG002
        self.marks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(path: Path) -> transformers.PreTrainedModel:
    """A Hugging Face folder, or a GGUF that transformers dequantizes to float32."""
    source = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source)
    return model.eval()


@torch.inference_mode()
def measure(path: Path, batches: list[int], prompt_tokens: int, new_tokens: int, seed: int) -> Speed:
    started = time.perf_counter()
    model = load(path)
    loaded = time.perf_counter() - started
    rng = np.random.default_rng(seed)

    def seconds(batch: int, prompt: int, new: int) -> tuple[float, float]:
        """Seconds to the first tokens, and from there to the last."""
        ids = torch.from_numpy(rng.integers(model.config.vocab_size, size=(batch, prompt)))
        settings = transformers.GenerationConfig(
            max_new_tokens=new, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        clock = Clock()
        begun = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        assert len(clock.marks) == new, (len(clock.marks), new)
        return clock.marks[0] - begun, clock.marks[-1] - clock.marks[0]

    seconds(1, DECODE_PROMPT, 2)
    prefill = min(seconds(1, prompt_tokens, 1)[0] for _ in range(REPEATS))
    decode = {}
    for batch in batches:
        best = min(seconds(batch, DECODE_PROMPT, new_tokens)[1] for _ in range(REPEATS))
        decode[batch] = batch * (new_tokens - 1) / best
    name = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return Speed(name, loaded, prompt_tokens / prefill, decode, peak_memory())


def main() -> None:
    path, batches, prompt, new, seed = sys.argv[1:6]
    torch.set_num_threads(cores())
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    speed = measure(Path(path), [int(b) for b in batches.split(",")], int(prompt), int(new), int(seed))
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    main()
