"""Lines of tor's, as values."""

from hypothesis import given
from hypothesis import strategies as st

from bento_tor.controller.bootstrap import parse_bootstrap
from bento_tor.controller.events import (
    CircuitEvent,
    Event,
    HsDescEvent,
    StatusEvent,
    StreamEvent,
    parse_event,
)

FP = "A" * 40


def test_a_descriptor_event() -> None:
    event = parse_event(f"HS_DESC FAILED abc UNKNOWN ${FP}~r1 REASON=NOT_FOUND HSDIR_INDEX=12")
    assert isinstance(event, HsDescEvent)
    assert (event.action, event.address, event.reason) == ("FAILED", "abc", "NOT_FOUND")
    assert event.directory == f"${FP}~r1"


def test_a_circuit_event_with_and_without_a_path() -> None:
    text = f'CIRC 7 BUILT ${FP}~a,${"B" * 40} BUILD_FLAGS=X PURPOSE=HS_CLIENT_REND SOCKS_USERNAME="a \\"b"'
    event = parse_event(text)
    assert isinstance(event, CircuitEvent)
    assert event.path == (FP, "B" * 40)
    assert (event.circuit_id, event.status, event.purpose) == ("7", "BUILT", "HS_CLIENT_REND")
    assert event.keyword("SOCKS_USERNAME") == 'a "b'
    fresh = parse_event("CIRC 8 LAUNCHED PURPOSE=GENERAL")
    assert isinstance(fresh, CircuitEvent)
    assert fresh.path == ()


def test_a_stream_event_judges_no_address() -> None:
    event = parse_event("STREAM 3 NEW 0 [2001:db8::1]:443 SOURCE_ADDR=(Tor_internal):0 PURPOSE=USER")
    assert isinstance(event, StreamEvent)
    assert (event.target_host, event.target_port, event.circuit_id) == ("[2001:db8::1]", 443, "")
    odd = parse_event("STREAM 4 NEW 0 strange SOURCE_ADDR=unix:")
    assert isinstance(odd, StreamEvent)
    assert odd.target_port == 0


def test_bootstrap_in_tors_own_words() -> None:
    text = (
        'STATUS_CLIENT WARN BOOTSTRAP PROGRESS=50 TAG=loading_descriptors SUMMARY="Loading relay descriptors" '
        'WARNING="Connection refused" REASON=CONNECTREFUSED COUNT=5 RECOMMENDATION=warn'
    )
    event = parse_event(text)
    assert isinstance(event, StatusEvent)
    assert event.action == "BOOTSTRAP"
    where = parse_bootstrap(text)
    assert (where.progress, where.tag, where.reason) == (50, "loading_descriptors", "CONNECTREFUSED")
    assert where.words == "50 % (loading_descriptors): Loading relay descriptors; Connection refused"
    assert where.hint
    assert not where.done


@given(st.text(max_size=200), st.sampled_from(["", "CIRC ", "STREAM ", "HS_DESC ", "STATUS_CLIENT "]))
def test_no_line_breaks_the_parser(text: str, kind: str) -> None:
    assert isinstance(parse_event(kind + text), Event)
    parse_bootstrap(text)
