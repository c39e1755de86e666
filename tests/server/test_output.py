"""The output of a session: nothing lost, nothing twice, whatever is read, cut and forgotten in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bento_tor.server.output import PIECE_COST_BYTES, Output

MESSAGES = st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=30)


def read_all(output: Output, offset: int, max_units: int, max_bytes: int) -> list[tuple[bytes, bool]]:
    """Messages from `offset` on, put together again."""
    found: list[tuple[bytes, bool]] = []
    while (piece := output.maybe_read(offset, max_units, max_bytes)) is not None:
        assert piece.offset == offset and 0 < piece.stop - offset <= max_units
        offset = piece.stop
        found.append((piece.data, piece.end))
    return found


def joined(pieces: list[tuple[bytes, bool]]) -> tuple[bytes, list[int]]:
    """All bytes, and where messages end among them."""
    data, ends = b"", []
    for part, end in pieces:
        data += part
        if end:
            ends.append(len(data))
    return data, ends


@given(MESSAGES, st.integers(1, 9), st.integers(1, 9))
def test_reading_gives_what_was_sent(messages: list[tuple[bytes, bool]], max_units: int, max_bytes: int) -> None:
    output = Output()
    for data, end in messages:
        output.append(data, end=end)
    assert joined(read_all(output, 0, max_units, max_bytes)) == joined(messages)


@given(MESSAGES, st.data())
def test_a_resume_gives_the_rest_and_forgetting_does_not_change_it(
    messages: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    output = Output()
    for part, end in messages:
        output.append(part, end=end)
    offset = data.draw(st.integers(0, output.stop))
    before = read_all(output, offset, 5, 5)
    output.forget(data.draw(st.integers(0, offset)))
    assert read_all(output, offset, 5, 5) == before


def test_an_empty_message_is_a_unit_and_survives_a_resume() -> None:
    output = Output()
    output.append(b"", end=True)
    output.append(b"", end=True)
    assert output.stop == 2
    assert read_all(output, 1, 9, 9) == [(b"", True)]


def test_small_messages_cost_more_than_their_bytes() -> None:
    """A million one-byte messages must hit the cap long before they fill the memory."""
    output = Output()
    for _ in range(100):
        output.append(b"x", end=True)
    assert output.cost_bytes == 100 * (PIECE_COST_BYTES + 1)
    output.forget(output.stop)
    assert output.cost_bytes == 0


def test_an_ack_beyond_the_end_forgets_what_there_is() -> None:
    output = Output()
    output.append(b"abc", end=True)
    output.forget(99)
    assert (output.base, output.stop) == (4, 4)


def test_padding_stays_padding() -> None:
    output = Output()
    output.append_padding(1 << 32)  # costs what a piece costs, whatever its length
    assert output.cost_bytes == PIECE_COST_BYTES and output.stop == 1 << 32
    piece = output.maybe_read(0, 99, 99)
    assert piece is not None and piece.padding
