"""A box as its user sees it: store functions, run them, come back to sessions, erase.

Whatever can travel together does: storing, starting and opening a function is one flight and one round trip. Where the
connection breaks, what was going on is said again on the next one; all of it is idempotent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from bento_tor.client import tickets
from bento_tor.client.line import Line, OnReconnect
from bento_tor.client.retries import Ledger, MemoryLedger, Retries
from bento_tor.client.route import DEFAULT_SOCKS, BoxAddress, TorTransport, UnixTransport, parse_address
from bento_tor.client.session import Begun, Session
from bento_tor.client.source import Call, Source, entry_call
from bento_tor.client.terms import AcceptPolicy, Terms
from bento_tor.client.tickets import Ticket
from bento_tor.client.transport import Broken, Transport
from bento_tor.client.upload import Upload
from bento_tor.client.wire import CONNECTION, Wire, refused
from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import BentoError, ConfigError, ConnectError, Refused, RemoteProtocolError
from bento_tor.policy.document import Policy
from bento_tor.protocol import messages as m

M = TypeVar("M", bound=m.Message)


def connect(
    address: str,
    *,
    socks: str = DEFAULT_SOCKS,
    identity: str | None = None,
    timeout_s: float = 120.0,
    policy_digest: bytes | None = None,
    accept: AcceptPolicy | None = None,
    retries: Retries | None = None,
    ledger: Ledger | None = None,
    on_reconnect: OnReconnect | None = None,
    transport: Transport | None = None,
) -> Box:
    """A box, to be used as a context manager.

    address        <56 letters>.onion[:PORT]; unix:PATH is a direct connection, without Tor
    socks          tor's SOCKS port, HOST:PORT or unix:PATH
    identity       connections with one identity may share circuits; by default each has its own
    timeout_s      for each step: connecting, each answer, and coming back after a connection broke
    policy_digest  the policy that the user has accepted before; without it the policy is fetched first
    accept         called with a policy not accepted before, and its digest; it raises to refuse
    retries        how often to come back by itself (by default 3 times in 10 minutes; Retries(most=0): never)
    ledger         where reconnections are counted, if other processes of this user are to be counted too
    on_reconnect   told before each reconnection, from the thread that waits for it
    transport      another way than Tor's, for tests; see bento_tor.client.memory"""
    place = parse_address(address)
    if transport is None:
        transport = _transport(place, Endpoint.parse(socks), identity or os.urandom(16).hex(), timeout_s)
    return Box(
        place,
        Line(
            transport,
            Terms(place, accepted=policy_digest, accept=accept),
            timeout_s=timeout_s,
            retries=retries or Retries(),
            ledger=ledger or MemoryLedger(),
            on_reconnect=on_reconnect,
        ),
    )


@contextmanager
def attach(
    text: str,
    *,
    offset: int = 0,
    socks: str = DEFAULT_SOCKS,
    identity: str | None = None,
    timeout_s: float = 120.0,
    on_reconnect: OnReconnect | None = None,
) -> Iterator[Session]:
    """Come back to a session from anywhere, with its ticket alone: `bento1:<box>:session:<token>`.

    Raises ConfigError where the text is no session's ticket. The policy is not asked about again: it was accepted by
    who started the session, and nothing new is run."""
    ticket = tickets.parse(text)
    if ticket.role != "session":
        raise ConfigError(f"this is a ticket for the {ticket.role} of a function, not a session's")
    with (
        connect(ticket.box, socks=socks, identity=identity, timeout_s=timeout_s, on_reconnect=on_reconnect) as box,
        box.attach(ticket.token, offset=offset) as session,
    ):
        yield session


def _transport(address: BoxAddress, proxy: Endpoint, identity: str, timeout_s: float) -> Transport:
    if address.route == "exit":
        raise ConfigError(
            "a relay's fingerprint names a box by the exit route",
            hint="hand in a transport of client.exit_route.ExitRoute, or name the box's onion address",
        )
    if address.route == "direct":
        return UnixTransport(address, timeout_s=timeout_s)
    return TorTransport(address, proxy, isolation=f"{address} {identity}", timeout_s=timeout_s)


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
    """One box, by a connection that comes back where it breaks. See `connect`."""

    def __init__(self, address: BoxAddress, line: Line) -> None:
        self.address = address
        self._line = line

    def __enter__(self) -> Box:
        self._line.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self._line.close()

    def on_sent(self, told: Callable[[int], None]) -> None:
        """From here on `told` hears how many bytes have gone, after each write: what an upload's progress is shown by.
        What is said again after a connection broke counts again."""
        self._line.on_sent = told

    @property
    def maybe_policy(self) -> Policy | None:
        """The policy, once the box has told it."""
        return self._line.terms.maybe_policy

    @property
    def policy_signed(self) -> bool | None:
        """Whether the onion address signed that policy; None where it is not known, or there is no address to ask."""
        return self._line.terms.signed

    @property
    def policy_digest(self) -> bytes:
        """The digest of that policy; empty until it has been read."""
        return self._line.terms.digest

    @property
    def _wire(self) -> Wire:
        return self._line.wire

    # --- what a user does -------------------------------------------------------------------------------------

    def policy(self) -> Policy:
        """What this box is willing to do, as it says now."""

        def ask(wire: Wire, done: int) -> Policy:
            self._line.fly(wire, [])
            if self.maybe_policy is not None:
                return self.maybe_policy
            wire.send(m.GetPolicy())
            answer = _answer(wire, CONNECTION)
            if not isinstance(answer, m.Policy):
                raise RemoteProtocolError("the box answered something else than its policy")
            return self._line.terms.read(answer)

        return self._line.again(ask)

    def ping(self) -> float:
        """Seconds for a round trip to the box and back."""

        def ask(wire: Wire, done: int) -> float:
            self._line.fly(wire, [])
            begun = time.monotonic()
            wire.send(m.Ping(0))
            if not isinstance(_answer(wire, CONNECTION), m.Pong):
                raise RemoteProtocolError("the box answered something else than Pong")
            return time.monotonic() - begun

        return self._line.again(ask)

    def upload(self, source: Source, *, invocation: bytes | None = None, shutdown: bytes | None = None) -> Function:
        """Store a function, under fresh tokens where none are given."""
        upload = Upload(source, invocation or _fresh_token(), shutdown or _fresh_token())
        with self._taking_back(upload, known=invocation is not None or shutdown is not None):
            stored = self._line.again(lambda wire, done: self._store(wire, upload, again=done > 0)[0])
        return Function(
            self, upload.invocation, shutdown=upload.shutdown, maybe_source=source, public_id=stored.public_id
        )

    def function(self, invocation: bytes, *, shutdown: bytes | None = None) -> Function:
        """A function stored before, by its tokens."""
        return Function(self, invocation, shutdown=shutdown)

    def run(self, source: Source, call: Call | None = None, *, first: bytes | None = None) -> Session:
        """Store, start and open in one flight, with the `first` message of input if there is one (up to 64 KiB).

        `shutdown(session.maybe_shutdown)` erases it."""
        upload = Upload(source, _fresh_token(), _fresh_token())
        begun, token = Begun(upload.invocation, call or entry_call(source, []), first), _fresh_token()

        def work(wire: Wire, done: int) -> Session:
            _, channel = self._store(wire, upload, again=done > 0, begun=(begun, token))
            return self._session(wire, channel, token, begun=begun, ghosts=done)

        with self._taking_back(upload):
            session = self._line.again(work)
        session.maybe_shutdown = upload.shutdown
        return session

    def start(
        self, invocation: bytes, call: Call, *, session: bytes | None = None, first: bytes | None = None
    ) -> Session:
        """Start a stored function, and attach. `session`: its token; a session that is known is not started again."""
        begun, token = Begun(invocation, call, first), session or _fresh_token()

        def work(wire: Wire, done: int) -> Session:
            channel = wire.new_channel()
            self._line.fly(wire, begun.first_flight(channel, token))
            return self._session(wire, channel, token, begun=begun, ghosts=done)

        return self._line.again(work)

    def attach(self, token: bytes, *, offset: int = 0) -> Session:
        """Come back to a session; its output from `offset` (units) on."""

        def work(wire: Wire, done: int) -> Session:
            channel = wire.new_channel()
            self._line.fly(wire, [m.Open(channel, token, offset)])
            return self._session(wire, channel, token, offset=offset, ghosts=done)

        return self._line.again(work)

    def shutdown(self, token: bytes, *, last: bool = False) -> None:
        """Erase the function of this shutdown token, and end its sessions.

        `last`: nothing more is wanted of this connection. Where a padded session (`api.pad_to`) has ended on it, the
        box erases and hangs up without a word; that is its answer then."""

        def work(wire: Wire, done: int) -> None:
            channel = wire.new_channel()
            self._line.fly(wire, [m.Shutdown(channel, token)])
            try:
                _finish(wire, channel, m.Gone)
            except Broken:
                if not last:
                    raise
            except Refused as error:
                # Said twice: the first time may have done it, and the answer was lost.
                if not (done and error.code == m.Code.TOKEN):
                    raise

        self._line.again(work)

    # --- inside -----------------------------------------------------------------------------------------------

    @contextmanager
    def _taking_back(self, upload: Upload, *, known: bool = False) -> Iterator[None]:
        """Where the user gives up before the box has answered, what has gone may be stored and run there all the same,
        and nobody else knows the tokens: its erasing is sent behind it, and not waited for. `known`: the caller knows
        them."""
        try:
            yield
        except (KeyboardInterrupt, ConnectError):
            wire = self._line.wire
            if wire.begun and not known:
                with suppress(BentoError):
                    wire.send(m.Shutdown(wire.new_channel(), upload.shutdown))
            raise

    def _store(
        self, wire: Wire, upload: Upload, *, again: bool, begun: tuple[Begun, bytes] | None = None
    ) -> tuple[m.Stored, int]:
        """Upload, and start and open a session in the same flight; gives its channel too."""
        channel, session_channel = wire.new_channel(), wire.new_channel()
        more = begun[0].first_flight(session_channel, begun[1]) if begun else []
        if again and upload.is_big:
            # Only here it pays to wait for an answer: the box may have most of it.
            self._line.fly(wire, [upload.store(channel)], upload.source)
            wire.wait_acked(channel, time.monotonic() + self._line.timeout_s)
            wire.maybe_send(channel, *upload.chunks(channel, wire.next_offset(channel)), *more)
        else:
            self._line.fly(wire, [upload.store(channel), *upload.chunks(channel, 0), *more], upload.source)
        return _finish(wire, channel, m.Stored), session_channel

    def _session(
        self, wire: Wire, channel: int, token: bytes, *, ghosts: int, offset: int = 0, begun: Begun | None = None
    ) -> Session:
        ticket = str(Ticket(str(self.address), "session", token))
        return Session(
            self._line, wire, channel, token, offset=offset, maybe_begun=begun, maybe_ticket=ticket, ghosts=ghosts
        )


def _answer(wire: Wire, channel: int) -> m.Message:
    return wire.wait(channel, deadline=time.monotonic() + wire.timeout_s)


def _finish(wire: Wire, channel: int, wanted: type[M]) -> M:
    """Wait for the one answer of a channel."""
    answer = _answer(wire, channel)
    wire.forget(channel)
    if isinstance(answer, m.Refused):
        raise refused(answer)
    if not isinstance(answer, wanted):
        raise RemoteProtocolError(f"the box answered {type(answer).__name__}")
    return answer


def _fresh_token() -> bytes:
    return os.urandom(m.TOKEN_BYTES)
