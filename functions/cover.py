"""Constant traffic both ways for a while: who watches your link cannot tell when something is under way in it.

Arguments: rate (bytes per second each way), seconds, jitter (0 to 1: how much of each slot's time is left to chance).
Each slot of 50 ms sends one message of one size, whether there is something to say or not, until the seconds are over.
What you send comes back, or is a URL (then the box fetches the page, and sees it). For `bento-tor client cover`.

A message is a byte of flags, two bytes of length, so many bytes of data, then zeros. Not `api.pad`: with padding in
place of a message the offsets, and with them the acknowledgements, would tell how many slots had data.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["requests"]
# [tool.bento]
# entry = "cover"
# image = "python"
# ///

import random
import struct
import sys
import threading
import time
from contextlib import suppress

import requests  # now, for everybody: later it would hold up a slot

SLOT_S = 0.05
TOR_CELL_BYTES = 498  # a slot is so many whole cells of Tor's
FRAME_BYTES = 22  # what the protocol puts round a message of output
HEADER = struct.Struct("!BH")
END, ERROR, FETCH = 1, 2, 4  # flags: the last data; it is a sentence about what went wrong; it is a URL
WAITING_BYTES = 1024 * 1024
PIECE_BYTES = 16 * 1024
FETCH_S = 30


def cover(rate=19920, seconds=60, jitter=0.0):
    sys.setswitchinterval(0.0005)  # the other threads must not hold up a slot
    room = cells(rate) * TOR_CELL_BYTES - FRAME_BYTES - HEADER.size
    there, chance = Outgoing(), random.SystemRandom()
    threading.Thread(target=listen, args=(there,), daemon=True).start()
    begun = time.monotonic()
    for slot in range(round(seconds / SLOT_S)):
        due = begun + (slot + chance.random() * jitter) * SLOT_S
        time.sleep(max(0.0, due - time.monotonic()))
        flags, data = there.take(room)
        api.send(HEADER.pack(flags, len(data)) + data + bytes(room - len(data)))


def cells(rate):
    return max(1, -(-int(rate * SLOT_S) // TOR_CELL_BYTES))


class Outgoing:
    """What waits for its slots: data, then perhaps an end, with its last words."""

    def __init__(self):
        self._changed = threading.Condition()
        self._data = bytearray()
        self._end = (0, b"")

    def put(self, data):
        with self._changed:
            self._changed.wait_for(lambda: len(self._data) < WAITING_BYTES)
            self._data += data

    def end(self, flags, words=b""):
        with self._changed:
            self._end = (flags, words)

    def take(self, most):
        with self._changed:
            if not self._data:
                (flags, words), self._end = self._end, (0, b"")
                return flags, words[:most]
            data = bytes(self._data[:most])
            del self._data[:most]
            self._changed.notify()
            return 0, data


def listen(there):
    url = b""
    with suppress(EOFError):
        while True:
            message = api.recv()
            flags, length = HEADER.unpack_from(message)
            data = message[HEADER.size : HEADER.size + length]
            if flags & FETCH:
                url += data
            else:
                there.put(data)
            if flags & END and flags & FETCH:
                threading.Thread(target=fetch, args=(url, there), daemon=True).start()
            elif flags & END:
                there.end(END)


def fetch(url, there):
    try:
        with requests.get(url.decode(), stream=True, timeout=FETCH_S) as answer:
            answer.raise_for_status()
            for piece in answer.iter_content(PIECE_BYTES):
                there.put(piece)
        there.end(END)
    except (requests.RequestException, OSError, ValueError) as why:
        # It rides like a page: that it went wrong is nobody else's business.
        there.end(END | ERROR, str(why).encode())
