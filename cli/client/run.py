"""`bento-tor client run`: store, run and erase in one go."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import click

from bento_tor.cli import ui
from bento_tor.cli.client.attach import leave
from bento_tor.cli.client.calls import CallingCommand, call_of, entry_of, load_source
from bento_tor.cli.client.leaving import Left, carry
from bento_tor.cli.client.reach import Reach, box_option, no_keyring_option, pass_reach
from bento_tor.cli.client.remember import forget_function, keep_function, keep_session
from bento_tor.cli.client.talk import Talk, finish
from bento_tor.cli.completion import complete_source
from bento_tor.cli.options import json_option
from bento_tor.client.box import Box
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.client.session import Session
from bento_tor.client.source import Source
from bento_tor.client.tickets import Ticket
from bento_tor.errors import BentoError


@click.command(cls=CallingCommand)
@click.argument("file", shell_complete=complete_source)
@click.argument("arguments", nargs=-1)
@click.option("--call", "call_text", metavar="'NAME(LITERALS)'", help="Run this call instead of the entry.")
@click.option("--raw", is_flag=True, help="Write messages as they are: no newline after text.")
@click.option("-o", "--output", metavar="FILE", help="Write the output, as it is, into this file.")
@no_keyring_option
@box_option
@json_option
@pass_reach
def command(
    file: str,
    arguments: tuple[str, ...],
    call_text: str | None,
    raw: bool,
    output: str | None,
    no_keyring: bool,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Run FILE (or a function that ships) at a box, with ARGUMENTS: Python literals, else strings.

    Lines of standard input are its input; its output goes to standard output. Then it is erased at the box, and
    nothing has been written to disk here. Ctrl-C leaves it running, in your keyring; Ctrl-C twice ends it.
    Arguments that begin with a dash and are no numbers stand behind --."""
    function = load_source(file)
    call = call_of(function, arguments, call_text)
    talk = Talk(raw=raw, file=output, as_json=as_json)
    started = time.monotonic()
    with ui.progress(f"connecting to {box_address}"):
        box = reach.box(box_address, remember=False).__enter__()
    with box:
        with ui.bar(f"starting {call.name}", len(function.text.encode())) as sent:
            box.on_sent(sent)
            session = box.run(function, call)
        leaving = Leaving(box_address, function, session, no_keyring=no_keyring)
        try:
            outcome = carry(session, talk, note=leaving.note)
        except Left as left:
            leave(left, leaving.name, talk, as_json=as_json)
        finally:
            talk.close()
            if not leaving.left:
                erase(box, session)
        if leaving.left:
            # It ended after all: by a second Ctrl-C.
            erase(box, session)
            leaving.forget()
    finish(outcome, session, talk, as_json=as_json, seconds=round(time.monotonic() - started, 3))


@dataclass
class Leaving:
    """What is written down where a run is left before its end."""

    address: str
    function: Source
    session: Session
    no_keyring: bool
    name: str = ""
    left: bool = False
    function_name: str = ""

    def note(self, place: int) -> str:
        """Keep what is needed to come back, and to erase the function then; the command that comes back."""
        self.left = True
        shutdown = self.session.maybe_shutdown
        if not self.no_keyring and shutdown is not None:
            # Only the shutdown token is at hand: it is all that coming back needs.
            kept = Kept(self.address, shutdown, shutdown, entry_of(self.function))
            self.function_name = keep_function(self.function.name, kept) or ""
            session = KeptSession(self.address, self.function_name, self.session.token, place, once=True)
            self.name = keep_session(self.function_name or self.function.name, session) or ""
        if self.name:
            return f"bento-tor client attach {self.name}"
        # Not on a command line of ours, and to standard error, which is the user's own.
        ui.say(f"  session   {Ticket(self.address, 'session', self.session.token)}")
        if shutdown is not None:
            ui.say(f"  shutdown  {Ticket(self.address, 'shutdown', shutdown)}")
        return f"bento-tor client attach - --from {place}"

    def forget(self) -> None:
        """There is nothing to come back to any more."""
        if self.function_name:
            forget_function(self.function_name)


def erase(box: Box, session: Session) -> None:
    """Nothing stays behind; if the connection has broken, the box's own limits see to it."""
    if session.maybe_shutdown is not None:
        with suppress(BentoError):
            box.shutdown(session.maybe_shutdown, last=True)
