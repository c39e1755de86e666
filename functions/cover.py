"""Constant traffic both ways for a while: who watches your link cannot tell when something is under way in it.

Arguments: rate (bytes per second each way), seconds, jitter (0 to 1: how much of each slot's time is left to chance).
Each slot of 50 ms sends one message of one size, whether there is something to say or not, until the seconds are over.
What you send comes back; or it is a function, which runs here then, and sends and hears by these slots: so any other
function works under cover. For `bento-tor client cover`.

A message is records, then zeros. A record is a byte of flags, two bytes of length, so much data. Not `api.pad`: with
padding in place of a message the offsets, and with them the acknowledgements, would tell how many slots had data.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "cover"
# image = "python"
# ///

import ast
import json
import os
import queue
import random
import struct
import sys
import threading
import time
import types
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe

SLOT_S = 0.05
TOR_CELL_BYTES = 498  # a slot is so many whole cells of Tor's
FRAME_BYTES = 22  # what the protocol puts round a message of output
HEADER = struct.Struct("!BH")
# Flags: the end of a message; there will be no more of them; it is a function to run; it is what went wrong with that.
END, LAST, RUN, ERROR = 1, 2, 4, 8
WAITING_BYTES = 1024 * 1024
LOOK_S = 0.005
MOST_ERROR_BYTES = 1000


def cover(rate=19920, seconds=60, jitter=0.0):
    sys.setswitchinterval(0.0005)  # other threads must not hold up a slot
    # What is printed would be told at the end, and how much of it could be seen.
    for fd in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    line, tells = start_inside()
    size = max(1, -(-int(rate * SLOT_S) // TOR_CELL_BYTES)) * TOR_CELL_BYTES - FRAME_BYTES
    there, chance = Outgoing(), random.SystemRandom()
    for work, *what in ((listen, there, tells), (serve, line, there)):
        threading.Thread(target=work, args=what, daemon=True).start()
    begun = time.monotonic()
    for slot in range(round(seconds / SLOT_S)):
        due = begun + (slot + chance.random() * jitter) * SLOT_S
        time.sleep(max(0.0, due - time.monotonic()))
        api.send(there.take(size).ljust(size, b"\0"))


class Outgoing:
    """Records that wait for their slots."""

    def __init__(self):
        self._changed = threading.Condition()
        self._records = deque()
        self._bytes = 0

    def put(self, flags, data=b""):
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < WAITING_BYTES)
            self._records.append((flags, memoryview(bytes(data))))
            self._bytes += len(data)

    def take(self, most):
        slot = b""
        with self._changed:
            while self._records and most - len(slot) > HEADER.size:
                flags, data = self._records.popleft()
                piece = data[: most - len(slot) - HEADER.size]
                if len(piece) < len(data):
                    self._records.appendleft((flags, data[len(piece) :]))
                    flags &= RUN
                slot += HEADER.pack(flags, len(piece)) + piece
                self._bytes -= len(piece)
            self._changed.notify()
        return slot


def records(slot):
    at = 0
    while at + HEADER.size <= len(slot):
        flags, length = HEADER.unpack_from(slot, at)
        if not flags and not length:
            return
        at += HEADER.size + length
        yield flags, slot[at - length : at]


def listen(there, tells):
    """What comes in the slots: to be sent back, or for the function that runs here."""
    asked, heard, inner = b"", queue.SimpleQueue(), False
    threading.Thread(target=hand_on, args=(heard, tells), daemon=True).start()
    while True:
        # Not in api.recv: who waits there keeps others from api.host() and the like.
        while not api.poll():
            time.sleep(LOOK_S)
        for flags, data in records(api.recv()):
            if flags & RUN:
                asked, inner = asked + data, True
                if flags & END:
                    heard.put((0, asked))
            elif inner:
                heard.put((flags, data))
            else:
                there.put(flags & (END | LAST), data)


def hand_on(heard, tells):
    with suppress(OSError):
        while True:
            tells.send(heard.get())


def serve(line, there):
    """What the function says, and what it asks of the box."""
    last = 0
    with suppress(EOFError, OSError):
        while True:
            first, *rest = line.recv()
            if isinstance(first, int):
                last |= first & LAST
                there.put(first, *rest)
            else:
                answer(line, first, *rest)
    if not last:
        there.put(END | LAST | ERROR, b"SystemExit: its process has died")


def answer(line, name, args, by_name):
    try:
        found = api
        for part in name.split("."):
            found = getattr(found, part)
        line.send((None, found(*args, **by_name)))
    except Exception as why:
        line.send((why, None))


# --- the process in which the function runs: whatever keeps its interpreter busy holds up no slot ---------------------


def start_inside():
    ours, theirs = Pipe()
    hears, tells = Pipe(duplex=False)
    # Before there are threads, and whether it will be used or not.
    if os.fork():
        theirs.close()
        hears.close()
        return ours, tells
    ours.close()
    tells.close()
    try:
        run(Covered(theirs, hears))
    finally:
        os._exit(0)


def run(covered):
    asked = covered.hears.recv()[1]
    threading.Thread(target=covered.hear, daemon=True).start()
    try:
        wanted = json.loads(asked)
        args, by_name = ast.literal_eval(wanted["arguments"])
        covered.args = list(args)
        module = sys.modules["__bento__"] = types.ModuleType("__bento__")
        module.api = covered
        exec(compile(wanted["source"], "function.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's
        value = getattr(module, wanted["call"])(*args, **by_name)
        if value is not None:
            covered.send(value if isinstance(value, (str, bytes, bytearray)) else repr(value))
        covered.say(LAST, b"")
    except BaseException as why:
        # It rides like anything else: that it went wrong is nobody else's business.
        words = f"{type(why).__name__}: {why}".encode("utf-8", "replace")
        covered.say(END | LAST | ERROR, words[:MOST_ERROR_BYTES])


class Covered:
    """What `api` is for a function that runs under cover."""

    def __init__(self, line, hears):
        self.args, self.hears = [], hears
        self._line, self._speaking = line, threading.Lock()
        self._changed = threading.Condition()
        self._messages, self._last = deque(), False

    def say(self, flags, data):
        with self._speaking:
            self._line.send((flags, data))

    def send(self, data):
        data = data.encode() if isinstance(data, str) else bytes(data)
        self.say(END, data)
        return len(data)

    def recv(self):
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._last)
            if not self._messages:
                raise EOFError("the user has ended the input")
            return self._messages.popleft()

    def poll(self):
        return bool(self._messages) or self._last

    def pad(self, length):
        """The slots are all there is to see."""

    def pad_to(self, multiple, release=None):
        """The same."""

    log = pad

    def connect(self, host, port, timeout_s=None):
        box = api  # not this manifest asks for it, but that of what is covered
        return box.connect(host, port, timeout_s)

    def hear(self):
        part = b""
        with suppress(EOFError, OSError):
            while True:
                flags, data = self.hears.recv()
                part += data
                with self._changed:
                    if flags & END:
                        self._messages.append(part)
                        part = b""
                    self._last = self._last or bool(flags & LAST)
                    self._changed.notify_all()

    def __getattr__(self, name):
        getattr(api, name)  # what is not there is told as ever
        return Asked(self, name)

    def ask(self, *what):
        with self._speaking:
            self._line.send(what)
            why, value = self._line.recv()
        if why is not None:
            raise why
        return value


class Asked:
    """A part of `api` that speaks with the box: the other process makes its calls. What would give a socket cannot."""

    def __init__(self, covered, name):
        self._covered, self._name = covered, name

    def __getattr__(self, part):
        return Asked(self._covered, f"{self._name}.{part}")

    def __call__(self, *args, **by_name):
        return self._covered.ask(self._name, args, by_name)
