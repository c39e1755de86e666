"""`api.box`, as a function sees it: functions of other boxes, by tokens that the user packed with this one. Text that
travels; standard library only.

The box sends it before the code, to functions whose manifest says `box = true`, where its policy lets them use other
boxes; the driver makes `Box` the function's `api.box`. Each errand is a connection of its own to a unix socket of the
sandbox's, behind which the courier (bento_tor/courier) speaks the protocol of boxes: Execute, Open and Shutdown, by
tokens; there is no way to store anything. The connection says one byte of length and so many letters, the address; from
then on frames of one byte of type, four bytes of length (big-endian), and a body:

    function -> courier  0x01 RUN       32 bytes of token, 2 bytes of length, the call's name, its arguments (literals)
                         0x02 ATTACH    32 bytes of token, 8 bytes of offset
                         0x03 SHUTDOWN  32 bytes of token
                         0x04 INPUT     1 byte flags (1: end of this message, 2: no more input), up to 64 KiB of data
                         0x05 STOP      end the session
    courier -> function  0x81 STARTED   the session's token
                         0x82 MESSAGE   1 byte flags (1: end of this message), up to 64 KiB of data
                         0x83 ENDED     JSON object: outcome, detail, log
                         0x84 DONE      it is erased
                         0x85 REFUSED   last word: a word, a space, a sentence
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import socket
import threading
from typing import Any

RUN, ATTACH, SHUTDOWN, INPUT, STOP = 0x01, 0x02, 0x03, 0x04, 0x05
STARTED, MESSAGE, ENDED, DONE, REFUSED = 0x81, 0x82, 0x83, 0x84, 0x85
END, EOF = 0x01, 0x02
MAX_PART_BYTES = 64 * 1024
DOOR = "/run/box.sock"


class Box:
    """Another box, by its address: `<56 letters>.onion`, or that with a port. A context manager: leaving it closes what
    it has opened; what was started there goes on.

    Tokens are 32 bytes, or tickets (`bento1:<box>:<role>:<token>`) as users pass them on. Everything raises
    PermissionError where either box refuses, OSError (EDQUOT) where it is too much, ConnectionError where the other box
    is not there, or breaks the protocol, and TimeoutError where nothing comes for `timeout_s`: then the session is to
    be left."""

    def __init__(self, address: str, timeout_s: float | None = None) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._sessions: list[Session] = []

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, invocation: str | bytes, name: str, *args: object, **kwargs: object) -> Session:
        """Start a session of the function of that invocation token: call `name` with these arguments, literals."""
        call = name.encode()
        body = len(call).to_bytes(2, "big") + call + repr((list(args), kwargs)).encode()
        return self._open(RUN, self._token(invocation, "invocation") + body)

    def attach(self, session: str | bytes, offset: int = 0) -> Session:
        """Come back to a session of that token; its output from `offset` on."""
        return self._open(ATTACH, self._token(session, "session") + offset.to_bytes(8, "big"))

    def shutdown(self, token: str | bytes) -> None:
        """Erase the function of that shutdown token."""
        with _Line(self.address, self._timeout_s) as line:
            line.say(SHUTDOWN, self._token(token, "shutdown"))
            line.hear(DONE)

    def close(self) -> None:
        """Leave all its sessions."""
        for session in self._sessions:
            session.close()

    def _open(self, kind: int, body: bytes) -> Session:
        line = _Line(self.address, self._timeout_s)
        try:
            line.say(kind, body)
            session = Session(line, self.address, line.hear(STARTED))
        except BaseException:
            line.close()
            raise
        self._sessions.append(session)
        return session

    def _token(self, text: str | bytes, role: str) -> bytes:
        if isinstance(text, bytes) and len(text) == 32:
            return text
        parts = text.strip().split(":") if isinstance(text, str) else []
        if len(parts) < 4 or parts[0] != "bento1" or parts[-2] != role:
            raise ValueError(f"this is no {role} token, nor a ticket of one")
        if _named(":".join(parts[1:-2])) != _named(self.address):
            raise ValueError("this ticket is another box's")
        return base64.urlsafe_b64decode(parts[-1] + "=" * (-len(parts[-1]) % 4))


class Session:
    """A session at another box. One thread may send while another receives."""

    def __init__(self, line: _Line, address: str, token: bytes) -> None:
        self.token = token
        encoded = base64.urlsafe_b64encode(token).decode().rstrip("=")
        self.ticket = f"bento1:{address}:session:{encoded}"  # with it, who has it may come back
        self.outcome: str | None = None  # how it ended, once it has: returned, raised, killed:time and so on
        self.detail = ""
        self.log = ""
        self._line = line

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(self, data: str | bytes | bytearray | memoryview, *, end: bool = True) -> None:
        """Send one message, or with `end=False` a part of one. Waits while the other function takes no more."""
        view = memoryview(data.encode() if isinstance(data, str) else data)
        view = view.cast("B") if view.contiguous else memoryview(view.tobytes())
        for start in range(0, len(view) or 1, MAX_PART_BYTES):
            last = end and start + MAX_PART_BYTES >= len(view)
            self._line.say(INPUT, bytes([END if last else 0]), view[start : start + MAX_PART_BYTES])

    def finish(self) -> None:
        """There will be no more input."""
        self._line.say(INPUT, bytes([EOF]))

    def recv(self) -> bytes:
        """The next message; one that its function's end cut short comes as far as it got. Raises EOFError when it has
        ended: `outcome` says how."""
        parts: list[bytes] = []
        while self.outcome is None:
            kind, body = self._line.next()
            if kind == MESSAGE:
                parts.append(body[1:])
                if body[0] & END:
                    return b"".join(parts)
            else:
                self._end(body)
        if parts:
            return b"".join(parts)
        raise EOFError(f"the session has ended: {self.outcome}")

    read = recv

    def __iter__(self) -> Any:
        with contextlib.suppress(EOFError):
            while True:
                yield self.recv()

    def wait(self) -> str:
        """Read, and throw away, what is left of its output; how it ended."""
        while self.outcome is None:
            kind, body = self._line.next()
            if kind != MESSAGE:
                self._end(body)
        return self.outcome

    def end(self) -> None:
        """Stop it now."""
        self._line.say(STOP)

    def close(self) -> None:
        """Leave it: it goes on."""
        self._line.close()

    def _end(self, body: bytes) -> None:
        told = json.loads(body)
        self.detail, self.log, self.outcome = told["detail"], told["log"], told["outcome"]


class _Line:
    """One connection to the courier."""

    def __init__(self, address: str, timeout_s: float | None) -> None:
        self._sending = threading.Lock()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout_s)
        place = _named(address).encode()
        try:
            self._sock.connect(DOOR)
            self._sock.sendall(bytes([len(place)]) + place)
        except ConnectionRefusedError as why:
            self.close()
            raise PermissionError(
                errno.EACCES,
                "this session may use no other box: a function of another box has started it, or the way is closed",
            ) from why
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def say(self, kind: int, *parts: bytes | memoryview) -> None:
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what it said last tells why
            self._sock.sendall(kind.to_bytes(1, "big") + sum(map(len, parts)).to_bytes(4, "big"))
            for part in parts:
                self._sock.sendall(part)

    def hear(self, kind: int) -> bytes:
        heard, body = self.next()
        if heard != kind:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the courier says what it never says")
        return body

    def next(self) -> tuple[int, bytes]:
        header = self._exactly(5)
        kind, body = header[0], self._exactly(int.from_bytes(header[1:], "big"))
        if kind == REFUSED:
            raise _refusal(body.decode())
        return kind, body

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._sock.recv(min(count, 1 << 20))
            if not piece:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the connection to the other box was given up")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def _named(address: str) -> str:
    """With its port."""
    return address if ":" in address else f"{address}:80"


def _refusal(text: str) -> Exception:
    word, _, sentence = text.partition(" ")
    if word == "full":
        return OSError(errno.EDQUOT, sentence)
    if word in ("policy", "refused"):
        return PermissionError(errno.EACCES, sentence)
    return ConnectionAbortedError(errno.ECONNABORTED, sentence)
