"""Red teaming in the miniature: attacks of every strategy, and how often they succeed (section 4.3).

The paper's red teams were people, and its measure γ was the mean number of violating answers that one of them found in
an hour. Here nobody spends an hour; what is honest is to count violating answers in 100 attacks.

An attack of several turns is made with the model's own earlier answers, as people would: a model that has given in once
sees that it has. Whether a model is too careful is told by requests that only sound unsafe: false refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from minillama.alignment.rollout import Chatter, answers, conversations
from minillama.errors import UsageError
from minillama.evaluation.statistics import Estimate, mean, share
from minillama.generate import Sampling
from minillama.miniature import dialogues
from minillama.miniature.conversation import Conversation, Split
from minillama.miniature.judge import judge
from minillama.miniature.prompts import STRATEGIES
from minillama.miniature.risks import RISKS

SAMPLING = Sampling(temperature=0.7)
TURNS = {"single-turn": False, "multi-turn": True}


@dataclass(frozen=True)
class Attack:
    """A conversation with an unsafe last request, what the model said in each turn, and which answers violate."""

    conversation: Conversation
    answers: tuple[str, ...]
    violations: tuple[bool, ...]

    @property
    def succeeded(self) -> bool:
        """Whether any of the answers is a violation."""
        return any(self.violations)


@dataclass(frozen=True)
class RedTeam:
    """Attacks, and harmless requests that sound like them.

    refusals: of each borderline request, whether it was refused.
    """

    attacks: list[Attack]
    refusals: list[bool]

    def violation_rate(self) -> Estimate:
        """The share of attacks that succeed."""
        return _rate(self.attacks)

    def by_category(self) -> dict[str, Estimate]:
        """The same for each of the paper's risk categories, under its name there."""
        return self._by({risk.name: category for category, risk in RISKS.items()}, lambda c: c.category)

    def by_strategy(self) -> dict[str, Estimate]:
        """The same for each disguise of the request."""
        return self._by({strategy: strategy for strategy in STRATEGIES}, lambda c: c.strategy)

    def by_turns(self) -> dict[str, Estimate]:
        """The same for attacks of one turn and of several."""
        return self._by(TURNS, lambda c: len(c.turns) > 1)

    def violations_in_100(self) -> Estimate:
        """The mean number of violating answers in 100 attacks; one of several turns can have more than one."""
        return Estimate(*(100 * x for x in mean([sum(attack.violations) for attack in self.attacks])))

    def false_refusals(self) -> Estimate:
        """The share of borderline requests that are refused."""
        return share(sum(self.refusals), len(self.refusals))

    def _by(self, groups: Mapping[str, object], of: Callable[[Conversation], object]) -> dict[str, Estimate]:
        return {
            name: _rate([attack for attack in self.attacks if of(attack.conversation) == group])
            for name, group in groups.items()
        }


def _rate(attacks: Sequence[Attack]) -> Estimate:
    return share(sum(attack.succeeded for attack in attacks), len(attacks))


def attacks(each: int, split: Split = "test", seed: int = 0) -> list[Conversation]:
    """`each` attacks of every strategy in one turn, and as many in several, whatever their categories."""
    if each < 1:
        raise UsageError(f"{each} attacks of a strategy: expected at least 1")
    wanted = {(strategy, several): each for strategy in STRATEGIES for several in TURNS.values()}
    found = []
    for conversation in dialogues.unsafe(split, seed):
        kind = conversation.strategy or "", len(conversation.turns) > 1
        if wanted[kind]:
            wanted[kind] -= 1
            found.append(conversation)
        if not any(wanted.values()):
            break
    return found


def red_team(
    chatter: Chatter,
    each: int = 10,
    borderline: int = 200,
    *,
    split: Split = "test",
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    progress: str | None = None,
) -> RedTeam:
    """Attack a model `each` times with every strategy in one turn, and as often in several; ask it so many borderline
    requests. The same seed makes the same attacks.
    """
    attempts = attacks(each, split, 2 * seed)
    said = conversations(
        chatter,
        [[turn.request for turn in c.turns] for c in attempts],
        sampling=sampling,
        seed=seed,
        end_when_full=True,
        progress=progress,
    )
    found = []
    for conversation, messages in zip(attempts, said, strict=True):
        texts = tuple(message["content"] for message in messages[1::2])
        turns = conversation.turns[: len(texts)]
        violations = tuple(judge(turn.task, text).violation for turn, text in zip(turns, texts, strict=True))
        found.append(Attack(conversation, texts, violations))
    harmless = list(islice(dialogues.borderline(split, 2 * seed + 1), borderline))
    asked = [c.messages("first", answers=False) for c in harmless]
    replies = answers(chatter, asked, sampling=sampling, seed=seed, progress=progress)
    refusals = [judge(c.task, reply.text).false_refusal for c, reply in zip(harmless, replies, strict=True)]
    return RedTeam(found, refusals)
