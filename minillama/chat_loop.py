"""The loop of `minillama chat`: a line in, an answer out as it is written, until Ctrl-D."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Protocol

from minillama.errors import MinillamaError

Message = dict[str, str]  # role, content

HELP = """\
/reset   forget the conversation
/help    this list
/quit    leave (so does Ctrl-D)
Ctrl-C stops an answer; what was said so far stays in the conversation."""


class Answer(Protocol):
    """Writes the answer to a conversation, piece by piece. Raises ContextFull where there is no room for one."""

    def __call__(self, messages: list[Message]) -> Iterator[str]: ...


class ContextFull(MinillamaError):
    """The conversation leaves no room in the model's context for an answer."""


class ChatLoop:
    """A conversation at a terminal, or of the lines of a file.

    When the context is full the oldest exchange is forgotten, with a notice, until the rest fits; the system prompt
    stays. A single message that does not fit is refused and the conversation goes on without it.
    """

    def __init__(self, answer: Answer, system: str | None = None) -> None:
        self._answer = answer
        self._start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._start)
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Read and answer until the input ends or the user leaves."""
        if self._interactive:
            self._line_editing()
            _notice("Ask anything. /help lists the commands, Ctrl-D leaves.")
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
                _notice("\n(Ctrl-D leaves)")

    def _command(self, line: str) -> bool:
        """Obey a line that starts with a slash. False to leave."""
        if line in ("/quit", "/exit"):
            return False
        if line == "/reset":
            self.messages = list(self._start)
            _notice("The conversation starts anew.")
        elif line == "/help":
            _notice(HELP)
        else:
            _notice(f"unknown command {line.split()[0]}: expected /reset, /help or /quit")
        return True

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
                    _notice(f"{full}; the message was not sent")
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
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            _notice(" (stopped)")
        print(flush=True)
        return text

    def _forget_oldest(self) -> bool:
        """Drop the oldest question and answer. False when there is only the new message left."""
        first = len(self._start)
        if len(self.messages) - first < 3:
            return False
        del self.messages[first : first + 2]
        _notice("(the context is full: the oldest exchange was forgotten)")
        return True

    @staticmethod
    def _line_editing() -> None:
        """Arrow keys and history where the platform's Python has readline (Windows consoles have their own)."""
        try:
            import readline  # noqa: F401  # input() uses it once it is imported
        except ImportError:
            return


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
