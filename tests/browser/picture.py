"""Reads PNG pictures as Chromium writes them: 8 bits for each of red, green, blue (and alpha), not interlaced."""

from __future__ import annotations

import struct
import zlib


def size(data: bytes) -> tuple[int, int]:
    """Width and height."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack_from("!II", data, 16)


def decode(data: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height, and the rows: 3 bytes for each point."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from("!I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    width, height, depth, colours, *_, interlaced = struct.unpack("!IIBBBBB", chunks[0][1])
    assert (depth, interlaced) == (8, 0) and colours in (2, 6)
    size = 3 if colours == 2 else 4
    packed = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    rows, before, stride = [], bytes(width * size), width * size + 1
    for number in range(height):
        line = packed[number * stride : (number + 1) * stride]
        before = _unfiltered(line[0], bytearray(line[1:]), before, size)
        rows.append(b"".join(before[i : i + 3] for i in range(0, len(before), size)) if size == 4 else before)
    return width, height, rows


def point(rows: list[bytes], x: int, y: int) -> tuple[int, ...]:
    """The colour there."""
    return tuple(rows[y][3 * x : 3 * x + 3])


def _unfiltered(kind: int, line: bytearray, above: bytes, size: int) -> bytes:
    if kind == 2:
        return bytes((value + up) & 255 for value, up in zip(line, above, strict=True))
    for i in range(len(line) if kind else 0):
        left, up, corner = (line[i - size] if i >= size else 0), above[i], (above[i - size] if i >= size else 0)
        near = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
        line[i] = (line[i] + {1: left, 3: (left + up) // 2, 4: near}[kind]) & 255
    return bytes(line)
