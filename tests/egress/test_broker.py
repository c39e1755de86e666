"""The real broker, in a private world: what gets out, what does not, and what a session may use up."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from bento_tor.egress import grants, link
from bento_tor.egress.broker import Settings
from bento_tor.egress.grants import Caps, Carried, Grant, Ruled, Rules
from bento_tor.egress.socks5 import Reply

PUBLIC, PUBLIC6, OTHER = "93.184.216.34", "2606:2800::1", "93.184.216.35"


def test_the_world_is_reached_by_address_and_by_name(egress, broker):
    door = broker.session()
    assert egress.get(door, PUBLIC) == b"/page at 93.184.216.34"
    assert egress.get(door, PUBLIC6) == b"/page at 2606:2800::1"
    assert egress.get(door, f"::ffff:{PUBLIC}") == b"/page at 93.184.216.34"
    assert egress.get(door, "web.example.com") in {b"/page at 93.184.216.34", b"/page at 2606:2800::1"}
    assert egress.get(door, "WEB.example.com.")
    assert egress.get(door, "six.example.com") == b"/page at 2606:2800::1"
    assert egress.code(door, PUBLIC, 81) == Reply.REFUSED


def test_bytes_and_both_ends_pass_unchanged(egress, broker):
    code, sock = egress.ask(broker.session(), PUBLIC, 7, early=b"first ")
    sent = bytes(range(256)) * 8192
    with sock:
        writer = threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR)))
        writer.start()
        got = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        writer.join()
    assert (code, got) == (0, b"first " + sent)


def test_at_its_end_a_sessions_bytes_are_told_and_nothing_else_of_it(egress, broker):
    door = broker.session()
    code, sock = egress.ask(door, PUBLIC, 7, early=b"12345")
    with sock:
        sock.shutdown(socket.SHUT_WR)
        assert code == 0 and b"".join(iter(lambda: sock.recv(1 << 16), b"")) == b"12345"
    broker.keeper.end(int(door.stem))
    egress.until(lambda: not broker.noted() and broker.carried, "the end")
    (carried,) = broker.carried
    assert carried == Carried(int(door.stem), "exit", 5, 5)


def test_never(egress, shared_broker, never_host):
    host = never_host
    door = shared_broker.session()
    assert egress.code(door, host, 80) in {Reply.POLICY, Reply.HOST}, host
    egress.until(lambda: [noted.event for noted in shared_broker.noted()] == ["refused"], "one event")


@pytest.fixture(scope="module")
def shared_broker(egress, world):
    with egress.start_broker(world, own=(OTHER,)) as broker:
        yield broker


def test_the_relays_own_address_is_never_reached(egress, shared_broker):
    assert egress.code(shared_broker.session(), OTHER, 80) == Reply.POLICY


def test_no_name_of_the_machines_own_network_is_asked_for(egress, world, shared_broker):
    before = len(world.asked())
    for host in (
        "localhost",
        "printer",
        "nas.local",
        "router.home.arpa",
        "abcdefghijklmnop.onion",
        "127.1",
        "a..b.com",
    ):
        assert egress.code(shared_broker.session(), host, 80) == Reply.POLICY
    shared_broker.noted()
    assert world.asked()[before:] == []


def test_what_a_name_means_is_decided_once(egress, broker):
    """Rebinding: the second answer, 127.0.0.1, is never even asked for."""
    door = broker.session()
    assert egress.get(door, "rebind.example.com") == b"/page at 93.184.216.34"
    assert egress.get(door, "rebind.example.com") == b"/page at 93.184.216.34"
    # Another session has a cache of its own, and judges what it is told.
    assert egress.code(broker.session(), "rebind.example.com", 80) == Reply.HOST


def test_of_a_mixed_answer_only_what_is_accepted_is_used(egress, broker):
    assert egress.get(broker.session(), "mixed.example.com") == b"/page at 93.184.216.34"


def test_a_name_that_leads_inside_looks_like_none(egress, broker):
    door = broker.session()
    assert egress.code(door, "inner.example.com", 80) == egress.code(door, "nothing.example.com", 80) == Reply.HOST


@pytest.mark.parametrize(
    ("host", "port", "code"),
    [
        (PUBLIC, 80, Reply.OK),
        (PUBLIC, 1000, Reply.OK),
        (PUBLIC, 1999, Reply.OK),
        (PUBLIC, 999, Reply.POLICY),
        (PUBLIC, 2000, Reply.POLICY),
        (PUBLIC, 0, Reply.POLICY),
        (OTHER, 80, Reply.POLICY),
        (PUBLIC6, 80, Reply.OK),
        (PUBLIC6, 1000, Reply.POLICY),
        (f"::ffff:{OTHER}", 80, Reply.POLICY),
        ("web.example.com", 80, Reply.OK),
        ("web.example.com", 22, Reply.POLICY),
        ("other.example.com", 80, Reply.HOST),
    ],
)
def test_the_exit_policy_decides(egress, world, web_broker, host, port, code):
    assert egress.code(web_broker.session(), host, port) == code


@pytest.fixture(scope="module")
def web_broker(egress, world):
    with egress.start_broker(world, policy=egress.WEB_POLICY) as broker:
        yield broker


def test_a_port_that_nothing_accepts_asks_no_names(egress, world, web_broker):
    before = len(world.asked())
    assert egress.code(web_broker.session(), "web.example.com", 22) == Reply.POLICY
    assert world.asked()[before:] == []


@pytest.mark.parametrize("policy", [None, "", "accept *:*\nnonsense", "accept private:*", "accept *"])
def test_a_policy_that_is_unknown_or_unreadable_accepts_nothing(egress, world, policy):
    with egress.start_broker(world, policy=policy) as broker:
        door = broker.session()
        assert egress.code(door, PUBLIC, 80) == Reply.POLICY
        assert egress.code(door, "web.example.com", 80) == Reply.POLICY


def test_an_operators_line_narrows_and_never_widens(egress, world):
    operator = (f"accept {OTHER}:80", "reject 93.184.216.0/24:80", "accept *:9000", "reject *:25")
    with egress.start_broker(world, policy="accept *:80\naccept *:25", operator=operator) as broker:
        door = broker.session()
        codes = [
            egress.code(door, host, port) for host, port in ((OTHER, 80), (PUBLIC, 80), (OTHER, 9000), (OTHER, 25))
        ]
        assert codes == [Reply.OK, Reply.POLICY, Reply.POLICY, Reply.POLICY]
    with egress.start_broker(world, operator=("reject nonsense",)) as broker:
        assert egress.code(broker.session(), PUBLIC, 80) == Reply.POLICY


def test_new_rules_close_what_they_refuse(egress, broker):
    door = broker.session()
    _, stays = egress.ask(door, PUBLIC, 8000)
    _, goes = egress.ask(door, OTHER, 8000)
    with stays, goes:
        broker.keeper.set_rules(Rules(egress.OPEN_POLICY, (f"reject {OTHER}",)))
        assert goes.recv(1) == b""
        stays.sendall(b"still here")
        assert egress.exactly(stays, 10) == b"still here"
        assert egress.code(door, OTHER, 8000) == Reply.POLICY
        # Unknown for a moment, as after each change of tor's: nothing new, and nothing is cut off.
        broker.keeper.set_rules(Rules(None))
        egress.until(lambda: egress.code(door, PUBLIC, 8000) == Reply.POLICY, "closed")
        stays.sendall(b"and still")
        assert egress.exactly(stays, 9) == b"and still"


def test_what_the_operator_blocks_is_closed_at_once_also_while_the_policy_is_unknown(egress, broker):
    door = broker.session()
    _, stays = egress.ask(door, PUBLIC, 8000)
    _, goes = egress.ask(door, OTHER, 8000)
    with stays, goes:
        # Each says that it holds, which is why nothing has to be waited for.
        assert broker.keeper.set_rules(Rules(None))
        assert broker.keeper.set_rules(Rules(None, (f"reject {OTHER}",)))
        assert goes.recv(1) == b""
        stays.sendall(b"still here")
        assert egress.exactly(stays, 10) == b"still here"
        assert broker.keeper.set_rules(Rules(egress.OPEN_POLICY, (f"reject {OTHER}",)))
        assert egress.code(door, OTHER, 8000) == Reply.POLICY
        assert broker.keeper.set_rules(Rules(egress.OPEN_POLICY))
        assert egress.code(door, OTHER, 8000) == Reply.OK


def test_a_late_answer_says_nothing_of_the_next_statement(monkeypatch):
    monkeypatch.setattr(link, "_RULED_S", 0.5)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line = link.KeeperLine(ours)
    with ours, theirs:
        assert not line.set_rules(Rules(None))
        threading.Timer(0.1, theirs.send, [grants.encode(Ruled(1))]).start()
        assert not line.set_rules(Rules(None))
        theirs.send(grants.encode(Ruled(2)))
        theirs.send(grants.encode(Ruled(3)))
        assert line.set_rules(Rules(None))


def test_hosts_of_the_manifest_are_the_only_ones_and_others_are_refused_quietly(egress, world, broker):
    door = broker.session(hosts=("Web.Example.com", PUBLIC6))
    before = len(world.asked())
    for host in ("telemetry.example.com", OTHER, PUBLIC, "example.com", "web.example.com.evil.com"):
        assert egress.code(door, host, 80) == Reply.UNNAMED
    assert world.asked()[before:] == []
    assert broker.noted() == []
    assert egress.code(door, "web.example.com.", 80) == egress.code(door, PUBLIC6, 80) == Reply.OK


def test_a_socket_is_dead_without_a_grant(egress, broker):
    listener, path = broker.listener()
    broker.keeper.offer(int(path.stem), listener)
    with pytest.raises(TimeoutError):
        egress.ask(path, PUBLIC, 80, timeout_s=0.3)
    broker.grant(Grant(int(path.stem), "exit"))
    assert egress.code(path, PUBLIC, 80) == 0
    listener.close()


def test_a_grant_may_come_first(egress, broker):
    listener, path = broker.listener()
    broker.grant(Grant(int(path.stem), "exit"))
    time.sleep(0.05)
    broker.keeper.offer(int(path.stem), listener)
    assert egress.code(path, PUBLIC, 80) == 0
    listener.close()


@pytest.mark.parametrize(
    ("offers", "egress_class"), [(("tor",), "exit"), (("exit",), "tor"), (("exit", "tor"), "none")]
)
def test_what_is_not_offered_is_refused_at_once(egress, world, offers, egress_class):
    with egress.start_broker(world, settings=Settings(offers=offers)) as broker:
        listener, path = broker.listener()
        broker.keeper.offer(int(path.stem), listener)
        listener.close()
        broker.grant(Grant(int(path.stem), egress_class))
        deadline = time.monotonic() + 5
        with pytest.raises(ConnectionRefusedError):
            while time.monotonic() < deadline:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(path))
                time.sleep(0.01)


def test_the_end_of_a_session_ends_its_connections(egress, broker):
    door = broker.session()
    _, sock = egress.ask(door, PUBLIC, 8000)
    broker.keeper.end(int(door.stem))
    with sock:
        assert sock.recv(1) == b""
    # Refused; or reset, or a broken pipe: one that was queued as the door closed.
    with pytest.raises((ConnectionRefusedError, ConnectionResetError, BrokenPipeError)):
        egress.ask(door, PUBLIC, 8000)


def test_the_broker_ends_with_its_keeper_or_its_box(egress, world):
    with egress.start_broker(world) as broker:
        broker.box.close()
        assert broker.process.wait(10) == 0
    with egress.start_broker(world) as broker:
        broker.keeper.close()
        assert broker.process.wait(10) == 0


@pytest.mark.parametrize("packet", [b"x", b"\x00" * 64, b"\xc1", b"\x91" * 1000, b"\x93\xa5Grant\x01\xa3all"])
def test_a_packet_that_is_none_closes_everything(egress, world, packet):
    with egress.start_broker(world) as broker:
        broker.box.send(packet)
        assert broker.process.wait(10) == 0


def test_it_is_nobody(egress, broker):
    door = broker.session()
    egress.code(door, PUBLIC, 80)
    status = Path(f"/proc/{broker.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid = str(egress.BROKER_UID)
    assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {uid}
    assert fields["Groups"].strip() == ""
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


# Caps


def test_connections_at_once_are_capped_for_this_session_only(egress, broker):
    door = broker.session(caps=Caps(connections=4))
    opened = [egress.ask(door, PUBLIC, 8000) for _ in range(6)]
    assert sorted(code for code, _ in opened) == [0, 0, 0, 0, Reply.CONNECTIONS, Reply.CONNECTIONS]
    assert egress.code(broker.session(), PUBLIC, 8000) == 0
    for _, sock in opened:
        sock.close()
    egress.until(lambda: egress.code(door, PUBLIC, 8000) == 0, "a place is free again")


def test_the_operators_ceiling_cuts_every_grant(egress, world):
    settings = Settings(offers=("exit",), ceiling=Caps(connections=1))
    with egress.start_broker(world, settings=settings) as broker:
        door = broker.session(caps=Caps(connections=1000))
        code, sock = egress.ask(door, PUBLIC, 8000)
        assert (code, egress.code(door, PUBLIC, 8000)) == (0, Reply.CONNECTIONS)
        sock.close()


@pytest.mark.parametrize("caps", [Caps(bytes_out=1 << 20), Caps(bytes_in=1 << 20)])
def test_bytes_are_capped_over_all_connections(egress, broker, caps):
    door = broker.session(caps=caps)
    _, idle = egress.ask(door, PUBLIC, 8000)
    code, sock = egress.ask(door, PUBLIC, 8000)
    sent = 0
    with sock, pytest.raises(OSError):
        while sent < 16 << 20:
            sock.sendall(bytes(1 << 16))
            sent += 1 << 16
            if not sock.recv(1 << 16):
                raise ConnectionResetError
    assert sent < 3 << 20
    with idle:
        assert idle.recv(1) == b""
    assert egress.code(door, PUBLIC, 8000) == Reply.BYTES
    assert [noted.event for noted in broker.noted()] == ["bytes"]


def test_silence_ends_a_connection_and_a_trickle_does_not(egress, broker):
    door = broker.session(caps=Caps(idle_s=3))
    _, silent = egress.ask(door, PUBLIC, 8000)
    _, trickle = egress.ask(door, PUBLIC, 8000)
    with silent, trickle:
        began = time.monotonic()
        while time.monotonic() - began < 5:
            trickle.sendall(b"x")
            assert trickle.recv(1) == b"x"
            time.sleep(0.2)
        assert silent.recv(1) == b""


def test_who_reads_nothing_stops_only_himself(egress, broker):
    door = broker.session(caps=Caps(idle_s=2))
    _, deaf = egress.ask(door, PUBLIC, 8000)
    deaf.settimeout(0.3)
    with deaf, pytest.raises(OSError):
        while True:
            deaf.sendall(bytes(1 << 16))  # comes back, and is not read
    began = time.monotonic()
    assert egress.get(broker.session(), PUBLIC)
    assert time.monotonic() - began < 2


def test_a_flood_of_connections_and_half_requests_stops_nobody_else(egress, broker):
    door = broker.session(caps=Caps(connections=8))
    kept = []
    for _ in range(60):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(0.05)
        try:
            sock.connect(str(door))
            sock.sendall(b"\x05\x01")
        except OSError:
            pass
        kept.append(sock)
    began = time.monotonic()
    assert egress.get(broker.session(), PUBLIC)
    assert time.monotonic() - began < 2
    for sock in kept:
        sock.close()
    egress.until(lambda: egress.code(door, PUBLIC, 8000) == 0, "a place is free again")


def test_names_are_capped_and_a_silent_resolver_stops_nobody_else(egress, world, broker):
    door = broker.session(caps=Caps(connections=64))
    asking = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for sock in asking:
        sock.connect(str(door))
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x12silent.example.com\x00\x50")
    began = time.monotonic()
    assert egress.get(broker.session(), "web.example.com")
    assert time.monotonic() - began < 2
    for sock in asking:
        sock.close()
    tunnel = broker.session()
    codes = [egress.code(tunnel, f"{number}.data.example.com", 80) for number in range(260)]
    assert codes == [Reply.HOST] * 256 + [Reply.NAMES] * 4
    assert sum(".data.example.com" in line for line in world.asked()) <= 2 * 256
