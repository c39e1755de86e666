"""`bento-tor client monitor`: a box's machine, as far as the box tells of it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bento_tor.cli import ui
from bento_tor.cli.client.calls import load_source
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.options import json_option
from bento_tor.client.monitoring import Report, watch

_GIB = 1024**3
_MIB = 1024**2


@click.command()
@click.option(
    "--interval", type=click.FloatRange(min=1), metavar="SECONDS", help="How often.  [default: as it changes]"
)
@click.option("--count", type=click.IntRange(min=0), default=0, help="End after so many reports.  [default: Ctrl-C]")
@box_option
@json_option
@pass_reach
def command(interval: float | None, count: int, box_address: str, as_json: bool, reach: Reach) -> None:
    """Watch the machine of a box, as far as its policy tells (host_stats): rounded and hourly, or live.

    At a terminal it is redrawn with each report, else written one after the other; with --json a line each."""
    source = load_source("monitor")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ui.progress(f"connecting to {box_address}"):
            box = reach.box(box_address, remember=False).__enter__()
        # The reports are closed before the connection is: what they have stored there is erased.
        with box, closing(watch(box, source, interval_s=interval, count=count)) as reports:
            _show(reports, as_json=as_json)
    except KeyboardInterrupt:
        ui.say("ended")


def _show(reports: Iterable[Report], *, as_json: bool) -> None:
    with ExitStack() as stack:
        maybe_live = None
        if sys.stdout.isatty() and not as_json:
            maybe_live = stack.enter_context(Live(console=Console(), auto_refresh=False))
        maybe_before: tuple[Report, float] | None = None
        for report in reports:
            now = time.monotonic()
            if as_json:
                ui.result_json(msgspec.to_builtins(report))
            elif maybe_live is not None:
                maybe_live.update(drawn(report, maybe_before, now), refresh=True)
            else:
                ui.result("\n".join(f"{row.name:<10}{row.text}" for row in rows(report, maybe_before, now)) + "\n")
            maybe_before = report, now


@dataclass(frozen=True)
class Row:
    """One thing that the box tells. `maybe_share`: how much of it is in use, 0 to 1."""

    name: str
    text: str
    maybe_share: float | None = None


def rows(report: Report, maybe_before: tuple[Report, float] | None, now: float) -> list[Row]:
    """What is shown of a report; the box's own texts are escaped. The one before gives rates."""
    found = []
    if report.cpu_count is not None:
        percent = report.cpu_percent
        busy = f", {percent:g} % busy" if percent is not None else ""
        found.append(Row("CPU", f"{report.cpu_count} cores{busy}", None if percent is None else percent / 100))
    for name, total, used in (
        ("memory", report.memory_total, report.memory_used),
        ("disk", report.disk_total, report.disk_used),
    ):
        if total is not None:
            text = f"{total / _GIB:.1f} GiB" + (f", {used / _GIB:.1f} used" if used is not None else "")
            found.append(Row(name, text, min(1.0, used / total) if used is not None and total else None))
    if report.bytes_sent is not None and report.bytes_received is not None:
        sent, received = report.bytes_sent, report.bytes_received
        text = f"{sent / _MIB:.1f} MiB sent, {received / _MIB:.1f} received"
        found.append(Row("traffic", text + _rates(sent, received, maybe_before, now)))
    if report.addresses:
        found.append(Row("addresses", ui.escape(", ".join(report.addresses)).replace("\n", " ")))
    if report.time:
        found.append(Row("time", ui.escape(report.time).replace("\n", " ")))
    return found or [Row("host", "this box tells nothing about it now")]


def _rates(sent: int, received: int, maybe_before: tuple[Report, float] | None, now: float) -> str:
    if maybe_before is None or now <= maybe_before[1]:
        return ""
    before, at = maybe_before
    # Counters begin anew when a machine does.
    out, into = (
        max(0, value - (old or 0)) / (now - at) / 1024
        for value, old in ((sent, before.bytes_sent), (received, before.bytes_received))
    )
    return f"; {out:.1f} KiB/s out, {into:.1f} in"


def drawn(report: Report, maybe_before: tuple[Report, float] | None, now: float) -> Table:
    """The same for a terminal, with bars."""
    table = Table.grid(padding=(0, 2))
    for row in rows(report, maybe_before, now):
        bar = ProgressBar(total=1.0, completed=row.maybe_share, width=24) if row.maybe_share is not None else Text()
        # As Text: brackets of the box's are no markup of ours.
        table.add_row(Text(row.name), bar, Text(row.text))
    return table
