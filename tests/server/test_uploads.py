"""What a box keeps of uploads whose connection broke."""

from __future__ import annotations

from bento_tor.protocol import messages as m
from bento_tor.server.uploads import Parts, Upload


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def store(**changes: object) -> m.Store:
    fields = {"invocation": b"i" * 32, "shutdown": b"s" * 32, "manifest": b"m", "size": 100_000, "digest": b"d" * 32}
    return m.Store(1, **(fields | changes))  # type: ignore[arg-type]


def put(parts: Parts, key: bytes, data: bytes) -> None:
    """An upload that brought this much, and broke."""
    have = parts.share(key)
    have += data
    parts.leave(key, have)


def test_a_part_is_given_to_the_same_upload_only() -> None:
    parts, key = Parts(least_bytes=1), Upload(store()).key
    put(parts, key, b"abc")
    others = ({"invocation": b"x" * 32}, {"shutdown": b"x" * 32}, {"digest": b"x" * 32}, {"manifest": b""}, {"size": 9})
    for other in others:
        assert parts.share(Upload(store(**other)).key) == b""
    assert parts.share(key) == b"abc"
    parts.finish(key)
    assert parts.share(key) == b""


def test_a_connection_that_broke_and_the_next_one_add_to_the_same_part() -> None:
    parts, old = Parts(), Upload(store())
    old.have = parts.share(old.key)
    old.take(m.Chunk(1, 0, b"abc"))
    new = Upload(store(), parts.share(old.key))
    assert new.have == b"abc"
    new.take(m.Chunk(1, 3, b"de"))
    old.take(m.Chunk(1, 3, b"d"))  # late
    assert new.have == b"abcde"


def test_parts_have_a_bound_in_bytes_and_the_oldest_go() -> None:
    parts = Parts(most_bytes=10, least_bytes=1)
    for number in range(5):
        put(parts, bytes([number]), bytes(4))
    assert [len(parts.share(bytes([number]))) for number in range(5)] == [0, 0, 0, 4, 4]


def test_parts_have_a_bound_in_time() -> None:
    clock = Clock()
    parts = Parts(kept_s=10, least_bytes=1, clock=clock)
    put(parts, b"a", b"a")
    clock.now = 5
    put(parts, b"b", b"b")
    clock.now = 11
    assert (parts.share(b"a"), parts.share(b"b")) == (b"", b"b")


def test_what_is_here_is_not_taken_again() -> None:
    upload = Upload(store(), bytearray(b"abcde"))
    for offset, data in ((0, b"ab"), (2, b"cdef"), (6, b"g"), (3, b"x")):
        upload.take(m.Chunk(1, offset, data))
    assert upload.have == b"abcdefg"


def test_parts_that_are_hardly_begun_are_not_kept() -> None:
    """A Store and a hang-up cost a client nothing: a million of them must cost the box nothing either."""
    parts = Parts()
    for number in range(100):
        put(parts, number.to_bytes(32, "big"), b"x" * (number % 2))
    assert not parts._parts
