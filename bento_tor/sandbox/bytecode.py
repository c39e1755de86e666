"""The driver, compiled by the interpreter that will run it: compiling it anew would be a third of each start."""

from __future__ import annotations

import subprocess

from bento_tor import resources
from bento_tor.errors import SandboxError
from bento_tor.sandbox.images import Image

_TIMEOUT_S = 30
# The contents of a .pyc file without a source file to compare it to.
_COMPILE = """
import importlib.util, marshal, sys
code = compile(sys.stdin.buffer.read(), sys.argv[1], "exec", dont_inherit=True)
sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
"""


def compile_driver(image: Image, path: str) -> bytes:
    """The driver's code, as it is put at `path` in the sandbox. Raises SandboxError."""
    source = resources.read_text("sandbox", "driver.py").encode()
    command = [image.python, "-I", "-S", "-c", _COMPILE, path]
    try:
        answer = subprocess.run(command, input=source, env={}, capture_output=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as why:
        raise SandboxError(f"{image.python} does not run: {why}", hint="see 'bento-tor image build'") from why
    if answer.returncode != 0:
        raise SandboxError(f"{image.python} cannot compile the driver", hint="see 'bento-tor image build'")
    return answer.stdout
