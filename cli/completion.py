"""`bento-tor completion`: what makes a shell complete our commands; and where their words come from.

The words come from the keyring and from the functions that ship, read when the user presses tab: nothing is asked of a
box, and a keyring that cannot be read completes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem, get_completion_class

from bento_tor.cli import ui
from bento_tor.errors import BentoError

VARIABLE = "_BENTO_TOR_COMPLETE"
HOW = {
    "bash": 'eval "$(bento-tor completion bash)"  in ~/.bashrc (bash 4.4 or newer)',
    "zsh": 'eval "$(bento-tor completion zsh)"  in ~/.zshrc, after compinit',
    "fish": "bento-tor completion fish > ~/.config/fish/completions/bento-tor.fish",
}


@click.command(epilog="\b\n" + "\n".join(HOW.values()))
@click.argument("shell", metavar="SHELL", type=click.Choice(sorted(HOW)))
def command(shell: str) -> None:
    """Print what makes SHELL complete commands, options, and names from your keyring.

    What it prints is to be read by the shell:"""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"{shell} is not known")
    # Not its source(): for bash that runs a bash, to look at its version.
    made = kind(click.Command("bento-tor"), {}, "bento-tor", VARIABLE)
    ui.result(made.source_template % made.source_vars())


# The shell puts what we say on the user's line as it is: a name like `$(command)`, from a keyring that somebody gave
# her to import, would be run with it.
_PLAIN = re.compile(r"[\w.:/@+][\w.:/@+-]*")

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _of(words: Callable[[], Iterable[str]], *, files: bool = False) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        found: list[str] = []
        with suppress(BentoError):
            found = [word for word in words() if word.startswith(incomplete) and _PLAIN.fullmatch(word)]
        items = [CompletionItem(word) for word in sorted(found)]
        # Shells complete either words of ours or files.
        return items if items or not files else [CompletionItem(incomplete, type="file")]

    return complete


def functions() -> list[str]:
    """The functions in the keyring."""
    from bento_tor.client import keyring

    return list(keyring.read().functions)


def sessions() -> list[str]:
    """The sessions that run, as far as the keyring knows."""
    from bento_tor.client import keyring

    return [name for name, kept in keyring.read().sessions.items() if kept.state == keyring.RUNNING]


def sessions_all() -> list[str]:
    """Those that have ended too."""
    from bento_tor.client import keyring

    return list(keyring.read().sessions)


def boxes() -> list[str]:
    """Every box that the keyring knows."""
    from bento_tor.client import keyring

    return keyring.read().boxes()


def shipped() -> list[str]:
    """The functions that ship."""
    from bento_tor import resources

    return resources.shipped_functions()


complete_function = _of(functions)
complete_session = _of(sessions)
complete_any_session = _of(sessions_all)
complete_box = _of(boxes)
complete_source = _of(shipped, files=True)
complete_kept = _of(lambda: [*functions(), *sessions_all()])
complete_forgettable = _of(lambda: [*functions(), *sessions_all(), *boxes()])
