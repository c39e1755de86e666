"""The system call filter: what it is made of, what still works under it, and that nothing runs without it."""

# A line for each, however long.
# ruff: noqa: E501

from __future__ import annotations

import struct

import pytest

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.seccomp import compile_profile

pytestmark = pytest.mark.sandbox

# Ordinary things that a function may well do.
WORKS = [
    ("threads", "t = threading.Thread(target=print); t.start(); t.join(); return 1"),
    ("processes", "pid = os.fork()\nif pid == 0: os._exit(3)\nreturn os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) - 2"),
    ("a pool of threads", "from concurrent.futures import ThreadPoolExecutor\nreturn sum(ThreadPoolExecutor(2).map(int, '1'))"),
    ("asyncio", "import asyncio\nasync def g(): await asyncio.sleep(0.01); return 1\nreturn asyncio.run(g())"),
    ("a server on loopback", "s = socket.create_server(('127.0.0.1', 0))\nc = socket.create_connection(s.getsockname())\n"
     "a, _ = s.accept(); c.sendall(b'1'); return int(a.recv(1))"),
    ("asyncio over sockets", "import asyncio\nasync def on(r, w): w.write(b'1'); w.close()\nasync def g():\n"
     "  s = await asyncio.start_server(on, '127.0.0.1', 0)\n"
     "  r, w = await asyncio.open_connection(*s.sockets[0].getsockname()); return int(await r.read())\nreturn asyncio.run(g())"),
    ("a database", "import sqlite3\nd = sqlite3.connect('/data/db' if LOCKS else ':memory:')\nd.execute('create table t(x)')\n"
     "d.execute('insert into t values (1)'); d.commit(); return d.execute('select x from t').fetchone()[0]"),
    ("temporary files", "import tempfile\nwith tempfile.NamedTemporaryFile(dir='/data') as f: return f.write(b'x')"),
    ("copies of files", "import shutil\nopen('/data/a', 'w').write('x'); shutil.copy2('/data/a', '/data/b')\n"
     "shutil.copytree('/data', '/data/c', ignore=lambda *_: ['c']); return len(open('/data/c/b').read())"),
    ("archives", "import io, zipfile\nz = zipfile.ZipFile(io.BytesIO(), 'w'); z.writestr('x', 'y'); return len(z.namelist())"),
    ("signals", "import signal\ngot = []\nsignal.signal(signal.SIGALRM, lambda *_: got.append(1))\n"
     "signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.1); return len(got)"),
    ("queues between processes", "r, w = os.pipe()\nif os.fork() == 0: os.write(w, b'1'); os._exit(0)\nreturn int(os.read(r, 1))"),
    ("randomness", "import secrets, random, uuid\nreturn len({secrets.token_hex(), str(uuid.uuid4()), random.random()}) - 2"),
    ("the packages of the image", "import requests, socks, psutil\nreturn 1"),
    ("TLS", "import ssl\nreturn min(1, len(ssl.create_default_context().get_ca_certs()))"),
    ("time zones", "import zoneinfo\nreturn 1 if zoneinfo.ZoneInfo('Europe/Berlin') else 0"),
    ("ctypes callbacks", "import ctypes\nreturn ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)()"),
    ("memory maps", "import mmap\nm = mmap.mmap(-1, 4096); m[0] = 1; return m[0]"),
    ("limits of its own", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); return 1"),
]  # fmt: skip


@pytest.mark.parametrize("body", [w[1] for w in WORKS], ids=[w[0] for w in WORKS])
def test_under_the_filter_there_work(run, jail, body):
    locks = jail._stage.devices
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    talk = run(f"import os, socket, threading, time\nLOCKS = {locks}\ndef f():\n{lines}\n")
    assert (talk.outcome.word, talk.messages) == ("returned", [b"1"]), talk


def test_the_program_ends_in_a_verdict_and_fits_the_kernel():
    program = compile_profile("python", locks=True)
    assert len(program) % 8 == 0
    assert 100 < len(program) // 8 < 4096
    instructions = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    verdicts = {value for code, _, _, value in instructions if code == 6}
    # Allow, EPERM, ENOSYS (clone3), kill the process: and no other.
    assert verdicts == {0x7FFF_0000, 0x0005_0001, 0x0005_0026, 0x8000_0000}
    assert compile_profile("python", locks=False) != program


def test_chromium_gets_a_few_calls_more_and_no_other_verdict():
    plain, more = (compile_profile(name, locks=True) for name in ("python", "browser"))
    instructions = [struct.unpack_from("=HBBI", more, at) for at in range(0, len(more), 8)]
    assert {value for code, _, _, value in instructions if code == 6} == {0x7FFF_0000, 0x50001, 0x50026, 0x8000_0000}
    # execve, sysinfo, one function of arch_prctl: a line or a few for each.
    assert 0 < (len(more) - len(plain)) // 8 < 20


def test_an_unknown_profile_is_an_error():
    with pytest.raises(SandboxError, match="no seccomp profile 'anything'"):
        compile_profile("anything", locks=True)


@pytest.mark.parametrize("broken", [b"", b"\xff" * 8, b"\x06\0\0\0\0\0\0"], ids=["nothing", "nonsense", "half"])
def test_no_code_runs_where_the_filter_cannot_be_loaded(image, runner, nothing_left, broken):
    with Jail(image) as jail:
        jail._filters = [broken]
        talk = runner.run(jail, "def f(): return 1", limits=Limits())
    assert (talk.outcome.kind, talk.messages) == (Kind.LOST, [])
    assert b"the seccomp filter cannot be loaded" in talk.log
