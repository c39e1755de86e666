"""A box as its user sees it: store functions, run them, come back to sessions, erase.

One connection; whatever can travel together does: storing, starting and opening a function is one flight and one
round trip.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from bento_tor.client.route import DEFAULT_SOCKS, BoxAddress, dial, parse_address
from bento_tor.client.session import Session
from bento_tor.client.source import Call, Source, entry_call
from bento_tor.client.wire import CONNECTION, Wire, refused
from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import Refused, RemoteProtocolError
from bento_tor.policy import document
from bento_tor.policy import manifest as manifests
from bento_tor.policy.document import Policy
from bento_tor.policy.signature import Signed, verify
from bento_tor.protocol import messages as m

M = TypeVar("M", bound=m.Message)
AcceptPolicy = Callable[[Policy, bytes], None]


def connect(
    address: str,
    *,
    socks: str = DEFAULT_SOCKS,
    identity: str | None = None,
    timeout_s: float = 120.0,
    policy_digest: bytes | None = None,
    accept: AcceptPolicy | None = None,
) -> Box:
    """A box, to be used as a context manager.

    address        <56 letters>.onion[:PORT]; unix:PATH is a direct connection, without Tor
    socks          tor's SOCKS port, HOST:PORT or unix:PATH
    identity       connections with one identity may share circuits; by default each has its own
    timeout_s      for each step: connecting, and each answer
    policy_digest  the policy that the user has accepted before; without it the policy is fetched first
    accept         called with a policy not accepted before, and its digest; it raises to refuse"""
    return Box(
        parse_address(address),
        Endpoint.parse(socks),
        identity=identity or os.urandom(16).hex(),
        timeout_s=timeout_s,
        policy_digest=policy_digest,
        accept=accept,
    )


class Function:
    """A function stored at a box, by its invocation token."""

    def __init__(
        self,
        box: Box,
        invocation: bytes,
        *,
        shutdown: bytes | None = None,
        maybe_source: Source | None = None,
        public_id: str = "",
    ):
        self.invocation = invocation
        self.shutdown_token = shutdown
        self.public_id = public_id  # as the box names it to anybody; empty where it was not stored just now
        self._box = box
        self._maybe_source = maybe_source

    def start(self, call: Call | None = None) -> Session:
        """Start a session and attach to it; `call` is the entry without arguments where it is not given."""
        if call is None:
            if self._maybe_source is None:
                raise ValueError("a function known by its token alone needs a call")
            call = entry_call(self._maybe_source, [])
        return self._box.start(self.invocation, call)

    def shutdown(self) -> None:
        """Erase it at the box. Needs the shutdown token."""
        if self.shutdown_token is None:
            raise ValueError("this function's shutdown token is not known")
        self._box.shutdown(self.shutdown_token)


class Box:
    """One box, on one connection. See `connect`."""

    def __init__(
        self,
        address: BoxAddress,
        proxy: Endpoint,
        *,
        identity: str,
        timeout_s: float,
        policy_digest: bytes | None,
        accept: AcceptPolicy | None,
    ) -> None:
        self.address = address
        self.maybe_policy: Policy | None = None
        # Whether the onion address signed that policy; None where it is not known, or there is no address to ask for.
        self.policy_signed: bool | None = None
        self.policy_digest = b""  # of that policy; empty until it has been read
        self._proxy = proxy
        self._identity = identity
        self._timeout_s = timeout_s
        self._accepted = policy_digest
        self._accept = accept
        self._greeted = False
        self._wire: Wire

    def __enter__(self) -> Box:
        sock = dial(self.address, self._proxy, isolation=f"{self.address} {self._identity}", timeout_s=self._timeout_s)
        self._wire = Wire(sock, timeout_s=self._timeout_s).__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._wire.__exit__(*exc)

    # --- what a user does -------------------------------------------------------------------------------------

    def policy(self) -> Policy:
        """What this box is willing to do, as it says now."""
        self._fly([])
        if self.maybe_policy is None:
            self._wire.send(m.GetPolicy())
            answer = self._answer(CONNECTION)
            if not isinstance(answer, m.Policy):
                raise RemoteProtocolError("the box answered something else than its policy")
            self.maybe_policy = self._read_policy(answer)
        return self.maybe_policy

    def ping(self) -> float:
        """Seconds for a round trip to the box and back."""
        self._fly([])
        begun = time.monotonic()
        self._wire.send(m.Ping(0))
        if not isinstance(self._answer(CONNECTION), m.Pong):
            raise RemoteProtocolError("the box answered something else than Pong")
        return time.monotonic() - begun

    def upload(self, source: Source) -> Function:
        """Store a function under fresh tokens."""
        invocation, shutdown = _fresh_token(), _fresh_token()
        channel = self._wire.new_channel()
        self._fly([*_upload(channel, invocation, shutdown, source)], source)
        stored = self._finish(channel, m.Stored)
        return Function(self, invocation, shutdown=shutdown, maybe_source=source, public_id=stored.public_id)

    def function(self, invocation: bytes, *, shutdown: bytes | None = None) -> Function:
        """A function stored before, by its tokens."""
        return Function(self, invocation, shutdown=shutdown)

    def run(self, source: Source, call: Call | None = None) -> Session:
        """Store, start and open in one flight. `shutdown(session.maybe_shutdown)` erases it."""
        invocation, shutdown, token = _fresh_token(), _fresh_token(), _fresh_token()
        upload, channel = self._wire.new_channel(), self._wire.new_channel()
        self._fly(
            [
                *_upload(upload, invocation, shutdown, source),
                *_start(channel, invocation, token, call or entry_call(source, [])),
            ],
            source,
        )
        self._finish(upload, m.Stored)
        session = Session(self._wire, channel, token)
        session.maybe_shutdown = shutdown
        return session

    def start(self, invocation: bytes, call: Call) -> Session:
        """Start a stored function, and attach."""
        token, channel = _fresh_token(), self._wire.new_channel()
        self._fly([*_start(channel, invocation, token, call)])
        return Session(self._wire, channel, token)

    def attach(self, token: bytes, *, offset: int = 0) -> Session:
        """Come back to a session; its output from `offset` (units) on."""
        channel = self._wire.new_channel()
        self._fly([m.Open(channel, token, offset)])
        return Session(self._wire, channel, token, offset=offset)

    def shutdown(self, token: bytes) -> None:
        """Erase the function of this shutdown token, and end its sessions."""
        channel = self._wire.new_channel()
        self._fly([m.Shutdown(channel, token)])
        self._finish(channel, m.Gone)

    # --- the first words ----------------------------------------------------------------------------------------

    def _fly(self, flight: list[m.Message], maybe_source: Source | None = None) -> None:
        """Send a flight; the first one carries the Hello with it, if the box's policy is known."""
        if self._greeted:
            self._check_fit(maybe_source)
            self._wire.send(*flight)
            return
        self._greeted = True
        if self._accepted is not None:
            self._wire.send(m.Hello(m.VERSION, self._accepted), *flight)
            if self._welcome():
                return
        else:
            self._wire.send(m.Hello(m.VERSION, None))
            self._welcome()
        # The box has told its policy, and dropped the flight: say it again under the terms seen now.
        self._check_fit(maybe_source)
        self._wire.send(m.Hello(m.VERSION, self._accepted), *flight)
        if not self._welcome():
            raise RemoteProtocolError("the box changes its policy as we read it")

    def _welcome(self) -> bool:
        """The box's answer to Hello. False: it has sent a policy that was not accepted before; now it is."""
        welcome = self._answer(CONNECTION)
        if not isinstance(welcome, m.Welcome):
            raise RemoteProtocolError(f"the box answered {type(welcome).__name__} to Hello")
        if welcome.policy == self._accepted:
            return True
        told, policy = self._answer(CONNECTION), self._answer(CONNECTION)
        if not (isinstance(told, m.Refused) and isinstance(policy, m.Policy)):
            raise RemoteProtocolError("the box did not tell its policy")
        self.maybe_policy = self._read_policy(policy)
        digest = document.digest(policy.document)
        if digest != welcome.policy:
            raise RemoteProtocolError("the box's policy is not the one that it named")
        if self._accept is not None:
            self._accept(self.maybe_policy, digest)
        self._accepted = digest
        return False

    def _read_policy(self, told: m.Policy) -> Policy:
        """The policy, whose signature, if it has one, is of the address that we called."""
        if self.address.route == "onion":
            signed = Signed(told.document, told.certificate, told.signature)
            self.policy_signed = verify(signed, self.address.host)
        self.policy_digest = document.digest(told.document)
        return document.decode(told.document)

    def _check_fit(self, maybe_source: Source | None) -> None:
        """Refuse here what the box would refuse, before a byte of code leaves."""
        if maybe_source is None or self.maybe_policy is None:
            return
        if reasons := document.misfits(maybe_source.manifest, self.maybe_policy):
            raise Refused(
                f"{maybe_source.name} does not fit this box: it {'; it '.join(reasons)}",
                hint="'bento-tor client policy' shows what this box gives",
                code=m.Code.MANIFEST,
            )

    def _answer(self, channel: int) -> m.Message:
        return self._wire.wait(channel, deadline=time.monotonic() + self._timeout_s)

    def _finish(self, channel: int, wanted: type[M]) -> M:
        """Wait for the one answer of a channel."""
        answer = self._answer(channel)
        self._wire.forget(channel)
        if isinstance(answer, m.Refused):
            raise refused(answer)
        if not isinstance(answer, wanted):
            raise RemoteProtocolError(f"the box answered {type(answer).__name__}")
        return answer


def _upload(channel: int, invocation: bytes, shutdown: bytes, source: Source) -> Iterator[m.Message]:
    code = source.text.encode()
    manifest = manifests.encode(source.manifest)
    yield m.Store(channel, invocation, shutdown, manifest, len(code), hashlib.sha256(code).digest())
    for start in range(0, len(code), m.MAX_DATA_BYTES):
        yield m.Chunk(channel, start, code[start : start + m.MAX_DATA_BYTES])


def _start(channel: int, invocation: bytes, session: bytes, call: Call) -> Iterator[m.Message]:
    yield m.Execute(channel, invocation, session, call.name, call.arguments)
    yield m.Open(channel, session, 0)


def _fresh_token() -> bytes:
    return os.urandom(m.TOKEN_BYTES)
