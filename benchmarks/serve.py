"""How much `minillama serve` gains by computing requests together: one client against many, the same questions.

    python -m benchmarks.serve [MODEL] [--clients 16] [--tokens 64]

Tokens are counted over all clients, prompts not; the clock runs from the first request to the last answer, prompts read
included. Each answer of the crowd is compared with the one to the same question asked alone: greedy, so that they are
equal unless two tokens are as likely as each other to float32.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import requests

QUESTION = "Write a few sentences about the number {}."


def main() -> None:
    """Start a server, ask it, print a line for each crowd."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    command = [sys.executable, "-m", "minillama", "serve", options.model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = re.search(r"http://\S+:\d+", server.stderr.readline())
            assert url, "the server did not start"
            _compare(url[0], options.clients, options.tokens)
        finally:
            server.terminate()


def _compare(url: str, clients: int, tokens: int) -> None:
    (model,) = requests.get(f"{url}/v1/models", timeout=600).json()["data"]

    def ask(i: int) -> tuple[str, int]:
        """The answer to question i, and its tokens."""
        message = {"role": "user", "content": QUESTION.format(i)}
        body = {"model": model["id"], "messages": [message], "max_tokens": tokens, "temperature": 0}
        answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=3600)
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]["completion_tokens"]

    ask(0)  # what is slow only once
    started = time.perf_counter()
    alone = [ask(i) for i in range(clients)]
    slow = sum(count for _, count in alone) / (time.perf_counter() - started)
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        together = list(pool.map(ask, range(clients)))
        fast = sum(count for _, count in together) / (time.perf_counter() - started)
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    print(f" 1 client   {slow:7.1f} tokens/s")
    print(f"{clients:2} clients  {fast:7.1f} tokens/s, {fast / slow:.1f} x; {same} of {clients} answers as alone")


if __name__ == "__main__":
    main()
