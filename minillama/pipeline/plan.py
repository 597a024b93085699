"""Which commands make a chat model, in the paper's order, with numbers that fit a size.

    base → sft → gatt → v1 … v4, each: preferences → two reward models → rejection sampling → v5: the same, then PPO

Every round asks for fresh preferences on answers of the newest model and of the first, which still errs in every way
there is: the newest alone would soon show no unsafe answer to learn from. It trains the reward models on them, going on
from those of the round before, and samples from the newest model; the pool keeps what earlier rounds have found.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from minillama import miniature
from minillama.errors import UsageError
from minillama.pipeline.runner import Made, Stage
from minillama.training.pretrain import fingerprint, load_initial

ROUNDS = 5
CONTROL = "v1/random"
LAST = f"v{ROUNDS}/ppo"
OBEDIENT = ("sft", "gatt", LAST)  # whose memory of an instruction is measured


@dataclass(frozen=True)
class Scale:
    """The numbers of a size.

    dialogues: of supervised finetuning. ghosts: dialogues sampled for Ghost Attention; replay: old ones beside them.
    helpful, safety: prompts of a round's preferences, in the first round `first` times as many. asked: prompts of a
    round of rejection sampling, answered `samples` times. iterations: of PPO. judged: requests of each kind that the
    judge sees answered. reject, ppo, reward, safe: what else these commands are told; `safe`, of the safety model.
    """

    dialogues: int
    ghosts: int
    replay: int
    helpful: int
    safety: int
    first: int
    asked: int
    samples: int
    iterations: int
    judged: int
    reject: tuple[str, ...] = ()
    ppo: tuple[str, ...] = ()
    reward: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()


SCALES = {
    "mini": Scale(
        7_000,
        250,
        2_000,
        helpful=300,
        safety=180,
        first=5,
        asked=240,
        samples=8,
        iterations=6,
        judged=200,
        reject=("--temperature", "0.7", "--temperature", "1", "--lr", "3e-4", "--batch-size", "1"),
        ppo=(
            *("--answers", "8", "--batch-size", "512", "--minibatch", "512", "--own-scales"),
            *("--lr", "5e-4", "--value-lr", "1e-3", "--validate-every", "2", "--max-new-tokens", "96"),
        ),
        reward=("--likelihood", "--batch-size", "16", "--lr", "1e-4"),
        safe=("--batch-size", "16"),
    ),
    "small": Scale(
        20_000,
        1_000,
        6_000,
        helpful=2_000,
        safety=1_200,
        first=2,
        asked=2_000,
        samples=16,
        iterations=200,
        judged=500,
    ),
    "base": Scale(
        40_000,
        2_000,
        10_000,
        helpful=5_000,
        safety=3_000,
        first=2,
        asked=5_000,
        samples=16,
        iterations=300,
        judged=500,
    ),
}


def stages(preset: str, seed: int = 0, begin: str | None = None) -> list[Stage]:
    """All stages, in order. begin: a base model that is there, a path or a name; None pretrains one. Raises UsageError
    for a preset that there is not, MinillamaError for a base model that there is not.
    """
    if preset not in SCALES:
        raise UsageError(f"preset {preset!r}: expected one of {', '.join(SCALES)}")
    n = SCALES[preset]
    drawn = ("--seed", str(seed))
    sft, gatt = Made("sft"), Made("gatt")
    world = _world()  # every stage but these two reads what one of them makes
    base, checksum = (Made("base"), "") if begin is None else (begin, _checksum(begin) + world)
    found = [
        Stage("base", ("pretrain", "--preset", preset, "--data", "miniature", *drawn), checksum=world),
        Stage("sft", ("sft", "--model", base, "--data", f"miniature:{n.dialogues}", *drawn), checksum=checksum),
        Stage(
            "gatt",
            ("gatt", "--model", sft, "--data", f"miniature:{n.ghosts}", "--replay", f"miniature:{n.replay}", *drawn),
        ),
    ]
    if begin is not None:
        del found[0]
    newest = gatt
    for number in range(1, ROUNDS + 1):
        found += one_round(number, newest, sft, n, seed)
        newest = Made(f"v{number}/reject")
    rewards = ("--reward", Made(f"v{ROUNDS}/reward"), "--safety", Made(f"v{ROUNDS}/safety"))
    found.append(
        Stage(
            LAST,
            ("ppo", "--model", newest, *rewards, "--iterations", str(n.iterations), *n.ppo, *drawn),
        )
    )
    judged: dict[str, str | Made] = {"base": base, "sft": sft, "gatt": gatt, CONTROL: Made(CONTROL)}
    judged |= {f"v{number}/reject": Made(f"v{number}/reject") for number in range(1, ROUNDS + 1)}
    judged |= {LAST: Made(LAST)}
    for name, model in judged.items():
        asked: tuple[str | Made, ...] = ("--count", str(n.judged), "--turns", "10" if name in OBEDIENT else "0")
        if name != "base":
            asked += (*rewards, "--reference", sft)
        command = ("evaluate", model, *asked, *drawn)
        found.append(
            Stage(f"judged/{name.replace('/', '-')}.json", command, "--json", checksum if name == "base" else "")
        )
    return found


def _checksum(model: str) -> str:
    """Of the weights of a model that is there."""
    return fingerprint(load_initial(model, "cpu")[0])


def _world() -> str:
    """Of the miniature's sources: its texts and dialogues come from code."""
    digest = hashlib.sha256()
    for path in sorted(Path(miniature.__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def one_round(number: int, newest: Made, first_chat: Made, n: Scale, seed: int) -> list[Stage]:
    """Round V `number`: fresh preferences, both reward models, rejection sampling."""
    here, before = f"v{number}", f"v{number - 1}"
    first: dict[str, Made] = {
        name: newest if number == 1 else Made(f"{before}/{name}") for name in ("reward", "safety")
    }
    drawn = ("--seed", str(10 * seed + number))  # other prompts each round
    times = n.first if number == 1 else 1
    found = [
        Stage(
            f"{here}/{domain}.jsonl",
            (
                *("preferences", "--model", newest, "--model", first_chat, "--domain", domain),
                *("--temperature", "0.7", "--temperature", "1", "--temperature", "1.3"),
                *("--count", str(times * count), "--held-out", "0.2", *drawn),
            ),
        )
        for domain, count in (("helpfulness", n.helpful), ("safety", n.safety))
    ]
    pairs = {domain: Made(f"{here}/{domain}.jsonl") for domain in ("helpfulness", "safety")}
    found += [
        Stage(
            f"{here}/reward",
            (
                *("reward", "--model", first["reward"], "--data", pairs["helpfulness"]),
                *("--margin", "small", *n.reward, *drawn),
            ),
        ),
        Stage(
            f"{here}/safety",
            (
                *("reward", "--model", first["safety"], "--data", pairs["safety"]),
                *("--safety-loss", "1", *n.safe, *drawn),
            ),
        ),
    ]
    sampled: tuple[str | Made, ...] = (
        *("reject", "--model", newest, "--reward", Made(f"{here}/reward"), "--safety", Made(f"{here}/safety")),
        *("--data", f"miniature:{n.asked}", "--samples", str(n.samples), *n.reject, *drawn),
    )
    pool: tuple[str | Made, ...] = () if number == 1 else ("--pool", Made(f"{before}/reject", "pool.jsonl"))
    found.append(Stage(f"{here}/reject", (*sampled, *pool)))
    if number == 1:
        found.append(Stage(CONTROL, (*sampled, "--pick", "random")))
    return found
