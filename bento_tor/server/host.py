"""What `api.host()` tells of the machine, measured outside the sandbox with psutil.

A relay's live load helps those who hunt for guards, so the policy decides: nothing by default; `coarse` gives
rounded figures that change once an hour, without traffic; `full` is for a box of one's own. Addresses never, unless
full."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import psutil

_HOUR_S = 3600.0
_GIB = 1024**3
# How long the processors are watched for one figure of their use.
_SAMPLE_S = 0.2


class HostStats:
    """Figures of this machine at the level that the policy allows; `measure` blocks for a fraction of a second."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._coarse: dict[str, Any] = {}
        self._measured_at = -_HOUR_S

    def measure(self, wanted: str) -> dict[str, Any]:
        """The figures, at the lower of the level that is allowed and the one that is wanted."""
        levels = ("none", "coarse", "full")
        level = levels[min(levels.index(self._level), levels.index(wanted))]
        if level == "none":
            return {}
        return _full() if level == "full" else self._hourly()

    def _hourly(self) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._measured_at >= _HOUR_S:
            self._measured_at = now
            self._coarse = _rounded()
        return self._coarse


def _rounded() -> dict[str, Any]:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return {
        "cpu_count": psutil.cpu_count() or 1,
        "cpu_percent": round(psutil.cpu_percent(interval=_SAMPLE_S) / 25) * 25,
        "memory_total": round(memory.total / _GIB) * _GIB,
        "memory_used": round(memory.used / memory.total * 4) * round(memory.total / _GIB) * _GIB // 4,
        "disk_total": round(disk.total / _GIB / 10) * 10 * _GIB,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:00Z"),
    }


def _full() -> dict[str, Any]:
    memory, disk, traffic = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
    addresses = sorted(
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family.name in ("AF_INET", "AF_INET6")
    )
    return {
        "cpu_count": psutil.cpu_count() or 1,
        "cpu_percent": psutil.cpu_percent(interval=_SAMPLE_S),
        "memory_total": memory.total,
        "memory_used": memory.used,
        "disk_total": disk.total,
        "disk_used": disk.used,
        "addresses": addresses,
        "bytes_sent": traffic.bytes_sent if traffic else 0,
        "bytes_received": traffic.bytes_recv if traffic else 0,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
