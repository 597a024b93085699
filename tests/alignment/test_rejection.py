"""Rejection sampling: what is chosen, what the pool keeps, the control, the temperature, figure 7; the command."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.alignment import rejection
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.rejection import (
    Candidate,
    Pool,
    Samples,
    at_random,
    best,
    one_round,
    pooled,
    records,
    reward_curve,
    sample,
    tune_temperature,
)
from minillama.alignment.scorer import LOWEST
from minillama.data.dialogues import DialogueFile, find_dialogues, write_records
from minillama.errors import MinillamaError, UsageError
from minillama.training import loop
from tests.alignment.models import CHATTER, Judging, chat_model, problem, prompt, reward_model, run, saying, succeed

PROMPTS = [prompt("a"), prompt("b", safety=True), prompt("c", split="validation")]


def length(text: str) -> float:
    return float(len(text))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th answer to a prompt repeats its letter 1, 3, 2, … times; every fourth is cut off."""
    lengths = [1, 3, 2, None, 5, 4]

    def reply(messages: Any, n: int) -> str | None:
        times = lengths[n % 6]
        return None if times is None else messages[-1]["content"] * times

    monkeypatch.setattr(rejection, "answers", saying(reply))


# What is chosen


@pytest.mark.usefixtures("scripted")
def test_the_best_is_chosen() -> None:
    samples = sample(CHATTER, PROMPTS, Judging(length), 6)
    assert samples.texts[0] == ["a", "aaa", "aa", "", "aaaaa", "aaaa"]
    assert samples.rewards[0].tolist() == [1, 3, 2, LOWEST, 5, 4]
    assert [c.answer for c in best(samples)] == ["aaaaa", "bbbbb", "ccccc"]
    assert [c.reward for c in best(samples)] == [5, 5, 5]
    worst = sample(CHATTER, PROMPTS, Judging(lambda text: -length(text)), 6)
    assert [c.answer for c in best(worst)] == ["a", "b", "c"]
    assert [c.prompt for c in best(samples)] == PROMPTS


def test_an_answer_that_was_cut_off_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by reward nor at random; a prompt with no other is left out."""
    said = {"a": ["x", None, None], "b": [None, None, None], "c": [None, None, "y"]}
    monkeypatch.setattr(rejection, "answers", saying(lambda messages, n: said[messages[-1]["content"]][n]))
    samples = sample(CHATTER, PROMPTS, Judging(lambda text: -9.9), 3)
    for chosen in (best(samples), *(at_random(samples, seed) for seed in range(20))):
        assert [(c.prompt.messages[0]["content"], c.answer) for c in chosen] == [("a", "x"), ("c", "y")]
    found = one_round(CHATTER, PROMPTS, Judging(length), 3, [1.0])
    assert found.summary()["prompts without an answer"] == 1
    assert len(found.chosen) == 2


@pytest.mark.usefixtures("scripted")
def test_the_control_picks_any_alike() -> None:
    samples = sample(CHATTER, PROMPTS, Judging(length), 6)
    drawn = Counter(at_random(samples, seed)[0].answer for seed in range(500))
    assert set(drawn) == {"a", "aaa", "aa", "aaaaa", "aaaa"}
    assert all(60 < count < 140 for count in drawn.values()), drawn
    assert [c.answer for c in at_random(samples, 7)] == [c.answer for c in at_random(samples, 7)]
    control = one_round(CHATTER, PROMPTS, Judging(length), 6, [1.0], pick="random", seed=3)
    assert control.pool is None and len(control.chosen) == 3
    chosen = one_round(CHATTER, PROMPTS, Judging(length), 6, [1.0], seed=3)
    assert np.array_equal(chosen.samples.rewards, control.samples.rewards), "the same samples"
    assert chosen.summary()["mean reward of the chosen"] == 5


def test_wrong_rounds() -> None:
    with pytest.raises(UsageError, match="0 answers to each: expected at least one of both"):
        sample(CHATTER, PROMPTS, Judging(length), 0)
    with pytest.raises(UsageError, match=r"temperature 0.0: expected a positive number, for 2 answers that differ"):
        sample(CHATTER, PROMPTS, Judging(length), 2, temperature=0.0)
    with pytest.raises(UsageError, match="pick 'worst': expected best or random"):
        one_round(CHATTER, PROMPTS, Judging(length), 2, [1.0], pick="worst")
    with pytest.raises(UsageError, match="pick random: expected no pool"):
        one_round(CHATTER, PROMPTS, Judging(length), 2, [1.0], pick="random", earlier=Pool([]))


# The pool


def candidate(of: Prompt, answer: str, reward: float = 0.0) -> Candidate:
    return Candidate(of, answer, reward)


def test_the_pool_keeps_better_answers_of_earlier_rounds() -> None:
    """Their rewards by the newest model, whatever they were; prompts of earlier rounds stay."""
    a, b, c = PROMPTS
    earlier = [candidate(a, "aaaaaa", -50), candidate(a, "a", 99), candidate(c, "c", 99)]
    fresh = [candidate(a, "aaa", 3), candidate(b, "bb", 2)]
    rewards = Judging(length)
    pool = pooled(earlier, fresh, rewards)
    assert rewards.asked == ["aaaaaa", "a", "c"], "what this round has scored is not scored again"
    assert {(c.prompt.messages[0]["content"], c.answer, c.reward) for c in pool.best()} == {
        ("a", "aaaaaa", 6),
        ("b", "bb", 2),
        ("c", "c", 1),
    }
    without = pooled([], fresh, rewards)
    assert [c.answer for c in without.best()] == ["aaa", "bb"]


def test_the_pool_keeps_the_best_few_that_differ() -> None:
    a = PROMPTS[0]
    fresh = [candidate(a, "x" * n, n) for n in (3, 1, 3, 5, 2, 3, 4)]
    pool = pooled([candidate(a, "x" * 5), candidate(a, "x" * 6)], fresh, Judging(length), keep=3)
    assert [c.answer for c in pool.candidates] == ["x" * 6, "x" * 5, "x" * 4]
    # What the older model ranked second may be the newest model's first: it is there.
    again = pooled(pool.candidates, [], Judging(lambda text: -length(text)), keep=1)
    assert [c.answer for c in again.candidates] == ["xxxx"]


def test_a_prompt_is_its_whole_dialogue() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    longer = Prompt(tuple(said), False, "train")
    other = Prompt((*said[:1], {"role": "assistant", "content": "x"}, said[2]), False, "train")
    pool = pooled(
        [], [candidate(longer, "1", 1), candidate(other, "2", 2), candidate(PROMPTS[2], "3", 3)], Judging(length)
    )
    assert len(pool.best()) == 3


def test_pool_on_disk(tmp_path: Path) -> None:
    pool = Pool([candidate(p, f"{p.messages[0]['content']}…", i / 3) for i, p in enumerate(PROMPTS)])
    pool.save(tmp_path / "pool.jsonl")
    assert Pool.load(tmp_path / "pool.jsonl") == pool


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "expected candidates, found none"),
        ("{", "line 1: expected JSON"),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "answer": "b"}',
            "line 1: expected a prompt, a text as answer",
        ),
        ('{"prompt": [{"role": "user", "content": "a"}], "answer": " ", "reward": 1}', "line 1: expected a prompt"),
        ('{"prompt": "a", "answer": "b", "reward": 1}', "line 1: expected messages to be a list"),
        ('{"prompt": [{"role": "king", "content": "a"}], "answer": "b", "reward": 1}', "line 1: message 0: expected a"),
        (
            '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], "answer": "b", '
            '"reward": 1}',
            "line 1: expected a prompt that ends with what the user says",
        ),
        ('{"prompt": [{"role": "user", "content": "a"}], "answer": "b", "reward": 1, "split": "x"}', "line 1"),
    ],
)
def test_damaged_pools(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "pool.jsonl").write_text(line + "\n")
    with pytest.raises(MinillamaError, match=r"pool\.jsonl") as raised:
        Pool.load(tmp_path / "pool.jsonl")
    assert expected in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(MinillamaError, match="expected the pool of an earlier round, found no such file"):
        Pool.load(tmp_path / "none.jsonl")


@pytest.mark.usefixtures("scripted")
def test_rounds_build_on_each_other() -> None:
    """Round 2 samples worse answers to one prompt, and does not ask another: both keep what round 1 has found."""
    first = one_round(CHATTER, PROMPTS[:2], Judging(length), 6, [1.0])
    assert first.pool is not None
    second = one_round(CHATTER, PROMPTS[1:], Judging(length), 2, [1.0], earlier=first.pool)
    answers = {c.prompt.messages[0]["content"]: c.answer for c in second.chosen}
    assert answers == {"a": "aaaaa", "b": "bbbbb", "c": "ccc"}
    alone = one_round(CHATTER, PROMPTS[1:], Judging(length), 2, [1.0])
    assert {c.answer for c in alone.chosen} == {"bbb", "ccc"}


def test_what_is_learned(tmp_path: Path) -> None:
    """The answer alone, in its prompt's split."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    chosen = [candidate(Prompt(tuple(said), False, "train"), "d"), candidate(PROMPTS[2], "e")]
    write_records(tmp_path / "d.jsonl", records(chosen))
    first, second = DialogueFile(tmp_path / "d.jsonl").examples()
    assert [m["content"] for m in first.messages] == ["a", "b", "c", "d"]
    assert first.learned == (False, True) and first.split == "train"
    assert second.learned == (True,) and second.split == "validation"


# Temperature and figure 7


def test_the_temperature_with_the_best_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the mean of the best of K, not of all: a wilder model is worse on average and better at its best."""
    drawn = {0.5: [3, 3, 3], 1.0: [1, 1, 5], 1.5: [0.5, 2, 4]}

    def answers(chatter: Any, dialogues: Any, *, sampling: Any, **_: Any) -> Any:
        return saying(lambda messages, n: str(drawn[sampling.temperature][n]))(chatter, dialogues)

    monkeypatch.setattr(rejection, "answers", answers)
    chosen, means = tune_temperature(CHATTER, PROMPTS, Judging(float), 3, (0.5, 1.0, 1.5))
    assert chosen == 1.0 and means == {0.5: 3, 1.0: 5, 1.5: 4}
    assert tune_temperature(CHATTER, PROMPTS, Judging(float), 2, (0.5, 1.0, 1.5))[0] == 0.5
    found = one_round(CHATTER, PROMPTS, Judging(float), 3, [0.5, 1.0])
    assert found.temperature == 1.0 and found.temperatures == {0.5: 3, 1.0: 5}
    assert one_round(CHATTER, PROMPTS, Judging(float), 3, [0.5]).temperatures == {}
    with pytest.raises(UsageError, match="temperatures: expected at least one, found none"):
        tune_temperature(CHATTER, PROMPTS, Judging(float), 3, ())


def test_reward_curve_equals_all_choices() -> None:
    """Of each prompt the mean over every N of its samples, by going through all of them."""
    rewards = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    curve = reward_curve(rewards)
    assert [at.n for at in curve] == [1, 2, 3, 4, 5, 6]
    for at in curve:
        highest = [[max(some) for some in combinations(row, at.n)] for row in rewards]
        median = [[np.median(some) for some in combinations(row, at.n)] for row in rewards]
        assert at.highest.mean == pytest.approx(np.mean(highest), rel=1e-6)
        assert at.median.mean == pytest.approx(np.mean(median), rel=1e-6)
        spread = np.mean(highest, axis=1).std(ddof=1)
        assert at.highest.high - at.highest.mean == pytest.approx(3.182 * spread / 2, rel=1e-3)
    assert curve[0].highest.mean == pytest.approx(rewards.mean(), rel=1e-6)
    assert curve[-1].highest.mean == pytest.approx(rewards.max(axis=1).mean(), rel=1e-6)
    assert all(a.highest.mean <= b.highest.mean for a, b in pairwise(curve))
    with pytest.raises(UsageError, match=r"rewards: expected \(prompts, samples\), found \(3,\)"):
        reward_curve(np.zeros(3))


def test_samples_know_what_is_usable() -> None:
    samples = Samples(PROMPTS[:1], [["a", ""]], np.array([[1.0, LOWEST]]))
    assert samples.usable.tolist() == [[True, False]]


# The command


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A chat model, a reward model."""
    folder = tmp_path_factory.mktemp("models")
    return chat_model(folder / "chat"), reward_model(folder / "rm")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    asked = [{"prompt": [{"role": "user", "content": f"{letter} {i}"}]} for i in range(2) for letter in "abcd"]
    write_records(path, [{**p, "split": "validation" if i == 0 else "train"} for i, p in enumerate(asked)])
    return path


def required(models: tuple[Path, Path], prompts: Path, out: Path) -> list[object]:
    """Answers of up to 200 tokens: half of them come to an end."""
    chat, reward = models
    return [
        *("reject", "--model", chat, "--reward", reward, "--data", prompts, "--out", out, "--samples", 3),
        *("--max-new-tokens", 200, "--batch-size", 1, "--threads", 1, "--device", "cpu"),
    ]


def test_two_rounds(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    """The second begins with the first's model and pool; its dialogues are the best of both rounds."""
    succeed(*required(models, prompts, tmp_path / "v1"), "--safety", models[1])
    told = json.loads((tmp_path / "v1" / "sampling.json").read_text())
    assert told["prompts"] == 8 and told["samples"] == 3 and len(told["curve"]) == 3
    assert told["mean reward"] < told["mean reward of the best"]
    second = required((tmp_path / "v1", models[1]), prompts, tmp_path / "v2")
    result = succeed(*second, "--pool", tmp_path / "v1" / "pool.jsonl", "--temperature", 0.9, "--temperature", 1)
    assert "mean reward of the best: " in result.stderr
    one, two = (Pool.load(tmp_path / name / "pool.jsonl") for name in ("v1", "v2"))
    assert len(two.candidates) > len(one.candidates)
    assert {c.answer for c in two.candidates} & {c.answer for c in one.candidates}
    learned = [e.messages[-1]["content"] for e in DialogueFile(tmp_path / "v2" / "dialogues.jsonl").examples()]
    assert learned == [c.answer for c in two.best()]
    for candidate in two.best():
        rivals = [c.reward for c in two.candidates if c.prompt == candidate.prompt]
        assert candidate.reward == max(rivals)
    assert (
        "has ended already"
        in succeed(*second, "--pool", tmp_path / "v1" / "pool.jsonl", "--temperature", 0.9, "--temperature", 1).stderr
    )
    assert "a run of other settings" in problem(*second, "--temperature", 0.9, "--temperature", 1)


def test_old_dialogues_beside_what_is_chosen(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    """They are drawn with a seed of their own, which the run's identity holds; they are no part of the pool."""
    given = required(models, prompts, tmp_path / "v1")
    said = succeed(*given, "--replay", "harmless:6", "--replay-seed", 7)
    chosen = list(DialogueFile(tmp_path / "v1" / "dialogues.jsonl").examples())
    learned = sum(example.split == "train" for example in chosen) + 6
    assert re.search(rf"dialogues +{learned}\b", said.stdout)
    settings = json.loads((tmp_path / "v1" / "run.json").read_text())["settings"]
    assert settings["data"]["1"] == find_dialogues("harmless:6", 7).identity()
    assert "a run of other settings" in problem(*given, "--replay", "harmless:6", "--replay-seed", 8)


def test_a_run_that_is_killed_goes_on(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its last checkpoint and its samples, which are not drawn again, to the same bits."""
    succeed(*required(models, prompts, tmp_path / "whole"))
    step = loop._Trainer.step

    def stopped(trainer: Any) -> None:
        if trainer.progress.step == 3:
            raise KeyboardInterrupt
        step(trainer)

    broken = required(models, prompts, tmp_path / "broken")
    monkeypatch.setattr(loop._Trainer, "step", stopped)
    run(*broken, "--save-every", 2)
    monkeypatch.setattr(loop._Trainer, "step", step)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    monkeypatch.setattr(rejection, "one_round", None)
    assert "going on after step 2" in succeed(*broken, "--save-every", 2, "--resume").stderr
    for name in ("dialogues.jsonl", "pool.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ours, theirs = (weights.load(tmp_path / name).params for name in ("whole", "broken"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_wrong_use(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    chat, reward = models
    (tmp_path / "empty.jsonl").write_text("")
    usual = required(models, prompts, tmp_path / "out")
    for more, expected in (
        (["--pool", tmp_path / "empty.jsonl"], "empty.jsonl: expected candidates, found none"),
        (["--pool", tmp_path / "none.jsonl"], "expected the pool of an earlier round, found no such file"),
        (["--pick", "worst"], "pick 'worst': expected best or random"),
        (["--pick", "random", "--pool", tmp_path / "empty.jsonl"], "pick random: expected no pool"),
        (["--temperature", -1], "temperature -1.0"),
        (["--reward", chat], "expected a reward model, found a model that writes text"),
        (["--model", reward], "reward model"),
        (["--data", tmp_path / "none.jsonl"], "none.jsonl"),
        (["--resume"], "expected a run to go on with, found none"),
    ):
        assert expected in problem(*usual, *more), more
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    without = [word for word in usual if word not in ("--reward", reward)]
    assert "expected a reward model at least, found none" in problem(*without)
    assert "expected at least one of both" in problem(*usual[:5], "--data", tmp_path / "empty.jsonl", *usual[7:])
