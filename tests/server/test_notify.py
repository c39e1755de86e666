"""The words for the service manager, as it gets them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bento_tor.server.notify import Watchdog, notify, watchdog_s


@pytest.fixture
def manager(short_path: Path) -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(str(short_path / "notify"))
        yield sock


def test_it_is_told_in_one_datagram(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    assert notify("READY=1", "STATUS=up")
    assert manager.recv(100) == b"READY=1\nSTATUS=up"


def test_an_abstract_socket_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"bento-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("STOPPING=1")
        assert sock.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("place", ["", "relative", "vsock:2:3", "/nonexistent/socket"])
def test_where_nobody_listens_nothing_is_sent_and_nothing_breaks(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("wanted", "whose", "seconds"),
    [("3000000", None, 3.0), ("3000000", "1", None), ("", None, None), ("0", None, None), ("often", None, None)],
)
def test_the_watchdog_is_ours_only_where_it_is_meant_for_us(
    wanted: str, whose: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", wanted)
    monkeypatch.setenv("WATCHDOG_PID", whose or str(os.getpid()))
    assert watchdog_s() == seconds


def test_the_watchdog_hears_of_us_only_while_we_live(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    asked: list[None] = []

    def lives() -> bool:
        asked.append(None)
        return len(asked) <= 2

    watchdog = Watchdog(0.02, lives)
    watchdog.start()
    try:
        assert [manager.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
        eventually(lambda: len(asked) > 4)
    finally:
        watchdog.stop()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
