"""The entry point: the command tree, and the one place where errors become words and exit codes.

Each command is in a file of its own, imported only when it runs: `bento-tor --help` stays quick, and a broken
dependency of one command does not take the others along.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from bento_tor import __version__
from bento_tor.cli import ui
from bento_tor.cli.completion import VARIABLE
from bento_tor.errors import BentoError, FunctionFailed

COMMANDS = {
    "audit": "what happened at your box",
    "client": "upload functions to boxes, and use them",
    "completion": "make bash, zsh or fish complete our commands",
    "demo": "see the whole idea work: a private Tor network, a box, a function",
    "doctor": "what this host can enforce, found by trying",
    "drain": "finish what runs at your box, then end it",
    "function": "write functions: begin, check and test one, see those that ship",
    "image": "build and list what functions see",
    "keys": "your relay's, onion services' and box's keys, in one sealed file",
    "network": "private Tor networks on this machine",
    "onion": "your onion services: make, list, check; whom they let in",
    "panic": "kill and erase everything at your box, now",
    "pause": "let your box take no new work",
    "policy": "what your box is willing to do: write it, check it, see it",
    "resume": "let your box take new work again",
    "serve": "run a box",
    "setup-relay": "prepare a running tor for a box",
    "status": "your box and its tor, on one screen",
    "takedown": "erase a function that somebody complains of",
}


class LazyGroup(click.Group):
    """A group whose commands are files of the same name, loaded when they are called."""

    def __init__(
        self,
        *args: Any,
        commands_help: dict[str, str],
        package: str,
        aliases: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.commands_help = commands_help
        self.package = package
        self.aliases = aliases or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands_help)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = self.aliases.get(cmd_name, cmd_name)
        if cmd_name not in self.commands_help:
            return None
        module = importlib.import_module(f"{self.package}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own would load every command for its help.
        found = [(name, text) for name, text in sorted(self.commands_help.items()) if name.startswith(incomplete)]
        words = [CompletionItem(name, help=text) for name, text in found]
        return words + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self.commands_help.items()))


@click.group(
    cls=LazyGroup,
    commands_help=COMMANDS,
    package="bento_tor.cli",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="bento-tor %(version)s")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Show the library's log on standard error.")
def bento_tor(quiet: bool, verbose: bool) -> None:
    """Make a Tor relay programmable: sandboxed functions, uploaded and used over Tor."""
    ui.configure(quiet=quiet, verbose=verbose)


def main() -> None:
    """Run the command line; the process ends with an exit code of docs/cli.md."""
    ui.prepare_streams()
    as_json = "--json" in sys.argv[1:]
    try:
        code = bento_tor.main(prog_name="bento-tor", complete_var=VARIABLE, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        ui.show_error(_in_our_voice(error.format_message()), hint=_usage_hint(error), exit_code=2, as_json=as_json)
        code = 2
    except BentoError as error:
        # How a function ended is a result: its command has printed that already.
        said = isinstance(error, FunctionFailed)
        ui.show_error(error.message, hint=error.hint, exit_code=error.exit_code, as_json=as_json and not said)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        ui.show_error("interrupted", hint="", exit_code=130, as_json=as_json)
        code = 130
    except (ui.ReaderGone, BrokenPipeError):
        # That is not a failure worth words.
        code = 141
    ui.end_streams()
    sys.exit(code if isinstance(code, int) else 0)


def _in_our_voice(message: str) -> str:
    """One line; click begins with a capital, ends with a full stop, and lists choices on lines of their own."""
    message = " ".join(message.split())
    begins = message[:1].lower() if message[1:2].islower() else message[:1]
    return (begins + message[1:]).removesuffix(".")


def _usage_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return f"see '{ctx.command_path} --help'" if ctx is not None else "see 'bento-tor --help'"
