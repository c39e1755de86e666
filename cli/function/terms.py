"""Under which policy a function is tried, and what its author should know of that."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from bento_tor.cli import ui
from bento_tor.client.source import Source
from bento_tor.errors import ConfigError
from bento_tor.policy.document import Policy, misfits
from bento_tor.policy.limits import MIB
from bento_tor.policy.manifest import Manifest

_STORE_BYTES = 16 * MIB


def policy_for(function: Source, policy_file: str | None, timeout_s: float | None) -> tuple[Source, Policy]:
    """The policy of the box that tries it, and the function as it is tried there.

    Without a file that gives what the manifest asks for, as far as this machine can without Tor. Raises ConfigError for
    what it cannot."""
    manifest = function.manifest
    if manifest.tor:
        raise ConfigError(
            f"{function.name} asks for the Tor routines {', '.join(manifest.tor)}, and a test has no tor",
            hint="run it at a box of yours whose policy offers them; docs/cli.md, 'The settings of a box'",
        )
    policy = _read(policy_file) if policy_file else _widest(manifest)
    egress = tuple(word for word in policy.egress if word == manifest.egress)
    images = (manifest.image,) if manifest.image in policy.images else policy.images
    policy = msgspec.structs.replace(policy, images=images, egress=egress, tor=())
    if timeout_s is None:
        return function, policy
    limits = msgspec.structs.replace(policy.limits, wall_s=math.ceil(timeout_s))
    # What it asks for is what the user has just overruled.
    manifest = msgspec.structs.replace(manifest, seconds=0)
    return msgspec.structs.replace(function, manifest=manifest), msgspec.structs.replace(policy, limits=limits)


def say_terms(manifest: Manifest, policy: Policy, egress: str) -> None:
    """What the test lacks, or has that a box may not have. Raises ConfigError for an egress that it cannot give."""
    if manifest.egress == "tor" and egress == "exit":
        raise ConfigError(
            "the function asks for egress through tor, and a test has no tor",
            hint="test it without --egress, then run it at a box of 'bento-tor demo --keep'",
        )
    if egress == "exit" and manifest.egress == "none":
        ui.warn("the function's manifest asks for no egress: it gets none")
    elif egress == "none" and policy.egress:
        how = "--egress exit lets it out to ports 80 and 443" if manifest.egress == "exit" else "it would need a tor"
        ui.warn(f"a test lets nothing out: each connection of the function fails; {how}")
    elif policy.egress:
        ui.warn("the function connects from this machine's own address, not through Tor")
    say_beyond_defaults(manifest)


def say_beyond_defaults(manifest: Manifest) -> None:
    """What only a box takes whose operator offers more than a box does by itself."""
    for reason in misfits(msgspec.structs.replace(manifest, packages=()), Policy()):
        ui.say(f"note: a box at its defaults would refuse it: it {reason}")


def _read(file: str) -> Policy:
    from bento_tor.server.settings import read_policy

    return read_policy(Path(file))


def _widest(manifest: Manifest) -> Policy:
    policy = Policy()
    limits = msgspec.structs.replace(
        policy.limits,
        memory_bytes=max(policy.limits.memory_bytes, manifest.memory * MIB),
        wall_s=max(policy.limits.wall_s, manifest.seconds),
        data_bytes=max(policy.limits.data_bytes, manifest.disk * MIB),
    )
    return msgspec.structs.replace(
        policy,
        images=(manifest.image,),
        limits=limits,
        host_stats="full",
        store_bytes=_STORE_BYTES,
        egress=() if manifest.egress == "none" else (manifest.egress,),
    )
