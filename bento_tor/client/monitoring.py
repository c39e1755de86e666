"""A box's machine, watched by functions/monitor.py: report after report over one session, and the next one where the
box's time for that is up. Owns what a report may be: figures, and a few short texts. Every byte of it is hostile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Annotated

import msgspec

from bento_tor.client.box import Box
from bento_tor.client.source import Source, make_call
from bento_tor.errors import FunctionFailed, Refused, RemoteProtocolError

# What the coarse figures of a box are worth; and the full ones.
COARSE_EVERY_S, FULL_EVERY_S = 3600.0, 1.0
# A session's last seconds, in which its function says that it has returned.
_MARGIN_S = 5.0
_MOST_BYTES = 16 * 1024

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Word = Annotated[str, msgspec.Meta(max_length=64)]


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a box tells of its machine; None: it does not."""

    cpu_count: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    cpu_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    memory_total: Count | None = None
    memory_used: Count | None = None
    disk_total: Count | None = None
    disk_used: Count | None = None
    addresses: Annotated[tuple[Word, ...], msgspec.Meta(max_length=64)] = ()
    bytes_sent: Count | None = None
    bytes_received: Count | None = None
    time: Word = ""


def watch(
    box: Box,
    source: Source,
    *,
    interval_s: float | None = None,
    count: int = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Report, None, None]:
    """Reports of the box's machine, `count` of them, or (0) on and on; by default as often as they can change.

    `source` is functions/monitor.py. Raises Refused where the box tells nothing, RemoteProtocolError for what is no
    report, FunctionFailed. What was stored for it is erased at the end."""
    policy = box.policy()
    if policy.host_stats == "none":
        raise Refused("this box tells nothing about its host", hint="its policy says so: host_stats", code="policy")
    every_s = interval_s or (FULL_EVERY_S if policy.host_stats == "full" else COARSE_EVERY_S)
    at_once = max(1, int((policy.limits.wall_s - _MARGIN_S) // max(1.0, every_s)))
    manifest = msgspec.structs.replace(source.manifest, host=policy.host_stats)
    asking = msgspec.structs.replace(source, manifest=manifest)
    told = 0
    while True:
        most = min(at_once, count - told) if count else at_once
        session = box.run(asking, make_call("monitor", every_s, most, "json"))
        begun = told
        try:
            for message in session:
                told += 1
                if told > begun + most:
                    raise _no_report()
                yield _report(message)
            outcome = session.wait()
        finally:
            if session.maybe_outcome is None:
                session.end()
            if session.maybe_shutdown is not None:
                box.shutdown(session.maybe_shutdown)
        if not outcome.succeeded or told == begun:
            raise FunctionFailed(f"the monitor did not do its work ({outcome.word}): {outcome.detail.strip()}")
        if told == count:
            return
        sleep(every_s)


def _report(message: bytes) -> Report:
    if len(message) <= _MOST_BYTES:
        try:
            return msgspec.json.decode(message, type=Report)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass
    raise _no_report()


def _no_report() -> RemoteProtocolError:
    return RemoteProtocolError("the box told something else than figures of its host", hint="leave this box")
