"""What a function may try, and what must come of it. Real code in the real jail; a line for each attack."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import psutil
import pytest

from bento_tor.policy.limits import MIB, Limits

pytestmark = pytest.mark.sandbox

# `attempt` tells the error's name, or what came of it.
PRELUDE = """
import ctypes, errno, os, socket, subprocess, threading, time

libc = ctypes.CDLL(None, use_errno=True)

def attempt(action):
    try:
        return f"worked: {action()!r}"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def call(name, *args):
    if libc[name](*args) == -1:
        raise OSError(ctypes.get_errno(), name)

def write_all(count, size):
    for i in range(count):
        with open(f"/data/{i}", "wb") as file:
            file.write(bytes(size))
"""

ATTEMPTS = [
    # files
    ("read the host's users", "open('/etc/passwd').read()", "ENOENT"),
    ("read the host's secrets", "open('/etc/shadow').read()", "ENOENT"),
    ("read root's home", "os.listdir('/root')", "ENOENT"),
    ("read other homes", "os.listdir('/home')", "ENOENT"),
    ("read the box's state", "os.listdir('/var/lib')", "ENOENT"),
    ("read tor's sockets", "os.listdir('/run')", "ENOENT"),
    ("read temporary files", "os.listdir('/tmp')", "ENOENT"),
    ("read /proc", "os.listdir('/proc')", "ENOENT"),
    ("read /sys", "os.listdir('/sys')", "ENOENT"),
    ("use shared memory", "os.listdir('/dev/shm')", "ENOENT"),
    ("climb out", "sorted(os.listdir('/data/../../..'))[:2]", "worked: ['data', 'dev']"),
    ("write to the root", "open('/x', 'w')", "EROFS"),
    ("write to the library", "open('/usr/lib/x', 'w')", "EROFS"),
    ("write to the packages", "open('/packages/x', 'w')", "EROFS"),
    ("rewrite a package", "open('/packages/socks.py', 'a')", "EACCES|EROFS"),
    ("rewrite the interpreter", "open('/usr/bin/python3.11', 'a')", "EACCES|EROFS"),
    ("rewrite the driver", "open('/driver.py', 'a')", "EROFS"),
    ("remove the driver", "os.unlink('/driver.py')", "EROFS"),
    ("write to /dev", "open('/dev/x', 'w')", "EROFS"),
    ("rename the root", "os.rename('/data', '/x')", "EROFS"),
    ("write to /data", "open('/data/x', 'w').write('abc')", "worked: 3"),
    ("fill /data", "write_all(40, 1 << 19)", "ENOSPC"),
    ("write one huge file", "os.truncate(os.open('/data/x', os.O_CREAT | os.O_RDWR), 1 << 40)", "EFBIG"),
    ("make a device", "os.mknod('/data/null', 0o20666, os.makedev(1, 3))", "EPERM"),
    ("make a setuid file", "os.chown('/data', 0, 0)", "EINVAL"),
    # the network
    ("reach the internet", "socket.create_connection(('192.0.2.1', 80), 5)", "ENETUNREACH"),
    ("reach it by IPv6", "socket.create_connection(('2001:db8::1', 80), 5)", "ENETUNREACH"),
    ("send a datagram", "socket.socket(2, 2).sendto(b'', ('192.0.2.1', 53))", "ENETUNREACH"),
    ("reach the host's loopback", "socket.create_connection(('127.0.0.1', PORT), 5)", "ECONNREFUSED"),
    ("reach the host's abstract sockets", "socket.socket(1).connect('\\0bento-test-PORT')", "ECONNREFUSED"),
    ("sniff", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
    ("ping", "socket.socket(2, 3, 1)", "EPERM"),
    # rights
    ("become root", "os.setuid(0)", "EPERM"),
    ("make a user namespace", "call('unshare', 0x10000000)", "EPERM"),
    ("make a network namespace", "call('unshare', 0x40000000)", "EPERM"),
    ("mount", "call('mount', b'none', b'/data', b'tmpfs', 0, None)", "EPERM"),
    ("undo a read-only mount", "call('mount', None, b'/', None, 32 | 4096, None)", "EPERM"),
    ("unmount", "call('umount2', b'/data', 2)", "EPERM"),
    ("chroot", "os.chroot('/data')", "EPERM"),
    ("rename the host", "socket.sethostname('x')", "EPERM"),
    ("set the clock", "time.clock_settime(time.CLOCK_REALTIME, 0)", "EPERM"),
    ("raise its limits", "__import__('resource').setrlimit(7, (9999, 9999))", "not allowed to raise maximum limit"),
    ("run faster than others", "os.nice(-5)", "EPERM"),
    ("kill the first process", "[os.kill(1, 9), time.sleep(0.1)] and 'alive'", "worked: 'alive'"),
    ("run a shell", "subprocess.run(['/bin/sh'])", "EPERM"),
    # what it could learn
    ("see its user", "[os.getuid(), os.getgid()]", "worked: [1000, 1000]"),
    ("see the environment", "dict(os.environ)", "worked: {}"),
    ("see the host's name", "socket.gethostname()", "worked: 'box'"),
    ("see the arguments", "__import__('sys').argv", "worked: ['function.py']"),
    ("see the devices", "sorted(os.listdir('/dev'))", "worked: ['null', 'random', 'urandom', 'zero']"),
    ("see the configuration", "sorted(os.listdir('/etc'))", "worked: ['ssl']"),
    ("see the programs", "os.listdir('/usr/bin')", "worked: ['python3.11']"),
    ("read its input", "os.read(0, 1)", "worked: b''"),
    ("dump core", "__import__('resource').getrlimit(4)", "worked: (0, 0)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def listening():
    """Something of the host's to reach."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        port = tcp.getsockname()[1]
        abstract.bind(f"\0bento-test-{port}")
        abstract.listen()
        yield str(port)


@pytest.mark.parametrize(("action", "result"), [a[1:] for a in ATTEMPTS], ids=[a[0] for a in ATTEMPTS])
def test_an_attempt_to(run, listening, jail, action, result):
    python = Path(jail.images[0].python).name
    action, result = (
        action.replace("PORT", listening).replace("python3.11", python),
        result.replace("python3.11", python),
    )
    talk = run(
        f"{PRELUDE}\ndef f():\n    try:\n        return attempt(lambda: {action})\n"
        "    except ValueError as error:\n        return str(error)\n"
    )
    assert len(talk.messages) == 1, talk
    assert talk.messages[0].decode() in result.split("|"), talk


def test_only_the_agreed_descriptors_are_open(run):
    source = """
import os, stat
def f():
    kinds = []
    for fd in range(1024):
        try: kinds.append(stat.filemode(os.fstat(fd).st_mode)[0])
        except OSError: pass
    return ''.join(kinds)
"""
    # nothing to read, two pipes to the log, and the control socket
    assert run(source).messages == [b"cpps"]


def test_the_host_sees_no_root_and_no_other_functions_user(run, runner, jail):
    uids = []

    def look(cell):
        uids.append(psutil.Process(cell.pid).uids())
        uids.append(psutil.Process(cell.pid).parent().uids())

    run("def f(): pass", during=look)
    run("def f(): pass", during=look)
    own = {uid for process in uids for uid in process}
    if os.geteuid() == 0:
        assert len(own) == 2, "each session has a user id of its own, bubblewrap included"
        assert min(own) > 1_880_000_000
    else:
        assert own == {os.geteuid()}


FORK = "if os.fork() == 0:\n      os.setsid()\n      time.sleep(60)"
DEAF = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]"
THREADS = "while True: threading.Thread(target=time.sleep, args=(60,)).start()"
BOMBS = [
    ("forks", f"def f():\n  while True:\n    {FORK}", "raised", "BlockingIOError"),
    ("starts threads", f"def f():\n  {THREADS}", "raised", "can't start new thread"),
    ("opens files", "def f():\n  kept = []\n  while True: kept.append(open('/dev/null'))", "raised", "Too many open"),
    ("leaves orphans", f"def f():\n  for _ in range(3):\n    {FORK}\n  os._exit(0)", "exited:0", ""),
    ("leaves deaf orphans", f"def f():\n  {DEAF}\n  for _ in '12':\n    {FORK}\n  return 1", "returned", ""),
]  # fmt: skip


@pytest.mark.parametrize(("source", "word", "detail"), [b[1:] for b in BOMBS], ids=[b[0] for b in BOMBS])
def test_a_function_that(run, source, word, detail):
    began = time.monotonic()
    talk = run(PRELUDE + source, limits=Limits(pids=16))
    assert talk.outcome.word == word, talk
    assert detail in talk.outcome.detail
    assert time.monotonic() - began < 15


def memory_word(jail):
    """What ends a function that takes too much: the kernel where it can, else the function's own MemoryError."""
    return "killed:memory" if "memory" in jail.effective else "raised"


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n  kept = []\n  while True: kept.append(bytearray(1 << 20))",
        "def f():\n  for i in range(1000):\n    open(f'/data/{i}', 'wb').write(bytes(1 << 20))",
        "def f():\n  kept = [bytearray(30 << 20)]\n  os.fork(); kept.append(bytearray(50 << 20)); time.sleep(60)",
    ],
    ids=["one process", "/data", "two processes"],
)
def test_a_memory_bomb(run, jail, source):
    assert "memory" in jail.effective or os.geteuid() != 0, "this machine has no memory cgroup: say so in the docs"
    if "memory" not in jail.effective and "fork" in source:
        return  # without a cgroup each process has its own limit: together they may take more
    limits = Limits(memory_bytes=64 * MIB, data_bytes=256 * MIB)
    assert run(PRELUDE + source, limits=limits).outcome.word == memory_word(jail)


FORGERIES = [
    ("returned, then raises", r"b'\x85\0\0\0\0'", "raise ValueError", "exited:1"),
    ("returned, then crashes", r"b'\x85\0\0\0\0'", "os.abort()", "crashed:SIGABRT"),
    ("raised, then returns", r"b'\x86\0\0\0\x02hi'", "return", "exited:0"),
    ("an unknown type", r"b'\x99\0\0\0\0'", "return", "exited:0"),
    ("4 GiB", r"b'\x82\xff\xff\xff\xff'", "return", "exited:0"),
    ("half a frame", r"b'\x82\0\0'", "return", "exited:0"),
    ("an empty message frame", r"b'\x82\0\0\0\0'", "return", "exited:0"),
    ("unknown flags", r"b'\x82\0\0\0\x01\xff'", "return", "exited:0"),
    ("huge padding", r"b'\x83\0\0\0\x08' + b'\xff' * 8", "return", "exited:0"),
    ("noise", r"os.urandom(1 << 20)", "return", "exited:0"),
]  # fmt: skip


@pytest.mark.parametrize(("forged", "then", "word"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
def test_a_forged_frame_changes_nothing_that_is_seen_from_outside(run, forged, then, word):
    source = f"{PRELUDE}\ndef f():\n    fd = [n for n in range(3, 64) if attempt(lambda: os.fstat(n)) != 'EBADF'][0]\n"
    talk = run(f"{source}    os.write(fd, {forged})\n    {then}\n")
    assert talk.outcome.word == word, talk
    assert talk.messages == []


@pytest.mark.parametrize(
    ("then", "word"), [("return 1", "exited:1"), ("api.send(b'x')", "exited:1"), ("os._exit(0)", "exited:0")]
)
def test_a_closed_control_socket_is_an_end(run, then, word):
    talk = run(f"{PRELUDE}\ndef f():\n    os.closerange(3, 64)\n    {then}\n")
    assert (talk.outcome.word, talk.messages) == (word, [])


def test_the_box_closing_the_session_ends_a_function_that_waits(jail, nothing_left):
    cell = jail.start(Limits())
    cell.control.close()
    assert cell.wait(10).status == 1


def test_cpu_is_shared_by_quota(run, jail):
    if "cpu" not in jail.effective:
        assert os.geteuid() != 0, "this machine has no cpu cgroup: say so in the docs"
        return
    source = "import time\ndef f():\n  end = time.monotonic() + 1.5\n"
    source += "  while time.monotonic() < end: pass\n  return time.process_time()"
    talk = run(source, limits=Limits(cpu_percent=20))
    assert float(talk.messages[0]) < 0.7
