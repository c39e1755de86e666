"""The pipes and sockets between a sandbox and what starts it, from before it is started until it runs."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from dataclasses import dataclass
from io import FileIO

from bento_tor.errors import SandboxError
from bento_tor.sandbox.spec import Fds

_LOG_HEAD_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Plumbing:
    """Both ends of everything. All are closed on exec, unless passed on by name."""

    control: socket.socket
    inner_control: socket.socket
    log: FileIO
    inner_log: FileIO
    info: FileIO
    inner_info: FileIO
    release: FileIO
    inner_block: FileIO
    inner_driver: FileIO
    inner_filter: FileIO

    @classmethod
    def open(cls, driver: bytes, seccomp: bytes) -> Plumbing:
        """Make them. Raises SandboxError where the process has no more descriptors."""
        try:
            control, inner_control = socket.socketpair()
            log, inner_log = _pipe()
            info, inner_info = _pipe()
            inner_block, release = _pipe()
            inner_driver, inner_filter = _memory("driver", driver), _memory("filter", seccomp)
        except OSError as why:
            raise SandboxError(f"no descriptors are left for a sandbox: {why.strerror}") from why
        outer, blocks = (control, inner_control, log, inner_log, info, inner_info), (release, inner_block)
        return cls(*outer, *blocks, inner_driver, inner_filter)

    def fds(self) -> Fds:
        """The ends that bubblewrap gets."""
        return Fds(
            control=self.inner_control.fileno(),
            driver=self.inner_driver.fileno(),
            filter=self.inner_filter.fileno(),
            info=self.inner_info.fileno(),
            block=self.inner_block.fileno(),
        )

    def close_inner(self) -> None:
        """Close our copies of the ends that bubblewrap has by now."""
        for end in (self.inner_control, self.inner_log, self.inner_info, self.inner_block):
            end.close()
        for memory in (self.inner_driver, self.inner_filter):
            memory.close()

    def close(self) -> None:
        """Close all."""
        self.close_inner()
        for end in (self.control, self.log, self.info, self.release):
            end.close()

    def read_pid(self, timeout_s: float) -> int:
        """The process id of the sandbox's first process, once bubblewrap has made it. Raises SandboxError."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self.info, select.POLLIN)
        text = b""
        while b"}" not in text:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise SandboxError("bubblewrap does not get on", hint="is the machine overloaded?")
            piece = self.info.read(4096)
            if not piece:
                raise self.failure()
            text += piece
        return int(json.loads(text)["child-pid"])

    def failure(self) -> SandboxError:
        """Why bubblewrap ended, in its own words."""
        os.set_blocking(self.log.fileno(), False)
        text = (self.log.read(_LOG_HEAD_BYTES) or b"").decode("utf-8", "replace").strip()
        hint = "start a box as root, or let ordinary users make user namespaces" if "namespace" in text else ""
        return SandboxError(f"bubblewrap cannot make a sandbox: {text or 'it gives no reason'}", hint=hint)


def _pipe() -> tuple[FileIO, FileIO]:
    read_fd, write_fd = os.pipe()
    return FileIO(read_fd, "rb"), FileIO(write_fd, "wb")


def _memory(name: str, data: bytes) -> FileIO:
    """A file that is nowhere, to be read from its beginning."""
    file = FileIO(os.memfd_create(name), "wb+")
    file.write(data)
    file.seek(0)
    return file
