"""Answers in batches are those of each dialogue alone; whole dialogues, and where an instruction stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import minillama.generate as generation
from minillama.alignment import rollout
from minillama.alignment.rollout import Answer, Chatter, answers, conversations, instructed
from minillama.backend import Array
from minillama.chat import Message, builtin
from minillama.errors import UsageError
from minillama.generate import GREEDY, Sampling, generate
from minillama.model import Llama
from minillama.prefix import Prefix
from minillama.tokenizer import Tokenizer
from tests.training.chats import lively, plain_tokenizer, said, tags_tokenizer

REQUESTS = [
    "Does Ann like apples?",
    "Yes",
    "Does Ben like boats and drums and clouds and apples, and does Cleo?",
    "Dan?",
    "Ann likes Dan",
    "Does Ann like apples?",
    "9: Cleo",
]


def chatter(max_new_tokens: int = 9, **changes: Any) -> Chatter:
    """In float64, so that a batch's padding cannot turn a choice."""
    model = lively(tags_tokenizer(), np.float64, **changes)
    return Chatter(model, tags_tokenizer(), builtin("llama2-tags"), max_new_tokens)


class Scripted(Llama):
    """A model that says what it is told to, token by token, whatever it is asked."""

    def __init__(self, tokenizer: Tokenizer, script: Sequence[int], **changes: Any) -> None:
        model = lively(tokenizer, **changes)
        super().__init__(model.config, model.params)
        self.script, self.said = list(script), 0

    def logits(self, hidden: Array) -> Array:
        logits = np.zeros((*hidden.shape[:-1], self.config.vocab_size), np.float32)
        logits[..., self.script[self.said % len(self.script)]] = 100
        self.said += 1
        return logits


def asked(*requests: str) -> list[list[Message]]:
    return [list(said(request)) for request in requests]


@pytest.mark.parametrize(("together", "group"), [(1, 128), (3, 128), (1024, 128), (1024, 2)])
def test_greedy_answers_are_those_of_each_dialogue_alone(
    monkeypatch: pytest.MonkeyPatch, together: int, group: int
) -> None:
    """In their order, however many are sampled together, though threads share them out by length."""
    monkeypatch.setattr(rollout, "TOGETHER", together)
    monkeypatch.setattr(generation, "GROUP", group)
    who = chatter()
    dialogues = asked(*REQUESTS)
    dialogues[3] = list(said("Does Ann like boats?", "Yes, Ann", "Dan?", system="Be brief."))
    found = answers(who, dialogues, sampling=GREEDY, logprobs=True)
    assert len({tuple(answer.tokens) for answer in found}) > 3, "answers that are all the same are no test of order"
    for answer, messages in zip(found, dialogues, strict=True):
        prompt = who.template.encode(messages, who.tokenizer).tokens
        (alone,) = generate(
            who.model,
            [prompt],
            max_new_tokens=9,
            stop_ids=who.tokenizer.stop_ids,
            tokenizer=who.tokenizer,
            logprobs=True,
        )
        assert (answer.prompt, answer.tokens, answer.text) == (prompt, alone.tokens, alone.text.strip())
        np.testing.assert_allclose(answer.logprobs, alone.logprobs, rtol=1e-6, atol=1e-8)
        assert answer.finished == (alone.finish_reason == "stop")


def test_the_seed_gives_the_answers() -> None:
    who = chatter(12)
    first, same, other = (answers(who, asked(*REQUESTS), seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    hot, cold = (answers(who, asked(*REQUESTS), sampling=Sampling(t), seed=1) for t in (5.0, 1e-4))
    assert hot != cold == answers(who, asked(*REQUESTS), sampling=GREEDY)
    assert first[0] != first[5]  # the same request in another place draws other numbers


def test_log_probabilities_only_where_they_are_asked_for() -> None:
    assert all(answer.logprobs == [] for answer in answers(chatter(), asked("Dan?")))
    (answer,) = answers(chatter(), asked("Dan?"), logprobs=True)
    assert len(answer.logprobs) == len(answer.tokens) and max(answer.logprobs) <= 0


def test_an_answer_is_finished_by_its_end_token_only() -> None:
    tokenizer = tags_tokenizer()
    yes = tokenizer.encode("Yes", bos=False)
    for script, finished in (([*yes, tokenizer.eos_id], True), (yes * 9, False)):
        who = Chatter(Scripted(tokenizer, script), tokenizer, builtin("llama2-tags"), 9)  # type: ignore[arg-type]
        (answer,) = answers(who, asked("Ann?"), sampling=GREEDY)
        assert (answer.finished, answer.text.startswith("Yes")) == (finished, True)
        assert answer.tokens == (script if finished else script[:9])


def test_a_tag_in_plain_letters_ends_an_answer() -> None:
    """In a vocabulary without tags a model can write one; no template could hold that answer in the next turn."""
    tokenizer = plain_tokenizer()
    script = tokenizer.encode("the dog [INST] the", bos=False)
    who = Chatter(Scripted(tokenizer, script), tokenizer, builtin("llama2"), 60)
    assert who.stop_strings == ["<</SYS>>", "<<SYS>>", "[/INST]", "[INST]"]
    (answer,) = answers(who, asked("the boy"), sampling=GREEDY)
    assert answer.text == "the dog" and not answer.finished
    who = Chatter(Scripted(tokenizer, script), tokenizer, builtin("llama2"), 60)
    (dialogue,) = conversations(who, [["the boy", "the girl"]], sampling=GREEDY)
    assert len(dialogue) == 4 and all("[" not in message["content"] for message in dialogue)
    assert chatter().stop_strings == []  # there the tags are tokens, and no letters make one


def test_no_dialogues_no_answers() -> None:
    assert answers(chatter(), []) == [] == conversations(chatter(), [])


def test_a_dialogue_that_fills_the_context_is_named() -> None:
    who = chatter(max_seq_len=64)
    with pytest.raises(UsageError, match=r"dialogue 1 has \d+ tokens and leaves no room in the context of 64"):
        answers(who, asked("Ann?", "Ann likes " * 40))


def test_an_answer_ends_where_the_context_does() -> None:
    who = chatter(max_seq_len=20, max_new_tokens=100)
    (answer,) = answers(who, asked("Dan?"), sampling=GREEDY)
    assert len(answer.prompt) + len(answer.tokens) == 20 or answer.finished


# Whole dialogues


class Recorder:
    """In the place of `answers`: keeps what was asked, and answers with the number of the turn."""

    def __init__(self) -> None:
        self.asked: list[list[list[str]]] = []
        self.seeds: list[int] = []
        self.named: list[str | None] = []
        self.sampling: list[Sampling] = []

    def __call__(
        self, _: Chatter, dialogues: Any, *, sampling: Any, seed: int, progress: Any, **_known: Any
    ) -> list[Answer]:
        self.asked.append([[message["content"] for message in messages] for messages in dialogues])
        self.seeds.append(seed)
        self.named.append(progress)
        self.sampling.append(sampling)
        for messages in dialogues:
            assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        return [Answer([], [], [], f"{messages[0]['content'][-1]}{len(messages) // 2}", True) for messages in dialogues]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(rollout, "answers", found)
    return found


TURNS = [["a", "b", "c"], ["x"], ["p", "q"]]


def test_each_turn_is_asked_in_the_light_of_all_before(recorder: Recorder) -> None:
    found = conversations(chatter(), TURNS, sampling=GREEDY, seed=7, progress="asking")
    assert recorder.asked == [
        [["a"], ["x"], ["p"]],
        [["a", "a0", "b"], ["p", "p0", "q"]],
        [["a", "a0", "b", "a1", "c"]],
    ]
    assert found == [said("a", "a0", "b", "a1", "c", "a2"), said("x", "x0"), said("p", "p0", "q", "p1")]
    assert len(set(recorder.seeds)) == 3 and recorder.sampling == [GREEDY] * 3
    assert recorder.named == ["asking, turn 1", "asking, turn 2", "asking, turn 3"]


def test_an_instruction_before_the_first_request_stands_there_alone(recorder: Recorder) -> None:
    conversations(chatter(), TURNS, before_first=["One.", "Two.", ""])
    assert recorder.asked == [
        [["One. a"], ["Two. x"], ["p"]],
        [["One. a", "a0", "b"], ["p", "p0", "q"]],
        [["One. a", "a0", "b", "a1", "c"]],
    ]


def test_an_instruction_before_every_request_stands_on_every_one(recorder: Recorder) -> None:
    conversations(chatter(), TURNS, before_every=["One.", "Two.", "Three."])
    assert recorder.asked == [
        [["One. a"], ["Two. x"], ["Three. p"]],
        [["One. a", "a0", "One. b"], ["Three. p", "p0", "Three. q"]],
        [["One. a", "a0", "One. b", "a1", "One. c"]],
    ]


def test_an_instruction_and_a_request() -> None:
    assert [instructed(i, "Go.") for i in ("Be kind.", "", None)] == ["Be kind. Go.", "Go.", "Go."]


def test_conversations_are_what_answering_turn_by_turn_gives() -> None:
    who = chatter(6)
    turns = [["Does Ann like apples?", "And Ben?", "And Dan?"], ["Yes", "Dan?"]]
    found = conversations(who, turns, sampling=GREEDY, before_first=["Be brief.", "Say yes."])
    for messages, requests, instruction in zip(found, turns, ("Be brief.", "Say yes."), strict=True):
        expected: list[Message] = []
        for turn, request in enumerate(requests):
            expected.append({"role": "user", "content": f"{instruction} {request}" if turn == 0 else request})
            (answer,) = answers(who, [expected], sampling=GREEDY)
            expected.append({"role": "assistant", "content": answer.text})
        assert messages == expected


def test_conversations_read_only_what_is_new_and_say_what_they_would_reading_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sampled, in unequal turns; among the answers are some whose text has other tokens than those that were drawn."""
    who = chatter(9, max_seq_len=512)
    turns = [[REQUESTS[(i + turn) % 7] for turn in range(i % 7 + 1)] for i in range(9)]
    plan: dict[str, Any] = {"seed": 3, "before_every": REQUESTS + REQUESTS[:2]}
    read: list[int] = []
    forward = Llama.forward

    def counting(self: Llama, tokens: Array, **options: Any) -> Any:
        read.append(tokens.size)
        return forward(self, tokens, **options)

    monkeypatch.setattr(Llama, "forward", counting)
    found = conversations(who, turns, **plan)
    kept, read[:] = sum(read), []
    drawn: list[Answer] = []

    def anew(*given: Any, prompts: Any, **options: Any) -> list[Answer]:
        del options["prefixes"]
        said = answers(*given, **options)
        drawn.extend(said)
        assert prompts == [answer.prompt for answer in said]
        return said

    monkeypatch.setattr(rollout, "answers", anew)
    assert conversations(who, turns, **plan) == found
    assert kept < sum(read) / 2

    def continued(text: list[int]) -> bool:
        return any(len(a.prompt) > len(text) and a.prompt[: len(text)] == text for a in drawn)

    assert any(continued(a.prompt) and not continued(a.prompt + a.tokens) for a in drawn)


def test_conversations_go_on_together_as_many_as_memory_holds(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = chatter()
    size = Prefix.nbytes(who.model.config, np.dtype(np.float64))
    turns = [[f"{i}{turn}" for turn in "ab"] for i in range(5)]
    plan: dict[str, Any] = {"seed": 7, "progress": "asking"}
    whole = conversations(who, turns, **plan)
    assert [len(asked) for asked in recorder.asked] == [5, 5] and recorder.seeds == [7, 8]
    monkeypatch.setattr(rollout, "KEPT", 2 * size)
    monkeypatch.setattr(rollout, "FEWEST", 1)
    recorder.__init__()  # type: ignore[misc]
    assert conversations(who, turns, **plan) == whole
    assert [len(asked) for asked in recorder.asked] == [1, 1, 2, 2, 2, 2]
    assert recorder.seeds[:2] == [7, 8] and len(set(recorder.seeds)) == 6
    assert recorder.named[:3] == [
        "asking, part 1 of 3, turn 1",
        "asking, part 1 of 3, turn 2",
        "asking, part 2 of 3, turn 1",
    ]
    monkeypatch.setattr(rollout, "FEWEST", 3)
    recorder.__init__()  # type: ignore[misc]
    conversations(who, turns, **plan)
    assert [len(asked) for asked in recorder.asked] == [2, 2, 3, 3]


def test_a_dialogue_that_has_filled_the_context_is_an_error_or_ends() -> None:
    who = chatter(20, max_seq_len=64)
    turns = [["Does Ann like apples?"] * 8, ["Dan?"]]
    with pytest.raises(UsageError, match="leaves no room in the context of 64"):
        conversations(who, turns, sampling=GREEDY)
    long, short = conversations(who, turns, sampling=GREEDY, end_when_full=True)
    assert 2 <= len(long) < 16 and len(long) % 2 == 0 and len(short) == 2
    assert [m["role"] for m in long] == ["user", "assistant"] * (len(long) // 2)
