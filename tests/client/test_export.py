"""A keyring that travels: sealed, whole, and merged so that nothing that was there is lost."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.client import export
from bento_tor.client.keyring import MAX_ENDED, Kept, KeptSession, Keyring
from bento_tor.errors import ConfigError

RING = Keyring(
    functions={"f": Kept("box", b"i" * 32, b"s" * 32, "f")},
    sessions={"f.1": KeptSession("box", "f", b"t" * 32, 7)},
    policies={"box": b"d" * 32},
    signed=["box"],
)


def ask() -> str:
    return "a passphrase"


def never() -> str:
    raise AssertionError("a passphrase was asked for")


def test_it_comes_back_sealed_and_plain() -> None:
    sealed, plain = export.write(RING, "a passphrase"), export.write(RING, None)
    assert export.read(sealed, ask) == export.read(plain, never) == RING
    assert b"box" not in sealed.replace(b'"box"', b"") and sealed != export.write(RING, "a passphrase")


def test_a_wrong_passphrase_and_a_changed_byte_are_refused() -> None:
    sealed = export.write(RING, "another")
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        export.read(sealed, ask)
    form = msgspec.json.decode(export.write(RING, "a passphrase"))
    form["sealed"]["box"] = "AAAA" + form["sealed"]["box"][4:]
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        export.read(msgspec.json.encode(form), ask)


@given(st.binary(max_size=200))
def test_other_files_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(ConfigError):
        export.read(data, never)


@pytest.mark.parametrize(
    "text",
    [
        '{"bento-tor-keyring": 1}',
        '{"bento-tor-keyring": 2, "plain": {}}',
        '{"bento-tor-keyring": 1, "sealed": {"salt": "", "nonce": "", "box": ""}}',
        '{"bento-tor-keyring": 1, "plain": {"functions": {"f": {"box": 1}}}}',
    ],
)
def test_odd_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        export.read(text.encode(), ask)


def test_what_is_not_there_is_added_and_what_is_there_stays() -> None:
    ours = Keyring()
    assert export.merge(ours, RING).added == ["f", "f.1"]
    assert ours == RING
    again = export.merge(ours, RING)
    assert (again.added, again.renamed, again.known, ours) == ([], {}, ["f", "f.1"], RING)


def test_a_name_that_means_something_else_gets_a_number() -> None:
    mine = Kept("box", b"x" * 32)
    ours = Keyring(functions={"f": mine}, policies={"box": b"e" * 32})
    done = export.merge(ours, RING)
    assert (done.renamed, done.added, done.policies_differ) == ({"f": "f-2"}, ["f.1"], ["box"])
    assert ours.functions["f"] == mine and ours.sessions["f.1"].function == "f-2"
    assert ours.policies == {"box": b"e" * 32} and ours.signed == ["box"]


def test_of_two_places_the_later_counts_and_an_end_is_an_end() -> None:
    ended = KeptSession("box", "f", b"t" * 32, 9, state="returned", log=b"said")
    ours = Keyring(sessions={"mine": KeptSession("box", "f", b"t" * 32, 3)})
    export.merge(ours, Keyring(sessions={"f.1": ended}))
    assert (ours.sessions["mine"].offset, ours.sessions["mine"].state, ours.sessions["mine"].log) == (
        9,
        *(("returned", b"said")),
    )
    export.merge(ours, RING)
    assert ours.sessions["mine"].state == "returned" and ours.sessions["mine"].offset == 9


def test_a_missing_shutdown_token_is_filled_in_for_the_same_function_only() -> None:
    ours = Keyring(functions={"a": Kept("box", b"i" * 32), "b": Kept("elsewhere", b"i" * 32)})
    export.merge(ours, RING)
    assert ours.functions["a"].shutdown == b"s" * 32 and ours.functions["b"].shutdown is None


def test_only_the_newest_ended_sessions_are_kept() -> None:
    ring = Keyring()
    for number in range(MAX_ENDED + 5):
        ring.end_session(ring.add_session("f", KeptSession("box", "f", bytes([number]) * 32)), "returned", b"", 0)
    running = ring.add_session("f", KeptSession("box", "f", b"r" * 32))
    assert len(ring.sessions) == MAX_ENDED + 1 and running in ring.sessions
    assert min(kept.session[0] for kept in ring.sessions.values()) == 5


def test_a_session_in_a_strangers_file_is_not_of_a_function_of_ours() -> None:
    """At the end of such a session its function would be erased, with a token that its box then had seen."""
    ours = Keyring(functions={"mine": Kept("box", b"m" * 32, b"s" * 32)})
    export.merge(ours, Keyring(sessions={"gift": KeptSession("evil", "mine", b"t" * 32, once=True)}))
    gift = ours.sessions["gift"]
    assert (gift.function, gift.once) == ("", False)
