"""Why no tor can be controlled, said exactly; and deadlines that break a call."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bento_tor.controller import connection
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import LaunchedTor
from bento_tor.errors import BentoError, LocalProtocolError, TorError

NOBODY = 65534


@contextmanager
def listener(answer: bytes) -> Iterator[Endpoint]:
    """Something that listens on a TCP port, reads a line, sends `answer`, and hangs up (or, without one,
    waits)."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            stream = server.accept()[0]
            with stream:
                stream.recv(1024)
                stream.sendall(answer)
                if not answer:
                    done.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Endpoint.tcp("127.0.0.1", server.getsockname()[1])
        done.set()
        thread.join()


def error_of(endpoint: Endpoint | None, timeout_s: float = 5) -> BentoError:
    with pytest.raises(TorError) as error:
        connect(endpoint, timeout_s=timeout_s)
    assert error.value.hint
    return error.value


def test_nothing_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "nothing there" in error_of(Endpoint.tcp("127.0.0.1", port)).message
    assert "nothing there" in error_of(Endpoint.unix(tmp_path / "control")).message


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.0 501 Tor is not an HTTP Proxy\r\n\r\n", b"\x05\xff", b"220 smtp\r\n", b"250 OK\r\n"]
)
def test_a_port_that_is_no_control_port(answer: bytes) -> None:
    with listener(answer) as endpoint:
        assert "no control port" in error_of(endpoint).message


def test_a_port_that_says_nothing_does_not_hang() -> None:
    begun = time.monotonic()
    with listener(b"") as endpoint:
        assert "no control port" in error_of(endpoint, timeout_s=0.5).message
    assert time.monotonic() - begun < 5


def test_all_places_tried_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = (Endpoint.unix(tmp_path / "one"), Endpoint.unix(tmp_path / "two"))
    monkeypatch.setattr(connection, "USUAL_PLACES", places)
    message = error_of(None).message
    assert str(places[0]) in message
    assert str(places[1]) in message


@pytest.mark.tor
def test_a_tor_that_lets_us_in(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor:
        assert tor.version.startswith("0.4.")
        assert tor.get_info("version") == tor.version
        assert len(tor.get_info("config/names").splitlines()) > 100
        assert tor.get_conf("DisableNetwork") == ["1"]
        assert tor.get_conf("ExitPolicy") == []
    assert not tor.alive
    with pytest.raises(TorError, match="closed"):
        tor.get_info("version")


@pytest.mark.tor
def test_options_are_set_as_written(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor:
        tor.set_conf([("ExitPolicy", "accept 192.0.2.80:80"), ("ExitPolicy", "reject *:*"), ("ContactInfo", 'a "b\\c')])
        assert tor.get_conf("ExitPolicy") == ["accept 192.0.2.80:80", "reject *:*"]
        assert tor.get_conf("ContactInfo") == ['a "b\\c']
        tor.set_conf([("ExitPolicy", None), ("ContactInfo", None)], reset=True)
        assert tor.get_conf("ContactInfo") == []
        with pytest.raises(TorError, match="NoSuchOption"):
            tor.set_conf([("NoSuchOption", "1")])
        with pytest.raises(TorError, match="refused GETINFO"):
            tor.get_info("no/such/key")


@pytest.mark.tor
def test_a_value_cannot_smuggle_a_command(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor:
        with pytest.raises(LocalProtocolError):
            tor.set_conf([("ContactInfo", "x\r\nSIGNAL SHUTDOWN")])
        assert tor.get_conf("ContactInfo") == []


@pytest.mark.tor
def test_events_come_to_those_who_listen(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor, tor.events("CONF_CHANGED") as changed, tor.events("SIGNAL") as signals:
        tor.set_conf([("ContactInfo", "me")])
        tor.ask("SIGNAL CLEARDNSCACHE")
        event = changed.maybe_next(5)
        assert event is not None
        assert "ContactInfo=me" in event.text
        event = signals.maybe_next(5)
        assert event is not None
        assert event.word(0) == "CLEARDNSCACHE"
        assert changed.maybe_next(0.05) is None


@pytest.mark.tor
def test_a_tor_that_hangs_does_not_hang_us(lone_tor: LaunchedTor) -> None:
    tor = lone_tor.connect(timeout_s=20)
    os.kill(lone_tor.process.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(TorError, match="did not answer GETINFO within 0.3 s"):
            tor.get_info("version", timeout_s=0.3)
        assert time.monotonic() - begun < 3
        assert not tor.alive
        with pytest.raises(TorError):
            connect(lone_tor.control, timeout_s=0.3)
    finally:
        os.kill(lone_tor.process.pid, signal.SIGCONT)


@pytest.mark.tor
def test_a_tor_that_dies_under_a_listener_is_noticed(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor, pytest.raises(TorError), tor.events("SIGNAL") as signals:
        lone_tor.stop()
        for _ in signals.until(time.monotonic() + 10):
            pass
    with pytest.raises(TorError, match="died"):
        lone_tor.check()


@pytest.mark.tor
def test_a_wrong_cookie(lone_tor: LaunchedTor) -> None:
    lone_tor.connect(timeout_s=20).close()
    cookie = lone_tor.log.parent / "data" / "control_auth_cookie"
    cookie.write_bytes(bytes(32))
    assert "is not this tor's" in error_of(lone_tor.control).message
    cookie.write_bytes(b"short")
    assert "no cookie" in str(pytest.raises(TorError, connect, lone_tor.control, timeout_s=5).value)


@pytest.mark.tor
def test_a_cookie_that_we_may_not_read(lone_tor: LaunchedTor) -> None:
    """Needs root, as who drops it: the child becomes nobody and tells what it is told."""
    lone_tor.connect(timeout_s=20).close()
    lone_tor.log.parent.chmod(0o755)
    os.chmod(lone_tor.control.path or "", 0o777)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            connect(lone_tor.control, timeout_s=5)
            os.write(writer, b"let in")
        except BentoError as why:
            os.write(writer, f"{why.message}\n{why.hint}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "cannot be read" in said
    assert "belongs to root" in said
    assert "run this as root" in said
