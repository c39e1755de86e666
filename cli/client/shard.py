"""`bento-tor client shard`: a file over several boxes, of which some may fail."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.client.dropbox import keeping_ticket, limit_options, tell_ticket
from bento_tor.cli.client.reach import Reach, no_keyring_option, pass_reach, read_ticket
from bento_tor.cli.options import json_option
from bento_tor.client import shards, spooling, spreading
from bento_tor.client.dropbox import Limits
from bento_tor.client.files import length_of
from bento_tor.client.sealing import SECRET_BYTES
from bento_tor.client.shards import ShardTicket
from bento_tor.errors import BentoError, ConfigError


@click.group()
def command() -> None:
    """Leave a file in shards at several boxes: any few of them give it back, and none can read it."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--boxes", required=True, metavar="ADDRESS,ADDRESS,...", help="A box for each shard.")
@click.option("--need", "needed", required=True, type=click.IntRange(1, 31), metavar="K", help="How many give it back.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the ticket into FILE.")
@click.option("--resume", metavar="@FILE|-", help="Go on with a put that was stopped: its ticket in FILE, or on input.")
@limit_options(0)
@no_keyring_option
@json_option
@pass_reach
def put(
    file: Path,
    boxes: str,
    needed: int,
    output: Path | None,
    resume: str | None,
    expires_s: int,
    max_gets: int,
    no_keyring: bool,
    as_json: bool,
    reach: Reach,
) -> None:
    """Cut FILE into a shard for each of the boxes, and print the recovery ticket.

    Each shard is sealed, and in a drop box of its own, reached by circuits of its own. The ticket and any K of the
    boxes give the file back."""
    file_bytes = length_of(file)
    addresses = tuple(reach.find(address.strip()) for address in boxes.split(","))
    fresh = ShardTicket(addresses, needed, file_bytes, secrets.token_bytes(SECRET_BYTES))
    ticket = shards.parse(read_ticket(resume)) if resume else fresh
    shards.check(ticket)
    if (ticket.boxes, ticket.needed, ticket.file_bytes) != (fresh.boxes, fresh.needed, fresh.file_bytes):
        raise ConfigError("this ticket is for other boxes, or another file", hint="give --boxes and --need as before")
    with tempfile.TemporaryDirectory(prefix="bento-shards-") as folder:
        with ui.progress(f"cutting {file.name} into {len(addresses)} shards"):
            ticket, spooled = spooling.cut(file, ticket, Path(folder))
        with (
            keeping_ticket(str(ticket), output, resumed=resume is not None),
            ui.bar(f"leaving {len(spooled)} shards", sum(each.size for each in spooled)) as moved,
        ):
            limits = Limits(expires_s, max_gets)
            make_box = reach.box if not no_keyring else lambda address: reach.box(address, remember=False)
            spreading.put(ticket, spooled, make_box, limits, _one_at_a_time(moved))
    facts = {"boxes": list(addresses), "needed": needed, "bytes": file_bytes}
    tell_ticket(str(ticket), output, facts, as_json=as_json)


@command.command()
@click.argument("ticket")
@click.option(
    "-o", "--output", metavar="FILE", required=True, type=click.Path(path_type=Path), help="Write the file into FILE."
)
@json_option
@pass_reach
def get(ticket: str, output: Path, as_json: bool, reach: Reach) -> None:
    """Get the file of TICKET (@FILE, or - for standard input) from as many of its boxes as are needed.

    For each that is down, or gives what was not put there, another one is asked."""
    opened = shards.parse(read_ticket(ticket))
    if output.exists():
        raise ConfigError(f"{output} is there already", hint="name another file with -o, or move it away")
    failed: dict[str, str] = {}

    def tell(box: str, error: BentoError) -> None:
        failed[box] = error.message
        ui.warn(f"{box}: {ui.escape(error.message)}")

    total = opened.needed * opened.code.shard_bytes(opened.file_bytes)
    with ui.bar(f"getting {opened.needed} shards", total) as moved:
        gathering = spreading.Gathering(
            opened,
            spreading.folder_beside(output, opened),
            lambda address: reach.box(address, remember=False),
            moved=_one_at_a_time(moved),
            failed=tell,
        )
        gathering.run(output)
    if as_json:
        ui.result_json({"file": str(output), "bytes": opened.file_bytes, "failed": failed})
        return
    ui.result(f"{ui.escape(str(output))}: {opened.file_bytes} bytes, whole")


def _one_at_a_time(moved: Callable[[int], None]) -> Callable[[int], None]:
    """The shards move in threads of their own."""
    lock = threading.Lock()

    def add(count: int) -> None:
        with lock:
            moved(count)

    return add
