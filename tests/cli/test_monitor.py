"""What `client monitor` shows of a report, where the box is hostile."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bento_tor.cli.client.monitor import drawn, rows
from bento_tor.client.monitoring import Report

ORDERS = ["\x1b[2J\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe", "a\nerror: not ours", "\r\x08\x7f", "[red]x[/red]"]


@pytest.mark.parametrize("order", ORDERS)
def test_a_boxs_texts_drive_no_terminal(order: str) -> None:
    report = Report(cpu_count=1, cpu_percent=50.0, addresses=(order,), time=order)
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, width=200, color_system=None).print(drawn(report, None, 0.0))
    text = "\n".join(row.text for row in rows(report, None, 0.0))
    for where in (shown.getvalue(), text):
        assert not set(where) & set("\x1b\x07\x9b\r\x08\x7f\u202e"), where
        assert len(where.strip().splitlines()) == 3
    assert "[red]" in text or "[red]" not in order


def test_figures_without_sense_are_shown_without_a_traceback() -> None:
    odd = Report(
        cpu_count=1, memory_total=0, memory_used=5, disk_total=1, disk_used=1 << 62, bytes_sent=5, bytes_received=0
    )
    before = Report(bytes_sent=1 << 62, bytes_received=1)
    assert [row.name for row in rows(odd, (before, 1.0), 2.0)] == ["CPU", "memory", "disk", "traffic"]
    assert "0.0 KiB/s out, 0.0 in" in rows(odd, (before, 1.0), 2.0)[3].text
    assert "KiB/s" not in rows(odd, (before, 1.0), 1.0)[3].text
    assert rows(Report(), None, 0.0)[0].text == "this box tells nothing about it now"
    drawn(odd, None, 0.0)


def test_rates_are_of_the_time_between_two_reports() -> None:
    first, then = (Report(bytes_sent=n, bytes_received=2 * n) for n in (0, 10240))
    assert rows(then, (first, 0.0), 2.0)[0].text == "0.0 MiB sent, 0.0 received; 5.0 KiB/s out, 10.0 in"
