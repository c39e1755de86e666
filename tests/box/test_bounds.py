"""A box in company that is slow, greedy, broken or hostile: everybody else notices nothing."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role

pytestmark = pytest.mark.sandbox

ECHO = parse(
    "echo", "def echo():\n    while (line := api.recv()) != b'stop':\n        api.send(line)\n    return 'bye'"
)
SOURCE = "import random\ndef f(seed, count):\n  r = random.Random(seed)\n"
RANDOM = parse("f", SOURCE + "  for _ in range(count): api.send(r.randbytes(10**5))")
DEADLINE_S = 60.0


def random_digest(seed: int, count: int) -> str:
    source, wanted = random.Random(seed), hashlib.sha256()
    for _ in range(count):
        wanted.update(source.randbytes(10**5))
    return wanted.hexdigest()


class Raw:
    """A client that says what it likes."""

    def __init__(self, address: str, first: bytes = b"") -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(address.removeprefix("unix:"))
        self.connection = Connection(Role.CLIENT)
        self.sock.sendall(first)

    def say(self, *messages: m.Message) -> None:
        self.sock.sendall(self.connection.send_many(messages))

    def hear(self) -> m.Message | None:
        """The next message; None at the end of the stream."""
        while (event := self.connection.next_event()) is NEED_DATA:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            self.connection.receive_data(data)
        return None if isinstance(event, EndOfStream) else event

    def hear_one(self, kind: type[m.Message]) -> m.Message:
        while not isinstance(event := self.hear(), kind):
            assert event is not None, f"the stream ended before a {kind.__name__}"
        return event

    def is_served(self) -> bool:
        """Whether a Hello is answered."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.say(m.Hello(m.VERSION, None))
            return isinstance(self.hear(), m.Welcome)
        return False


@contextmanager
def raw(address: str, first: bytes = b"") -> Iterator[Raw]:
    client = Raw(address, first)
    try:
        yield client
    finally:
        client.sock.close()


# --- output that nobody reads -----------------------------------------------------------------------------------


def spool_of(reader) -> bytes:
    """What the box has on disk for output: files without a name."""
    found = b""
    for descriptor in Path(f"/proc/{reader.pid}/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.endswith("(deleted)") and target.startswith("/") and "memfd" not in target:
                found += descriptor.read_bytes()
    return found


def test_a_session_left_before_anything_was_acknowledged_gives_its_whole_output_later(box, eventually) -> None:
    with box.connect() as there:
        function = there.upload(RANDOM)
        session = function.start(make_call("f", 5, 30))
        session.wait_attached()
        token = session.token
    eventually(lambda: len(spool_of(box.reader())) >= 2_500_000)
    known = random.Random(5).randbytes(10**5)
    assert known[1000:1032] not in spool_of(box.reader())
    with box.connect() as there:
        session, found = there.attach(token), hashlib.sha256()
        while (piece := session.maybe_piece()) is not None:
            found.update(piece.data)
        assert session.wait().word == "returned"
    assert found.hexdigest() == random_digest(5, 30)
    eventually(lambda: spool_of(box.reader()) == b"")


def test_a_function_that_nobody_reads_waits_at_the_policys_cap_and_goes_on(new_box, eventually) -> None:
    running = new_box(config="[policy]\nkept_bytes = 500000\n[policy.limits]\nwall_s = 60\n")
    with running.connect() as there:
        token = there.upload(RANDOM).start(make_call("f", 6, 300)).token
        there.ping()
    eventually(lambda: len(spool_of(running.reader())) >= 300_000)
    before = running.reader().memory_info().rss
    with running.connect() as there:
        session, found = there.attach(token), hashlib.sha256()
        while (piece := session.maybe_piece()) is not None:
            found.update(piece.data)
            assert len(spool_of(running.reader())) < 700_000
        assert session.wait().word == "returned"
    assert found.hexdigest() == random_digest(6, 300)
    assert running.reader().memory_info().rss < before + 40 * 2**20


# --- several sessions -------------------------------------------------------------------------------------------


def test_sessions_of_one_connection_do_not_wait_for_one_another(box) -> None:
    """One has 100 MB to say to a reader who takes what comes; an echo beside it comes in between."""
    taken, goes_on, done = [0], threading.Event(), threading.Event()
    with box.connect() as there:
        flood = there.run(RANDOM, make_call("f", 7, 1000))
        echo = there.upload(ECHO).start()

        def read() -> None:
            while (piece := flood.maybe_piece()) is not None:
                taken[0] += len(piece.data)
                goes_on.set()
            done.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert goes_on.wait(DEADLINE_S)
        between = 0
        for number in range(20):
            echo.send(str(number))
            assert echo.maybe_receive(timeout_s=DEADLINE_S) == str(number).encode()
            between += not done.is_set()
        assert between >= 5, "the flood was over first"
        echo.end()
        thread.join()
        assert taken[0] == 10**8


def test_a_session_whose_reader_takes_nothing_holds_up_no_other_of_its_connection(box) -> None:
    with box.connect() as there:
        floods = [there.run(RANDOM, make_call("f", 8, 1000)) for _ in range(4)]
        echo = there.upload(ECHO).start()
        for number in range(10):
            echo.send(str(number))
            assert echo.maybe_receive(timeout_s=DEADLINE_S) == str(number).encode()
        assert box.reader().memory_info().rss < 200 * 2**20
        for session in (*floods, echo):
            session.end()
            assert session.wait().word == "killed:user"


def test_a_connection_that_reads_nothing_holds_up_no_other(box) -> None:
    """It grants a window without end, and takes not a byte: what it is owed is bounded by a write."""
    with box.connect() as there:
        there.policy()
        digest, function = there.policy_digest, there.upload(RANDOM)
        with raw(box.address) as greedy:
            token = os.urandom(32)
            greedy.say(m.Hello(m.VERSION, digest))
            greedy.hear_one(m.Welcome)
            call = make_call("f", 9, 1000)
            greedy.say(m.Execute(1, function.invocation, token, call.name, call.arguments), m.Open(1, token, 0))
            greedy.hear_one(m.Ack)
            greedy.say(m.Ack(1, 0, 1 << 40))
            session = there.upload(ECHO).start()
            for number in range(20):
                session.send(str(number))
                assert session.maybe_receive(timeout_s=DEADLINE_S) == str(number).encode()
            assert box.reader().memory_info().rss < 200 * 2**20
            session.end()
            session.wait()
            greedy.say(m.End(1))


# --- at the door ------------------------------------------------------------------------------------------------

FEW = "clients = 4\n"
CIRCUITS = "clients = 6\ncircuit_ids = true\nclients_per_circuit = 4\n[policy]\nsessions_per_connection = 2\n"


def line(circuit: int) -> bytes:
    """As tor writes it: src/core/or/connection_edge.c, export_hs_client_circuit_id."""
    return b"PROXY TCP6 fc00:dead:beef:4dad::%x:%x ::1 65535 80\r\n" % (circuit >> 16, circuit & 0xFFFF)


def test_a_full_box_says_so(new_box, eventually) -> None:
    running = new_box(config=FEW)
    clients = [Raw(running.address) for _ in range(4)]
    assert all(client.is_served() for client in clients)
    with raw(running.address) as fifth:
        refused = fifth.hear()
        assert isinstance(refused, m.Refused) and refused.code is m.Code.FULL and fifth.hear() is None
    clients[0].sock.close()

    def is_let_in() -> bool:
        with raw(running.address) as fifth:
            return fifth.is_served()

    eventually(is_let_in)
    for client in clients:
        client.sock.close()


@pytest.mark.parametrize(
    "first",
    [
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP6 fc00:dead:beef:4dad::1 ::1 1 2\r\n",
        line(1).replace(b"\r\n", b"\n"),
        b"PROXY " + b"x" * 200 + b"\n",
        b"x" * 300_000,
        b"\n",
        Connection(Role.CLIENT).send(m.Hello(m.VERSION, None)) + b"\n",
    ],
)
def test_without_tors_line_nobody_comes_in_where_it_is_wanted(circuits_box, first: bytes) -> None:
    with raw(circuits_box.address) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sock.sendall(first)
        refused = client.hear()
        assert refused is None or (isinstance(refused, m.Refused) and refused.code is m.Code.PROTOCOL)
    with raw(circuits_box.address, line(99)) as client:
        assert client.is_served()


@pytest.fixture(scope="module")
def circuits_box(running_box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    running = running_box(tmp_path_factory.mktemp("circuits") / "s", config=CIRCUITS)
    yield running
    words = running.words()
    assert running.stop() == 0
    assert "Traceback" not in words, words


def test_a_circuit_has_one_quota_however_many_connections_it_brings(circuits_box) -> None:
    with raw(circuits_box.address, line(0x12345)) as first:
        first.say(m.Hello(m.VERSION, None))
        policy = first.hear_one(m.Policy)
        assert isinstance(policy, m.Policy)
        digest = hashlib.sha256(policy.document).digest()

        def start(client: Raw, token: bytes) -> m.Message:
            session = os.urandom(32)
            client.say(m.Execute(2, token, session, "echo", "((), {})"), m.Open(2, session, 0))
            return client.hear_one(m.Refused | m.Ack)  # type: ignore[arg-type]

        def greeted(circuit: int) -> Raw:
            client = Raw(circuits_box.address, line(circuit))
            client.say(m.Hello(m.VERSION, digest))
            return client

        from bento_tor.policy import manifest

        token, code = os.urandom(32), ECHO.text.encode()
        written, digest_of_code = manifest.encode(ECHO.manifest), hashlib.sha256(code).digest()
        store = m.Store(1, token, os.urandom(32), written, len(code), digest_of_code)
        first.say(m.Hello(m.VERSION, digest), store, m.Chunk(1, 0, code))
        first.hear_one(m.Stored)
        clients = [greeted(0x12345) for _ in range(3)]
        assert isinstance(start(clients[0], token), m.Ack) and isinstance(start(clients[1], token), m.Ack)
        assert isinstance(refused := start(clients[2], token), m.Refused) and refused.code is m.Code.FULL
        with raw(circuits_box.address, line(0x12345)) as fifth:
            assert isinstance(refused := fifth.hear(), m.Refused) and "of one circuit" in refused.message
        others = [greeted(0x54321) for _ in range(2)]
        assert isinstance(start(others[0], token), m.Ack)
        # Full: the circuit with most connections makes room, by the newest that has nothing open.
        with raw(circuits_box.address, line(7)) as newcomer:
            assert newcomer.is_served()
            assert clients[2].hear() is None
            for client in (*clients[:2], others[0]):
                client.say(m.End(2))
                client.hear_one(m.Ended)
        for client in (*clients, *others):
            client.sock.close()


def test_circuits_are_not_named_to_a_service_that_is_published(tmp_path: Path, bento: Callable) -> None:
    (tmp_path / "box.toml").write_text("circuit_ids = true\npublish = true\n")
    done = bento("serve", "--state", str(tmp_path / "s"), "--config", str(tmp_path / "box.toml"))
    assert done.returncode == 3 and "do not go together" in done.stderr
    (tmp_path / "box.toml").write_text("pow = true\n")
    done = bento("serve", "--state", str(tmp_path / "s"), "--config", str(tmp_path / "box.toml"))
    assert done.returncode == 3 and "HiddenServicePoWDefensesEnabled" in done.stderr


# --- frames that are wrong --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacks() -> ModuleType:
    """The table of tests/protocol."""
    folder = Path(__file__).parent.parent / "protocol"
    spec = importlib.util.spec_from_file_location(
        "tests_protocol", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules["tests_protocol"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("tests_protocol.test_attacks")


def play(address: str, before: bytes, attack: bytes, *, slowly: bool) -> None:
    """One attacker's connection: he says his words, whole or byte by byte, and waits for what comes of it."""
    with raw(address) as client, suppress(OSError):
        for data in (before, attack):
            for piece in [data[at : at + 1] for at in range(len(data))] if slowly else [data]:
                client.sock.sendall(piece)
        client.sock.shutdown(socket.SHUT_WR)
        while client.sock.recv(65536):
            pass


@pytest.mark.parametrize("slowly", [False, True], ids=["fast", "slowly"])
def test_who_sends_everything_wrong_disturbs_nobody(box, eventually, attacks: ModuleType, slowly: bool) -> None:
    descriptors = box.reader().num_fds()
    with box.connect() as there, box.connect() as other:
        there.policy()
        digest = there.policy_digest
        session, flood = there.upload(ECHO).start(), other.run(RANDOM, make_call("f", 11, 100))
        stop, rounds, failure = threading.Event(), [0], []

        def work() -> None:
            try:
                while not stop.is_set():
                    session.send(str(rounds[0]))
                    assert session.maybe_receive(timeout_s=DEADLINE_S) == str(rounds[0]).encode()
                    rounds[0] += 1
            except Exception as why:
                failure.append(why)

        worker = threading.Thread(target=work)
        worker.start()
        table = [(before, data) for before, data, _ in attacks.ATTACKS.values() if not (slowly and len(data) > 2000)]
        attackers = [
            threading.Thread(target=lambda part=table[at::8]: [  # type: ignore[misc]
                play(box.address, said(before, digest), data.replace(attacks.DIGEST, digest), slowly=slowly)
                for before, data in part if not (slowly and len(said(before, digest)) > 2000)
            ])
            for at in range(8)
        ]  # fmt: skip
        for attacker in attackers:
            attacker.start()
        found = hashlib.sha256()
        while (piece := flood.maybe_piece()) is not None:
            found.update(piece.data)
        for attacker in attackers:
            attacker.join()
        stop.set()
        worker.join()
        assert (failure, found.hexdigest()) == ([], random_digest(11, 100)) and rounds[0] > 0
        session.end()
        session.wait()
    eventually(lambda: box.reader().num_fds() <= descriptors)
    assert "Traceback" not in box.words()


def said(before: list[m.Message], digest: bytes) -> bytes:
    """What comes before an attack, under the policy that this box has."""
    client = Connection(Role.CLIENT)
    out = b""
    for message in before:
        if isinstance(message, m.Hello):
            message = m.Hello(message.version, digest)
        out += client.send(message)
    return out


def test_half_frames_and_resets_leave_nothing_behind(box, eventually) -> None:
    descriptors = box.reader().num_fds()
    whole = Connection(Role.CLIENT).send(m.Hello(m.VERSION, None))
    for cut in range(len(whole)):
        with raw(box.address, whole[:cut]) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: box.reader().num_fds() <= descriptors)
