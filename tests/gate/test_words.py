"""What is said to the gate and by it, byte by byte; and how much may be had in an hour."""

from __future__ import annotations

import random

import msgspec
import pytest

from bento_tor.gate import words
from bento_tor.gate.quota import Hourly
from bento_tor.gate.words import Allow, Ask, Declined, Told
from bento_tor.policy.document import Policy
from bento_tor.sandbox import driver, frames, torgate
from bento_tor.sandbox.frames import FrameReader, Illegal, TorRequest, TorVerb


@pytest.mark.parametrize("message", [Allow(1, ("connect",), ("a.example",)), Ask(1, 2, TorVerb.CONNECT, 3, 80, "a")])
def test_the_box_is_heard(message) -> None:
    assert words.maybe_from_box(words.encode(message)) == message
    assert words.maybe_from_gate(words.encode(message)) is None


@pytest.mark.parametrize("message", [Told(1, b"{}"), Declined(1, "full", "no more")])
def test_the_gate_is_heard(message) -> None:
    assert words.maybe_from_gate(words.encode(message)) == message
    assert words.maybe_from_box(words.encode(message)) is None


WRONG = [
    b"",
    b"\x90" * 100_000,
    msgspec.msgpack.encode(["Ask", 1, 2, 8]),  # no such verb
    msgspec.msgpack.encode(["Ask", 1, 2, 1, -1]),
    msgspec.msgpack.encode(["Ask", 1, 2, 1, 0, 65536]),
    msgspec.msgpack.encode(["Ask", 1, 2, 1, 0, 80, "a" * 254]),
    msgspec.msgpack.encode(["Ask", 1, 2, 1, 0, 80, "a", "more"]),
    msgspec.msgpack.encode(["Allow", 1, ["connect"] * 33]),
    msgspec.msgpack.encode(["Command", 1, "GETINFO circuit-status"]),
]


@pytest.mark.parametrize("packet", WRONG)
def test_nothing_else_is(packet) -> None:
    assert words.maybe_from_box(packet) is None


def test_noise_is_not() -> None:
    chance = random.Random(5)
    for _ in range(2000):
        packet = chance.randbytes(chance.randrange(60))
        assert words.maybe_from_box(packet) is None


def test_every_verb_has_its_routine_and_every_text_its_numbers() -> None:
    assert set(words.ROUTINES) == set(TorVerb)
    assert {verb.name: verb.value for verb in TorVerb} == {verb.name: getattr(torgate, verb.name) for verb in TorVerb}
    assert (torgate.TOR, torgate.TOR_REFUSED) == (frames.TOR, frames.TOR_REFUSED)
    for name in ("TOR_GATE", "TOR_REPLY", "TOR_REFUSED", "TOR"):
        assert getattr(driver, name) == getattr(frames, name)
    assert Policy(tor=words.NAMES).tor == words.NAMES


def _frame(verb: int, port: int, handle: int, host: bytes) -> bytes:
    body = bytes([verb]) + port.to_bytes(2, "big") + handle.to_bytes(8, "big") + host
    return bytes([frames.TOR]) + len(body).to_bytes(4, "big") + body


def test_a_request_is_read() -> None:
    assert FrameReader().feed(_frame(1, 80, 7, b"a.example.com")) == [
        TorRequest(TorVerb.CONNECT, 80, 7, "a.example.com")
    ]


@pytest.mark.parametrize(
    "frame",
    [
        _frame(0, 80, 0, b"a"),
        _frame(8, 80, 0, b"a"),
        _frame(1, 80, 0, b"\xff"),
        _frame(1, 80, 1 << 62, b"a"),
        _frame(1, 80, 0, b"a" * 254),
        bytes([frames.TOR]) + (3).to_bytes(4, "big") + b"\x01\x00\x00",
    ],
)
def test_what_is_none_ends_the_reading(frame) -> None:
    reader = FrameReader()
    assert [type(each) for each in reader.feed(frame)] == [Illegal]
    assert reader.feed(_frame(1, 80, 0, b"a")) == []


def test_so_many_in_an_hour() -> None:
    quota = Hourly(2)
    for now_s in (0.0, 10.0):
        assert quota.has_room(now_s)
        quota.take(now_s)
    assert not quota.has_room(3599.0)
    assert quota.has_room(3600.5)
    quota.take(3600.5)
    assert not quota.has_room(3605.0)
    assert quota.has_room(3610.5)
