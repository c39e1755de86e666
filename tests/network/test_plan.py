"""The plan of a network: pure."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.errors import ConfigError
from bento_tor.network.plan import NetworkSettings, Role, check_place, plan_nodes, plan_schedule, ports_needed

PLACE = Path("/tmp/n")


def test_the_default_network() -> None:
    settings = NetworkSettings()
    ports = range(1000, 1000 + ports_needed(settings))
    nodes = plan_nodes(settings, PLACE, ports)
    assert [node.name for node in nodes] == ["a1", "a2", "a3", "r1", "r2", "r3", "r4", "r5", "c1"]
    assert [node.role for node in nodes].count(Role.EXIT) == 2
    used = [port for node in nodes for port in (node.or_port, node.dir_port, node.socks_port) if port]
    assert sorted(used) == list(ports)
    assert nodes[0].control.path == PLACE / "a1" / "control"
    assert str(nodes[-1].socks) == f"127.0.0.1:{nodes[-1].socks_port}"
    with pytest.raises(ConfigError, match="no client"):
        _ = nodes[0].socks


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (NetworkSettings(authorities=0), "at least one authority"),
        (NetworkSettings(clients=0), "at least one authority and one client"),
        (NetworkSettings(exits=6), "6 exits are more than 5 relays"),
        (NetworkSettings(exits=-1), "at least one"),
        (NetworkSettings(authorities=1, relays=3), "at least 5 authorities and relays"),
        (NetworkSettings(authorities=9, relays=2, exits=0), "3 of them relays"),
        (NetworkSettings(relays=98), "more than 100"),
        (NetworkSettings(voting_interval_s=5), "not legal"),
        (NetworkSettings(voting_interval_s=0), "not legal"),
        (NetworkSettings(voting_interval_s=35), "divisor of 24 hours"),
        (NetworkSettings(voting_interval_s=12), "drift apart"),
    ],
)
def test_what_cannot_work_is_refused_in_words(settings: NetworkSettings, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        settings.check()
    assert error.value.hint


@given(st.sampled_from([10, 15, 20, 30, 60, 300]), st.floats(0, 4e9))
def test_each_schedule_is_legal_for_tor(interval_s: int, start_s: float) -> None:
    schedule = plan_schedule(NetworkSettings(voting_interval_s=interval_s), start_s)
    assert 2 * schedule.delay_s < schedule.interval_s / 2
    assert schedule.initial_interval_s >= 5
    assert 86400 % schedule.initial_interval_s == 0
    assert 0 <= schedule.offset_s < min(schedule.interval_s, schedule.initial_interval_s)
    assert (int(start_s) - schedule.offset_s) % schedule.initial_interval_s == 0


@pytest.mark.parametrize("place", [Path("/tmp/" + "x" * 100), Path('/tmp/a"b'), Path("/tmp/a\\b"), Path("/tmp/a\nb")])
def test_a_place_where_tor_cannot_live(place: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check_place(place)
    assert error.value.hint
