"""OpenAI's API in and out: what a request may hold, with limits, and the bodies of answers and errors.

The fields are those of https://platform.openai.com/docs/api-reference (chat completions and completions), and as
others serve them besides: top_k and min_p. A field that would change the answer and is not supported is refused;
one that would not (user, metadata, store, …) is ignored.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minillama.chat import Message
from minillama.generate import Sampling
from minillama.serving.engine import Token
from minillama.tokenizer import Tokenizer

# What a field that is not supported may hold all the same, because it then asks for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
ROLES = {"developer": "system"}  # OpenAI's newer name


class ApiError(Exception):
    """A request that gets no answer: the HTTP status, and what OpenAI's clients read from the body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for. choices: over all of its prompts; context: tokens of model and server."""

    context: int
    n: int
    body_bytes: int = 1 << 20
    messages: int = 1024
    choices: int = 128
    stop_strings: int = 4
    stop_length: int = 256
    top_logprobs: int = 20


@dataclass(frozen=True)
class Defaults:
    """What holds for a field that a request leaves out. max_tokens: a small model can repeat itself without end."""

    sampling: Sampling
    max_tokens: int


@dataclass(frozen=True)
class Ask:
    """A request, checked. messages of a chat; or prompts, each a text or token ids."""

    model: str
    messages: list[Message]
    prompts: list[str | list[int]]
    sampling: Sampling
    seed: int
    max_tokens: int
    n: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    include_usage: bool


def parse_json(data: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises ApiError."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not valid JSON: {reason}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body: expected a JSON object, found {_kind(body)}")
    return body


def parse_chat(body: dict[str, Any], limits: Limits, defaults: Defaults) -> Ask:
    """A request to /v1/chat/completions. Raises ApiError."""
    fields = _Fields(body)
    messages = fields.items("messages", limits.messages, _message)
    top = fields.integer("top_logprobs", 0, 0, limits.top_logprobs)
    wanted = fields.flag("logprobs")
    if top and not wanted:
        raise ApiError(400, "top_logprobs: expected logprobs to be true with it", param="top_logprobs")
    limit = fields.integer("max_tokens", defaults.max_tokens, 1, limits.context)
    limit = fields.integer("max_completion_tokens", limit, 1, limits.context)
    return _ask(fields, limits, defaults, limit, top if wanted else None, messages=messages)


def parse_completion(body: dict[str, Any], limits: Limits, defaults: Defaults) -> Ask:
    """A request to /v1/completions. Raises ApiError."""
    fields = _Fields(body)
    prompts = _prompts(fields.get("prompt"))
    if not prompts or len(prompts) * fields.integer("n", 1, 1, limits.n) > limits.choices:
        raise ApiError(400, f"prompt: expected 1 to {limits.choices} completions in all", param="prompt")
    top = fields.integer("logprobs", -1, 0, limits.top_logprobs)
    limit = fields.integer("max_tokens", defaults.max_tokens, 1, limits.context)
    return _ask(fields, limits, defaults, limit, None if top < 0 else top, prompts=prompts)


def _ask(
    fields: _Fields,
    limits: Limits,
    defaults: Defaults,
    max_tokens: int,
    top_logprobs: int | None,
    messages: list[Message] | None = None,
    prompts: list[str | list[int]] | None = None,
) -> Ask:
    """What both kinds of request share."""
    for name, neutral in NEUTRAL.items():
        if (value := fields.get(name)) is not None and value not in neutral:
            raise ApiError(400, f"{name} is not supported here", param=name, code="unsupported_parameter")
    own = defaults.sampling
    stop = fields.get("stop")
    options = fields.get("stream_options") or {}
    return Ask(
        model=fields.text("model"),
        messages=messages or [],
        prompts=prompts or [],
        sampling=Sampling(
            temperature=fields.number("temperature", own.temperature, 0, 2),
            top_k=fields.integer("top_k", own.top_k, 1, 1 << 31),
            top_p=fields.number("top_p", own.top_p, 1e-6, 1),
            min_p=fields.number("min_p", own.min_p, 0, 1),
        ),
        seed=fields.integer("seed", secrets.randbelow(1 << 31), 0, (1 << 63) - 1),
        max_tokens=max_tokens,
        n=fields.integer("n", 1, 1, limits.n),
        stop=tuple(_stops([stop] if isinstance(stop, str) else stop, limits)),
        top_logprobs=top_logprobs,
        stream=fields.flag("stream"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


class _Fields:
    """A body's fields by name, each of the kind and range that is asked for; null is as good as absent."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        return self._body.get(name)

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise ApiError(400, f"{name}: expected a string, found {_kind(value)}", param=name)
        return value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise ApiError(400, f"{name}: expected true or false, found {_kind(value)}", param=name)
        return bool(value)

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ApiError(400, f"{name}: expected a number, found {_kind(value)}", param=name)
        if not low <= value <= high:
            raise ApiError(400, f"{name}: expected {low} to {high}, found {value}", param=name)
        return value

    def integer(self, name: str, default: Any, low: int, high: int) -> Any:
        value = self.number(name, default, low, high)
        if isinstance(value, float):
            raise ApiError(400, f"{name}: expected an integer, found {value}", param=name)
        return value

    def items(self, name: str, limit: int, parse: Callable[[int, Any], Message]) -> list[Message]:
        value = self.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= limit:
            found = f"{len(value)}" if isinstance(value, list) else _kind(value)
            raise ApiError(400, f"{name}: expected a list of 1 to {limit}, found {found}", param=name)
        return [parse(i, item) for i, item in enumerate(value)]


def _message(i: int, message: Any) -> Message:
    """A message, its content as one text; which roles may follow each other is the chat template's matter."""
    where = f"messages[{i}]"
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str):
        raise ApiError(400, f"{where}: expected an object with role and content", param=where)
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content: expected text, found {_kind(content)}", param=where)
    return {"role": ROLES.get(role, role), "content": content}


def _prompts(prompt: Any) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    if isinstance(prompt, str) or _is_tokens(prompt):
        return [prompt]
    if isinstance(prompt, list) and all(isinstance(item, str) or _is_tokens(item) for item in prompt):
        return prompt
    raise ApiError(400, f"prompt: expected text, token ids or a list of them, found {_kind(prompt)}", param="prompt")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _stops(stops: Any, limits: Limits) -> list[str]:
    stops = stops or []
    if (
        not isinstance(stops, list)
        or len(stops) > limits.stop_strings
        or not all(isinstance(stop, str) and 0 < len(stop) <= limits.stop_length for stop in stops)
    ):
        raise ApiError(
            400,
            f"stop: expected up to {limits.stop_strings} texts of 1 to {limits.stop_length} characters",
            param="stop",
        )
    return stops


def _kind(value: Any) -> str:
    """A JSON value in words, without its contents."""
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


@dataclass
class Reply:
    """Writes one request's answer in the API's words. chat: which of the two endpoints it is for."""

    chat: bool
    model: str
    tokenizer: Tokenizer
    choices: int
    prompt_tokens: int
    with_logprobs: bool
    completion_tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._texts = [""] * self.choices
        self._tokens: list[list[tuple[int, Token]]] = [[] for _ in range(self.choices)]  # (offset in text, token)
        self._reasons: list[str | None] = [None] * self.choices

    def openings(self) -> list[dict[str, Any]]:
        """The chunks that a streamed chat begins with."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk({"delta": delta}, i, []) for i in range(self.choices)] if self.chat else []

    def add(self, choice: int, token: Token) -> dict[str, Any] | None:
        """Take in a token. Returns its chunk; None where it has nothing to show yet."""
        self.completion_tokens += 1
        text = token.text
        if self.chat and not self._texts[choice]:
            text = text.lstrip()  # some tokenizers begin an answer with a space
        told = [(len(self._texts[choice]), token)] if self._shown(token) else []
        self._texts[choice] += text
        self._tokens[choice] += told
        if token.finish_reason:
            self._reasons[choice] = "stop" if token.finish_reason == "stop" else "length"
        if not (text or told or token.finish_reason):
            return None
        content = ({"delta": {"content": text} if text or told else {}}) if self.chat else {"text": text}
        return self._chunk(content, choice, told)

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that was asked to tell its usage."""
        return self._frame(chunk=True) | {"choices": [], "usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """All of it at once."""
        choices = []
        for i, text in enumerate(self._texts):
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            )
            choices.append(self._choice(content, i, self._tokens[i]))
        return self._frame(chunk=False) | {"choices": choices, "usage": self._usage()}

    def _frame(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, content: dict[str, Any], choice: int, tokens: list[tuple[int, Token]]) -> dict[str, Any]:
        return self._frame(chunk=True) | {"choices": [self._choice(content, choice, tokens)]}

    def _choice(self, content: dict[str, Any], i: int, tokens: list[tuple[int, Token]]) -> dict[str, Any]:
        logprobs = (self._chat_logprobs if self.chat else self._text_logprobs)(tokens) if self.with_logprobs else None
        return {"index": i, **content, "logprobs": logprobs, "finish_reason": self._reasons[i]}

    def _usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    def _shown(self, token: Token) -> bool:
        """Whether a token's probability is told: that of an end token is no part of the text."""
        return self.with_logprobs and token.token not in self.tokenizer.stop_ids

    def _chat_logprobs(self, tokens: list[tuple[int, Token]]) -> dict[str, Any]:
        content = [
            self._entry(token.token, token.logprob)
            | {"top_logprobs": [self._entry(i, logprob) for i, logprob in token.alternatives]}
            for _, token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self.tokenizer.decode_bytes([token])
        return {"token": self.tokenizer.piece(token), "logprob": logprob, "bytes": list(data)}

    def _text_logprobs(self, tokens: list[tuple[int, Token]]) -> dict[str, Any]:
        piece = self.tokenizer.piece
        return {
            "tokens": [piece(token.token) for _, token in tokens],
            "token_logprobs": [token.logprob for _, token in tokens],
            "top_logprobs": [self._by_piece(token.alternatives) for _, token in tokens],
            "text_offset": [offset for offset, _ in tokens],
        }

    def _by_piece(self, alternatives: tuple[tuple[int, float], ...]) -> dict[str, float]:
        """Alternatives by their text; of several that look the same (halves of characters), the likeliest."""
        found: dict[str, float] = {}
        for token, logprob in alternatives:
            found.setdefault(self.tokenizer.piece(token), logprob)
        return found
