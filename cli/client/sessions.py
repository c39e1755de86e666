"""`bento-tor client sessions`: the sessions in the keyring, as last known or as their boxes say now. Never a token."""

from __future__ import annotations

import os
from typing import Any

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, pass_reach
from bento_tor.cli.client.remember import note_end
from bento_tor.cli.options import json_option
from bento_tor.client import keyring
from bento_tor.client.box import Box
from bento_tor.client.keyring import RUNNING, KeptSession
from bento_tor.client.transport import Silent
from bento_tor.errors import BentoError, Refused
from bento_tor.protocol.messages import Code

# Once the box has answered a ping that was sent after the question, all that it had to say has come, but for what it
# had not got round to yet.
_SETTLE_S = 0.3


@click.command()
@click.option("--check", is_flag=True, help="Ask the boxes. Whoever is attached elsewhere is made to let go.")
@json_option
@pass_reach
def command(check: bool, as_json: bool, reach: Reach) -> None:
    """Your sessions: where they are, how they are as last known, how far you have read them, and who is attached."""
    ring = keyring.read()
    told = _ask_all(ring.sessions, reach) if check else {}
    print_sessions(keyring.read().sessions, told, as_json=as_json)


def print_sessions(
    sessions: dict[str, KeptSession], told: dict[str, str] | None = None, *, as_json: bool = False
) -> None:
    """A line each; `told`: what the boxes said of some."""
    rows = [_facts(name, kept, (told or {}).get(name)) for name, kept in sorted(sessions.items())]
    if as_json:
        ui.result_json({"sessions": rows})
        return
    if not rows:
        ui.say("your keyring has no session: 'bento-tor client exec' starts one")
    for row in rows:
        ui.result(ui.escape(f"{row['name']:<20} {row['state']:<16} {row['offset']:>10} read  {row['box']}"))


def _facts(name: str, kept: KeptSession, maybe_told: str | None) -> dict[str, Any]:
    attached = is_attached_here(kept)
    return {
        "name": name,
        "box": kept.box,
        "function": kept.function or None,
        "state": maybe_told or ("attached" if attached else kept.state),
        "offset": kept.offset,
        "attached": attached,
    }


def is_attached_here(kept: KeptSession) -> bool:
    """Whether a living command on this machine is attached to it."""
    if not kept.pid or kept.state != RUNNING:
        return False
    try:
        os.kill(kept.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _ask_all(sessions: dict[str, KeptSession], reach: Reach) -> dict[str, str]:
    told = {}
    running = {name: kept for name, kept in sessions.items() if kept.state == RUNNING and not is_attached_here(kept)}
    for address in sorted({kept.box for kept in running.values()}):
        try:
            for name, kept in running.items():
                # A connection for each: leaving it by closing acknowledges nothing.
                if kept.box == address:
                    with ui.progress(f"asking {address}"), reach.box(address) as box:
                        told[name] = _ask(name, kept, box)
        except BentoError as error:
            ui.warn(f"{address}: {error.message}")
            told |= {name: "unreachable" for name, kept in running.items() if kept.box == address and name not in told}
    return told


def _ask(name: str, kept: KeptSession, box: Box) -> str:
    """What its box says of it."""
    session = box.attach(kept.session, offset=kept.offset)
    try:
        session.wait_attached()
    except Refused as refusal:
        if refusal.code == Code.TOKEN:
            return "gone"
        if refusal.code == Code.OFFSET:
            return "read elsewhere"
        raise
    box.ping()
    try:
        piece = session.maybe_piece(timeout_s=_SETTLE_S)
    except Silent:
        return RUNNING
    if piece is not None:
        return "output to read"
    outcome = session.wait()
    note_end(name, outcome, session)
    return outcome.word
