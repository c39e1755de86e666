"""The program `bento-tor`, also as `python -m bento_tor.cli`: what happens before `main` is loaded."""

from __future__ import annotations

import signal
import sys


def run() -> None:
    """Load the command line, and run it.

    Until it can put a Ctrl-C into words, a Ctrl-C ends the process without any: no traceback out of an import."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bento_tor.cli.main import main

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:  # between two of main's own
        sys.exit(130)


if __name__ == "__main__":
    run()
