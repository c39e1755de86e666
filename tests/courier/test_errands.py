"""What `api.box` is held to: its verbs, its limits, its end. By a SOCKS port of the tests' own."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.errors import Refused

pytestmark = pytest.mark.sandbox

ECHO = parse("echo", "def echo(*args):\n    api.send(repr(args))\n    while (m := api.recv()) != b'stop': api.send(m)")
SHORT = parse("short", "def short():\n    print('a line')\n    raise ValueError('no')")
PRELUDE = """
import errno
def tried(what):
    try: return what() or ''
    except (OSError, ValueError, EOFError) as why:
        return errno.errorcode.get(getattr(why, 'errno', None), type(why).__name__)
"""


def play(box, source, *arguments: object) -> list[str]:
    """What a function says, where it returns."""
    with box.connect() as there:
        session = there.run(source, make_call("f", *arguments))
        said = [message.decode() for message in session]
        assert session.wait().word == "returned", session.wait()
        there.shutdown(session.maybe_shutdown)
    return said


@contextmanager
def stored(box, source):
    """A function that is there."""
    with box.connect() as there:
        function = there.upload(source)
        yield function
        if box.process.poll() is None:
            function.shutdown()


VERBS = """
def f(address, echo, short, shutdown):
    with api.box(address) as there:
        first = there.run(echo, "echo", 1, "two")
        api.send(first.recv())
        first.send("kept", end=False); first.send(" whole")
        api.send(first.recv())
        first.close()
        again = there.attach(first.token)
        again.send("still there")
        for m in again:
            if m == b"still there":
                api.send(m)
                again.end()
        ended = there.run(short, "short")
        api.send(f"{again.outcome} {ended.wait()} {ended.log.strip()} {ended.detail.splitlines()[-1]}")
        there.shutdown(shutdown)
        api.send(tried(lambda: there.run(short, "short")))
"""


def test_every_verb(near, far, asking) -> None:
    with stored(far, ECHO) as echo, far.connect() as there:
        short = there.upload(SHORT)
        arguments = (far.told["address"], echo.invocation, short.invocation, short.shutdown_token)
        said = play(near, asking(PRELUDE + VERBS), *arguments)
    assert said[:3] == ["(1, 'two')", "kept whole", "still there"]
    assert said[3:] == ["killed:user raised a line ValueError: no", "EACCES"]


WORDS = """
def f(*addresses):
    for address in addresses:
        for _ in range(2):
            api.send(tried(lambda: api.box(address).attach(bytes(32))))
"""


def test_each_session_has_circuits_of_its_own(near, far, asking, switch) -> None:
    heard = []
    for _ in range(2):
        del switch.words[:]
        assert play(near, asking(PRELUDE + WORDS), far.told["address"]) == ["EACCES", "EACCES"]
        heard.append(set(switch.words))
    assert [len(words) for words in heard] == [1, 1] and not heard[0] & heard[1]


def test_a_box_that_is_not_there_is_told_as_such(near, asking, switch, load) -> None:
    nowhere = load(Path(__file__).parent / "switch.py").NOWHERE
    text = "def f(a):\n    try: api.box(a).attach(bytes(32))\n    except ConnectionError as why: return str(why)"
    assert "no descriptor was found" in play(near, asking(text), nowhere)[0]


ONWARD = """
def f(address, *more):
    if more:
        return api.box(address).run(more[0], "f", more[1]).recv()
    try: api.box(address).attach(bytes(32))
    except OSError as why: return str(why)
"""


def test_a_function_that_was_started_by_a_function_goes_no_further(near, far, asking) -> None:
    """Two of them could else keep each other alive for ever, each with the other's token."""
    source = asking(ONWARD)
    assert "opens nothing here" in play(far, source, near.told["address"])[0]  # it was carried there
    with stored(far, source) as there:
        said = play(near, source, far.told["address"], there.invocation, near.told["address"])
    assert "a function of another box has started it" in said[0]


def test_a_box_may_use_itself(near, asking) -> None:
    """As it uses any other; what it starts there goes no further, so that is no way to go on for ever."""
    with stored(near, ECHO) as echo:
        text = "def f(a, t):\n    s = api.box(a).run(t, 'echo', 7)\n    said = s.recv(); s.end(); s.wait(); return said"
        assert play(near, asking(text), near.told["address"], echo.invocation) == ["(7,)"]


LIMITS = """
def f(one, two, token):
    open_ones = [api.box(one).run(token, 'echo') for _ in range(4)]
    api.send(tried(lambda: api.box(one).run(token, 'echo')))
    for session in open_ones:
        session.end(); session.wait()
    api.send(tried(lambda: api.box(two).attach(bytes(32))))
    api.send(tried(lambda: [api.box(one).attach(bytes(32)) for _ in range(1)]))
    api.send(tried(lambda: [api.box(one).run(token, 'echo').end() for _ in range(9)]))
"""


def test_the_policys_limits(new_near, far, near, asking) -> None:
    tight = new_near("boxes = 1\nbox_visits = 6\nbox_bytes = 1000000")
    with stored(far, ECHO) as echo:
        said = play(tight, asking(PRELUDE + LIMITS), far.told["address"], near.told["address"], echo.invocation)
        assert said == ["EDQUOT", "EACCES", "EACCES", "EDQUOT"]
        text = PRELUDE + (
            "def f(a, t):\n    s = api.box(a).run(t, 'echo')\n    s.recv()\n    s.send(bytes(2_000_000))\n"
            "    api.send(tried(s.recv))\n    return tried(lambda: api.box(a).attach(s.token))"
        )
        said = play(tight, asking(text), far.told["address"], echo.invocation)
        assert said == ["EDQUOT", "EDQUOT"]


def test_only_the_boxes_that_the_manifest_names(near, far, asking) -> None:
    text = PRELUDE + "def f(a): return tried(lambda: api.box(a).attach(bytes(32)))"
    other = near.told["address"]
    named = asking(text.replace("return tried", "return 'asked ' + tried"), f'# hosts = ["{far.told["address"]}"]\n')
    assert play(near, named, far.told["address"]) == ["asked EACCES"]
    text = "def f(a):\n    try: api.box(a).attach(bytes(32))\n    except PermissionError as why: return str(why)"
    unnamed = asking(text, f'# hosts = ["{far.told["address"]}"]\n')
    assert "does not name this box" in play(near, unnamed, other)[0]


def test_a_box_whose_policy_has_none_says_so_before_and_after_it_is_asked(box, asking) -> None:
    source = asking("def f(): return 'ran'")
    with box.connect() as there, pytest.raises(Refused, match="asks for other boxes; this box has no way to them"):
        there.run(source)


IN_TURN = """
def f(address, token):
    held = [api.box(address).run(token, "echo") for _ in range(4)]
    for _ in range(8):
        held[0].end(); held.pop(0).wait()
        held.append(api.box(address).run(token, "echo"))
    for session in held:
        session.end(); session.wait()
    return "all"
"""


def test_a_place_that_was_just_given_up_is_free(near, far, asking) -> None:
    with stored(far, ECHO) as echo:
        assert play(near, asking(IN_TURN), far.told["address"], echo.invocation) == ["all"]


HOLD = """
def f(address, token):
    sessions = [api.box(address).run(token, 'echo') for _ in range(2)]
    api.send(b'open')
    api.recv()
"""


def processes(box) -> list[psutil.Process]:
    """Broker, courier and box, in the order in which the keeper forks them."""
    found = [each for each in psutil.Process(box.process.pid).children() if each.name() != "bwrap"]
    return sorted(found, key=lambda each: (each.create_time(), each.pid))


def workers(box) -> list[psutil.Process]:
    """The courier's: its children."""
    return processes(box)[1].children()


@pytest.mark.parametrize("how", ["the session ends", "the box is killed", "the keeper is killed"])
def test_nothing_is_left_open(new_near, near, far, asking, switch, eventually, lives, how) -> None:
    box = near if how == "the session ends" else new_near()
    with stored(far, ECHO) as echo, box.connect() as there:
        session = there.run(asking(HOLD), make_call("f", far.told["address"], echo.invocation))
        assert next(iter(session)) == b"open"
        eventually(lambda: switch.standing == 2)
        left = workers(box)
        assert len(left) == 2
        if how == "the session ends":
            session.end()
        elif how == "the box is killed":
            processes(box)[-1].kill()
        else:
            box.kill()
        eventually(lambda: switch.standing == 0)
        eventually(lambda: not any(map(lives, left)))
        if how == "the box is killed":
            box.process.wait(30)


def test_another_box_that_is_killed_in_the_middle(near, new_near, asking) -> None:
    other = new_near()
    with stored(other, ECHO) as echo, near.connect() as there:
        text = "def f(a, t):\n    s = api.box(a).run(t, 'echo')\n    api.send(s.recv())\n    return s.recv()"
        session = there.run(asking(text), make_call("f", other.told["address"], echo.invocation))
        assert next(iter(session)) == b"()"
        other.kill()
        assert session.wait().word == "raised"
        assert "ConnectionAbortedError" in session.wait().detail


def test_the_parser_is_a_user_of_its_own_and_can_do_nothing(near, far, asking) -> None:
    if os.geteuid() != 0:
        pytest.skip("user ids of its own need root")
    with stored(far, ECHO) as echo, near.connect() as there:
        session = there.run(asking(HOLD), make_call("f", far.told["address"], echo.invocation))
        assert next(iter(session)) == b"open"
        for worker in workers(near):
            lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            assert status["Uid"].split()[0] not in ("0", str(processes(near)[-1].uids().real))
            assert (status["Seccomp"], status["NoNewPrivs"], status["CapEff"].strip("0")) == ("2", "1", "")
            assert len(os.listdir(f"/proc/{worker.pid}/fd")) <= 6
        session.end()
