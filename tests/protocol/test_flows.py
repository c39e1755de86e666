"""Every legal conversation, heard alike however its bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.errors import LocalProtocolError
from bento_tor.protocol import ChannelState, ConnectionState, units
from bento_tor.protocol import messages as m

from .pair import BYTES, DIGEST, OTHER, POLICY, WHOLE, Cuts, Pair

TOKEN, SESSION, STOP = b"i" * 32, b"s" * 32, b"x" * 32
WINDOW = m.INITIAL_WINDOW
CODE = b"def main(): pass\n"
HALF = b"x" * m.MAX_DATA_BYTES
BIG = m.MAX_DATA_BYTES + 1

HELLO = m.Hello(m.VERSION, DIGEST)
WELCOME = m.Welcome(m.VERSION, DIGEST)
POLICY_FIRST = m.Refused(0, m.Code.POLICY, "read the policy first")


def store(channel: int, size: int = len(CODE)) -> m.Store:
    return m.Store(channel, TOKEN, STOP, b"", size, DIGEST)


def chunk(channel: int, data: bytes = CODE, offset: int = 0) -> m.Chunk:
    return m.Chunk(channel, offset, data)


def execute(channel: int) -> m.Execute:
    return m.Execute(channel, TOKEN, SESSION, "main", "[]")


def open_(channel: int, offset: int = 0) -> m.Open:
    return m.Open(channel, SESSION, offset)


def text(channel: int, offset: int, data: bytes, *, end: bool = True, eof: bool = False) -> m.Input:
    return m.Input(channel, offset, data, end, eof)


def ended(channel: int) -> m.Ended:
    return m.Ended(channel, "returned", "", b"")


def refused(channel: int, code: m.Code = m.Code.FULL) -> m.Refused:
    return m.Refused(channel, code, "no")


# Who says what, turn by turn.
Flow = list[tuple[str, list[m.Message]]]

START: Flow = [("client", [HELLO]), ("box", [])]
FLIGHT: list[m.Message] = [HELLO, store(1), chunk(1), execute(2), open_(2), text(2, 0, b"hi", eof=True)]
ATTACHED: Flow = [*START, ("client", [open_(1, 7)]), ("box", [m.Ack(1, 40, 40 + WINDOW)])]
FULL_OUTPUT: list[m.Message] = [m.Output(1, i * 2**16, b"x" * 2**16, False) for i in range(WINDOW // 2**16)]

# The other side hears exactly what was said; a box has answered each Hello before it speaks.
FLOWS: dict[str, Flow] = {
    "a whole run in one flight": [
        ("client", FLIGHT),
        (
            "box",
            [m.Stored(1), m.Started(2, False), m.Ack(2, 3, WINDOW), m.Output(2, 0, b"hello", True), ended(2)],
        ),
        ("client", [m.Ack(2, 7, 7 + WINDOW)]),
    ],
    "an upload in pieces": [
        *START,
        ("client", [store(1, 6), chunk(1, b"abc"), chunk(1, b"de", 3)]),
        ("client", [chunk(1, b"f", 5)]),
        ("box", [m.Stored(1)]),
    ],
    "a big upload in one flight": [
        *START,
        ("client", [store(1, BIG), chunk(1, HALF), chunk(1, b"x", len(HALF))]),
        ("box", [m.Ack(1, 0, BIG), m.Stored(1)]),
    ],
    "a big upload that goes on where it stopped": [
        *START,
        ("client", [store(1, BIG)]),
        ("box", [m.Ack(1, len(HALF), BIG)]),
        ("client", [chunk(1, b"x", len(HALF))]),
        ("box", [m.Stored(1)]),
    ],
    "a big upload from its beginning, and on from where the box is": [
        *START,
        ("client", [store(1, BIG), chunk(1, b"xx")]),
        ("box", [m.Ack(1, 7, BIG)]),
        ("client", [chunk(1, HALF[7:], 7), chunk(1, b"x", len(HALF))]),
        ("box", [m.Stored(1)]),
    ],
    "an empty upload": [*START, ("client", [store(1, 0)]), ("box", [m.Stored(1)])],
    "an upload that is known already": [*START, ("client", [store(1)]), ("box", [m.Stored(1)])],
    "a manifest is refused": [*START, ("client", [store(1)]), ("box", [refused(1, m.Code.MANIFEST)])],
    "a call, opened later": [
        *START,
        ("client", [execute(1)]),
        ("box", [m.Started(1, False)]),
        ("client", [open_(1), text(1, 0, b"a")]),
        ("box", [m.Ack(1, 2, WINDOW + 2), m.Output(1, 0, b"", True), m.Padding(1, 1, b"000"), ended(1)]),
        ("client", [m.Ack(1, 5, 5 + WINDOW)]),
    ],
    "a call that nobody opens": [
        *START,
        ("client", [execute(1)]),
        ("box", [m.Started(1, False)]),
        ("client", [m.Close(1)]),
        ("box", [m.Gone(1)]),
    ],
    "attached where it stopped": [
        *ATTACHED,
        ("client", [text(1, 40, b"more"), m.Padding(1, 45, b"00")]),
        ("box", [m.Output(1, 7, b"rest", True), m.Ack(1, 47, 47 + WINDOW), ended(1)]),
        ("client", [m.Ack(1, 12, 12 + WINDOW), m.Ack(1, 13, 13 + WINDOW)]),
    ],
    "a call that was known goes on where it stopped": [
        *START,
        ("client", [execute(1), open_(1, 9), text(1, 0, b"abc", end=False)]),
        ("box", [m.Started(1, True), m.Ack(1, 10, WINDOW + 10), m.Ack(1, 10, WINDOW + 11)]),
        ("box", [m.Output(1, 9, b"x", True)]),
        ("client", [text(1, 10, b"d")]),
        ("box", [m.Ack(1, 12, WINDOW + 12)]),
    ],
    "a known call whose input is not all there": [
        *START,
        ("client", [execute(1), open_(1), text(1, 0, b"abc", end=False)]),
        ("box", [m.Started(1, True), m.Ack(1, 1, WINDOW + 1)]),
        ("client", [text(1, 3, b"d")]),
    ],
    "windows are filled, and opened": [
        *ATTACHED,
        ("client", [text(1, 40 + i * 2**16, b"x" * 2**16, end=False) for i in range(4)]),
        ("box", [m.Ack(1, 40 + WINDOW, 40 + 2 * WINDOW)]),
        ("client", [text(1, 40 + WINDOW, b"y")]),
    ],
    "Ended needs no window": [
        *START,
        ("client", [open_(1)]),
        ("box", [m.Ack(1, 0, 0), *FULL_OUTPUT, ended(1)]),
        ("client", [m.Ack(1, WINDOW, WINDOW), m.Ack(1, WINDOW + 1, WINDOW + 1)]),
    ],
    "it ended long ago": [
        *START,
        ("client", [open_(1, 5)]),
        ("box", [ended(1)]),
        ("client", [m.Ack(1, 6, 6 + WINDOW)]),
    ],
    "end a session": [*ATTACHED, ("client", [m.End(1)]), ("box", [m.Output(1, 7, b"bye", False), ended(1)])],
    "detach": [*ATTACHED, ("client", [m.Close(1)]), ("box", [m.Gone(1)])],
    "detach after the end": [*ATTACHED, ("box", [ended(1)]), ("client", [m.Close(1)]), ("box", [m.Gone(1)])],
    "displaced": [*ATTACHED, ("box", [refused(1, m.Code.DISPLACED)])],
    "displaced after the end": [*ATTACHED, ("box", [ended(1), refused(1, m.Code.DISPLACED)])],
    "a token that opens nothing": [*START, ("client", [execute(1)]), ("box", [refused(1, m.Code.TOKEN)])],
    "shut down": [*START, ("client", [m.Shutdown(1, STOP)]), ("box", [m.Gone(1)])],
    "shut down in vain": [*START, ("client", [m.Shutdown(1, STOP)]), ("box", [refused(1, m.Code.TOKEN)])],
    "pings in order": [*START, ("client", [m.Ping(1), m.Ping(2)]), ("box", [m.Pong(1), m.Pong(2)])],
    "the policy, please": [*START, ("client", [m.GetPolicy()]), ("box", [POLICY])],
    "channels may leave gaps": [*START, ("client", [execute(5), execute(9)]), ("box", [m.Started(9, False)])],
    "the box is full": [("client", [HELLO]), ("box", [refused(0)])],
    "the box stops": [*ATTACHED, ("box", [refused(0, m.Code.UNAVAILABLE)])],
}


def play(flow: Flow, cuts: Cuts) -> Pair:
    pair = Pair(cuts)
    for who, messages in flow:
        if who == "client":
            assert pair.client_says(*messages) == messages
        else:
            answers = 1 if pair.box.unsent else 0
            assert pair.box_says(*messages)[answers:] == messages
    return pair


@pytest.mark.parametrize("cuts", [WHOLE, BYTES, (3, 1, 11)], ids=["whole", "byte by byte", "in pieces"])
@pytest.mark.parametrize("flow", [f for f in FLOWS if "window" not in f])
def test_a_flow_is_heard_alike_however_it_is_cut(flow: str, cuts: Cuts) -> None:
    play(FLOWS[flow], cuts)


@pytest.mark.parametrize("flow", [f for f in FLOWS if "window" in f])
def test_a_large_flow_is_heard(flow: str) -> None:
    play(FLOWS[flow], WHOLE)
    play(FLOWS[flow], (65_537,))


@given(
    flow=st.sampled_from([f for f in FLOWS if "window" not in f]),
    cuts=st.lists(st.integers(1, 90), max_size=9),
)
def test_a_flow_is_heard_alike_with_any_cuts(flow: str, cuts: list[int]) -> None:
    play(FLOWS[flow], cuts)


@pytest.mark.parametrize("cuts", [WHOLE, BYTES])
def test_nothing_runs_under_a_policy_that_the_user_has_not_seen(cuts: Cuts) -> None:
    pair = Pair(cuts)
    stale = [m.Hello(m.VERSION, OTHER), *FLIGHT[1:], m.Ping(4)]
    assert pair.client_says(*stale) == [stale[0], m.Ping(4)]
    assert pair.box_says(m.Pong(4)) == [WELCOME, POLICY_FIRST, POLICY, m.Pong(4)]
    assert pair.box.connection.state is pair.client.connection.state is ConnectionState.UNSEEN
    assert pair.client.connection.channel_state(1) is ChannelState.FRESH
    assert pair.client_says(*FLIGHT) == FLIGHT
    assert pair.box_says(m.Stored(1)) == [WELCOME, m.Stored(1)]


def test_a_first_visit_fetches_the_policy() -> None:
    pair = Pair()
    assert pair.client_says(m.Hello(m.VERSION, None), m.GetPolicy()) == [
        m.Hello(m.VERSION, None),
        m.GetPolicy(),
    ]
    assert pair.box_says() == [WELCOME, POLICY_FIRST, POLICY]
    # The Policy that was asked for is still due: no Hello before it.
    with pytest.raises(LocalProtocolError, match="before all answers"):
        pair.client.connection.send(HELLO)
    assert pair.box_says(POLICY) == [POLICY]
    assert pair.client_says(HELLO) == [HELLO]
    assert pair.box_says() == [WELCOME]


# What was sent before its sender could know better: the setting; what then crosses, from the box and from the client;
# how much of each is heard. The rest is dropped, and no error.
LATE: dict[str, tuple[Flow, list[m.Message], list[m.Message], int, int]] = {
    "chunks of a refused upload": (
        [*START, ("client", [store(1, 9)])],
        [refused(1)],
        [chunk(1, b"abc"), chunk(1, b"d", 3)],
        1,
        0,
    ),
    "the rest of a refused call": (
        [*START, ("client", [execute(1)])],
        [refused(1)],
        [open_(1), text(1, 0, b"a"), m.End(1)],
        1,
        0,
    ),
    "input to an ended session": (
        ATTACHED,
        [m.Output(1, 7, b"a", True), ended(1)],
        [text(1, 40, b"a"), m.Padding(1, 42, b"0"), m.End(1)],
        2,
        0,
    ),
    "an Ack to an ended session": (ATTACHED, [ended(1)], [m.Ack(1, 7, 7 + WINDOW)], 1, 1),
    "output to a client that left": (
        ATTACHED,
        [m.Output(1, 7, b"a", True), m.Padding(1, 9, b"0"), m.Ack(1, 40, 40 + WINDOW), ended(1)],
        [m.Close(1)],
        0,
        1,
    ),
    "a start for a client that left": (
        [*START, ("client", [execute(1)])],
        [m.Started(1, False)],
        [m.Close(1)],
        0,
        1,
    ),
    "closing what was refused": (ATTACHED, [refused(1)], [m.Ack(1, 7, 7 + WINDOW), m.Close(1)], 1, 0),
    "displacing what was finished": (
        [*ATTACHED, ("box", [ended(1)])],
        [refused(1, m.Code.DISPLACED)],
        [m.Ack(1, 8, 8 + WINDOW)],
        0,
        0,
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_what_crossed_is_ignored(case: str) -> None:
    setting, box_says, client_says, client_hears, box_hears = LATE[case]
    pair = play(setting, WHOLE)
    from_box, from_client = pair.box.say(*box_says), pair.client.say(*client_says)
    assert pair.box.hear(from_client) == client_says[:box_hears]
    assert pair.client.hear(from_box) == box_says[:client_hears]
    assert not pair.box.closed and not pair.client.closed


def test_a_closed_channel_takes_nothing_but_the_goodbye() -> None:
    pair = play(ATTACHED, WHOLE)
    pair.client_says(m.Close(1))
    assert pair.box.connection.send_window(1) == 0
    with pytest.raises(LocalProtocolError, match="too late"):
        pair.box.connection.send(m.Output(1, 7, b"x", False))
    assert pair.box_says(m.Gone(1)) == [m.Gone(1)]
    assert pair.client.connection.channel_state(1) is ChannelState.FINISHED


def test_the_next_offset_the_window_and_what_was_received() -> None:
    pair = play(ATTACHED, WHOLE)
    client, box = pair.client.connection, pair.box.connection
    assert (client.next_offset(1), client.send_window(1), client.received(1)) == (40, WINDOW, 7)
    assert (box.next_offset(1), box.send_window(1), box.received(1)) == (7, WINDOW, 40)
    pair.client_says(text(1, 40, b"abc"))
    pair.box_says(m.Output(1, 7, b"", True))
    assert (client.next_offset(1), client.send_window(1), client.received(1)) == (44, WINDOW - 4, 8)
    assert (box.next_offset(1), box.send_window(1), box.received(1)) == (8, WINDOW - 1, 44)
    assert client.fresh_channel() == 2
    with pytest.raises(LocalProtocolError, match="not live"):
        client.next_offset(2)


def test_a_window_is_nought_where_nothing_may_be_sent() -> None:
    pair = play([*START, ("client", [execute(1), open_(2)])], WHOLE)
    assert [pair.client.connection.send_window(c) for c in (1, 2, 3)] == [0, 0, 0]
    assert [pair.box.connection.send_window(c) for c in (1, 2, 3)] == [0, 0, 0]


def test_a_refused_connection_is_over_on_both_sides() -> None:
    pair = play(FLOWS["the box stops"], WHOLE)
    assert pair.client.closed
    assert pair.box.connection.state is pair.client.connection.state is ConnectionState.CLOSED
    with pytest.raises(LocalProtocolError):
        pair.client.connection.send(m.Ping(1))


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (chunk(1, b"abc"), 3),
        (text(1, 0, b"abc"), 4),
        (text(1, 0, b"", end=False, eof=True), 0),
        (m.Output(1, 0, b"", True), 1),
        (m.Padding(1, 0, b"00"), 2),
        (ended(1), 1),
        (m.Ping(9), 0),
    ],
)
def test_units(message: m.Message, count: int) -> None:
    assert units(message) == count
