"""The client's side of the proxy: functions that lie in it, and local programs that want the better of it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from bento_tor.client import parse
from bento_tor.client import proxy as proxies
from bento_tor.client.memory import MemoryBox, MemorySession
from bento_tor.client.mux import PIECE_BYTES, WINDOW_BYTES, Kind, Reset, Streams, Unopened
from bento_tor.client.proxy import Listener, Proxy, listen
from bento_tor.client.source import make_call
from bento_tor.errors import BentoError, ConfigError, RemoteProtocolError

HEAD = struct.Struct("!BI")
SOURCE = parse("proxy", "def proxy(): ...")
GREETING = b"\5\1\0"
ASK = b"\5\1\0\3\x0bexample.org\0\x50"
OPENED = b"\5\0\5\0\0\1" + bytes(6)


def said(kind: int, number: int = 1, rest: bytes = b"") -> bytes:
    return HEAD.pack(kind, number) + rest


def echoing(api: MemorySession) -> None:
    """Opens everything, and sends back what comes, credit too; port 1 is refused with code 2, port 2 breaks at
    the first word."""
    breaks = set()
    with suppress(EOFError):
        while True:
            message = api.recv()
            kind, number = HEAD.unpack_from(message)
            rest = message[HEAD.size :]
            if kind == Kind.OPEN and rest[:2] == b"\0\1":
                api.send(said(Kind.REFUSED, number, b"\2"))
            elif kind == Kind.OPEN:
                api.send(said(Kind.OPENED, number))
                if rest[:2] == b"\0\2":
                    breaks.add(number)
            elif number in breaks:
                api.send(said(Kind.DATA, number, b"half of it"))
                api.send(said(Kind.RESET, number))
            elif kind in (Kind.DATA, Kind.END, Kind.CREDIT):
                api.send(said(kind, number, rest))


@contextmanager
def serving(function: Callable[[MemorySession], object]) -> Iterator[tuple[Listener, list[BentoError]]]:
    """A proxy over a function, and the errors that ended it."""
    errors: list[BentoError] = []

    def run() -> None:
        try:
            with Proxy(session, listener) as proxy:
                proxy.run()
        except BentoError as why:
            errors.append(why)

    with MemoryBox({"proxy": function}) as there, there.connect() as box, listen("127.0.0.1:0") as listener:
        session = box.run(SOURCE, make_call("proxy"))
        running = threading.Thread(target=run)
        running.start()
        yield listener, errors
        with suppress(BentoError):
            session.end()
        running.join(timeout=20)
        assert not running.is_alive()


def local(listener: Listener, *first: bytes) -> socket.socket:
    """A connection that has said that, or as much of it as was listened to: it may be put out at once."""
    sock = socket.create_connection(listener.sock.getsockname())
    sock.settimeout(20)
    with suppress(ConnectionError):
        for data in first:
            sock.sendall(data)
    return sock


def rest_of(sock: socket.socket) -> bytes:
    with sock, suppress(ConnectionError):
        return b"".join(iter(lambda: sock.recv(65536), b""))
    return b"reset"


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the end after {data!r}"
        data += piece
    return data


def test_a_connection_goes_both_ways_and_is_half_closed() -> None:
    with serving(echoing) as (listener, errors):
        # All at once: what stands behind the request is for the other end.
        sock = local(listener, GREETING + ASK + b"early")
        assert exactly(sock, 17) == OPENED + b"early"
        data = bytes(range(256)) * 8000  # many windows
        sending = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sending.start()
        assert rest_of(sock) == data
        sending.join()
        assert not errors


def test_a_refusal_is_the_boxs_code_and_a_reset_is_no_clean_end() -> None:
    with serving(echoing) as (listener, _):
        assert rest_of(local(listener, GREETING, ASK[:-1] + b"\1"))[:4] == b"\5\0\5\2"
        broken = local(listener, GREETING, ASK[:-1] + b"\2", b"go")
        got = b""
        with pytest.raises(ConnectionResetError):
            while data := broken.recv(4096):
                got += data
        broken.close()
        assert got in (OPENED, OPENED + b"half of it")


def test_one_that_takes_nothing_does_not_stop_another() -> None:
    with serving(echoing) as (listener, errors):
        slow = local(listener, GREETING, ASK)
        exactly(slow, 12)
        feeding = threading.Thread(target=lambda: suppressed(slow.sendall, bytes(32 << 20)))
        feeding.start()
        for number in range(8):
            quick = local(listener, GREETING, ASK, b"%d" % number)
            quick.shutdown(socket.SHUT_WR)
            assert rest_of(quick) == OPENED + b"%d" % number, errors
        slow.shutdown(socket.SHUT_RDWR)
        feeding.join()
        slow.close()


def suppressed(action: Callable[..., object], *args: object) -> None:
    with suppress(OSError):
        action(*args)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n", b""),
        (b"\4\1\0\x50\1\2\3\4\0", b""),
        (b"\5\1\2", b"\5\xff"),
        (GREETING + b"\5\2\0\1\1\2\3\4\0\x50", b"\5\0\5\7"),
        (GREETING + b"\5\1\0\5abc", b"\5\0\5\x08"),
        (GREETING + b"\4", b""),
        (GREETING + b"\5\1\0\3\1\xff\0\x50", b"\5\0\5\4"),
        (b"\5\xff" + bytes(255) + b"\5\1\0\3\0\0\x50", b"\5\0\5\1"),
    ],
    ids=["http", "socks4", "password", "bind", "kind", "version", "no ascii", "no name"],
)
def test_what_is_no_request_of_ours_ends_its_connection_and_nothing_else(sent: bytes, answer: bytes) -> None:
    with serving(echoing) as (listener, errors):
        assert rest_of(local(listener, sent))[:4] in {answer, answer[: len(answer)] or b"reset"}
        good = local(listener, GREETING, ASK, b"hello")
        good.shutdown(socket.SHUT_WR)
        assert rest_of(good) == OPENED + b"hello" and not errors


def test_who_asks_for_nothing_is_put_out_and_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "_GREETING_S", 2.0)
    monkeypatch.setattr(proxies, "MOST", 8)
    with serving(echoing) as (listener, errors):
        held = [local(listener, GREETING[:1]) for _ in range(8)]
        begun = time.monotonic()
        assert rest_of(local(listener, GREETING, ASK)) in (b"", b"reset")  # no place
        for sock in held:
            # A drop now and then does not prolong it.
            suppressed(sock.sendall, b"\xff")
            assert rest_of(sock) in (b"", b"reset")
        assert time.monotonic() - begun < 10 and not errors
        deadline = time.monotonic() + 10
        while True:
            good = local(listener, GREETING, ASK)
            suppressed(good.shutdown, socket.SHUT_WR)
            if rest_of(good) == OPENED:
                break
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "lie",
    [
        b"", b"\4\0\0", said(0), said(8), said(255), said(Kind.OPEN), said(Kind.OPENED, 2), said(Kind.DATA, 9, b"x"),
        said(Kind.OPENED, 0), said(Kind.OPENED, 2**32 - 1), said(Kind.OPENED, 1, b"x"), said(Kind.DATA, 1, b"early"),
        said(Kind.REFUSED, 1), said(Kind.REFUSED, 1, b"ab"), said(Kind.END), said(Kind.CREDIT, 1, b"\0\0\0\1"),
    ],
    ids=range(16),
)  # fmt: skip
def test_a_function_that_lies_about_a_connection_that_is_asked_for_ends_everything(lie: bytes) -> None:
    def lying(api: MemorySession) -> None:
        api.recv()
        api.send(lie)
        api.recv()

    with serving(lying) as (listener, errors):
        assert rest_of(local(listener, GREETING, ASK))[:4] in (b"\5\0\5\1", b"\5\0", b"rese")
    [error] = errors
    assert isinstance(error, RemoteProtocolError) and "the function" in error.message


PIECE = bytes(PIECE_BYTES)


@pytest.mark.parametrize(
    "lies",
    [
        [said(Kind.OPENED)],
        [said(Kind.REFUSED, 1, b"\1")],
        [said(Kind.DATA)],
        [said(Kind.DATA, 1, bytes(PIECE_BYTES + 1))],
        [said(Kind.DATA, 1, PIECE)] * (WINDOW_BYTES // PIECE_BYTES) + [said(Kind.DATA, 1, b"x")],
        [said(Kind.CREDIT, 1, b"\0\0\0\1")],
        [said(Kind.CREDIT, 1, b"\xff\xff\xff\xff")],
        [said(Kind.CREDIT, 1, b"\xff" * 5)],
        [said(Kind.END), said(Kind.DATA, 1, b"x")],
        [said(Kind.END), said(Kind.END)],
        [said(Kind.END, 1, b"x")],
    ],
    ids=range(11),
)
def test_a_function_that_lies_about_one_that_is_open_is_left(lies: list[bytes]) -> None:
    streams = opened()
    with pytest.raises(RemoteProtocolError):
        for lie in lies:
            streams.take(lie)


def opened(sent: list[bytes] | None = None) -> Streams:
    """With one open connection, which nobody reads."""
    asked: list[bytes] = [] if sent is None else sent
    streams = Streams(asked.append)
    opening = threading.Thread(target=streams.open, args=("example.org", 80))
    opening.start()
    while not asked:
        time.sleep(0.001)
    streams.take(said(Kind.OPENED))
    opening.join()
    return streams


def test_what_comes_for_a_connection_that_is_done_is_dropped() -> None:
    streams = opened()
    streams.take(said(Kind.RESET))
    for late in (said(Kind.DATA, 1, PIECE), said(Kind.END), said(Kind.CREDIT, 1, b"\xff" * 4), said(Kind.OPENED)):
        streams.take(late)


@pytest.mark.parametrize(
    ("code", "told"), [(0, 1), (1, 1), (2, 2), (8, 8), (9, 1), (0x90, 1), (0x93, 2), (0xF0, 0xF0), (0xFF, 1)]
)
def test_a_code_of_the_boxes_becomes_one_that_programs_know(code: int, told: int) -> None:
    streams, codes = Streams(lambda message: True), []

    def ask() -> None:
        try:
            streams.open("example.org", 80)
        except Unopened as why:
            codes.append(why.code)

    asking = threading.Thread(target=ask)
    asking.start()
    while not streams._live:
        time.sleep(0.001)
    streams.take(said(Kind.REFUSED, 1, bytes([code])))
    asking.join()
    assert codes == [told]


def test_all_who_wait_are_told_that_it_is_over() -> None:
    streams = opened()
    results: list[str] = []

    def wait(what: Callable[[], object]) -> None:
        try:
            what()
        except Reset:
            results.append("reset")

    stream = streams._live[1]
    waits = (stream.receive, lambda: stream.send(bytes(WINDOW_BYTES + 1)), lambda: streams.open("example.org", 81))
    threads = [threading.Thread(target=wait, args=(what,)) for what in waits]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    streams.close()
    for thread in threads:
        thread.join(timeout=10)
    assert results == ["reset"] * 3
    with pytest.raises(Reset):
        streams.open("example.org", 82)


@pytest.mark.parametrize("wrong", ["", "1080", "localhost:1080", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:-1"])
def test_what_is_no_address_to_listen_at(wrong: str) -> None:
    with pytest.raises(ConfigError):
        listen(wrong)


@pytest.mark.parametrize("open_to_all", ["0.0.0.0:0", "[::]:0"])
def test_only_loopback_unless_insisted(open_to_all: str) -> None:
    with pytest.raises(ConfigError, match="other machines"):
        listen(open_to_all)
    with listen(open_to_all, exposed=True) as listener, listen("127.0.0.1:0") as inside:
        assert listener.address.startswith(open_to_all[:-1]) and inside.address.startswith("127.0.0.1:")
        with pytest.raises(ConfigError, match="cannot listen"):
            listen(inside.address)
