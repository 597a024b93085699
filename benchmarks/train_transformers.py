"""The worker of benchmarks/train.py for transformers: python -m benchmarks.train_transformers CONFIG STEPS MODE

MODE is eager or compiled.
"""

from __future__ import annotations

import sys
import time

from benchmarks.train import SETTINGS, report, tokens_of
from minillama.bench import NOT_INSTALLED, cores

try:
    import torch
    import transformers
except ImportError:
    sys.exit(NOT_INSTALLED)


def main() -> None:
    setting, steps, mode = SETTINGS[sys.argv[1]], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    config = setting.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
            use_cache=False,
        )
    ).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=3e-4,
        betas=(0.9, 0.95),
        eps=1e-5,
        fused=True,
    )
    forward = torch.compile(model) if mode == "compiled" else model
    tokens = torch.from_numpy(tokens_of(setting))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        logits = forward(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, config.vocab_size), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    report(f"transformers {transformers.__version__}, torch {torch.__version__}", seconds, loss.item())


if __name__ == "__main__":
    main()
