"""Chapter 16's solutions do what the package does, and make the data of Ghost Attention in its place."""

import json

import numpy as np
import pytest

from minillama import layers
from minillama.alignment import ghost_attention, rollout
from minillama.alignment.rollout import Chatter
from minillama.chat import builtin
from minillama.data.dialogues import ChatExample
from minillama.evaluation.statistics import share
from minillama.exercises import skeleton
from minillama.exercises.chapter import load_chapter
from minillama.exercises.sources import ch16_ghost_attention as ch16
from minillama.exercises.swap import swapped
from minillama.generate import GREEDY
from minillama.training import finetune
from tests.training.chats import lively, tags_tokenizer

INSTRUCTIONS, REQUESTS = ["Say Cleo.", "Say Dan."], [["Hello.", "And Ben?", "Dan?"], ["Hello.", "Ann?"]]


def chatter():
    return Chatter(lively(tags_tokenizer(), np.float64), tags_tokenizer(), builtin("llama2-tags"), 6)


def data():
    """What Ghost Attention would train on, and how it is masked."""
    dialogues = ghost_attention.ghost_dialogues(chatter(), REQUESTS, INSTRUCTIONS, sampling=GREEDY, seed=1)
    masks = []
    for dialogue in dialogues:
        last = tuple(i == len(dialogue) // 2 - 1 for i in range(len(dialogue) // 2))
        example = ChatExample(tuple(dialogue), last, "train")
        masks.append(finetune.encode(example, builtin("llama2-tags"), tags_tokenizer()))
    return dialogues, masks


def test_in_the_package_s_place_the_data_are_the_same(tmp_path):
    chapter = load_chapter("ch16")
    (tmp_path / f"{chapter.name}.py").write_text(skeleton.solved(chapter), encoding="utf-8")
    expected = data()
    originals = rollout.instructed, ghost_attention.ghost_dialogues, finetune.encode
    with swapped(tmp_path, [chapter]) as (yours, unwritten):
        assert (yours, unwritten) == (["instruct", "strip_instruction", "last_answer_mask"], [])
        assert rollout.instructed is not originals[0]
        assert data() == expected
        assert rollout.instructed(None, "Hello.") == rollout.instructed("", "Hello.") == "Hello."
        whole = ChatExample(tuple(expected[0][0]), (True,) * 3, "train")
        learned = finetune.encode(whole, builtin("llama2-tags"), tags_tokenizer())
    assert (rollout.instructed, ghost_attention.ghost_dialogues, finetune.encode) == originals
    assert learned == finetune.encode(whole, builtin("llama2-tags"), tags_tokenizer())
    assert sum(learned.loss_mask) > sum(expected[1][0].loss_mask) > 0


def test_a_dialogue_that_fills_the_context_loses_the_same_turns(tmp_path):
    chapter = load_chapter("ch16")
    (tmp_path / f"{chapter.name}.py").write_text(skeleton.solved(chapter), encoding="utf-8")
    long = [["Hello."] * 40], ["Say Cleo."]
    expected = ghost_attention.ghost_dialogues(chatter(), *long, sampling=GREEDY)
    assert len(expected[0]) < 80
    with swapped(tmp_path, [chapter]):
        found = ghost_attention.ghost_dialogues(chatter(), *long, sampling=GREEDY)
    assert json.dumps(found) == json.dumps(expected)


def test_the_loss_is_the_package_s():
    for case in ch16.loss_cases(np.random.default_rng(5)):
        loss, dlogits = ch16.answer_loss(**case)
        logits, targets, mask = case["logits"][:-1], case["tokens"][1:], case["loss_mask"][1:]
        expected, saved = layers.cross_entropy(logits, targets, mask)
        assert loss == pytest.approx(float(expected), rel=1e-13)
        np.testing.assert_allclose(dlogits[:-1], layers.cross_entropy_backward(saved), rtol=1e-12, atol=1e-16)
        assert not dlogits[-1].any()


def test_shares_are_the_package_s():
    for case in ch16.obedience_cases(np.random.default_rng(5)):
        obeyed = case["obeyed"]
        expected = [share(int(column.sum()), len(column)) for column in obeyed.T]
        np.testing.assert_allclose(ch16.obeyed_by_turn(obeyed), expected, atol=3e-5)  # z = 1.96


def test_distilling_is_what_samples_approach():
    """The mean gradient of cross-entropy on tokens drawn from the teacher goes to that of the divergence."""
    rng = np.random.default_rng(0)
    teacher, student = rng.standard_normal((2, 1, 4))
    p = np.exp(teacher[0]) / np.exp(teacher[0]).sum()
    drawn = rng.choice(4, 20_000, p=p)
    mask = np.array([False, True])
    counts = np.bincount(drawn, minlength=4) / len(drawn)
    logits = np.concatenate([student, np.zeros((1, 4))])
    sampled = sum(counts[i] * ch16.answer_loss(logits, np.array([0, i]), mask)[1][0] for i in range(4))
    np.testing.assert_allclose(ch16.distil(teacher, student)[1][0], sampled, atol=0.01)
