"""Three processes as serve has them, in the world: broker, keeper with a real jail, box. Prints what was said."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from pathlib import Path

from bento_tor import resources
from bento_tor.egress import nft, process
from bento_tor.egress.broker import Settings
from bento_tor.egress.grants import Grant, Rules
from bento_tor.egress.host import own_addresses, resolvers
from bento_tor.egress.link import BoxLine, KeeperLine
from bento_tor.policy.destinations import Destinations
from bento_tor.policy.exit_policy import parse
from bento_tor.policy.limits import Limits
from bento_tor.sandbox import frames, images
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper
from bento_tor.sandbox.link import KeeperLink

UID = 1_880_900_002
POLICY = "accept *:80\nreject *:*"
SOURCE = b"""
def f():
    import urllib.request
    for url in ('http://web.example.com/page', 'http://web.example.com:22/', 'http://10.99.0.1/'):
        try: api.send(urllib.request.urlopen(url).read())
        except OSError as error: api.send(str(error))
"""


def keep(broker: process.Started, sock: socket.socket, doors: Path) -> None:
    """The keeper: root, rules, sandboxes."""
    broker.box.close()
    line = KeeperLine(broker.keeper)
    rules = Destinations(parse(POLICY), own=own_addresses())
    nft.load(nft.render(rules, uid=UID, resolvers=resolvers()))
    if not nft.is_loaded(UID):
        raise SystemExit("the kernel's rules are not there")
    line.set_rules(Rules(POLICY))
    image = images.build("python", images.default_dir(), lambda text: None)
    with Jail(image, doors=doors) as jail:
        Keeper(sock, jail, egress=line).run(os.eventfd(0))
    line.close()
    nft.unload(UID)


async def box(broker: process.Started, sock: socket.socket) -> list[str]:
    """The box: a session, its grant, its code."""
    link, line = KeeperLink(sock), BoxLine(broker.box)
    link.open()
    line.open()
    cell = await link.start(Limits())
    line.grant(Grant(cell.number, "exit"))
    text = resources.read_text("egress", "inside.py").encode()
    loop = asyncio.get_running_loop()
    cell.control.setblocking(False)
    await loop.sock_sendall(cell.control, frames.encode_egress(text) + frames.encode_code("f", "([], {})", SOURCE))
    reader, said = frames.FrameReader(), []
    while data := await loop.sock_recv(cell.control, 1 << 16):
        said += [frame.data.decode() for frame in reader.feed(data) if isinstance(frame, frames.Message)]
    cell.control.close()
    os.close(cell.log_fd)
    await link.ended(cell.number)
    line.close()
    link.close()
    return said


def main() -> None:
    broker = process.start(Settings(offers=("exit",)), uid=UID)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tempfile.TemporaryDirectory(prefix="bento-d-") as doors:
        keeper = os.fork()
        if keeper == 0:
            status = 1
            try:
                ours.close()
                keep(broker, theirs, Path(doors))
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        broker.keeper.close()
        for text in asyncio.run(box(broker, ours)):
            print(text)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (keeper, broker.pid)]
    sys.exit(max(map(abs, statuses)))


main()
