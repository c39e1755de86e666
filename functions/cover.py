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
import random
import struct
import sys
import threading
import time
import types
from collections import deque

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
    size = max(1, -(-int(rate * SLOT_S) // TOR_CELL_BYTES)) * TOR_CELL_BYTES - FRAME_BYTES
    there, chance = Outgoing(), random.SystemRandom()
    threading.Thread(target=listen, args=(there,), daemon=True).start()
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


def listen(there):
    asked, inner = b"", None
    while True:
        # Not in api.recv: who waits there keeps others from api.host() and the like.
        while not api.poll():
            time.sleep(LOOK_S)
        for flags, data in records(api.recv()):
            if flags & RUN:
                asked += data
                if flags & END:
                    inner = Covered(there)
                    threading.Thread(target=run, args=(asked, inner, there), daemon=True).start()
            elif inner is not None:
                inner.hear(flags, data)
            else:
                there.put(flags & (END | LAST), data)


class Covered:
    """What `api` is for a function that runs under cover."""

    def __init__(self, there):
        self.args = []
        self._there = there
        self._changed = threading.Condition()
        self._messages, self._part, self._last = deque(), b"", False

    def send(self, data):
        data = data.encode() if isinstance(data, str) else bytes(data)
        self._there.put(END, data)
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

    def hear(self, flags, data):
        with self._changed:
            self._part += data
            if flags & END:
                self._messages.append(self._part)
                self._part = b""
            self._last = self._last or bool(flags & LAST)
            self._changed.notify_all()

    def __getattr__(self, name):
        return getattr(api, name)


def run(asked, covered, there):
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
        there.put(LAST)
    except BaseException as why:
        # It rides like anything else: that it went wrong is nobody else's business.
        there.put(END | LAST | ERROR, f"{type(why).__name__}: {why}".encode("utf-8", "replace")[:MOST_ERROR_BYTES])
