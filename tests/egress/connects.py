"""In the world, as root: load each table, try its targets under the broker's user id, print what got through.

Standard input: JSON, [[rules, uid, [[address, port], ...]], ...]. Standard output: JSON, [[true, ...], ...]."""

from __future__ import annotations

import json
import os
import select
import socket
import sys

from bento_tor.egress import nft


def attempts(uid: int, targets: list) -> list[bool]:
    socks = []
    # A socket belongs to who made it: that is what the kernel's rules look at.
    os.seteuid(uid)
    for address, port in targets:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)
        sock.connect_ex((address, port))
        socks.append(sock)
    os.seteuid(0)
    waiting, got = select.poll(), {}
    for sock in socks:
        waiting.register(sock, select.POLLOUT)
    while len(got) < len(socks):
        ready = waiting.poll(3000)
        if not ready:
            break
        for fd, _ in ready:
            waiting.unregister(fd)
            got[fd] = True
    results = [sock.fileno() in got and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 for sock in socks]
    for sock in socks:
        # No TIME_WAIT: thousands of them would use up the ports.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    return results


def main() -> None:
    verdicts = []
    for rules, uid, targets in json.load(sys.stdin):
        if rules:
            nft.load(rules)
        verdicts.append(attempts(uid, targets))
    nft.unload(uid)
    json.dump(verdicts, sys.stdout)


main()
