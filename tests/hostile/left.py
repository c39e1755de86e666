"""What sessions have left behind, seen from outside. Travels along for the rootless run."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = "/sys/fs/cgroup"


def left_behind(keeper: int) -> list[str]:
    """Under this keeper: processes, cgroups."""
    found = [f"process {child}" for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
    return found + [leaf for group in cgroups_of(keeper) for leaf in leaves(group)]


def cgroups_of(keeper: int) -> list[str]:
    """The groups of this keeper. (A glob would stumble over what goes away meanwhile.)"""
    name = f"bento-tor-{keeper}-"
    return [f"{path}/{child}" for path, children, _ in os.walk(ROOT) for child in children if child.startswith(name)]


def leaves(group: str) -> list[str]:
    """Of sessions, and of sandboxes that wait ready."""
    try:
        return [entry.path for entry in os.scandir(group) if entry.is_dir()]
    except FileNotFoundError:
        return []
