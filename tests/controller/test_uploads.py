"""When a service's descriptors count as published: pure, from the events as tor 0.4.9.11 writes them."""

from __future__ import annotations

import pytest

from bento_tor.controller.events import HsDescEvent, parse_event
from bento_tor.controller.uploads import MOST_AT_ONCE, EveryUpload, Uploads

ADDRESS = "a" * 56
R1, R2 = f"${'1' * 40}~r1", f"${'2' * 40}~r2"
NOW = 100.0


def events(*lines: str) -> list[HsDescEvent]:
    found = [parse_event(f"HS_DESC {line}") for line in lines]
    assert all(isinstance(event, HsDescEvent) for event in found)
    return found  # type: ignore[return-value]


def upload(directory: str, descriptor: str) -> str:
    return f"UPLOAD {ADDRESS} UNKNOWN {directory} {descriptor} HSDIR_INDEX=AB"


def uploaded(directory: str) -> str:
    return f"UPLOADED {ADDRESS} UNKNOWN {directory}"


def rejected(directory: str) -> str:
    return f"FAILED {ADDRESS} NO_AUTH {directory} REASON=UPLOAD_REJECTED"


def missed(directory: str, descriptor: str) -> str:
    return f"FAILED {ADDRESS} NO_AUTH {directory} {descriptor} REASON=NOT_FOUND"


BOTH = (upload(R1, "one"), upload(R2, "one"), upload(R1, "two"), upload(R2, "two"))


@pytest.mark.parametrize(
    ("lines", "settled"),
    [
        ((), False),
        ((upload(R1, "one"), uploaded(R1)), False),  # the other time period's may be the one that clients ask for
        (BOTH, False),
        ((*BOTH, uploaded(R1), uploaded(R1), uploaded(R2)), False),  # one that a client may ask first has not answered
        ((*BOTH, uploaded(R1), uploaded(R1), uploaded(R2), uploaded(R2)), True),
        ((*BOTH, uploaded(R1), uploaded(R1), rejected(R2), uploaded(R2)), True),
        ((*BOTH, *(4 * (rejected(R1), rejected(R2)))), False),  # nobody has it
        ((*BOTH, uploaded(R1), uploaded(R1), uploaded(R2), missed(R2, "one")), False),  # a client's miss, no upload's
    ],
)
def test_both_descriptors_at_every_directory(lines: tuple[str, ...], settled: bool) -> None:
    uploads = Uploads()
    for event in events(*lines):
        uploads.take(event, NOW)
    assert uploads.settled is settled


def test_a_directory_that_never_answers_is_waited_for_only_so_long() -> None:
    uploads = Uploads()
    for event in events(*BOTH):
        uploads.take(event, NOW)
    assert uploads.settled_at > 1e9, "nobody has confirmed anything yet"
    for event in events(uploaded(R1)):
        uploads.take(event, NOW)
    first = uploads.settled_at
    assert NOW < first < NOW + 60
    for event in events(uploaded(R1)):
        uploads.take(event, NOW + 5)
    assert uploads.settled_at == first, "the first word counts"
    assert uploads.reason == ""


def test_of_every_service_it_is_told_once_that_its_uploads_are_over() -> None:
    every = EveryUpload()
    for event in events(*BOTH, uploaded(R1)):
        every.take(event, NOW)
    assert every.over(NOW) == []
    assert every.over(NOW + 60) == [ADDRESS]
    assert every.over(NOW + 60) == []


def test_what_others_look_for_and_never_find_takes_no_room() -> None:
    """A function may look for as many addresses as it likes; each failure is an event of the same name."""
    every = EveryUpload()
    for number in range(10 * MOST_AT_ONCE):
        address = f"{number:a>56}"
        for action in ("REQUESTED", "FAILED"):
            for event in events(f"{action} {address} NO_AUTH {R1} x REASON=NOT_FOUND"):
                every.take(event, NOW)
    assert not every._by_address
    for number in range(10 * MOST_AT_ONCE):
        for event in events(f"UPLOAD {number:a>56} UNKNOWN {R1} x"):
            every.take(event, NOW)
    assert len(every._by_address) == MOST_AT_ONCE
