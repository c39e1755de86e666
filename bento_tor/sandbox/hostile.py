"""The hostile table, cases 1 to 42 and 59: what a function may try with the machine that it runs on. A row each.

Data, and what a row expects; who plays it is bento_tor/server/rehearsal.py, for the tests and for `doctor --hostile`.
Numbers are those of docs/threat-model.md's table of cases. Every attempt is harmless where it succeeds.
"""

# A row is a line or two, however long.
# ruff: noqa: E501

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bento_tor.policy.limits import MIB, Limits

# What a row runs under where it does not say otherwise: small, so that every limit is soon met.
CEILING = Limits(memory_bytes=96 * MIB, pids=16, cpu_s=20, wall_s=20, data_bytes=8 * MIB, data_inodes=1024)
# The most that a row may ask for instead: enough for Chromium.
MOST = msgspec.structs.replace(
    CEILING, wall_s=60, memory_bytes=256 * MIB, pids=128, data_bytes=64 * MIB, open_files=256
)

# `attempt` tells an error's name, or what came of it; `system` makes a bare system call (x86-64 numbers).
PRELUDE = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "worked"

def system(number, *args):
    result = libc.syscall(*[ctypes.c_long(value) for value in (number, *args)])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "worked"

def call(name, *args):
    return errno.errorcode[ctypes.get_errno()] if libc[name](*args) == -1 else "worked"

def each(*results):
    return ' '.join(sorted(set(results)))

def native(code):
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()

def control():
    return [fd for fd in range(3, 64) if attempt(lambda: os.fstat(fd)) == 'worked'][0]

def bomb():
    kept = []
    while True: kept.append(bytearray(1 << 20))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """`code`: the body of the function. `word`, `said`: outcome and only message; alternatives by `|`.

    `weak`: the outcome where there are no cgroups, if another. `limits`: what is not as in CEILING. `bystander`: what
    the other session does meanwhile, and is expected to say (`answer`). `locks_denied`: what both say where files are
    shared, so that locks are denied (without root). `browser`: what is said in the image of that name, if something
    else, and `not_browser`: it is not played there (hostile_browser.py has others instead)."""

    number: int
    name: str
    code: str
    said: str = ""
    word: str = "returned"
    weak: str = ""
    limits: tuple[tuple[str, int], ...] = ()
    bystander: str = "return 'here'"
    answer: str = "here"
    locks_denied: str = ""
    browser: str = ""
    not_browser: bool = False

    @property
    def id(self) -> str:
        """How it is called in a list."""
        return f"{self.number:02} {self.name}"

    @property
    def quick(self) -> bool:
        """Whether it ends at once, and not when its time is up."""
        return not any(slow in self.word + self.weak for slow in ("killed:time", "killed:cpu"))

    @property
    def native(self) -> bool:
        """Whether it only makes sense on x86-64: system call numbers, machine code."""
        return "system(" in self.code or "native(" in self.code

    def source(self) -> str:
        """The function."""
        return _function(self.code)

    def bystanders_source(self) -> str:
        """The function that runs beside it."""
        return _function(self.bystander)

    def bounds(self) -> Limits:
        """The limits it runs under."""
        return msgspec.structs.replace(CEILING, **dict(self.limits))

    def problems(
        self,
        word: str,
        said: Sequence[str],
        answer: Sequence[str],
        *,
        root: bool,
        cgroups: bool,
        browser: bool = False,
    ) -> list[str]:
        """How what came of it differs from what is expected on a host like that; empty: it does not."""
        locked = "" if root else self.locks_denied
        wanted = (self.word if cgroups else self.weak) or self.word
        found = [] if word in wanted.split("|") else [f"ended as {word}, not {wanted}"]
        expected = locked or (self.browser if browser else "") or self.said
        if expected and (len(said) != 1 or said[0] not in expected.split("|")):
            found.append(f"said {list(said)!r:.200}, not {expected}")
        if list(answer) != [locked or self.answer]:
            found.append(f"a session beside it said {list(answer)!r:.200}, not {locked or self.answer}")
        return found


def _function(body: str) -> str:
    indented = textwrap.indent(body.strip("\n"), "    ")
    return f"{PRELUDE}\ndef f():\n{indented}\n"


DENIED = "EPERM"
FORK = "if os.fork() == 0: time.sleep(60)"
READ = """
for path in PATHS:
    result = attempt(lambda: os.listdir(path) if attempt(lambda: open(path)) == 'EISDIR' else open(path).read())
    if result != 'ENOENT': return path + ' ' + result
return 'ENOENT'"""
LOCK = """
fds = [os.open(path, os.O_RDONLY) for path in (os.__file__, '/dev/null', '/packages/socks.py', sys.executable)]
result = each(*[attempt(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)) for fd in fds])
"""

ROWS = (
    # Processes and memory
    Row(1, "fork bomb", f"try:\n  while True:\n    {FORK}\nexcept OSError as e: return errno.errorcode[e.errno]", "EAGAIN"),
    Row(2, "thread bomb", "try:\n  while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "except RuntimeError as e: return str(e)", "can't start new thread"),
    Row(3, "memory bomb", "bomb()", word="killed:memory", weak="raised"),
    Row(4, "mmap of 1 TiB", "return attempt(lambda: mmap.mmap(-1, 1 << 40))", "ENOMEM"),
    Row(5, "memory bomb in a grandchild", "if os.fork() == 0: bomb()\ntime.sleep(60)", word="killed:memory",
        weak="killed:time", limits=(("wall_s", 4),)),
    Row(6, "CPU spin", "while True: pass", word="killed:cpu", limits=(("cpu_s", 1),)),
    Row(6, "CPU spin in four processes", "os.fork(); os.fork()\nwhile True: pass", word="killed:cpu",
        weak="killed:time", limits=(("cpu_s", 1), ("wall_s", 5))),
    Row(6, "CPU spin under a quota", "while True: pass", word="killed:time",
        limits=(("cpu_percent", 20), ("wall_s", 1))),
    Row(7, "sleep forever, deaf to signals", "for s in (1, 2, 3, 14, 15): signal.signal(s, signal.SIG_IGN)\n"
        "while True: time.sleep(60)", word="killed:time", limits=(("wall_s", 1),)),
    Row(8, "descriptor bomb", "kept = []\nreturn attempt(lambda: [kept.append(open('/dev/null')) for _ in range(999)])",
        "EMFILE"),
    Row(8, "descriptors parked in sockets", "pairs = [socket.socketpair() for _ in range(5)]\ndef park():\n"
        "  for _ in range(99):\n    for a, _b in pairs: socket.send_fds(a, [b'x'], [0] * 10, socket.MSG_DONTWAIT)\n"
        "return attempt(park)", "ETOOMANYREFS"),
    Row(9, "endless recursion", "sys.setrecursionlimit(1 << 30)\ndef g(): g()\ng()",
        word="killed:memory|crashed:SIGSEGV", weak="raised|crashed:SIGSEGV", limits=(("wall_s", 60),)),
    Row(10, "null read", "ctypes.string_at(0)", word="crashed:SIGSEGV"),
    Row(10, "abort", "os.abort()", word="crashed:SIGABRT"),
    Row(10, "a handler of SIGSEGV that returns", "signal.signal(signal.SIGSEGV, print)\nctypes.string_at(0)",
        word="killed:time", limits=(("wall_s", 1),)),
    Row(11, "orphans", "for _ in range(3):\n  if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        "    os.closerange(0, 64); time.sleep(60)\nreturn 'left'", "left"),
    Row(12, "zombie farm", "try:\n  while True:\n    if os.fork() == 0: os._exit(0)\n"
        "except OSError as e: return errno.errorcode[e.errno]", "EAGAIN"),
    Row(13, "kill everybody", "attempt(lambda: os.kill(1, 9)); attempt(lambda: os.kill(os.getppid(), 9))\n"
        "attempt(lambda: os.kill(-1, 9)); time.sleep(0.2)\nreturn 'alive'", "alive"),
    Row(14, "priorities", "return each(attempt(lambda: os.nice(-5)), attempt(lambda: os.sched_setaffinity(0, {0})),\n"
        "  attempt(lambda: os.sched_setscheduler(0, 1, os.sched_param(1))), system(251, 1, 0, 0), system(144, 0, 0, 0))",
        DENIED),
    Row(14, "oom_score_adj", "return attempt(lambda: os.write(os.open('/proc/self/oom_score_adj', 1), b'-900'))", "ENOENT",
        browser="EACCES"),
    # Files
    Row(15, "fill /data", "fd = os.open('/data/x', 65)\nreturn attempt(lambda: [os.write(fd, bytes(1 << 20)) for _ in range(99)])",
        "ENOSPC|EFBIG"),
    Row(15, "fill /data with files", "def fill():\n  for n in range(99): open(f'/data/{n}', 'wb').write(bytes(1 << 19))\n"
        "return attempt(fill)", "ENOSPC"),
    Row(16, "inode fill", "n = 0\ntry:\n  while True: os.close(os.open(f'/data/{n}', 65)); n += 1\n"
        "except OSError as e: return f'{errno.errorcode[e.errno]} {n}'", "ENOSPC 200", limits=(("data_inodes", 200),)),
    Row(17, "sparse file of 1 TiB", "fd = os.open('/data/x', 66)\nreturn each(attempt(lambda: os.truncate(fd, 1 << 40)),\n"
        "  attempt(lambda: os.posix_fallocate(fd, 0, 1 << 40)))", "EFBIG"),
    Row(18, "deep directories, odd names", "for n in (b'\\xff\\xfe', b'a\\nb', b'x' * 255): os.mkdir(b'/data/' + n)\n"
        "for _ in range(900): os.mkdir('d' * 200); os.chdir('d' * 200)\nreturn 'deep'", "deep"),
    Row(19, "symlink to a secret", "os.symlink('/etc/shadow', '/data/l')\nreturn attempt(lambda: open('/data/l'))", "ENOENT"),
    Row(20, "hard link, devices, xattr", "open('/data/x', 'w')\nreturn ' '.join([\n"
        "  attempt(lambda: os.link(os.__file__, '/data/y')), attempt(lambda: os.mknod('/data/z', 0o20666, 0x103)),\n"
        "  attempt(lambda: os.mkfifo('/data/f')), attempt(lambda: os.setxattr('/data/x', 'security.capability', b''))])",
        "EXDEV EPERM EPERM EPERM"),
    Row(20, "setuid bit", "open('/data/x', 'w'); os.chmod('/data/x', 0o4755)\nreturn attempt(lambda: os.execv('/data/x', ['x']))",
        DENIED, browser="EACCES"),
    Row(20, "code in a file of its own", "f = open('/data/x', 'wb+'); f.write(bytes(4096)); f.flush()\n"
        "return attempt(lambda: mmap.mmap(f.fileno(), 4096, prot=5))", DENIED),
    Row(21, "the host's secrets", READ.replace("PATHS", "('/etc/shadow', '/etc/passwd', '/root', '/home', '/var/lib/tor',\n"
        "  '/run/tor', '/var/lib/bento-tor', '/etc/tor', '/etc/hostname', '/etc/resolv.conf', '/tmp', '/srv', '/mnt')"), "ENOENT"),
    Row(22, "write outside /data", "return each(*[attempt(lambda: os.close(os.open(path, 66))) for path in\n"
        "  ('/x', '/usr/x', '/usr/lib/x', '/packages/x', '/etc/x', '/dev/x', '/run/x', '/driver.py')])", "EROFS|ENOENT EROFS"),
    Row(23, "/proc", READ.replace("PATHS", "('/proc', '/proc/1/environ', '/proc/self/mem', '/proc/self/exe', '/proc/kcore',\n"
        "  '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/net/tcp', '/proc/self/mountinfo', '/sys')"), "ENOENT", not_browser=True),
    Row(23, "the host's load, disk and uptime", "young = time.clock_gettime(time.CLOCK_BOOTTIME) < 60\n"
        "young = young and time.monotonic() < 60\n"
        "return each(attempt(lambda: os.statvfs('/data')), attempt(lambda: os.statvfs('/')), attempt(lambda: os.fstatvfs(0)),\n"
        "  system(99, 0), system(100, 0)) + f' {young}'", "EPERM True", browser="EFAULT EPERM True"),
    Row(24, "inherited descriptors", "import stat\nkinds = ''\nfor fd in range(1024):\n"
        "  try: kinds += stat.filemode(os.fstat(fd).st_mode)[0]\n  except OSError: pass\nreturn kinds", "cpps"),
    Row(25, "climb out", "return each(attempt(lambda: os.chroot('/data')), call('pivot_root', b'/', b'/data'),\n"
        "  system(304, 0, 0, 0), system(303, 0, 0, 0, 0, 0)) + f\" {sorted(os.listdir('/data/../../..'))[0]}\"", "EPERM data"),
    Row(26, "devices", "return ' '.join(sorted(os.listdir('/dev'))) + ' ' + call('shm_open', b'/x', 66, 0o600)",
        "null random urandom zero ENOENT"),
    Row(27, "lock war", f"{LOCK}\nif result == 'worked': time.sleep(1)\nreturn result", "worked", bystander=f"{LOCK}\nreturn result", answer="worked",
        locks_denied=DENIED),
    # System calls
    Row(28, "other processes' memory", "return each(*[system(n, 1, 1, 0, 0, 0, 0) for n in (101, 310, 311, 438, 312, 434, 440)])",
        DENIED),
    Row(29, "namespaces", "flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80]\n"
        "return each(*[system(272, f) for f in flags], *[system(56, f | 17, 0, 0, 0, 0) for f in flags[:-1]], system(308, 0, 0))",
        DENIED),
    Row(29, "clone3, and threads all the same", "t = threading.Thread(target=lambda: None); t.start(); t.join()\n"
        "return system(435, 0, 0)", "ENOSYS"),
    Row(30, "mounts", "return each(call('mount', b'none', b'/data', b'tmpfs', 0, None), call('umount2', b'/data', 2),\n"
        "  call('mount', None, b'/', None, 32 | 4096, None), *[system(n, 0, 0, 0, 0, 0) for n in (428, 429, 430, 431, 432, 442)])",
        DENIED),
    Row(31, "io_uring", "return each(*[system(n, 8, 0, 0, 0, 0, 0) for n in (425, 426, 427)])", DENIED),
    Row(32, "keyrings", "return each(*[system(n, 0, 0, 0, 0, 0) for n in (248, 249, 250)])", DENIED),
    Row(33, "bpf, perf, userfaultfd, watches", "return each(*[system(n, 0, 0, 0, 0, 0) for n in\n"
        "  (321, 298, 323, 447, 300, 301, 253, 254, 294)], attempt(lambda: fcntl.fcntl(os.open('/data', 0), 1026, 1)),\n"
        "  attempt(lambda: fcntl.fcntl(os.open(os.__file__, 0), 1024, 0)))", DENIED),
    Row(34, "modules, reboot, swap", "return each(*[system(n, 0, 0, 0, 0) for n in\n"
        "  (175, 313, 176, 246, 320, 169, 167, 168, 163, 179, 103, 443)])", DENIED),
    Row(35, "the clock and the name", "return each(*[system(n, 0, 0, 0) for n in (227, 164, 159, 305)],\n"
        "  attempt(lambda: socket.sethostname('x')), system(272, 0x80), system(171, 0, 0))", DENIED),
    Row(36, "int 0x80", "native(bytes.fromhex('b814000000cd80c3'))", word="crashed:SIGSYS"),
    Row(36, "x32", "native(bytes.fromhex('b8270000400f05c3'))", word="crashed:SIGSYS"),
    Row(37, "machine code", "return native(bytes.fromhex('b82a000000c3'))", "42"),
    Row(38, "programs", "return each(attempt(lambda: subprocess.run(['/usr/bin/python3'])), attempt(lambda: os.execv(sys.executable, ['x'])),\n"
        "  system(322, 0, 0, 0, 0, 0x1000), system(319, 0, 0)) + f' {os.system(\"true\")}'", "EPERM 32512", not_browser=True),
    Row(39, "rights", "return each(*[system(n, 0, 0, 0) for n in (105, 106, 113, 114, 116, 117, 119, 126, 135, 317, 155)],\n"
        "  *[system(157, n, 1, 0, 0, 0) for n in (4, 8, 22, 24, 28, 35, 38, 47)])", DENIED),
    Row(40, "the operator's terminal", "text = ctypes.create_string_buffer(b'x')\nhigh = 1 << 32\n"
        "return each(*[system(16, fd, n, ctypes.addressof(text)) for fd in (0, 1, 2) for n in (0x5412, 0x541C, 0x5412 | high)])",
        DENIED),
    Row(41, "System V and POSIX queues", "return each(*[system(n, 0, 4096, 0x3FF, 0) for n in (29, 64, 68, 240)])", DENIED),
    Row(42, "calls of kernels to come", "return each(*[system(n, 0, 0, 0, 0, 0, 0) for n in (*range(452, 512), 600, 1000, 1 << 20)])",
        DENIED),
    # The driver's protocol
    Row(59, "forged last word, then a crash", r"os.write(control(), b'\x85\0\0\0\0'); os.abort()", word="crashed:SIGABRT"),
    Row(59, "forged last word, then an error", r"os.write(control(), b'\x85\0\0\0\0'); raise ValueError", word="exited:1"),
    Row(59, "a frame of 4 GiB", r"os.write(control(), b'\x82\xff\xff\xff\xff'); time.sleep(60)", word="killed:policy"),
    Row(59, "half a frame, and the socket closed", r"os.write(control(), b'\x82\0\0'); os.close(control())", word="exited:1"),
    Row(59, "a second way to the socket", "os.dup2(control(), 60); os.close(control())\nos.write(60, b'x' * 9); time.sleep(60)",
        word="killed:policy"),
    Row(59, "empty frames without end", r"while True: os.write(control(), b'\x82\0\0\0\1\0' * 99)", word="killed:time|killed:cpu",
        limits=(("wall_s", 1),)),
    Row(59, "an end for storage that it has not", r"os.write(control(), b'\x88\0\0\0\x11\x05' + b'\xff' * 8 + bytes(8)); time.sleep(60)",
        word="killed:policy"),
    Row(59, "noise", "os.write(control(), b'\\0' + os.urandom(1 << 16)); time.sleep(60)", word="killed:policy"),
)  # fmt: skip
