"""Plays a row of the table: a keeper in a process of its own, the hostile session, and a bystander meanwhile.

Travels along for the rootless run, beside `runner.py` of the sandbox's tests."""

from __future__ import annotations

import os
import socket
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import judge
from bento_tor.sandbox import frames, wire
from bento_tor.sandbox.images import Image
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper

# So few that one that is not given back is missed.
UIDS = range(1_880_090_001, 1_880_090_005)
CEILING = Limits(memory_bytes=96 * MIB, pids=16, cpu_s=20, wall_s=20, data_bytes=8 * MIB, data_inodes=1024)


@dataclass
class Played:
    """What came of it. `answered_s`: how long the bystander's whole session took meanwhile."""

    word: str
    said: list[str]
    bystander: list[str]
    answered_s: float
    log: str


class Play:
    """The box's side of a keeper."""

    def __init__(self, sock: socket.socket, pid: int, runner: Any) -> None:
        self.sock, self.pid, self._runner = sock, pid, runner
        self._ended: dict[int, Any] = {}
        self._number = 0

    def play(self, row: Any, prelude: str) -> Played:
        """The row's session to its end, and a bystander's while it runs."""
        hostile = self._start(limits_of(row), prelude, row.code)
        began = time.monotonic()
        other = self._finish(*self._start(CEILING, prelude, row.bystander))
        answered_s = time.monotonic() - began
        talk = self._finish(*hostile)
        said = [message.decode("utf-8", "replace") for message in talk.messages]
        log = talk.log.decode("utf-8", "replace")[-300:] + talk.outcome.detail[-300:]
        return Played(talk.outcome.word, said, [m.decode() for m in other.messages], answered_s, log)

    def _start(self, limits: Limits, prelude: str, code: str) -> tuple[int, socket.socket, int]:
        self._number += 1
        self.sock.send(wire.encode_request(wire.Start(self._number, limits)))
        while True:
            reply, fds = self._next()
            if isinstance(reply, wire.Started):
                break
            if isinstance(reply, wire.Failed):
                raise RuntimeError(reply.why)
        control = socket.socket(fileno=fds[0])
        source = f"{prelude}\ndef f():\n{textwrap.indent(code.strip(chr(10)), '    ')}\n"
        control.sendall(frames.encode_code("f", "([], {})", source.encode()))
        return self._number, control, fds[1]

    def _finish(self, number: int, control: socket.socket, log_fd: int) -> Any:
        try:
            talk = self._runner.converse(control, log_fd, b"")
        finally:
            control.close()
            os.close(log_fd)
        while number not in self._ended:
            self._next()
        talk.outcome = judge(talk.said, self._ended.pop(number), ready=talk.ready)
        return talk

    def _next(self) -> tuple[Any, list[int]]:
        self.sock.settimeout(60)
        data, fds, _, _ = socket.recv_fds(self.sock, wire.REPLY_BYTES, 2)
        reply = wire.decode_reply(data)
        if isinstance(reply, wire.Ended):
            self._ended[reply.number] = reply.seen
        if reply is None:
            raise RuntimeError("the keeper has gone")
        return reply, fds


def limits_of(row: Any) -> Limits:
    fields = {name: getattr(CEILING, name) for name in CEILING.__struct_fields__}
    return Limits(**{**fields, **dict(row.limits)})


@contextmanager
def keeper(image: Image, runner: Any) -> Iterator[Play]:
    """A keeper at work; at the end it ends by itself, for its box has gone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            with Jail(image, uids=UIDS if os.geteuid() == 0 else None) as jail:
                Keeper(theirs, jail, ceiling=CEILING, pool_size=0).run(os.eventfd(0))
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    try:
        yield Play(ours, pid, runner)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def left_behind(pid: int) -> list[str]:
    """What sessions have left under the keeper `pid`: processes, cgroups."""
    found = [f"process {child}" for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/bento-tor-{pid}-*/*/")]
    return found
