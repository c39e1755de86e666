"""Whatever a peer sends: one RemoteProtocolError, one Refused, and nothing after it."""

from __future__ import annotations

import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bento_tor.errors import LocalProtocolError, RemoteProtocolError
from bento_tor.protocol import NEED_DATA, Connection, ConnectionState, EndOfStream, Role, states
from bento_tor.protocol import messages as m

from .pair import BYTES, DIGEST, WHOLE, Cuts, End, Pair, frame, is_over, is_waiting, pieces, raw

T, W = b"t" * 32, m.INITIAL_WINDOW
HELLO = m.Hello(m.VERSION, DIGEST)
EXECUTE = m.Execute(1, T, T, "main", "")
OPEN = m.Open(1, T, 0)
STORE = m.Store(1, T, T, b"", 5, DIGEST)
BULK = b"x" * m.MAX_DATA_BYTES
NESTED = b"\x91" * 60_000 + b"\x90"


def text(channel: int, offset: int, data: bytes = b"a") -> m.Input:
    return m.Input(channel, offset, data, False, False)


# After `before`, which is legal, the box gets `attack`. The sentence it refuses with has `words` in it.
ATTACKS: dict[str, tuple[list[m.Message], bytes, str]] = {
    # frames
    "a frame of no bytes": ([], frame(b""), "a frame of 0 bytes"),
    "a frame of 4 GiB": ([], b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
    "a frame longer than a Hello": ([], b"\0\0\x01\x01", "1 to 256"),
    "a frame longer than all messages": ([HELLO], (m.MAX_DATA_BYTES + 1025).to_bytes(4, "big"), "1 to 66560"),
    "HTTP": ([], b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes"),
    # bodies
    "no msgpack": ([], frame(b"\xc1"), "not a message"),
    "half a msgpack": ([], frame(msgspec.msgpack.encode(HELLO)[:-1]), "not a message"),
    "more than one msgpack": ([], frame(msgspec.msgpack.encode(HELLO) + b"\xc0"), "not a message"),
    "a number": ([], raw(1), "not a message"),
    "nil": ([], raw(None), "not a message"),
    "a map": ([], raw({"type": "Hello", "version": 1, "policy": None}), "not a message"),
    "an empty array": ([], raw([]), "not a message"),
    "an array of 4 billion": ([], frame(b"\xdd\xff\xff\xff\xff\xa5Hello"), "not a message"),
    "a text of 4 GiB": ([HELLO], frame(b"\x92\xdb\xff\xff\xff\xffPing"), "not a message"),
    "data of 4 GiB": ([HELLO], frame(b"\x94\xa5Chunk\x01\x00\xc6\xff\xff\xff\xff"), "not a message"),
    "arrays in arrays": ([HELLO], frame(NESTED), "not a message"),
    "arrays in arrays, in a field": ([HELLO], frame(b"\x92\xa4Ping" + NESTED), "not a message"),
    "arrays in arrays, beyond the fields": ([HELLO], frame(b"\x93\xa4Ping\x01" + NESTED), "not a message"),
    "a name that is no UTF-8": ([HELLO], frame(b"\x92\xa4\xff\xfe\xfd\xfc\x01"), "not a message"),
    "arguments that are no UTF-8": (
        [HELLO],
        frame(b"\x96\xa7Execute\x01\xc4\x20" + T + b"\xc4\x20" + T + b"\xa1f\xa2\xc3\x28"),
        "not a message",
    ),
    "an unknown name": ([], raw(["Helo", 1, None]), "not a message"),
    "a name that is a number": ([], raw([1, 1, None]), "not a message"),
    "too few fields": ([], raw(["Hello", 1]), "not a message"),
    "too many fields": ([], raw(["Hello", 1, None, 0]), "not a message"),
    "a version that is text": ([], raw(["Hello", "1", None]), "not a message"),
    "a version beyond 64 bits": ([], frame(b"\x93\xa5Hello\xcf" + b"\xff" * 8 + b"\xc0"), "protocol version"),
    "a short digest": ([], raw(["Hello", 1, b"short"]), "not a message"),
    "a short token": ([HELLO], raw(["Shutdown", 1, b"short"]), "not a message"),
    "a token that is text": ([HELLO], raw(["Shutdown", 1, "t" * 32]), "not a message"),
    "channel 0": ([HELLO], raw(["Close", 0]), "not a message"),
    "channel -1": ([HELLO], raw(["Close", -1]), "not a message"),
    "a channel of 33 bits": ([HELLO], raw(["Close", 2**32]), "not a message"),
    "an offset below 0": ([HELLO], raw(["Open", 1, T, -1]), "not a message"),
    "an offset of 63 bits": ([HELLO], raw(["Open", 1, T, 2**62 + 1]), "not a message"),
    "a number with a fraction": ([HELLO], raw(["Ping", 1.5]), "not a message"),
    "end that is a number": ([HELLO, EXECUTE, OPEN], raw(["Input", 1, 0, b"a", 1, False]), "not a message"),
    "data that is too long": ([HELLO, STORE], raw(["Chunk", 1, 0, BULK + b"x"]), "not a message"),
    "a manifest that is too long": (
        [HELLO],
        raw(["Store", 1, T, T, b"x" * (m.MAX_MANIFEST_BYTES + 1), 5, DIGEST]),
        "not a message",
    ),
    "code that is too long": (
        [HELLO],
        raw(["Store", 1, T, T, b"", m.MAX_CODE_BYTES + 1, DIGEST]),
        "not a message",
    ),
    "a call without a name": ([HELLO], raw(["Execute", 1, T, T, "", ""]), "not a message"),
    "arguments of too many bytes": (
        [HELLO],
        raw(["Execute", 1, T, T, "f", "é" * 20_000]),
        "arguments of more",
    ),
    "a box's message": ([HELLO], raw(m.Pong(1)), "not a message that a client can send"),
    "a box's message first": ([], raw(m.Welcome(1, DIGEST)), "not a message that a client can send"),
    # the connection
    "another version": ([], raw(["Hello", 2, DIGEST]), "protocol version 2"),
    "no Hello": ([], raw(m.Ping(1)), "Ping while the connection is NEW"),
    "a channel before Hello": ([], raw(m.Close(1)), "Close while the connection is NEW"),
    "a second Hello": ([HELLO], raw(HELLO), "Hello while the connection is READY"),
    "17 Pings at once": ([HELLO], raw(*[m.Ping(i) for i in range(17)]), "more than 16 Pings"),
    "17 GetPolicy at once": ([HELLO], raw(*[m.GetPolicy()] * 17), "more than 16 GetPolicy"),
    "33 channels": (
        [HELLO],
        raw(*[m.Execute(i + 1, T, T, "f", "") for i in range(33)]),
        "more than 32 channels at once",
    ),
    # channels
    "a channel that is not there": ([HELLO], raw(m.Close(1)), "Close on a channel that is FRESH"),
    "a chunk without a Store": ([HELLO], raw(m.Chunk(1, 0, b"a")), "Chunk on a channel that is FRESH"),
    "input without a session": ([HELLO], raw(text(1, 0)), "Input on a channel that is FRESH"),
    "a channel twice": ([HELLO, EXECUTE], raw(EXECUTE), "Execute on a channel that is CALLED"),
    "a channel for two": ([HELLO, EXECUTE], raw(STORE), "Store on a channel that is CALLED"),
    "a lower channel": ([HELLO, m.Execute(5, T, T, "f", "")], raw(m.Execute(4, T, T, "f", "")), "FINISHED"),
    "an Open twice": ([HELLO, OPEN], raw(OPEN), "Open on a channel that is ATTACHING"),
    "input to an upload": ([HELLO, STORE], raw(text(1, 0)), "Input on a channel that is UPLOADING"),
    "closing an upload": ([HELLO, STORE], raw(m.Close(1)), "Close on a channel that is UPLOADING"),
    "input before Open": ([HELLO, EXECUTE], raw(text(1, 0)), "Input on a channel that is CALLED"),
    "input before the first Ack": ([HELLO, OPEN], raw(text(1, 0)), "Input on a channel that is ATTACHING"),
    "an End before Open": ([HELLO, EXECUTE], raw(m.End(1)), "End on a channel that is CALLED"),
    "an Ack before Open": ([HELLO, EXECUTE], raw(m.Ack(1, 0, W)), "Ack on a channel that is CALLED"),
    "input after Close": (
        [HELLO, EXECUTE, OPEN, m.Close(1)],
        raw(text(1, 0)),
        "Input on a channel that is CLOSING",
    ),
    "Close twice": ([HELLO, EXECUTE, m.Close(1)], raw(m.Close(1)), "Close on a channel that is CLOSING"),
    "Close of a Shutdown": ([HELLO, m.Shutdown(1, T)], raw(m.Close(1)), "Close on a channel that is ERASING"),
    # offsets and windows
    "an upload that begins late": ([HELLO, STORE], raw(m.Chunk(1, 1, b"a")), "offset 1 where 0 is due"),
    "an upload with a hole": (
        [HELLO, STORE, m.Chunk(1, 0, b"a")],
        raw(m.Chunk(1, 2, b"a")),
        "offset 2 where 1",
    ),
    "an upload that repeats": (
        [HELLO, STORE, m.Chunk(1, 0, b"a")],
        raw(m.Chunk(1, 0, b"a")),
        "offset 0 where 1",
    ),
    "an upload that is too long": ([HELLO, STORE], raw(m.Chunk(1, 0, b"abcdef")), "beyond the limit of 5"),
    "an upload that goes on": ([HELLO, STORE, m.Chunk(1, 0, b"abcde")], raw(m.Chunk(1, 5, b"f")), "AWAITING"),
    "a chunk of nothing": ([HELLO, STORE], raw(m.Chunk(1, 0, b"")), "Chunk with nothing in it"),
    "input that begins late": ([HELLO, EXECUTE, OPEN], raw(text(1, 1)), "offset 1 where 0 is due"),
    "input with a hole": ([HELLO, EXECUTE, OPEN, text(1, 0)], raw(text(1, 2)), "offset 2 where 1 is due"),
    "input of nothing": ([HELLO, EXECUTE, OPEN], raw(text(1, 0, b"")), "Input with nothing in it"),
    "padding of nothing": ([HELLO, EXECUTE, OPEN], raw(m.Padding(1, 0, b"")), "Padding with nothing in it"),
    "input after eof": (
        [HELLO, EXECUTE, OPEN, m.Input(1, 0, b"", False, True)],
        raw(text(1, 0)),
        "Input after its eof",
    ),
    "input beyond the window": (
        [HELLO, EXECUTE, OPEN, *[text(1, i * len(BULK), BULK) for i in range(4)]],
        raw(text(1, W)),
        "beyond the limit of 262144",
    ),
    "padding beyond the window": (
        [HELLO, EXECUTE, OPEN, *[m.Padding(1, i * len(BULK), BULK) for i in range(4)]],
        raw(m.Padding(1, W, b"0")),
        "beyond the limit of 262144",
    ),
    "an end beyond the window": (
        [HELLO, EXECUTE, OPEN, *[text(1, i * len(BULK), BULK) for i in range(4)]],
        raw(m.Input(1, W, b"", True, False)),
        "beyond the limit of 262144",
    ),
    "an Ack of what was not sent": ([HELLO, OPEN], raw(m.Ack(1, 1, W)), "an Ack of 1 units"),
    "an Ack that goes back": ([HELLO, m.Open(1, T, 9)], raw(m.Ack(1, 8, 9 + W)), "an Ack of 8 units"),
    "an Ack that takes a window away": ([HELLO, OPEN], raw(m.Ack(1, 0, W - 1)), "a limit of 262143"),
}


def box_after(before: list[m.Message]) -> End:
    pair = Pair()
    pair.client_says(*before)
    return pair.box


def refuse(box: End, attack: bytes, cuts: Cuts = WHOLE) -> RemoteProtocolError:
    """The box hears `attack`: exactly one error, one Refused, and nothing after it."""
    with pytest.raises(RemoteProtocolError) as caught:
        box.hear(attack, cuts)
    check_is_over(box.connection, caught.value)
    return caught.value


def check_is_over(box: Connection, error: RemoteProtocolError) -> None:
    assert is_over(box)
    client = Connection(Role.CLIENT)
    client.send(HELLO)
    client.receive_data(box.refusal(error))
    refused = client.next_event()
    assert isinstance(refused, m.Refused)
    assert (refused.channel, refused.code, refused.message) == (0, error.code, error.message)
    assert isinstance(client.next_event(), EndOfStream)
    with pytest.raises(LocalProtocolError):
        box.refusal(error)
    with pytest.raises(LocalProtocolError):
        box.send(m.Pong(1))
    box.receive_data(raw(HELLO))
    assert is_over(box)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_once(attack: str) -> None:
    before, data, words = ATTACKS[attack]
    error = refuse(box_after(before), data)
    assert words in error.message
    assert len(error.message) < 400
    assert error.code == ("version" if "version" in words else "protocol")


@pytest.mark.parametrize("attack", [a for a, (_, data, _) in ATTACKS.items() if len(data) < 5000])
def test_an_attack_byte_by_byte_is_refused_alike(attack: str) -> None:
    before, data, words = ATTACKS[attack]
    assert words in refuse(box_after(before), data, BYTES).message


# The same for a client, whose box is the attacker.
WELCOME = m.Welcome(1, DIGEST)
FROM_A_BOX: dict[str, tuple[list[m.Message], bytes, str]] = {
    "anything before Welcome": ([HELLO], raw(m.Pong(1)), "Pong while the connection is GREETED"),
    "a long frame before Welcome": ([HELLO], b"\0\0\x40\0", "a frame of 16384 bytes"),
    "another version": ([HELLO], raw(m.Welcome(2, DIGEST)), "protocol version 2"),
    "Welcome twice": ([HELLO], raw(WELCOME, WELCOME), "Welcome while the connection is READY"),
    "another policy, kept back": (
        [HELLO],
        raw(m.Welcome(1, T), m.Policy(b"")),
        "Policy while the connection is STALE",
    ),
    "a policy refused for nothing": ([HELLO], raw(WELCOME, m.Refused(0, m.Code.POLICY, "")), "Refused while"),
    "a Policy unasked": ([HELLO], raw(WELCOME, m.Policy(b"")), "nobody asked"),
    "a Pong unasked": ([HELLO], raw(WELCOME, m.Pong(1)), "answers no Ping"),
    "another Pong": ([HELLO, m.Ping(1)], raw(WELCOME, m.Pong(2)), "answers no Ping"),
    "a client's message": ([HELLO], raw(WELCOME, m.GetPolicy()), "that a box can send"),
    "a channel of its own": (
        [HELLO],
        raw(WELCOME, m.Started(1, False)),
        "Started on a channel that is FRESH",
    ),
    "Stored for a session": (
        [HELLO, EXECUTE],
        raw(WELCOME, m.Stored(1)),
        "Stored on a channel that is CALLED",
    ),
    "Started twice": ([HELLO, EXECUTE], raw(WELCOME, *[m.Started(1, False)] * 2), "Started on a channel"),
    "output before Started": (
        [HELLO, EXECUTE, OPEN],
        raw(WELCOME, m.Output(1, 0, b"a", False)),
        "is PIPELINED",
    ),
    "output before the Ack": ([HELLO, OPEN], raw(WELCOME, m.Output(1, 0, b"a", False)), "is ATTACHING"),
    "output with a hole": (
        [HELLO, OPEN],
        raw(WELCOME, m.Ack(1, 0, W), m.Output(1, 1, b"a", False)),
        "offset 1 where 0 is due",
    ),
    "output beyond the window": (
        [HELLO, OPEN],
        raw(WELCOME, m.Ack(1, 0, W), *[m.Output(1, i * 2**16, BULK, False) for i in range(5)]),
        "beyond the limit",
    ),
    "an Ack of what was not sent": (
        [HELLO, OPEN],
        raw(WELCOME, m.Ack(1, 5, W), m.Ack(1, 6, W)),
        "an Ack of 6 units",
    ),
    "output after Ended": (
        [HELLO, OPEN],
        raw(WELCOME, m.Ended(1, "returned", "", b""), m.Output(1, 1, b"a", False)),
        "Output on a channel that is ENDED",
    ),
    "anything after Gone": (
        [HELLO, m.Shutdown(1, T)],
        raw(WELCOME, m.Gone(1), m.Gone(1)),
        "Gone on a channel that is FINISHED",
    ),
}


@pytest.mark.parametrize("attack", FROM_A_BOX)
def test_a_client_stops_at_a_box_that_breaks_the_rules(attack: str) -> None:
    before, data, words = FROM_A_BOX[attack]
    client = End(Role.CLIENT)
    client.say(*before)
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        client.hear(data)
    assert is_over(client.connection)
    with pytest.raises(LocalProtocolError):
        client.connection.refusal(caught.value)


def test_a_stream_that_is_cut_is_no_crime() -> None:
    for data, cut in ((b"", False), (b"\0", True), (raw(m.Ping(1))[:-1], True)):
        box = box_after([HELLO]).connection
        if data:
            box.receive_data(data)
            assert is_waiting(box)
        box.receive_data(b"")
        event = box.next_event()
        assert isinstance(event, EndOfStream)
        assert event.cut is cut
        assert box.state is ConnectionState.CLOSED
        with pytest.raises(LocalProtocolError, match="after the end"):
            box.receive_data(b"x")


def test_what_came_before_the_end_is_heard() -> None:
    box = box_after([HELLO])
    box.connection.receive_data(raw(m.Ping(1), m.Ping(2)))
    box.connection.receive_data(b"")
    assert [box.connection.next_event() for _ in "12"] == [m.Ping(1), m.Ping(2)]
    assert isinstance(box.connection.next_event(), EndOfStream)


def test_a_box_answers_a_hello_before_it_reads_on() -> None:
    box = Connection(Role.BOX)
    box.receive_data(raw(HELLO, m.Ping(1)))
    assert box.next_event() == HELLO
    with pytest.raises(LocalProtocolError, match="must be answered"):
        box.next_event()
    box.send(m.Welcome(m.VERSION, DIGEST))
    assert box.next_event() == m.Ping(1)


OURS: dict[str, tuple[Role, m.Message]] = {
    "the other side's message": (Role.CLIENT, m.Pong(1)),
    "too early": (Role.CLIENT, m.Ping(1)),
    "data that is too long": (Role.CLIENT, m.Chunk(1, 0, BULK + b"x")),
    "a number that msgpack cannot write": (Role.CLIENT, m.Hello(2**64, None)),
    "a surrogate": (Role.CLIENT, m.Execute(1, T, T, "f", "\udc80")),
    "a value that msgpack cannot write": (Role.CLIENT, m.Hello(object(), None)),  # type: ignore[arg-type]
    "a field of another type": (Role.CLIENT, m.Hello("1", None)),  # type: ignore[arg-type]
    "a version that is not ours": (Role.CLIENT, m.Hello(2, None)),
    "a box that greets first": (Role.BOX, m.Welcome(m.VERSION, DIGEST)),
}


@pytest.mark.parametrize("mistake", OURS)
def test_our_own_mistake_is_told_and_changes_nothing(mistake: str) -> None:
    role, message = OURS[mistake]
    connection = Connection(role)
    with pytest.raises(LocalProtocolError):
        connection.send(message)
    assert connection.state is ConnectionState.NEW


def test_a_flight_that_breaks_a_rule_in_the_middle_breaks_the_connection() -> None:
    client = Connection(Role.CLIENT)
    with pytest.raises(LocalProtocolError):
        client.send_many([m.Ping(1), HELLO])
    assert client.state is ConnectionState.NEW
    with pytest.raises(LocalProtocolError):
        client.send_many([HELLO, HELLO])
    assert client.state is ConnectionState.ERROR


def test_a_claim_of_gigabytes_takes_no_memory() -> None:
    claims = [data for before, data, _ in ATTACKS.values() if b"\xff\xff\xff\xff" in data]
    assert len(claims) >= 4
    tracemalloc.start()
    try:
        for data in claims:
            box = box_after([] if data.startswith(b"\xff") else [HELLO])
            with pytest.raises(RemoteProtocolError):
                box.hear(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_many_finished_channels_take_no_memory() -> None:
    pair = Pair()
    pair.client_says(HELLO)
    pair.box_says()
    for number in range(1, 2000):
        pair.client_says(m.Shutdown(number, T))
        pair.box_says(m.Gone(number))
    assert pair.box.connection.fresh_channel() == pair.client.connection.fresh_channel() == 2000
    assert not pair.box.connection._channels._live and not pair.client.connection._channels._live


def test_a_box_that_is_fed_small_or_large_pieces_takes_time_in_proportion() -> None:
    """Quadratic work would take minutes here, not seconds."""
    late = raw(*[m.Close(1)] * 900_000)  # ignored: no events, and the longest way through the buffer
    assert len(late) > 9_000_000
    box = box_after([HELLO, EXECUTE])
    box.connection.send(m.Refused(1, m.Code.FULL, ""))
    start = time.monotonic()
    box.connection.receive_data(late)
    assert is_waiting(box.connection)
    for byte in raw(m.Chunk(1, 0, BULK)):
        box.connection.receive_data(bytes([byte]))
        assert is_waiting(box.connection)
    assert time.monotonic() - start < 20


# --- Hypothesis -----------------------------------------------------------------------------------------------

CUTS = st.lists(st.integers(1, 200), max_size=8)
FLIGHT = raw(
    HELLO,
    STORE,
    m.Chunk(1, 0, b"abcde"),
    m.Execute(2, T, T, "f", "[1]"),
    m.Open(2, T, 0),
    text(2, 0),
    m.End(2),
)


def listen(data: bytes, cuts: Cuts) -> tuple[End, RemoteProtocolError | None]:
    """A box that hears anything: its one error, if any. No other exception may come."""
    box = End(Role.BOX)
    for piece in pieces(data, cuts):
        try:
            box.hear(piece)
        except RemoteProtocolError as error:
            return box, error
    return box, None


def check_any(data: bytes, cuts: Cuts) -> None:
    box, error = listen(data, cuts)
    whole = listen(data, WHOLE)[1]
    assert (error and error.message) == (whole and whole.message)
    if error is not None:
        check_is_over(box.connection, error)
    else:
        assert box.connection.next_event() is NEED_DATA
        assert len(box.connection._buffer) <= states.MAX_FRAME_BYTES + 4


@given(data=st.binary(max_size=400), cuts=CUTS)
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    check_any(data, cuts)


@given(data=st.binary(max_size=400), cuts=CUTS)
def test_any_bytes_after_hello(data: bytes, cuts: list[int]) -> None:
    check_any(raw(HELLO) + data, cuts)


@settings(max_examples=300)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(FLIGHT) - 1), st.integers(0, 4), st.binary(max_size=5)),
        min_size=1,
        max_size=4,
    ),
    cuts=CUTS,
)
def test_a_flight_with_bytes_changed_put_in_and_left_out(edits: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = bytearray(FLIGHT)
    for at, left_out, put_in in edits:
        data[at : at + left_out] = put_in
    check_any(bytes(data), cuts)


ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)
NAMES = st.sampled_from([kind.__name__ for kind in m.FromClient.__args__ + m.FromBox.__args__])


@settings(max_examples=300)
@given(values=st.lists(st.tuples(NAMES, st.lists(ANY_VALUE, max_size=6)), max_size=5), cuts=CUTS)
def test_messages_with_any_fields(values: list[tuple[str, list[object]]], cuts: list[int]) -> None:
    check_any(raw(HELLO, *[[name, *fields] for name, fields in values]), cuts)


SMALL, LITTLE = st.integers(1, 3), st.integers(0, 6)
ANY_MESSAGE = st.one_of(
    st.builds(m.Hello, st.just(1), st.sampled_from([None, DIGEST])),
    st.builds(m.GetPolicy),
    st.builds(m.Store, SMALL, st.just(T), st.just(T), st.just(b""), LITTLE, st.just(DIGEST)),
    st.builds(m.Chunk, SMALL, LITTLE, st.binary(max_size=3)),
    st.builds(m.Execute, SMALL, st.just(T), st.just(T), st.just("f"), st.just("")),
    st.builds(m.Open, SMALL, st.just(T), LITTLE),
    st.builds(m.Input, SMALL, LITTLE, st.binary(max_size=3), st.booleans(), st.booleans()),
    st.builds(m.Ack, SMALL, LITTLE, st.sampled_from([0, 3, W, 2 * W])),
    st.builds(m.Padding, SMALL, LITTLE, st.binary(max_size=3)),
    st.builds(m.Close, SMALL),
    st.builds(m.End, SMALL),
    st.builds(m.Shutdown, SMALL, st.just(T)),
    st.builds(m.Ping, LITTLE),
)


@settings(max_examples=500)
@given(hello=st.sampled_from([None, DIGEST]), said=st.lists(ANY_MESSAGE, max_size=12), cuts=CUTS)
def test_messages_in_any_order(hello: bytes | None, said: list[m.Message], cuts: list[int]) -> None:
    check_any(raw(m.Hello(1, hello), *said), cuts)


@given(first=st.lists(ANY_MESSAGE, max_size=12))
def test_a_client_that_did_not_accept_the_policy_gets_nothing_run(first: list[m.Message]) -> None:
    others = [message for message in first if not isinstance(message, m.Hello | m.GetPolicy | m.Ping)]
    box = End(Role.BOX)
    assert box.hear(raw(m.Hello(1, None), *others)) == [m.Hello(1, None)]
    assert box.connection.fresh_channel() == 1
