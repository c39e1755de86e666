"""What tor tells unasked, as frozen values. Pure: text in, values out.

stem's event classes are not used: they judge addresses and ports, and one that they dislike is lost in
silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# KEYWORD=value or KEYWORD="quoted value" (control-spec, 4.1).
_WORD = re.compile(r'([A-Za-z][A-Za-z0-9_-]*)=("(?:[^"\\]|\\.)*"|\S*)|("(?:[^"\\]|\\.)*"|\S+)')


@dataclass(frozen=True)
class Event:
    """Any event: its type, its words, its keywords, and the text as tor wrote it."""

    type: str
    words: tuple[str, ...]
    keywords: tuple[tuple[str, str], ...] = field(repr=False)
    text: str = field(repr=False)

    def keyword(self, name: str) -> str:
        """The value of that keyword; empty where tor gave none."""
        return dict(self.keywords).get(name, "")

    def word(self, index: int) -> str:
        """The word at that place after the type; empty where there is none."""
        return self.words[index] if index < len(self.words) else ""


@dataclass(frozen=True)
class HsDescEvent(Event):
    """The descriptor of an onion service moved. `action`: CREATED, UPLOAD, UPLOADED, REQUESTED, RECEIVED,
    FAILED."""

    action: str
    address: str
    directory: str
    reason: str


@dataclass(frozen=True)
class CircuitEvent(Event):
    """A circuit changed. `path` holds fingerprints, first hop first."""

    circuit_id: str
    status: str
    path: tuple[str, ...]
    purpose: str
    reason: str


@dataclass(frozen=True)
class StreamEvent(Event):
    """A stream changed. `circuit_id` is empty where it is attached to none."""

    stream_id: str
    status: str
    circuit_id: str
    target_host: str
    target_port: int
    source: str
    reason: str


@dataclass(frozen=True)
class StatusEvent(Event):
    """STATUS_CLIENT, STATUS_SERVER, STATUS_GENERAL. `action` is BOOTSTRAP, CIRCUIT_ESTABLISHED ..."""

    severity: str
    action: str


def parse_event(text: str) -> Event:
    """The event that `text` (without its 650) tells."""
    first = text.split("\n", 1)[0]
    kind, _, rest = first.partition(" ")
    words, keywords = split_words(rest)
    base = Event(kind, words, keywords, text)
    if kind == "HS_DESC":
        address = base.word(1).removesuffix(".onion")
        return HsDescEvent(*_fields(base), base.word(0), address, base.word(3), base.keyword("REASON"))
    if kind == "CIRC":
        path = _path(base.word(2))
        purpose, reason = base.keyword("PURPOSE"), base.keyword("REASON")
        return CircuitEvent(*_fields(base), base.word(0), base.word(1), path, purpose, reason)
    if kind == "STREAM":
        return _stream(base)
    if kind.startswith("STATUS_"):
        return StatusEvent(*_fields(base), base.word(0), base.word(1))
    return base


def split_words(text: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The plain words and the KEY=value pairs of a line of tor's; quotes are taken off."""
    words: list[str] = []
    keywords: list[tuple[str, str]] = []
    for match in _WORD.finditer(text):
        key, value, word = match.groups()
        if key is not None:
            keywords.append((key, _unquote(value)))
        else:
            words.append(_unquote(word))
    return tuple(words), tuple(keywords)


def _fields(base: Event) -> tuple[str, tuple[str, ...], tuple[tuple[str, str], ...], str]:
    return base.type, base.words, base.keywords, base.text


def _stream(base: Event) -> StreamEvent:
    host, _, port = base.word(3).rpartition(":")
    circuit = "" if base.word(2) == "0" else base.word(2)
    number = int(port) if port.isdigit() else 0
    source, reason = base.keyword("SOURCE_ADDR"), base.keyword("REASON")
    return StreamEvent(*_fields(base), base.word(0), base.word(1), circuit, host, number, source, reason)


def _path(text: str) -> tuple[str, ...]:
    """`$FP~nick,$FP~nick` as bare fingerprints; a circuit without hops has no such word."""
    if not text.startswith("$"):
        return ()
    return tuple(re.split("[~=]", hop, maxsplit=1)[0].removeprefix("$") for hop in text.split(","))


def _unquote(text: str) -> str:
    if len(text) < 2 or not text.startswith('"'):
        return text
    return re.sub(r"\\(.)", r"\1", text[1:-1])
