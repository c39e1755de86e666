"""`bento-tor client proxy`: a SOCKS port on this machine whose connections leave at a box."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bento_tor.cli import ui
from bento_tor.cli.client.calls import load_source
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.client.run import erase
from bento_tor.cli.client.talk import failure_of
from bento_tor.cli.options import json_option
from bento_tor.client.box import Box
from bento_tor.client.cover import Cover, Pace
from bento_tor.client.proxy import Listener, Proxy, listen
from bento_tor.client.session import Session
from bento_tor.client.source import entry_call
from bento_tor.policy.outcome import Kind, Outcome

# A session whose time was up is followed by the next; one that ended sooner than this is not: it would be for ever.
_WORTH_S = 20.0


@click.command()
@click.option("--listen", "address", default="127.0.0.1:1080", show_default=True, metavar="HOST:PORT", help="Where.")
@click.option("--exposed", is_flag=True, help="Listen where other machines can reach it, too.")
@click.option("--cover", "rate", type=float, metavar="RATE", help="Under cover: so many bytes a second, each way.")
@click.option("--seconds", type=float, default=240.0, show_default=True, help="How long a cover lasts.")
@box_option
@json_option
@pass_reach
def command(
    address: str, exposed: bool, rate: float | None, seconds: float, box_address: str, as_json: bool, reach: Reach
) -> None:
    """Offer a SOCKS5 port here for programs that know no Tor: their connections leave at a box, under its policy.

    Names are resolved there (`curl --socks5-hostname`). It ends with Ctrl-C; with --cover when that is over."""
    maybe_pace = Pace.of(rate, seconds) if rate is not None else None
    with listen(address, exposed=exposed) as listener:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with ui.progress(f"connecting to {box_address}"):
                box = reach.box(box_address, remember=False).__enter__()
            with box:
                outcome = _serve(box, listener, maybe_pace, as_json=as_json)
        except KeyboardInterrupt:
            ui.say("ended")
            return
    if failure := failure_of(outcome):
        raise failure


def _serve(box: Box, listener: Listener, maybe_pace: Pace | None, *, as_json: bool) -> Outcome:
    told = False
    while True:
        begun = time.monotonic()
        with _carrying(box, maybe_pace) as carried:
            with Proxy(carried, listener) as proxy:
                if not told and as_json:
                    ui.result_json({"socks": listener.address})
                elif not told:
                    ui.result(f"socks5h://{listener.address}")
                told = True
                proxy.run()
            outcome = carried.wait()
        if outcome.kind is not Kind.KILLED_TIME or time.monotonic() - begun < _WORTH_S:
            return outcome
        ui.say("the box's time for one session was up, its connections ended: going on with another")


@contextmanager
def _carrying(box: Box, maybe_pace: Pace | None) -> Iterator[Session | Cover]:
    """A running functions/proxy.py, under cover or not; erased afterwards."""
    source = load_source("proxy")
    call = entry_call(source, [])
    if maybe_pace is None:
        session = box.run(source, call)
    else:
        box.policy()
        session = box.run(maybe_pace.asking(load_source("cover"), source), maybe_pace.call())
    try:
        session.wait_attached()
        if maybe_pace is None:
            yield session
        else:
            with Cover(session, maybe_pace) as cover:
                cover.run(source, call)
                yield cover
    finally:
        erase(box, session)
