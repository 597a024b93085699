"""Chapter 20: rounds V1 to V5. Write the functions; the chapter says what each is for.

    minillama exercises check ch20      what is right, and the first thing that is not
    minillama exercises hint ch20       the next hint

When 20.1 and 20.2 are right, they keep the pool of a round, the second here (`make book` has made the first):

    minillama exercises run --with ch20 -- reject --model runs/mini/v1/reject --reward runs/mini/v2/reward \
        --pool runs/mini/v1/reject/pool.jsonl --data miniature:60 --samples 4 --out runs/my-round

When 20.3 to 20.6 are right, they train on a round's preferences without any reward model:

    minillama exercises run --with ch20 -- dpo --model runs/mini/gatt --data runs/mini/v1/helpfulness.jsonl \
        --out runs/my-dpo

B pairs; V vocabulary; π the model that is trained, ref what it was before. Log-probabilities are in nats.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.rejection import KEEP, Candidate, Pool
from minillama.alignment.scorer import Rewards
from minillama.backend import Array
from minillama.pipeline.runner import Stage

# 20.1 · warm-up --------------------------------------------------------------


def best_in_pool(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of each prompt the candidate with the highest reward, the first of equals.

    candidates: answers of all rounds, each with prompt, answer and reward, in any order; two have the same prompt where
    their messages are the same. Returns a list with one of each prompt.
    """
    # Hint: A dict from prompt to the best candidate so far; then its values.
    raise NotImplementedError


# 20.2 · core -----------------------------------------------------------------
# rewards(prompts, answers) gives an array of numbers, LOWEST (of minillama.alignment.scorer) for an answer that cannot
# be chosen; such a one leaves the pool. Returns Pool(candidates).


def pooled(earlier: Sequence[Candidate], fresh: Sequence[Candidate], rewards: Rewards, keep: int = KEEP) -> Pool:
    """The pool after a round: of each prompt the `keep` best different answers, by the newest reward model.

    earlier: with rewards by any model; they are scored anew. fresh: of this round, scored by `rewards` already.
    """
    # Hint: Score the earlier ones anew: two reward models have two scales, and only numbers of one can be compared.
    raise NotImplementedError


# 20.3 · core -----------------------------------------------------------------
# As `saved`, return whatever your token_logprobs_backward will need.


def token_logprobs(
    logits: Array, targets: Array, mask: Array | None = None, *, temperature: float = 1.0
) -> tuple[Array, tuple]:
    """y = log softmax(logits / τ)[target].

    logits: (..., V) float. targets: (...) integers in [0, V), anything where the mask is false. mask: (...) bool, None
    for all. temperature: τ, the one that the tokens are sampled at: whatever is compared with the sampling policy, the
    reference too, must be divided by the same. Returns y (...), 0 where the mask is false; float32 where the logits
    are narrower. Raises UsageError where the temperature is not above 0.

    What is kept is two numbers a row; the backward pass makes the softmax anew.
    """
    # Hint: log softmax(z)[target] = z[target] - log Σ e^z with z = logits / τ; take the highest z of each row off
    # first.
    raise NotImplementedError


# 20.4 · core -----------------------------------------------------------------
# With `overwrite` you may put the gradient into the logits' memory, or leave that be.


def token_logprobs_backward(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    """Gradient of `token_logprobs`: dlogits = dy (onehot(target) − softmax(logits / τ)) / τ, 0 where the mask is false.

    dy: (...). overwrite: let the gradient take the logits' memory, which is the largest array of a training step.
    Returns dlogits (..., V), of the logits' type.
    """
    # Hint: Of log softmax(z)[target] by z: onehot(target) - softmax(z), what is there less what was expected.
    raise NotImplementedError


# 20.5 · core -----------------------------------------------------------------
# As `saved`, return whatever your dpo_loss_backward will need.


def dpo_loss(
    chosen: Array,
    rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    *,
    beta: float = 0.1,
    count: float | None = None,
) -> tuple[Array, tuple]:
    """loss = −1/N Σ log σ(β (log π(y_c) − log ref(y_c)) − β (log π(y_r) − log ref(y_r))).

    chosen, rejected: (B,) float, log-probabilities of the answers under the policy, each the sum over the answer's
    tokens. ref_chosen, ref_rejected: (B,), the same under the reference, which is not trained. beta: how dear it is to
    leave the reference; the paper's 0.1. count: N, where these pairs are a part of a larger batch; None for B. Returns
    the loss as a 0-d array. Raises UsageError where shapes differ or beta is not above 0.
    """
    # Hint: The reward of an answer is β (log π - log ref): how much likelier it has become.
    raise NotImplementedError


# 20.6 · core -----------------------------------------------------------------


def dpo_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> tuple[Array, Array]:
    """Gradients of `dpo_loss` for the policy: dchosen = −β σ(r_r − r_c) / N, drejected = −dchosen, r as implied.

    The more a pair is judged wrongly, the more it weighs. Returns both, (B,).
    """
    # Hint: By the rewards it is what chapter 17 has: -σ(r_r - r_c) / N for the chosen one, the opposite for the other.
    raise NotImplementedError


# 20.7 · stretch --------------------------------------------------------------
# A stage has name; command, texts and Made(stage, file) where it reads another stage's output; reads(), the names of
# these; and checksum, of what it reads that no stage makes. Returns name -> key, a text. It is tried by which keys
# change when a stage does: these stages are made again.


def keys(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of each stage. Raises UsageError where a stage reads what none before it makes, or two have a name."""
    # Hint: A checksum of the command, hashlib.sha256(json.dumps(...).encode()).hexdigest(), changes when that does.
    raise NotImplementedError
