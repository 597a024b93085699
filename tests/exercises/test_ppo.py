"""Chapter 19's solutions do what the package does, and PPO trains by them in its place."""

import numpy as np
import pytest

from minillama.alignment import advantages, policy, ppo_batch, ppo_trainer
from minillama.exercises.chapter import load_chapter
from minillama.exercises.swap import swapped
from tests.alignment.tiny_ppo import run, trainer

CHAPTER = load_chapter("ch19")
TIMES = ("tokens_per_second", "seconds")


def iterated(count=2):
    """What the log says of so many iterations, and the policy and the value model after them."""
    made = trainer()
    records = [made.iterate() for _ in range(count)]
    for name in TIMES:
        for record in records:
            del record[name]
    return records, {**made.models.policy.params, **{f"value.{n}": p for n, p in made.models.value.params.items()}}


def test_a_learner_s_ppo_trains_the_model(solved):
    expected, params = iterated()
    before = policy.policy_loss, advantages.gae, advantages.kl_k1
    with swapped(solved, [CHAPTER]) as (yours, unwritten):
        assert yours == [exercise.name for exercise in CHAPTER.exercises]
        assert unwritten == []
        assert ppo_batch.gae is advantages.gae is not before[1]
        assert ppo_trainer.kl_k1 is advantages.kl_k1 is not before[2]
        records, ours = iterated()
    assert (ppo_batch.policy_loss, ppo_batch.gae, ppo_trainer.kl_k1) == before
    for record, other in zip(records, expected, strict=True):
        assert record == pytest.approx(other, rel=1e-6, abs=1e-7)
    for name, p in params.items():
        np.testing.assert_allclose(ours[name], p, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("token_rewards", "return np.where(mask, scores[:, None] + beta * (logprobs - ref_logprobs), 0)"),
        ("gae", "masked_values = np.where(mask, values, 0)\nreturn rewards - masked_values, rewards"),
        ("whiten", "return x"),
        ("policy_loss_backward", "return -saved[0] * dloss"),
        ("value_loss_backward", "return -saved[0] * dloss"),
    ],
)
def test_what_is_wrong_is_run_too(name, body, answer):
    _, params = iterated(1)
    with swapped(answer("ch19", name, body).parent, [CHAPTER]):
        _, ours = iterated(1)
    assert any(np.abs(ours[n] - p).max() > 1e-5 for n, p in params.items())


def test_a_run_to_its_end_by_the_learner_s_functions(solved, tmp_path):
    with swapped(solved, [CHAPTER]):
        _, progress = run(tmp_path / "run", iterations=3)
    _, expected = run(tmp_path / "package", iterations=3)
    assert progress.step == 3
    assert progress.validation == pytest.approx(expected.validation, rel=1e-6, abs=1e-7)
