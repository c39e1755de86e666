"""`bento-tor status`: a box and its tor, on one screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, counted, state_option
from bento_tor.errors import ConnectError, TorError

if TYPE_CHECKING:
    from bento_tor.controller.condition import Condition, RelayCondition
    from bento_tor.server.status import BoxStatus, Status, TorStatus, Use

_WATCH_S = 2.0
_CLEAR = "\x1b[H\x1b[2J"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_OWNERS = {"box": "published by the box", "relay": "put up by tor's own settings", "nobody": "not published"}


@click.command()
@state_option
@click.option("--control", metavar="HOST:PORT|unix:PATH", envvar="BENTO_TOR_CONTROL", help="Tor's control port.")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json a line each time.")
@json_option
def command(state: Path | None, control: str | None, watch: bool, as_json: bool) -> None:
    """Show your box and its tor: sessions, pool, limits, relay, onion service, the last errors.

    The exit code is 6 where no box runs or it does not answer, 4 where a tor that it needs cannot be used."""
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.server.status import look

    folder, place = box_folder(state), Endpoint.parse(control) if control else None
    while True:
        status = look(folder, place)
        _show(status, as_json=as_json, again=watch)
        if not watch:
            break
        time.sleep(_WATCH_S)
    click.get_current_context().exit(_exit_code(status))


def _show(status: Status, *, as_json: bool, again: bool) -> None:
    import msgspec

    if as_json:
        ui.result_json(msgspec.to_builtins(status))
        return
    text = "\n".join(_lines(status))
    ui.result(f"{_CLEAR if again and sys.stdout.isatty() else ''}{text}")


def _exit_code(status: Status) -> int:
    if status.maybe_box is None:
        return ConnectError.exit_code
    tors_work = all(tor.maybe_condition is not None and tor.maybe_condition.works for tor in status.tors)
    return 0 if tors_work or not status.needs_tor else TorError.exit_code


def _lines(status: Status) -> Iterator[str]:
    box = status.maybe_box
    if box is None:
        yield f"box       {ui.escape(status.why)}"
    else:
        yield from _box_lines(box, status.at)
    for tor in status.tors:
        yield from _tor_lines(tor, needed=status.needs_tor)
    if box is not None:
        yield from _error_lines(box)


def _box_lines(box: BoxStatus, now: int) -> Iterator[str]:
    word = "is draining" if box.draining else "takes no new work" if box.paused else "takes work"
    yield f"box       {word}; up for {_span(now - box.began)}; listens at {ui.escape(box.facts.socket)}"
    yield f"onion     {ui.escape(box.facts.address)}, port {box.facts.port}: {_OWNERS.get(box.facts.owner, '?')}"
    yield f"sessions  {_of(box.sessions)} running, {box.waiting} with output for their readers"
    used = f"{_bytes(box.spool_bytes.now)} of {_bytes(box.spool_bytes.most)}"
    yield f"use       {_of(box.functions)} functions, {_of(box.connections)} connections, {used} of waiting output"
    pool = box.pool
    yield f"pool      {pool.ready} of {pool.most} ready; {counted(pool.hits, 'start')} from it, {pool.cold} cold"
    limits, by = box.limits, ", ".join(box.facts.enforced) or "each process by itself only"
    most = f"{_bytes(limits.memory_bytes)}, {limits.pids} processes, {limits.cpu_percent} % of a core"
    yield f"limits    {most}, {limits.wall_s} s; by cgroups: {by}"
    yield f"egress    {', '.join(box.egress) or 'none'}"
    since = "since it began" if box.exact else "full hours since it began, rounded to eights"
    yield f"counts    {', '.join(f'{name} {count}' for name, count in box.counts.items()) or 'nothing'} ({since})"


def _tor_lines(tor: TorStatus, *, needed: bool) -> Iterator[str]:
    condition = tor.maybe_condition
    title = "tor       " if tor.job == "onion" else "exit tor  "
    if condition is None:
        yield f"{title}{'down: ' if needed else ''}{ui.escape(tor.why)}"
        if needed and tor.hint:
            yield f"          {ui.escape(tor.hint)}"
        return
    yield f"{title}{ui.escape(condition.version)} at {condition.endpoint}, up for {_span(condition.uptime_s)}"
    yield f"          {ui.escape(condition.words)}; {'' if condition.circuits else 'no '}circuits"
    yield f"          {_bytes(condition.received)} received, {_bytes(condition.sent)} sent"
    if condition.maybe_published is not None:
        yield f"          the box's onion service {_published(condition)}"
    if condition.maybe_relay is not None:
        yield f"relay     {_relay(condition.maybe_relay)}"


def _published(condition: Condition) -> str:
    return "has a descriptor there" if condition.maybe_published else "has no descriptor there: nobody can reach it"


def _relay(relay: RelayCondition) -> str:
    name = f"{ui.escape(relay.nickname)} {relay.fingerprint}"
    listed = f"in the consensus ({' '.join(relay.flags)})" if relay.listed else "not in the consensus"
    return f"{name}, {listed}, ORPort {'reachable' if relay.reachable else 'not seen from outside'}"


def _error_lines(box: BoxStatus) -> Iterator[str]:
    if not box.complaints:
        yield "errors    none in the log since the box began"
    for number, complaint in enumerate(reversed(box.complaints)):
        at = datetime.fromtimestamp(complaint.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        yield f"{'errors' if number == 0 else '':<10}{at}  {ui.escape(complaint.text)}"


def _of(use: Use) -> str:
    return f"{use.now} of {use.most}"


def _bytes(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if size >= 10 or unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def _span(seconds: int) -> str:
    """`3 d 4 h`, `12 min`, `5 s`."""
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {below}"
    return f"{seconds // 60} min" if seconds >= 60 else f"{max(seconds, 0)} s"
