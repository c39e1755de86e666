"""The parts that need no jail: outcomes, frames, requests, the command line, where cgroups are."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.errors import ConfigError, RemoteProtocolError, SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import KILLS, Kind, Outcome, Seen, judge
from bento_tor.sandbox import driver, frames, wire
from bento_tor.sandbox.delegation import pass_on
from bento_tor.sandbox.hierarchies import LEAF, Place, find_places
from bento_tor.sandbox.images import Image
from bento_tor.sandbox.spec import STAGE, Fds, Spec, Stage
from bento_tor.sandbox.uids import Uids

RETURNED, RAISED = Outcome.returned(), Outcome.raised("ValueError")

# What the function said, what was seen from outside, whether the driver was up; the word that comes of it.
VERDICTS = [
    (RETURNED, Seen(0), True, "returned"),
    (RAISED, Seen(1), True, "raised"),
    (Outcome.exited(3), Seen(3), True, "exited:3"),
    (Outcome.exited(139), Seen(139), True, "exited:139"),
    (None, Seen(0), True, "exited:0"),
    (None, Seen(4), True, "exited:4"),
    (None, Seen(139), True, "crashed:SIGSEGV"),
    (None, Seen(255), True, "exited:255"),
    (None, Seen(128), True, "exited:128"),
    (RETURNED, Seen(1), True, "exited:1"),
    (RETURNED, Seen(139), True, "crashed:SIGSEGV"),
    (RAISED, Seen(0), True, "exited:0"),
    (Outcome.exited(3), Seen(4), True, "exited:4"),
    (RETURNED, Seen(137, Kind.KILLED_TIME), True, "killed:time"),
    (RETURNED, Seen(0, Kind.KILLED_MEMORY), True, "killed:memory"),
    (None, Seen(137, Kind.KILLED_OPERATOR), False, "killed:operator"),
    (None, Seen(1), False, "lost"),
    (RETURNED, None, True, "lost"),
]


@pytest.mark.parametrize(("said", "seen", "ready", "word"), VERDICTS)
def test_what_is_seen_from_outside_overrides_what_is_said(said, seen, ready, word):
    assert judge(said, seen, ready=ready).word == word


@given(st.sampled_from(Kind), st.integers(0, 255), st.integers(1, 64), st.text(max_size=20))
def test_every_outcome_can_be_read_back(kind, status, number, detail):
    if kind is Kind.EXITED:
        outcome = Outcome(kind, detail, status)
    elif kind is Kind.CRASHED:
        outcome = Outcome(kind, detail, number)
    else:
        outcome = Outcome(kind, detail)
    assert Outcome.parse(outcome.word, detail) == outcome


NO_WORDS = ["", "exited", "exited:", "exited:x", "exited:-1", "exited:1234", "crashed", "crashed:SIGFOO", "killed"]


@pytest.mark.parametrize("word", [*NO_WORDS, "returned:1", "Returned", "lost:", "killed:", "exited:\u0663"])
def test_what_is_no_outcome_is_the_peers_fault(word):
    with pytest.raises(RemoteProtocolError):
        Outcome.parse(word)


def test_only_a_function_that_came_to_its_end_succeeded():
    assert RETURNED.succeeded
    assert Outcome.exited(0).succeeded
    assert not any(o.succeeded for o in (RAISED, Outcome.exited(1), Outcome.crashed(11), Outcome.lost()))
    assert not any(Outcome.killed(kind).succeeded or not Outcome.killed(kind).detail for kind in KILLS)


def test_driver_and_box_agree_about_the_framing():
    """The driver travels alone, so it has a copy of each number."""
    shared = [name for name in vars(driver) if name.isupper() and hasattr(frames, name)]
    assert len(shared) >= 16
    assert {name: getattr(driver, name) for name in shared} == {name: getattr(frames, name) for name in shared}
    for name in ("READY", "MESSAGE", "PADDING", "HOST", "RETURNED", "RAISED", "EXITED", "CODE", "INPUT"):
        assert f"{getattr(frames, name):#04x} {name} " in driver.__doc__


def frame(kind: int, body: bytes = b"") -> bytes:
    return frames.HEADER.pack(kind, len(body)) + body


LEGAL = [
    (frame(frames.READY), frames.Ready()),
    (frame(frames.MESSAGE, b"\0ab"), frames.Message(b"ab", False)),
    (frame(frames.MESSAGE, b"\x01"), frames.Message(b"", True)),
    (frame(frames.MESSAGE, b"\x01" + bytes(frames.MAX_PART_BYTES)), frames.Message(bytes(frames.MAX_PART_BYTES), True)),
    (frame(frames.PADDING, (70_000).to_bytes(8, "big")), frames.Padding(70_000)),
    (frame(frames.PAD_TO, (10**6).to_bytes(8, "big") + b"\xff" * 8), frames.PadTo(10**6, None)),
    (frame(frames.PAD_TO, bytes(8) + (2500).to_bytes(8, "big")), frames.PadTo(0, 2.5)),
    (frame(frames.HOST), frames.HostRequest()),
]
LAST = [
    (frame(frames.RETURNED), frames.Returned()),
    (frame(frames.RAISED, b"\xffoops"), frames.Raised("\ufffdoops")),
    (frame(frames.EXITED, b"\x03"), frames.Exited(3)),
]
ILLEGAL = [
    frame(0),
    frame(frames.CODE),
    frame(0xFF),
    frame(frames.READY, b"x"),
    frame(frames.MESSAGE),
    frame(frames.MESSAGE, b"\x02"),
    struct.pack("!BI", frames.MESSAGE, frames.MAX_PART_BYTES + 2),
    struct.pack("!BI", frames.MESSAGE, 0xFFFF_FFFF),
    struct.pack("!BI", frames.RAISED, frames.MAX_TRACEBACK_BYTES + 1),
    frame(frames.PADDING, b"\xff" * 8),
    frame(frames.PADDING, b"1"),
    frame(frames.PAD_TO, b"\xff" * 16),
    frame(frames.PAD_TO, (1).to_bytes(8, "big") + (600_001).to_bytes(8, "big")),
    frame(frames.PAD_TO, b"1" * 8),
    frame(frames.EXITED),
]


@given(st.data())
def test_frames_are_the_same_however_they_are_cut(data):
    chosen = data.draw(st.lists(st.sampled_from(LEGAL), max_size=8)) + [data.draw(st.sampled_from(LAST))]
    stream = b"".join(piece for piece, _ in chosen)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = frames.FrameReader()
    seen = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += reader.feed(stream[start:end])
    assert seen == [value for _, value in chosen]
    assert reader.done


@pytest.mark.parametrize("bad", ILLEGAL)
def test_after_an_illegal_frame_nothing_is_read(bad):
    reader = frames.FrameReader()
    seen = [item for byte in LEGAL[0][0] + bad for item in reader.feed(bytes([byte]))]
    assert [type(item) for item in seen] == [frames.Ready, frames.Illegal]
    assert reader.feed(LEGAL[0][0]) == []


@pytest.mark.parametrize("last", [piece for piece, _ in LAST])
def test_after_the_last_word_nothing_is_read(last):
    reader = frames.FrameReader()
    assert len(reader.feed(last + LEGAL[1][0])) == 1
    assert reader.feed(LEGAL[1][0]) == []


@given(st.binary(max_size=2000))
def test_noise_never_raises(noise):
    reader = frames.FrameReader()
    for start in range(0, len(noise), 7):
        reader.feed(noise[start : start + 7])


REQUESTS = [wire.Start(1, Limits()), wire.Start(2**64 - 1, Limits(1, 2, 3, 4, 5, 6, 7, 8))]
REQUESTS += [wire.Kill(3, kind) for kind in sorted(KILLS)]
REQUESTS += [wire.Look(7), wire.Leave()]


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_have_one_size_and_can_be_read_back(request_):
    data = wire.encode_request(request_)
    assert len(data) == wire.REQUEST_BYTES
    assert wire.decode_request(data) == request_


@given(st.binary(max_size=2 * wire.REQUEST_BYTES) | st.binary(min_size=wire.REQUEST_BYTES, max_size=wire.REQUEST_BYTES))
def test_noise_is_a_request_or_none(noise):
    request = wire.decode_request(noise)
    assert request is None or len(noise) == wire.REQUEST_BYTES


REPLIES = [wire.Started(1), wire.Failed(2, "\u00fc" * 99), wire.Failed(3, ""), wire.Ended(4, Seen(0))]
REPLIES += [wire.Ended(5, Seen(137, kind)) for kind in sorted(KILLS)]
REPLIES += [wire.Looked(6), wire.Looked(7, "\u00fc" * 99)]


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_have_one_size_and_can_be_read_back(reply):
    data = wire.encode_reply(reply)
    assert len(data) == wire.REPLY_BYTES
    assert wire.decode_reply(data) == reply
    assert wire.decode_reply(data[:-1]) is None


def test_a_long_reason_is_cut():
    reply = wire.decode_reply(wire.encode_reply(wire.Failed(1, "x" * 500)))
    assert reply == wire.Failed(1, "x" * wire.MAX_TEXT_BYTES)


IMAGE = Image(
    "python", Path("/images/python"), "/usr/bin/python3.11", "3.11.2", "/usr/lib/python3.11", "/usr/lib/x", "d"
)


FDS = Fds(control=3, driver=4, filter=7, info=5, block=6)


def argv(**limits):
    return Spec(IMAGE, Limits(**limits), FDS).argv()


def test_every_namespace_is_new_and_nothing_is_kept():
    line = argv()
    for kind in ("user", "pid", "net", "ipc", "uts", "cgroup"):
        assert f"--unshare-{kind}" in line
    for flag in ("--clearenv", "--new-session", "--die-with-parent", "--disable-userns"):
        assert flag in line
    assert "--proc" not in line
    assert line[line.index("--cap-drop") + 1] == "ALL"


def test_only_data_can_be_written():
    line = argv(data_bytes=1 << 20)
    assert line.count("--bind") == 1
    assert line.count("--tmpfs") == 0
    assert line[line.index("--bind") + 1 : line.index("--bind") + 3] == ["/srv/data", "/data"]
    assert line[line.index("--remount-ro") + 1] == "/"
    assert all(line[i + 2].startswith("/dev/") for i, part in enumerate(line) if part == "--dev-bind")


def test_nothing_of_the_image_is_shared_with_another_session():
    """A bind of the host's own file shares its inode, and so its locks."""
    line = argv()
    shown = [line[i + 1] for i, part in enumerate(line) if part in ("--ro-bind", "--ro-bind-try", "--dev-bind")]
    assert all(path.startswith(f"{STAGE}/") for path in shown), shown
    bare = Spec(IMAGE, Limits(), FDS, stage=Stage(overlay=False, devices=False)).argv()
    assert [part for part in bare if part.startswith(STAGE)] == [f"{STAGE}/data"]


def test_no_size_is_not_any_size():
    assert Spec(IMAGE, Limits(data_bytes=0), FDS).data_bytes == 4096


V1 = """\
9:name=systemd:/
8:pids:/
5:cpu,cpuacct:/box
4:memory:/a/b
0::/unified
"""
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / {root}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /a {root}/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / {root}/pids rw,relatime shared:3 - cgroup cgroup rw,pids
41 31 0:38 / {root}/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_cgroup_v1_is_used_below_our_own_groups(tmp_path):
    assert find_places(V1, V1_MOUNTS.format(root=tmp_path)) == [
        Place("memory", 1, tmp_path / "memory/b"),
        Place("pids", 1, tmp_path / "pids"),
        Place("cpu", 1, tmp_path / "cpu/box"),
        Place("cpuacct", 1, tmp_path / "cpu/box"),
    ]


def test_cgroup_v2_is_used_for_what_it_has(tmp_path):
    own = tmp_path / "unified/unified"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("memory hugetlb\n")
    places = find_places(V1, V1_MOUNTS.format(root=tmp_path))
    assert places[0] == Place("memory", 2, own)
    assert [place.version for place in places] == [2, 1, 1, 1]


V2_MOUNTS = "41 31 0:38 {part} {root} rw - cgroup2 cgroup2 rw,nsdelegate"


@pytest.mark.parametrize(
    ("group", "part", "directory"),
    [
        ("/", "/", ""),
        ("/a.slice/b.service", "/", "a.slice/b.service"),
        # Our own leaf, in which an earlier start put us, or systemd's DelegateSubgroup: the group given to us is above.
        ("/a.slice/b.service/bento-keeper", "/", "a.slice/b.service"),
        ("/a.slice/b.service", "/a.slice", "b.service"),
        # A prefix of the name is no folder above it.
        ("/a.slice-b", "/a.slice", "a.slice-b"),
    ],
)
def test_cgroup_v2_is_used_below_the_group_that_was_given_to_us(tmp_path, group, part, directory):
    own = tmp_path / directory
    own.mkdir(parents=True, exist_ok=True)
    (own / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    places = find_places(f"0::{group}\n", V2_MOUNTS.format(root=tmp_path, part=part))
    assert places == [Place(name, 2, own) for name in ("memory", "pids", "cpu")]


def test_a_group_outside_of_our_cgroup_namespace_is_not_ours(tmp_path):
    root = tmp_path / "root"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cgroup.controllers").write_text("memory pids cpu\n")
    assert find_places("0::/../other\n", V2_MOUNTS.format(root=root, part="/")) == []


def test_a_group_with_processes_of_others_is_left_as_it_is(tmp_path):
    """Pid 1 is not ours; nor is 0, which stands for whoever is in another pid namespace."""
    for members in (f"{os.getpid()}\n1\n", "0\n"):
        (tmp_path / "cgroup.type").write_text("domain\n")
        (tmp_path / "cgroup.procs").write_text(members)
        (tmp_path / "cgroup.subtree_control").write_text("")
        with pytest.raises(SandboxError, match="other processes are in our cgroup"):
            pass_on(Place("memory", 2, tmp_path))
        assert (tmp_path / "cgroup.subtree_control").read_text() == ""
        assert not (tmp_path / LEAF).exists()


def test_an_empty_group_passes_its_controller_on(tmp_path):
    for name in ("cgroup.type", "cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).write_text("")
    pass_on(Place("pids", 2, tmp_path))
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert not (tmp_path / LEAF).exists()


def test_no_cgroups_are_no_error():
    assert find_places("0::/\n", "") == []
    assert find_places("", V1_MOUNTS.format(root="/nowhere")) == []


@pytest.mark.parametrize("uids", [range(0, 10), range(500, 2000), range(0)])
def test_no_session_gets_root_or_a_system_user(uids):
    with pytest.raises(ConfigError):
        Uids(uids)


def test_a_user_id_is_used_again_as_late_as_possible():
    uids = Uids(range(2000, 2003))
    uids.open()
    first = uids.take()
    uids.give_back(first)
    assert [uids.take(), uids.take(), uids.take()] == [2001, 2002, first]


def test_two_boxes_on_a_machine_have_different_user_ids():
    one, two = Uids(), Uids()
    one.open()
    two.open()
    try:
        assert one.take() != two.take()
    finally:
        one.close()
        two.close()
