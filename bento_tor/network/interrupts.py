"""Ctrl-C and SIGTERM, heard once: the first ends the work, and those after it cannot end the tidying up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """While the block runs, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones do
    nothing.

    May be nested: the outermost block counts. Outside the main thread it does nothing, as Python's rules
    want."""
    nested = any(signal.getsignal(number) is _interrupt for number in _HEARD)
    if threading.current_thread() is not threading.main_thread() or nested:
        yield
        return
    before = {number: signal.getsignal(number) for number in _HEARD}
    for number in _HEARD:
        if before[number] is not signal.SIG_IGN:  # nohup, a background job: to be left alone is what the user wants
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _HEARD:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
