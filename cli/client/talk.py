"""Carrying a session on standard input and output: what `run` and `open` have in common."""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bento_tor.cli import ui
from bento_tor.client.session import Session
from bento_tor.errors import BentoError, ConfigError, FunctionFailed
from bento_tor.policy.outcome import Kind, Outcome

# A message up to this size that is text is a line; anything else is bytes, and not touched.
_LINE_BYTES = 64 * 1024


class Talk:
    """Writes a session's output where the user wants it.

    Text messages become lines, so that `echo` behaves in a pipe; bytes that are no text, or more than 64 KiB, pass
    as they are. With `raw` or a file everything passes as it is. On a terminal control characters become visible."""

    def __init__(self, *, raw: bool, file: str | None, as_json: bool) -> None:
        self.messages: list[bytes] = []
        self._as_json = as_json
        self._held = bytearray()
        self._passing = False
        self._terminal = file is None and not as_json and sys.stdout.isatty()
        self._raw = raw or file is not None
        self._out = _open(file) if file is not None else None

    def carry(self, session: Session) -> Outcome:
        """Feed standard input to the session, write what comes, until it ends."""
        session.wait_attached()
        threading.Thread(target=_feed, args=(session,), name="stdin", daemon=True).start()
        while (piece := session.maybe_piece()) is not None:
            self._take(piece.data, end=piece.end)
        self._flush()
        return session.wait()

    def write(self, message: bytes) -> None:
        """One whole message."""
        self._take(message, end=True)
        self._flush()

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

    def _flush(self) -> None:
        if self._held:
            self._write(bytes(self._held))
        self._held.clear()

    def _write(self, data: bytes) -> None:
        if self._out is None:
            ui.write_output(data, terminal=self._terminal)
            return
        try:
            self._out.write(data)
            self._out.flush()
        except OSError as why:
            raise ConfigError(f"cannot write the output: {why.strerror}") from why


def finish(outcome: Outcome, session: Session, talk: Talk, *, as_json: bool, **more: Any) -> None:
    """Say how it ended. Raises FunctionFailed unless it succeeded."""
    printed = session.log.decode("utf-8", "replace")
    if as_json:
        ui.result_json(
            {
                "outcome": outcome.word,
                "detail": outcome.detail,
                "messages": [_as_text(message) for message in talk.messages],
                "printed": printed,
                **more,
            }
        )
    elif printed:
        ui.say("the function printed:\n" + "\n".join(f"  {line}" for line in ui.escape(printed).splitlines()))
    if outcome.succeeded:
        return
    if outcome.kind is Kind.RAISED:
        if not as_json:
            ui.detail("its traceback:\n" + ui.escape(outcome.detail))
        raise FunctionFailed(f"the function raised {_last_words(outcome.detail)}", hint="'bento-tor -v' shows where")
    raise FunctionFailed(f"the function did not return ({outcome.word}): {outcome.detail.strip()}")


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


def _feed(session: Session) -> None:
    """Each line of standard input is a message. Read raw: a thread that waits in a buffer blocks the program's end."""
    with suppress(BentoError):
        rest = bytearray()  # grows in place: a line may be 100 MB long
        while data := _read_stdin():
            *lines, last = data.split(b"\n")
            for line in lines:
                session.send(bytes(rest + line))
                rest.clear()
            rest += last
        if rest:
            session.send(bytes(rest))
        session.finish()


def _read_stdin() -> bytes:
    try:
        return os.read(0, 64 * 1024)
    except OSError:
        return b""


def _open(file: str) -> BinaryIO:
    try:
        return Path(file).open("wb")
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
