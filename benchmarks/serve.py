"""How much `minillama serve` gains by computing requests together: one client against many, in turns.

    python -m benchmarks.serve [MODEL] [--clients 16] [--tokens 64] [--rounds 5] [--json FILE]

A round is a few questions asked one after another, then as many at once as there are clients; no question is asked
twice, so that no prompt is known already. Tokens are counted over all clients, prompts not; the clock runs from the
first request to the last answer, prompts read included. At the end the last crowd's questions are asked alone: greedy,
so that the answers are equal unless two tokens are as likely as each other to float32.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import requests
from threadpoolctl import threadpool_info

from minillama import bench

QUESTION = "Write a few sentences about the number {}."
ALONE = 4  # questions of a single client, a round


@dataclass(frozen=True)
class Round:
    """Tokens a second of one client and of all together."""

    alone: float
    together: float

    @property
    def ratio(self) -> float:
        return self.together / self.alone


class Client:
    """Asks the server questions about the numbers from 0 on, each once."""

    def __init__(self, url: str, tokens: int) -> None:
        self._url, self._tokens = url, tokens
        (model,) = requests.get(f"{url}/v1/models", timeout=600).json()["data"]
        self._model = model["id"]
        self.asked = 0

    def ask(self, number: int) -> tuple[str, int]:
        """The answer to a question, and its tokens."""
        message = {"role": "user", "content": QUESTION.format(number)}
        body = {"model": self._model, "messages": [message], "max_tokens": self._tokens, "temperature": 0}
        answer = requests.post(f"{self._url}/v1/chat/completions", json=body, timeout=3600)
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]["completion_tokens"]

    def rate(self, questions: int, at_once: int) -> tuple[float, dict[int, str]]:
        """Tokens a second over the next questions, so many at once; and the answers."""
        numbers = range(self.asked, self.asked + questions)
        self.asked += questions
        with ThreadPoolExecutor(at_once) as pool:
            started = time.perf_counter()
            answers = list(pool.map(self.ask, numbers))
            seconds = time.perf_counter() - started
        texts = {number: text for number, (text, _) in zip(numbers, answers, strict=True)}
        return sum(count for _, count in answers) / seconds, texts


def main() -> None:
    """Start a server, ask it in rounds, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (default: 64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every round, the medians and the machine to this file")
    given = parser.parse_args()
    command = [sys.executable, "-m", "minillama", "serve", given.model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = re.search(r"http://\S+:\d+", server.stderr.readline())
            assert url, "the server did not start"
            rounds, same = measure(Client(url[0], given.tokens), given.clients, given.rounds)
        finally:
            server.terminate()
    middle = {
        "alone": median(r.alone for r in rounds),
        "together": median(r.together for r in rounds),
        "ratio": median(r.ratio for r in rounds),
    }
    print(
        f"median: {middle['alone']:.1f} and {middle['together']:.1f} tokens/s, {middle['ratio']:.2f} x; "
        f"{same} of {given.clients} answers as alone"
    )
    if given.json:
        report = {
            "model": given.model,
            "machine": bench.machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": [f"{name} {version(name)}" for name in ("minillama", "uvicorn", "starlette")],
            "settings": {
                "clients": given.clients,
                "tokens": given.tokens,
                "questions_alone": ALONE,
                "blas_threads": [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"],
            },
            "median": middle,
            "answers_as_alone": same,
            "rounds": [asdict(r) | {"ratio": r.ratio} for r in rounds],
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(client: Client, clients: int, rounds: int) -> tuple[list[Round], int]:
    """The rounds, and how many of the last crowd's answers are those of a client alone."""
    client.rate(1, at_once=1)  # what is slow only once
    found = []
    for _ in range(rounds):
        alone, _ = client.rate(ALONE, at_once=1)
        together, answers = client.rate(clients, at_once=clients)
        found.append(Round(alone, together))
        print(f"1 client {alone:6.1f} tokens/s   {clients} clients {together:6.1f} tokens/s   {together / alone:.2f} x")
    return found, sum(client.ask(number)[0] == text for number, text in answers.items())


if __name__ == "__main__":
    main()
