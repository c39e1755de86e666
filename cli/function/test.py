"""`bento-tor function test`: run a function in a real sandbox on this machine, without Tor."""

from __future__ import annotations

import shlex
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.client.calls import CallingCommand, call_of, load_source
from bento_tor.cli.client.talk import Talk, failure_of, finish, say_printed
from bento_tor.cli.completion import complete_source
from bento_tor.cli.function.folder import images_option
from bento_tor.cli.function.terms import policy_for, say_terms
from bento_tor.cli.options import Seconds, json_option
from bento_tor.client.box import connect
from bento_tor.client.session import Session
from bento_tor.client.source import Call, Source
from bento_tor.errors import BentoError, FunctionFailed, Refused
from bento_tor.network.interrupts import one_interrupt
from bento_tor.policy.document import Policy
from bento_tor.policy.outcome import Kind, Outcome
from bento_tor.server import tryout

_ANSWER_S = 60.0


@click.command(cls=CallingCommand)
@click.argument("file", shell_complete=complete_source)
@click.argument("arguments", nargs=-1)
@click.option("--call", "call_text", metavar="'NAME(LITERALS)'", help="Run this call instead of the entry.")
@click.option(
    "--input", "inputs", metavar="TEXT|-", multiple=True, help="A message of input, or - for lines of standard input."
)
@click.option("--timeout", "timeout_s", type=Seconds(1), metavar="SECONDS", help="Its time, instead of the policy's.")
@click.option("--policy", "policy_file", metavar="FILE", help="The box's policy.  [default: all that a test can give]")
@click.option(
    "--egress",
    type=click.Choice(["none", "exit"]),
    default="none",
    show_default=True,
    help="exit: let a function that asks for it out to ports 80 and 443.",
)
@click.option("--raw", is_flag=True, help="Write messages as they are: no newline after text.")
@click.option("-o", "--output", metavar="FILE", help="Write the output, as it is, into this file.")
@images_option
@json_option
def command(
    file: str,
    arguments: tuple[str, ...],
    call_text: str | None,
    inputs: tuple[str, ...],
    timeout_s: float | None,
    policy_file: str | None,
    egress: str,
    raw: bool,
    output: str | None,
    images_dir: Path,
    as_json: bool,
) -> None:
    """Run FILE (or a function that ships) with ARGUMENTS in a box of this machine: the same sandbox, limits and store,
    in a temporary folder, without Tor. Its output goes to standard output, what it printed and its traceback to
    standard error. Without --input its input ends at once. Exit code 8 where it did not return."""
    if "-" in inputs and len(inputs) > 1:
        raise click.UsageError("--input - takes all of standard input: it stands alone")
    function = load_source(file)
    call = call_of(function, arguments, call_text)
    function, policy = policy_for(function, policy_file, timeout_s)
    say_terms(function.manifest, policy, egress)
    talk = Talk(raw=raw, file=output, as_json=as_json)
    try:
        with one_interrupt():
            outcome, session, seconds = _run(function, call, inputs, policy, images_dir, egress, talk)
    except Refused as refusal:
        # Its box was this command's own: there is none to ask for a policy.
        under = ["--policy", policy_file] if policy_file else []
        hint = f"'{shlex.join(['bento-tor', 'function', 'check', file, *under])}' shows the line"
        raise Refused(refusal.message, hint=hint, code=refusal.code) from refusal
    finally:
        talk.close()
    if as_json:
        finish(outcome, session, talk, as_json=True, seconds=seconds)
    else:
        _tell(outcome, session, seconds)


def _run(
    function: Source, call: Call, inputs: tuple[str, ...], policy: Policy, images_dir: Path, egress: str, talk: Talk
) -> tuple[Outcome, Session, float]:
    exit_policy = tryout.WEB if egress == "exit" else tryout.NOTHING
    with ExitStack() as stack:
        # Said in a line: a spinner is a thread, and this forks.
        ui.say("starting a box on this machine, without Tor")
        trial = stack.enter_context(tryout.trial(policy, images_dir, exit_policy=exit_policy))
        if missing := {"memory", "pids"} - set(trial.limits):
            ui.say(f"no cgroups for {' and '.join(sorted(missing))} here: each process is limited by itself only")
        begun = time.monotonic()
        with connect(trial.address, timeout_s=_ANSWER_S) as box:
            session = box.run(function, call)
            if inputs == ("-",):
                outcome = talk.carry(session)
            else:
                session.wait_attached()
                threading.Thread(target=_feed, args=(session, inputs), name="input", daemon=True).start()
                outcome = talk.carry_rest(session)
        return outcome, session, round(time.monotonic() - begun, 3)


def _feed(session: Session, inputs: tuple[str, ...]) -> None:
    with suppress(BentoError):
        for text in inputs:
            session.send(text)
        session.finish()


def _tell(outcome: Outcome, session: Session, seconds: float) -> None:
    """Say how it ended. Raises FunctionFailed unless it succeeded."""
    say_printed(session)
    if outcome.kind is Kind.RAISED:
        ui.say("its traceback:\n" + ui.escape(outcome.detail.rstrip()))
    if maybe_failure := failure_of(outcome):
        raise FunctionFailed(maybe_failure.message)
    ui.say(f"{outcome.word} after {seconds:.2f} seconds")
