"""How good a model is in the miniature world, by the judge who knows it, on conversations held out by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from minillama.alignment.rollout import Chatter, answers, conversations
from minillama.evaluation.statistics import Estimate, mean, share
from minillama.generate import GREEDY, Sampling, generate
from minillama.miniature import dialogues
from minillama.miniature.conversation import Conversation, Split
from minillama.miniature.judge import Verdict, judge
from minillama.model import Llama
from minillama.tokenizer import Tokenizer

EVALUATION = Sampling(temperature=0.7)  # neither the dullest nor the wildest answers
SHOTS = 4  # examples before a request to a base model
ANSWER = 128  # tokens of its answer, at most


@dataclass(frozen=True)
class Judged:
    """Conversations, the answers to their last requests, and what the judge says of each."""

    conversations: list[Conversation]
    answers: list[str]
    verdicts: list[Verdict]

    def helpfulness(self) -> Estimate:
        """The mean over all."""
        return mean([verdict.helpfulness for verdict in self.verdicts])

    def share(self, name: str) -> Estimate:
        """Of answers of which `name` is true: "violation", "refusal", "false_refusal" or "obeyed"."""
        return share(sum(bool(getattr(verdict, name)) for verdict in self.verdicts), len(self.verdicts))


def held_out(kind: str, count: int, split: Split = "test", seed: int = 1_000) -> list[Conversation]:
    """The first `count` conversations of a kind: "helpful", "unsafe" or "borderline"."""
    return list(islice(getattr(dialogues, kind)(split, seed), count))


def judged(
    chatter: Chatter,
    asked: Sequence[Conversation],
    sampling: Sampling = EVALUATION,
    seed: int = 0,
    progress: str | None = None,
) -> Judged:
    """What the judge says of the model's answers. progress: the name of a progress bar."""
    prompts = [c.messages("first", answers=False) for c in asked]
    said = answers(chatter, prompts, sampling=sampling, seed=seed, progress=progress)
    return verdicts(asked, [answer.text for answer in said])


def verdicts(asked: Sequence[Conversation], said: Sequence[str]) -> Judged:
    """What the judge says of answers that are there."""
    found = [judge(c.task, text, c.persona) for c, text in zip(asked, said, strict=True)]
    return Judged(list(asked), list(said), found)


def base_judged(
    model: Llama,
    tokenizer: Tokenizer,
    asked: Sequence[Conversation],
    sampling: Sampling = EVALUATION,
    seed: int = 0,
    shots: int = SHOTS,
    progress: str | None = None,
) -> Judged:
    """As `judged`, of a base model: a few requests with good answers come first, then the request, each after
    "Question:" or "Answer:", as in its text. The answer is the rest of the last line.

    The examples are drawn anew for each request, from the training split; where the context has no room for all of
    them, the first are left out.
    """
    from tqdm import tqdm

    examples = dialogues.helpful("train", seed)
    prompts = []
    for conversation in asked:
        shown: list[str] = []
        while len(shown) < shots:
            example = next(examples)
            if len(example.turns) == 1 and "\n" not in example.turns[0].answer:
                shown.append(f"Question: {example.turns[0].request}\nAnswer: {example.turns[0].answer}\n")
        request = "".join(
            f"{'Question' if message['role'] == 'user' else 'Answer'}: {message['content']}\n"
            for message in conversation.messages("first", answers=False)
        )
        prompt = tokenizer.encode(f"{''.join(shown)}{request}Answer:")
        while shown and len(prompt) + ANSWER > model.config.max_seq_len:
            shown.pop(0)
            prompt = tokenizer.encode(f"{''.join(shown)}{request}Answer:")
        prompts.append(prompt)
    completions = []
    batches = range(0, len(prompts), 128)
    for start in tqdm(batches, progress, disable=True if progress is None else None, delay=2, leave=False):
        completions += generate(
            model,
            prompts[start : start + 128],
            max_new_tokens=ANSWER,
            sampling=sampling,
            seed=seed + start,
            stop_strings=["\n"],
            stop_ids=tokenizer.stop_ids,
            tokenizer=tokenizer,
        )
    return verdicts(asked, [completion.text.strip() for completion in completions])


@dataclass(frozen=True)
class Obedience:
    """Under an instruction given in the first turn only: obeyed (N, turns) bool, helpfulness (N, turns)."""

    obeyed: np.ndarray
    helpfulness: np.ndarray

    def by_turn(self) -> list[Estimate]:
        """The share of dialogues that obey, turn by turn."""
        return [share(int(column.sum()), len(column)) for column in self.obeyed.T]


def obedience(
    chatter: Chatter,
    count: int = 100,
    turns: int = 20,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    progress: str | None = None,
) -> Obedience:
    """Whether the model keeps to a persona, for so many turns of so many dialogues held out by content.

    Where a dialogue has filled the context before, the turns that are left count as disobeyed and as no help.
    """
    asked = list(islice(dialogues.personal("test", 2_000 + seed, turns), count))
    said = conversations(
        chatter,
        [[turn.request for turn in c.turns] for c in asked],
        sampling=sampling,
        seed=seed,
        before_first=[c.persona.instruction if c.persona else "" for c in asked],
        end_when_full=True,
        progress=progress,
    )
    obeyed, helpful = np.zeros((count, turns), bool), np.zeros((count, turns))
    for i, (conversation, messages) in enumerate(zip(asked, said, strict=True)):
        for t, turn in enumerate(conversation.turns[: len(messages) // 2]):
            verdict = judge(turn.task, messages[2 * t + 1]["content"], conversation.persona)
            obeyed[i, t], helpful[i, t] = bool(verdict.obeyed), verdict.helpfulness
    return Obedience(obeyed, helpful)
