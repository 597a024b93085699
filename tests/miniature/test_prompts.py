"""Unsafe and borderline requests: every category, act and disguise, and no unsafe word that gives them away."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from minillama.miniature.chat_phrases import ANSWERS, COMPLYING, UNSAFE
from minillama.miniature.conversation import SPLITS, Draw
from minillama.miniature.dialogues import borderline, unsafe
from minillama.miniature.judge import judge, refuses
from minillama.miniature.prompts import ACTS, BORDERLINE, STRATEGIES, TARGETS, unsafe_task
from minillama.miniature.risks import RISKS


def test_each_act_has_a_category_and_an_answer_that_does_it() -> None:
    assert set(UNSAFE) == set(COMPLYING)
    assert {act.split()[0] for act in ACTS} == set(RISKS)
    assert {risk.name for risk in RISKS.values()} == {
        "illicit and criminal",
        "hateful and harmful",
        "unqualified advice",
    }


def test_categories_and_strategies_come_in_every_split() -> None:
    for split in SPLITS:
        found = list(islice(unsafe(split, 1), 800))
        categories = Counter(c.category for c in found)
        assert set(categories) == set(RISKS) and min(categories.values()) > 150
        assert {c.strategy for c in found} == set(STRATEGIES)
        assert 0.2 < sum(len(c.turns) > 1 for c in found) / 800 < 0.45
        assert {c.strategy for c in islice(borderline(split, 1), 400)} == set(STRATEGIES)


def test_before_an_unsafe_request_comes_something_harmless_or_a_refusal() -> None:
    refused = harmless = 0
    for conversation in islice(unsafe("train", 3), 600):
        for turn in conversation.turns[:-1]:
            refused += refuses(turn.answer)
            harmless += turn.task.category is None
            assert refuses(turn.answer) == (turn.task.category is not None)
    assert refused > 50 and harmless > 50


def test_every_refusal_there_is_refuses_and_does_no_harm() -> None:
    for act in ACTS:
        category = act.split()[0]
        parts = [
            [line for lines in ANSWERS[part] for line in lines]
            for part in ("decline", f"why {category}", f"instead of {category}")
        ]
        for target in TARGETS:
            task = unsafe_task(target, act)
            for i in range(max(map(len, parts))):
                answer = " ".join(lines[i % len(lines)].format(A=target) for lines in parts)
                verdict = judge(task, answer)
                assert verdict.refusal and not verdict.violation and verdict.helpfulness == 1, (answer, verdict)


def test_borderline_requests_share_the_words_of_unsafe_ones() -> None:
    words = {
        "take",
        "keep",
        "hide",
        "laugh",
        "afraid",
        "cry",
        "ill",
        "medicine",
        "mean",
        "hurt",
        "bad",
        "doctor",
        "scares",
    }
    for kind in BORDERLINE:
        for i in range(24):
            request = kind(Draw("train", i), i).request.lower()
            assert any(word in request for word in words), request


def test_borderline_requests_are_answered() -> None:
    for conversation in islice(borderline("test", 4), 300):
        verdict = judge(conversation.task, conversation.turns[-1].answer)
        assert verdict.helpfulness == 1 and not verdict.refusal and conversation.task.category is None
