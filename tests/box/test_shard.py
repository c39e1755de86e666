"""A file in shards over five real boxes: boxes killed, and each lying in turn. In `make soak`, of 100 MB."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bento_tor.client import parse, shards
from bento_tor.client.dropbox import shutdown_token
from bento_tor.client.shards import ShardTicket

pytestmark = pytest.mark.sandbox

CONFIG = """
first_uid = FIRST
ready = 1
[policy]
sessions = 3
store_bytes = 60000000
[policy.limits]
wall_s = 120
memory_bytes = 67108864
"""
LONG = bool(os.environ.get("BENTO_TOR_SOAK"))
FILE_BYTES = 100_000_000 if LONG else 1_000_000
TIMEOUT_S = 600 if LONG else 60
# A box that gives what was put, with one bit changed: it runs this for the drop box under the same token.
LIAR = """# /// script
# [tool.bento]
# store = true
# ///
import json
def get(name, start=0):
    facts = {"size": SIZE, "header": HEADER, "tail": 65552, "left": 1}
    api.send(json.dumps(facts))
    api.send(bytes(SIZE - 65552 - start))
"""


def config(number: int) -> str:
    """Boxes of one machine share no user ids: the limit of processes is one of a user id."""
    return CONFIG.replace("FIRST", str(1_880_100_000 + 1000 * number))


@pytest.fixture(scope="module")
def boxes(running_box, tmp_path_factory) -> Iterator[list]:
    """Five of them."""
    base = tmp_path_factory.mktemp("five")
    for number in range(5):
        (base / str(number)).mkdir()
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda number: running_box(base / str(number) / "s", config=config(number)), range(5)))
    yield made
    for box in made:
        if box.process.poll() is None:
            assert box.stop() == 0
        else:
            box.process.stdout.close()
            box.log.close()


def lie(box, ticket: ShardTicket, number: int) -> None:
    """From now on this box gives something else for its shard."""
    drop = ticket.drop(number)
    size = shards.sealed_bytes(ticket.code.shard_bytes(ticket.file_bytes))
    text = LIAR.replace("SIZE", str(size)).replace("HEADER", repr(shards.salt_of(drop.secret).hex()))
    with box.connect() as there:
        there.shutdown(shutdown_token(drop))
        there.upload(parse("liar", text), invocation=drop.token, shutdown=shutdown_token(drop))


def test_two_boxes_killed_and_each_lying_in_turn(
    boxes: list, running_box, bento: Callable, tmp_path: Path, rounds
) -> None:
    file = tmp_path / "file"
    with file.open("wb") as out:
        for _ in range(FILE_BYTES // 1_000_000):
            out.write(os.urandom(1_000_000))
    addresses = [box.address for box in boxes]
    put = ("client", "shard", "put", "file", "--boxes", ",".join(addresses), "--need", "3", "--timeout", str(TIMEOUT_S))

    def get(name: str, *more: str) -> dict:
        done = bento("client", "shard", "get", "@ticket", "-o", name, "--json", *more, timeout_s=TIMEOUT_S)
        told = json.loads(done.stdout)
        assert done.returncode == (told["error"]["exit_code"] if "error" in told else 0), done.stderr
        if "error" not in told:
            assert (tmp_path / name).read_bytes() == file.read_bytes()
            (tmp_path / name).unlink()
        return told

    done = bento(*put, "-o", "ticket", timeout_s=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, "the ticket is in ticket\n"), done.stderr
    ticket = shards.parse((tmp_path / "ticket").read_text())
    told = get("all")
    assert told["failed"] == {}, [told, *(box.words() for box in boxes)]
    # Of two that are down, one that lies is one too many, whichever it is; with one of them back it is not.
    for liar, _ in rounds(1, 5):
        down = [(liar + 1) % 5, (liar + 3) % 5]
        for number in down:
            boxes[number].kill()
        told = get("without")
        assert set(told["failed"]) <= {addresses[number] for number in down}
        lie(boxes[liar], ticket, liar)
        told = get("nothing")
        assert told["error"]["exit_code"] == 6
        assert told["error"]["message"].startswith("2 of the 3 shards that are needed can be had: ")
        for number in (liar, *down):
            assert f"{addresses[number]}: " in told["error"]["message"]
        assert "piece 0 is not what was put there" in told["error"]["message"]
        for number in down:
            boxes[number].process.stdout.close()
            boxes[number].log.close()
            boxes[number] = running_box(boxes[number].state, config=config(number))
        told = get("back")
        assert set(told["failed"]) <= {addresses[liar]}
        with boxes[liar].connect() as there:  # it becomes honest again
            there.shutdown(shutdown_token(ticket.drop(liar)))
        done = bento(*put, "--resume", "@ticket", timeout_s=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
