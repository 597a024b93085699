"""Chapter 20's solutions do what the package does: a round's pool, training on preferences, the pipeline's keys."""

import numpy as np
import pytest

from minillama import layers
from minillama.alignment import dpo, dpo_training, rejection
from minillama.alignment.dpo_training import as_batch, preference_loss
from minillama.alignment.rejection import Candidate, Pool, pooled
from minillama.exercises.chapter import load_chapter
from minillama.exercises.swap import swapped
from minillama.pipeline import plan, runner
from tests.alignment.models import Judging, prompt
from tests.alignment.test_dpo_training import PAIRS, lively

CHAPTER = load_chapter("ch20")
A, B, C = prompt("a"), prompt("b"), prompt("c")
EARLIER = [Candidate(A, "aaaaaa", -50.0), Candidate(A, "a", 99.0), Candidate(C, "c", 99.0)]
FRESH = [Candidate(A, "aaa", 3.0), Candidate(B, "bb", 2.0)]


def made():
    """What the package's callers get: a pool and its best, a loss and its gradients, keys."""
    pool = rejection.pooled(EARLIER, FRESH, Judging(lambda text: float(len(text))), 2)
    loss, grads = preference_loss(lively(), as_batch(PAIRS), 4.0, 0.7)
    return pool.candidates, pool.best(), loss, grads, runner.keys(plan.stages("mini"))


def test_in_the_package_s_place_all_is_the_same(solved):
    candidates, best, loss, grads, keys = made()
    before = pooled, Pool.best, layers.token_logprobs, dpo.dpo_loss, runner.keys
    with swapped(solved, [CHAPTER]) as (yours, unwritten):
        assert yours == [exercise.name for exercise in CHAPTER.exercises]
        assert unwritten == []
        assert dpo_training.dpo_loss is dpo.dpo_loss is not before[3]
        assert layers.token_logprobs is not before[2]
        ours = made()
    assert (rejection.pooled, Pool.best, layers.token_logprobs, dpo_training.dpo_loss, runner.keys) == before
    assert ours[:2] == (candidates, best)
    assert {c.answer for c in best} == {"aaaaaa", "bb", "c"}
    assert ours[2] == pytest.approx(float(loss), rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(ours[3][name], grad, rtol=1e-10, atol=1e-14)
    assert ours[4] == keys


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("pooled", "return Pool(list(fresh))"),
        ("dpo_loss_backward", "return np.ones(4), np.ones(4)"),
        ("token_logprobs_backward", "return -np.ones(saved[1])"),
        ("keys", 'return {stage.name: "" for stage in stages}'),
    ],
)
def test_what_is_wrong_is_run_too(name, body, answer):
    expected = made()
    with swapped(answer("ch20", name, body).parent, [CHAPTER]):
        ours = made()
    same = [ours[0] == expected[0], ours[4] == expected[4]]
    same += [all(np.array_equal(ours[3][n], g) for n, g in expected[3].items())]
    assert same.count(False) == 1
