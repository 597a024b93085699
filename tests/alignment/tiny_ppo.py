"""PPO that a few thousand parameters learn in a second: say one token more often.

`python -m tests.alignment.tiny_ppo FOLDER ITERATIONS KILL DELAY` runs it in a process of its own, which ends itself as
kill -9 does, DELAY seconds after iteration KILL has begun; without these two it runs to the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minillama.alignment import ppo
from minillama.alignment.ppo_batch import Judges
from minillama.alignment.ppo_prompts import EncodedPrompt, Prompts
from minillama.alignment.ppo_trainer import How, Models, Progress, Recipe, Trainer
from minillama.alignment.reward_model import SCORE, RewardModel
from minillama.chat import LLAMA2
from minillama.config import LlamaConfig
from minillama.lora import LoraConfig
from minillama.model import Llama
from minillama.training.run_folder import RunFolder
from tests.training.tiny import ends_itself
from tests.weights.support import tiny_tokenizer

FAVOURITE, END = 5, 2
CONFIG = LlamaConfig(16, 2, 2, 32, vocab_size=12, n_kv_heads=1, max_seq_len=32)
RECIPE = Recipe(
    iterations=6,
    batch_size=16,
    minibatch=8,
    lr=3e-3,
    value_lr=1e-2,
    max_new_tokens=8,
    validate_every=2,
)


class Favourite:
    """A stub of a reward model: the share of the answer's tokens that are FAVOURITE, of a text of any prompt."""

    def rewards(self, tokens: Any, last: Any, *, first: Any = None, recompute: bool = False) -> tuple[Any, None]:  # noqa: ARG002
        inside = np.arange(tokens.shape[1]) <= np.asarray(last)[:, None]  # (T,) <= (B, 1) -> (B, T)
        return 4 * ((tokens == FAVOURITE) & inside).sum(axis=1) / (np.asarray(last) + 1) - 1.0, None


def prompts(train: int = 24, held_out: int = 16) -> Prompts:
    """Prompts of one to five tokens, none of them FAVOURITE or END; every third is one of safety."""
    rng = np.random.default_rng(11)
    drawn = [
        EncodedPrompt([1, *rng.integers(6, 12, int(rng.integers(0, 5))).tolist()], i % 3 == 0, f"prompt {i}")
        for i in range(train + held_out)
    ]
    return Prompts(drawn[:train], drawn[train:])


def policy(dtype: Any = np.float32, config: LlamaConfig = CONFIG) -> Llama:
    """A model whose every weight matters, which ends about every second answer by itself."""
    model = Llama.init(config, seed=1, dtype=np.float64)
    rng = np.random.default_rng(3)
    params = {n: p * 8 if p.ndim > 1 else p + 0.2 * rng.standard_normal(p.shape) for n, p in model.params.items()}
    return Llama(config, {name: p.astype(dtype) for name, p in params.items()})


def value(dtype: Any = np.float32) -> RewardModel:
    """A value model that is not the policy's twin."""
    params = RewardModel.from_llama(policy(np.float64), seed=2).params
    rng = np.random.default_rng(4)
    params = {n: p + 0.1 * rng.standard_normal(p.shape) for n, p in params.items()}
    params[SCORE] = params[SCORE] * 2
    model = RewardModel.from_llama(policy(np.float64))
    return RewardModel(model.config, {name: p.astype(dtype) for name, p in params.items()})


def models(
    dtype: Any = np.float32, lora: LoraConfig | None = None, judges: Judges | None = None, base: str = ""
) -> Models:
    """With values that are not 0, as they are after some updates."""
    made = ppo.models(policy(dtype), judges or Judges(Favourite()), value(dtype), lora, base=base)
    made.value.params[SCORE][...] = value(dtype).params[SCORE]
    return made


def trainer(seed: int = 0, **changes: Any) -> Trainer:
    """changes: arguments of `models`, fields of `Recipe` or of `How`."""
    who = {name: changes.pop(name) for name in ("dtype", "lora", "judges", "base") if name in changes}
    how = {"threads": 1} | {name: changes.pop(name) for name in list(changes) if name in How.__dataclass_fields__}
    recipe = Recipe(**asdict(RECIPE) | changes)
    return Trainer(models(**who), prompts(), tiny_tokenizer(), END, recipe, How(**how), seed)


def run(
    folder: Path, iterations: int = RECIPE.iterations, before: Callable[[int], None] | None = None, **changes: Any
) -> tuple[Trainer, Progress]:
    """A run in `folder` to its end, or what is left of it."""
    made = trainer(iterations=iterations, **changes)
    if before is not None:
        iterate = made.iterate

        def iterated() -> dict[str, Any]:
            before(made.progress.step)
            return iterate()

        made.iterate = iterated  # type: ignore[method-assign]
    place, settings = RunFolder(folder), {"stage": "tiny ppo", "iterations": iterations}
    with place.begun(settings):
        return made, made.train(place, settings, LLAMA2)


if __name__ == "__main__":
    folder, iterations, *kill = sys.argv[1:]
    run(Path(folder), int(iterations), ends_itself(int(kill[0]), float(kill[1])) if kill else None, save_every=2)
