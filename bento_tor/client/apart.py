"""Makes a stranger's page harmless in a process of its own: decoders of hostile bytes have no business in the one that
holds the user's tokens.

That process gets the message as its standard input, a file as its standard output, limits of memory, time and size,
and, where libseccomp is there, a filter with which it can open nothing and connect nowhere. A page that is made to be
slow (HTML can take a parser quadratic time) ends there, too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress

import msgspec

from bento_tor.errors import BentoError

# What a page may unpack to, and what may come of it.
MOST_BYTES = 64 << 20
_OUTPUT_BYTES = 256 << 20
_MEMORY_BYTES = 2 << 30
_CPU_S = 30
_WALL_S = 120.0
_START = "import sys; sys.path[:] = sys.argv[1:]; from bento_tor.client.apart import work; work()"
# What an interpreter needs that has everything in memory already.
_CALLS = """
read write close fstat lseek mmap munmap mremap mprotect madvise brk futex exit exit_group rt_sigaction rt_sigprocmask
rt_sigreturn sigaltstack getrandom clock_gettime gettid getpid tgkill sched_yield sched_getaffinity restart_syscall
"""
_TOO_MUCH = "the page is too tangled, or too large, to be made harmless"


class Told(msgspec.Struct, frozen=True):
    """The first line of what comes back."""

    ending: str = ""
    error: str = ""


def rewrap(message: bytes) -> tuple[str, bytes]:
    """The ending of a file's name, and the file that may be opened. Raises BentoError where there is none."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as made:
        given.write(message)
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, *sys.path],
            stdin=given,
            stdout=made,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,  # a Ctrl-C at the terminal is for us
        )
        try:
            status = process.wait(_WALL_S)
        except subprocess.TimeoutExpired as why:
            raise BentoError(_TOO_MUCH) from why
        finally:
            process.kill()
            process.wait()
        made.seek(0)
        line, data = made.readline(), made.read()
    if status != 0:
        raise BentoError(_TOO_MUCH)
    try:
        told = msgspec.json.decode(line, type=Told)
    except msgspec.MsgspecError as why:
        raise BentoError(_TOO_MUCH) from why
    if told.error:
        raise BentoError(told.error)
    return told.ending, data


def work() -> None:
    """In that process: all of it."""
    import resource

    from bento_tor.client import page, wrapping

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT_BYTES, _OUTPUT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _preload()
    _confine()
    try:
        ending, data = wrapping.wrap(page.unpack(sys.stdin.buffer.read(), MOST_BYTES))
        told = Told(ending=ending)
    except BentoError as error:
        told, data = Told(error=error.message), b""
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n" + data)
    sys.stdout.buffer.flush()


def _preload() -> None:
    """What is imported only when it is needed: afterwards no file can be opened any more."""
    from importlib import import_module

    import webencodings
    from PIL import Image

    for name in ("PngImage", "JpegImage", "GifImage", "WebPImage", "PdfImage"):
        import_module(f"PIL.{name}Plugin")
    Image.preinit()
    for label in webencodings.LABELS:
        with suppress(LookupError):
            webencodings.lookup(label)


def _confine() -> None:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):
        return  # another system than Linux, or no libseccomp: the limits are left
    lib = pyseccomp
    calls = lib.SyscallFilter(lib.ERRNO(1))
    for name in _CALLS.split():
        if lib.resolve_syscall(lib.system_arch(), name) >= 0:
            calls.add_rule(lib.ALLOW, name)
    calls.load()
