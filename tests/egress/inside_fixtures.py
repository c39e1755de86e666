"""Runs a function in the real jail, with a real broker behind its door."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from bento_tor import resources
from bento_tor.egress.grants import Caps, Grant
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind, judge
from bento_tor.sandbox import frames, images
from bento_tor.sandbox.jail import Jail

INSIDE = resources.read_text("egress", "inside.py").encode()


def load_runner() -> ModuleType:
    path = Path(__file__).parent.parent / "sandbox" / "runner.py"
    spec = importlib.util.spec_from_file_location("egress_sandbox_runner", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RUNNER = load_runner()


@contextmanager
def open_jail(name: str = "python") -> Iterator[Jail]:
    image = images.build(name, images.default_dir(), lambda text: None)
    with tempfile.TemporaryDirectory(prefix="bento-d-") as doors, Jail(image, doors=Path(doors)) as jail:
        yield jail
        assert not list(Path(doors).iterdir())


def run_inside(
    jail: Jail, broker, source: str, call="f", arguments="([], {})", *, egress="exit", hosts=(), caps=None, limits=None
):
    """As the keeper and the box do it: start, hand over the door, grant, send what makes connections leave, and the
    code."""
    cell = jail.start(limits or Limits(wall_s=60))
    number = 1_000_000 + next(broker.numbers)
    seen = None
    try:
        broker.keeper.offer(number, cell.maybe_door)
        cell.maybe_door.close()
        broker.grant(Grant(number, egress, hosts, caps or Caps()))
        sent = frames.encode_egress(INSIDE) + frames.encode_code(call, arguments, source.encode())
        talk = RUNNER.converse(cell.control, cell.log.fileno(), sent)
        seen = cell.wait(10)
    finally:
        if seen is None:
            cell.kill(Kind.KILLED_OPERATOR)
            cell.collect()
        broker.keeper.end(number)
    talk.outcome = judge(talk.said, seen, ready=talk.ready)
    return talk
