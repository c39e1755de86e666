"""The proxy from end to end: curl, a SOCKS port here, real circuits, a box, and a web server where nobody else is."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bento_tor.client import load
from bento_tor.client.source import make_call
from bento_tor.network import Network

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

EGRESS = Path(__file__).parent.parent / "egress"
# User ids that no other box of these tests has.
CONFIG = """
first_uid = 1880600000
ready = 2
[policy]
egress = ["exit"]
connections = 8
egress_rules = ["reject 93.184.216.35:*"]
egress_bytes = 1000000000
[policy.limits]
wall_s = 120
memory_bytes = 67108864
"""
HEAD = struct.Struct("!BI")


def fixtures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("proxy_world", EGRESS / "world_fixtures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Outside:
    """A box that reaches a world of its own. `address`: its onion address."""

    box: Any
    address: str
    network: Network


@pytest.fixture(scope="module")
def outside(tor_network: Network, running_box, tmp_path_factory) -> Iterator[Outside]:
    """Its clients come by an onion service; its functions leave by the world's cable."""
    world_fixtures, state = fixtures(), tmp_path_factory.mktemp("proxy") / "s"
    with (
        world_fixtures.make_world() as world,
        world_fixtures.publish_box(world, tor_network, running_box, state, CONFIG) as box,
    ):
        yield Outside(box, box.told["address"], tor_network)


@contextmanager
def proxy(outside: Outside, home: Path, *more: str) -> Iterator[str]:
    """`client proxy` as a user starts it; where it listens. Ctrl-C ends it, and nothing of it is left."""
    environment = os.environ | {"BENTO_TOR_KEYRING": str(home / "keyring.json")}
    command = [sys.executable, "-m", "bento_tor.cli", "client", "proxy", "--json", "--listen", "127.0.0.1:0"]
    command += [*more, "--box", outside.address, "--network", str(outside.network.directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        socks = json.loads(line)["socks"]
        yield socks
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0, process.stderr.read()
        assert "Traceback" not in process.stderr.read()
        host, _, port = socks.rpartition(":")
        with pytest.raises(OSError):
            socket.create_connection((host, int(port)), timeout=5)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


def curl(socks: str, *words: str) -> list[str]:
    return ["curl", "-sS", "-m", "60", "--socks5-hostname", socks, *words]


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=90)


def test_programs_that_only_speak_socks_reach_what_the_box_may(outside: Outside, tmp_path: Path) -> None:
    with proxy(outside, tmp_path) as socks:
        done = run(*curl(socks, "http://web.example.com/hello"))
        assert (done.returncode, done.stdout) == (0, b"/hello at 93.184.216.34"), done.stderr

        # Twenty at once, more than the box gives one session: those wait for their turn.
        many = [
            subprocess.Popen(curl(socks, f"http://web.example.com/{n}"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for n in range(20)
        ]
        found = [(each.communicate(timeout=90), each.returncode) for each in many]
        assert [out for (out, _), _ in found] == [b"/%d at 93.184.216.34" % n for n in range(20)], found

        # A large one, while another takes nothing.
        slow = socket.create_connection(("127.0.0.1", int(socks.rpartition(":")[2])))
        slow.sendall(b"\5\1\0\5\1\0\3\x0fweb.example.com\0\x50GET /bytes/30000000 HTTP/1.0\r\n\r\n")
        done = run(
            *curl(socks, "-o", str(tmp_path / "big"), "-w", "%{speed_download}", "http://web.example.com/bytes/6000000")
        )
        big = (tmp_path / "big").read_bytes()
        assert (done.returncode, len(big)) == (0, 6_000_000), done.stderr
        assert big == (b"/bytes/6000000 at 93.184.216.34" * 200_000)[:6_000_000]
        slow.close()

        # Both directions, and a half-close: the echo ends when we do.
        with socket.create_connection(("127.0.0.1", int(socks.rpartition(":")[2]))) as echo:
            echo.settimeout(60)
            echo.sendall(b"\5\1\0\5\1\0\3\x0fweb.example.com\x27\x0f" + b"to the end")
            echo.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: echo.recv(4096), b"")) == b"\5\0\5\0\0\1" + bytes(6) + b"to the end"

        for target, code in (
            ("other.example.com", 4),  # no address of it may be reached: told as if there were none
            ("93.184.216.35", 2),  # the operator's own rule
            ("127.0.0.1", 2),  # the box's own machine
            ("nowhere.example.com", 4),
            ("web.example.com:81", 5),
        ):
            done = run(*curl(socks, f"http://{target}/"))
            assert done.returncode == 97, (target, done)  # curl: the proxy refused
            assert f"({code})".encode() in done.stderr, (target, done.stderr)
        assert run(*curl(socks, "http://web.example.com/still")).stdout == b"/still at 93.184.216.34"


def test_programs_may_stream_under_cover(outside: Outside, tmp_path: Path) -> None:
    with proxy(outside, tmp_path, "--cover", "199200", "--seconds", "60") as socks:
        done = run(*curl(socks, "http://web.example.com/bytes/200000"))
        assert (done.returncode, len(done.stdout)) == (0, 200_000), done.stderr
        assert run(*curl(socks, "http://127.0.0.1/")).returncode == 97


FETCH = """# /// script
# dependencies = ["requests"]
# [tool.bento]
# egress = "exit"
# ///
import requests
def fetch(url):
    with requests.get(url, stream=True, timeout=30) as answer:
        for piece in answer.iter_content(16384): api.send(piece)
"""


def test_a_page_comes_under_cover(outside: Outside, bento, tmp_path: Path) -> None:
    (tmp_path / "fetch.py").write_text(FETCH)
    there = ["--box", outside.address, "--network", str(outside.network.directory), "--rate", "99600", "--raw"]
    big = "http://web.example.com/bytes/100000"
    done = bento("client", "cover", "fetch.py", big, *there, "--seconds", "6")
    assert (done.returncode, len(done.stdout)) == (0, 100_000), done.stderr
    done = bento("client", "cover", "fetch.py", "http://other.example.com/", *there, "--seconds", "3")
    assert (done.returncode, done.stdout) == (8, ""), done.stderr
    assert "policy does not allow it" in done.stderr


SOURCE = load("proxy")


@pytest.mark.parametrize(
    "frames",
    [
        [b""], [b"\1"], [HEAD.pack(0, 1)], [HEAD.pack(9, 1)], [HEAD.pack(4, 7) + b"x"], [HEAD.pack(2, 0)],
        [HEAD.pack(1, 1) + b"\0\x50web.example.com"] * 2,
        [HEAD.pack(1, 2**32 - 1) + b"\0\x50web.example.com", HEAD.pack(1, 5) + b"\0\x50web.example.com"],
        [HEAD.pack(1, 1) + b"\0\x50web.example.com", HEAD.pack(4, 1) + b"before it is open"],
        [HEAD.pack(1, n + 1) + b"\0\x50silent.example.com" for n in range(257)],
    ],
    ids=["empty", "cut", "no kind", "other kind", "other number", "never opened", "twice", "back", "early", "many"],
)  # fmt: skip
def test_a_client_that_lies_ends_its_own_session(outside: Outside, frames: list[bytes]) -> None:
    with outside.box.connect() as there:
        session = there.run(SOURCE, make_call("proxy"))
        for frame in frames:
            session.send(frame)
        assert session.wait().word == "raised"


def test_more_than_the_credit_ends_it_too_and_odd_names_are_refused(outside: Outside) -> None:
    with outside.box.connect() as there:
        session = there.run(SOURCE, make_call("proxy"))
        for number, name in enumerate((b"", b"\0" * 9, b"a" * 300, b"\xff" * 8, b"x" * 256), 1):
            session.send(HEAD.pack(1, number) + b"\0\x50" + name)
        refused = {HEAD.unpack_from(session.maybe_receive(timeout_s=30)) for _ in range(5)}
        assert refused == {(3, number) for number in range(1, 6)}
        # An end that takes nothing: what we send stays in the function.
        session.send(HEAD.pack(1, 9) + b"\0\x51web.example.com")
        assert session.maybe_receive(timeout_s=30) == HEAD.pack(3, 9) + b"\5"
        session.send(HEAD.pack(1, 10) + b"\x27\x0fweb.example.com")
        assert session.maybe_receive(timeout_s=30) == HEAD.pack(2, 10)
        session.send(HEAD.pack(7, 10) + b"\xff" * 64)
        for _ in range(64):
            session.send(HEAD.pack(4, 10) + bytes(300_000))
        assert session.wait().word == "raised"
