"""Carry TCP connections for programs on the user's side, under the exit policy. No arguments; `client proxy` uses it.

A message is a byte that says what it is, four bytes of a connection's number, and the rest:

    1 OPEN     from the client: port (two bytes), host. Names are resolved here. Numbers only grow
    2 OPENED   to the client
    3 REFUSED  to the client: the code of SOCKS5 for why not (one byte); the number is done
    4 DATA     both ways, as far as the other's credit reaches: WINDOW at first, and what each CREDIT adds
    5 END      both ways: no more DATA from here; after both the number is done
    6 RESET    both ways: it broke; the number is done
    7 CREDIT   both ways: how many bytes more (four bytes) may come. So a slow connection stops only itself

Whatever comes for a number that is done is dropped; what a client may not say ends the session.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "proxy"
# image = "python"
# egress = "exit"
# ///

import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from urllib.parse import urlsplit

OPEN, OPENED, REFUSED, DATA, END, RESET, CREDIT = range(1, 8)
HEAD = struct.Struct("!BI")
WINDOW = 256 * 1024
PIECE_BYTES = 32 * 1024
AT_ONCE = 16  # connections that a box gives, if its policy says no other; more of them wait for their turn
TOO_MANY = 0x90  # the box's answer where it gives fewer, or one of ours has just ended
AGAIN_S, PATIENCE_S = 0.05, 60
MOST = 256
FAILED = 1
ANSWER_BYTES = {1: 12, 4: 24}  # with the greeting's two, by the kind of address


def proxy():
    Proxy().run()


class Connection:
    """One connection of the client's. `sock` is None until it is its turn."""

    def __init__(self, number, host, port):
        self.number, self.host, self.port = number, host, port
        self.sock = None
        self.answer = b""  # of the way out, until it is whole
        self.opened = False
        self.waiting = bytearray()  # for the other end
        self.owed = 0  # bytes that have come, and are not given back as credit
        self.credit = WINDOW
        self.give_up_at = time.monotonic() + PATIENCE_S
        self.no_more_up = self.no_more_down = False


class Proxy:
    def __init__(self):
        self.way_out = urlsplit(os.environ["ALL_PROXY"])
        self.connections, self.turn, self.running, self.highest = {}, deque(), 0, 0
        self.not_before = 0.0
        self.inbox = deque()
        self.bell, self.ring = socket.socketpair()
        self.poll = selectors.PollSelector()
        self.poll.register(self.bell, selectors.EVENT_READ)

    def run(self):
        threading.Thread(target=self.listen, daemon=True).start()
        while True:
            for key, events in self.poll.select(AGAIN_S if self.turn else None):
                if key.data is None:
                    self.bell.recv(4096)
                elif key.data.number in self.connections:
                    self.move(key.data, events)
            while self.inbox:
                message = self.inbox.popleft()
                if message is None:
                    return
                self.take(message)
            self.next_turn()

    def listen(self):
        self.ring.setblocking(False)
        message = b""
        while message is not None:
            try:
                message = api.recv()
            except EOFError:
                message = None
            self.inbox.append(message)
            with suppress(BlockingIOError):  # it rings already
                self.ring.send(b"!")

    # --- what the client says ---------------------------------------------------------------------------------

    def take(self, message):
        kind, number = HEAD.unpack_from(message)
        rest = message[HEAD.size :]
        if kind == OPEN:
            self.open(number, rest)
            return
        if kind not in (DATA, END, RESET, CREDIT) or number > self.highest:
            raise ValueError(f"the client says {kind} of connection {number}")
        one = self.connections.get(number)
        if one is None:
            return
        if kind == RESET:
            self.forget(one)
            return
        if kind == CREDIT:
            one.credit += int.from_bytes(rest, "big")
        elif one.no_more_up or not one.opened:
            raise ValueError(f"the client sends to connection {number}, which takes nothing")
        elif kind == END:
            one.no_more_up = True
        else:
            one.owed += len(rest)
            if one.owed > WINDOW:
                raise ValueError(f"the client sends more to connection {number} than it has credit for")
            one.waiting += rest
        self.go_on(one)

    def open(self, number, rest):
        if number <= self.highest or len(self.connections) >= MOST:
            raise ValueError(f"the client opens connection {number} after {self.highest}, {len(self.connections)} open")
        self.highest = number
        self.connections[number] = Connection(number, rest[2:], rest[:2])
        self.turn.append(self.connections[number])

    def next_turn(self):
        while self.turn and self.running < AT_ONCE and time.monotonic() >= self.not_before:
            one = self.turn.popleft()
            if one.number in self.connections:
                self.ask(one)

    def ask(self, one):
        try:
            one.sock = socket.create_connection((self.way_out.hostname, self.way_out.port))
            self.running += 1
            one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sock.sendall(b"\5\1\0\5\1\0\3" + bytes([len(one.host)]) + one.host + one.port)
            one.sock.setblocking(False)
        except (OSError, ValueError):
            self.refuse(one, FAILED)
            return
        self.watch(one)

    # --- what the other end does ------------------------------------------------------------------------------

    def move(self, one, events):
        try:
            if not one.opened:
                self.read_answer(one)
                return
            if events & selectors.EVENT_WRITE:
                count = one.sock.send(one.waiting[:PIECE_BYTES])
                del one.waiting[:count]
            if events & selectors.EVENT_READ:
                self.read(one)
            self.go_on(one)
        except BlockingIOError:
            pass
        except OSError:
            self.say(RESET, one)
            self.forget(one)

    def read_answer(self, one):
        most = ANSWER_BYTES.get(one.answer[5], 0) if len(one.answer) > 5 else 6
        data = one.sock.recv(most - len(one.answer)) if most else b""
        one.answer += data
        if not data:
            self.refuse(one, FAILED)
        elif len(one.answer) > 6 and len(one.answer) == most:
            if one.answer[3] == TOO_MANY and time.monotonic() < one.give_up_at:
                self.hang_up(one)
                one.answer = b""
                self.turn.appendleft(one)
                self.not_before = time.monotonic() + AGAIN_S
                return
            if one.answer[3]:
                self.refuse(one, one.answer[3])
                return
            one.opened = True
            self.say(OPENED, one)
            self.go_on(one)

    def read(self, one):
        data = one.sock.recv(min(one.credit, PIECE_BYTES))
        one.credit -= len(data)
        one.no_more_down = not data
        self.say(DATA if data else END, one, data)

    def go_on(self, one):
        """Whatever may be done now without waiting; then wait for what can be next."""
        if not one.opened:
            return
        given = one.owed - len(one.waiting)
        if given >= WINDOW // 4 and not one.no_more_up:
            one.owed -= given
            self.say(CREDIT, one, given.to_bytes(4, "big"))
        if one.no_more_up and not one.waiting:
            with suppress(OSError):  # it has gone: reading tells
                one.sock.shutdown(socket.SHUT_WR)
        if one.no_more_up and one.no_more_down and not one.waiting:
            self.forget(one)
        else:
            self.watch(one)

    def watch(self, one):
        wanted = 0
        if not one.opened or (one.credit > 0 and not one.no_more_down):
            wanted |= selectors.EVENT_READ
        if one.waiting:
            wanted |= selectors.EVENT_WRITE
        known = self.poll.get_map().get(one.sock)
        if known is not None and not wanted:
            self.poll.unregister(one.sock)
        elif known is None and wanted:
            self.poll.register(one.sock, wanted, one)
        elif known is not None and known.events != wanted:
            self.poll.modify(one.sock, wanted, one)

    def refuse(self, one, code):
        self.say(REFUSED, one, bytes([code]))
        self.forget(one)

    def forget(self, one):
        del self.connections[one.number]
        self.hang_up(one)

    def hang_up(self, one):
        if one.sock is not None:
            if self.poll.get_map().get(one.sock) is not None:
                self.poll.unregister(one.sock)
            one.sock.close()
            one.sock = None
            self.running -= 1

    def say(self, kind, one, rest=b""):
        api.send(HEAD.pack(kind, one.number) + rest)
