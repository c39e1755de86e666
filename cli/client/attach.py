"""`bento-tor client attach`: come back to a session. And what `run` and `attach` do when they leave one."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import NoReturn

import click
from msgspec import structs

from bento_tor.cli import ui
from bento_tor.cli.client import remember
from bento_tor.cli.client.leaving import Left, carry
from bento_tor.cli.client.reach import Reach, find_session, no_keyring_option, pass_reach
from bento_tor.cli.client.talk import Talk, finish
from bento_tor.cli.completion import complete_box, complete_session
from bento_tor.cli.options import json_option
from bento_tor.client import keyring
from bento_tor.client.box import Box
from bento_tor.client.keyring import KeptSession
from bento_tor.client.session import Session
from bento_tor.errors import BentoError, Refused
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol.messages import Code


@click.command()
@click.argument("name", metavar="SESSION", shell_complete=complete_session)
@click.option("--raw", is_flag=True, help="Write messages as they are: no newline after text.")
@click.option("-o", "--output", metavar="FILE", help="Write the output, as it is, at the end of this file.")
@click.option(
    "--box", "maybe_box", metavar="ADDRESS", shell_complete=complete_box, help="The box, where the ticket names none."
)
@click.option(
    "--from",
    "maybe_from",
    type=click.IntRange(min=0),
    metavar="UNITS",
    help="How far the output has been read, if your keyring does not know.",
)
@no_keyring_option
@json_option
@pass_reach
def command(
    name: str,
    raw: bool,
    output: str | None,
    maybe_box: str | None,
    maybe_from: int | None,
    no_keyring: bool,
    as_json: bool,
    reach: Reach,
) -> None:
    """Come back to SESSION: its output from where you stopped reading, lines of standard input as its input.

    SESSION is a name in your keyring, or @FILE or - with a ticket from another machine: then all of the output that
    nobody has read. It ends when the function ends; Ctrl-C leaves the session running, Ctrl-C twice ends it."""
    known_as, kept = find_session(name, maybe_box=maybe_box)
    if maybe_from is not None:
        kept = structs.replace(kept, offset=maybe_from)
    talk = Talk(raw=raw, file=output, as_json=as_json, going_on=True)
    with ui.progress(f"connecting to {kept.box}"):
        box = reach.box(kept.box, remember=not no_keyring).__enter__()
    with box:
        session = _attach(box, kept)
        if not known_as and not no_keyring:
            # What is read from here on is forgotten there: without a place to note that, nobody could come back.
            known_as = remember.keep_session("session", kept) or ""
        remember.note_attached(known_as)
        # Even after kill -9 we must know where to go on.
        session.before_ack = partial(remember.keep_place, known_as)
        try:
            outcome = carry(session, talk, note=lambda place: note_left(known_as, place))
        except Left as left:
            leave(left, known_as, talk, as_json=as_json)
        except BentoError as why:
            # Another machine has taken over, a full disk: what was written need not come again.
            leave(Left(note_left(known_as, talk.place), why), known_as, talk, as_json=as_json)
        except BaseException:
            # A reader who has gone, for instance.
            remember.note_left(known_as, talk.place)
            raise
        finally:
            talk.close()
        end_of(known_as, kept, outcome, session, box)
    finish(outcome, session, talk, as_json=as_json)


def _attach(box: Box, kept: KeptSession) -> Session:
    session = box.attach(kept.session, offset=kept.offset)
    try:
        session.wait_attached()
    except Refused as refusal:
        if refusal.code == Code.OFFSET:
            hint = "some of it was read elsewhere: --from says how far ('keys export' there carries that along)"
            raise Refused(refusal.message, hint=hint, code=refusal.code) from refusal
        raise
    return session


def note_left(known_as: str, place: int) -> str:
    """The command that comes back."""
    remember.note_left(known_as, place)
    return f"bento-tor client attach {known_as}" if known_as else f"bento-tor client attach - --from {place}"


def leave(left: Left, known_as: str, talk: Talk, *, as_json: bool) -> NoReturn:
    """Say, for programs, that the session goes on, and what has come of it; raise what ends the command."""
    facts = {"session": known_as or None, "attach": left.come_back, "offset": talk.place}
    # What was read will not come again.
    told = {"outcome": None, "left_running": True, "messages": talk.messages_as_json(), **facts}
    if isinstance(left.why, BentoError):
        hint = f"{left.why.hint}; '{left.come_back}' comes back to the session".removeprefix("; ")
        error = BentoError(left.why.message, hint=hint, exit_code=left.why.exit_code)
        if not as_json:
            raise error from left.why
        ui.result_json(told | {"error": {"message": error.message, "hint": hint, "exit_code": error.exit_code}})
        ui.show_error(error.message, hint=hint, exit_code=error.exit_code, as_json=False)
        raise click.exceptions.Exit(error.exit_code)
    if as_json:
        ui.result_json(told)
    raise click.exceptions.Exit(130)


def end_of(known_as: str, kept: KeptSession, outcome: Outcome, session: Session, box: Box) -> None:
    """Note the end; what `client run` had stored only for this session is erased."""
    remember.note_end(known_as, outcome, session)
    ring = keyring.read()
    maybe_function = ring.functions.get(kept.function) if kept.once else None
    maybe_noted = ring.sessions.get(known_as)
    if maybe_function is None or maybe_noted is None or maybe_noted.box != maybe_function.box:
        # An imported session may name any function of ours, and be at a box that wants that one's token.
        return
    if maybe_function.shutdown is not None:
        # If the box does not take that now, its own limits see to it.
        with suppress(BentoError):
            box.shutdown(maybe_function.shutdown)
            remember.forget_function(kept.function)
