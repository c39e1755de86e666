"""Each function that ships: in process with a stand-in for `api`, and in a real sandbox."""

from __future__ import annotations

import json
import time

import pytest

from bento_tor import resources
from bento_tor.policy import manifest
from bento_tor.sandbox import frames

FACTS = {
    "cpu_count": 2,
    "cpu_percent": 12.5,
    "memory_total": 4 * 1024**3,
    "memory_used": 1024**3,
    "disk_total": 20 * 1024**3,
    "disk_used": 5 * 1024**3,
    "addresses": ["192.0.2.7", "2001:db8::7"],
    "bytes_sent": 3 * 1024**2,
    "bytes_received": 1024**2,
    "time": "2026-11-21T12:00:00Z \u4e2d\u5348",
}
REPORT = """\
CPU: 2 cores, 12.5 % busy
memory: 4.0 GiB, 1.0 used
disk: 20.0 GiB, 5.0 used
addresses: 192.0.2.7, 2001:db8::7
traffic: 3.0 MiB sent, 1.0 MiB received
time: 2026-11-21T12:00:00Z \u4e2d\u5348
"""
SOME_FACTS = {"cpu_count": 1, "disk_total": 10 * 1024**3}
NOTHING = "this box tells nothing about its host\n"

# Function, arguments, input, what api.host() gives; the messages.
CALLS = [
    ("hello", (), [], {}, [b"hello world"]),
    ("add", (5, 12), [], {}, [b"17"]),
    ("add", (0.5, 1), [], {}, [b"1.5"]),
    ("add", (-1, 1), [], {}, [b"0"]),
    ("add", ("gr\u00fc", "\u00df"), [], {}, ["gr\u00fc\u00df".encode()]),
    ("echo", (), [b"a", b"", "\u4f60".encode(), b"stop", b"late"], {}, [b"a", b"", "\u4f60".encode()]),
    ("echo", (), [b"a", b"stop\n"], {}, [b"a"]),
    ("echo", (), [b"to the end"], {}, [b"to the end"]),
    ("monitor", (), [], FACTS, [REPORT.encode()]),
    ("monitor", (), [], SOME_FACTS, [b"CPU: 1 cores\ndisk: 10.0 GiB\n"]),
    ("monitor", (), [], {}, [NOTHING.encode()]),
    ("monitor", (0, 1, "json"), [], SOME_FACTS, [json.dumps(SOME_FACTS).encode()]),
    ("monitor", (3600, 0), [b"enough"], {}, [NOTHING.encode()]),
]
IDS = [f"{call[0]}-{number}" for number, call in enumerate(CALLS)]


class Api:
    """What a function asks for, on lists."""

    def __init__(self, messages, facts):
        self.sent, self._messages, self._facts = [], list(messages), facts

    def send(self, data):
        data = data.encode() if isinstance(data, str) else bytes(data)
        self.sent.append(data)
        return len(data)

    def recv(self):
        if not self._messages:
            raise EOFError
        return self._messages.pop(0)

    def poll(self):
        return bool(self._messages)

    def host(self):
        return self._facts


@pytest.mark.parametrize(("name", "args", "messages", "facts", "sent"), CALLS, ids=IDS)
def test_in_process(source, name, args, messages, facts, sent):
    api = Api(messages, facts)
    module = {"api": api, "__name__": "__bento__"}
    exec(compile(source(name), f"{name}.py", "exec"), module)
    value = module[name](*args)
    if value is not None:
        api.send(value if isinstance(value, (str, bytes)) else repr(value))
    assert api.sent == sent


def test_a_monitor_with_an_interval_goes_on(source):
    api = Api([], SOME_FACTS)
    module = {"api": api, "__name__": "__bento__"}
    exec(compile(source("monitor"), "monitor.py", "exec"), module)
    begun = time.monotonic()
    module["monitor"](0.01, 3, "json")  # never more often than once a second
    assert [json.loads(report) for report in api.sent] == [SOME_FACTS] * 3
    assert time.monotonic() - begun >= 2


@pytest.mark.sandbox
@pytest.mark.parametrize(("name", "args", "messages", "facts", "sent"), CALLS, ids=IDS)
def test_in_a_sandbox(run, source, name, args, messages, facts, sent):
    then = b"".join(frames.encode_input(message, end=True) for message in messages)
    then += frames.encode_input(b"", end=False, eof=True)
    arguments = repr((list(args), {}))
    talk = run(source(name), name, arguments, then=then, host=lambda: frames.encode_host_reply(facts))
    assert (talk.outcome.word, talk.messages) == ("returned", sent), talk


# The four as they were written for the code of 2021: a global api, text or bytes, any value returned.
AS_IN_2021 = [
    ("def hello():\n    api.send('hello world')\n    return 0", "hello", "([], {})", [], [b"hello world", b"0"]),
    ("def add(a, b):\n    return a + b", "add", "([5, 12], {})", [], [b"17"]),
    (
        "def echo():\n    while True:\n        data = api.recv()\n"
        "        if data == b'stop':\n            return True\n        api.send(data)\n        api.poll()",
        "echo",
        "([], {})",
        [b"one", b"two", b"stop"],
        [b"one", b"two", b"True"],
    ),
    (
        "def monitor():\n    text = str(api.host()['cpu_count']) + ' \u00b5s'\n"
        "    assert api.send(text) == 5\n    return {}",
        "monitor",
        "([], {})",
        [],
        ["2 \u00b5s".encode(), b"{}"],
    ),
]


@pytest.mark.sandbox
@pytest.mark.parametrize(("text", "name", "arguments", "messages", "sent"), AS_IN_2021)
def test_as_written_in_2021(run, text, name, arguments, messages, sent):
    then = b"".join(frames.encode_input(message, end=True) for message in messages)
    talk = run(text, name, arguments, then=then, host=lambda: frames.encode_host_reply(FACTS))
    assert (talk.outcome.word, talk.messages) == ("returned", sent), talk


def test_a_monitor_that_may_know_nothing_says_whose_choice_that_was(source):
    assert "the operator's choice" in source("monitor")


@pytest.mark.parametrize("name", ["add", "cover", "echo", "hello", "monitor", "proxy"])
def test_each_has_its_manifest_and_says_what_it_does(source, name):
    assert name in resources.shipped_functions()
    text = source(name)
    asked = manifest.read(text)
    assert (asked.entry, asked.image) == (name, "python")
    assert asked.host == ("full" if name == "monitor" else "none")
    assert asked.egress == ("exit" if name == "proxy" else "none")
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 270
