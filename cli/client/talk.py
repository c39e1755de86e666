"""Carrying a session on standard input and output: what `run` and `open` have in common."""

from __future__ import annotations

import codecs
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from bento_tor.cli import ui
from bento_tor.client.session import Piece
from bento_tor.errors import BentoError, ConfigError, FunctionFailed
from bento_tor.policy.outcome import Kind, Outcome

# A message up to this size that is text is a line; anything else is bytes, and not touched.
_LINE_BYTES = 64 * 1024

Undisturbed = Callable[[], AbstractContextManager[None]]


class Carried(Protocol):
    """A session, or one under cover."""

    @property
    def offset(self) -> int: ...

    @property
    def log(self) -> bytes: ...

    def wait_attached(self) -> None: ...

    def send(self, data: bytes | str) -> bool: ...

    def finish(self) -> None: ...

    def maybe_piece(self) -> Piece | None: ...

    def wait(self) -> Outcome: ...


class Talk:
    """Writes a session's output where the user wants it.

    Text messages become lines, so that `echo` behaves in a pipe; bytes that are no text, or more than 64 KiB, pass
    as they are. With `raw` or a file everything passes as it is. On a terminal control characters become visible."""

    def __init__(self, *, raw: bool, file: str | None, as_json: bool, prefix: str = "", going_on: bool = False) -> None:
        """`prefix` stands before each line on a terminal: several sessions may share it. `going_on`: what `file` holds
        came before, and stays."""
        self.messages: list[bytes] = []
        self.place = 0  # units of output that have been dealt with
        self.shown = 0  # whole messages of these
        self.prefix = prefix
        # A character of several bytes may come in two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._as_json = as_json
        self._held = bytearray()
        self._passing = False
        self._stopped = False
        self._terminal = file is None and not as_json and sys.stdout.isatty()
        self._raw = raw or file is not None
        self._out = _open(file, going_on=going_on) if file is not None else None

    def carry(self, session: Carried, undisturbed: Undisturbed = nullcontext) -> Outcome:
        """Feed standard input to the session, write what comes, until it ends.

        Reading on and writing what came are told apart by `undisturbed`: it goes round the second."""
        session.wait_attached()
        # Where the output goes to a terminal, it shows by itself how far it has come.
        with ui.meters(show=not self._terminal) as meter:
            received, maybe_size = meter("received", None), _maybe_stdin_size()
            sent = meter("sent", maybe_size) if maybe_size is not None else None
            threading.Thread(target=self._feed, args=(session, sent), name="stdin", daemon=True).start()
            return self.carry_rest(session, undisturbed, received)

    def carry_rest(
        self, session: Carried, undisturbed: Undisturbed = nullcontext, received: ui.Meter | None = None
    ) -> Outcome:
        """Write what comes, until the session ends."""
        self.place = session.offset
        while (piece := session.maybe_piece()) is not None:
            with undisturbed():
                self._take(piece.data, end=piece.end)
                self.place = session.offset
                self.shown += piece.end
            if received is not None:
                received.add(len(piece.data))
        self.flush()
        return session.wait()

    def write(self, message: bytes) -> None:
        """One whole message."""
        self._take(message, end=True)
        self.flush()

    def messages_as_json(self) -> list[str | dict[str, str]]:
        """With `as_json`: what has come so far."""
        return [_as_text(message) for message in self.messages]

    def flush(self) -> None:
        """Write what is held back of a message that has not ended."""
        if self._held and self._as_json:
            self.messages.append(bytes(self._held))
        elif self._held:
            self._write_line(end=False)
        self._held.clear()

    def stop(self) -> None:
        """The session is being left: what is typed from here on, and its end, are not for it. What came is written."""
        self._stopped = True
        self.flush()

    def _feed(self, session: Carried, maybe_sent: ui.Meter | None) -> None:
        """Each line of standard input is a message. Read raw: a thread that waits in a buffer blocks the program's
        end."""
        with suppress(BentoError):
            rest = bytearray()  # grows in place: a line may be 100 MB long
            while (data := _read_stdin()) and not self._stopped:
                *lines, last = data.split(b"\n")
                for line in lines:
                    session.send(bytes(rest + line))
                    rest.clear()
                if maybe_sent is not None:
                    maybe_sent.add(len(data))
                rest += last
            if self._stopped:
                return
            if rest:
                session.send(bytes(rest))
            session.finish()

    def close(self) -> None:
        """The file, if there is one."""
        if self._out is not None:
            # What a full disk did not take was told by `_write`; closing tries it once more.
            with suppress(OSError):
                self._out.close()

    def _take(self, data: bytes, *, end: bool) -> None:
        if self._as_json:
            if self._out is not None:
                self._write(data)
            self._held += data
            if end:
                self.messages.append(bytes(self._held))
                self._held.clear()
        elif self._raw and not self._terminal:
            self._write(data)
        else:
            self._held += data
            if end or self._passing or len(self._held) > _LINE_BYTES:
                self._write_line(end=end)

    def _write_line(self, *, end: bool) -> None:
        data = bytes(self._held)
        self._held.clear()
        whole = end and not self._passing
        self._passing = not end
        if whole and not data.endswith(b"\n") and (self._terminal or _is_text(data)) and not self._raw:
            data += b"\n"
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._out is None and self._terminal:
            ui.write_text(self._decoder.decode(data), prefix=self.prefix)
            return
        if self._out is None:
            ui.write_bytes(data)
            return
        try:
            self._out.write(data)
            self._out.flush()
        except OSError as why:
            raise ConfigError(f"cannot write the output: {why.strerror}") from why


def finish(outcome: Outcome, session: Carried, talk: Talk, *, as_json: bool, **more: Any) -> None:
    """Say how it ended. Raises FunctionFailed unless it succeeded."""
    printed = session.log.decode("utf-8", "replace")
    if as_json:
        ui.result_json(
            {
                "outcome": outcome.word,
                "detail": outcome.detail,
                "messages": talk.messages_as_json(),
                "printed": printed,
                **more,
            }
        )
    else:
        say_printed(session)
    if maybe_failure := failure_of(outcome):
        if outcome.kind is Kind.RAISED and not as_json:
            ui.detail("its traceback:\n" + ui.escape(outcome.detail.rstrip()))
        raise maybe_failure


def say_printed(session: Carried) -> None:
    """What the function printed, as the box told it at the end."""
    if session.log:
        lines = ui.escape(session.log.decode("utf-8", "replace")).splitlines()
        ui.say("the function printed:\n" + "\n".join(f"  {line}" for line in lines))


def failure_of(outcome: Outcome) -> FunctionFailed | None:
    """How it failed, in words; None where it succeeded."""
    if outcome.succeeded:
        return None
    if outcome.kind is Kind.RAISED:
        words = f"the function raised {_last_words(outcome.detail)}"
        return FunctionFailed(words, hint="" if ui.is_verbose() else "'bento-tor -v ...' shows its traceback")
    return FunctionFailed(f"the function did not return ({outcome.word}): {outcome.detail.strip()}")


def _last_words(traceback: str) -> str:
    """`ValueError: no (line 3, in f)`: the exception, and the last place in the function's own text."""
    lines = traceback.strip().splitlines()
    places = re.findall(r'^  File "function\.py", (line \d+)(, in \S+)?', traceback, re.MULTILINE)
    where = f" ({''.join(places[-1])})" if places else ""
    return (lines[-1] if lines else "an exception") + where


def write_message(message: bytes, talk: Talk, *, as_json: bool) -> None:
    """One message, in the same manner."""
    if as_json:
        ui.result_json({"message": _as_text(message)})
    else:
        talk.write(message)


def _maybe_stdin_size() -> int | None:
    """Its bytes, where it is a file."""
    try:
        facts = os.fstat(0)
    except OSError:
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def _read_stdin() -> bytes:
    try:
        return os.read(0, 64 * 1024)
    except OSError:
        return b""


def _open(file: str, *, going_on: bool) -> BinaryIO:
    try:
        return Path(file).open("ab" if going_on else "wb")
    except OSError as why:
        raise ConfigError(f"cannot write {file}: {why.strerror}") from why


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_text(message: bytes) -> str | dict[str, str]:
    """A message in JSON: a string, or {"base64": ...} where it is no text."""
    return message.decode() if _is_text(message) else {"base64": msgspec.to_builtins(message)}
