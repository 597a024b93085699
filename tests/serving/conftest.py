"""Small random models behind the application, in process or on a port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minillama import LlamaConfig
from minillama.chat import ChatTemplate, builtin
from minillama.generate import Sampling
from minillama.model import Llama
from minillama.serving import server
from minillama.serving.app import Service, application
from minillama.serving.engine import Engine
from minillama.serving.protocol import Defaults, Limits
from minillama.tokenizer import from_gguf
from tests.tokenizer.models import byte_level_fields

CHATML = builtin("chatml")
GREEDY = {"temperature": 0}


def tiny_model(context: int = 256) -> Llama:
    """Random weights, large enough that the likeliest token differs from place to place; it knows no end."""
    tokenizer = from_gguf(byte_level_fields())
    config = LlamaConfig(32, 2, 4, 48, vocab_size=tokenizer.vocab_size, n_kv_heads=2, max_seq_len=context)
    params = {name: x * np.float32(10 if x.ndim > 1 else 1) for name, x in Llama.init(config).params.items()}
    params["output.weight"] *= 4  # the end, whose logit is 0, is then hardly ever drawn
    params["output.weight"][sorted(tokenizer.stop_ids)] = 0
    return Llama(config, params)


def tiny_service(
    template: ChatTemplate | None = CHATML, context: int = 256, rows: int = 4, queue: int = 64, **limits: Any
) -> Service:
    engine = Engine(tiny_model(context), from_gguf(byte_level_fields()), rows=rows, queue=queue)
    return Service(
        name="tiny",
        engine=engine,
        template=template,
        defaults=Defaults(Sampling(0.7), max_tokens=min(24, context)),
        limits=replace(Limits(context=context, n=rows), **limits),
        hosts=server.LOCAL_NAMES,
    )


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """A chat model; its engine is shared, so nothing of it may be changed."""
    service = tiny_service()
    yield service
    service.engine.close()


@pytest.fixture
def live() -> Iterator[Callable[[Service], str]]:
    """live(service) serves it on a port of this machine and returns its address."""
    running: list[tuple[server.Server, threading.Thread]] = []

    def start(service: Service) -> str:
        bound = server.bind("127.0.0.1", 0)
        uvicorn_server = server.Server(application(service), service.engine)
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_until(lambda: uvicorn_server.started)
        running.append((uvicorn_server, thread))
        return server.url(bound)

    yield start
    for uvicorn_server, thread in running:
        uvicorn_server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_until(happened: Callable[[], bool], seconds: float = 30) -> None:
    """Look again and again; fails when it never happens."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)
