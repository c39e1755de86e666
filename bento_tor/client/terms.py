"""The first words of a connection: what the user accepted of a box's policy, and what the box says it is now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bento_tor.client.route import BoxAddress
from bento_tor.client.source import Source
from bento_tor.client.wire import CONNECTION, Wire
from bento_tor.errors import Refused, RemoteProtocolError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.signature import Signed, verify
from bento_tor.protocol import messages as m

AcceptPolicy = Callable[[Policy, bytes], None]


class Terms:
    """One box's policy as this user has seen it. Outlives connections: what was accepted once is not asked again."""

    def __init__(self, address: BoxAddress, *, accepted: bytes | None, accept: AcceptPolicy | None) -> None:
        self.accepted = accepted
        self.maybe_policy: Policy | None = None
        self.signed: bool | None = None
        self.digest = b""
        self._address = address
        self._accept = accept

    def greet(self, wire: Wire, flight: Sequence[m.Message], maybe_source: Source | None) -> None:
        """Say Hello, and the flight with it if the box's policy is known; say it again where the box told another.

        Raises whatever `accept` raises, and Refused where the function cannot run under a policy told now."""
        if self.accepted is not None:
            wire.send(m.Hello(m.VERSION, self.accepted), *flight)
        else:
            wire.send(m.Hello(m.VERSION, None))
        if self._welcome(wire):
            return
        # The box has told its policy, and dropped the flight: say it again under the terms seen now.
        self.check_fit(maybe_source)
        wire.send(m.Hello(m.VERSION, self.accepted), *flight)
        if not self._welcome(wire):
            raise RemoteProtocolError("the box changes its policy as we read it")

    def read(self, told: m.Policy) -> Policy:
        """The policy, whose signature, if it has one, is of the address that we called; by the exit route, of the
        address that it names itself: who calls must know it, or keep what he sees first."""
        policy = document.decode(told.document)
        if self._address.route != "direct":
            signer = self._address.host if self._address.route == "onion" else policy.address
            signed = Signed(told.document, told.certificate, told.signature)
            self.signed = verify(signed, signer) if signer else False
        self.digest = document.digest(told.document)
        self.maybe_policy = policy
        return policy

    def check_fit(self, maybe_source: Source | None) -> None:
        """Refuse here what the box would refuse, before a byte of code leaves."""
        if maybe_source is None or self.maybe_policy is None:
            return
        if reasons := document.misfits(maybe_source.manifest, self.maybe_policy):
            raise Refused(
                f"{maybe_source.name} does not fit this box: it {'; it '.join(reasons)}",
                hint="'bento-tor client policy' shows what this box gives",
                code=m.Code.MANIFEST,
            )

    def _welcome(self, wire: Wire) -> bool:
        """The box's answer to Hello. False: it has sent a policy that was not accepted before; now it is."""
        welcome = _answer(wire)
        if not isinstance(welcome, m.Welcome):
            raise RemoteProtocolError(f"the box answered {type(welcome).__name__} to Hello")
        if welcome.policy == self.accepted:
            return True
        told, policy = _answer(wire), _answer(wire)
        if not (isinstance(told, m.Refused) and isinstance(policy, m.Policy)):
            raise RemoteProtocolError("the box did not tell its policy")
        value = self.read(policy)
        if self.digest != welcome.policy:
            raise RemoteProtocolError("the box's policy is not the one that it named")
        if self._accept is not None:
            self._accept(value, self.digest)
        self.accepted = self.digest
        return False


def _answer(wire: Wire) -> m.Message:
    return wire.wait(CONNECTION, deadline=time.monotonic() + wire.timeout_s)
