"""The policy of a box: what it is willing to do. Owns its canonical bytes and digest, and the match with a manifest."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

from bento_tor.errors import ConfigError
from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.manifest import Manifest

_LEVELS = ("none", "coarse", "full")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a box offers to any function.

    images       names of the images it has
    limits       the ceiling of one session
    sessions     how many may run at once, in all
    functions    how many may be stored, in all
    kept_bytes   output of a session that is kept until its reader comes
    host_stats   what api.host() tells: none, coarse (rounded, hourly), full
    egress       the ways out that it offers besides none
    tor          the Tor routines that it offers
    contact      where an abuse report goes
    terms        what the operator wants users to know
    """

    images: tuple[str, ...] = ("python",)
    limits: Limits = Limits()
    sessions: int = 16
    functions: int = 1000
    kept_bytes: int = 4 * MIB
    host_stats: Literal["none", "coarse", "full"] = "none"
    egress: tuple[Literal["exit", "tor"], ...] = ()
    tor: tuple[str, ...] = ()
    contact: Annotated[str, msgspec.Meta(max_length=256)] = ""
    terms: Annotated[str, msgspec.Meta(max_length=8192)] = ""


def encode(policy: Policy) -> bytes:
    """Canonical bytes: equal policies give equal bytes."""
    return msgspec.msgpack.encode(policy, order="deterministic")


def decode(document: bytes) -> Policy:
    """Raises ConfigError where the bytes are no policy of a version that we know."""
    try:
        return msgspec.msgpack.decode(document, type=Policy)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as why:
        raise ConfigError(f"the box's policy cannot be read: {why}", hint="update bento-tor") from why


def digest(document: bytes) -> bytes:
    """SHA-256 of the canonical bytes: what a client accepts and names in its Hello."""
    return hashlib.sha256(document).digest()


def misfits(manifest: Manifest, policy: Policy) -> list[str]:
    """Every reason why a box with this policy will not run a function with this manifest; empty: it will."""
    limits = policy.limits
    reasons = []
    if manifest.image not in policy.images:
        reasons.append(f"asks for the image {manifest.image!r}; this box has {_words(policy.images)}")
    if manifest.memory * MIB > limits.memory_bytes:
        reasons.append(f"asks for {manifest.memory} MiB of memory; this box gives {limits.memory_bytes // MIB} MiB")
    if manifest.seconds > limits.wall_s:
        reasons.append(f"asks for {manifest.seconds} seconds; this box gives {limits.wall_s}")
    if manifest.egress != "none" and manifest.egress not in policy.egress:
        reasons.append(f"asks for egress {manifest.egress!r}; this box gives {_words(policy.egress)}")
    if _LEVELS.index(manifest.host) > _LEVELS.index(policy.host_stats):
        reasons.append(f"asks for host statistics {manifest.host!r}; this box gives {policy.host_stats!r}")
    if missing := [routine for routine in manifest.tor if routine not in policy.tor]:
        reasons.append(f"asks for the Tor routines {_words(missing)}; this box gives {_words(policy.tor)}")
    return reasons


def limits_for(manifest: Manifest, policy: Policy) -> Limits:
    """The limits to run under: what the manifest asks for where it asks, the policy's ceiling where it does not."""
    limits = policy.limits
    return msgspec.structs.replace(
        limits,
        memory_bytes=min(manifest.memory * MIB or limits.memory_bytes, limits.memory_bytes),
        wall_s=min(manifest.seconds or limits.wall_s, limits.wall_s),
    )


def _words(items: tuple[str, ...] | list[str]) -> str:
    return ", ".join(items) if items else "none"
