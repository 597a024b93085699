"""Chat templates: a dialogue in, tokens and a loss mask out. Every later stage and `minillama chat` use this.

What a user writes stays text: it can hold the name of a control token, but never the token, and so cannot open a turn
of its own. `Llama2Template` refuses Meta's tags outright, as Meta's reference code does. `JinjaTemplate` renders the
template that a model ships with, and keeps the names of control tokens in messages apart from those that the template
writes, by a seam: a Unicode noncharacter put inside each name before rendering and taken out before encoding.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer.atomic import write_bytes
from minillama.tokenizer.base import TURN_NAMES, Span, Tokenizer
from minillama.tokenizer.byte_pair import parse_json

Message = Mapping[str, str]  # {"role": …, "content": …}
ROLES = ("system", "user", "assistant")
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")  # Llama 2's

# Unicode noncharacters: no text has them, so they can mark places in one.
_SEAM, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_SEAM}{_OPEN}{_CLOSE}]")


@dataclass(frozen=True)
class Dialogue:
    """A dialogue as a model sees it.

    tokens: the ids. loss_mask: True at what the assistant said, its end token included: what training learns.
    """

    tokens: list[int]
    loss_mask: list[bool]


class ChatTemplate(ABC):
    """How a model was taught to see a dialogue.

    source: the template in Jinja2, as Hugging Face folders and GGUF files carry it.
    """

    source: str

    @abstractmethod
    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = True) -> Dialogue:
        """Tokens and loss mask of a dialogue.

        messages: {"role": "system" | "user" | "assistant", "content": text} in order.
        add_generation_prompt: whether an answer is asked for; False for a finished dialogue, as in training.

        Raises UsageError for a dialogue that the template cannot hold, or text that could forge a turn.
        """

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """The tokens of `encode`, for an answer to be asked for, without the work that the loss mask takes."""
        return self.encode(messages, tokenizer).tokens

    @abstractmethod
    def __str__(self) -> str:
        """What to call the template in a report."""

    def save(self, folder: str | Path) -> None:
        """Writes chat_template.jinja into a checkpoint folder. Raises MinillamaError."""
        write_bytes(Path(folder) / "chat_template.jinja", self.source.encode())

    @staticmethod
    def from_source(source: str, where: str = "chat template") -> ChatTemplate:
        """The template that a model carries as Jinja2 source. Raises MinillamaError where it is not valid."""
        return LLAMA2 if source == LLAMA2.source else JinjaTemplate(source, where)

    @staticmethod
    def from_folder(folder: str | Path) -> ChatTemplate | None:
        """The template in a Hugging Face folder (a file of its own, or a setting); None where there is none."""
        return _from_folder(Path(folder))


class Llama2Template(ChatTemplate):
    """Llama 2-Chat's template, token for token as Meta's reference code (`chat_completion`) builds it.

    Each pair of a user's and an assistant's message is encoded apart, between bos and eos; the system message becomes
    the head of the first user message. The last user message has no answer yet and no eos.
    """

    source = (
        "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + "
        "'\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}"
        "{% endif %}{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate: user, assistant, user, …') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
        "((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    )

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = True) -> Dialogue:
        """As `ChatTemplate.encode`. Messages that hold one of Meta's tags are refused."""
        turns = self._turns(_checked(messages))
        if add_generation_prompt and len(turns) % 2 == 0:
            raise UsageError("the last message is the assistant's: expected the user's, for an answer to be asked for")
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise UsageError("Llama 2's chat template needs a tokenizer with begin and end tokens")
        tokens: list[int] = []
        mask: list[bool] = []
        for i in range(0, len(turns), 2):
            prompt = f"[INST] {turns[i].strip()} [/INST]"
            answered = i + 1 < len(turns)
            spans = tokenizer.encode_spans(f"{prompt} {turns[i + 1].strip()} " if answered else prompt)
            tokens += [tokenizer.bos_id, *(span.id for span in spans)]
            mask += [False, *(span.start >= len(prompt) for span in spans)]
            if answered:
                tokens.append(tokenizer.eos_id)
                mask.append(True)
        return Dialogue(tokens, mask)

    def __str__(self) -> str:
        return "Llama 2"

    def _turns(self, messages: list[dict[str, str]]) -> list[str]:
        """What user and assistant said, by turns, the system message folded into the first."""
        for i, message in enumerate(messages):
            for tag in TAGS:
                if tag in message["content"]:
                    raise UsageError(
                        f"message {i}: {tag} is a tag of Llama 2's chat template, not allowed in a message"
                    )
        system = None
        if messages[0]["role"] == "system":
            system, messages = messages[0]["content"], messages[1:]
        if not messages or any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(messages)):
            raise UsageError("roles: expected system (optional), then user and assistant in turns, user first")
        turns = [message["content"] for message in messages]
        if system is not None:
            turns[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{turns[0]}"
        return turns


class JinjaTemplate(ChatTemplate):
    """The Jinja2 template that a model ships with, rendered in a sandbox with what transformers offers a template.

    where: what to call the template in error messages. Raises MinillamaError for source that is not valid.
    """

    def __init__(self, source: str, where: str = "chat template"):
        from jinja2 import TemplateError

        self.source = source
        self.where = where
        if _MARKS.search(source):
            raise MinillamaError(f"{where}: holds a Unicode noncharacter, U+FDD0 to U+FDD2")
        try:
            self._template = _environment().from_string(_MARKING.get(source, source))
        except (TemplateError, RecursionError, ValueError) as error:
            raise MinillamaError(f"{where}: not a valid Jinja2 template: {_line(error)}") from None

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = True) -> Dialogue:
        """As `ChatTemplate.encode`; the tokens are those of the rendered text, encoded whole."""
        rendering = _Rendering(self, _checked(messages), tokenizer, datetime.now())
        text = rendering.guarded(add_generation_prompt)
        spans = tokenizer.encode_spans(_without_marks(text), allow_special=True, seam=_SEAM)
        mask = [False] * len(spans)
        for start, end in rendering.answers(text.replace(_SEAM, ""), spans, add_generation_prompt):
            for i, span in enumerate(spans):
                mask[i] |= start <= span.start < end
        return Dialogue([span.id for span in spans], mask)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """As `ChatTemplate.prompt`: the dialogue is rendered once, and not once for the place of each answer."""
        text = _Rendering(self, _checked(messages), tokenizer, datetime.now()).guarded(add_generation_prompt=True)
        text = _without_marks(text)
        if _SEAM in text:
            return [span.id for span in tokenizer.encode_spans(text, allow_special=True, seam=_SEAM)]
        return tokenizer.encode(text, bos=False, eos=False, allow_special=True)

    def __str__(self) -> str:
        known = {TAGS_SOURCE: "Llama 2, its tags as tokens"}
        return known.get(self.source, "the model's own" + (" (ChatML)" if "<|im_start|>" in self.source else ""))

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """The template's text, with marks around what its {% generation %} blocks wrote. Raises UsageError."""
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=list(messages), tools=None, documents=None, **variables)
        except TemplateError as error:
            raise UsageError(f"{self.where}: refuses the dialogue: {_line(error)}") from None
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UsageError(f"{self.where}: fails on the dialogue: {_line(error)}") from None


class _Rendering:
    """One dialogue under one template: its text, made safe, and where in it the answers are."""

    def __init__(self, template: JinjaTemplate, messages: list[dict[str, str]], tokenizer: Tokenizer, now: datetime):
        self.template = template
        self.messages = messages
        self.tokenizer = tokenizer
        self.now = now  # one moment for all renderings, so that they differ in nothing else

    def text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        names = {"bos_token": self.tokenizer.bos_id, "eos_token": self.tokenizer.eos_id}
        variables: dict[str, Any] = {k: self.tokenizer.piece(i) for k, i in names.items() if i is not None}
        variables["add_generation_prompt"] = add_generation_prompt
        variables["strftime_now"] = lambda layout: self.now.strftime(layout)
        return self.template.render(messages, variables)

    def guarded(self, add_generation_prompt: bool) -> str:
        """The rendered text, with a seam in every name of a control token that comes from a message.

        The template may trim, cut or compare what it is given. So two things are checked: without its seams the text
        is what the plain messages give, and its control tokens are those that harmless messages would give.
        """
        plain = self.text(self.messages, add_generation_prompt)
        contents = [message["content"] for message in self.messages]
        names = self.tokenizer.specials
        edges = _edges(names)
        said = "".join(contents)
        turns = set() if _TURN_EDGES.isdisjoint(said) else TURN_NAMES - names.keys()
        typed = [tag for tag in turns if any(tag in content for content in contents)]
        if not typed and edges.isdisjoint(said):
            return plain
        edges |= _edges(typed)
        harmless = self.text(self._with(lambda content: _without(content, edges)), add_generation_prompt)
        for tag in typed:  # turns of this template are plain text: nothing but refusal keeps them apart
            if tag in self.template.source or tag in harmless:
                raise UsageError(f"{tag} is a tag of the chat template, not allowed in a message")
        text = self.text(self._with(self._seamed), add_generation_prompt)
        if text.replace(_SEAM, "") != plain or self._specials_in(text) != self._specials_in(harmless):
            raise UsageError("a message holds the name of a control token in a way that could forge a turn")
        return text

    def answers(self, text: str, spans: list[Span], add_generation_prompt: bool) -> list[tuple[int, int]]:
        """Where in `text` the assistant's words and end tokens are, counted without marks."""
        if _OPEN in text:
            return _marked(text)
        found = []
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                answer = self._by_prefix(i, text) or self._by_content(i, text, spans, add_generation_prompt)
                if answer:
                    found.append(self._to_end_token(answer, spans))
                elif not add_generation_prompt:
                    raise MinillamaError(
                        f"{self.template.where}: cannot tell where message {i} is in the rendered text; "
                        "expected {% generation %} tags around the assistant's words"
                    )
        return found

    def _by_prefix(self, i: int, text: str) -> tuple[int, int] | None:
        """An answer is what message i adds to the prompt that asks for it."""
        try:
            before = self.text(self.messages[:i], True)
            after = self.text(self.messages[: i + 1], False)
        except UsageError:  # some templates render no dialogue that ends here
            return None
        return (len(before), len(after)) if text.startswith(after) and after.startswith(before) else None

    def _by_content(self, i: int, text: str, spans: list[Span], add_generation_prompt: bool) -> tuple[int, int] | None:
        """For templates that render a turn differently once others follow: where message i's own words come out."""
        content = self.messages[i]["content"]
        core = content.strip()
        start = content.find(core)
        marked = f"{content[:start]}{_OPEN}{core}{_CLOSE}{content[start + len(core) :]}"
        messages = [{**m, "content": marked} if j == i else m for j, m in enumerate(self.messages)]
        rendered = self.text(messages, add_generation_prompt)
        if _MARKS.sub("", rendered) != text or rendered.count(_OPEN) != 1 or rendered.count(_CLOSE) != 1:
            return None
        ((start, end),) = _marked(rendered)
        # A space before the words can belong to their first token, and one after them precede the end token.
        start = min((span.start for span in spans if span.start <= start < span.end), default=start)
        after = (span for span in spans if span.id in self._special_ids and span.start >= end)
        return start, next((span.end for span in after if not text[end : span.start].strip()), end)

    def _to_end_token(self, answer: tuple[int, int], spans: list[Span]) -> tuple[int, int]:
        """An answer ends with its end token; what the template writes after that, the model need not learn."""
        start, end = answer
        for ends in (self.tokenizer.stop_ids, self._special_ids):
            for span in spans:
                if start <= span.start < end and span.id in ends:
                    return start, span.end
        return answer

    @cached_property
    def _special_ids(self) -> set[int]:
        return {special.id for special in self.tokenizer.specials.values()}

    def _with(self, change: Any) -> list[dict[str, str]]:
        return [{**message, "content": change(message["content"])} for message in self.messages]

    def _seamed(self, content: str) -> str:
        """`content` with a seam after the first character of every name of a control token, overlapping ones too."""
        return self._name_ahead.sub(lambda match: match[0] + _SEAM, content)

    @cached_property
    def _name_ahead(self) -> re.Pattern[str]:
        names = "|".join(map(re.escape, self.tokenizer.specials))
        return re.compile(f"(?={names}).", re.DOTALL) if names else re.compile(r"(?!)")

    def _specials_in(self, text: str) -> list[int]:
        spans = self.tokenizer.encode_spans(text, allow_special=True, seam=_SEAM)
        return [span.id for span in spans if span.id in self._special_ids]


def _edges(names: Iterable[str]) -> set[str]:
    """The first and the last character of each name: without one of them there is no such name in a text."""
    return {character for name in names for character in (name[0], name[-1])}


_TURN_EDGES = _edges(TURN_NAMES)
LLAMA2 = Llama2Template()
CHATML_SOURCE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Llama 2's turns in a vocabulary that has its tags: each is one token, and nothing has to be refused in a message.
TAGS_SOURCE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, …') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST]' + (system if loop.first else '') + "
    "message['content'] + '[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# The same with marks around answers, so that one rendering tells where all of them are. A model carries the one
# without: not every engine knows the tag.
_ANSWERED = "{{ message['content'] + eos_token }}"
_MARKING = {TAGS_SOURCE: TAGS_SOURCE.replace(_ANSWERED, f"{{% generation %}}{_ANSWERED}{{% endgeneration %}}")}
BUILTIN = {"llama2": LLAMA2.source, "llama2-tags": TAGS_SOURCE, "chatml": CHATML_SOURCE}


def builtin(name: str) -> ChatTemplate:
    """A template by name, for a model that carries none: 'llama2', 'llama2-tags' or 'chatml'. Raises UsageError."""
    if name not in BUILTIN:
        raise UsageError(f"unknown chat template {name!r}: expected one of {', '.join(BUILTIN)}")
    return ChatTemplate.from_source(BUILTIN[name], name)


def suited(tokenizer: Tokenizer) -> ChatTemplate:
    """The template to teach a base model: the one whose tags are tokens of its vocabulary, else Llama 2's."""
    if all(tag in tokenizer.specials for tag in TAGS):
        return builtin("llama2-tags")
    return builtin("chatml" if {"<|im_start|>", "<|im_end|>"} <= tokenizer.specials.keys() else "llama2")


def require(template: ChatTemplate | None, model: str) -> ChatTemplate:
    """`template`, which must be there for a chat. Raises UsageError: a base model only completes text."""
    if template is None:
        raise UsageError(f"{model} has no chat template: a base model completes text, use `minillama generate`")
    return template


def _checked(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages with role and content only, both of a kind that a template can hold."""
    if not messages:
        raise UsageError("no messages: expected at least one")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UsageError(f"message {i}: expected 'role' and 'content', found {_summary(message)}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UsageError(f"message {i}: unknown role {role!r}: expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UsageError(f"message {i}: expected text as content, found {type(content).__name__}")
        if _MARKS.search(content):
            raise UsageError(f"message {i}: holds a Unicode noncharacter, U+FDD0 to U+FDD2")
        checked.append({"role": role, "content": content})
    return checked


def _summary(message: object) -> str:
    return f"keys {', '.join(map(repr, message))}" if isinstance(message, Mapping) else type(message).__name__


def _without(content: str, characters: set[str]) -> str:
    """`content` with another character of the same kind in place of each of `characters`."""
    stand_in = next(c for c in "_.-x" if c not in characters)
    return "".join(stand_in if c in characters and not c.isspace() else c for c in content)


def _without_marks(text: str) -> str:
    """`text` without what marks the answers in it; seams stay."""
    return re.sub(f"[{_OPEN}{_CLOSE}]", "", text)


def _marked(text: str) -> list[tuple[int, int]]:
    """The stretches between marks, counted without them."""
    found, at, start = [], 0, 0
    for part in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if part == _OPEN:
            start = at
        elif part == _CLOSE:
            found.append((start, at))
        else:
            at += len(part)
    return found


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _environment() -> Any:
    """Jinja2 as transformers sets it up for chat templates; a template cannot reach anything outside itself."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} … {% endgeneration %}: what the assistant says, marked for the loss mask."""

        tags = {"generation"}  # noqa: RUF012  # the name and kind that Jinja2 asks for

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return _OPEN + caller() + _CLOSE

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **layout)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def _from_folder(folder: Path) -> ChatTemplate | None:
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if own.is_file():
            return ChatTemplate.from_source(own.read_text("utf-8"), str(own))
        template = parse_json(settings.read_bytes(), str(settings)).get("chat_template") if settings.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise MinillamaError(f"{folder}: chat template cannot be read: {_line(error)}") from None
    if isinstance(template, list):  # several, each with a name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise MinillamaError(f"{settings}: expected chat_template to be text, found {type(template).__name__}")
    return ChatTemplate.from_source(template, str(settings)) if template else None
