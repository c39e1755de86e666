"""Cells from TLS records: none is lost, and none is made up, however tor cuts them; and the files of traces."""

from __future__ import annotations

import io

import cells
import pytest
from cells import CELL_BYTES, IN, OUT, RECORD_BYTES, Cell, Record
from hypothesis import given
from hypothesis import strategies as st
from recorder import Records

RECORD_HEADER = b"\x17\x03\x03"


def cut(count: int, sizes: list[int]) -> list[int]:
    """So many cells in records of these sizes, again and again, and what is left."""
    left, found, turn = count * CELL_BYTES, [], 0
    while left:
        found.append(min(left, sizes[turn % len(sizes)]))
        left -= found[-1]
        turn += 1
    return found


@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.integers(100, 16384), min_size=1, max_size=5), st.randoms())
def test_no_cell_is_lost_however_they_are_cut(going_out, coming_in, sizes, chance) -> None:
    streams = {
        (connection, way): [size + RECORD_BYTES for size in cut(count, sizes)]
        for connection in (1, 2)
        for way, count in ((OUT, going_out), (IN, coming_in))
    }
    records, at = [], 0.0
    while any(streams.values()):
        key = chance.choice([key for key, waiting in streams.items() if waiting])
        at += 0.01
        records.append(Record(at, key[1], streams[key].pop(0), key[0]))
    found, left_over = cells.count_cells(records)
    assert left_over == 0
    assert sum(cell.direction == OUT for cell in found) == 2 * going_out
    assert sum(cell.direction == IN for cell in found) == 2 * coming_in
    assert [cell.at_s for cell in found] == sorted(cell.at_s for cell in found)
    assert {cell.at_s for cell in found} <= {record.at_s for record in records}


def test_a_cell_is_there_with_its_last_byte() -> None:
    records = [Record(1.0, IN, 513 + RECORD_BYTES, 1), Record(2.0, IN, 1 + RECORD_BYTES, 1)]
    assert cells.count_cells(records) == ([Cell(2.0, IN)], 0)


def test_records_of_tors_own_size_hold_more_than_their_whole_cells() -> None:
    count = 1000
    records = [Record(0.0, IN, size + RECORD_BYTES, 1) for size in cut(count, [4048])]
    assert records[0].size == 5 + 4065
    assert len(cells.count_cells(records)[0]) == count > sum(size // CELL_BYTES for size in cut(count, [4048]))


def test_what_is_no_cell_is_left_over() -> None:
    assert cells.count_cells([Record(0.0, IN, RECORD_BYTES + CELL_BYTES + 100, 1)]) == ([Cell(0.0, IN)], 100)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.lists(st.integers(1, 700), min_size=1))
def test_the_recorder_notes_every_record_in_whatever_pieces_it_comes(sizes, pieces) -> None:
    stream = b"".join(RECORD_HEADER + size.to_bytes(2, "big") + bytes(size) for size in sizes)
    out = io.StringIO()
    records = Records("down", 7, out)
    turn = 0
    while stream:
        length = pieces[turn % len(pieces)]
        records.add(stream[:length])
        stream, turn = stream[length:], turn + 1
    noted = cells.parse_records(out.getvalue().splitlines())
    assert [record.size for record in noted] == [size + 5 for size in sizes]
    assert {(record.direction, record.connection) for record in noted} == {(IN, 7)}


def test_a_trace_is_a_file_of_the_fields_format(tmp_path) -> None:
    path = tmp_path / "3-14.cell"
    cells.write(path, [Cell(100.5, OUT), Cell(100.75, IN), Cell(102.0, IN)])
    assert path.read_text() == "0.000000\t1\n0.250000\t-1\n1.500000\t-1\n"
    assert cells.read(path) == [Cell(0.0, OUT), Cell(0.25, IN), Cell(1.5, IN)]
    assert list(tmp_path.iterdir()) == [path], "nothing half written is left"
    cells.write(path, [])
    assert cells.read(path) == []


@pytest.mark.parametrize("line", ["0.5 1", "0.5\t1.0", "0.5\t512"])
def test_other_writers_traces_are_read(tmp_path, line) -> None:
    (tmp_path / "0-0.cell").write_text(f"{line}\n")
    assert cells.read(tmp_path / "0-0.cell") == [Cell(0.5, OUT)]
