"""Ways to fail, as a table: after each the files are as they were, tor runs as it did, nothing is left over, and the
sentence says what it was."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from bento_tor.controller.settings import running

RELAY = ("--nickname", "x", "--orport", "auto", "--yes")
HIDDEN = ".bento-new"
BY_CONTROL = '{"address": "x.onion", "port": 80, "control": "127.0.0.1:9051", "wanted": {"target": "127.0.0.1:1"}}'


@dataclass(frozen=True)
class Way:
    """`arrange` makes the trouble for the time of the run; `words` are in what is said."""

    name: str
    arguments: tuple[str, ...]
    code: int
    words: str
    arrange: Callable[[Any], AbstractContextManager[object]] | None = None


# --- trouble ------------------------------------------------------------------------------------------------------


def appended(text: str) -> Callable[[Any], AbstractContextManager[object]]:
    """Lines in the operator's torrc."""

    @contextmanager
    def arrange(tor: Any) -> Iterator[None]:
        old = tor.torrc.read_bytes()
        new = old + text.format(root=tor.root).encode()
        tor.torrc.write_bytes(new)
        yield
        assert tor.torrc.read_bytes() == new
        tor.torrc.write_bytes(old)

    return arrange


def with_file(name: str, text: str, folder: str = "etc/tor/torrc.d") -> Callable[[Any], AbstractContextManager[object]]:
    """A file that somebody has put there."""

    @contextmanager
    def arrange(tor: Any) -> Iterator[None]:
        path = tor.root / folder / name
        made = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        yield
        assert path.read_text() == text
        path.unlink()
        if made:
            path.parent.rmdir()

    return arrange


@contextmanager
def unreadable_torrc(tor: Any) -> Iterator[None]:
    """By root only: a reload, which tor does as its own user, would end it."""
    mode = tor.torrc.stat().st_mode
    tor.torrc.chmod(0o600)
    yield
    tor.torrc.chmod(mode)


@contextmanager
def another_run(tor: Any) -> Iterator[None]:
    fd = os.open(tor.torrc.parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


@contextmanager
def socket_away(tor: Any) -> Iterator[None]:
    elsewhere = tor.control.path.with_name("elsewhere")
    tor.control.path.rename(elsewhere)
    yield
    elsewhere.rename(tor.control.path)


@contextmanager
def no_control_port(tor: Any) -> Iterator[None]:
    """Something else answers in tor's place."""
    with socket_away(tor), socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tor.control.path))
        server.listen()
        server.settimeout(30)
        closing = threading.Thread(target=lambda: server.accept()[0].close())
        closing.start()
        yield
        closing.join()
        tor.control.path.unlink()


def occupied(name: str) -> Callable[[Any], AbstractContextManager[object]]:
    """A file where tor needs a folder: it would die of that, and does not verify it."""

    @contextmanager
    def arrange(tor: Any) -> Iterator[None]:
        path, aside = tor.data / name, tor.data / "aside"
        if path.exists():
            path.rename(aside)
        path.write_text("a file")
        yield
        assert path.read_text() == "a file"
        path.unlink()
        if aside.exists():
            aside.rename(path)

    return arrange


def no_change(tor: Any) -> AbstractContextManager[object]:
    return with_file("setup.json", "{", "state")(tor)


WAYS = [
    # what cannot be meant
    Way("a nickname with a blank", ("--nickname", "x y", "--yes"), 3, "is no nickname"),
    Way("a nickname of 20 letters", ("--nickname", "x" * 20, "--yes"), 3, "is no nickname"),
    Way("a nickname with a line of its own", ("--nickname", "x\nSandbox 1", "--yes"), 3, "is no nickname"),
    Way("a contact with a line of its own", (*RELAY, "--contact", "me\nExitRelay 1"), 3, "the contact"),
    Way("a contact as long as a letter", (*RELAY, "--contact", "m" * 513), 3, "the contact"),
    Way("a bandwidth in words", (*RELAY, "--bandwidth", "plenty"), 3, "is no bandwidth"),
    Way("a bandwidth with a comment", (*RELAY, "--bandwidth", "10 MB # "), 3, "is no bandwidth"),
    Way("a family without fingerprint", (*RELAY, "--family", "friend"), 3, "is no fingerprint"),
    Way("a port beyond the last", ("--nickname", "x", "--orport", "65536", "--yes"), 3, "is no ORPort"),
    Way("a target with a blank", ("--target", "unix:/a b", "--yes"), 3, "tor cannot be led to"),
    Way("a target that is none", ("--target", "there", "--yes"), 3, "is no HOST:PORT"),
    Way("a port without nickname", ("--orport", "auto", "--yes"), 2, "--nickname"),
    Way("an exit port at a client", ("--exit-port", "4444", "--yes"), 3, "is no relay"),
    Way("nobody to ask", ("--nickname", "x"), 2, "say --yes"),
    Way("files and control port at once", (*RELAY, "--control", "127.0.0.1:1"), 2, "leave --control out"),
    Way("nothing to undo", ("--undo", "--yes"), 3, "nothing to undo"),
    Way("an instance that is not there", ("--instance", "nobody", "--yes"), 3, "there is no"),
    Way("an instance outside", ("--instance", "../../x", "--yes"), 3, "is no name of a tor instance"),
    # what tor rejects
    Way("too little bandwidth", (*RELAY, "--bandwidth", "1 KBytes"), 3, "tor rejects"),
    Way("an address that is none", ("--nickname", "x", "--orport", "1.2.3:9001", "--yes"), 4, "Failed to bind"),
    Way("a torrc that is broken already", RELAY, 3, "Nonsense", appended("Nonsense 1\n")),
    Way("a torrc that sets it itself", RELAY, 3, "sets Nickname itself", appended("Nickname y\n")),
    Way("a relay already", RELAY, 3, "is a relay already", appended("ORPort 9001\n")),
    Way(
        "a policy that tor ignores",
        ("--exit-port", "4444", "--yes"),
        3,
        "ExitRelay 0",
        appended("ORPort 9001\nExitRelay 0\n"),
    ),
    Way("a sandboxed tor", RELAY, 3, "Sandbox 1", appended("Sandbox 1\n")),
    Way(
        "a policy before the %include",
        ("--exit-port", "4444", "--yes"),
        3,
        "in front of the box's",
        appended("ORPort 9001\nExitPolicy reject *:*\n%include {root}/etc/tor/torrc.d/*.conf\n"),
    ),
    # what is in the way
    Way("a drop-in of somebody else's", RELAY, 3, "not of bento-tor's making", with_file("50-bento.conf", "# mine\n")),
    Way("a file that our line would include", RELAY, 3, "is not included", with_file("10-mine.conf", "SocksPort 0\n")),
    Way("a file in the folder's place", RELAY, 3, "50-bento.conf", with_file("torrc.d", "", "etc/tor")),
    Way("a service folder that is a file", RELAY, 3, "no folder of tor's own", occupied("bento-box")),
    Way("a folder of keys that is a file", RELAY, 3, "tor rejects", occupied("keys")),
    Way("a torrc that tor's user cannot read", RELAY, 3, "cannot read", unreadable_torrc),
    Way("a journal that is none", RELAY, 3, "setup.json cannot be used", no_change),
    Way("a record that is none", RELAY, 3, "relay.json cannot be used", with_file("relay.json", "{", "state")),
    Way("a set-up by the control port", RELAY, 3, "by the control port", with_file("relay.json", BY_CONTROL, "state")),
    Way("two runs at once", RELAY, 3, "another setup-relay is at work", another_run),
    Way("a control socket that is gone", RELAY, 4, "nothing there", socket_away),
    Way("a socket that is no control port", RELAY, 4, "no control port", no_control_port),
]


def told(tor: Any) -> object:
    with tor.connect() as connection:
        return running(connection)


def left_over(tor: Any) -> list[str]:
    """What an ended run must not leave."""
    paths = [*(tor.root / "etc").rglob(f"*{HIDDEN}"), tor.root / "state" / "setup.json"]
    return [str(path) for path in paths if path.exists()]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_nothing_is_changed(idle_tor: Any, setup_relay: Any, way: Way) -> None:
    tor = idle_tor
    before, said = tor.files(), told(tor)
    if way.arrange is None:
        done = setup_relay(tor.root, *way.arguments)
    else:
        with way.arrange(tor):
            done = setup_relay(tor.root, *way.arguments)
    assert done.status == way.code and way.words in done.stderr, done
    assert "error:" in done.stderr
    assert tor.files() == before and tor.alive and told(tor) == said
    assert not left_over(tor)
