"""Direct preference optimization (Rafailov et al., arXiv:2305.18290): preferences without a reward model.

The policy that is best under a reward r and the penalty β KL(π ‖ ref) has r = β log(π / ref) + a number that is the
same for all answers to a prompt. Put into the loss of a reward model, that number cancels: what is left trains the
policy itself.
"""

from __future__ import annotations

from minillama.alignment.masked import expect_shape
from minillama.alignment.ranking import ranking_loss, ranking_loss_backward
from minillama.backend import Array
from minillama.errors import UsageError


def implicit_reward(logprobs: Array, ref_logprobs: Array, beta: float) -> Array:
    """r = β (log π(answer) − log ref(answer)). logprobs, ref_logprobs: (B,), summed over an answer's tokens. -> (B,).

    The reward by which a trained policy judges; its difference within a pair is what the loss is of. Raises UsageError
    where shapes differ or beta is not above 0.
    """
    if not beta > 0:
        raise UsageError(f"DPO beta: expected a positive number, found {beta}")
    expect_shape(logprobs.shape, "the policy's log-probabilities", ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs)


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
    chosen_reward, rejected_reward = (
        implicit_reward(logprobs, ref, beta) for logprobs, ref in ((chosen, ref_chosen), (rejected, ref_rejected))
    )
    loss, saved = ranking_loss(chosen_reward, rejected_reward, count=count)
    return loss, (saved, beta)


def dpo_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> tuple[Array, Array]:
    """Gradients of `dpo_loss` for the policy: dchosen = −β σ(r_r − r_c) / N, drejected = −dchosen, r as implied.

    The more a pair is judged wrongly, the more it weighs. Returns both, (B,).
    """
    saved_ranking, beta = saved
    dchosen, drejected = ranking_loss_backward(saved_ranking, dloss)
    return dchosen * beta, drejected * beta
