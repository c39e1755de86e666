"""A box as its operator sees it: `status`, metrics, the words for the service manager."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bento_tor.client import parse

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parent.parent.parent
NAMED = re.compile(r"^\| `(bento_tor_\w+)` \| (\w+) \|", re.MULTILINE)
ONCE = parse("f", "def f(): return 'x'")
FOR_EVER = parse("f", "def f():\n    while True: api.recv()")
# What the parser takes off a family's name, by its kind.
SUFFIX = {"counter": "_total", "gauge": "", "histogram": ""}

Eventually = Callable[..., None]
Values = dict[tuple[str, str], float]


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", "20", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def families(text: str) -> Iterator[tuple[str, str]]:
    """Each metric's name as it is written, and its kind."""
    for family in text_string_to_metric_families(text):
        yield f"{family.name}{SUFFIX[family.type]}", family.type


def values(text: str) -> Values:
    """By name, and the values of its labels."""
    return {
        (sample.name, " ".join(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_is_in_the_docs_and_every_one_of_the_docs_is_there(new_box, port: int) -> None:
    new_box(config=f'metrics = "127.0.0.1:{port}"\n')
    answer = curl("-i", f"http://127.0.0.1:{port}/metrics")
    head, _, text = answer.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK") and "text/plain" in head
    named = dict(NAMED.findall((ROOT / "docs" / "metrics.md").read_text("utf-8")))
    assert dict(families(text)) == named
    assert len(named) > 15


def test_by_default_the_numbers_tell_nothing_of_a_session(new_box, port: int) -> None:
    running = new_box(config=f'metrics = "127.0.0.1:{port}"\n')
    url = f"http://127.0.0.1:{port}/metrics"
    before = curl(url)
    with running.connect() as there:
        assert list(there.run(ONCE)) == [b"x"]
        session = there.run(FOR_EVER)
        session.wait_attached()
        assert curl(url) == before
        session.end()
        session.wait()
    assert curl(url) == before
    assert ("bento_tor_sessions_running", "") not in values(before)


def test_with_the_audit_on_they_are_exact(new_box, port: int, eventually: Eventually) -> None:
    running = new_box(config=f'audit = true\nmetrics = "127.0.0.1:{port}"\n[policy]\nsessions = 2\n')
    url = f"http://127.0.0.1:{port}/metrics"
    with running.connect() as there:
        assert list(there.run(ONCE)) == [b"x"]
        session = there.run(FOR_EVER)
        session.wait_attached()
        seen = values(curl(url))
        assert seen["bento_tor_sessions_total", "returned"] == 1
        assert seen["bento_tor_starts_total", "pool"] + seen["bento_tor_starts_total", "cold"] == 2
        assert seen["bento_tor_start_seconds_count", ""] == 2
        assert 0 < seen["bento_tor_start_seconds_sum", ""] < 60
        assert (seen["bento_tor_sessions_running", ""], seen["bento_tor_connections", ""]) == (1, 1)
        session.end()
        session.wait()
        eventually(lambda: values(curl(url))["bento_tor_sessions_total", "killed:user"] == 1)


def test_metrics_of_a_unix_socket_are_for_who_runs_serve(new_box, short_path: Path) -> None:
    place = short_path / "m.sock"
    running = new_box(config=f'metrics = "unix:{place}"\n')
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert "bento_tor_exact 0.0" in curl("--unix-socket", str(place), "http://box/metrics")
    assert curl("--unix-socket", str(place), "http://box/other") == "metrics are at /metrics\n"
    assert curl("--unix-socket", str(place), "-X", "POST", "http://box/metrics") == "GET only\n"
    assert running.stop() == 0
    assert not place.exists()


@pytest.mark.parametrize(
    "nonsense", [b"", b"\r\n\r\n", b"\xff" * 100_000, b"GET\r\n\r\n", b"GET /metrics HTTP/1.1\r\n"]
)
def test_nonsense_at_the_metrics_holds_nothing_up(box_with_metrics: int, nonsense: bytes) -> None:
    with socket.create_connection(("127.0.0.1", box_with_metrics)) as raw:
        with suppress(ConnectionError):
            raw.sendall(nonsense)
        assert "bento_tor_exact" in curl(f"http://127.0.0.1:{box_with_metrics}/metrics")


@pytest.fixture
def box_with_metrics(new_box, port: int) -> int:
    new_box(config=f'metrics = "127.0.0.1:{port}"\n')
    return port


@pytest.mark.parametrize("place", ["0.0.0.0:9180", "192.0.2.80:9180", "[::]:9180", "example.org:9180", "9180"])
def test_metrics_are_served_on_this_machine_only(bento, tmp_path: Path, place: str) -> None:
    (tmp_path / "box.toml").write_text(f'metrics = "{place}"\n')
    done = bento("serve", "--state", str(tmp_path / "s"), "--config", "box.toml")
    assert done.returncode == 3 and "error:" in done.stderr and place.rpartition(":")[0].strip("[]") in done.stderr


def test_status_shows_a_box_on_one_screen(new_box, bento) -> None:
    running = new_box(config="audit = true\n[policy]\nsessions = 5\n")
    with running.connect() as there:
        session = there.run(FOR_EVER)
        session.wait_attached()
        done = bento("status", "--state", str(running.state))
        told = json.loads(bento("status", "--state", str(running.state), "--json").stdout)
        session.end()
    assert done.returncode == 0, done.stderr
    for words in ("takes work", running.told["address"], "1 of 5 running", "1 of 2000 connections", "tor   "):
        assert words in done.stdout
    assert len(done.stdout.splitlines()) <= 24
    box = told["maybe_box"]
    assert box["sessions"] == {"now": 1, "most": 5} and box["functions"]["now"] == 1
    assert told["tors"][0]["job"] == "onion"


def test_status_shows_it_paused(new_box, bento) -> None:
    running = new_box(config="")
    assert bento("pause", "--state", str(running.state)).returncode == 0
    assert "takes no new work" in bento("status", "--state", str(running.state)).stdout


def test_status_of_a_box_that_is_down_says_so(bento, tmp_path: Path) -> None:
    done = bento("status", "--state", str(tmp_path / "s"))
    assert done.returncode == 6 and f"no box runs in {tmp_path / 's'}" in done.stdout
    told = bento("status", "--state", str(tmp_path / "s"), "--json", "--control", "127.0.0.1:1")
    status = json.loads(told.stdout)
    assert status["maybe_box"] is None and "127.0.0.1:1" in status["tors"][0]["why"]


def test_the_service_manager_is_told_when_it_is_up_that_it_lives_and_when_it_ends(
    new_box, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(str(short_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        running = new_box()
        ready = manager.recv(1000).decode()
        assert ready == f"READY=1\nSTATUS={running.told['address']}, port {running.told['port']}"
        assert manager.recv(1000) == b"WATCHDOG=1"
        assert manager.recv(1000) == b"WATCHDOG=1"
        assert running.stop() == 0
        last = b""
        while last != b"STOPPING=1":
            last = manager.recv(1000)
