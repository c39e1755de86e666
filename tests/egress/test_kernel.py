"""The kernel's rules: the same verdict as the broker's judge, and what is refused when the judge is blind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from bento_tor.egress import nft
from bento_tor.errors import SandboxError
from bento_tor.policy.destinations import Destinations, parse_operator
from bento_tor.policy.exit_policy import parse

HERE = Path(__file__).parent
PUBLIC, PUBLIC6, OTHER = "93.184.216.34", "2606:2800::1", "93.184.216.35"
# 100 policies of 100 targets; the long form with BENTO_TOR_SOAK=1.
POLICIES = 1000 if os.environ.get("BENTO_TOR_SOAK") else 100
TARGETS = 100


def connects(world, cases) -> list[list[bool]]:
    command = world.enter(sys.executable, "-I", str(HERE / "connects.py"))
    answer = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


# The backstop

LISTEN = """
import socket, sys
for family, host in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):
    sock = socket.socket(family)
    if family == socket.AF_INET6: sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host, 80)); sock.listen(64)
    globals()[host] = sock
print('up', flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def inner_server(world):
    """Something at port 80 of every address that the machine itself has."""
    command = world.enter(sys.executable, "-I", "-c", LISTEN)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        yield
        process.stdin.close()


@pytest.fixture(scope="module")
def blind_broker(egress, world, inner_server):
    """A broker that judges nothing."""
    with egress.start_broker(world, judges=False) as broker:
        yield broker


@pytest.fixture(scope="module")
def backstop(egress, world, blind_broker):
    """Before the rules are there, the blind broker does reach what it must not: the test would see it."""
    door = blind_broker.session()
    for host in ("127.0.0.1", "localhost", "10.99.0.1", "::1", "::ffff:127.0.0.1", "loop.example.com", "127.1"):
        assert egress.code(door, host, 80) == 0, host
    world.nft(egress.kernel_rules(egress.OPEN_POLICY))
    yield
    subprocess.run(world.enter("nft", "delete", "table", "inet", nft.table_name(egress.BROKER_UID)), check=True)


def test_with_the_judge_switched_off_the_kernel_refuses_the_same(egress, blind_broker, backstop, never_host):
    assert egress.code(blind_broker.session(), never_host, 80) != 0, never_host


def test_and_lets_the_rest_through(egress, blind_broker, backstop):
    door = blind_broker.session()
    assert egress.get(door, "web.example.com")
    assert egress.get(door, PUBLIC) and egress.get(door, PUBLIC6)
    assert egress.get(door, f"::ffff:{PUBLIC}")


def test_other_users_are_none_of_its_business(world, backstop, inner_server):
    assert connects(world, [["", 0, [["127.0.0.1", 80], [PUBLIC, 80]]]]) == [[True, True]]


def test_a_datagram_goes_nowhere(egress, world, backstop):
    send = f"import os, socket; os.setuid({egress.BROKER_UID}); socket.socket(2, 2).sendto(b'x', ('{PUBLIC}', 123))"
    answer = subprocess.run(world.enter(sys.executable, "-I", "-c", send), capture_output=True, text=True)
    assert "PermissionError" in answer.stderr


# The same verdict


def random_policy(chance: random.Random) -> str:
    lines = []
    for _ in range(chance.randint(0, 12)):
        verb = chance.choice(("accept", "accept", "reject"))
        if chance.random() < 0.7:
            host = chance.choice(("*", f"93.{chance.randint(180, 190)}.0.0/{chance.randint(8, 32)}", PUBLIC, OTHER))
        else:
            verb += "6"
            host = chance.choice(
                ("*", f"[2606:{chance.randint(2798, 2802)}::]/{chance.randint(8, 64)}", "[2606:2800::1]")
            )
        first = chance.choice((1, 79, 80, 81, 443, 1000, 65535))
        ports = chance.choice(("*", str(first), f"{first}-{min(65535, first + chance.choice((0, 1, 500, 65534)))}"))
        lines.append(f"{verb} {host}:{ports}")
    return "\n".join(lines + chance.choice(([], ["accept *:*", "accept6 *:*"], ["reject *:*", "reject6 *:*"])))


def random_operator(chance: random.Random) -> list[str]:
    kinds = (
        "reject *:25",
        f"reject {OTHER}",
        "accept 93.184.0.0/16:80",
        "reject *:80-81",
        "reject [2606:2800::]/32:443",
    )
    return chance.sample(kinds, chance.randint(0, 3))


def random_target(chance: random.Random) -> tuple[str, int]:
    host = chance.choice(
        (
            *(PUBLIC, OTHER, PUBLIC6, "2606:2800::2", f"::ffff:{PUBLIC}", f"::ffff:{OTHER}", "8.8.8.8"),
            *("127.0.0.1", "::1", "10.99.0.1", "192.0.2.1", "2001:db8::1", "100.100.100.200", "::ffff:127.0.0.1"),
            f"93.{chance.randint(180, 190)}.{chance.randint(0, 3)}.{chance.randint(1, 254)}",
            f"2606:{chance.randint(2798, 2802)}::{chance.randint(1, 9)}",
        )
    )
    # Not 81, which nobody answers: a refusal must be the rules'.
    return host, chance.choice((1, 79, 80, 82, 443, 444, 1000, 1500, 1501, 65534, 65535, 25))


def test_random_policies_have_one_meaning(egress, world, inner_server):
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    cases, expected = [], []
    uid = egress.BROKER_UID + 1
    for _ in range(POLICIES):
        policy, operator = random_policy(chance), parse_operator(random_operator(chance))
        rules = Destinations(parse(policy), operator, own=frozenset({ip_address("93.184.1.1")}))
        targets = [random_target(chance) for _ in range(TARGETS)]
        cases.append([nft.render(rules, uid=uid), uid, targets])
        expected.append([rules.accepts(ip_address(host), port) for host, port in targets])
    differ = [
        (host, port, ours, theirs, rules)
        for (rules, _, targets), row, verdicts in zip(cases, expected, connects(world, cases), strict=True)
        for (host, port), ours, theirs in zip(targets, row, verdicts, strict=True)
        if ours != theirs
    ]
    assert not differ, f"seed {seed}: {len(differ)}, the first: {differ[0]}"
    accepted = sum(map(sum, expected))
    assert POLICIES * TARGETS * 0.05 < accepted < POLICIES * TARGETS * 0.95, "the test would see nothing"


# The text


def test_the_rules_replace_each_other_in_one_transaction():
    text = nft.render(Destinations(), uid=1234).splitlines()
    assert text[:3] == [
        "add table inet bento_tor_egress_1234",
        "delete table inet bento_tor_egress_1234",
        "table inet bento_tor_egress_1234 {",
    ]


def test_nothing_of_a_policy_is_written_but_numbers_and_addresses():
    own = frozenset({ip_address("fe80::1%;add rule"), ip_address("2a00::1%}")})
    text = nft.render(Destinations(parse("accept *:80"), own=own), uid=1)
    assert "%" not in text and "add rule" not in text
    assert "2a00::1/128" in text


def test_rules_that_the_kernel_does_not_take_are_an_error():
    with pytest.raises(SandboxError, match="does not take"):
        nft.load("table inet nonsense { chain x { nonsense } }\n")


def test_without_the_right_to_load_it_says_so(world):
    code = (
        "import os\nfrom bento_tor.egress import nft\nfrom bento_tor.policy.destinations import Destinations\n"
        "os.setresuid(65534, 65534, 65534)\ntry: nft.load(nft.render(Destinations(), uid=1))\n"
        "except Exception as why: print(type(why).__name__, why.hint)"
    )
    answer = subprocess.run(world.enter(sys.executable, "-I", "-c", code), capture_output=True, text=True)
    assert answer.stdout.startswith("SandboxError start the box as root"), answer
