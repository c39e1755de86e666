"""The process of one errand: forked by the courier, stripped of everything; then the client library meets the stranger.

It holds two things: the function's connection, and a line to the courier by which it asks for streams to that one box.
With its list of system calls (sandbox/seccomp.py) it opens no file and no socket, and touches no other process, also
where it was taken over from the other side.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import threading

from bento_tor.courier.errand import Errand, Reach
from bento_tor.egress.process import keep_only
from bento_tor.egress.socks5 import Reply

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_SECCOMP_MODE_FILTER = 2
_STACK_BYTES = 512 * 1024
# What the client library needs for one session beside what it has: windows, and messages being cut and joined.
_MORE_DATA_BYTES = 32 * 1024 * 1024
_FILES = 16
_NICE = 10
# Asks for a stream; the answer is one byte, SOCKS5's or ours, and with OK a socket.
ASK = b"\0"


def be(conn: socket.socket, line: socket.socket, address: str, reach: Reach, filter_: bytes) -> None:
    """Be that process, in the child of a fork. Never returns."""
    status = 1
    try:
        courier = os.getppid()
        keep_only(conn.fileno(), line.fileno())
        _confine(filter_, courier)
        for sock in (conn, line):
            sock.setblocking(True)
        Errand(conn).run(reach, address, lambda: _dial(line))
        status = 0
    except BaseException:  # noqa: S110 - there is nobody to tell: the function sees that it hangs up
        pass
    finally:
        os._exit(status)


def _confine(filter_: bytes, courier: int) -> None:
    """Raises OSError: then nothing is parsed."""
    libc = ctypes.CDLL(None, use_errno=True)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    os.close(nowhere)
    os.nice(_NICE)
    threading.stack_size(_STACK_BYTES)
    threading.excepthook = lambda args: os._exit(1)  # no memory, say: the other threads would wait for it for ever
    data = _data_bytes() + _MORE_DATA_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != courier:
        os._exit(1)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(filter_) // 8, filter_)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls cannot be loaded")


def _data_bytes() -> int:
    """What it has now, shared with the courier that it was forked from."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one line of the kernel's
        return int(file.read().split()[5]) * resource.getpagesize()


def _dial(line: socket.socket) -> socket.socket | int:
    line.send(ASK)
    answer, fds, _, _ = socket.recv_fds(line, 1, 1)
    if not answer or answer[0] != Reply.OK or not fds:
        return answer[0] if answer else Reply.FAILED
    return socket.socket(fileno=fds[0])
