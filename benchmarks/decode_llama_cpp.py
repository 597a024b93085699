"""The worker of `minillama bench decode` for llama.cpp: F32 weights (a GGUF that minillama converts), F32 KV cache.

python benchmarks/decode_llama_cpp.py MODEL BATCHES PROMPT NEW SEED; see minillama/bench.py for what that means.
It drives llama.cpp by its C interface, so that no time is spent in the Python around it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from minillama.bench import DECODE_PROMPT, NOT_INSTALLED, REPEATS, Speed, cores, peak_memory

try:
    import llama_cpp
except ImportError:
    sys.exit(NOT_INSTALLED)

GGML_TYPE_F32 = 0
CONVERT = "import sys; from minillama import weights; weights.save(weights.load(sys.argv[1]), sys.argv[2])"


class Engine:
    """One F32 GGUF in memory; `seconds` decodes greedily with it."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C holds no reference to it
        llama_cpp.llama_log_set(self._quiet, None)
        settings = llama_cpp.llama_model_default_params()
        settings.use_mmap = False  # as the others: in memory of its own
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def seconds(self, prompts: np.ndarray, new: int) -> tuple[float, float]:
        """Seconds to the first tokens of every prompt (B, T), and from there to the last."""
        batch, length = prompts.shape
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = batch * (length + new)
        settings.n_batch = settings.n_ubatch = max(batch * length, 512)
        settings.n_seq_max = batch
        settings.kv_unified = batch == 1
        settings.n_threads = settings.n_threads_batch = cores()
        settings.type_k = settings.type_v = GGML_TYPE_F32
        context = llama_cpp.llama_init_from_model(self.model, settings)
        buffer = llama_cpp.llama_batch_init(batch * length, 0, 1)
        try:
            begun = time.perf_counter()
            tokens = self._step(context, buffer, prompts, 0)
            first = time.perf_counter()
            for position in range(length, length + new - 1):
                tokens = self._step(context, buffer, tokens[:, None], position)
            return first - begun, time.perf_counter() - first
        finally:
            llama_cpp.llama_batch_free(buffer)
            llama_cpp.llama_free(context)

    def _step(self, context: object, buffer: object, tokens: np.ndarray, position: int) -> np.ndarray:
        """Tokens (B, T) that stand at `position` and after; the most likely next one of each row (B,)."""
        batch, length = tokens.shape
        buffer.n_tokens = batch * length
        for place, (row, step) in enumerate(np.ndindex(batch, length)):
            buffer.token[place] = int(tokens[row, step])
            buffer.pos[place] = position + step
            buffer.n_seq_id[place] = 1
            buffer.seq_id[place][0] = row
            buffer.logits[place] = step == length - 1
        if code := llama_cpp.llama_decode(context, buffer):
            sys.exit(f"llama_decode failed with {code}")
        chosen = []
        for row in range(batch):
            logits = llama_cpp.llama_get_logits_ith(context, (row + 1) * length - 1)
            chosen.append(int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax()))
        return np.array(chosen)


def measure(path: Path, batches: list[int], prompt_tokens: int, new_tokens: int, seed: int) -> Speed:
    started = time.perf_counter()
    engine = Engine(path)
    loaded = time.perf_counter() - started
    rng = np.random.default_rng(seed)

    def seconds(batch: int, prompt: int, new: int) -> tuple[float, float]:
        return engine.seconds(rng.integers(engine.vocab_size, size=(batch, prompt)), new)

    seconds(1, DECODE_PROMPT, 2)
    prefill = min(seconds(1, prompt_tokens, 1)[0] for _ in range(REPEATS))
    decode = {}
    for batch in batches:
        best = min(seconds(batch, DECODE_PROMPT, new_tokens)[1] for _ in range(REPEATS))
        decode[batch] = batch * (new_tokens - 1) / best
    return Speed(f"llama.cpp F32, {llama_cpp.__version__}", loaded, prompt_tokens / prefill, decode, peak_memory())


def main() -> None:
    source, batches, prompt, new, seed = sys.argv[1:6]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.gguf"
        # In a process of its own: the peak of this one is to be llama.cpp's.
        subprocess.run([sys.executable, "-c", CONVERT, source, str(path)], check=True)
        speed = measure(path, [int(b) for b in batches.split(",")], int(prompt), int(new), int(seed))
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    main()
