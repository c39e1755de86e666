"""The policy that clients see: what the operator wrote, and what the machine turned out to have."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bento_tor.policy.document import Found, Policy
from bento_tor.sandbox.images import Image, package_names


def offer(policy: Policy, images: Iterable[Image], *, cgroups: bool, address: str) -> Policy:
    """`policy` with what its images are, how its limits are enforced, and whose it is."""
    return msgspec.structs.replace(
        policy,
        found={image.name: Found(image.digest, image.profile, package_names(image)) for image in images},
        enforcement="cgroups" if cgroups else "rlimits-only",
        address=address,
    )
