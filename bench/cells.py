"""Cells of Tor's from TLS records, and the field's files for them. Pure, but for reading and writing a trace.

Cells are not aligned to records: tor writes 4048 bytes at a time. So the k-th cell of one direction of one connection
is there when byte 514 k is: to count whole cells in each record would lose one in eight. A trace begins and ends where
nothing is under way, so what is left over in the end is not Tor's cells but something else (a handshake).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CELL_BYTES = 514
# Of TLS 1.3: the header, the type of the content, the tag.
RECORD_BYTES = 5 + 1 + 16
OUT, IN = 1, -1  # as the field's files have it
_DIRECTIONS = {"up": OUT, "down": IN}


@dataclass(frozen=True)
class Record:
    """One line of the recorder's."""

    at_s: float
    direction: int
    size: int
    connection: int


@dataclass(frozen=True)
class Cell:
    """When it was whole, and which way it went."""

    at_s: float
    direction: int


def parse_records(lines: Iterable[str]) -> list[Record]:
    """The recorder's lines."""
    found = []
    for line in lines:
        at, way, size, connection = line.split()
        found.append(Record(float(at), _DIRECTIONS[way], int(size), int(connection)))
    return found


def count_cells(records: Iterable[Record]) -> tuple[list[Cell], int]:
    """The cells in their order, and how many bytes are left over, of all connections and directions together."""
    held: Counter[tuple[int, int]] = Counter()
    cells = []
    for record in records:
        key = record.connection, record.direction
        whole, held[key] = divmod(held[key] + record.size - RECORD_BYTES, CELL_BYTES)
        cells += [Cell(record.at_s, record.direction)] * whole
    return cells, sum(held.values())


def write(path: Path, cells: Sequence[Cell]) -> None:
    """A line for each cell: seconds since the first one, a tab, 1 (from the client) or -1. Whole or not at all."""
    begun = cells[0].at_s if cells else 0.0
    part = path.with_suffix(".part")
    part.write_text("".join(f"{cell.at_s - begun:.6f}\t{cell.direction}\n" for cell in cells))
    part.replace(path)


def read(path: Path) -> list[Cell]:
    """What `write` wrote, or anybody else in this format."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return [Cell(float(at), OUT if float(direction) > 0 else IN) for at, direction in pairs]
