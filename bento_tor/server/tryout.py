"""A box for one trial on this machine: real in all but Tor, in a temporary folder, gone when its user is.

It runs in a process of its own, which owns the folder: whatever ends its user, kill -9 too, ends the box and removes
the folder. No tor is needed. Functions that ask for egress get the broker, under an exit policy that the user names in
place of a relay's.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from bento_tor.errors import BentoError, SandboxError
from bento_tor.policy.document import Policy
from bento_tor.server.child import end_child
from bento_tor.server.serve import Serving, serve
from bento_tor.server.settings import BoxConfig

log = logging.getLogger(__name__)

NOTHING = "reject *:*"
# The ports of the web. What no function may ever reach (this machine, private networks) stays out by itself.
WEB = "accept *:80\naccept *:443\nreject *:*"
_PR_SET_PDEATHSIG = 1
_END_S = 30
# A unix socket's path has 107 bytes at most, and ours is some way below.
_MAX_PLACE = 70
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Apart from those of a box that serves on this machine: the kernel's rules know a broker by its user id.
_FIRST_UIDS = range(1_879_100_003, 1_879_700_003, 3)


class Trial(msgspec.Struct, frozen=True):
    """A box that is up. `limits`: which hold for a session as a whole."""

    address: str
    limits: tuple[str, ...]


class _Told(msgspec.Struct, frozen=True):
    """What its process says: it is up, or why it cannot be."""

    maybe_trial: Trial | None = None
    failure: str = ""
    hint: str = ""
    exit_code: int = 1


@contextmanager
def trial(policy: Policy, images: Path, *, exit_policy: str = NOTHING) -> Iterator[Trial]:
    """A box with this policy. To be entered from the main thread where there are no others: it forks.

    Raises what `serve` raises."""
    read_fd, write_fd = os.pipe()
    user = os.getpid()
    # An interrupt must not come between: the child would go on with what is its user's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _become_box(policy, images, exit_policy, user, write_fd)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as pipe:
            told = pipe.readline()
        yield _up(msgspec.json.decode(told, type=_Told) if told else _Told(failure="the box has ended by itself"))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        end_child(pid, "box", within_s=_END_S)


def _up(told: _Told) -> Trial:
    if told.maybe_trial is None:
        raise SandboxError(told.failure, hint=told.hint, exit_code=told.exit_code)
    return told.maybe_trial


def _become_box(policy: Policy, images: Path, exit_policy: str, user: int, told_fd: int) -> NoReturn:
    """In the child: serve until its user ends it, or ends."""
    try:
        # A Ctrl-C at the terminal is for the user's process, which then ends this one.
        os.setsid()
        for number in _INTERRUPTS:
            signal.signal(number, _interrupt if number == signal.SIGTERM else signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        place = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _MAX_PLACE else "/tmp"  # noqa: S108
        with tempfile.TemporaryDirectory(prefix="bento-test-", dir=place, ignore_cleanup_errors=True) as folder:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
            if os.getppid() == user:
                _serve(policy, images, exit_policy, Path(folder), told_fd)
    except BentoError as error:
        told = _Told(failure=error.message, hint=error.hint, exit_code=error.exit_code)
        with suppress(OSError):
            os.write(told_fd, msgspec.json.encode(told) + b"\n")
    except KeyboardInterrupt:
        pass
    except Exception:
        log.exception("the box's machinery broke")
    finally:
        os._exit(0)


def _serve(policy: Policy, images: Path, exit_policy: str, folder: Path, told_fd: int) -> None:
    config = BoxConfig(
        state=str(folder / "s"),
        images=str(images),
        socks=f"unix:{folder}/no-tor" if "tor" in policy.egress else "",
        first_uid=_FIRST_UIDS[os.getpid() % len(_FIRST_UIDS)],
        limits="rlimits-only",
        ready=0,
        policy=policy,
    )

    def ready(serving: Serving) -> None:
        told = _Told(Trial(serving.socket, serving.limits))
        # Where its user has gone meanwhile, the signal that ends us is on its way.
        with suppress(BrokenPipeError), os.fdopen(told_fd, "wb") as pipe:
            pipe.write(msgspec.json.encode(told) + b"\n")

    serve(config, ready=ready, maybe_exit_policy=exit_policy)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
