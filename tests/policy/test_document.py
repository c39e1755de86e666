"""Policy and manifest: every mismatch has its words, and the limits are never above the policy's."""

from __future__ import annotations

import msgspec
import pytest

from bento_tor.errors import ConfigError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.limits import MIB, NEEDED, NEEDS, Limits
from bento_tor.policy.manifest import Manifest
from bento_tor.protocol.messages import MAX_POLICY_BYTES

POLICY = Policy(limits=Limits(memory_bytes=128 * MIB, wall_s=60), host_stats="coarse")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (Manifest(image="browser"), "asks for the image 'browser'; this box has python"),
        (Manifest(memory=512), "asks for 512 MiB of memory; this box gives 128 MiB"),
        (Manifest(seconds=61), "asks for 61 seconds; this box gives 60"),
        (Manifest(egress="exit"), "asks for egress 'exit'; this box gives none"),
        (Manifest(host="full"), "asks for host statistics 'full'; this box gives 'coarse'"),
        (Manifest(tor=("publish",)), "asks for the Tor routines publish; this box gives none"),
    ],
)
def test_each_mismatch_is_said_in_words(manifest: Manifest, words: str) -> None:
    assert document.misfits(manifest, POLICY) == [words]


def test_all_reasons_are_given_at_once() -> None:
    assert len(document.misfits(Manifest(memory=512, seconds=99), POLICY)) == 2


def test_a_fitting_manifest_shrinks_the_limits() -> None:
    asked = Manifest(memory=64, seconds=5, host="coarse")
    assert document.misfits(asked, POLICY) == []
    limits = document.limits_for(asked, POLICY)
    assert (limits.memory_bytes, limits.wall_s) == (64 * MIB, 5)


def test_a_manifest_that_asks_for_nothing_gets_the_ceiling() -> None:
    assert document.limits_for(Manifest(), POLICY) == POLICY.limits


def test_limits_are_never_above_the_policy_even_for_a_manifest_that_lies() -> None:
    assert document.limits_for(Manifest(memory=4096, seconds=9999), POLICY) == POLICY.limits


def test_equal_policies_have_equal_bytes_and_others_do_not() -> None:
    assert document.encode(POLICY) == document.encode(document.decode(document.encode(POLICY)))
    assert document.digest(document.encode(POLICY)) != document.digest(document.encode(Policy()))


def test_bytes_that_are_no_policy_are_refused() -> None:
    with pytest.raises(ConfigError):
        document.decode(b"\x81\xa6colour\x01")


def found(*packages: str) -> dict[str, document.Found]:
    return {"python": document.Found("0" * 64, "python", packages)}


def test_what_a_function_needs_and_keeps_is_matched_too() -> None:
    asked = Manifest(disk=64, store=True, packages=("requests", "numpy"))
    assert document.misfits(asked, Policy(found=found("requests"))) == [
        "asks for 64 MiB of disk; this box gives 16 MiB",
        "asks for storage; this box keeps no data of functions",
        "needs the packages numpy; its image 'python' has requests",
    ]
    offered = Policy(found=found("numpy", "requests"), store_bytes=1, limits=Limits(data_bytes=64 * MIB))
    assert document.misfits(asked, offered) == []
    assert document.limits_for(Manifest(disk=2), Policy()).data_bytes == 2 * MIB


def test_the_largest_policy_fits_a_message() -> None:
    word = "é" * 80
    largest = Policy(
        images=("x" * 64,) * 4,
        tor=("x" * 64,) * 32,
        found={f"{place}" * 64: document.Found("0" * 64, "x" * 64, ("x" * 64,) * 128) for place in range(4)},
        egress_rules=("accept6 [2001:4860:4860:1111:2222:3333:4444:5555]/128:10000-65535",) * 128,
        contact=word * 3,
        terms="\U0001f9c5" * 4096,
    )
    written = document.encode(largest)
    assert document.decode(written) == largest and len(written) <= MAX_POLICY_BYTES


@pytest.mark.parametrize("limits", [Limits(wall_s=0), Limits(pids=-1), Limits(memory_bytes=0)])
def test_a_limit_that_is_none_is_no_policy(limits: Limits) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Policy(limits=limits)


def test_the_image_browser_wants_limits_that_chromium_can_live_with():
    for name in NEEDED:
        few = msgspec.structs.replace(NEEDS["browser"], **{name: 1})
        with pytest.raises(
            ValueError, match=rf"limits\.{name} is too little, 1: the image 'browser' needs memory_bytes "
        ):
            Policy(images=("python", "browser"), limits=few)
    policy = Policy(images=("browser",), limits=NEEDS["browser"])
    assert document.misfits(Manifest(image="browser"), policy) == []
    assert document.misfits(Manifest(image="browser", memory=100, disk=1), policy) == [
        "asks for 100 MiB of memory; its image 'browser' needs 256 MiB",
        "asks for 1 MiB of disk; its image 'browser' needs 64 MiB",
    ]
