"""The voice of the command line: results on standard output, everything else on standard error.

Say what is being done, then the result; no capital at the start, no full stop at the end. Text that came from a box
or a function is escaped before it meets a terminal, so that it cannot drive it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.status import Status

_quiet = False
_verbose = False


def configure(*, quiet: bool, verbose: bool) -> None:
    """Set the volume, once, at the start."""
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("stem").setLevel(logging.CRITICAL)


def result(text: str = "") -> None:
    """What the user asked for."""
    print(text, flush=True)


def result_json(value: Any) -> None:
    """The same, for programs: one object."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """What is being done."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """More than most want to know: with -v only."""
    if _verbose:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """What the user should know; said even when quiet."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def show_error(message: str, *, hint: str, exit_code: int, as_json: bool) -> None:
    """One clear sentence, and what to do next."""
    if as_json:
        print(json.dumps({"error": {"message": message, "hint": hint, "exit_code": exit_code}}, ensure_ascii=False))
    print(f"error: {escape(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {escape(hint)}", file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """A line that changes while something is under way; nothing where standard error is no terminal or -q is given."""

    def __init__(self, status: Status | None) -> None:
        self._status = status

    def update(self, text: str) -> None:
        """Replace the line."""
        if self._status is not None:
            self._status.update(text.replace("[", r"\["))


@contextmanager
def progress(text: str) -> Iterator[Progress]:
    """Show `text` with a spinner while the block runs; without a terminal say it once."""
    if _quiet:
        yield Progress(None)
    elif sys.stderr.isatty():
        with Console(stderr=True).status(text.replace("[", r"\[")) as status:
            yield Progress(status)
    else:
        say(text)
        yield Progress(None)


def escape(text: str) -> str:
    """Foreign text, made safe for a terminal: control characters (also C1 and bidirectional ones) become visible."""
    return "".join(c if c in "\n\t" or _is_plain(c) else _visible(c) for c in text)


def write_output(data: bytes, *, terminal: bool) -> None:
    """Bytes of a function to standard output: as they are into a pipe, escaped onto a terminal."""
    if terminal:
        sys.stdout.write(escape(data.decode("utf-8", "replace")))
    else:
        sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _is_plain(char: str) -> bool:
    return char.isprintable() and char not in _BIDI


def _visible(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# They reorder what the reader sees (CVE-2021-42574).
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
