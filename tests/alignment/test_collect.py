"""Preferences collected in the miniature: what is asked, who answers, what is noted, and what is not."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from minillama.alignment import collect, preferences
from minillama.alignment.collect import Collected, Variant, asked, compare, variants
from minillama.alignment.preferences import RATINGS
from minillama.errors import UsageError
from minillama.miniature import dialogues
from minillama.miniature.annotator import Annotator
from minillama.miniature.conversation import Conversation, Draw
from minillama.miniature.prompts import ACTS, complying
from tests.alignment.models import CHATTER, chat_model, problem, saying, succeed

HELPFUL = list(islice(dialogues.helpful("train", 0), 200))
UNSAFE = list(islice(dialogues.unsafe("train", 0), 200))
BORDERLINE = list(islice(dialogues.borderline("train", 0), 200))
EXACT = Annotator(temperature=0.0)  # never errs


def good(conversation: Conversation) -> str:
    return conversation.turns[-1].answer


def bad(conversation: Conversation) -> str:
    """What an unsafe request is after."""
    act = next(act for act in ACTS if act.split()[0] == conversation.category)
    return complying(Draw("train", 0), conversation.task.subject, act)  # type: ignore[arg-type]


def pair_of(conversation: Conversation, texts: tuple[str, str], domain: str, annotator: Annotator = EXACT) -> Any:
    into = Collected()
    compare(conversation, texts, domain, annotator, into)
    return into.pairs[0] if into.pairs else into


def test_the_better_answer_is_chosen_wherever_it_stands() -> None:
    for conversation in HELPFUL[:50]:
        for texts in ((good(conversation), "Bees."), ("Bees.", good(conversation))):
            pair = pair_of(conversation, texts, "helpfulness")
            assert (pair.chosen, pair.rejected) == (good(conversation), "Bees.")
            assert pair.prompt == tuple(conversation.messages("first", answers=False))
            assert (pair.rating, pair.safe, pair.domain) == ("significantly better", None, "helpfulness")


def test_safety_prefers_a_refusal_and_labels_both() -> None:
    seen = Counter()
    for conversation in UNSAFE:
        pair = pair_of(conversation, (bad(conversation), good(conversation)), "safety")
        seen[pair.safe] += 1
        assert pair.chosen == good(conversation) and pair.domain == "safety"
    assert seen[(True, False)] > 190, "what complies is a violation, but for a few of another's words"


def test_pairs_whose_unsafe_answer_is_preferred_are_left_out() -> None:
    """The annotator errs; where it would choose the unsafe of two answers, there is no pair."""

    conversation = UNSAFE[0]
    texts = (bad(conversation), good(conversation))

    class Erring(Annotator):
        def prefer(self, a: Any, b: Any, domain: Any = "helpfulness") -> Any:
            right = super().prefer(a, b, domain)
            return type(right)(1 - right.chosen, right.rating, right.safe)

    into = pair_of(conversation, texts, "safety", Erring(temperature=0.0))
    assert into.pairs == [] and into.contrary == 1
    assert pair_of(conversation, texts, "helpfulness", Erring(temperature=0.0)).chosen == bad(conversation)


def test_between_harmless_answers_helpfulness_decides() -> None:
    """A false refusal is as safe as an answer: judged by safety alone, a coin would be tossed."""
    refusal = "I am sorry, but I cannot help with that."
    for conversation in BORDERLINE[:100]:
        for texts in ((refusal, good(conversation)), (good(conversation), refusal)):
            pair = pair_of(conversation, texts, "safety")
            assert pair.chosen == good(conversation)
            assert pair.safe == (True, True)


def test_equal_and_empty_answers_give_no_pair() -> None:
    assert pair_of(HELPFUL[0], ("Yes.", "Yes."), "helpfulness").identical == 1
    assert pair_of(HELPFUL[0], ("Yes.", " "), "helpfulness").empty == 1
    into = Collected(identical=2, empty=1, contrary=1)
    assert len(into.notices()) == 3 and "2 pairs left out: both answers are the same" in into.notices()


@pytest.mark.parametrize(
    ("domain", "kinds"), [("helpfulness", {"", "borderline"}), ("safety", {"unsafe", "borderline"})]
)
def test_what_is_asked(domain: str, kinds: set[str]) -> None:
    found = list(islice(asked(domain, "train", 3), 400))
    several = {"unsafe", "borderline"}
    assert {c.kind if c.kind in several else "" for c in found} == kinds
    assert all(c.split == "train" for c in found)
    assert found == list(islice(asked(domain, "train", 3), 400))
    assert found != list(islice(asked(domain, "train", 4), 400))
    share = sum(c.kind == "borderline" for c in found) / 400
    assert 0.2 < share < 0.4
    assert all(c.split == "validation" for c in islice(asked(domain, "validation", 3), 50))


def test_variants_differ() -> None:
    assert variants([CHATTER], (0.5, 1.0)) == [Variant(CHATTER, 0.5), Variant(CHATTER, 1.0)]
    assert len(variants([CHATTER, CHATTER], (1.0,))) == 2
    with pytest.raises(UsageError, match="expected two models or two temperatures at least, found 1 variants"):
        variants([CHATTER], (1.0,))
    with pytest.raises(UsageError, match="temperatures: expected positive numbers"):
        variants([CHATTER], (0.0, 1.0))


def test_two_different_variants_answer_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as often as any other, in either place."""
    calls: list[float] = []

    def answers(chatter: Any, dialogues: Any, *, sampling: Any, **_: Any) -> Any:
        calls.append(sampling.temperature)
        return saying(lambda messages, n: f"It is {sampling.temperature}.")(chatter, dialogues)

    monkeypatch.setattr(collect, "answers", answers)
    those = variants([CHATTER], (0.5, 1.0, 1.5))
    found = collect.collect(those, "helpfulness", 600, held_out=0.25, seed=1)
    assert calls == [0.5, 1.0, 1.5]
    assert len(found.pairs) == 750 and found.identical == 0
    times = Counter(text for pair in found.pairs for text in (pair.chosen, pair.rejected))
    assert all(420 < count < 580 for count in times.values()) and len(times) == 3
    assert Counter(pair.split for pair in found.pairs) == {"train": 600, "validation": 150}


def test_the_file_holds_preferences_and_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reward model reads: who is preferred, a word for how much, labels of safety. The judge's numbers are not
    in it, nor can they be told from it: equal differences get different ratings.
    """
    monkeypatch.setattr(collect, "answers", saying(lambda messages, n: "I cannot help with that."))
    monkeypatch.setattr(collect, "_two_answers", lambda those, cs, seed, progress: [(good(c), "Bees.") for c in cs])
    for domain in ("helpfulness", "safety"):
        found = collect.collect(variants([CHATTER]), domain, 200, seed=2)
        preferences.save(found.pairs, tmp_path / "pairs.jsonl")
        allowed = {"prompt", "chosen", "rejected", "rating", "domain", "split"}
        allowed |= {"safe"} if domain == "safety" else set()
        for line in (tmp_path / "pairs.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert record.keys() == allowed
            assert record["rating"] in RATINGS
            assert not any(isinstance(value, float) for value in record.values())
        loaded = preferences.load([tmp_path / "pairs.jsonl"])
        assert loaded.pairs == found.pairs
    assert len(found.ratings()) > 1


def test_command(tmp_path: Path) -> None:
    """Two models of random weights; the same seed writes the same file, and the reward stage reads it."""
    first, second = chat_model(tmp_path / "a", 1), chat_model(tmp_path / "b", 2)
    options = ["--model", first, "--model", second, "--count", 12, "--max-new-tokens", 8, "--device", "cpu"]
    for name in ("x", "y"):
        result = succeed("preferences", *options, "--domain", "safety", "--out", tmp_path / f"{name}.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "y.jsonl").read_bytes()
    pairs = preferences.load([tmp_path / "x.jsonl"]).pairs
    assert f"pairs {len(pairs)}" in " ".join(result.stdout.split())
    assert {pair.split for pair in pairs} == {"train", "validation"}
    succeed("preferences", *options, "--seed", 1, "--out", tmp_path / "x.jsonl", "--force")
    assert preferences.load([tmp_path / "x.jsonl"]).pairs != pairs


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--domain", "wit"], "domain: expected helpfulness or safety, found 'wit'"),
        (["--temperature", 1], "expected two models or two temperatures at least, found 1 variants"),
        (["--model", "nowhere/at-all"], "nowhere/at-all"),
        (["--count", 0], "--count"),
    ],
)
def test_wrong_use(tmp_path: Path, more: list[object], expected: str) -> None:
    out = tmp_path / "out.jsonl"
    assert expected in problem("preferences", "--model", chat_model(tmp_path / "a"), "--out", out, *more)
    assert not out.exists()
    out.write_text("mine")
    assert "is there already" in problem("preferences", "--model", tmp_path / "a", "--out", out)
    assert out.read_text() == "mine"
