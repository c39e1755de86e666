"""The one file of ours that runs inside the sandbox. Standard library only; it imports nothing of bento-tor.

It is started as `python -I -S -B -X utf8 driver.py FD DIRECTORY FILTER`: FD is the control socket, a stream;
DIRECTORY holds the image's packages; FILTER is a file of seccomp instructions, loaded before anything is read
from the socket: where that fails, no code is run. On the socket each frame is one byte of type, four bytes of
length (big-endian), and a body.

    box -> driver  0x01 CODE          2 bytes length of the call's name, 4 bytes length of the arguments, the
                                      name, the arguments (Python literal of a pair: list, dict), the source
                   0x02 INPUT         1 byte flags (1: end of this message, 2: no more input), then data
                   0x03 HOST_REPLY    JSON object, the answer to HOST
                   0x04 HOST_REFUSED  a sentence, the other answer to HOST
                   0x07 KEEPING       before CODE, where the function may keep data: Python source that makes
                                      api.store (bento_tor/sandbox/keeping.py)
                   0x08 STORE_REPLY   JSON object, the answer to STORE and to the last STORE_DATA
                   0x09 STORE_REFUSED the other answer: a word, a space, a sentence
                   0x0A STORE_BYTES   after the answer to a get: up to 64 KiB of the blob
                   0x0B TOR_GATE      before CODE, where the function may use Tor routines: Python source that makes
                                      api.tor (bento_tor/sandbox/torgate.py)
                   0x0C TOR_REPLY     JSON object, the answer to TOR
                   0x0D TOR_REFUSED   the other answer: a word, a space, a sentence
                   0x0E FAR_BOX       before CODE, where the function may use other boxes: Python source that makes
                                      api.box (bento_tor/sandbox/farbox.py)
                   0x06 EGRESS        before CODE, where the function may connect: Python source that makes its
                                      connections leave (bento_tor/egress/inside.py)
    driver -> box  0x81 READY         the interpreter is up
                   0x82 MESSAGE       1 byte flags (1: end of this message), then up to 64 KiB of data
                   0x83 PADDING       8 bytes: how many bytes of padding to send
                   0x84 HOST          what may I know about the host?
                   0x88 STORE         1 byte verb (get, put, delete, list, expire), 8 bytes expected version (-1:
                                      any), 8 bytes length (expire: seconds), the name of a blob
                   0x89 STORE_DATA    up to 64 KiB of the blob that a put announced and the box agreed to
                   0x8A TOR           1 byte verb (connect, new_circuit, circuits, close_circuit, publish, network,
                                      withdraw), 2 bytes port, 8 bytes number of a circuit, service or relay, a host
                   0x8B PAD_TO        8 bytes N, 8 bytes milliseconds: at the end all that the box sent on the reader's
                                      connection is a multiple of N bytes; nothing of the output leaves before the
                                      session has ended, and then at the next multiple of that time since its start
                                      (all ones: it leaves as it comes)
                   0x85 RETURNED      last word; the value has been sent as a last message
                   0x86 RAISED        last word; up to 2 KiB of traceback, of the function's own lines
                   0x87 EXITED        last word; 1 byte of exit status

After the last word the process ends with status 0, 1 or N. The function may forge every one of these frames:
they are its word, no more, and what is seen from outside overrides them. Standard output and standard error
are pipes to the log; standard input is empty. The function finds `api` as a global; its `__name__` is
`__bento__`. Its session ends when the call returns: threads that still run are cut off.
"""

from __future__ import annotations

import os
import select
import sys
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import traceback

CODE, INPUT, HOST_REPLY, HOST_REFUSED = 0x01, 0x02, 0x03, 0x04
EGRESS, KEEPING, STORE_REPLY, STORE_REFUSED, STORE_BYTES = 0x06, 0x07, 0x08, 0x09, 0x0A
TOR_GATE, TOR_REPLY, TOR_REFUSED = 0x0B, 0x0C, 0x0D
FAR_BOX = 0x0E
STORE, STORE_DATA, TOR, PAD_TO = 0x88, 0x89, 0x8A, 0x8B
READY, MESSAGE, PADDING, HOST, RETURNED, RAISED, EXITED = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
END, EOF = 0x01, 0x02
MAX_PART_BYTES = 64 * 1024
MAX_TRACEBACK_BYTES = 2 * 1024
MAX_PADDING_BYTES = 1 << 32
MAX_RELEASE_S = 600
UNHELD = (1 << 64) - 1
FUNCTION_FILE = "function.py"
EGRESS_MODULE = "__egress__"
KEEPING_MODULE = "__keeping__"
TOR_MODULE = "__tor__"
FAR_MODULE = "__box__"
# The texts of the box's own that may come before the code.
MODULES = {EGRESS: EGRESS_MODULE, KEEPING: KEEPING_MODULE, TOR_GATE: TOR_MODULE, FAR_BOX: FAR_MODULE}
MAX_FILTER_BYTES = 8 * 4096  # the kernel takes so many instructions, of 8 bytes each
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
# There for whose manifest asks for it.
ASKED_FOR = ("store", "tor", "box")


class Unavailable(AttributeError):
    """The function asked `api` for what it does not have here."""


class Wire:
    """Frames over one file descriptor."""

    def __init__(self, fd: int) -> None:
        # Held for a whole message: two threads of the function must not mix theirs.
        self.sending = RLock()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def write(self, kind: int, *parts: bytes | memoryview) -> None:
        """Send one frame whole, without joining its parts: a message may be 100 MB."""
        length = sum(map(len, parts))
        pending = [memoryview(kind.to_bytes(1, "big") + length.to_bytes(4, "big"))]
        pending += [memoryview(part) for part in parts]
        with self.sending:
            while pending:
                written = os.writev(self._fd, pending)
                while pending and written >= len(pending[0]):
                    written -= len(pending.pop(0))
                if pending:
                    pending[0] = pending[0][written:]

    def read(self) -> tuple[int, bytes]:
        """The next frame; waits for it. Raises ConnectionError where the box has gone."""
        header = self._exactly(5)
        return header[0], self._exactly(int.from_bytes(header[1:], "big"))

    def waiting(self) -> bool:
        """Whether a frame has begun to arrive."""
        return bool(self._poll.poll(0))

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = os.read(self._fd, min(count, 1 << 20))
            if not piece:
                raise ConnectionError("the box has closed the session")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


class Api:
    """What a function may ask of its box."""

    def __init__(self, wire: Wire, args: list[object]) -> None:
        self.args = args
        self._wire = wire
        # Apart from the sending one: a thread that waits in recv does not keep others from sending.
        self._receiving = RLock()
        self._messages: list[bytes] = []
        self._parts: list[bytes] = []
        self._answer: tuple[int, bytes] | None = None
        self._eof = False

    def send(self, data: str | bytes | bytearray | memoryview) -> int:
        """Send one message; text travels as UTF-8. Returns its length in bytes."""
        if isinstance(data, str):
            data = data.encode()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"api.send takes str or bytes, not {type(data).__name__}")
        view = memoryview(data)
        view = view.cast("B") if view.contiguous else memoryview(view.tobytes())
        with self._wire.sending:
            for start in range(0, len(view) or 1, MAX_PART_BYTES):
                part = view[start : start + MAX_PART_BYTES]
                last = start + MAX_PART_BYTES >= len(view)
                self._wire.write(MESSAGE, b"\x01" if last else b"\x00", part)
        return len(view)

    def recv(self) -> bytes:
        """Wait for the next message from the user. Raises EOFError when there will be no more."""
        with self._receiving:
            while not self._messages and not self._eof:
                self._take()
            if self._messages:
                return self._messages.pop(0)
            raise EOFError("the user has ended the input")

    def poll(self) -> bool:
        """Whether recv would answer at once: with a message, or with the end of the input."""
        if not self._receiving.acquire(blocking=False):
            return False  # another thread waits in recv: what comes is its own
        try:
            while not self._messages and not self._eof and self._wire.waiting():
                self._take()
            return bool(self._messages) or self._eof
        finally:
            self._receiving.release()

    def pad(self, length: int) -> None:
        """Send `length` bytes of padding, which the user's program drops."""
        if not isinstance(length, int) or not 0 <= length <= MAX_PADDING_BYTES:
            raise ValueError(f"api.pad takes a number of bytes from 0 to {MAX_PADDING_BYTES}")
        self._wire.write(PADDING, length.to_bytes(8, "big"))

    def pad_to(self, multiple: int, release: float | None = None) -> None:
        """Let the box pad this session's end: all that it sends on the reader's connection, to the last byte of the
        last word, becomes a multiple of `multiple` bytes (0: no padding). Say it first: it holds however the
        function ends.

        With `release` nothing of the output leaves before the function has ended, and then at the next multiple of
        so many seconds since its start (0: at once), so that time tells as little as size does."""
        if isinstance(multiple, bool) or not isinstance(multiple, int) or not 0 <= multiple <= MAX_PADDING_BYTES:
            raise ValueError(f"api.pad_to takes a number of bytes from 0 to {MAX_PADDING_BYTES}")
        held_ms = UNHELD
        if release is not None:
            if not isinstance(release, int | float) or not 0 <= release <= MAX_RELEASE_S:
                raise ValueError(f"api.pad_to takes a release from 0 to {MAX_RELEASE_S} seconds")
            held_ms = round(release * 1000)
        self._wire.write(PAD_TO, multiple.to_bytes(8, "big") + held_ms.to_bytes(8, "big"))

    def connect(self, host: str, port: int, timeout_s: float | None = None) -> object:
        """A connected socket to a host outside. Raises OSError with the reason where the box lets nothing there."""
        egress = sys.modules.get(EGRESS_MODULE)
        if egress is None:
            raise Unavailable("api.connect: the function's [tool.bento] table has no key 'egress'")
        return egress.connect(host, port, timeout_s)

    def log(self, text: object) -> None:
        """Write a line to the session's log."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def host(self) -> dict[str, object]:
        """What the box tells about its host, measured outside. Raises PermissionError if it tells nothing."""
        import json

        with self._receiving:
            self._wire.write(HOST)
            kind, body = self._wait_answer()
        if kind == HOST_REFUSED:
            raise PermissionError(body.decode())
        facts: dict[str, object] = json.loads(body)
        return facts

    def __getattr__(self, name: str) -> object:
        if name in ASKED_FOR:
            raise Unavailable(f"api.{name}: needs the key {name!r} in the function's [tool.bento] table")
        raise Unavailable(f"api has no {name!r}; it has args, send, recv, poll, pad, pad_to, log and host")

    def _wait_answer(self) -> tuple[int, bytes]:
        """The next frame that is no input; `_receiving` is held."""
        self._answer = None
        while self._answer is None:
            self._take()
        return self._answer

    def _take(self) -> None:
        kind, body = self._wire.read()
        if kind != INPUT:
            self._answer = (kind, body)
            return
        self._parts.append(body[1:])
        if body[0] & END:
            self._messages.append(b"".join(self._parts))
            self._parts.clear()
        if body[0] & EOF:
            self._eof = True


class Source:
    """Lets tracebacks show the function's lines: linecache asks a module's loader for them, when it needs
    them."""

    def __init__(self, source: bytes) -> None:
        self._source = source

    def get_source(self, _name: str) -> str:
        """The text."""
        return self._source.decode("utf-8", "replace")


def run(wire: Wire, call: str, arguments: str, source: bytes) -> tuple[int, bytes, int]:
    """Call the function. Gives the last word's type and body, and the exit status that goes with it."""
    try:
        args, kwargs = read_arguments(arguments)
        api = Api(wire, args)
        if KEEPING_MODULE in sys.modules:
            vars(api)["store"] = sys.modules[KEEPING_MODULE].Store(api)
        if TOR_MODULE in sys.modules:
            vars(api)["tor"] = sys.modules[TOR_MODULE].Tor(api)
        if FAR_MODULE in sys.modules:
            vars(api)["box"] = sys.modules[FAR_MODULE].Box
        target = load(source, api).get(call) if call.isidentifier() else None
        if not callable(target):
            return RAISED, f"NameError: the function's file defines no {call!r} to call\n".encode(), 1
        value = target(*args, **kwargs)
        if value is not None:
            api.send(value if isinstance(value, str | bytes | bytearray | memoryview) else repr(value))
        return RETURNED, b"", 0
    except SystemExit as exit_:
        status = exit_status(exit_.code)
        return EXITED, bytes([status]), status
    except BaseException as error:
        return RAISED, describe(error), 1


def install(name: str, source: bytes) -> None:
    """Take in a text of the box's: the way out, api.store, api.tor, or api.box."""
    module = type(sys)(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the box's own text
    if name == EGRESS_MODULE:
        module.install()


def read_arguments(text: str) -> tuple[list[object], dict[str, object]]:
    """The arguments: literals only, never an expression to evaluate."""
    if text == "([], {})":
        return [], {}
    import ast

    args, kwargs = ast.literal_eval(text)
    return list(args), dict(kwargs)


def load(source: bytes, api: Api) -> dict[str, object]:
    """Run the function's file; gives its names."""
    module = type(sys)("__bento__")
    module.__file__ = FUNCTION_FILE
    module.__dict__.update(api=api, __loader__=Source(source))
    sys.modules["__bento__"] = module
    exec(compile(source, FUNCTION_FILE, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what we are for
    return module.__dict__


def exit_status(code: object) -> int:
    """The status of sys.exit(code), as the interpreter itself would give it."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def describe(error: BaseException) -> bytes:
    """The traceback without the driver's own lines, cut to size; the end says most, so the beginning goes."""
    try:
        import traceback

        told = traceback.TracebackException.from_exception(error, compact=True)
        forget_driver(told)
        text = "".join(told.format()).encode("utf-8", "backslashreplace")
    except BaseException:  # no memory or no descriptors left, or an exception whose own text raises
        text = name(error)
    if len(text) > MAX_TRACEBACK_BYTES:
        text = b"...\n" + text[4 - MAX_TRACEBACK_BYTES :].decode("utf-8", "ignore").encode()
    return text


def name(error: BaseException) -> bytes:
    """The last line of a traceback, or what can be had of it."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}\n".encode("utf-8", "backslashreplace")
    except BaseException:
        return kind.encode("utf-8", "backslashreplace") + b"\n"


def forget_driver(told: traceback.TracebackException | None) -> None:
    """Drop the frames of this file, also from what led to the exception."""
    while told is not None:
        kept = [frame for frame in told.stack if frame.filename not in (__file__, *MODULES.values())]
        told.stack[:] = kept
        if not kept:
            told.stack = None  # type: ignore[assignment]  # no heading above nothing
        told = told.__cause__ or told.__context__


def confine(fd: int) -> None:
    """Give up every system call that the filter does not list, for good. Raises OSError: then no code may run."""
    import ctypes

    instructions = os.pread(fd, MAX_FILTER_BYTES, 0)
    os.close(fd)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    # An empty program is refused by the kernel, too.
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter cannot be loaded")


def main() -> None:
    """Confine ourselves, report, take one call, run it, say the last word, end."""
    confine(int(sys.argv[3]))
    wire = Wire(int(sys.argv[1]))
    sys.path.append(sys.argv[2])
    sys.argv = [FUNCTION_FILE]
    os.environ.clear()
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    status = 1
    try:
        wire.write(READY)
        kind, body = wire.read()
        while kind in MODULES:
            install(MODULES[kind], body)
            kind, body = wire.read()
        call_end = 6 + int.from_bytes(body[:2], "big")
        arguments_end = call_end + int.from_bytes(body[2:6], "big")
        call, arguments = body[6:call_end].decode(), body[call_end:arguments_end].decode()
        word, text, status = run(wire, call, arguments, body[arguments_end:])
        flush()
        wire.write(word, text)
    except OSError:
        # The box has gone, or the function has closed the socket: nobody is left to hear a word.
        status = status or 1
    finally:
        # No clean-up of the interpreter's: the function's threads and exit hooks have had their time.
        os._exit(status)


def flush() -> None:
    """Bring out what was printed; the function may have closed or replaced the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - contextlib costs more to import than all the rest
            stream.flush()
        except BaseException:  # noqa: S110 - its own streams are its own loss
            pass


if __name__ == "__main__":
    main()
