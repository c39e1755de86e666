"""The hostile table, cases 43 to 52: what a function may try with the network, in the real jail, past every patch.

A row is a snippet and what it must report. After each: another session is still answered, the broker's memory and
descriptors are where they were, nothing of the sandbox is left, and the audit has its event (or none, where there is
nothing to tell).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from bento_tor.egress.grants import Caps
from bento_tor.policy.limits import MIB, Limits

pytestmark = pytest.mark.sandbox

EGRESS = Path(__file__).parent.parent / "egress"
ANSWER_S = 15.0
SPARE_BYTES = 8 * MIB


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", EGRESS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SHARED, INSIDE = load("world_fixtures"), load("inside_fixtures")

# Raw SOCKS to the door, with nothing of ours between. `tell` gives an error's name or what came of it.
PRELUDE = f"""
import _socket, array, ctypes, errno, os, socket, struct, threading, time

NEVER = {SHARED.NEVER!r}

def door(timeout=10):
    sock = _socket.socket(_socket.AF_UNIX)
    sock.settimeout(timeout)
    sock.connect('/run/egress.sock')
    return sock

def raw(host, port):
    for family, kind in ((_socket.AF_INET, 1), (_socket.AF_INET6, 4)):
        try:
            return bytes([5, 1, 0, kind]) + _socket.inet_pton(family, host) + struct.pack('!H', port)
        except OSError:
            pass
    name = host.encode()
    return bytes([5, 1, 0, 3, len(name)]) + name + struct.pack('!H', port)

def ask(host, port=80, sock=None):
    sock = sock or door()
    sock.send(b'\\x05\\x01\\x00' + raw(host, port))
    answer = b''
    while len(answer) < 4:
        piece = sock.recv(12 - len(answer))
        if not piece: return 'closed'
        answer += piece
    return answer[3]

def tell(action):
    try:
        return action()
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)

def each(actions):
    return sorted(set(map(str, map(tell, actions))))
"""


@dataclass(frozen=True)
class Case:
    """`expected`: every word that the snippet may report; `event`: what the audit gets of it."""

    number: int
    name: str
    code: str
    expected: set[str]
    event: str = ""
    policy: str = SHARED.OPEN_POLICY


ASK_ALL = "each([lambda h=h, p=p: ask(h, p) for h in {} for p in {}])"
METADATA = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "metadata.example.com"]
SPELLINGS = [
    "::ffff:10.99.0.1",
    "::10.99.0.1",
    "64:ff9b::a63:1",
    "2002:a63:1::",
    "0x7f.1",
    "2130706433",
    "017700000001",
]
BLOCKED = {"EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}
DENIED = {"2", "4"}

CASES = [
    Case(43, "loopback, control port, LAN",
         ASK_ALL.format(["127.0.0.1", "::1", "0.0.0.0", "10.99.0.1", "fd99::1"], [9050, 9051, 22, 80]),
         {"2"}, "refused"),
    Case(43, "the same without a broker",
         "each([lambda p=p: _socket.socket().connect(('10.99.0.1', p)) for p in (22, 80)])", {"ENETUNREACH"}),
    Case(44, "metadata of every cloud", ASK_ALL.format(METADATA, [80]), DENIED, "refused"),
    Case(45, "hidden private addresses", ASK_ALL.format(SPELLINGS, [80]), DENIED, "refused"),
    Case(45, "every spelling there is", ASK_ALL.format("NEVER", [80]), DENIED, "refused"),
    Case(46, "a name that means something else the second time",
         "[ask('rebind.example.com'), ask('rebind.example.com')]", {"[0, 0]", "[4, 4]"}),
    Case(46, "a name with inner answers only",
         ASK_ALL.format(["loop.example.com", "inner.example.com", "mapped.example.com"], [80]), {"4"}, "refused"),
    Case(46, "a name with mixed answers", "[ask('mixed.example.com')]", {"[0]"}),
    Case(47, "ports beside a range",
         ASK_ALL.format(["93.184.216.34"], [999, 2000, 79, 0]), {"2"}, "refused", SHARED.WEB_POLICY),
    Case(47, "ports of a range", ASK_ALL.format(["93.184.216.34"], [1000, 1999, 80]), {"0"}, "", SHARED.WEB_POLICY),
    Case(47, "IPv6 under an IPv4 rule",
         ASK_ALL.format(["2606:2800::1"], [1000, 1999]), {"2"}, "refused", SHARED.WEB_POLICY),
    Case(48, "other families",

                 "each([lambda f=f, t=t: _socket.socket(f, t) for f in (4, 5, 9, 16, 17, 21, 29, 31, 38, 40, 42, 44) "
         "for t in (1, 2, 3, 5)])", BLOCKED),
    Case(48, "raw, icmp, sctp, mptcp",

                 "each([lambda a=a: _socket.socket(*a) for a in ((2, 3, 1), (2, 2, 1), (2, 1, 132), (2, 1, 262), "
         "(10, 3, 58))])", BLOCKED),
    Case(49, "unix sockets of the host",
         "each([lambda n=n: _socket.socket(1).connect(n) "
         "for n in ('\\0bento', '/run/tor/control', '/run/dbus/system_bus_socket', '/var/run/docker.sock')])",
         {"ECONNREFUSED", "ENOENT"}),
    Case(50, "a connected socket turned elsewhere", """
def turn():
    sock = _socket.socket()
    sock.connect(('127.0.0.1', 1080))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.connect(sock.fileno(), b'\\0' * 16, 16)
    sock.connect(('93.184.216.34', 80))
def fast_open():
    _socket.socket().sendto(b'x', 0x20000000, ('93.184.216.34', 80))
def smuggle():
    sock = door()
    ours, theirs = _socket.socketpair()
    sock.sendmsg([b'\\x05\\x01\\x00'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array('i', [theirs.fileno()]))])
    theirs.close()
    assert sock.recv(2) == b'\\x05\\x00'
    # Nobody has it: the descriptor went with the message.
    return ours.recv(1) or 'dropped'
result = each([turn, fast_open, smuggle])""", {"ENETUNREACH", "EPERM", "dropped"}),
    Case(51, "connections without end", """
def storm():
    for number in range(3000):
        try:
            sock = door()
            sock.send(b'\\x05\\x01\\x00' + (raw('93.184.216.34', 80) if number % 2 else b''))
            sock.close()
        except BlockingIOError: pass  # more wait to be accepted than may
    return 'done'
result = each([storm])""", {"done"}),
    Case(51, "half requests, trickles, deaf ears", """
def linger():
    kept = []
    for number in range(40):
        try:
            sock = door(0.05)
            sock.send((b'\\x05', b'\\x05\\x01\\x00\\x05', b'\\x05\\x01\\x00' + raw('93.184.216.34', 8000))[number % 3])
            kept.append(sock)
        except OSError: pass
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for sock in kept:
            try: sock.send(b'x')
            except OSError: pass
        time.sleep(0.02)
    return 'done'
result = each([linger])""", {"done"}),
    Case(52, "a tunnel in the DNS",
         "sorted({str(ask(f'{n}.' + 'x' * 60 + '.data.example.com')) for n in range(400)})", {"4", "146"}, "names"),
    Case(52, "names that are none",
         ASK_ALL.format(["x" * 64 + ".com", "a..com", "*.com", "x.onion", "a.local", "\\x00.com"], [80]),
         {"2"}, "refused"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator:
    with SHARED.make_world() as world:
        yield world


@pytest.fixture(scope="module")
def jail() -> Iterator:
    with INSIDE.open_jail() as jail:
        yield jail


@pytest.fixture(scope="module")
def brokers(world) -> Iterator[dict]:
    """One for each policy of the table, warm: its baseline is that of a broker which has worked."""
    with SHARED.start_broker(world) as every, SHARED.start_broker(world, policy=SHARED.WEB_POLICY) as web:
        for broker in (every, web):
            for _ in range(3):
                assert SHARED.get(broker.session(), "web.example.com")
        yield {SHARED.OPEN_POLICY: every, SHARED.WEB_POLICY: web}


def wrapped(code: str) -> str:
    body = code if "\n" in code else f"result = {code}"
    lines = [*body.strip().splitlines(), "result = [result] if isinstance(result, str) else result"]
    return PRELUDE + "def f():\n" + "".join(f"    {line}\n" for line in lines) + "    return repr(result)\n"


@pytest.mark.parametrize("case", CASES, ids=[f"{case.number} {case.name}" for case in CASES])
def test_a_function_tries(case, brokers, jail, note):
    broker = brokers[case.policy]
    broker.noted()
    process = psutil.Process(broker.process.pid)
    memory, files = process.memory_info().rss, process.num_fds()
    mine = set(psutil.Process().children(recursive=True))
    talk = INSIDE.run_inside(jail, broker, wrapped(case.code), caps=Caps(connections=16), limits=Limits(wall_s=60))
    assert len(talk.messages) == 1, talk
    said = talk.messages[0].decode()
    note("network", case.number, case.name, said)
    reported = set(eval(said)) if said.startswith("['") else {said}  # noqa: S307 - our own snippet's list of words
    assert reported <= case.expected, said
    # Others are still served, and all that the function had is gone.
    began = time.monotonic()
    assert SHARED.get(broker.session(), "web.example.com")
    assert time.monotonic() - began < ANSWER_S
    assert set(psutil.Process().children(recursive=True)) <= mine
    SHARED.until(lambda: process.num_fds() <= files + 2, "the broker's descriptors are back")  # one session is new
    assert process.memory_info().rss < memory + SPARE_BYTES
    events = {noted.event for noted in broker.noted()} - {"connections"}
    assert events == ({case.event} if case.event else set())
