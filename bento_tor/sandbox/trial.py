"""The trial: one trivial function in a real sandbox. A box whose trial fails must not serve."""

from __future__ import annotations

import select
import time

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import frames
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.jail import Jail

_SOURCE = b"def check():\n    return 'it works'\n"
_LOG_BYTES = 2000


def check(jail: Jail, timeout_s: float = 20.0) -> None:
    """See one function return in each image. Raises SandboxError, with what bubblewrap or the interpreter said,
    where one does not."""
    for place in range(len(jail.images)):
        _check(jail, place, timeout_s)


def _check(jail: Jail, place: int, timeout_s: float) -> None:
    cell = jail.start(Limits(), image=place)
    try:
        seen = _call(cell, time.monotonic() + timeout_s)
    except OSError:
        seen = []
    finally:
        cell.kill(Kind.KILLED_OPERATOR)
        log = cell.log.read(_LOG_BYTES) or b""
        cell.collect()
    if frames.Message(b"it works", True) in seen and frames.Returned() in seen:
        return
    text = log.decode("utf-8", "replace").strip() or "the interpreter gave no answer in time"
    raise SandboxError(f"a function does not run in the sandbox: {text}", hint="see 'bento-tor image build'")


def _call(cell: Cell, deadline: float) -> list[frames.Frame]:
    cell.control.sendall(frames.encode_code("check", "([], {})", _SOURCE))
    reader = frames.FrameReader()
    seen: list[frames.Frame] = []
    while not reader.done:
        wait_s = deadline - time.monotonic()
        if wait_s <= 0 or not select.select([cell.control], [], [], wait_s)[0]:
            break
        data = cell.control.recv(4096)
        if not data:
            break
        seen += reader.feed(data)
    return seen
