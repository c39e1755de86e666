"""What several connections may do at once, against a keeper that the test plays."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.manifest import Manifest
from bento_tor.policy.manifest import encode as encode_manifest
from bento_tor.policy.outcome import Seen
from bento_tor.policy.signature import Signed
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role
from bento_tor.sandbox import wire
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server.desk import Desk
from bento_tor.server.doorway import Guest
from bento_tor.server.session import Call
from bento_tor.server.sessions import Sessions
from bento_tor.server.spool import Spool
from bento_tor.server.store import Saved, Store
from bento_tor.server.visit import Visit

INVOCATION, SHUTDOWN = b"i" * 32, b"s" * 32


class Stage:
    """A desk, its store, and the keeper's end of its line."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        ours, self.keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper.setblocking(False)
        self.link = KeeperLink(ours)
        self.spool = Spool(folder, 1 << 20)
        self.store = Store(folder / "box.db", "x", max_functions=9)
        self.policy = policy
        self.sessions = Sessions(self.link, running_max=9, kept_s=60.0, spool=self.spool)
        self.desk = Desk(Signed(document.encode(policy)), self.store, self.sessions)
        self._inside: dict[int, socket.socket] = {}

    async def hear(self) -> wire.Request:
        """The keeper's next request."""
        request = wire.decode_request(await asyncio.get_running_loop().sock_recv(self.keeper, 1000))
        assert request is not None
        return request

    def start(self, number: int) -> None:
        """Hand a sandbox over in which nothing runs."""
        ours, theirs = socket.socketpair()
        log_out, log_in = os.pipe()
        socket.send_fds(self.keeper, [wire.encode_reply(wire.Started(number))], [theirs.fileno(), log_out])
        os.close(log_out)
        os.close(log_in)
        theirs.close()
        self._inside[number] = ours

    def end(self, number: int) -> None:
        """The sandbox is gone, and its end of the line with it."""
        self._inside.pop(number).close()
        self.keeper.send(wire.encode_reply(wire.Ended(number, Seen(0, None))))

    def close(self) -> None:
        for each in (self.keeper, *self._inside.values()):
            each.close()


@asynccontextmanager
async def staged(folder: Path, **policy: int) -> AsyncIterator[Stage]:
    stage = Stage(folder, Policy(**policy))  # type: ignore[arg-type]
    stage.link.open()
    try:
        async with asyncio.timeout(30):
            yield stage
    finally:
        stage.link.close()
        await stage.desk.stop()
        stage.spool.close()
        stage.close()


class Peer:
    """A client's connection."""

    def __init__(self, stage: Stage, guest: Guest | None = None) -> None:
        self._sock, box = socket.socketpair()
        self._sock.setblocking(False)
        self._connection = Connection(Role.CLIENT)
        self._digest = stage.desk.policy_digest
        self._staying = asyncio.create_task(self._stay(stage.desk, box, guest))

    async def _stay(self, desk: Desk, box: socket.socket, guest: Guest | None) -> None:
        await Visit(desk, *await asyncio.open_connection(sock=box), guest).run()

    async def say(self, *messages: m.Message, hello: bool = False) -> None:
        flight = [m.Hello(m.VERSION, self._digest), *messages] if hello else messages
        await asyncio.get_running_loop().sock_sendall(self._sock, self._connection.send_many(flight))

    async def hear(self, kind: type[m.Message]) -> m.Message:
        """The next message of this kind; what comes before is dropped. The box must not hang up."""
        while True:
            event = self._connection.next_event()
            if isinstance(event, kind):
                return event
            assert not isinstance(event, EndOfStream | m.Refused), event
            if event is NEED_DATA:
                self._connection.receive_data(await asyncio.get_running_loop().sock_recv(self._sock, 1 << 16))

    async def leave(self) -> None:
        self._sock.close()
        await self._staying


def saved(stage: Stage, manifest: Manifest) -> None:
    assert stage.store.save(INVOCATION, SHUTDOWN, encode_manifest(manifest), b"pass") is Saved.DONE


def test_an_upload_that_another_connection_has_finished_can_be_said_again(tmp_path: Path) -> None:
    async def play() -> None:
        code = os.urandom(100_000)
        store = m.Store(1, INVOCATION, SHUTDOWN, encode_manifest(Manifest()), len(code), hashlib.sha256(code).digest())
        async with staged(tmp_path) as stage:
            old, new = Peer(stage), Peer(stage)
            await old.say(store, m.Chunk(1, 0, code[:50_000]), hello=True)
            await old.hear(m.Ack)
            await new.say(store, hello=True)
            ack = await new.hear(m.Ack)
            assert isinstance(ack, m.Ack)
            left = code[ack.received :]
            await new.say(
                *(m.Chunk(1, ack.received + at, left[at : at + 60_000]) for at in range(0, len(left), 60_000))
            )
            await new.hear(m.Stored)
            # Now the box hears that the first one is gone. (Its answer was lost, let us say: it is said once more.)
            await old.leave()
            await new.leave()
            assert not stage.desk.parts._parts
            again = Peer(stage)
            await again.say(store, hello=True)
            await again.hear(m.Ack)
            await again.say(m.Chunk(1, 0, code[:60_000]), m.Chunk(1, 60_000, code[60_000:]))
            await again.hear(m.Stored)
            await again.leave()

    asyncio.run(play())


def test_a_start_on_its_way_through_ends_with_the_erasure_that_came_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with staged(tmp_path, store_bytes=1 << 20) as stage:
            manifest = Manifest(store=True)
            saved(stage, manifest)
            begun, go_on = threading.Event(), threading.Event()
            begin = stage.store.begin_session

            def begin_slowly(session: bytes, invocation: bytes) -> bool:
                done = begin(session, invocation)
                begun.set()
                assert go_on.wait(10)
                return done

            monkeypatch.setattr(stage.store, "begin_session", begin_slowly)
            starting = asyncio.create_task(stage.desk.start(b"t" * 32, INVOCATION, Call("f", "", b""), manifest))
            await asyncio.to_thread(begun.wait, 10)
            erasing = asyncio.create_task(stage.desk.erase(SHUTDOWN))
            await asyncio.sleep(0)  # it is in the queue of the disk's thread
            go_on.set()
            request = await stage.hear()
            assert isinstance(request, wire.Start)
            stage.start(request.number)
            assert await starting is False
            assert await erasing is not None
            killed = await stage.hear()
            assert isinstance(killed, wire.Kill) and killed.number == request.number
            stage.end(request.number)

    asyncio.run(play())


def test_who_opens_a_session_that_then_cannot_start_is_told(tmp_path: Path) -> None:
    async def play() -> None:
        async with staged(tmp_path) as stage:
            saved(stage, Manifest())
            first, second = Peer(stage), Peer(stage)
            await first.say(m.Execute(1, INVOCATION, b"t" * 32, "f", ""), hello=True)
            request = await stage.hear()
            assert isinstance(request, wire.Start)
            await second.say(m.Open(1, b"t" * 32, 0), hello=True)
            await second.hear(m.Ack)
            stage.keeper.send(wire.encode_reply(wire.Failed(request.number, "no")))
            ended = await second.hear(m.Ended)
            assert isinstance(ended, m.Ended) and ended.outcome == "lost"
            await first.leave()
            await second.leave()

    asyncio.run(play())


def test_an_erasure_while_a_sandbox_is_waited_for_that_does_not_come(tmp_path: Path) -> None:
    async def play() -> None:
        async with staged(tmp_path) as stage:
            saved(stage, Manifest())
            client, eraser = Peer(stage), Peer(stage)
            await client.say(m.Execute(1, INVOCATION, b"t" * 32, "f", ""), hello=True)
            request = await stage.hear()
            assert isinstance(request, wire.Start)
            await eraser.say(m.Shutdown(1, SHUTDOWN), hello=True)
            while stage.sessions.running:
                await asyncio.sleep(0.001)
            stage.keeper.send(wire.encode_reply(wire.Failed(request.number, "no")))
            await eraser.hear(m.Gone)
            await client.say(m.Ping(1))
            with pytest.raises(AssertionError, match="UNAVAILABLE"):
                await client.hear(m.Pong)
            await client.leave()
            await eraser.leave()

    asyncio.run(play())


def test_two_connections_of_one_circuit_do_not_both_take_its_last_place(tmp_path: Path) -> None:
    async def play() -> None:
        async with staged(tmp_path, sessions_per_connection=1) as stage:
            saved(stage, Manifest())
            guest = Guest("circuit")
            peers = [Peer(stage, guest), Peer(stage, guest)]
            for number, peer in enumerate(peers):
                await peer.say(m.Execute(1, INVOCATION, bytes([number]) * 32, "f", ""), hello=True)
            request = await stage.hear()
            assert isinstance(request, wire.Start)
            told = [asyncio.create_task(peer.hear(m.Started)) for peer in peers]
            done, _ = await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(AssertionError, match="FULL"):
                await done.pop()
            stage.start(request.number)
            await asyncio.gather(*told, return_exceptions=True)
            assert guest.running() == 1
            stage.end(request.number)
            for peer in peers:
                await peer.leave()

    asyncio.run(play())


def test_uploads_of_one_circuit_at_once_keep_its_quota_and_what_is_said_again_takes_none_of_it(tmp_path: Path) -> None:
    async def play() -> None:
        code = b"pass"
        digest, manifest = hashlib.sha256(code).digest(), encode_manifest(Manifest())
        async with staged(tmp_path, functions_per_connection=2) as stage:
            guest = Guest("circuit")
            peers = [Peer(stage, guest) for _ in range(5)]
            for number, peer in enumerate(peers):
                token = bytes([number]) * 32
                await peer.say(m.Store(1, token, token, manifest, len(code), digest), hello=True)
            for peer in peers:
                await peer.say(m.Chunk(1, 0, code))
            told = await asyncio.gather(*(peer.hear(m.Stored) for peer in peers), return_exceptions=True)
            assert sum(isinstance(each, m.Stored) for each in told) == 2 == stage.store.count_functions()
            known = next(number for number, each in enumerate(told) if isinstance(each, m.Stored))
            token = bytes([known]) * 32
            await peers[known].say(m.Store(2, token, token, manifest, len(code), digest), m.Chunk(2, 0, code))
            await peers[known].hear(m.Stored)
            for peer in peers:
                await peer.leave()

    asyncio.run(play())
