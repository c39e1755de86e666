"""Which system calls a function may make: a default-deny filter, compiled by libseccomp to what the kernel takes.

Compiled once per jail; the driver loads the bytes before it reads any code. What is not listed fails with EPERM; a
call of another architecture (`int 0x80`, x32) ends the process. Knows the profiles, loads nothing.

The lists follow what CPython's standard library, requests and psutil call on Linux (tests/sandbox). Each line under
_RULES names the attack that the unfiltered call would allow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from bento_tor.errors import SandboxError

PROFILES = ("python", "browser")

_FILES = """
read write readv writev pread64 pwrite64 preadv pwritev lseek open openat creat close close_range dup dup2 dup3
pipe pipe2 stat lstat fstat newfstatat access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir getdents
getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat chmod fchmod
fchmodat chown fchown lchown fchownat truncate ftruncate fallocate fsync fdatasync fadvise64 utime utimes utimensat
futimesat umask sendfile copy_file_range getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
"""
_MEMORY = "mmap munmap mprotect mremap madvise brk msync"
_PROCESSES = """
fork vfork exit exit_group wait4 waitid kill tkill tgkill futex set_robust_list rseq set_tid_address gettid getpid
getppid getpgrp getpgid setpgid getsid setsid getuid geteuid getgid getegid getresuid getresgid getgroups getrusage
getrlimit setrlimit sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
sched_get_priority_min getpriority rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait
rt_sigsuspend sigaltstack restart_syscall uname getrandom
"""
_TIME = """
pause alarm setitimer getitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time
timerfd_create timerfd_settime timerfd_gettime
"""
_EVENTS = """
select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd eventfd2 signalfd
signalfd4
"""
_SOCKETS = "bind listen accept accept4 connect getsockname getpeername getsockopt recvfrom recvmsg recvmmsg shutdown"

# Of a process of ours that has all it needs open already, and parses what a stranger sends: no file, no program, no
# other process, no socket that it was not handed.
_PARSER = """
read write readv writev sendto recvfrom recvmsg sendmsg shutdown close getsockname getsockopt setsockopt fstat lseek
select pselect6 poll ppoll futex set_robust_list rseq gettid getpid sched_yield rt_sigaction rt_sigprocmask rt_sigreturn
sigaltstack restart_syscall getrandom nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time exit
exit_group mmap munmap mprotect mremap madvise brk
"""

_LOW_32 = 0xFFFF_FFFF
# SOCK_CLOEXEC and SOCK_NONBLOCK, which may come with any type of socket.
_SOCKET_TYPE = _LOW_32 & ~0x80800
# AF_UNIX, AF_INET, AF_INET6; SOCK_STREAM, SOCK_DGRAM; TCP, UDP or whatever is the default. No netlink, packet, vsock,
# alg: kernel code that no function needs. MPTCP is a protocol number of its own (262).
_DOMAINS, _TYPES, _PROTOCOLS = (1, 2, 10), (1, 2), (0, 6, 17)
# Every CLONE_NEW*: a namespace of its own would give it mounts, netfilter and a capability for each.
_NAMESPACE_FLAGS = 0x7E02_0080
_THREAD_FLAG = 0x0001_0000
# TCGETS FIONBIO FIONCLEX FIOCLEX FIONREAD. Not TIOCSTI, which types into the operator's terminal.
_FIONBIO = 0x5421
_IOCTLS = (0x5401, _FIONBIO, 0x5450, 0x5451, 0x541B)
# DUPFD GETFD SETFD GETFL SETFL DUPFD_CLOEXEC GETPIPE_SZ. Not SETLEASE and NOTIFY, which watch files that are shared.
_FCNTLS = (0, 1, 2, 3, 4, 1030, 1032)
# GETLK SETLK SETLKW and the same for open file descriptions.
_LOCKS = (5, 6, 7, 36, 37, 38)
# By level: SOL_SOCKET, TCP, IPv6. Not SO_ATTACH_FILTER, which compiles a program in the kernel.
_OPTIONS = {1: (2, 6, 7, 8, 9, 13, 15, 20, 21), 6: (1, 4, 5, 6, 12, 18), 41: (26,)}
# Data in a SYN: a connect that a filter on connect() does not see.
_MSG_FASTOPEN = 0x2000_0000
_ARCH_SET_FS = 0x1002
_UNKNOWN = -1
_BINARY_TREE = 2


def compile_profile(name: str, *, locks: bool) -> bytes:
    """The filter `name` (one of PROFILES) as an array of `struct sock_filter`.

    `locks`: whether files may be locked. Only where no file is shared with another session: who holds a lock on a
    file of the image can signal by it. Raises SandboxError where libseccomp is missing."""
    if name not in PROFILES:
        raise SandboxError(f"there is no seccomp profile {name!r}", hint=f"known profiles: {', '.join(PROFILES)}")

    def fill(rules: _Rules) -> None:
        rules.add_all(locks=locks)
        if name == "browser":
            rules.add_browser()

    return _compile(fill)


def compile_parser() -> bytes:
    """The filter of a process of ours that parses what a stranger sends. Raises SandboxError."""
    return _compile(_Rules.add_parser)


def _compile(fill: Callable[[_Rules], None]) -> bytes:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as why:
        raise SandboxError(f"libseccomp cannot be used: {why}", hint="install the package libseccomp2") from why
    try:
        rules = _Rules(pyseccomp)
        fill(rules)
        return rules.export()
    except (OSError, ValueError) as why:
        raise SandboxError(f"libseccomp cannot compile the filter: {why}", hint="update libseccomp2") from why


class _Rules:
    """One filter in the making. `library` is pyseccomp, which is imported only where a filter is made."""

    def __init__(self, library: Any) -> None:
        self._lib = lib = library
        self._filter = lib.SyscallFilter(lib.ERRNO(1))
        self._filter.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)
        # Searched, not walked: the calls at the end of the list would cost hundreds of comparisons each.
        self._filter.set_attr(lib.Attr.CTL_OPTIMIZE, _BINARY_TREE)

    def add_all(self, *, locks: bool) -> None:
        for name in " ".join((_FILES, _MEMORY, _PROCESSES, _TIME, _EVENTS, _SOCKETS)).split():
            self._allow(name)
        self._add_filtered(locks=locks)
        self._add_sockets()

    def add_browser(self) -> None:
        """What Chromium needs besides, each found by trying without. All else that it asks for it can do without:
        memfd_create, shared memory, priorities, statfs, netlink, inotify, landlock, prctl."""
        # To start it, and for it to start its own processes. What a function wrote it cannot start (noexec), and the
        # filter stays over whatever it starts.
        self._allow("execve")
        # ARCH_SET_FS: a program's loader says where its thread-local memory is.
        self._allow("arch_prctl", (0, _LOW_32, _ARCH_SET_FS))
        # How much memory there is: it ends if it cannot ask. This tells the machine's load and free memory, too.
        self._allow("sysinfo")

    def add_parser(self) -> None:
        for name in _PARSER.split():
            self._allow(name)
        # Threads, and no processes.
        self._allow("clone", (0, _NAMESPACE_FLAGS | _THREAD_FLAG, _THREAD_FLAG))
        self._add(self._lib.ERRNO(38), "clone3")
        for command in (1, 2, 3, 4):
            self._allow("fcntl", (1, _LOW_32, command))
        self._allow("ioctl", (1, _LOW_32, _FIONBIO))

    def export(self) -> bytes:
        fd = os.memfd_create("seccomp")
        with os.fdopen(fd, "r+b") as file:
            self._filter.export_bpf(file)
            file.seek(0)
            return file.read()

    def _add_filtered(self, *, locks: bool) -> None:
        self._allow("clone", (0, _NAMESPACE_FLAGS, 0))
        # glibc falls back to clone, whose flags a filter can read; EPERM would leave it without threads.
        self._add(self._lib.ERRNO(38), "clone3")
        for command in (*_FCNTLS, *(_LOCKS if locks else ())):
            self._allow("fcntl", (1, _LOW_32, command))
        if locks:
            self._allow("flock")
        for request in _IOCTLS:
            # The kernel looks at 32 bits only: with high bits set, TIOCSTI would pass a comparison of all 64.
            self._allow("ioctl", (1, _LOW_32, request))
        # Its own limits, not those of another process.
        self._allow("prlimit64", (0, _LOW_32, 0))

    def _add_sockets(self) -> None:
        for domain in _DOMAINS:
            for type_ in _TYPES:
                for protocol in _PROTOCOLS:
                    arguments = (0, _LOW_32, domain), (1, _SOCKET_TYPE, type_), (2, _LOW_32, protocol)
                    self._allow("socket", *arguments)
        self._allow("socketpair", (0, _LOW_32, 1))
        for level, options in _OPTIONS.items():
            for option in options:
                self._allow("setsockopt", (1, _LOW_32, level), (2, _LOW_32, option))
        for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            self._allow(name, (flags, _MSG_FASTOPEN, 0))

    def _allow(self, name: str, *masked: tuple[int, int, int]) -> None:
        """Allow a call where each (argument, mask, value) fits."""
        self._add(self._lib.ALLOW, name, *masked)

    def _add(self, action: int, name: str, *masked: tuple[int, int, int]) -> None:
        lib = self._lib
        arguments = [lib.Arg(which, lib.MASKED_EQ, mask, value) for which, mask, value in masked]
        if lib.resolve_syscall(lib.system_arch(), name) == _UNKNOWN:
            return  # to this libseccomp: it stays denied
        self._filter.add_rule(action, name, *arguments)
