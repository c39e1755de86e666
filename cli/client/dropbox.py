"""`bento-tor client dropbox`: leave a file at a box, and collect it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, no_keyring_option, pass_reach, read_ticket
from bento_tor.cli.options import json_option
from bento_tor.client import dropbox
from bento_tor.client.apart import MOST_BYTES, rewrap
from bento_tor.client.dropbox import Getting, Limits
from bento_tor.client.files import PartFile, SealedFile
from bento_tor.client.page import unpack
from bento_tor.client.sealing import SALT_BYTES
from bento_tor.client.tickets import DropTicket, parse_drop
from bento_tor.errors import BentoError, ConfigError, Refused

F = TypeVar("F", bound=Callable[..., Any])
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


def _seconds(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """`30m`, `12h`, `7d`; in seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= 3650 * 86400:
        raise click.BadParameter(f"{text!r} is no time: for instance 30m, 12h or 7d, at most 3650d", ctx, param)
    return seconds


@click.group()
def command() -> None:
    """Leave a file at a box, sealed, and let whoever has the ticket collect it."""


def limit_options(default_gets: int) -> Callable[[F], F]:
    """`--expires`, `--max-gets`."""

    def add(target: F) -> F:
        target = click.option(
            "--max-gets",
            type=click.IntRange(0, 1_000_000),
            default=default_gets,
            show_default=True,
            metavar="N",
            help="Erase it after so many gets; 0: any number.",
        )(target)
        return click.option(
            "--expires",
            "expires_s",
            callback=_seconds,
            default="7d",
            show_default=True,
            metavar="TIME",
            help="Erase it after this time: 30m, 12h, 7d.",
        )(target)

    return add


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the ticket into FILE.")
@click.option("--resume", metavar="@FILE|-", help="Go on with a put that was stopped: its ticket in FILE, or on input.")
@limit_options(1)
@no_keyring_option
@box_option
@json_option
@pass_reach
def put(
    file: Path,
    output: Path | None,
    resume: str | None,
    expires_s: int,
    max_gets: int,
    no_keyring: bool,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Leave FILE at a box, sealed, and print the ticket: whoever has it can get the file, and nobody else.

    The box cannot read it; it erases it after its gets or its time, whichever comes first."""
    ticket = parse_drop(read_ticket(resume)) if resume else _new_ticket(box_address)
    if ticket.box != box_address:
        raise ConfigError(f"this ticket is for {ticket.box}", hint="give that one as --box")
    sealed = SealedFile(file, ticket.secret)
    with (
        keeping_ticket(str(ticket), output, resumed=resume is not None),
        ui.bar(f"leaving {file.name} at {box_address}", sealed.size) as moved,
        reach.box(box_address, remember=not no_keyring) as box,
    ):
        dropbox.put(box, ticket, sealed, Limits(expires_s, max_gets), moved=moved)
    tell_ticket(str(ticket), output, {"box": box_address, "bytes": sealed.size}, as_json=as_json)


@command.command()
@click.argument("ticket")
@click.option(
    "-o", "--output", metavar="FILE", required=True, type=click.Path(path_type=Path), help="Write it into FILE."
)
@json_option
@pass_reach
def get(ticket: str, output: Path, as_json: bool, reach: Reach) -> None:
    """Collect the file of TICKET (@FILE, or - for standard input).

    What is stopped goes on when the same command is given again, and is one get."""
    left = collect(reach, parse_drop(read_ticket(ticket)), output)
    if as_json:
        ui.result_json({"file": str(output), "bytes": output.stat().st_size, "gets_left": left})
        return
    ui.result(f"{ui.escape(str(output))}: {output.stat().st_size} bytes; {words_of(left)}")


def collect(reach: Reach, ticket: DropTicket, output: Path) -> int | None:
    """Get the file into `output`; how many more gets there may be."""
    part = PartFile(output, str(ticket), secrets.token_hex(16))
    try:
        with ui.progress(f"connecting to {ticket.box}"):
            box = reach.box(ticket.box, remember=False).__enter__()
        with box, ui.meters(show=True) as meter:
            getting = Getting(box, ticket, part, name=part.name, moved=meter(output.name, None).add)
            getting.body()
            left = getting.last()
            part.finish(getting.header[:SALT_BYTES], getting.secret)
            if left == 0:
                getting.done()
    finally:
        part.close()
    return left


def words_of(left: int | None) -> str:
    """Gets that are left, for people."""
    return "any number of gets are left" if left is None else f"{left} gets are left" if left else "it is erased there"


@command.command()
@click.argument("ticket")
@click.option(
    "-o", "--output", metavar="FILE", required=True, type=click.Path(path_type=Path), help="Write it into FILE."
)
@json_option
@pass_reach
def page(ticket: str, output: Path, as_json: bool, reach: Reach) -> None:
    """Collect the page of TICKET (@FILE, or - for standard input) that 'client browse-to-dropbox' had left.

    What is written is made here of what came, as 'client browse' does: nothing in it runs or loads when it is seen."""
    if output.exists():
        raise ConfigError(f"{output} is there already", hint="name another file with -o, or move it away")
    # As it came: where nothing can be made of it, it must not be lost with its last get.
    raw = output.with_name(f"{output.name}.message")
    left = collect(reach, parse_drop(read_ticket(ticket)), raw)
    message = raw.read_bytes()
    try:
        found = unpack(message, MOST_BYTES)
        if found.parts:
            output.write_bytes(rewrap(message)[1])
    except BentoError as error:
        raise BentoError(error.message, hint=f"what came is in {raw}; nothing of it is to be trusted") from error
    raw.unlink()
    if not found.parts:
        raise BentoError(f"the page did not come: {ui.escape(found.error)}")
    if as_json:
        ui.result_json({"file": str(output), "url": found.url, "status": found.status, "gets_left": left})
        return
    ui.say(f"the box says: {found.status} {ui.escape(found.url)}")
    ui.result(f"{ui.escape(str(output))}; {words_of(left)}")


@command.command()
@click.argument("ticket")
@json_option
@pass_reach
def erase(ticket: str, as_json: bool, reach: Reach) -> None:
    """Erase the drop box of TICKET (@FILE, or - for standard input) before its time."""
    opened = parse_drop(read_ticket(ticket))
    with ui.progress(f"erasing at {opened.box}"), reach.box(opened.box, remember=False) as box:
        dropbox.erase(box, opened)
    if as_json:
        ui.result_json({"erased": True})
        return
    ui.result("erased")


@contextmanager
def keeping_ticket(ticket: str, output: Path | None, *, resumed: bool) -> Iterator[None]:
    """The ticket is on the disk before anything is at a box, if it is to be; and what is stopped can go on."""
    if output is not None and not resumed:
        write_ticket(ticket, output)
    try:
        yield
    except (Refused, ConfigError):
        if output is not None and not resumed:
            output.unlink(missing_ok=True)  # a ticket for nothing
        raise
    except (KeyboardInterrupt, BentoError):
        goes_on = f"@{output} goes on" if output else "@TICKET goes on" if resumed else f"- goes on, with\n  {ticket}"
        ui.say(f"what is there stays until its time is over; --resume {goes_on}")
        raise


def write_ticket(ticket: str, output: Path) -> None:
    """Into a new file, for this user only. Raises ConfigError."""
    try:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{ticket}\n")
    except OSError as why:
        raise ConfigError(f"cannot write {output}: {why.strerror}", hint="name another file with -o") from why


def tell_ticket(ticket: str, output: Path | None, facts: dict[str, Any], *, as_json: bool) -> None:
    """The result of a put."""
    if as_json:
        ui.result_json({"ticket": ticket, **facts})
    elif output is None:
        ui.result(ticket)
    else:
        ui.result(f"the ticket is in {ui.escape(str(output))}")


def _new_ticket(box: str) -> DropTicket:
    return DropTicket(box, secrets.token_bytes(32), secrets.token_bytes(32))
