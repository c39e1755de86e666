"""`bento-tor client shell`: a box, interactively. The words are those of 2021, with their arguments on one line."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.lines import Lines, Piped, Typed
from bento_tor.cli.client.opened import SharedBox
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.client.words import Shell
from bento_tor.errors import BentoError


@click.command()
@box_option
@pass_reach
def command(box_address: str, reach: Reach) -> None:
    """Use a box interactively: 'help' tells the words, Ctrl-D or 'exit' leaves; sessions go on without you.

    At a terminal there is history, completion by tab, and editing of several lines. Standard input that is no terminal
    is read line by line: what fails does not stop the rest, and the exit code is that of the first failure; at its end
    open sessions get the end of their input, and are waited for. All of it goes over one connection: the box
    can see that your sessions are one user's."""
    shell = Shell(SharedBox(reach, box_address))
    lines: Lines = Typed(shell.complete) if ui.is_interactive() else Piped()
    with lines.showing(), shell.opened(lines):
        first_failure = _talk(shell, lines)
    raise click.exceptions.Exit(first_failure)


def _talk(shell: Shell, lines: Lines) -> int:
    """Take lines until there are no more; the exit code of the first that failed."""
    if lines.interactive:
        ui.say(f"{shell.address}: 'help' tells the words, 'exit' leaves")
    while not shell.done:
        try:
            maybe_line = lines.maybe_command()
            if maybe_line is None:
                shell.end_of_lines()
                break
            shell.do(maybe_line)
        except KeyboardInterrupt:
            if not lines.interactive:
                raise
        except click.ClickException as error:
            shell.fail(BentoError(error.format_message(), hint="'help' tells the words", exit_code=2))
        except BentoError as error:
            shell.fail(error)
    return shell.first_failure
