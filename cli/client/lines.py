"""Where the shell's lines come from: a person at a terminal (history, completion, several lines of code), or a pipe."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

from bento_tor.cli import ui
from bento_tor.client.keyring import keyring_path
from bento_tor.errors import ConfigError

# A ticket, or a token by itself: neither is ever written to the history.
_SECRET = re.compile(r"bento1:|[A-Za-z0-9_-]{43}")
Words = Callable[[list[str]], Iterable[str]]


class Lines(Protocol):
    """What the shell needs of its user."""

    interactive: bool

    def showing(self) -> AbstractContextManager[None]:
        """Within it, what is printed does not tear the line that is being typed."""

    def maybe_command(self) -> str | None:
        """The next line; None: there are no more."""

    def ask(self, what: str) -> str:
        """One line in answer to a question; empty where there are no more."""

    def code(self) -> str:
        """Any number of lines, up to an empty one."""


class Piped:
    """Lines of standard input. No prompt is shown."""

    interactive = False

    def showing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def maybe_command(self) -> str | None:
        line = sys.stdin.buffer.readline()
        try:
            return line.decode().rstrip("\r\n") if line else None
        except UnicodeDecodeError as why:
            raise ConfigError("this line is no UTF-8 text") from why

    def ask(self, what: str) -> str:
        del what
        return self.maybe_command() or ""

    def code(self) -> str:
        lines = []
        while line := self.ask("code"):
            lines.append(line + "\n")
        return "".join(lines)


class Typed:
    """A person's lines, by prompt_toolkit. `words` gives the words that may come behind those typed so far."""

    interactive = True

    def __init__(self, words: Words) -> None:
        self._commands: PromptSession[str] = PromptSession(
            history=_history(), completer=_Completer(words), complete_while_typing=False, enable_history_search=True
        )
        # Code is the user's own business: of it there is no history on disk.
        self._code: PromptSession[str] = PromptSession(history=InMemoryHistory(), key_bindings=_empty_line_ends())
        self._answers: PromptSession[str] = PromptSession(history=InMemoryHistory())

    def showing(self) -> AbstractContextManager[None]:
        return patch_stdout()

    def maybe_command(self) -> str | None:
        try:
            return self._commands.prompt("bento> ")
        except EOFError:
            return None

    def ask(self, what: str) -> str:
        try:
            return self._answers.prompt(f"{what}: ")
        except EOFError:
            return ""

    def code(self) -> str:
        ui.say("code, ended by an empty line:")
        try:
            text = self._code.prompt("  ", multiline=True, prompt_continuation="  ")
        except EOFError:
            return ""
        return text.rstrip() + "\n" if text.strip() else ""


class _Completer(Completer):
    """The last word of the line, from what may stand there."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        del complete_event
        *before, last = re.split(r"\s+", document.text_before_cursor.lstrip())
        for word in sorted(set(self._words(before))):
            if word.startswith(last):
                yield Completion(word, start_position=-len(last))


class _WithoutSecrets(FileHistory):
    def store_string(self, string: str) -> None:
        if not _SECRET.search(string):
            super().store_string(string)


def _history() -> History:
    """In the user's data folder, for her only. Where it cannot be written there is none."""
    path = keyring_path().with_name("shell_history")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        Path(path).chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _WithoutSecrets(str(path))


def _empty_line_ends() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def enter(event: KeyPressEvent) -> None:
        # What is pasted may have empty lines in it: it comes as a whole, not by this key.
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and not buffer.document.current_line.strip():
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return bindings
