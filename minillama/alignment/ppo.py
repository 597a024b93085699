"""PPO: the chat model's own answers, scored by the reward models, become more or less likely (Llama 2, section 3.4.3).

ppo_prompts.py   prompts, and which of them are ones of safety
ppo_batch.py     answers as arrays: log-probabilities, values, rewards, advantages; both losses with their gradients
ppo_trainer.py   an iteration; the loop around it, with validation, early stopping, checkpoints
ppo_log.py       what is written down of it
ppo.py           a run: the models, the numbers, the folder

Our reading of what the paper leaves open:

- The value model begins as a copy of the helpfulness model (of the safety model, where it is the only one), but with a
  head of zeros, for what it is to say has another scale: rewards are whitened. It has an optimizer of its own, at ten
  times the policy's learning rate.
- With a warm-up (`value_warmup`) the value model learns alone at first. Else what an answer to one kind of prompt earns
  more than another kind is taken for the merit of its words: a small model begins to refuse everything.
- With several answers to a prompt (`answers`) each is compared with the others, not with what the value model, which
  a short run has hardly taught, expects of the prompt: gradients of different batches then agree better.
- γ = 1, λ = 0.95, advantages whitened over the batch, values clipped like the policy (lm-human-preferences).
- One gradient step a minibatch, and every answer is in one minibatch: one epoch.
- An answer that does not end within the length gets a fixed low score, `ppo_batch.UNFINISHED`.
- "Early stopping on held-out prompts": the result is the policy with the best held-out reward, KL deducted. A run may
  stop where that has not risen for a while (`patience`), or where the policy is too far away (`kl_limit`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minillama import catalog, weights
from minillama.alignment.ppo_batch import Judges
from minillama.alignment.ppo_prompts import Prompts, PromptSource, encode_prompts, end_token
from minillama.alignment.ppo_trainer import How, Models, Progress, Recipe, Trainer
from minillama.alignment.reward_model import SCORE, LoraRewardModel, RewardModel
from minillama.backend import Device, to_device
from minillama.chat import ChatTemplate
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.tokenizer import Tokenizer
from minillama.training.finetune import chat_template
from minillama.training.pretrain import fingerprint, load_initial
from minillama.training.run_folder import RunFolder, Settings

SMALL = 512  # a width; narrower models take smaller batches


def recipe(config: LlamaConfig, lora: bool = False, **changes: Any) -> Recipe:
    """Llama 2's, by width: a learning rate of 1e-6 at the width of 7B, 4096, more where it is smaller, in proportion;
    β 0.005 instead of 0.01 from the width of 34B on. With LoRA ten times the learning rate, for the adapters begin at
    zero. Models narrower than SMALL take batches of 64 answers and minibatches of 16.

    changes: fields of `Recipe`, None for what is said here; `value_lr` follows `lr`.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    lr = given.get("lr", 1e-6 * (4096 / config.dim) * (10 if lora else 1))
    usual = Recipe(
        lr=lr,
        value_lr=10 * lr,
        beta=0.01 if config.dim < 8192 else 0.005,
        max_new_tokens=min(128, max(1, config.max_seq_len // 2)),
    )
    if config.dim < SMALL:
        usual = replace(usual, batch_size=64, minibatch=16)
    if "batch_size" in given:
        usual = replace(usual, batch_size=given["batch_size"], minibatch=min(usual.minibatch, given["batch_size"]))
    if "iterations" in given:
        given.setdefault("validate_every", max(1, given["iterations"] // 10))
    return replace(usual, **given)


@dataclass(frozen=True)
class Job:
    """What to train, by what, and how. rewards: name -> checksum of each reward model."""

    models: Models
    rewards: dict[str, str]
    initial: str
    tokenizer: Tokenizer
    template: ChatTemplate
    source: PromptSource
    recipe: Recipe
    seed: int = 0
    how: How = field(default_factory=How)

    def settings(self) -> Settings:
        """What the numbers of the run depend on."""
        policy = self.models.policy
        return {
            "stage": "ppo",
            "model": asdict(policy.config),
            "initial": self.initial,
            "rewards": self.rewards,
            "lora": asdict(policy.lora) if isinstance(policy, LoraLlama) else None,
            "prompts": self.source.identity(),
            "tokenizer": self.tokenizer.sha256,
            "template": self.template.source,
            "seed": self.seed,
            **asdict(self.recipe),
        }

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt after which the longest answer still fits into every model's context."""
        judges = (self.models.judges.helpfulness, self.models.judges.safety)
        contexts = [judge.config.max_seq_len for judge in judges if isinstance(judge, RewardModel)]
        return min(self.models.policy.config.max_seq_len, *contexts) - self.recipe.max_new_tokens


def job(
    model: str,
    source: PromptSource,
    *,
    helpfulness: str | None = None,
    safety: str | None = None,
    template: str | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    seed: int = 0,
    device: Device = "cpu",
    how: How | None = None,
    **changes: Any,
) -> Job:
    """The job of training the chat model called `model` by one or two reward models.

    template: the name of a built-in one, None for the model's own. lora: the rank of adapters of policy and value
    model, None to train all weights; lora_alpha: None for twice that. changes: see `recipe`. Raises UsageError, and
    MinillamaError where a model cannot be loaded, or does not share vocabulary and template.
    """
    if helpfulness is None and safety is None:
        raise UsageError("ppo: expected a reward model, found none")
    llama, tokenizer, own = load_initial(model, device)
    if llama.config.head is not None:
        raise MinillamaError(f"{model}: expected a model that writes text, found a reward model, which scores it")
    chat = chat_template(template, own, tokenizer)
    loaded = {
        name: load_judge(place, device, tokenizer, chat)
        for name, place in (("helpfulness", helpfulness), ("safety", safety))
        if place is not None
    }
    adapters = None if lora is None else LoraConfig(lora, 2 * lora if lora_alpha is None else lora_alpha)
    return Job(
        models(llama, Judges(**loaded), next(iter(loaded.values())), adapters, seed=seed, base=model),
        {name: fingerprint(judge) for name, judge in loaded.items()},
        fingerprint(llama),
        tokenizer,
        chat,
        source,
        recipe(llama.config, lora is not None, **changes),
        seed,
        how or How(),
    )


def models(
    llama: Llama, judges: Judges, value: RewardModel, lora: LoraConfig | None = None, *, seed: int = 0, base: str = ""
) -> Models:
    """All models of a run: `llama`, which becomes the policy and is trained in place, and what it is compared with.

    value: the reward model that the value model begins as. The reference and the value model are copies; with adapters,
    whose bases are never written to, they share the weights. base: where `llama` can be found again.
    """
    if lora is None:
        policy, reference = llama, Llama(llama.config, {name: p.copy() for name, p in llama.params.items()})
        of_values = RewardModel.from_llama(value)
    else:
        policy, reference = LoraLlama.wrap(llama, lora, seed=seed, base=base), llama
        of_values = LoraRewardModel.wrap(value, replace(lora, also=(SCORE,)), seed=seed)  # type: ignore[assignment]
    of_values.params[SCORE][...] = 0
    return Models(policy, reference, of_values, judges)


def load_judge(name: str, device: Device, tokenizer: Tokenizer, template: ChatTemplate) -> RewardModel:
    """The reward model called `name`, which must see texts as the policy does: by the same tokenizer and template.

    Raises MinillamaError where it does not, or is none.
    """
    path = catalog.resolve(name)
    checkpoint = weights.load(path)
    if checkpoint.config.head is None:
        raise MinillamaError(f"{path}: expected a reward model, found a model that writes text")
    if checkpoint.tokenizer is None or checkpoint.tokenizer.sha256 != tokenizer.sha256:
        found = "none" if checkpoint.tokenizer is None else "another"
        raise MinillamaError(f"{path}: expected the tokenizer of the model that is trained, found {found}")
    if checkpoint.chat_template is None or checkpoint.chat_template.source != template.source:
        found = "none" if checkpoint.chat_template is None else f"another ({checkpoint.chat_template})"
        raise MinillamaError(f"{path}: expected the chat template of the model that is trained, found {found}")
    return RewardModel(checkpoint.config, {key: to_device(x, device) for key, x in checkpoint.params.items()})


def train_ppo(job: Job, folder: RunFolder, overwrite: bool = False) -> tuple[Progress, Prompts | None]:
    """Do the job in `folder`, or what of it is left.

    Returns where the run is, and the prompts; None where it had ended before. Raises UsageError where the folder holds
    another run.
    """
    end = end_token(job.template, job.tokenizer)
    if job.longest_prompt < 1:
        raise UsageError(f"max new tokens {job.recipe.max_new_tokens}: expected fewer than the context, for a prompt")
    settings = job.settings()
    with folder.begun(settings, overwrite):
        if result := folder.result():
            return Progress.from_json(folder.record, result), None
        prompts = encode_prompts(job.source, job.template, job.tokenizer, job.longest_prompt)
        trainer = Trainer(job.models, prompts, job.tokenizer, end, job.recipe, job.how, job.seed)
        return trainer.train(folder, settings, job.template), prompts
