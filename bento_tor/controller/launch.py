"""Start a tor of our own from a torrc, wait until it can be used, end it.

What tor can be asked is asked. Only a tor that died is read about in its log: its own last warnings are the
reason.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bento_tor.controller.bootstrap import Bootstrap, read_bootstrap
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.processes import ProcessId, end, find_program, start
from bento_tor.controller.tor import Tor
from bento_tor.errors import TorError, TorTimeout

_POLL_S = 0.1
# With ShutdownWaitLength 0 a second is enough. One tor in about thirty hangs after its "Clean shutdown finished"
# (all its threads in a futex wait), deaf to every signal but SIGKILL: nothing is lost then.
STOP_PATIENCE_S = 3.0
_LOG_TAIL_BYTES = 64 * 1024
_COMPLAINT = re.compile(r"\[(warn|err)\] |^=+ T=|Assertion|\bfatal\b|No space left")

Report = Callable[[Bootstrap], None]


@dataclass(frozen=True)
class LaunchedTor:
    """A tor process that we started."""

    name: str
    process: ProcessId
    control: Endpoint
    log: Path

    def connect(self, *, timeout_s: float) -> Tor:
        """Its control connection, waited for. Raises TorError where it dies, TorTimeout where it is not there
        in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            if self.control.path is None or self.control.path.exists():
                try:
                    return connect(self.control, timeout_s=max(deadline - time.monotonic(), 0.1))
                except TorError as why:
                    if time.monotonic() > deadline:
                        raise self.too_slow(f"did not open its control port: {why.message}") from why
            elif time.monotonic() > deadline:
                raise self.too_slow(f"did not open its control port {self.control}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises TorError, with its own last complaints, where it has died."""
        if not self.process.alive:
            raise died(self.name, self.log)

    def too_slow(self, what: str) -> TorTimeout:
        """The error for a tor that lives but does not get on."""
        return TorTimeout(f"tor {self.name} {what}", hint=f"its log: {self.log}")

    def stop(self) -> bool:
        """Ask it to end, then insist. Returns whether it had to be killed."""
        return bool(end([self.process], ask=signal.SIGINT, patience_s=STOP_PATIENCE_S))


def launch(name: str, torrc: Path, *, control: Endpoint, log: Path, defaults: Path) -> LaunchedTor:
    """Start tor with `torrc` (and `defaults` instead of the system's torrc-defaults); do not wait for it.

    Raises TorError where it cannot be started at all."""
    argv = [find_program("tor", "tor"), "--defaults-torrc", str(defaults), "-f", str(torrc)]
    try:
        return LaunchedTor(name, start(argv, output=log), control, log)
    except OSError as why:
        raise TorError(f"tor {name} cannot be started: {why.strerror}") from why


def wait_bootstrapped(launched: LaunchedTor, tor: Tor, *, timeout_s: float, report: Report | None = None) -> Bootstrap:
    """Wait until that tor is at 100 %. `timeout_s` is the longest wait without any progress, in seconds.

    Raises TorTimeout with tor's own TAG and SUMMARY, TorError where the process dies."""
    last = Bootstrap(-1, "starting", "")
    deadline = time.monotonic() + timeout_s
    while not last.done:
        launched.check()
        now = read_bootstrap(tor)
        if now.progress > last.progress:
            deadline = time.monotonic() + timeout_s
        elif time.monotonic() > deadline:
            raise stuck(launched.name, now, timeout_s, launched.log)
        if now != last and report is not None:
            report(now)
        last = now
        if not last.done:
            time.sleep(_POLL_S)
    return last


def stuck(name: str, where: Bootstrap, timeout_s: float, log: Path) -> TorTimeout:
    """The error for a tor without progress for `timeout_s` seconds."""
    said = "".join(f"; {line}" for line in complaints(log))
    message = f"tor {name} made no progress for {timeout_s:g} s; it is at {where.words}{said}"
    return TorTimeout(message, hint=where.hint)


def died(name: str, log: Path) -> TorError:
    """The error for a tor process that ended by itself."""
    said = "; ".join(complaints(log))
    return TorError(f"tor {name} died: {said or 'it left no warning'}", hint=_cause(said))


def complaints(log: Path, *, most: int = 3) -> tuple[str, ...]:
    """The last warnings and errors in a log of tor's, without their dates; most recent last."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ()
    found = [line.partition("] ")[2] or line for line in lines if _COMPLAINT.search(line)]
    return tuple(dict.fromkeys(line for line in found if not _is_noise(line)))[-most:]


def _is_noise(line: str) -> bool:
    # Said at each start of a private network as root; never the reason why a tor died.
    return "running Tor as root" in line or "TestingTorNetwork is set" in line or "only used in testing" in line


def _cause(said: str) -> str:
    if "Address already in use" in said:
        return "another program took a port meanwhile: try again"
    if "No space left" in said:
        return "the disk is full: free some space, or choose another directory"
    return "" if said else "somebody, or the kernel for want of memory, may have killed it"
