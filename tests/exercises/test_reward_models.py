"""Chapter 17's solutions do what the package does, and train a reward model in its place."""

import numpy as np
import pytest

from minillama.alignment import dpo, ranking, reward
from minillama.alignment.reward import as_batch, measure, preference_loss, score_pairs
from minillama.alignment.reward_model import RewardModel
from minillama.errors import MinillamaError
from minillama.exercises.chapter import load_chapter
from minillama.exercises.examine import examine
from minillama.exercises.swap import swapped
from minillama.exercises.worker import load_file
from tests.alignment.test_reward import PAIRS, lively, with_likelihood

CHAPTER = load_chapter("ch17")


def learned(model):
    """Loss and gradients of the safety model's two losses, and what is measured of it."""
    loss, grads = preference_loss(model, as_batch(PAIRS), 2.0 * len(PAIRS), 0.5)
    return loss, grads, measure(score_pairs(model, PAIRS), PAIRS, 0.5)


@pytest.mark.parametrize("made", [lively, with_likelihood])
def test_a_learner_s_losses_train_the_model(made, solved):
    model = made()
    loss, grads, measures = learned(model)
    before = ranking.ranking_loss, reward.safety_loss_backward, reward._calibration, RewardModel.rewards
    with swapped(solved, [CHAPTER]) as (yours, unwritten):
        assert yours == [exercise.name for exercise in CHAPTER.exercises]
        assert unwritten == []
        assert reward.ranking_loss is dpo.ranking_loss is ranking.ranking_loss is not before[0]
        ours, own_grads, own_measures = learned(model)
    assert (ranking.ranking_loss, reward.safety_loss_backward, reward._calibration, RewardModel.rewards) == before
    assert dpo.ranking_loss is reward.ranking_loss is before[0]
    assert ours == pytest.approx(float(loss), rel=1e-13)
    for name, grad in grads.items():
        np.testing.assert_allclose(own_grads[name], grad, rtol=1e-10, atol=1e-14)
    assert own_measures == pytest.approx(measures, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("rewards", "at = np.arange(len(values)), last - 1\nreturn values[at], (at, values.shape)"),
        ("ranking_loss_backward", "x, n = saved\nreturn x / n, -x / n"),
        ("safety_loss", "return scores.sum(), (scores, safe)"),
    ],
)
def test_what_is_wrong_is_run_too(name, body, answer):
    model = lively()
    loss, grads, _ = learned(model)
    with swapped(answer("ch17", name, body).parent, [CHAPTER]):
        try:
            ours, own_grads, _ = learned(model)
        except MinillamaError:
            return  # a backward pass that cannot read what the other has saved
    assert abs(ours - loss) > 1e-6 or any(np.abs(own_grads[name] - grads[name]).max() > 1e-6 for name in grads)


def test_unlike_shapes_must_raise(answer):
    body = "apart = chosen - rejected - (0 if margin is None else margin)\n"
    body += "n = max(apart.size, 1) if count is None else count\nreturn -log_sigmoid(apart).sum() / n, (apart, n)"
    path = answer("ch17", "ranking_loss", body)
    verdict = examine(CHAPTER.find("ranking_loss"), load_file(path), CHAPTER.solutions, path)
    assert verdict.state == "failed"
    assert verdict.message.startswith("Scores (3,) with a margin (3, 1) went through")
