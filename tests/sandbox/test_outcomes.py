"""Every way in which a function can end, from real code in the real jail."""

from __future__ import annotations

import hashlib

import pytest

from bento_tor.policy.limits import MIB, Limits
from bento_tor.sandbox import frames

pytestmark = pytest.mark.sandbox

# What it returns, and the message that becomes of it. Fault 6 of 2021: what is no bytes was lost, or killed it.
RETURNS = [
    ("None", None),
    ("0", b"0"),
    ("17", b"17"),
    ("3.5", b"3.5"),
    ("False", b"False"),
    ("''", b""),
    ("b''", b""),
    ("'gr\u00fc\u00df \u4f60\u597d'", "gr\u00fc\u00df \u4f60\u597d".encode()),
    ("b'\\x00\\xff'", b"\x00\xff"),
    ("bytearray(b'ab')", b"ab"),
    ("memoryview(b'abcd')[::2]", b"ac"),
    ("{'a': [1, None]}", b"{'a': [1, None]}"),
    ("[]", b"[]"),
]


@pytest.mark.parametrize(("value", "message"), RETURNS)
def test_what_is_returned_is_the_last_message(run, value, message):
    talk = run(f"def f():\n    api.send('first')\n    return {value}\n")
    assert talk.outcome.word == "returned", talk.outcome
    assert talk.outcome.succeeded
    assert talk.messages == [b"first", *([] if message is None else [message])]


ENDS = [
    ("exits", "import sys\ndef f(): sys.exit(3)", "exited:3", "status 3"),
    ("exits well", "import sys\ndef f(): sys.exit()", "exited:0", ""),
    ("exits with a text", "import sys\ndef f(): sys.exit('bad')", "exited:1", ""),
    ("exits with a large number", "def f(): raise SystemExit(-1)", "exited:255", ""),
    ("exits past the driver", "import os\ndef f(): os._exit(4)", "exited:4", ""),
    ("exits as if by a signal", "import sys\ndef f(): sys.exit(137)", "exited:137", ""),
    ("aborts", "import os\ndef f(): os.abort()", "crashed:SIGABRT", "SIGABRT"),
    ("reads address 0", "import ctypes\ndef f(): ctypes.string_at(0)", "crashed:SIGSEGV", ""),
    ("kills itself", "import os\ndef f(): os.kill(os.getpid(), 9)", "crashed:SIGKILL", ""),
    ("raises", "def f():\n    raise ValueError('no, thanks')", "raised", "ValueError: no, thanks"),
    ("raises at import", "import nothing_like_this\ndef f(): pass", "raised", "ModuleNotFoundError"),
    ("raises what is no Exception", "def f(): raise KeyboardInterrupt", "raised", "KeyboardInterrupt"),
    ("raises with a hostile text", "class E(Exception):\n  def __str__(self): 1/0\ndef f(): raise E", "raised", "E"),
    ("returns with a hostile text", "class R:\n  def __repr__(self): 1/0\ndef f(): return R()", "raised", "Zero"),
    ("is no Python", "%PDF-1.4 (", "raised", "SyntaxError"),
    ("is binary", "\x00\x01", "raised", "null bytes"),
    ("recurses", "def f(): f()", "raised", "RecursionError"),
    ("wants too much memory at once", "def f(): bytearray(1 << 42)", "raised", "MemoryError"),
    ("wants an argument", "def f(a): pass", "raised", "missing 1 required positional argument"),
    ("has another name", "def g(): pass", "raised", "defines no 'f'"),
    ("is no function", "f = 3", "raised", "defines no 'f'"),
    ("sends what is no bytes", "def f(): api.send(3)", "raised", "TypeError: api.send takes str or bytes, not int"),
    ("pads to a negative number", "def f(): api.pad_to(-1)", "raised", "ValueError: api.pad_to"),
    ("holds for longer than a box does", "def f(): api.pad_to(1, 601)", "raised", "ValueError: api.pad_to"),
    ("asks for too much padding", "def f(): api.pad(-1)", "raised", "ValueError: api.pad"),
    ("needs a third", "def f(): api.box", "raised", "needs the key 'box'"),
    ("needs a manifest key", "def f(): api.tor", "raised", "the key 'tor'"),
    ("needs another one", "def f(): api.store", "raised", "the key 'store'"),
    ("misspells", "def f(): api.sned(1)", "raised", "api has no 'sned'"),
    ("leaves a thread", "import _thread\ndef f(): _thread.start_new_thread(api.recv, ())", "returned", ""),
]  # fmt: skip


@pytest.mark.parametrize(("source", "word", "detail"), [end[1:] for end in ENDS], ids=[end[0] for end in ENDS])
def test_a_function_that(run, source, word, detail):
    talk = run(source)
    assert talk.outcome.word == word, talk
    assert detail in talk.outcome.detail
    assert "driver" not in talk.outcome.detail


def test_a_traceback_shows_the_functions_lines_and_no_others(run):
    talk = run("def g():\n    return 1 / 0  # here\n\ndef f():\n    return g()\n")
    assert talk.outcome.detail.splitlines()[:3] == [
        "Traceback (most recent call last):",
        '  File "function.py", line 5, in f',
        "    return g()",
    ]
    assert "1 / 0  # here" in talk.outcome.detail
    assert talk.outcome.detail.count("File ") == 2


def test_a_long_traceback_is_cut_at_its_beginning(run):
    talk = run("def f(): raise ValueError('x' * 5000 + 'end')")
    assert len(talk.outcome.detail.encode()) <= frames.MAX_TRACEBACK_BYTES
    assert talk.outcome.detail.endswith("end\n")


def test_arguments_are_literals(run):
    assert run("def f(a, b=0): return [a, b]", arguments="([(1, 'x')], {'b': {2}})").messages == [b"[(1, 'x'), {2}]"]
    assert run("def f(): return api.args", arguments="([], {})").messages == [b"[]"]


@pytest.mark.parametrize(
    "arguments", ["([open('/etc/passwd')], {})", "f()", "", "([__import__('os')], {})", "[" * 5000]
)
def test_arguments_are_never_evaluated(run, arguments):
    """Fault 3 of 2021: the call was an expression."""
    assert run("def f(*a): return 'ran'", arguments=arguments).messages == []


@pytest.mark.parametrize("call", ["f()", "__import__('os').getpid", "api.send", "", "f.__class__"])
def test_a_call_is_a_name(run, call):
    talk = run("def f(): return 'ran'", call=call)
    assert (talk.outcome.word, talk.messages) == ("raised", [])


def test_print_goes_to_the_log_and_corrupts_nothing(run):
    """Fault 7 of 2021."""
    talk = run(
        "import sys\nprint('at import')\ndef f():\n"
        "  print('\u00fc'); sys.stderr.write('e\\n'); api.log('l')\n  return 1"
    )
    assert (talk.messages, talk.outcome.word) == ([b"1"], "returned")
    assert sorted(talk.log.decode().split()) == ["at", "e", "import", "l", "\u00fc"]


def test_code_of_200_kb(run):
    """Fault 9 of 2021: code of more than 96 kB hung the client."""
    source = "x = [\n" + "    'some filling',\n" * 10_000 + "]\ndef f(): return len(x)\n"
    assert len(source) > 200_000
    assert run(source).messages == [b"10000"]


def test_100_mb_of_output_arrive_whole(run):
    talk = run(
        "import hashlib\ndef f():\n    data = bytes(range(256)) * 390625\n"
        "    assert api.send(data) == 100_000_000\n    return hashlib.sha256(data).hexdigest()",
        limits=Limits(memory_bytes=256 * MIB),
    )
    data, digest = talk.messages
    assert len(data) == 100_000_000
    assert hashlib.sha256(data).hexdigest().encode() == digest


def test_lengths_are_bytes(run):
    """Fault 14 of 2021: lengths were counted in characters."""
    talk = run("def f():\n  text = '\u4f60\u597d' * 50_000\n  return api.send(text)")
    assert talk.messages == ["\u4f60\u597d".encode() * 50_000, b"300000"]


def test_input_comes_in_messages_and_ends(run):
    source = """
def f():
    while not api.poll(): pass
    api.send(api.recv()); api.send(api.recv())
    try: api.recv()
    except EOFError: return [api.poll()]
"""
    then = frames.encode_input(b"a", end=False) + frames.encode_input(b"b", end=True)
    then += frames.encode_input(b"", end=True) + frames.encode_input(b"", end=False, eof=True)
    assert run(source, then=then).messages == [b"ab", b"", b"[True]"]


def test_host_facts_come_past_waiting_input(run):
    source = "def f():\n  facts = api.host()\n  return [facts, api.recv()]"
    reply = frames.encode_input(b"in", end=True) + frames.encode_host_reply({"name": "\u00fc", "n": 1})
    assert run(source, host=lambda: reply).messages == ["[{'name': '\u00fc', 'n': 1}, b'in']".encode()]
    talk = run(source, host=lambda: frames.encode_host_refusal("this box does not tell"))
    assert "PermissionError: this box does not tell" in talk.outcome.detail


def test_padding_is_asked_for_by_length(run):
    assert run("def f(): api.pad(0); api.pad(70_000)").padding == 70_000


def test_threads_do_not_mix_their_messages(run):
    source = """
import threading
def f():
    send = lambda letter: [api.send(letter * 200_000) for _ in range(20)]
    threads = [threading.Thread(target=send, args=(letter,)) for letter in 'abc']
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
"""
    talk = run(source)
    assert talk.outcome.word == "returned", talk.outcome
    assert len(talk.messages) == 60
    assert all(len(set(message)) == 1 and len(message) == 200_000 for message in talk.messages)


def test_the_images_packages_can_be_imported(run):
    source = "import requests, socks, psutil, ssl, sqlite3, zoneinfo\n"
    source += "from cryptography.hazmat.primitives import hpke\ndef f():\n"
    source += "  zoneinfo.ZoneInfo('Europe/Berlin')\n  ssl.create_default_context()\n  return requests.__version__"
    talk = run(source)
    assert talk.messages == [b"2.34.2"], talk


def test_written_as_in_2021(run):
    """A global api, text or bytes, poll, and a return value of any kind."""
    source = """
def chat(name):
    api.send("hello " + name)
    api.send(b"hello again")
    while not api.poll():
        pass
    return {"got": api.recv()}
"""
    talk = run(source, call="chat", arguments="(['you'], {})", then=frames.encode_input(b"x", end=True))
    assert talk.messages == [b"hello you", b"hello again", b"{'got': b'x'}"]
