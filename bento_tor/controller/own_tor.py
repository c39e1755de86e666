"""A tor of our own for clients: started when it is needed, ended with us, its data kept so that its entry guards are
the same next time. Fresh guards for each command would sooner or later be somebody's who watches.

The data folder is one process's at a time. A second one beside it starts its tor in a copy of that folder, with the
same guards, and throws the copy away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jinja2

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import Report, launch, wait_bootstrapped
from bento_tor.controller.processes import identify
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConfigError, TorTimeout
from bento_tor.resources import read_text

_TEMPLATE = "own_client.torrc"
_POLL_S = 0.2
# What a copy needs: the guards, and what spares it the download of the whole network.
_COPIED = ("state", "cached-certs", "cached-microdesc-consensus", "cached-microdescs", "cached-microdescs.new")
_GUARD_LINE = b"\nGuard in="


@dataclass(frozen=True)
class OwnTor:
    """A running, bootstrapped tor that is ours alone."""

    tor: Tor
    socks: Endpoint


@contextmanager
def own_tor(
    folder: Path, lines: Sequence[str] = (), *, timeout_s: float, report: Report | None = None
) -> Iterator[OwnTor]:
    """Start it, with these further torrc lines, and wait until it can build circuits; end it afterwards.

    `folder` is made where it is missing. `timeout_s`: the longest wait without any progress, in seconds. Raises
    ConfigError for a folder that cannot be used, TorError and TorTimeout."""
    with ExitStack() as stack:
        data = stack.enter_context(_data_folder(folder, timeout_s))
        torrc = _render(data, lines)
        if not _has_guards(data):
            # The first time of all. tor writes its guards down after 30 seconds, or when it ends: from then on they
            # are there for every process.
            with _running(data, torrc, timeout_s, report):
                pass
        yield stack.enter_context(_running(data, torrc, timeout_s, report))


@contextmanager
def _running(data: Path, torrc_text: str, timeout_s: float, report: Report | None) -> Iterator[OwnTor]:
    control, socks = Endpoint.unix(data / "control"), Endpoint.unix(data / "socks")
    torrc, defaults, log = data / "torrc", data / "torrc-defaults", data / "tor.log"
    try:
        torrc.write_text(torrc_text, encoding="utf-8")
        defaults.touch()
        for stale in (log, data / "control"):
            stale.unlink(missing_ok=True)
    except OSError as why:
        raise ConfigError(f"cannot keep a tor in {data}: {why.strerror}") from why
    launched = launch("of our own", torrc, control=control, log=log, defaults=defaults)
    try:
        with launched.connect(timeout_s=timeout_s) as tor:
            tor.ask("TAKEOWNERSHIP")
            wait_bootstrapped(launched, tor, timeout_s=timeout_s, report=report)
            # It has met its guards; from here on circuits are ours to build.
            tor.set_conf([("__DisablePredictedCircuits", "1")])
            yield OwnTor(tor, socks)
    finally:
        launched.stop()


def _render(data: Path, lines: Sequence[str]) -> str:
    if any(char in str(data) for char in '"\\') or not str(data).isprintable():
        raise ConfigError(f"tor cannot use the directory {str(data)!r}", hint="choose a plain name")
    template = jinja2.Environment(  # noqa: S701 - a torrc is no HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    ).from_string(read_text("torrc_templates", _TEMPLATE))
    return template.render(data=data, lines=lines, pid=os.getpid())


@contextmanager
def _data_folder(folder: Path, timeout_s: float) -> Iterator[Path]:
    """The kept one, or where another process has it a copy of our own."""
    kept = folder / "data"
    with ExitStack() as stack:
        try:
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(folder)
            data = kept if _lock(kept, stack) else _copy(kept, folder, stack, timeout_s)
        except OSError as why:
            raise ConfigError(f"cannot keep a tor in {folder}: {why.strerror}") from why
        yield data


def _lock(folder: Path, stack: ExitStack) -> bool:
    """Whether the folder is ours until the stack is left. The lock is on the folder itself: no file is left."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copy(kept: Path, folder: Path, stack: ExitStack, timeout_s: float) -> Path:
    _wait_for_guards(kept, timeout_s)
    copy = folder / f"copy-{os.getpid()}-{time.monotonic_ns()}"
    copy.mkdir(mode=0o700)
    stack.callback(shutil.rmtree, copy, ignore_errors=True)
    for name in _COPIED:
        if (kept / name).exists():
            shutil.copyfile(kept / name, copy / name)
    return copy


def _remove_stale(folder: Path) -> None:
    """Copies of processes that were killed. Their tors have ended with them."""
    for copy in folder.glob("copy-*"):
        pid = copy.name.split("-")[1]
        if pid.isdigit() and identify(int(pid)) is None:
            shutil.rmtree(copy, ignore_errors=True)


def _has_guards(data: Path) -> bool:
    try:
        return _GUARD_LINE in (data / "state").read_bytes()
    except FileNotFoundError:
        return False


def _wait_for_guards(kept: Path, timeout_s: float) -> None:
    """Until the other process's tor has chosen its guards, and written them down."""
    deadline = time.monotonic() + timeout_s
    while not _has_guards(kept):
        if time.monotonic() > deadline:
            raise TorTimeout(
                "another command of yours is starting the tor of the exit route, and has no entry guards yet",
                hint="try again when it has got through",
            )
        time.sleep(_POLL_S)
