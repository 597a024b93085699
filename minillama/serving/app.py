"""The HTTP side of `minillama serve`: an ASGI application with OpenAI's endpoints and the chat page.

It computes nothing: requests are checked, put into the engine's line, and what the engine's thread tells comes back
through a queue. Whoever hangs up is taken out of the batch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minillama.chat import ChatTemplate
from minillama.errors import UsageError
from minillama.serving import protocol
from minillama.serving.engine import Busy, Engine, Failure, Job, Token
from minillama.serving.engine import Request as Work
from minillama.serving.protocol import ApiError, Ask, Defaults, Limits, Reply

PAGE = Path(__file__).with_name("page.html")
# The page asks nobody but this server, and stands in no other page's frame.
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Service:
    """What is served, under which name. template None: a base model, which completes text and does not chat.

    hosts: the names by which the server may be asked (the Host header); "*" for any.
    """

    name: str
    engine: Engine
    template: ChatTemplate | None
    defaults: Defaults
    limits: Limits
    hosts: Sequence[str]


def application(service: Service) -> Starlette:
    """The ASGI application. It closes the engine when it is shut down."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.engine.close()

    async def chat(request: Request) -> Response:
        if service.template is None:
            raise ApiError(400, f"{service.name} has no chat template: a base model completes text, at /v1/completions")
        return await _answer(service, request, protocol.parse_chat)

    async def completion(request: Request) -> Response:
        return await _answer(service, request, protocol.parse_completion)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        _check_model(service, request.path_params["name"])
        return JSONResponse(_model(service))

    async def health(_: Request) -> Response:
        running, waiting = service.engine.load
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting})

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"Content-Security-Policy": PAGE_POLICY})

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(service.hosts))],
        exception_handlers={ApiError: _refusal, HTTPException: _http_refusal, Exception: _surprise},
        lifespan=lifespan,
    )


def _model(service: Service) -> dict[str, Any]:
    """A model as /v1/models lists it; the last two fields are ours."""
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "minillama",
        "context": service.limits.context,
        "chat": service.template is not None,
    }


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        message = f"the model {name!r} does not exist: expected {service.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.body, error.status, headers)


async def _http_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").body,
        error.status_code,
        error.headers,
    )


async def _surprise(request: Request, error: Exception) -> Response:
    return await _refusal(request, ApiError(500, f"unexpected {type(error).__name__}"))


async def _answer(
    service: Service, request: Request, parse: Callable[[dict[str, Any], Limits, Defaults], Ask]
) -> Response:
    """Check a request, put it in line, and send what comes of it: as it comes, or when it is complete."""
    ask = parse(protocol.parse_json(await _body(request, service.limits.body_bytes)), service.limits, service.defaults)
    _check_model(service, ask.model)
    prompts = await run_in_threadpool(_encoded, service, ask)  # a long text takes a while
    answer = _Answer(service, ask, prompts)
    if ask.stream:
        return StreamingResponse(answer.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return await answer.complete(request)


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request that says it is JSON: a form on a page from elsewhere cannot say so unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "expected the header Content-Type: application/json")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise ApiError(413, f"the body is too large: expected at most {limit:,} bytes")
    return bytes(data)


def _encoded(service: Service, ask: Ask) -> list[list[int]]:
    """Each prompt's tokens, of which there is at least one and room for another after them."""
    tokenizer, context = service.engine.tokenizer, service.limits.context
    param = "messages" if ask.messages else "prompt"
    try:
        if ask.messages:
            assert service.template is not None
            prompts = [service.template.encode(ask.messages, tokenizer).tokens]
        else:
            prompts = [tokenizer.encode(p) if isinstance(p, str) else p for p in ask.prompts]
    except UsageError as error:
        raise ApiError(400, str(error), param=param) from None
    for prompt in prompts:
        if not prompt:
            raise ApiError(400, "the prompt is empty, and the model knows no token to begin a text with", param=param)
        if len(prompt) >= context:
            message = f"the prompt has {len(prompt)} tokens and leaves no room in the context of {context}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        if not all(0 <= token < tokenizer.vocab_size for token in prompt):
            raise ApiError(400, f"prompt: expected token ids from 0 to {tokenizer.vocab_size - 1}", param=param)
    return prompts


class _Answer:
    """A request in the engine, and the queue by which its tokens come back to the event loop."""

    def __init__(self, service: Service, ask: Ask, prompts: list[list[int]]) -> None:
        """Raises ApiError where the engine takes no more."""
        self._include_usage = ask.include_usage
        self._events: asyncio.Queue[tuple[int, Token | Failure]] = asyncio.Queue()
        self._open = len(prompts) * ask.n
        self._reply = Reply(
            chat=bool(ask.messages),
            model=service.name,
            tokenizer=service.engine.tokenizer,
            choices=self._open,
            prompt_tokens=sum(map(len, prompts)),
            with_logprobs=ask.top_logprobs is not None,
        )
        self._jobs: list[Job] = []
        loop = asyncio.get_running_loop()

        def listener(first: int) -> Callable[[Token | Failure], None]:
            def listen(event: Token | Failure) -> None:  # called on the engine's thread
                loop.call_soon_threadsafe(self._events.put_nowait, (first, event))

            return listen

        try:
            for i, prompt in enumerate(prompts):
                room = service.limits.context - len(prompt)
                work = Work(
                    prompt, ask.sampling, ask.seed, min(ask.max_tokens, room), ask.n, ask.stop, ask.top_logprobs
                )
                self._jobs.append(service.engine.submit(work, listener(i * ask.n)))
        except Busy as error:
            self._hang_up()
            raise ApiError(503, str(error), code="overloaded") from None

    async def complete(self, request: Request) -> Response:
        """The answer in one piece; none where nobody waits for it any more."""
        gone = asyncio.ensure_future(_disconnected(request))
        answer = asyncio.ensure_future(self._collect())
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await answer) if answer.done() else Response(status_code=499)
        finally:
            self._hang_up()
            gone.cancel()
            answer.cancel()

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        try:
            for chunk in self._reply.openings():
                yield _event(chunk)
            async for choice, token in self._tokens():
                if news := self._reply.add(choice, token):
                    yield _event(news)
            if self._include_usage:
                yield _event(self._reply.usage_chunk())
            yield "data: [DONE]\n\n"
        except ApiError as error:  # too late for a status
            yield _event(error.body)
        finally:
            self._hang_up()

    async def _collect(self) -> dict[str, Any]:
        async for choice, token in self._tokens():
            self._reply.add(choice, token)
        return self._reply.whole()

    async def _tokens(self) -> AsyncIterator[tuple[int, Token]]:
        """Every token with the number of its choice, until all choices are complete. Raises ApiError."""
        while self._open:
            first, event = await self._events.get()
            if isinstance(event, Failure):
                raise ApiError(500, event.message)
            self._open -= event.finish_reason is not None
            yield first + event.choice, event

    def _hang_up(self) -> None:
        for job in self._jobs:
            job.cancel()


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _disconnected(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
