"""A courier as a box has it, whose parser is hostile code from its first byte on: what it could do then, it says."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bento_tor.courier import process
from bento_tor.courier.courier import Settings
from bento_tor.egress import grants
from bento_tor.egress.grants import Grant
from bento_tor.egress.link import KeeperLine
from bento_tor.errors import Refused
from bento_tor.sandbox.seccomp import compile_parser

UID = 1_880_900_003
_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int) -> None:
    if _libc[name](*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def attempts(parent: int) -> dict[str, Callable[[], object]]:
    return {
        "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "write": lambda: os.open("/tmp/mark", os.O_WRONLY | os.O_CREAT),  # noqa: S108 - it must not come to be
        "list": lambda: os.listdir("/"),
        "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "kill": lambda: os.kill(parent, 0),
        "ptrace": lambda: call("ptrace", 16, parent, 0, 0),
        "memory": lambda: call("process_vm_readv", parent, 0, 0, 0, 0, 0),
        "mount": lambda: call("mount", 0, 0, 0, 0, 0),
        "setuid": lambda: call("setuid", 0),
        "unshare": lambda: call("unshare", 0x10000000),
        "prctl": lambda: call("prctl", 4, 1, 0, 0, 0),
        "hog": lambda: bytearray(256 << 20),
    }


@contextmanager
def reach(address: str, dial: Callable[[], socket.socket | int]) -> Iterator[object]:
    """Instead of the client library. At another port it stays, whatever becomes of its function."""
    if address.endswith(":81"):
        while True:
            time.sleep(1)
    said = []
    for name, attempt in attempts(os.getppid()).items():
        try:
            attempt()
            said.append(f"{name} worked")
        except (PermissionError, MemoryError):
            pass
        except OSError as why:
            said.append(f"{name} {why}")
    streams = 0
    while isinstance(dial(), socket.socket):
        streams += 1
    raise Refused(f"{said} and {streams} streams")
    yield


def ask(path: str, place: str) -> socket.socket:
    """An errand of the function's."""
    function = socket.socket(socket.AF_UNIX)
    function.settimeout(60)
    function.connect(path)
    function.sendall(bytes([len(place)]) + place.encode() + b"\x03\0\0\0\x20" + bytes(32))
    return function


def workers(courier: int) -> str:
    """What the courier has forked."""
    return Path(f"/proc/{courier}/task/{courier}/children").read_text()


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit("it did not come to be")
        time.sleep(0.05)


def main(socks: str, address: str) -> None:
    """Say what it says."""
    host, port = socks.split(":")
    settings = Settings(socks=(host, int(port)), boxes=2, visits=3, carried_bytes=1 << 20)
    started = process.start(settings, reach, compile_parser(), uid=UID if os.geteuid() == 0 else None)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as door:
        path = str(Path(folder) / "door")
        door.bind(path)
        door.listen()
        keeper = KeeperLine(started.keeper)
        keeper.offer(1, door)
        started.box.send(grants.encode(Grant(1, "tor")))
        ask(path, f"{address}:81").close()
        until(lambda: workers(started.pid))
        with ask(path, f"{address}:80") as function:
            answer = b""
            while data := function.recv(4096):
                answer += data
        keeper.end(1)
        until(lambda: not workers(started.pid))
        print(answer[5:].decode())
    started.keeper.close()
    os.waitpid(started.pid, 0)


main(*sys.argv[1:])
