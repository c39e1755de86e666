"""The policy of a box: what it is willing to do. Owns its canonical bytes and digest, and the match with a manifest."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

from bento_tor.errors import ConfigError
from bento_tor.policy import destinations
from bento_tor.policy.limits import MIB, NEEDED, NEEDS, Limits
from bento_tor.policy.manifest import Manifest

_NEEDED_BY = {"memory": "memory_bytes", "disk": "data_bytes"}
_LEVELS = ("none", "coarse", "full")
# What a document can hold at most, so that every one fits a frame of the protocol.
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
Words = Annotated[tuple[Word, ...], msgspec.Meta(max_length=32)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]

# Fields that are found out when the box starts. An operator who writes them would promise what he cannot know.
FOUND = ("enforcement", "found", "address")


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an image turned out to be.

    digest    SHA-256, hexadecimal, of its interpreter's version and its packages' files
    profile   the system calls that its functions may make
    packages  their names, besides the standard library"""

    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    profile: Word
    packages: Annotated[tuple[Word, ...], msgspec.Meta(max_length=128)]


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a box offers to any function. Sizes are bytes; a size or count of 0 means that there is none of it.

    images                    names of the images it has
    limits                    the ceiling of one session
    sessions                  how many may run at once, in all
    sessions_per_connection   and started by one connection of a client
    functions                 how many may be stored, in all
    functions_per_connection  and by one connection
    function_days             how long a stored function lives
    output_hours              how long output waits for its reader after the function's end
    kept_bytes                output of a session that is kept until its reader comes
    output_bytes              what one session may send in all
    host_stats                what api.host() tells: none, coarse (rounded, hourly), full
    egress                    the ways out that it offers besides none
    egress_rules              the operator's own lines, before the relay's exit policy: "reject *:25"
    connections               how many a session may have open at once, where it has egress
    egress_bytes              what it may send out through them
    tor                       the Tor routines that it offers
    boxes                     how many other boxes a session may use, through tor: 0, none
    box_visits                how many connections it may make to them, in all
    box_bytes                 what may go there and come from there, in all
    store_bytes               what one function may keep through api.store: 0, nothing
    store_blobs               in how many pieces
    contact                   where an abuse report goes
    terms                     what the operator wants users to know
    enforcement               cgroups, or rlimits-only where the operator serves without (found at start)
    found                     what each of its images is, by its name (found at start)
    address                   its onion address: whose signature this is, for who comes by the exit route (found at
                              start)
    """

    images: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=4)] = ("python",)
    limits: Limits = Limits()
    sessions: Count = 16
    sessions_per_connection: Count = 8
    functions: Count = 1000
    functions_per_connection: Count = 64
    function_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30
    output_hours: Annotated[int, msgspec.Meta(ge=1, le=48)] = 1
    kept_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] = 4 * MIB
    output_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 50)] = 1024 * MIB
    host_stats: Literal["none", "coarse", "full"] = "none"
    egress: Annotated[tuple[Literal["exit", "tor"], ...], msgspec.Meta(max_length=2)] = ()
    egress_rules: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=80)], ...], msgspec.Meta(max_length=128)] = ()
    connections: Count = 16
    egress_bytes: Size = 64 * MIB
    tor: Words = ()
    boxes: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    box_visits: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    box_bytes: Size = 64 * MIB
    store_bytes: Size = 0
    store_blobs: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    contact: Annotated[str, msgspec.Meta(max_length=256)] = ""
    terms: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    enforcement: Literal["cgroups", "rlimits-only"] = "cgroups"
    found: Annotated[dict[Word, Found], msgspec.Meta(max_length=4)] = {}
    address: Annotated[str, msgspec.Meta(max_length=62, pattern=r"^(?:[a-z2-7]{56}\.onion)?$")] = ""

    def __post_init__(self) -> None:
        """A ValueError that names the key, where a limit is none at all, or too little for an image, or an egress line
        is no rule."""
        for name, value in msgspec.structs.asdict(self.limits).items():
            if value < 1:
                raise ValueError(f"limits.{name} must be at least 1, not {value}")
        for image in set(self.images) & set(NEEDS):
            needs = {name: getattr(NEEDS[image], name) for name in NEEDED}
            for name in needs:
                if (has := getattr(self.limits, name)) < needs[name]:
                    told = ", ".join(f"{other} {value}" for other, value in needs.items())
                    raise ValueError(f"limits.{name} is too little, {has}: the image {image!r} needs {told}")
        try:
            destinations.parse_operator(self.egress_rules)
        except ConfigError as why:
            raise ValueError(f"egress_rules: {why.message}") from why


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
    for name, asked in (("memory", manifest.memory), ("disk", manifest.disk)):
        needs = getattr(NEEDS.get(manifest.image), _NEEDED_BY[name], 0) // MIB
        if 0 < asked < needs:
            reasons.append(f"asks for {asked} MiB of {name}; its image {manifest.image!r} needs {needs} MiB")
    if manifest.seconds > limits.wall_s:
        reasons.append(f"asks for {manifest.seconds} seconds; this box gives {limits.wall_s}")
    if manifest.egress != "none" and manifest.egress not in policy.egress:
        reasons.append(f"asks for egress {manifest.egress!r}; this box gives {_words(policy.egress)}")
    if _LEVELS.index(manifest.host) > _LEVELS.index(policy.host_stats):
        reasons.append(f"asks for host statistics {manifest.host!r}; this box gives {policy.host_stats!r}")
    if manifest.disk * MIB > limits.data_bytes:
        reasons.append(f"asks for {manifest.disk} MiB of disk; this box gives {limits.data_bytes // MIB} MiB")
    if manifest.store and not policy.store_bytes:
        reasons.append("asks for storage; this box keeps no data of functions")
    if manifest.box and not policy.boxes:
        reasons.append("asks for other boxes; this box has no way to them for functions")
    packages = policy.found[manifest.image].packages if manifest.image in policy.found else ()
    if lacking := [name for name in manifest.packages if name not in packages]:
        reasons.append(f"needs the packages {_words(lacking)}; its image {manifest.image!r} has {_words(packages)}")
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
        data_bytes=min(manifest.disk * MIB or limits.data_bytes, limits.data_bytes),
    )


def _words(items: tuple[str, ...] | list[str]) -> str:
    return ", ".join(items) if items else "none"
