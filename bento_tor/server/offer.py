"""The policy that clients see: what the operator wrote, and what the machine turned out to have."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bento_tor.policy.document import Policy
from bento_tor.policy.manifest import package_name

_RECORD = ".dist-info"


def offer(policy: Policy, packages_dirs: list[Path], *, cgroups: bool) -> Policy:
    """`policy` with the packages found in the images' folders, and with how its limits are enforced."""
    return msgspec.structs.replace(
        policy,
        packages=tuple(sorted({name for folder in packages_dirs for name in _packages(folder)})),
        enforcement="cgroups" if cgroups else "rlimits-only",
    )


def _packages(folder: Path) -> list[str]:
    """What pip left word of; a folder NAME-VERSION.dist-info each."""
    records = [path.name.removesuffix(_RECORD) for path in folder.glob(f"*{_RECORD}")]
    return [package_name(record.rpartition("-")[0]) for record in records]
