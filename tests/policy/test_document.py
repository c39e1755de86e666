"""Policy and manifest: every mismatch has its words, and the limits are never above the policy's."""

from __future__ import annotations

import pytest

from bento_tor.errors import ConfigError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.manifest import Manifest

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
