"""What a run of PPO says while it goes on, and its log read again for plots.

`log.jsonl` has one record an iteration, its "step":

    score, helpfulness, safety      mean over answers: LOGIT(R_c), and what each reward model says
    reward                          mean of the score less β KL; the score in deviations of the initial model's held-out
                                    answers from their mean, an answer without an end counted as `ppo_batch.UNFINISHED`
    kl, kl_k3                       KL(policy ‖ reference) of an answer, summed over its tokens: k1 and k3, means
    entropy                         nats a token
    ratio_mean, ratio_min, ratio_max, clip_fraction, approx_kl     over all minibatches, as `policy.policy_measures`
    loss, value_loss                means over minibatches; explained_variance of the returns by the values
    answer_length, finished         mean number of tokens; the share that came to its end
    score_by_length                 the correlation of an answer's score with its length
    advantage_mean, advantage_std   before they are whitened
    grad_norm, value_grad_norm      means over minibatches, before clipping
    sampling_gap                    the largest |log π of the sampler − log π of the scoring pass|: rounding, or a bug
    tokens, tokens_per_second, seconds    of prompts and answers; sampled, scored and learned

Beside these, records of validations ("validation": reward, score, kl, answer_length and finished on held-out prompts)
and of samples ("sample": a text).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillama.data.sources import jsonl_records
from minillama.training.logs import Record, Terminal


class PPOTerminal(Terminal):
    """The terminal line of an iteration."""

    def _told(self, record: Record) -> str:
        return (
            f"reward {record['reward']:+.3f} · score {record['score']:+.3f} · KL {record['kl']:.2f} · "
            f"clipped {100 * record['clip_fraction']:.1f} % · length {record['answer_length']:.0f} · "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )


@dataclass(frozen=True)
class Curves:
    """A log as arrays. training, validation: name -> values, "step" among the names. samples: (step, text)."""

    training: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    samples: list[tuple[int, str]]


def read_log(path: str | Path) -> Curves:
    """The log of a run: `path` is its `log.jsonl`, or its folder. Raises MinillamaError where it cannot be read."""
    path = Path(path)
    records = [record for _, record in jsonl_records(path / "log.jsonl" if path.is_dir() else path)]
    training = [record for record in records if "reward" in record]
    validation = [{"step": record["step"], **record["validation"]} for record in records if "validation" in record]
    samples = [(record["step"], record["sample"]) for record in records if "sample" in record]
    return Curves(_columns(training), _columns(validation), samples)


def _columns(records: list[Record]) -> dict[str, np.ndarray]:
    return {name: np.array([record[name] for record in records]) for name in (records[0] if records else ())}
