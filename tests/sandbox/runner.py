"""Runs one function in one cell and tells what came of it. Shared by the tests; travels along for the rootless one."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind, Outcome, Seen, judge
from bento_tor.sandbox import frames
from bento_tor.sandbox.jail import Jail

DEADLINE_S = 60.0


@dataclass
class Talk:
    """What a function has said so far."""

    messages: list[bytes] = field(default_factory=list)
    log: bytes = b""
    padding: int = 0
    ready: bool = False
    said: Outcome | None = None
    illegal: str = ""
    outcome: Outcome = field(default_factory=Outcome.lost)
    _parts: list[bytes] = field(default_factory=list)

    def take(self, frame: frames.Frame, answer: Callable[[], bytes], control: socket.socket) -> None:
        match frame:
            case frames.Ready():
                self.ready = True
            case frames.Message(data, end):
                self._parts.append(data)
                if end:
                    self.messages.append(b"".join(self._parts))
                    self._parts.clear()
            case frames.Padding(length):
                self.padding += length
            case frames.HostRequest():
                control.sendall(answer())
            case frames.Returned():
                self.said = Outcome.returned()
            case frames.Raised(text):
                self.said = Outcome.raised(text)
            case frames.Exited(status):
                self.said = Outcome.exited(status)
            case frames.Illegal(why):
                self.illegal = why


def converse(
    control: socket.socket, log_fd: int, sent: bytes, answer: Callable[[], bytes] = lambda: frames.encode_host_reply({})
) -> Talk:
    """Write `sent` and read everything until both streams end."""
    talk, reader = Talk(), frames.FrameReader()
    control.setblocking(False)
    deadline = time.monotonic() + DEADLINE_S
    waiting: dict[Any, None] = {control: None, log_fd: None}
    while waiting:
        readable, writable, _ = select.select(
            list(waiting), [control] if sent and control in waiting else [], [], deadline - time.monotonic()
        )
        if not readable and not writable:
            raise TimeoutError("the function neither ends nor speaks")
        if writable:
            try:
                sent = sent[control.send(sent) :]
            except OSError:
                sent = b""
        if log_fd in readable and not _read_log(log_fd, talk):
            del waiting[log_fd]
        if control in readable:
            try:
                data = control.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                del waiting[control]
            for frame in reader.feed(data):
                control.setblocking(True)
                talk.take(frame, answer, control)
                control.setblocking(False)
    return talk


def _read_log(log_fd: int, talk: Talk) -> bool:
    data = os.read(log_fd, 1 << 16)
    talk.log += data
    return bool(data)


def run(
    jail: Jail,
    source: str | bytes,
    call: str = "f",
    arguments: str = "([], {})",
    *,
    limits: Limits | None = None,
    then: bytes = b"",
    host: Callable[[], bytes] = lambda: frames.encode_host_reply({}),
    during: Callable[[Any], None] = lambda cell: None,
) -> Talk:
    """Run it to its end, with `then` as input; `during` is called once it has been started."""
    text = source.encode() if isinstance(source, str) else source
    cell = jail.start(limits or Limits())
    seen: Seen | None = None
    try:
        during(cell)
        talk = converse(cell.control, cell.log.fileno(), frames.encode_code(call, arguments, text) + then, host)
        seen = cell.wait(10)
    finally:
        if seen is None:
            cell.kill(Kind.KILLED_OPERATOR)
            cell.collect()
    talk.outcome = judge(talk.said, seen, ready=talk.ready)
    return talk
