"""What functions may say to the courier, as bytes; everything else is refused before a byte of its body is read."""

from __future__ import annotations

import pytest

from bento_tor.courier import words
from bento_tor.courier.words import Attach, Input, Run, Shutdown, Stop
from bento_tor.errors import RemoteProtocolError
from bento_tor.resources import read_text

TOKEN = b"t" * 32
ONION = b"a" * 56 + b".onion"


@pytest.mark.parametrize(
    ("kind", "body", "order"),
    [
        (words.RUN, TOKEN + b"\0\1f([], {})", Run(TOKEN, "f", "([], {})")),
        (words.ATTACH, TOKEN + (7).to_bytes(8, "big"), Attach(TOKEN, 7)),
        (words.SHUTDOWN, TOKEN, Shutdown(TOKEN)),
        (words.INPUT, b"\1data", Input(b"data", True, False)),
        (words.INPUT, b"\2", Input(b"", False, True)),
        (words.STOP, b"", Stop()),
    ],
)
def test_an_order(kind: int, body: bytes, order: words.Order) -> None:
    assert words.body_bytes(kind, len(body)) == len(body)
    assert words.decode(kind, body) == order


@pytest.mark.parametrize(
    ("kind", "length"),
    [(0, 0), (6, 32), (255, 1), (words.RUN, 33), (words.RUN, 1 << 20), (words.INPUT, 0), (words.INPUT, 65538),
     (words.SHUTDOWN, 31), (words.SHUTDOWN, 33), (words.ATTACH, 32), (words.STOP, 1), (words.STARTED, 32)],
)  # fmt: skip
def test_no_such_order(kind: int, length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        words.body_bytes(kind, length)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (words.RUN, TOKEN + b"\0\0([], {})"), (words.RUN, TOKEN + b"\xff\xfff"), (words.RUN, TOKEN + b"\0\1\xff()"),
        (words.RUN, TOKEN + b"\0\1f\xff"), (words.RUN, TOKEN + b"\0\1f" + b"a" * 33_000),
        (words.ATTACH, TOKEN + b"\xff" * 8), (words.INPUT, b"\4"),
    ],
)  # fmt: skip
def test_an_order_that_is_none(kind: int, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        words.decode(kind, body)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (ONION + b":80", (ONION.decode(), 80)), (ONION + b":65535", (ONION.decode(), 65535)),
        (ONION, None), (ONION + b":0", None), (ONION + b":65536", None), (ONION + b":080", None), (b"", None),
        (ONION.upper() + b":80", None), (b"x" + ONION + b":80", None), (ONION + b":80\n", None),
        (b"127.0.0.1:80", None), (ONION[:-1] + b"\xff:80", None), (b"a." + ONION + b":80", None),
    ],
)  # fmt: skip
def test_a_place(text: bytes, place: tuple[str, int] | None) -> None:
    assert words.maybe_place(text) == place


def test_the_functions_side_has_the_same_numbers() -> None:
    module: dict[str, int] = {"__name__": "__box__"}
    exec(compile(read_text("sandbox", "farbox.py"), "farbox.py", "exec"), module)
    names = (
        "RUN",
        "ATTACH",
        "SHUTDOWN",
        "INPUT",
        "STOP",
        "STARTED",
        "MESSAGE",
        "ENDED",
        "DONE",
        "REFUSED",
        "END",
        "EOF",
    )
    assert all(module[name] == getattr(words, name) for name in (*names, "MAX_PART_BYTES"))
