"""The loop of `minillama chat`: a line in, an answer out as it is written, until Ctrl-D."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from minillama.chat import ChatTemplate, Message
from minillama.errors import MinillamaError, UsageError
from minillama.generate import Sampling, stream
from minillama.model import KVCache, Llama
from minillama.prefix import common
from minillama.tokenizer import Tokenizer
from minillama.tokenizer.atomic import write_bytes

HELP = """\
/reset         forget the conversation
/system TEXT   tell the model who it is from now on; /system alone shows it, /system - takes it away
/save FILE     write the conversation as a line of JSON, as fine-tuning reads it
/help          this list
/quit          leave (so does Ctrl-D)
Ctrl-C stops an answer; what was said so far stays in the conversation."""


class ContextFull(UsageError):
    """The conversation leaves too little room in the model's context for an answer."""


class Answerer:
    """Writes answers to conversations. The KV cache stays, so that only what is new of a conversation is read.

    seed: the same conversations in the same order get the same answers. stats: what the last answer took, in words.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        sampling: Sampling,
        seed: int,
        max_new_tokens: int | None = None,
    ) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._sampling, self._seed, self._max_new_tokens = sampling, seed, max_new_tokens
        self._cache = KVCache(model.config, 1, model.config.max_seq_len, like=model.params["norm.weight"])
        self._cached: list[int] = []  # the tokens that the cache holds
        self.stats = ""

    def __call__(self, messages: list[Message]) -> Iterator[str]:
        """The answer, piece by piece. Raises ContextFull, and UsageError for a message that could forge a turn."""
        tokens = self._template.encode(messages, self._tokenizer).tokens
        context = self._model.config.max_seq_len
        room = min(self._max_new_tokens or context, context // 4)  # what an answer must have
        if len(tokens) + room > context:
            raise ContextFull(f"the conversation has {len(tokens)} tokens, too many for a context of {context}")
        # The last token is always read again: its logits are wanted.
        self._cache.used = min(common(self._cached, tokens), len(tokens) - 1)
        said = list(tokens)
        self._seed += 1
        self.stats = ""
        started = first = time.perf_counter()
        try:
            for step in stream(
                self._model,
                [tokens],
                max_new_tokens=self._max_new_tokens,
                sampling=self._sampling,
                seed=self._seed,
                stop_ids=self._tokenizer.stop_ids,
                tokenizer=self._tokenizer,
                cache=self._cache,
            ):
                said.append(step.token)
                if len(said) == len(tokens) + 1:
                    first = time.perf_counter()
                yield step.text
            if step.finish_reason == "context":
                notice(f"(cut: the context of {context} tokens is full)")
        finally:
            self._cached = said[: self._cache.used]
            new, seconds = len(said) - len(tokens), time.perf_counter() - first
            cut = ", cut there (--max-new-tokens)" if new == self._max_new_tokens else ""
            rate = f" · {(new - 1) / seconds:.0f} tokens/s" if new > 1 else ""
            wait = f" · the first after {first - started:.1f} s"
            self.stats = f"({len(said):,} of {context:,} tokens · answer {new}{cut}{rate}{wait})"


class ChatLoop:
    """A conversation at a terminal, or of the lines of a file.

    When the context is full the oldest exchange is forgotten, with a notice, until the rest fits; the system prompt
    stays. A single message that does not fit is refused and the conversation goes on without it.
    """

    def __init__(self, answer: Answerer, system: str | None = None) -> None:
        self._answer = answer
        self._start: list[Message] = _system(system)
        self.messages = list(self._start)
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Read and answer until the input ends or the user leaves."""
        if self._interactive:
            self._line_editing()
            notice("Ask anything. /help lists the commands, Ctrl-D leaves.")
        while (line := self._read()) is not None:
            line = line.strip()
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._exchange(line)

    def _read(self) -> str | None:
        """The next line; None at the end. Ctrl-C clears the line that is being written."""
        while True:
            try:
                return input("> " if self._interactive else "")
            except EOFError:
                if self._interactive:
                    print()
                return None
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                notice("\n(Ctrl-D leaves)")

    def _command(self, line: str) -> bool:
        """Obey a line that starts with a slash. False to leave."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if line in ("/quit", "/exit"):
            return False
        if line == "/reset":
            self.messages = list(self._start)
            notice("The conversation starts anew.")
        elif command == "/system":
            self._change_system(rest)
        elif command == "/save":
            self._save(rest)
        elif line == "/help":
            notice(HELP)
        else:
            notice(f"unknown command {command}: expected /reset, /system, /save, /help or /quit")
        return True

    def _change_system(self, text: str) -> None:
        """Another system prompt for the conversation as it stands; none for '-'."""
        if text:
            turns = self.messages[len(self._start) :]
            self._start = _system(None if text == "-" else text)
            self.messages = self._start + turns
        notice(f"System prompt: {self._start[0]['content'] if self._start else 'none of yours'}")

    def _save(self, name: str) -> None:
        """Write the conversation to a file that is not there yet."""
        path = Path(name).expanduser()
        if not name or not self.messages:
            notice("expected /save FILE" if self.messages else "there is no conversation to save")
        elif path.exists():
            notice(f"{path}: is there already, the conversation was not saved")
        else:
            try:
                write_bytes(path, (json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n").encode())
                notice(f"{path}: {len(self.messages)} messages")
            except MinillamaError as error:
                notice(str(error))

    def _exchange(self, line: str) -> None:
        """One message of the user and its answer."""
        self.messages.append({"role": "user", "content": line})
        while True:
            try:
                text = self._stream(self._answer(self.messages))
                break
            except ContextFull as full:
                if not self._forget_oldest():
                    self.messages.pop()
                    notice(f"{full}: the message was not sent")
                    return
            except UsageError as refused:
                self.messages.pop()
                notice(f"{refused}: the message was not sent")
                return
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()  # stopped before the first word: as if it had not been asked

    def _stream(self, pieces: Iterator[str]) -> str:
        """Print an answer as it comes. Returns it, or the part of it that was there at Ctrl-C."""
        text = ""
        try:
            for piece in pieces:
                piece = piece if text else piece.lstrip()  # some tokenizers begin an answer with a space
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            notice(" (stopped)")
        print(flush=True)
        if self._interactive and self._answer.stats:
            notice(self._answer.stats)
        return text

    def _forget_oldest(self) -> bool:
        """Drop the oldest question and answer. False when there is only the new message left."""
        first = len(self._start)
        if len(self.messages) - first < 3:
            return False
        del self.messages[first : first + 2]
        notice("(the context is full: the oldest exchange was forgotten)")
        return True

    @staticmethod
    def _line_editing() -> None:
        """Arrow keys and history where the platform's Python has readline (Windows consoles have their own)."""
        try:
            import readline  # noqa: F401  # input() uses it once it is imported
        except ImportError:
            return


def _system(text: str | None) -> list[Message]:
    """What a conversation begins with."""
    return [] if text is None else [{"role": "system", "content": text}]


def notice(text: str) -> None:
    """Something that is not part of the conversation: on stderr."""
    print(text, file=sys.stderr, flush=True)
