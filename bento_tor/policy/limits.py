"""What one function may use. A frozen value with defaults; the policy of a box fills it."""

from __future__ import annotations

import msgspec

MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ceiling of one session. Every default is safe for a small relay.

    memory_bytes      resident memory of all its processes, /data included
    pids              processes and threads
    cpu_percent       share of one core
    wall_s            seconds from its start to its end
    data_bytes        its private /data (a tmpfs)
    open_files        descriptors of one process
    cpu_s             processor seconds of all its processes together
    data_inodes       files and directories in /data
    """

    memory_bytes: int = 128 * MIB
    pids: int = 32
    cpu_percent: int = 100
    wall_s: int = 300
    data_bytes: int = 16 * MIB
    open_files: int = 64
    cpu_s: int = 60
    data_inodes: int = 1024


# What Chromium needs to show an ordinary page (tests/browser); by the name of the image that has it.
NEEDS = {"browser": Limits(memory_bytes=256 * MIB, pids=128, data_bytes=64 * MIB, open_files=256)}
NEEDED = ("memory_bytes", "pids", "data_bytes", "open_files")
