"""The trial: one trivial function in a real sandbox, which starts what its image has. A box whose trial fails must not
serve."""

from __future__ import annotations

import select
import time

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import chromium, frames
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.jail import Jail

_SOURCE = b"def check():\n    return 'it works'\n"
_BROWSER_SOURCE = f"""
import subprocess
def check():
    subprocess.run(["{chromium.PROGRAM}", "--version"], check=True, timeout=20)
    return 'it works'
""".encode()
_LOG_BYTES = 2000


def check(jail: Jail, timeout_s: float = 20.0) -> None:
    """See one function return in each image. Raises SandboxError, with what bubblewrap or the interpreter said,
    where one does not."""
    for place in range(len(jail.images)):
        _check(jail, place, timeout_s)


def _check(jail: Jail, place: int, timeout_s: float) -> None:
    cell = jail.start(Limits(), image=place)
    try:
        source = _BROWSER_SOURCE if jail.images[place].browser else _SOURCE
        seen = _call(cell, source, time.monotonic() + timeout_s)
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


def _call(cell: Cell, source: bytes, deadline: float) -> list[frames.Frame]:
    cell.control.sendall(frames.encode_code("check", "([], {})", source))
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
