"""Two ends that follow the rules never call each other illegal, however their bytes cross on the way.

Both say at any moment whatever their own end allows, and the bytes are late as chance likes. When all has arrived,
both agree about every channel.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bento_tor.errors import LocalProtocolError
from bento_tor.protocol import Connection, ConnectionState, Role
from bento_tor.protocol import messages as m
from bento_tor.protocol.channel import Channel
from bento_tor.protocol.states import CHANNEL, FRAME_CAPS, MAX_HELLO_FRAME_BYTES, ChannelState, Key

from .pair import DIGEST, OTHER, POLICY, End, raw

T = b"t" * 32
MAX_LIVE = 3
CHANNELS = 5


def candidates(connection: Connection, channel: int, number: int) -> list[m.Message]:
    """Messages that this end might say about `channel` now; most are illegal at most moments."""
    try:
        offset, received = connection.next_offset(channel), connection.received(channel)
    except LocalProtocolError:
        offset, received = number, number
    live = connection._channels.maybe_live(channel)
    size = max(number, live.size if live is not None else 0)
    data = b"x" * (number if number < 6 else m.MAX_DATA_BYTES)
    ack = m.Ack(channel, received, received + m.INITIAL_WINDOW)
    padding = m.Padding(channel, offset, data)
    if connection.role is Role.CLIENT:
        return [
            m.Hello(m.VERSION, DIGEST),
            m.Hello(m.VERSION, OTHER),
            m.GetPolicy(),
            m.Ping(number),
            m.Store(channel, T, T, b"", number, DIGEST),
            m.Store(channel, T, T, b"", m.MAX_DATA_BYTES + number, DIGEST),
            m.Chunk(channel, offset, data),
            m.Execute(channel, T, T, "f", ""),
            m.Open(channel, T, number),
            m.Input(channel, offset, data, True, False),
            m.Input(channel, offset, b"", False, True),
            ack,
            padding,
            m.Close(channel),
            m.End(channel),
            m.Shutdown(channel, T),
        ]
    return [
        POLICY,
        m.Pong(number),
        m.Stored(channel),
        m.Started(channel, False),
        m.Ack(channel, number, m.INITIAL_WINDOW + number),
        m.Ack(channel, number, size),
        ack,
        m.Output(channel, offset, data, True),
        padding,
        m.Ended(channel, "returned", "", b""),
        m.Gone(channel),
        m.Refused(channel, m.Code.FULL, ""),
    ]


class Crossing:
    """Two ends, and what is on its way between them."""

    def __init__(self) -> None:
        self.ends = {role: End(role, max_channels=MAX_LIVE) for role in Role}
        self.on_its_way = dict.fromkeys(Role, b"")
        self.said = 0

    def say(self, role: Role, channel: int, number: int, choice: int) -> None:
        """Say the next of the candidates that this end allows."""
        end = self.ends[role]
        choices = candidates(end.connection, channel, number)
        for turn in range(len(choices)):
            try:
                self.on_its_way[role] += end.connection.send(choices[(choice + turn) % len(choices)])
            except LocalProtocolError:
                continue
            self.said += 1
            return

    def arrive(self, role: Role, count: int) -> None:
        """`count` bytes that `role` sent arrive. An error here is what this test looks for."""
        data, self.on_its_way[role] = self.on_its_way[role][:count], self.on_its_way[role][count:]
        peer = self.ends[role.peer]
        peer.hear(data)
        self.on_its_way[role.peer] += peer.unsent
        peer.unsent = b""

    def settle(self) -> None:
        while any(self.on_its_way.values()):
            for role in Role:
                self.arrive(role, 2**30)


Action = tuple[bool, Role, int, int, int]
ACTIONS = st.tuples(
    st.booleans(), st.sampled_from(Role), st.integers(1, CHANNELS), st.integers(0, 6), st.integers(0, 14)
)


def cross(actions: list[Action], *, greeted: bool) -> None:
    """Let all this happen, then let everything arrive: no error, and both ends agree."""
    crossing = Crossing()
    if greeted:
        crossing.on_its_way[Role.CLIENT] = crossing.ends[Role.CLIENT].say(m.Hello(m.VERSION, DIGEST))
        crossing.settle()
    for says, role, channel, number, choice in actions:
        if says:
            crossing.say(role, channel, number, choice)
        else:
            crossing.arrive(role, (number + 1) * 40)
    crossing.settle()
    client, box = (crossing.ends[role].connection for role in Role)
    assert client.state is box.state
    assert client.fresh_channel() == box.fresh_channel()
    for channel in range(1, CHANNELS + 1):
        assert client.channel_state(channel) is box.channel_state(channel)
        ours, theirs = client._channels.maybe_live(channel), box._channels.maybe_live(channel)
        if ours is not None and ours.state is ChannelState.OPEN:
            assert ours == theirs


@settings(max_examples=200)
@given(actions=st.lists(ACTIONS, min_size=5, max_size=60), greeted=st.booleans())
def test_ends_that_follow_the_rules_understand_each_other(actions: list[Action], greeted: bool) -> None:
    cross(actions, greeted=greeted)


def test_long_walks_reach_every_entry_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {(role, state, key) for role, rows in CHANNEL.items() for state, row in rows.items() for key in row}
    walked = watch_entries(monkeypatch)
    dice = random.Random(1)
    for _ in range(4000):
        if walked >= entries:
            break
        few = dice.choice([1, 2, CHANNELS])
        actions = [
            (
                dice.random() < 0.75,
                dice.choice(list(Role)),
                dice.randint(1, few),
                dice.randint(0, 6),
                dice.randint(0, 14),
            )
            for _ in range(dice.randint(5, 60))
        ]
        cross(actions, greeted=dice.random() < 0.9)
    assert entries - walked == set()


def watch_entries(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Role, ChannelState, Key]]:
    """Every entry of the channels' tables that is used from now on."""
    walked: set[tuple[Role, ChannelState, Key]] = set()
    apply = Channel.apply

    def watched(channel: Channel, sender: Role, message: m.Message) -> bool:
        state, key = channel.state, channel._key(message)
        taken = apply(channel, sender, message)
        walked.add((sender, state, key))
        return taken

    monkeypatch.setattr(Channel, "apply", watched)
    return walked


@pytest.mark.parametrize("role", Role)
def test_every_state_has_a_row_and_every_message_a_place(role: Role) -> None:
    assert set(CHANNEL[role]) == set(ChannelState)
    placed = {key for row in CHANNEL[role].values() for key in row if isinstance(key, type)}
    sent = m.FromClient if role is Role.CLIENT else m.FromBox
    assert placed == {kind for kind in sent.__args__ if "channel" in kind.__struct_fields__}


LONGEST_NAME, LONGEST_TEXT = "\U0001f600" * 128, "\U0001f600" * m.MAX_TEXT_CHARS
NUMBER, BULK = 2**62, b"x" * m.MAX_DATA_BYTES
LONGEST = {
    Role.CLIENT: [
        m.Store(m.MAX_CHANNEL, T, T, b"x" * m.MAX_MANIFEST_BYTES, m.MAX_CODE_BYTES, T),
        m.Chunk(m.MAX_CHANNEL, NUMBER, BULK),
        m.Execute(m.MAX_CHANNEL, T, T, LONGEST_NAME, "x" * m.MAX_ARGUMENTS_BYTES),
        m.Input(m.MAX_CHANNEL, NUMBER, BULK, True, True),
    ],
    Role.BOX: [
        m.Policy(b"x" * m.MAX_POLICY_BYTES),
        m.Output(m.MAX_CHANNEL, NUMBER, BULK, True),
        m.Ended(m.MAX_CHANNEL, LONGEST_NAME, LONGEST_TEXT, b"x" * m.MAX_LOG_BYTES),
    ],
}


def test_the_longest_message_of_each_kind_fits_the_cap() -> None:
    for role, longest in LONGEST.items():
        cap = FRAME_CAPS[role][ConnectionState.READY]
        sizes = [len(raw(message)) - 4 for message in longest]
        assert max(sizes) <= cap < max(sizes) + 2048
    assert len(raw(m.Hello(2**64 - 1, T))) - 4 <= MAX_HELLO_FRAME_BYTES
    for answer in (m.Welcome(2**64 - 1, T), m.Refused(0, m.Code.UNAVAILABLE, LONGEST_TEXT)):
        assert len(raw(answer)) - 4 <= FRAME_CAPS[Role.BOX][ConnectionState.GREETED]
