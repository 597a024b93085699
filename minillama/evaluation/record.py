"""All that is measured of a chat model, with every answer, as a file: two can be compared answer by answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minillama.alignment.advantages import kl_k1
from minillama.alignment.ppo_batch import answer_logprobs, as_batch, pieces, sample, take
from minillama.alignment.ppo_prompts import EncodedPrompt, Prompt, end_token
from minillama.alignment.rollout import Chatter
from minillama.alignment.scorer import LOWEST, Rewards
from minillama.backend import to_host
from minillama.errors import MinillamaError
from minillama.evaluation import miniature
from minillama.evaluation.miniature import Judged
from minillama.evaluation.statistics import Estimate, mean
from minillama.miniature.conversation import Conversation
from minillama.model import Llama
from minillama.tokenizer.atomic import write_bytes
from minillama.weights.checkpoint import read_json

TURNS = (1, 5, 10, 20)  # whose obedience is noted, and that of the last
KL_PROMPTS = 128
KINDS = ("helpful", "unsafe", "borderline")
# What decides between two answers to a request of a kind: the judge's helpfulness, or its safety score.
MEASURE = {"helpful": "helpfulness", "unsafe": "safety", "borderline": "helpfulness"}


@dataclass
class Evaluation:
    """Of one model. measures: name -> mean and interval. answers: of each kind of request, in the same order for all
    models, the text, the judge's helpfulness, safety, violation, refusal, and where there are reward models `reward`
    (R of both, the logit), `helpfulness_score` and `safety_score` (None where there is no model).
    """

    model: str
    count: int
    seed: int
    base: bool = False
    measures: dict[str, Estimate] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """As JSON. Raises MinillamaError."""
        content = {**vars(self), "measures": {name: x._asdict() for name, x in self.measures.items()}}
        write_bytes(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Raises MinillamaError where the file is something else."""
        content = read_json(path)
        try:
            measures = {name: Estimate(**x) for name, x in content.pop("measures", {}).items()}
            found = cls(**content, measures=measures)
        except (TypeError, AttributeError):
            raise MinillamaError(f"{path}: expected what `minillama evaluate --json` writes") from None
        return found

    def values(self, kind: str, name: str) -> np.ndarray:
        """What is known of each answer to requests of a kind, (N,) float."""
        return np.array([answer[name] for answer in self.answers[kind]], float)


def evaluate(
    chatter: Chatter,
    count: int,
    turns: int,
    seed: int,
    *,
    name: str = "",
    rewards: Rewards | None = None,
    reference: Llama | None = None,
) -> Evaluation:
    """Measure a chat model on `count` requests of each kind, held out by content.

    turns: of as many dialogues under an instruction, 0 for none. rewards: that score the answers. reference: from which
    the KL of answers at temperature 1 is measured; a model of the same tokens.
    """
    found = Evaluation(name, count, seed)
    asked = {kind: miniature.held_out(kind, count) for kind in KINDS}
    judged = {kind: miniature.judged(chatter, asked[kind], seed=seed, progress=kind) for kind in KINDS}
    found.measures = {
        "helpfulness": judged["helpful"].helpfulness(),
        "violations": judged["unsafe"].share("violation"),
        "false refusals": judged["borderline"].share("false_refusal"),
        "words": mean([len(answer.split()) for answer in judged["helpful"].answers]),
    }
    found.answers = {kind: _answers(of) for kind, of in judged.items()}
    if rewards is not None:
        for kind in KINDS:
            _score(found.answers[kind], asked[kind], rewards)
        scored = [answer["reward"] for kind in KINDS for answer in found.answers[kind] if answer["reward"] > LOWEST]
        found.measures["reward"] = mean(scored)
    if reference is not None:
        found.measures["KL"] = kl(chatter, reference, asked["helpful"][:KL_PROMPTS], seed)
    if turns:
        by_turn = miniature.obedience(chatter, count, turns, seed=seed, progress="personas").by_turn()
        for turn in sorted({turn for turn in TURNS if turn <= turns} | {turns}):
            found.measures[f"obedience, turn {turn}"] = by_turn[turn - 1]
    return found


def _answers(judged: Judged) -> list[dict[str, Any]]:
    return [
        {
            "text": text,
            "helpfulness": round(verdict.helpfulness, 4),
            "safety": round(verdict.safety, 4),
            "violation": verdict.violation,
            "refusal": verdict.refusal,
        }
        for text, verdict in zip(judged.answers, judged.verdicts, strict=True)
    ]


def _score(answers: list[dict[str, Any]], asked: Sequence[Conversation], rewards: Rewards) -> None:
    """Add to each answer what the reward models say of it."""
    prompts = [
        Prompt(tuple(c.messages("first", answers=False)), safety=c.kind == "unsafe", split=c.split) for c in asked
    ]
    texts = [answer["text"] for answer in answers]
    scores = rewards.each(prompts, texts)
    combined = rewards.combined(prompts, scores)
    for i, answer in enumerate(answers):
        answer["reward"] = round(float(combined[i]), 4)
        for which in ("helpfulness", "safety"):
            answer[f"{which}_score"] = round(float(scores[which][i]), 4) if which in scores else None


def kl(chatter: Chatter, reference: Llama, asked: Sequence[Conversation], seed: int = 0) -> Estimate:
    """KL(model ‖ reference) of an answer, in nats: the mean over answers sampled at temperature 1, and its interval."""
    messages = [c.messages("first", answers=False) for c in asked]
    prompts = [EncodedPrompt(chatter.prompt(m), False, m[-1]["content"]) for m in messages]
    end = end_token(chatter.template, chatter.tokenizer)
    batch = as_batch(sample(chatter.model, prompts, end, chatter.max_new_tokens, seed=seed))
    found = np.zeros(len(prompts))
    for rows in pieces(batch, [np.arange(len(prompts))], 16):
        some = take(batch, rows)
        ours, theirs = (answer_logprobs(m, some, recompute=True)[0] for m in (chatter.model, reference))
        found[rows] = to_host(kl_k1(ours, theirs, chatter.model.xp.asarray(some["mask"])))
    return mean(found.tolist())


def win_rate(ours: Evaluation, theirs: Evaluation, kinds: Sequence[str] = ("helpful", "unsafe")) -> Estimate:
    """How often the judge finds our answer better than theirs to the same request, an equal one counted half: the mean
    over requests of the kinds, and its interval. Raises MinillamaError where the two were not asked the same number.
    """
    points: list[float] = []
    for kind in kinds:
        a, b = (of.values(kind, MEASURE[kind]) for of in (ours, theirs))
        if len(a) != len(b):
            raise MinillamaError(f"win rate: expected as many answers of both, found {len(a)} and {len(b)}")
        points += np.where(a == b, 0.5, a > b).tolist()
    return mean(points)
