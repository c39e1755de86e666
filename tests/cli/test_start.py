"""How little a command loads before it knows that it needs it."""

import subprocess
import sys

import pytest

# Each takes as long to load as all the rest of a command.
HEAVY = ("rich", "stem", "jinja2", "cryptography", "PIL", "pypdfium2", "pyeclib", "prompt_toolkit")


@pytest.mark.parametrize("command", ["", "client", "function", "serve"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom bento_tor.cli.main import bento_tor\n"
        f"bento_tor({[*command.split(), '--help']!r}, standalone_mode=False)\n"
        f"print('loaded:', *sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "loaded:"
