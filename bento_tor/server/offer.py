"""The policy that clients see: what the operator wrote, and what the machine turned out to have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from bento_tor.policy.document import Found, Policy
from bento_tor.policy.manifest import package_name
from bento_tor.sandbox.images import Image

_RECORD = ".dist-info"


def offer(policy: Policy, images: Iterable[Image], *, cgroups: bool, address: str) -> Policy:
    """`policy` with what its images are, how its limits are enforced, and whose it is."""
    return msgspec.structs.replace(
        policy,
        found={
            image.name: Found(image.digest, image.profile, tuple(sorted(_packages(image.packages)))) for image in images
        },
        enforcement="cgroups" if cgroups else "rlimits-only",
        address=address,
    )


def _packages(folder: Path) -> list[str]:
    """What pip left word of; a folder NAME-VERSION.dist-info each."""
    records = [path.name.removesuffix(_RECORD) for path in folder.glob(f"*{_RECORD}")]
    return [package_name(record.rpartition("-")[0]) for record in records]
