"""The output of a session: nothing lost, nothing twice, whatever is read, cut and forgotten in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bento_tor.server.output import PIECE_COST_BYTES, Block, Bundle, Output, Tally

MESSAGES = st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=30)


def read_all(output: Output[Bundle], offset: int, max_units: int, max_bytes: int) -> list[tuple[bytes, bool]]:
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
    output: Output[Bundle] = Output()
    for data, end in messages:
        output.append(data, end=end)
    assert joined(read_all(output, 0, max_units, max_bytes)) == joined(messages)


@given(MESSAGES, st.data())
def test_a_resume_gives_the_rest_and_forgetting_does_not_change_it(
    messages: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    output: Output[Bundle] = Output()
    for part, end in messages:
        output.append(part, end=end)
    offset = data.draw(st.integers(0, output.stop))
    before = read_all(output, offset, 5, 5)
    output.forget(data.draw(st.integers(0, offset)))
    assert read_all(output, offset, 5, 5) == before


def test_an_empty_message_is_a_unit_and_survives_a_resume() -> None:
    output: Output[Bundle] = Output()
    output.append(b"", end=True)
    output.append(b"", end=True)
    assert output.stop == 2
    assert read_all(output, 1, 9, 9) == [(b"", True)]


def test_small_messages_cost_more_than_their_bytes() -> None:
    """A million one-byte messages must hit the cap long before they fill the memory."""
    output: Output[Bundle] = Output()
    for _ in range(100):
        output.append(b"x", end=True)
    assert output.cost_bytes == 100 * (PIECE_COST_BYTES + 1)
    output.forget(output.stop)
    assert output.cost_bytes == 0


def test_an_ack_beyond_the_end_forgets_what_there_is() -> None:
    output: Output[Bundle] = Output()
    output.append(b"abc", end=True)
    output.forget(99)
    assert (output.base, output.stop) == (4, 4)


def test_padding_stays_padding() -> None:
    output: Output[Bundle] = Output()
    output.append_padding(1 << 32)  # costs what a piece costs, whatever its length
    assert output.cost_bytes == PIECE_COST_BYTES and output.stop == 1 << 32
    piece = output.maybe_read(0, 99, 99)
    assert piece is not None and piece.padding


class Elsewhere:
    """Where bundles go in these tests: a list."""

    def __init__(self, output: Output[Bundle]) -> None:
        self.kept: list[Bundle] = []
        self.output = output
        output.on_free = self.kept.remove

    def send_away(self, max_bytes: int) -> None:
        if (bundle := self.output.maybe_bundle(max_bytes)) is not None:
            assert len(bundle.data) <= max_bytes
            self.kept.append(bundle)
            self.output.sent_away(bundle, bundle, len(bundle.data))

    def read_all(self, offset: int, max_units: int, max_bytes: int) -> list[tuple[bytes, bool]]:
        found: list[tuple[bytes, bool]] = []
        while True:
            if (block := self.output.maybe_block(offset)) is not None:
                assert isinstance(block, Block) and block.offset <= offset < block.stop
                self.output.loaded(block, block.ref.data + bytes(7))
            piece = self.output.maybe_read(offset, max_units, max_bytes)
            if piece is None:
                return found
            assert piece.offset == offset and 0 < piece.stop - offset <= max_units
            offset = piece.stop
            found.append((piece.data, piece.end))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.binary(max_size=40), st.booleans()),
        st.tuples(st.just("pad"), st.integers(0, 60), st.none()),
        st.tuples(st.just("away"), st.integers(14, 60), st.none()),
        st.tuples(st.just("ack"), st.integers(0, 100), st.none()),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 9), st.integers(1, 9))
def test_what_is_elsewhere_is_read_as_if_it_were_here(steps: list, max_units: int, max_bytes: int) -> None:
    tally = Tally()
    output: Output[Bundle] = Output(tally)
    twin: Output[Bundle] = Output()
    elsewhere = Elsewhere(output)
    for what, value, end in steps:
        match what:
            case "send":
                output.append(value, end=end)
                twin.append(value, end=end)
            case "pad":
                output.append_padding(value)
                twin.append_padding(value)
            case "away":
                elsewhere.send_away(value)
            case "ack":
                received = output.base + (output.stop - output.base) * value // 100
                output.forget(received)
                twin.forget(received)
    assert (output.base, output.stop) == (twin.base, twin.stop)
    there = elsewhere.read_all(output.base, max_units, max_bytes)
    assert joined(there) == joined(read_all(twin, twin.base, max_units, max_bytes))
    assert output.away_bytes == sum(len(bundle.data) for bundle in elsewhere.kept)
    assert tally.total == output.cost_bytes
    output.clear()
    assert (elsewhere.kept, output.kept_bytes, tally.total) == ([], 0, 0)


def test_a_million_small_messages_cost_no_more_read_back_than_away() -> None:
    output: Output[Bundle] = Output()
    for _ in range(10_000):
        output.append(b"x", end=True)
    bundle = output.maybe_bundle(64 * 1024)
    assert bundle is not None and (bundle.stop - bundle.offset) // 2 * PIECE_COST_BYTES <= 64 * 1024


def test_what_was_acknowledged_on_its_way_is_not_kept() -> None:
    output: Output[Bundle] = Output()
    output.append(b"abc", end=True)
    bundle = output.maybe_bundle(100)
    assert bundle is not None
    freed: list[Bundle] = []
    output.on_free = freed.append
    output.forget(4)
    output.sent_away(bundle, bundle, 100)
    assert (freed, output.kept_bytes) == ([bundle], 0)


def test_padding_elsewhere_stays_a_length() -> None:
    output: Output[Bundle] = Output()
    elsewhere = Elsewhere(output)
    output.append_padding(1 << 40)
    elsewhere.send_away(64)
    assert output.cost_bytes == 0 and len(elsewhere.kept[0].data) < 32
    block = output.maybe_block(1 << 30)
    assert block is not None
    output.loaded(block, block.ref.data)
    piece = output.maybe_read(1 << 30, 1 << 40, 1 << 20)
    assert piece is not None and piece.padding == len(piece.data) == 64 * 1024
