"""The miniature's evaluation on answers that are known: good ones, bad ones, ones that obey for a while."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minillama.alignment.rollout import Answer, Chatter, conversations
from minillama.chat import Message, builtin
from minillama.evaluation import miniature
from minillama.evaluation.statistics import mean, share
from minillama.generate import GREEDY, Sampling
from minillama.miniature.dialogues import borderline, helpful, personal, unsafe
from minillama.miniature.judge import judge
from tests.alignment.test_rollout import Scripted
from tests.training.chats import lively, plain_tokenizer, tags_tokenizer

NO_CHATTER: Any = None  # where the answers are scripted


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Puts `said` in the place of a model's answers, and keeps what was asked."""
    script = SimpleNamespace(said=[], asked=[], options={})

    def answers(_: Any, dialogues: Any, **options: Any) -> list[Answer]:
        script.asked, script.options = dialogues, options
        return [Answer([], [], [], text, True) for text in script.said]

    monkeypatch.setattr(miniature, "answers", answers)
    return script


@pytest.mark.parametrize("kind", ["helpful", "unsafe", "borderline"])
def test_good_answers_are_judged_good(scripted: SimpleNamespace, kind: str) -> None:
    asked = miniature.held_out(kind, 40)
    scripted.said = [c.turns[-1].answer for c in asked]
    found = miniature.judged(NO_CHATTER, asked, seed=5, progress="asking")
    assert scripted.asked == [c.messages("first", answers=False) for c in asked]
    assert scripted.options == {"sampling": Sampling(0.7), "seed": 5, "progress": "asking"}
    assert found.conversations == asked and found.answers == scripted.said
    assert found.verdicts == [judge(c.task, text) for c, text in zip(asked, scripted.said, strict=True)]
    assert found.helpfulness().mean == 1
    assert found.share("violation").mean == 0 == found.share("false_refusal").mean
    assert found.share("refusal").mean == (kind == "unsafe")


def test_each_answer_is_judged_by_its_own_conversation(scripted: SimpleNamespace) -> None:
    """The good answers, each one place too far: nearly all of them help nobody."""
    asked = miniature.held_out("helpful", 40)
    good = [c.turns[-1].answer for c in asked]
    scripted.said = good[1:] + good[:1]
    assert miniature.judged(NO_CHATTER, asked).helpfulness().mean < 0.5


def test_refusing_everything_is_safe_and_no_help(scripted: SimpleNamespace) -> None:
    refusal = "I am sorry, I cannot help with that."
    for kind, false in (("helpful", 1), ("borderline", 1), ("unsafe", 0)):
        asked = miniature.held_out(kind, 25)
        scripted.said = [refusal] * 25
        found = miniature.judged(NO_CHATTER, asked)
        assert found.share("refusal") == share(25, 25) and found.share("violation") == share(0, 25)
        assert found.share("false_refusal") == share(25 * false, 25)
        if false:
            assert found.helpfulness().mean == 0


def test_shares_and_means_are_counted_over_all(scripted: SimpleNamespace) -> None:
    asked = miniature.held_out("borderline", 20)
    scripted.said = [c.turns[-1].answer for c in asked[:13]] + ["I am sorry, I cannot help with that."] * 4 + [""] * 3
    found = miniature.judged(NO_CHATTER, asked)
    assert found.share("false_refusal") == share(4, 20)
    assert found.helpfulness() == mean([1.0] * 13 + [0.0] * 7)


def test_what_is_held_out_is_of_the_test_split_and_always_the_same() -> None:
    for kind, stream in (("helpful", helpful), ("unsafe", unsafe), ("borderline", borderline)):
        found = miniature.held_out(kind, 30)
        assert found == list(islice(stream("test", 1_000), 30))
        assert {c.split for c in found} == {"test"}
        assert found[:7] == miniature.held_out(kind, 7)
        assert found != miniature.held_out(kind, 30, seed=1)
        assert {c.split for c in miniature.held_out(kind, 9, "validation")} == {"validation"}


def chatter(**changes: Any) -> Chatter:
    return Chatter(lively(tags_tokenizer(), np.float64, **changes), tags_tokenizer(), builtin("llama2-tags"), 5)


def test_obedience_is_counted_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dialogue i obeys for i turns, with good answers; then it forgets."""
    asked = list(islice(personal("test", 2_003, 4), 3))
    seen: dict[str, Any] = {}

    def answered(_: Any, requests: Any, **options: Any) -> list[list[Message]]:
        seen.update(options, requests=requests)
        dialogues = []
        for i, c in enumerate(asked):
            assert c.persona is not None
            texts = []
            for t, turn in enumerate(c.turns):
                forgot = c.persona.plain(turn.answer, turn.task.items)
                texts += [turn.request, turn.answer if t < i else f"{forgot.lower()} It is red, and nothing else."]
            dialogues.append([{"role": ("user", "assistant")[j % 2], "content": text} for j, text in enumerate(texts)])
        return dialogues

    monkeypatch.setattr(miniature, "conversations", answered)
    found = miniature.obedience(NO_CHATTER, count=3, turns=4, seed=3, progress="personas")
    assert seen["requests"] == [[turn.request for turn in c.turns] for c in asked]
    assert seen["before_first"] == [c.persona.instruction for c in asked if c.persona]
    assert seen["sampling"] == GREEDY and seen["seed"] == 3 and seen["progress"] == "personas"
    assert "before_every" not in seen
    expected = [[False] * 4, [True] + [False] * 3, [True] * 2 + [False] * 2]
    assert found.obeyed.tolist() == expected
    assert found.by_turn() == [share(2, 3), share(1, 3), share(0, 3), share(0, 3)]
    assert found.helpfulness[1, 0] == 1 == found.helpfulness[2, 1] and found.helpfulness.shape == (3, 4)


def test_obedience_of_a_real_model_is_the_judges() -> None:
    """A tiny model, asked with the instruction in the first turn: its answers judged here once more."""
    who = chatter(max_seq_len=1024)
    found = miniature.obedience(who, count=3, turns=2)
    asked = list(islice(personal("test", 2_000, 2), 3))
    instructions = [c.persona.instruction for c in asked if c.persona]
    requests = [[turn.request for turn in c.turns] for c in asked]
    said = conversations(who, requests, sampling=GREEDY, before_first=instructions)
    for i, (c, messages) in enumerate(zip(asked, said, strict=True)):
        assert messages[0]["content"].startswith(instructions[i])
        for t, turn in enumerate(c.turns):
            verdict = judge(turn.task, messages[2 * t + 1]["content"], c.persona)
            assert (found.obeyed[i, t], found.helpfulness[i, t]) == (verdict.obeyed, verdict.helpfulness)


def test_turns_that_no_longer_fit_the_context_are_disobeyed() -> None:
    found = miniature.obedience(chatter(max_seq_len=150), count=4, turns=9)
    assert found.obeyed.shape == (4, 9) and not found.obeyed[:, -1].any()
    assert not found.helpfulness[:, -1].any()


# Base models


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Keeps the prompts of a base model, and answers each with the number of the prompt."""
    seen = SimpleNamespace(prompts=[], options=[])

    def generate(_: Any, prompts: Any, **options: Any) -> list[Any]:
        first = len(seen.prompts)
        seen.prompts += prompts
        seen.options.append(options)
        return [SimpleNamespace(text=f" answer {first + i} ") for i in range(len(prompts))]

    monkeypatch.setattr(miniature, "generate", generate)
    return seen


def model(**changes: Any) -> Any:
    return lively(plain_tokenizer(), **{"max_seq_len": 4096} | changes)


def test_a_base_model_is_asked_after_examples_in_the_words_of_its_text(generated: SimpleNamespace) -> None:
    asked = miniature.held_out("helpful", 140)
    tokenizer = plain_tokenizer()
    found = miniature.base_judged(model(), tokenizer, asked, seed=3, shots=2)
    assert found.answers == [f"answer {i}" for i in range(140)]
    assert [len(options["stop_strings"]) for options in generated.options] == [1, 1]  # two batches
    for options in generated.options:
        assert options["stop_strings"] == ["\n"] and options["sampling"] == Sampling(0.7)
        assert options["stop_ids"] == tokenizer.stop_ids and options["max_new_tokens"] == 128
    examples = (c for c in helpful("train", 3) if len(c.turns) == 1 and "\n" not in c.turns[0].answer)
    for prompt, conversation in zip(generated.prompts, asked, strict=True):
        lines = []
        for example in islice(examples, 2):  # new ones for each
            lines += [f"Question: {example.turns[0].request}", f"Answer: {example.turns[0].answer}"]
        for turn in conversation.turns[:-1]:
            lines += [f"Question: {turn.request}", f"Answer: {turn.answer}"]
        lines += [f"Question: {conversation.turns[-1].request}", "Answer:"]
        assert tokenizer.decode(prompt) == "\n".join(lines)
        assert prompt[0] == tokenizer.bos_id


def test_without_examples_the_request_alone_is_asked(generated: SimpleNamespace) -> None:
    (conversation,) = asked = [c for c in miniature.held_out("helpful", 9) if len(c.turns) == 1][:1]
    miniature.base_judged(model(), plain_tokenizer(), asked, shots=0)
    expected = f"Question: {conversation.turns[0].request}\nAnswer:"
    assert plain_tokenizer().decode(generated.prompts[0]) == expected


def test_examples_give_way_where_the_context_is_small(generated: SimpleNamespace) -> None:
    asked = miniature.held_out("helpful", 20)
    miniature.base_judged(model(), plain_tokenizer(), asked)
    whole, generated.prompts = generated.prompts, []
    context = sorted(map(len, whole))[10] + 128
    miniature.base_judged(model(max_seq_len=context), plain_tokenizer(), asked)
    shorter = [plain_tokenizer().decode(prompt) for prompt in generated.prompts]
    assert all(
        len(prompt) + 128 <= context or text.count("Question:") < 4
        for prompt, text in zip(generated.prompts, shorter, strict=True)
    )
    for prompt, text in zip(whole, shorter, strict=True):
        assert plain_tokenizer().decode(prompt).endswith(text)  # the first examples go
        assert (len(prompt) + 128 <= context) == (plain_tokenizer().decode(prompt) == text)


def test_the_answer_of_a_base_model_ends_with_its_line() -> None:
    """By the real generation, from a model that says what it is told."""
    tokenizer = plain_tokenizer()
    script = tokenizer.encode("the dog\nQuestion: the", bos=False)
    scripted = Scripted(tokenizer, script, max_seq_len=4096)
    found = miniature.base_judged(scripted, tokenizer, miniature.held_out("helpful", 2))
    assert found.answers == ["the dog"] * 2
