"""A drop box: one put, then gets, until a budget is used up or its time is over; then the box erases everything.

`put` announces how many bytes will come, says how many it has already, and takes the rest in messages of any size.
`get` gives all but the last piece, from any place on. `last` gives the last piece, and that is what counts: to ask for
it says that everything before has arrived. So a get that breaks and goes on is one get, one that never came so far is
none, and of two that want the last one of a budget only one has it. A get has a name that its reader made up: the same
name said twice counts once. `done` says that the last piece has arrived too; after the last get nothing is left then.

Who holds the invocation token may do all of that. The bytes are kept as they come: who puts them seals them before
(`bento-tor client dropbox` does), or the box and everybody with the token can read them.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "put"
# image = "python"
# store = true
# ///

import json
import math
from contextlib import contextmanager

WEEK_S = 7 * 86400
MOST_S = 10 * 366 * 86400
MIB = 1 << 20
MOST_PART_BYTES = 16 * MIB
MOST_PARTS = 4096  # more than any box keeps
MOST_BYTES = 1 << 50
# The last piece: what nobody has who has not been counted.
TAIL_BYTES = 64 * 1024 + 16
# After the last get, who was cut off in the middle of the last piece may still ask for it for so long.
GRACE_S = 600
NAMES = 64  # of gets that were counted, the newest


def limit(expires=WEEK_S, max_gets=1, max_bytes=MOST_BYTES):
    """Set the limits before the put, so that whoever puts cannot choose them. `max_gets` 0: as many as they like."""
    with answering():
        Drop(api.store).limit(expires, max_gets, max_bytes)
        reply()


def put(size, header=b"", expires=WEEK_S, max_gets=1, part=MIB):
    """Take `size` bytes; `header`, up to 256 bytes, is told to whoever gets. `part`: in pieces of how many they are
    kept. The limits are those of `limit`, if that was said before."""
    with answering():
        drop = Drop(api.store)
        drop.limit_once(expires, max_gets)
        drop.claim(size, header, part)
        missing = drop.missing()
        reply(have=size - sum(length for _, length in missing))
        drop.take(missing, api.recv)
        reply(have=size)


def get(name, start=0):
    """Give the bytes from `start` on, without the last piece."""
    with answering():
        drop = Drop(api.store)
        drop.require_whole()
        drop.require_budget(name)
        state = drop.state
        reply(size=state["size"], header=state["header"], tail=state["tail"], left=drop.left())
        for piece in drop.pieces(whole_number("start", start, 0, state["size"])):
            api.send(piece)


def last(name):
    """Count the get of this name, once, and give the last piece."""
    with answering():
        drop = Drop(api.store)
        drop.require_whole()
        drop.count(name)
        reply(left=drop.left())
        api.send(drop.read("tail"))


def done(name):
    """The last piece has arrived. If that was the last get, the box erases everything now."""
    with answering():
        drop = Drop(api.store)
        drop.require_whole()
        reply()
        if name in drop.state["names"] and drop.left() == 0:
            drop.store.expire(0)


class No(Exception):
    """What was asked for cannot be: a word for the program, and a sentence."""

    def __init__(self, word, sentence):
        super().__init__(sentence)
        self.word = word


@contextmanager
def answering():
    """A refusal is an answer too."""
    try:
        yield
    except No as no:
        reply(no=no.word, why=str(no))


def reply(**facts):
    api.send(json.dumps(facts))


def whole_number(what, value, least, most):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise No("bad", f"{what} must be a whole number from {least} to {most}")
    return value


class Drop:
    """What is kept. It is handed the store: a call from outside has no store to hand over, whatever it calls."""

    def __init__(self, store):
        self.store = store
        self.state, self.version = {}, 0
        self.load()

    def load(self):
        try:
            blob = self.store.get("state")
        except KeyError:
            return
        self.state, self.version = json.loads(blob), blob.version

    def save(self, **changes):
        """Change the state, or, where another session has changed it, look again and say False."""
        try:
            changed = {**self.state, **changes}
            self.version = self.store.put("state", json.dumps(changed), expect=self.version)
        except self.store.Conflict:
            self.load()
            return False
        except OSError as why:
            raise No("full", str(why.strerror)) from why
        self.state = changed
        return True

    def limit_once(self, expires, max_gets):
        if not self.state:
            try:
                self.limit(expires, max_gets, MOST_BYTES)
            except No as no:
                if no.word != "filled":
                    raise

    def limit(self, expires, max_gets, max_bytes):
        whole_number("expires", expires, 1, MOST_S)
        whole_number("max_gets", max_gets, 0, MOST_BYTES)
        whole_number("max_bytes", max_bytes, 1, MOST_BYTES)
        if self.state:
            raise No("filled", "the limits of this drop box are set already")
        # Before anything is kept: from here on it holds also if nobody ever comes again.
        self.store.expire(expires)
        begun = {"max_gets": max_gets, "max_bytes": max_bytes, "size": 0, "whole": False, "gets": 0, "names": []}
        if not self.save(**begun):
            raise No("filled", "the limits of this drop box are set already")

    def claim(self, size, header, part):
        """The first put is the only one. The same said again goes on with it."""
        whole_number("size", size, 1, MOST_BYTES)
        whole_number("part", part, 1, MOST_PART_BYTES)
        if not isinstance(header, bytes) or len(header) > 256:
            raise No("bad", "the header must be at most 256 bytes")
        if size > self.state["max_bytes"]:
            raise No("full", f"this drop box takes {self.state['max_bytes']} bytes")
        tail = min(size, TAIL_BYTES)
        parts = math.ceil((size - tail) / part)
        if parts > MOST_PARTS:
            raise No("bad", f"that would be more than {MOST_PARTS} pieces")
        while not self.state["size"]:
            self.save(size=size, header=header.hex(), part=part, tail=tail, parts=parts)
        if (self.state["size"], self.state["header"], self.state["part"]) != (size, header.hex(), part):
            raise No("filled", "something else has been put into this drop box already")

    def lengths(self):
        """The names of the blobs in their order, each with its length."""
        state = self.state
        body = state["size"] - state["tail"]
        for number in range(state["parts"]):
            yield str(number), min(state["part"], body - number * state["part"])
        yield "tail", state["tail"]

    def missing(self):
        """What is not here yet: from the first gap on."""
        kept, wanted = self.store.list(), list(self.lengths())
        gap = next((at for at, (name, _) in enumerate(wanted) if name not in kept), len(wanted))
        return wanted[gap:]

    def take(self, missing, recv):
        """The bytes that are missing."""
        held = bytearray()
        for name, length in missing:
            while len(held) < length:
                try:
                    held += recv()
                except EOFError:
                    raise No("short", "the put ended before all bytes had come") from None
            self.keep(name, bytes(memoryview(held)[:length]))
            del held[:length]
        if held:
            raise No("bad", "more bytes came than were announced")
        while not self.state["whole"]:
            self.save(whole=True)

    def keep(self, name, data):
        try:
            self.store.put(name, data, expect=0)
        except self.store.Conflict:
            pass  # another session of the same put was quicker
        except OSError as why:
            raise No("full", str(why.strerror)) from why

    def require_whole(self):
        if not self.state or not self.state["whole"]:
            raise No("empty", "nothing has been put into this drop box yet")

    def left(self):
        """How many more gets there may be; None: as many as they like."""
        return max(0, self.state["max_gets"] - self.state["gets"]) if self.state["max_gets"] else None

    def require_budget(self, name):
        if not isinstance(name, str) or not 1 <= len(name) <= 64:
            raise No("bad", "a get has a name of 1 to 64 characters")
        if self.left() == 0 and name not in self.state["names"]:
            raise No("used", "its gets are used up")

    def count(self, name):
        while True:
            self.require_budget(name)
            if name in self.state["names"]:
                return
            if self.left() == 1:
                # Before it is counted: a box that is killed in between erases too early, never too late.
                self.store.expire(GRACE_S)
            if self.save(gets=self.state["gets"] + 1, names=[*self.state["names"], name][-NAMES:]):
                return

    def pieces(self, start):
        """What is kept from `start` on, without the last piece."""
        at = 0
        for name, length in list(self.lengths())[:-1]:
            if start < at + length:
                yield memoryview(self.read(name))[max(0, start - at) :]
            at += length

    def read(self, name):
        try:
            return self.store.get(name)
        except (KeyError, self.store.Conflict):
            raise No("gone", "it has been erased meanwhile") from None
