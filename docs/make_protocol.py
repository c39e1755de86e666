"""Writes docs/protocol.md from the code, so that the page cannot say anything else: `python docs/make_protocol.py`.

tests/test_docs.py fails where the committed page differs from `render()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

import msgspec

from bento_tor.protocol import frames, states
from bento_tor.protocol import messages as m
from bento_tor.protocol.states import CHANNEL, CONNECTION, FRAME_CAPS, IGNORED, Case, Ignored, Role

PAGE = Path(__file__).with_name("protocol.md")

# How bounds that have a name in the code are told.
_NAMES = {
    m.MAX_DATA_BYTES: "64 KiB",
    m.MAX_CODE_BYTES: "1 MiB",
    m.MAX_MANIFEST_BYTES: "16 KiB",
    m.MAX_ARGUMENTS_BYTES: "32 KiB",
    m.MAX_LOG_BYTES: "4 KiB",
    m.MAX_CHANNEL: "2^32 - 1",
    2**62: "2^62",
}

_INTRODUCTION = f"""\
# The protocol, version {m.VERSION}

Made from the code by `docs/make_protocol.py`; for people who write another implementation.

A connection is one byte stream between a client and a box, normally a Tor stream. It carries frames: a length of
{frames.HEADER_BYTES} bytes, big-endian, then so many bytes of [msgpack](https://msgpack.org). A body is an array: the
message's name, then its fields in the order below. Fields may neither be missing nor added. A length of 0, or above the
cap of the state, is illegal; it is judged before the body has arrived.

Write each message, or each flight of messages, in one piece: header and body in two writes cost a delayed
acknowledgement.
"""

_FLIGHT = """\
## A run, in one flight

The client makes the tokens itself: 32 random bytes each, fresh for every box. It says everything at once.

    client                                       box
    Hello(1, digest of the policy)
    Store(1, invocation, shutdown, ...)
    Chunk(1, 0, code)
    Execute(2, invocation, session, "main", "([], {})")
    Open(2, session, 0)
                                                 Welcome(1, digest of the policy)
                                                 Stored(1)
                                                 Started(2, false)
                                                 Ack(2, 0, 262144)
                                                 Output(2, 0, "hello world", end)
                                                 Ended(2, "returned", "", "")
    Ack(2, 13, 262157)

Said twice, it is done once: an Execute with a session token that the box knows starts nothing (Started says `known`),
and a Store with known tokens and the same digest is Stored. So a client whose connection broke before the answers came
says the same flight again on a new one, or opens the session where it stopped. Of a Store of more than MAX_DATA_BYTES
the box keeps for a while what came of it, for the same tokens, manifest and digest: a client that comes back says
Store, waits for the Ack, and goes on there.
"""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, _rules(), _FLIGHT, _messages(), _codes(), _caps(), _connection(), _channels()]
    return "\n".join(part.strip() + "\n" for part in parts)


def _rules() -> str:
    rules = inspect.getdoc(states) or ""
    constants = [
        ("MAX_CHANNELS", states.MAX_CHANNELS, "live channels of a connection"),
        ("MAX_UNANSWERED", states.MAX_UNANSWERED, "Pings, and GetPolicies, that may wait for their answers"),
        ("INITIAL_WINDOW", m.INITIAL_WINDOW, "units that may be sent before the first Ack"),
        ("MAX_DATA_BYTES", m.MAX_DATA_BYTES, "in one Chunk, Input, Output or Padding"),
    ]
    table = _table(("name", "value", "means"), [(f"`{n}`", str(v), what) for n, v, what in constants])
    return f"## Rules\n\n{rules[rules.index('1. ') :]}\n\n{table}"


def _messages() -> str:
    parts = ["## Messages"]
    for role, union in ((Role.CLIENT, m.FromClient), (Role.BOX, m.FromBox)):
        parts.append(f"### From the {role.value}")
        parts += [_message(kind) for kind in union.__args__]
    return "\n\n".join(parts)


def _message(kind: type[m.Message]) -> str:
    info = msgspec.inspect.type_info(kind)
    if not isinstance(info, msgspec.inspect.StructType):
        raise TypeError(f"{kind.__name__} is no message")
    words = inspect.getdoc(kind) or ""
    rows = [(f"`{field.name}`", _type(field.type)) for field in info.fields]
    table = "\n\n" + _table(("field", "type"), rows) if rows else ""
    return f"**{kind.__name__}**. {words}{table}"


def _type(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.UnionType():
            return " or ".join(_type(one) for one in kind.types)
        case msgspec.inspect.IntType():
            return "integer" + _bounds(kind.ge, kind.le, "")
        case msgspec.inspect.BytesType():
            return "bytes" + _bounds(kind.min_length, kind.max_length, "")
        case msgspec.inspect.StrType():
            return "text" + _bounds(kind.min_length, kind.max_length, " characters")
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.NoneType():
            return "nil"
        case msgspec.inspect.EnumType():
            return "text, a code of the table below"
        case _:
            raise TypeError(f"no words for {kind}")


def _bounds(low: int | None, high: int | None, unit: str) -> str:
    if low is None and high is None:
        return ""
    if low == high:
        return f", {low}{unit}"
    upper = str(high) if unit or high is None else _NAMES.get(high, str(high))
    return f", {low} to {upper}{unit}" if low is not None else f", at most {upper}{unit}"


def _codes() -> str:
    why = _comments(m.Code)
    return "## Refusal codes\n\n" + _table(("code", "why"), [(f"`{code.value}`", why[code.name]) for code in m.Code])


def _comments(kind: type[Enum]) -> dict[str, str]:
    """The comment behind each member, where the code says what it means."""
    members = (line.strip().partition(" = ") for line in inspect.getsource(kind).splitlines())
    return {name: rest.split("  # ")[1] for name, equals, rest in members if equals and name.isupper()}


def _caps() -> str:
    rows = [
        (state.name, *(str(FRAME_CAPS[role].get(state, "nothing is read")) for role in Role))
        for state in states.ConnectionState
        if any(state in caps for caps in FRAME_CAPS.values())
    ]
    heads = ("state of the reader", "from a client", "from a box")
    return "## The longest frames\n\nBytes, without the length itself.\n\n" + _table(heads, rows)


def _connection() -> str:
    meanings = _table(("state", "means"), _comments(states.ConnectionState).items())
    tables = [_transitions(role, CONNECTION[role]) for role in Role]
    return "\n\n".join(
        ["## The connection", meanings, "What may be said in each state, and the state after it:", *tables]
    )


def _channels() -> str:
    meanings = _table(("state", "means"), _comments(states.ChannelState).items())
    tables = [_transitions(role, CHANNEL[role]) for role in Role]
    return "\n\n".join(["## Channels", meanings, *tables])


def _transitions(role: Role, table: states.ConnectionTable | states.ChannelTable) -> str:
    rows = []
    for state, row in table.items():
        nexts: dict[str, list[str]] = {}
        for key, after in row.items():
            said = key.value if isinstance(key, Case) else key.__name__
            nexts.setdefault(IGNORED.value if isinstance(after, Ignored) else after.name, []).append(said)
        rows += [(state.name, ", ".join(said), after) for after, said in nexts.items()] or [(state.name, "nothing", "")]
    return f"### Said by the {role.value}\n\n" + _table(("state", "says", "then"), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
