"""On a port of this machine: clients that hang up, a full line, the official client, the command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from minillama.errors import MinillamaError
from minillama.serving import server
from minillama.serving.app import Service
from tests.serving.conftest import GREEDY, tiny_service, wait_until
from tests.test_cli import assert_one_line, chat_model, command, run  # noqa: F401  # a fixture

ENDLESS = {"model": "tiny", "prompt": "hello", "max_tokens": 100_000, **GREEDY}
SHORT = ENDLESS | {"max_tokens": 4}
Live = Callable[[Service], str]


def running(url: str) -> int:
    return requests.get(f"{url}/health", timeout=30).json()["running"]


def test_who_hangs_up_frees_the_row(live: Live) -> None:
    url = live(tiny_service(context=100_000, rows=1))
    streamed = requests.post(f"{url}/v1/completions", json=ENDLESS | {"stream": True}, stream=True, timeout=30)
    lines = streamed.iter_lines()
    assert json.loads(next(lines).removeprefix(b"data: "))["object"] == "text_completion"
    assert running(url) == 1
    streamed.close()
    assert requests.post(f"{url}/v1/completions", json=SHORT, timeout=60).status_code == 200

    address = url.removeprefix("http://").split(":")
    body = json.dumps(ENDLESS).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.create_connection((address[0], int(address[1]))) as client:
        client.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: running(url) == 1)
    wait_until(lambda: running(url) == 0)
    assert requests.post(f"{url}/v1/completions", json=SHORT, timeout=60).status_code == 200


def test_a_full_line_is_told_at_once(live: Live) -> None:
    service = tiny_service(context=100_000, rows=1, queue=1)
    url = live(service)
    kept = [
        requests.post(f"{url}/v1/completions", json=ENDLESS | {"stream": True}, stream=True, timeout=30) for _ in "ab"
    ]
    lines = kept[0].iter_lines()
    next(lines)
    wait_until(lambda: requests.get(f"{url}/health", timeout=30).json() == {"status": "ok", "running": 1, "waiting": 1})
    refused = requests.post(f"{url}/v1/completions", json=SHORT, timeout=30)
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"
    for answer in kept:
        answer.close()
    wait_until(lambda: service.engine.load == (0, 0))
    assert requests.post(f"{url}/v1/completions", json=SHORT, timeout=60).status_code == 200


def test_the_end_of_the_server_is_told(live: Live) -> None:
    service = tiny_service(context=100_000, rows=1)
    url = live(service)
    answer = requests.post(f"{url}/v1/completions", json=ENDLESS | {"stream": True}, stream=True, timeout=30)
    lines = answer.iter_lines()
    next(lines)
    service.engine.close()
    *_, last = (line for line in lines if line)
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "the server is shutting down"
    assert requests.post(f"{url}/v1/completions", json=SHORT, timeout=30).status_code == 503


def test_a_body_that_never_comes(live: Live) -> None:
    """A client that goes away in the middle of its request harms nobody."""
    url = live(tiny_service())
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"model": '
        )
    assert requests.post(f"{url}/v1/completions", json=SHORT, timeout=60).status_code == 200


def test_the_openai_client(live: Live) -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    url = live(tiny_service())
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "seed": 4}
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        with client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}) as stream:
            chunks = list(stream)
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-1].usage == whole.usage
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        text = client.completions.create(model="tiny", prompt=["hello", "hell"], max_tokens=3, logprobs=1, **GREEDY)
        assert [len(choice.logprobs.tokens) for choice in text.choices] == [3, 3]

        def question(i: int) -> str:
            answer = client.chat.completions.create(**ask | {"seed": i}, n=2)
            return "|".join(choice.message.content for choice in answer.choices)

        alone = [question(i) for i in range(16)]
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(question, range(16))) == alone

        with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist"):
            client.chat.completions.create(**ask | {"model": "gpt-4"})
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model="tiny", prompt="x" * 300)
        assert error.value.code == "context_length_exceeded" and error.value.param == "prompt"


def test_the_command(chat_model: Path) -> None:  # noqa: F811
    arguments = command("serve", chat_model, "--port", 0, "--device", "cpu", "--temperature", 0)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.match(r"chat at (http://127\.0\.0\.1:\d+): a page to chat", line)
        assert found, line
        ask = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        answer = requests.post(f"{found[1]}/v1/chat/completions", json=ask, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 4
        if os.name != "nt":
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken(chat_model: Path) -> None:  # noqa: F811
    with server.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_line(run("serve", chat_model, "--port", port), 1, f"127.0.0.1:{port}: cannot listen there")
    with pytest.raises(MinillamaError, match="no-such-host"):
        server.bind("no-such-host.invalid", 80)


def test_addresses() -> None:
    with server.bind("localhost", 0) as local, server.bind("0.0.0.0", 0) as everywhere:
        assert server.is_loopback(local)
        assert not server.is_loopback(everywhere)
        assert re.fullmatch(r"http://0\.0\.0\.0:\d+", server.url(everywhere))


def test_imports_stay_with_the_command() -> None:
    """`minillama --help` must not wait for a web framework."""
    code = "import sys, minillama.cli; sys.exit(any(name in sys.modules for name in ('starlette', 'uvicorn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
