"""The voice of the command line: results on standard output, everything else on standard error.

Say what is being done, then the result; no capital at the start, no full stop at the end. Text that came from a box
or a function is escaped before it meets a terminal, so that it cannot drive it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from bento_tor.errors import BentoError

# rich takes as long to load as all the rest: only where something moves on a terminal.
if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.status import Status

# Less than that is gone at once.
_BAR_BYTES = 128 * 1024

_quiet = False
_verbose = False


def configure(*, quiet: bool, verbose: bool) -> None:
    """Set the volume, once, at the start."""
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("stem").setLevel(logging.CRITICAL)


def prepare_streams() -> None:
    """Make descriptors 0, 1 and 2 safe to use, whatever the caller left of them.

    A closed one is filled with /dev/null: otherwise the next file or socket gets its number, and is read or written
    as if it were the user's."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Arguments and file names may hold bytes that are no text; printing them must not fail.
        sys.stdout.reconfigure(errors="backslashreplace")


def end_streams() -> None:
    """Nothing that cannot be written any more may be tried again by the interpreter's end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_verbose() -> bool:
    """Whether -v was given."""
    return _verbose


def is_interactive() -> bool:
    """Whether a person types, and sees what comes."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def result(text: str = "") -> None:
    """What the user asked for."""
    with _writing():
        print(text, flush=True)


def result_json(value: Any) -> None:
    """The same, for programs: one object."""
    with _writing():
        print(json.dumps(value, ensure_ascii=sys.stdout.isatty()), flush=True)


def say(text: str) -> None:
    """What is being done."""
    if not _quiet:
        _tell(text)


def detail(text: str) -> None:
    """More than most want to know: with -v only."""
    if _verbose:
        _tell(text)


def warn(text: str) -> None:
    """What the user should know; said even when quiet."""
    _tell(f"warning: {text}")


def show_error(message: str, *, hint: str, exit_code: int, as_json: bool) -> None:
    """One clear sentence, and what to do next."""
    if as_json:
        error = {"message": message, "hint": hint, "exit_code": exit_code}
        with suppress(OSError):
            print(json.dumps({"error": error}, ensure_ascii=sys.stdout.isatty()), flush=True)
    _tell(f"error: {message}")
    if hint:
        _tell(f"hint: {hint}")


class Progress:
    """A line that changes while something is under way; nothing where standard error is no terminal or -q is given."""

    def __init__(self, status: Status | None) -> None:
        self._status = status

    def update(self, text: str) -> None:
        """Replace the line."""
        if self._status is not None:
            self._status.update(escape(text).replace("[", r"\["))


@contextmanager
def progress(text: str) -> Iterator[Progress]:
    """Show `text` with a spinner while the block runs; without a terminal say it once."""
    if _quiet:
        yield Progress(None)
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(escape(text).replace("[", r"\[")) as status:
            yield Progress(status)
    else:
        say(text)
        yield Progress(None)


class Meter:
    """Counts bytes of something that is under way; see `meters`."""

    def __init__(self, maybe_bar: Bar | None, text: str, total_bytes: int | None) -> None:
        self._maybe_bar = maybe_bar
        self._task = maybe_bar.add_task(escape(text), total=total_bytes) if maybe_bar is not None else None
        self._total_bytes = total_bytes
        self._bytes = 0

    def add(self, count: int) -> None:
        """So many bytes more."""
        if self._maybe_bar is not None and self._task is not None:
            # Frames are counted too, and what is sent again: no bar ends beyond its end.
            self._bytes = min(self._bytes + count, self._total_bytes or 2**62)
            self._maybe_bar.update(self._task, completed=self._bytes)


@contextmanager
def meters(*, show: bool) -> Iterator[Callable[[str, int | None], Meter]]:
    """While the block runs, each call of what it gives (a word, the bytes in all if they are known) begins a line with
    a count and a rate, and a bar and the time left where they can be known. Nothing is shown where standard error is no
    terminal, or -q is given."""
    if _quiet or not show or not sys.stderr.isatty():
        yield lambda text, total_bytes: Meter(None, text, total_bytes)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Bar(TextColumn("{task.description}"), *columns, console=Console(stderr=True), transient=True) as bar:
        yield partial(Meter, bar)


@contextmanager
def bar(text: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """While the block runs, a bar with the time left; what it gives is told of each piece. Little, or what nobody sees
    at a terminal, has a line only, as `progress` shows it."""
    if _quiet or total_bytes < _BAR_BYTES or not sys.stderr.isatty():
        with progress(text):
            yield lambda count: None
        return
    with meters(show=True) as meter:
        yield meter(text, total_bytes).add


def escape(text: str) -> str:
    """Foreign text, made safe for a terminal: control characters (also C1 and bidirectional ones) become visible."""
    return "".join(c if c in "\n\t" or _is_plain(c) else _visible(c) for c in text)


def write_bytes(data: bytes) -> None:
    """Bytes of a function to standard output, as they are."""
    with _writing():
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def write_text(text: str, *, prefix: str = "") -> None:
    """Text of a function to a terminal: escaped, and `prefix` before each line, so that none can pass for ours."""
    shown = escape(text)
    if prefix and shown:
        body = shown.removesuffix("\n")
        shown = prefix + body.replace("\n", "\n" + prefix) + shown[len(body) :]
    with _writing():
        sys.stdout.write(shown)
        sys.stdout.flush()


class ReaderGone(Exception):
    """Whoever read standard output (head, less) has gone. Not an OSError: click would turn that into exit code 1."""


@contextmanager
def _writing() -> Iterator[None]:
    """A full disk under standard output is an error in words, a reader that has gone is none."""
    try:
        yield
    except BrokenPipeError as why:
        raise ReaderGone from why
    except OSError as why:
        raise BentoError(f"cannot write the output: {why.strerror}") from why


def _tell(text: str) -> None:
    """To standard error. What cannot be written there is lost: no reason to stop the work."""
    with suppress(OSError):
        print(escape(text), file=sys.stderr, flush=True)


def _is_plain(char: str) -> bool:
    return char.isprintable() and char not in _BIDI


def _visible(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# They reorder what the reader sees (CVE-2021-42574).
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
