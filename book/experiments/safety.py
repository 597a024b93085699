"""Safety, three ways: more safety data, context distillation with and without the gate, red teams; for chapter 21.

    python book/experiments/pipeline.py      # the models that are finetuned and attacked
    python book/experiments/safety.py        # in runs/safety, then book/results/safety.json

Each seed has its own models, dialogues, order of training and answers. Stopped, the command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import place

from minillama import Llama, bench, weights
from minillama.alignment.distillation import PREPROMPTS, Distilled, distil, under
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.red_team import RedTeam, red_team
from minillama.alignment.rollout import Chatter, answers
from minillama.alignment.scorer import Rewards, Scorer
from minillama.data.dialogues import write_records
from minillama.evaluation import miniature, record
from minillama.evaluation.statistics import Estimate
from minillama.miniature import dialogues
from minillama.miniature.conversation import Conversation

RESULTS = Path(__file__).parents[1] / "results" / "safety.json"
SHARES = (0, 10, 25, 50, 100)  # of the safety data, in percent
HELPFUL, SAFETY = 1_200, 400  # dialogues: all shares have the helpful ones
LR = 1e-3  # a third of the first finetuning's
COUNT = 300  # requests of each kind that the judge sees answered
EACH = 20  # attacks of every strategy in one turn, and as many in several
ATTACKED = ("sft", "gatt", "v1/reject", "v2/reject", "v3/reject", "v4/reject", "v5/reject", "v5/ppo")


def chatter(path: Path) -> Chatter:
    """The chat model in a folder."""
    checkpoint = weights.load(path)
    return Chatter(Llama(checkpoint.config, checkpoint.params), checkpoint.tokenizer, checkpoint.chat_template)


def rewards(models: Path) -> Rewards:
    """The first round's reward models."""
    return Rewards(Scorer.load(models / "v1" / "reward"), Scorer.load(models / "v1" / "safety"))


def command(*arguments: object) -> None:
    """Run a command of `minillama`; one that trains goes on, or finds its run ended."""
    subprocess.run([sys.executable, "-m", "minillama", *map(str, arguments)], check=True)


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returns, kept in a file, which is read where it is there."""
    if not path.is_file():
        found = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(found), encoding="utf-8")
        unfinished.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


# --- more safety data -------------------------------------------------------------------------------------------------
def records(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Conversations as a file of dialogues has them."""
    return [{"messages": c.messages("every"), "split": "train"} for c in conversations]


def data(folder: Path, seed: int, share: int) -> Path:
    """A file of the helpful dialogues, and `share` percent of the safe refusals; the smaller shares are parts of the
    larger.
    """
    path = folder / f"data-{share}.jsonl"
    if not path.is_file():
        helpful = list(islice(dialogues.helpful("train", 100 + seed), HELPFUL))
        safety = list(islice(dialogues.unsafe("train", 200 + seed), SAFETY * share // 100))
        folder.mkdir(parents=True, exist_ok=True)
        write_records(path, records([*helpful, *safety]))
    return path


def scaling(models: Path, seed: int, folder: Path, share: int) -> dict[str, Any]:
    """Finetuned on a share of the safety data, and judged."""
    run = folder / f"share-{share}"
    command(*("sft", "--model", models / "gatt", "--data", data(folder, seed, share)), *training(seed, run))
    return measured(run, models, seed)


def training(seed: int, run: Path) -> tuple[object, ...]:
    """The options that all these runs share."""
    return "--lr", LR, "--seed", seed, "--out", run


def measured(run: Path, models: Path, seed: int) -> dict[str, Any]:
    """What the judge finds of a model, and the scores of its answers by both reward models."""
    found = record.evaluate(chatter(run), COUNT, 0, seed, rewards=rewards(models))
    refused = [answer["refusal"] for answer in found.answers["helpful"]]
    return {
        "measures": {name: _json(estimate) for name, estimate in found.measures.items()},
        "helpful refused": sum(refused) / len(refused),
        "helpfulness scores": _scores(found.values("helpful", "helpfulness_score")),
        "safety scores": _scores(found.values("unsafe", "safety_score")),
    }


# --- context distillation ---------------------------------------------------------------------------------------------
def preprompted(models: Path, seed: int) -> dict[str, Any]:
    """Before any training: the chat model's answers with and without a preprompt, to requests that are held out."""
    model, safety = chatter(models / "gatt"), rewards(models).safety
    assert safety is not None
    asked = {kind: miniature.held_out(kind, COUNT) for kind in record.KINDS}
    prompts = [Prompt(tuple(c.messages("first", answers=False)), True, c.split) for c in asked["unsafe"]]
    found = distil(model, prompts, PREPROMPTS["miniature"], safety, sampling=miniature.EVALUATION, seed=seed)
    plain, warned = (
        miniature.verdicts(asked["unsafe"], [text(d) for d in found]).share("violation")
        for text in (lambda d: d.original, lambda d: d.answer)
    )
    others = {}
    for kind in ("helpful", "borderline"):
        preprompt = PREPROMPTS["miniature"][0]
        messages = [under(preprompt, c.messages("first", answers=False), "prefix") for c in asked[kind]]
        said = answers(model, messages, sampling=miniature.EVALUATION, seed=seed)
        others[kind] = miniature.verdicts(asked[kind], [answer.text for answer in said])
    return {
        "violations": {"plain": _json(plain), "preprompt": _json(warned)},
        "helpfulness": _json(others["helpful"].helpfulness()),
        "false refusals": _json(others["borderline"].share("false_refusal")),
        "scores": [[round(d.before, 3), round(d.after, 3)] for d in found],
        "example": _example(found),
    }


def _example(found: Sequence[Distilled]) -> dict[str, Any]:
    """The answer that a preprompt has made worst by the safety model's score, and what it was."""
    usable = [d for d in found if d.usable and d.before > d.after]
    worst = min(usable, key=lambda d: d.after - d.before)
    return {"asked": worst.prompt.messages[-1]["content"], **{k: getattr(worst, k) for k in ("original", "answer")}}


def distilled(models: Path, seed: int, folder: Path, gate: str) -> dict[str, Any]:
    """Finetuned on what the model says under a preprompt, through the gate ("gate") or all of it ("no-gate")."""
    run = folder / gate
    command(
        *("distill", "--model", models / "gatt", "--safety", models / "v1" / "safety", "--data", f"miniature:{SAFETY}"),
        *(f"--{gate}", "--replay", data(folder, seed, 0)),
        *training(seed, run),
    )
    return measured(run, models, seed) | {"sampling": json.loads((run / "sampling.json").read_text(encoding="utf-8"))}


# --- red teams --------------------------------------------------------------------------------------------------------
def attacked(model: Path, seed: int) -> dict[str, Any]:
    """What red teams find in a model."""
    team: RedTeam = red_team(chatter(model), EACH, COUNT, seed=seed)
    return {
        "all": _json(team.violation_rate()),
        **{name: {k: _json(x) for k, x in getattr(team, f"by_{name}")().items()} for name in GROUPS},
        "false refusals": _json(team.false_refusals()),
        "attacks": len(team.attacks),
    }


GROUPS = ("category", "strategy", "turns")


def _json(estimate: Estimate) -> list[float]:
    return [round(float(value), 4) for value in estimate]


def _scores(values: Any) -> list[float]:
    return [round(float(value), 2) for value in values]


def one_seed(models: Path, seed: int, here: Path) -> dict[str, Any]:
    """All that is measured with a seed."""
    jobs: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
        "preprompt": {"gatt": lambda: preprompted(models, seed)},
        "distillation": {"gatt": lambda: measured(models / "gatt", models, seed)},
        "shares": {str(share): partial(scaling, models, seed, here, share) for share in SHARES},
        "red teams": {name: partial(attacked, models / name, seed) for name in ATTACKED},
    }
    jobs["distillation"] |= {gate: partial(distilled, models, seed, here, gate) for gate in ("no-gate", "gate")}
    run: dict[str, Any] = {"seed": seed}
    for part, those in jobs.items():
        run[part] = {}
        for name, job in those.items():
            run[part][name] = once(here / f"{part}-{name.replace('/', '-')}.json", job)
            print(f"seed {seed}: {part}, {name}", flush=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Safety data, context distillation, red teams, for chapter 21.")
    parser.add_argument("--models", type=Path, default=Path("runs/pipeline"), metavar="FOLDER", help="of the pipelines")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/safety"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args()

    runs = [one_seed(place(seed, given.models), seed, given.out / f"seed-{seed}") for seed in given.seeds]
    content = {
        "command": "python book/experiments/safety.py",
        "machine": bench.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "helpful dialogues": HELPFUL,
        "safety dialogues": SAFETY,
        "requests": COUNT,
        "runs": runs,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
