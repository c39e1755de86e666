"""`client monitor` at a real box: lines, JSON, and a terminal."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.sandbox


def test_full_figures_come_each_second_over_one_session(box, bento) -> None:
    done = bento("client", "monitor", "--box", box.address, "--count", "3", "--json")
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 3 and len({report["time"] for report in reports}) > 1
    assert all(report["memory_used"] <= report["memory_total"] for report in reports)
    done = bento("client", "monitor", "--box", box.address, "--count", "2")
    assert done.returncode == 0 and done.stdout.count("CPU ") == 2 and "KiB/s out" in done.stdout
    with box.connect() as there:
        assert there.policy().host_stats == "full"


def test_a_coarse_box_tells_no_traffic_and_one_that_tells_nothing_says_so(new_box, bento) -> None:
    coarse = new_box(config='ready = 1\n[policy]\nhost_stats = "coarse"\n')
    done = bento("client", "monitor", "--box", coarse.address, "--count", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "cpu_count" in report and not {"bytes_sent", "addresses", "disk_used"} & set(report)
    assert report["time"].endswith(":00Z") and report["cpu_percent"] % 25 == 0
    assert coarse.stop() == 0
    silent = new_box(config="ready = 1\n")
    done = bento("client", "monitor", "--box", silent.address, "--count", "1")
    assert (done.returncode, done.stdout) == (7, "") and "tells nothing" in done.stderr


def test_at_a_terminal_it_is_redrawn_until_ctrl_c(box, terminals) -> None:
    shown = terminals("client", "monitor", "--box", box.address)
    shown.wait_for("CPU", "KiB/s out")  # the second report
    shown.type("\x03")
    assert shown.end() == 0
    assert "ended" in shown.text() and "Traceback" not in shown.text()
