"""A policy's signature: good, absent, or refused; against the address that the user typed and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bento_tor.controller.onion import onion_address
from bento_tor.errors import ConfigError, RemoteProtocolError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.signature import CERTIFICATE_BYTES, SIGNATURE_BYTES, Signed, sign, verify

IDENTITY, RECORD = bytes(range(32)), bytes(range(32, 64))
ADDRESS = onion_address(IDENTITY)
DOCUMENT = document.encode(Policy())
SIGNED = sign(DOCUMENT, IDENTITY, RECORD)


def test_a_signed_policy_is_known_by_its_address_alone() -> None:
    assert verify(SIGNED, ADDRESS)
    assert (len(SIGNED.certificate), len(SIGNED.signature)) == (CERTIFICATE_BYTES, SIGNATURE_BYTES)
    assert sign(DOCUMENT, IDENTITY, RECORD) == SIGNED, "equal policies have equal signatures"


def test_an_unsigned_one_is_told_apart_and_not_taken_for_signed() -> None:
    assert not verify(Signed(DOCUMENT), ADDRESS)


@pytest.mark.parametrize(
    "forged",
    [
        replace(SIGNED, document=document.encode(Policy(sessions=1))),
        replace(SIGNED, signature=b""),
        replace(SIGNED, certificate=b""),
        replace(SIGNED, signature=bytes(64)),
        replace(SIGNED, certificate=bytes(96)),
        replace(SIGNED, certificate=SIGNED.certificate[:40]),
        replace(SIGNED, certificate=os.urandom(32) + SIGNED.certificate[32:]),
        sign(DOCUMENT, os.urandom(32), RECORD),
        replace(SIGNED, signature=sign(DOCUMENT, IDENTITY, os.urandom(32)).signature),
        # The identity key's own signature of the policy is no certificate, nor is the certificate a signature.
        replace(SIGNED, signature=SIGNED.certificate[32:]),
    ],
)
def test_whatever_is_not_the_operators_is_refused(forged: Signed) -> None:
    with pytest.raises(RemoteProtocolError, match="not signed by that address"):
        verify(forged, ADDRESS)


def test_a_policy_of_one_box_is_not_that_of_another_with_the_same_record_key() -> None:
    other = onion_address(bytes(32))
    with pytest.raises(RemoteProtocolError):
        verify(SIGNED, other)
    with pytest.raises(ConfigError):
        verify(SIGNED, "0.onion")
