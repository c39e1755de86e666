"""Choosing a path: what the consensus says, and the rules that hold for every path there is."""

from __future__ import annotations

import base64
import collections
import random
import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.controller.paths import (
    Consensus,
    NoDescriptor,
    Path,
    Relay,
    Rules,
    choose_path,
    draw,
    extend_order,
    find_relay,
    middle_weights,
    parse_consensus,
    parse_family,
    parse_guards,
    related,
)
from bento_tor.errors import ConfigError, TorError

GOOD = frozenset({"Running", "Valid", "Fast", "Stable"})


def fingerprint(number: int) -> str:
    return f"{number:040X}"


def relay(number: int, *flags: str, bandwidth: int = 100, address: str = "", nickname: str = "") -> Relay:
    place = address or f"10.{number}.0.1"
    return Relay(fingerprint(number), nickname or f"r{number}", (place,), GOOD | set(flags), bandwidth)


def consensus(*relays: Relay, **weights: int) -> Consensus:
    return Consensus({one.fingerprint: one for one in relays}, weights)


def choose(known: Consensus, last: int, guards: list[int], **more: object) -> Path:
    rules = more.pop("rules", Rules())
    learn = more.pop("learn", lambda one: one)
    names = [fingerprint(number) for number in guards]
    return choose_path(known, known.relays[fingerprint(last)], names, rules, learn, random.random)  # type: ignore[arg-type]


# --- what tor tells ---------------------------------------------------------------------------------------------

TEXT = f"""network-status-version 3 microdesc
known-flags Exit Fast Guard Running Stable Valid
r one {base64.b64encode(b"a" * 20).decode().rstrip("=")} 2038-01-01 00:00:00 192.0.2.1 9001 0
a [2001:db8::1]:9001
m K+B/cdsHuPU0vxUCoANyTsjicHL1rV9/cBWtkhocC1A
s Exit Fast Running Stable Valid
v Tor 0.4.9.11
w Bandwidth=1234 Unmeasured=1
r broken x 2038-01-01 00:00:00 192.0.2.1 9001 0
s Running Valid
r two {base64.b64encode(b"b" * 20).decode().rstrip("=")} 2038-01-01 00:00:00 192.0.2.2 9001 0
s Running Valid
directory-footer
bandwidth-weights Wmd=0 Wme=1 Wmg=4545 Wmm=10000
directory-signature sha256 AA BB
"""


def test_a_consensus_is_read() -> None:
    found = parse_consensus(TEXT)
    one, two = found.relays.values()
    assert (one.nickname, one.fingerprint, one.bandwidth) == ("one", (b"a" * 20).hex().upper(), 1234)
    assert one.addresses == ("192.0.2.1", "2001:db8::1") and "Exit" in one.flags
    assert (two.nickname, two.bandwidth) == ("two", 0)
    assert found.weights == {"Wmd": 0, "Wme": 1, "Wmg": 4545, "Wmm": 10000}


@given(st.text(alphabet=string.printable, max_size=300), st.integers(0, len(TEXT)))
def test_a_damaged_consensus_is_no_exception(noise: str, place: int) -> None:
    parse_consensus(TEXT[:place] + noise + TEXT[place:])


def test_guards_that_are_up_come_first_and_those_that_are_down_do_not() -> None:
    lines = [
        f"${fingerprint(1)}~r1 never-connected",
        f"${fingerprint(2)}~r2 up",
        f"${fingerprint(3)}~r3 down 2026-01-01",
    ]
    lines += [f"${fingerprint(4)}~r4 unusable 2026-01-01", f"${fingerprint(5)} up", "garbage", ""]
    assert parse_guards("\n".join(lines)) == (fingerprint(2), fingerprint(5), fingerprint(1))


def test_guards_keep_the_order_in_which_they_were_met() -> None:
    first = extend_order((), "bd")
    assert extend_order(first, "abd") == ("b", "d", "a"), "tor lists one more, and lists it first"
    assert extend_order(first, "c") == ("b", "d", "c"), "those that are down keep their places"


def test_a_family_is_read_by_fingerprints_only() -> None:
    text = f"onion-key\nfamily ${fingerprint(1)} ${fingerprint(2).lower()}~r2 nickname\nfamily-ids ed25519:x y\n"
    assert parse_family(text) == ({fingerprint(1), fingerprint(2)}, {"ed25519:x", "y"})


# --- naming a relay ---------------------------------------------------------------------------------------------


def test_a_relay_is_found_by_fingerprint_or_nickname() -> None:
    known = consensus(relay(1), relay(2))
    for name in (fingerprint(2), "$" + fingerprint(2).lower(), "r2", "R2"):
        assert find_relay(known, name).fingerprint == fingerprint(2)


def test_an_ambiguous_nickname_lists_the_fingerprints() -> None:
    known = consensus(relay(1, nickname="same"), relay(2, nickname="Same"), relay(3))
    with pytest.raises(ConfigError, match="2 relays are called same") as caught:
        find_relay(known, "same")
    assert fingerprint(1) in caught.value.message and fingerprint(2) in caught.value.message


@pytest.mark.parametrize("name", ["r9", fingerprint(9), "", "a b", "x" * 20, "r1\n", "é"])
def test_no_relay_of_that_name_is_said(name: str) -> None:
    with pytest.raises(ConfigError):
        find_relay(consensus(relay(1)), name)


def test_a_relay_that_is_down_is_said() -> None:
    down = replace(relay(1), flags=frozenset({"Valid"}))
    with pytest.raises(ConfigError, match="not running"):
        find_relay(consensus(down), "r1")


# --- the rules --------------------------------------------------------------------------------------------------


def test_a_family_must_be_mutual_so_that_nobody_drives_others_out_of_a_path() -> None:
    one, other = relay(1), relay(2)
    claims = replace(one, family=frozenset({other.fingerprint}))
    assert not related(claims, other, Rules())
    assert related(claims, replace(other, family=frozenset({one.fingerprint})), Rules())
    assert related(replace(one, family_ids=frozenset("x")), replace(other, family_ids=frozenset("xy")), Rules())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.1.0.1", "10.1.255.1", True),
        ("10.1.0.1", "10.2.0.1", False),
        ("2001:db8:1::1", "2001:db8:2::1", True),
        ("2001:db8::1", "2001:db9::1", False),
    ],
)
def test_subnets_are_those_of_tor(one: str, other: str, same: bool) -> None:
    pair = relay(1, address=one), relay(2, address=other)
    assert related(*pair, Rules()) is same
    assert not related(*pair, Rules(distinct_subnets=False))


def test_the_first_guard_that_fits_is_taken_and_no_other_relay() -> None:
    known = consensus(*(relay(number) for number in range(1, 6)))
    assert choose(known, 1, [1, 3, 2]).guard.fingerprint == fingerprint(3)
    with pytest.raises(TorError, match="none of tor's entry guards"):
        choose(known, 1, [1, 77])


def test_hops_of_one_country_all_three_are_not_taken() -> None:
    known = consensus(relay(1), relay(2), relay(3, bandwidth=10**6), relay(4, bandwidth=1))
    country = {fingerprint(4): "de"}

    def learn(one: Relay) -> Relay:
        return replace(one, country=country.get(one.fingerprint, "fr"))

    for _ in range(20):
        assert choose(known, 1, [2], learn=learn).middle.fingerprint == fingerprint(4)
    # What nobody knows is no reason.
    assert choose(known, 1, [2], learn=lambda one: replace(one, country="??"))


def test_a_middle_that_tor_has_no_descriptor_of_is_passed_over() -> None:
    known = consensus(relay(1), relay(2), relay(3), relay(4))

    def learn(one: Relay) -> Relay:
        if one.fingerprint == fingerprint(3):
            raise NoDescriptor("none")
        return one

    assert {choose(known, 1, [2], learn=learn).middle.fingerprint for _ in range(20)} == {fingerprint(4)}
    with pytest.raises(NoDescriptor):
        choose(known, 3, [2], learn=learn)  # of the last hop there is no other


def test_the_middle_is_drawn_by_bandwidth_and_the_weight_of_its_place() -> None:
    relays = [
        relay(1),
        relay(2),
        relay(3, bandwidth=300),
        relay(4, "Guard"),
        relay(5, "Exit"),
        relay(6, "Exit", "Guard"),
    ]
    known = consensus(*relays, relay(7, "Exit", "BadExit"), Wmm=10, Wmg=5, Wme=1, Wmd=0)
    weights = middle_weights(known, relays[0], relays[1], Rules())
    assert {one.nickname: weight for one, weight in weights.items()} == {"r3": 3000, "r4": 500, "r5": 100, "r7": 1000}
    total = sum(weights.values())
    drawn = collections.Counter(draw(weights, (number + 0.5) / total).nickname for number in range(total))
    assert drawn == {one.nickname: weight for one, weight in weights.items()}


def test_a_network_without_weights_still_has_paths() -> None:
    known = consensus(relay(1, bandwidth=0), relay(2, bandwidth=0), relay(3, bandwidth=0))
    assert choose(known, 1, [2]).middle.fingerprint == fingerprint(3)


FLAGS = ["Exit", "Guard", "BadExit", "-Stable", "-Running", "-Fast"]
NUMBERS = st.integers(1, 12)


@st.composite
def networks(draw_from: st.DrawFn) -> Consensus:
    """Small networks in which much is wrong: shared subnets, claimed and mutual families, relays that are down."""
    relays = []
    for number in draw_from(st.sets(NUMBERS, min_size=3)):
        said = set(draw_from(st.lists(st.sampled_from(FLAGS), max_size=3)))
        one = relay(number, *(said & set(FLAGS[:3])), bandwidth=draw_from(st.integers(0, 5)))
        one = replace(one, flags=one.flags - {flag[1:] for flag in said}, addresses=(f"10.{number // 2}.0.{number}",))
        family = frozenset(map(fingerprint, draw_from(st.sets(NUMBERS, max_size=4))))
        relays.append(replace(one, family=family, country=draw_from(st.sampled_from(["", "fr", "de"]))))
    return consensus(*relays, Wmg=draw_from(st.integers(0, 2)), Wmm=1)


@given(networks(), st.lists(NUMBERS, max_size=6), st.booleans(), st.data())
def test_every_path_keeps_every_rule(known: Consensus, guards: list[int], distinct: bool, data: st.DataObject) -> None:
    rules = Rules(distinct_subnets=distinct)
    last = data.draw(st.sampled_from(list(known.relays.values())))
    public = Consensus(
        {name: replace(one, family=frozenset(), country="") for name, one in known.relays.items()}, known.weights
    )
    try:
        # What is learnt only of those that are drawn comes to the same as what is known from the start.
        path = choose(
            public,
            int(last.fingerprint, 16),
            guards,
            rules=rules,
            learn=lambda one: known.relays[one.fingerprint],
        )
    except TorError:
        usable = [known.relays[fingerprint(n)] for n in guards if fingerprint(n) in known.relays]
        usable = [one for one in usable if one.flags >= GOOD and not related(one, last, rules)]
        fits = [
            middle
            for middle in known.relays.values()
            if usable and middle.flags >= GOOD and not related(middle, usable[0], rules)
            if not related(middle, last, rules)
            and (middle.country or "x") not in ({last.country} & {usable[0].country})
        ]
        assert not [
            one for one in fits if middle_weights(public, usable[0], last, rules).get(public.relays[one.fingerprint])
        ]
        return
    hops = path.hops
    assert path.last == last and path.guard.fingerprint in map(fingerprint, guards)
    assert path.guard.flags >= GOOD and path.middle.flags >= GOOD
    assert not any(related(one, other, rules) for one in hops for other in hops if one is not other)
    assert len({hop.fingerprint for hop in hops}) == 3
    assert not (path.middle.country and len({hop.country for hop in hops}) == 1)
