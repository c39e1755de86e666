"""Watching a box's machine: what is asked for, how sessions follow one another, and boxes that tell no figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bento_tor.client import load
from bento_tor.client.memory import MemoryBox, MemorySession
from bento_tor.client.monitoring import Report, watch
from bento_tor.errors import FunctionFailed, Refused, RemoteProtocolError
from bento_tor.policy.document import Policy
from bento_tor.policy.limits import Limits

SOURCE = load("monitor")


def watched(function: Any, policy: Policy, **options: Any) -> list[Report]:
    slept: list[float] = options.pop("slept", [])
    with MemoryBox({"monitor": function}, policy=policy) as there, there.connect() as box:
        found = list(watch(box, SOURCE, sleep=slept.append, **options))
        assert not there.stored, "nothing stays there"
    return found


def test_one_session_gives_many_reports_and_another_follows_where_its_time_is_up() -> None:
    calls: list[tuple[object, ...]] = []

    def tell(api: MemorySession, interval: float, count: int, form: str) -> None:
        calls.append((interval, count, form))
        for _ in range(count):
            api.send(json.dumps({"cpu_count": len(calls)}))

    slept: list[float] = []
    policy = Policy(host_stats="full", limits=Limits(wall_s=8))
    reports = watched(tell, policy, count=7, slept=slept)
    assert [report.cpu_count for report in reports] == [1, 1, 1, 2, 2, 2, 3]
    assert calls == [(1.0, 3, "json"), (1.0, 3, "json"), (1.0, 1, "json")]
    assert slept == [1.0, 1.0]


def test_coarse_figures_are_asked_for_by_the_hour() -> None:
    calls: list[tuple[float, int]] = []

    def tell(api: MemorySession, interval: float, count: int, form: str) -> None:
        calls.append((interval, count))
        api.send("{}")

    slept: list[float] = []
    watched(tell, Policy(host_stats="coarse"), count=2, slept=slept)
    assert calls == [(3600.0, 1)] * 2 and slept == [3600.0]


def test_a_box_that_tells_nothing_is_not_asked() -> None:
    with pytest.raises(Refused, match="tells nothing"):
        watched(lambda api, *_: api.send("{}"), Policy())


@pytest.mark.parametrize(
    "told",
    [
        b"", b"{", b"null", b"[]", b"1", b"\xff", b'{"cpu_count": "2"}', b'{"cpu_count": -1}',
        b'{"cpu_percent": 1e999}', b'{"cpu_percent": NaN}', b'{"cpu_percent": 101}', b'{"memory_total": 1e30}',
        b'{"memory_total": 99999999999999999999}', b'{"time": 5}', b'{"addresses": "x"}', b'{"addresses": [1]}',
        b'{"time": "%s"}' % (b"x" * 65), b'{"addresses": [%s"x"]}' % (b'"x",' * 64), b"[" * 10_000,
        b'{"x": "%s"}' % (b"y" * 20_000),
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_no_report_is_not_shown(told: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        watched(lambda api, *_: api.send(told), Policy(host_stats="full"), count=1)


def test_a_box_that_gives_none_or_more_than_were_asked_for_is_left() -> None:
    with pytest.raises(FunctionFailed):
        watched(lambda api, *_: None, Policy(host_stats="full"), count=1)

    def without_end(api: MemorySession, *_: object) -> None:
        while True:
            api.send("{}")

    with pytest.raises(RemoteProtocolError):
        watched(without_end, Policy(host_stats="full"), count=3)


def test_what_later_boxes_may_tell_besides_is_passed_over() -> None:
    [report] = watched(
        lambda api, *_: api.send('{"cpu_count": 2, "weather": "\x7f"}'), Policy(host_stats="full"), count=1
    )
    assert report == Report(cpu_count=2)
