"""What is found in a function's text before it travels; and hostile texts, which must not keep us."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bento_tor.client import bounded, checking, source
from bento_tor.client.checking import Checked, Finding, ImageFacts, Surroundings
from bento_tor.errors import ConfigError
from bento_tor.policy.document import Policy
from bento_tor.sandbox import offered

IMAGE = ImageFacts(packages=("requests", "urllib3"), can_import={"json", "os", "requests", "subprocess"}.__contains__)
HERE = Surroundings(lambda name: IMAGE if name == "python" else None)


def manifest(*lines: str, above: str = "") -> str:
    return "\n".join(["# /// script", *([f"# {above}"] if above else []), "# [tool.bento]", *lines, "# ///", ""])


def check(text: str, around: Surroundings = HERE) -> Checked:
    return checking.check("f", text, around)


# A text, and what is found: line, whether it is an error, words.
FOUND = [
    ("def f(): 1", []),
    ("def f(:", [(1, "error", "is not Python: invalid syntax")]),
    ("return 1\ndef f(): 1", [(1, "error", "'return' outside function")]),
    ("def f():\n  return 1 is 1", [(2, "note", "the compiler warns")]),
    # the entry
    ("x = 1", [(0, "error", "defines no function")]),
    ("def a(): 1\ndef b(): 1", [(0, "error", "defines 2 functions")]),
    (manifest("# entry = 'g'") + "def f(): 1", [(3, "error", "'g' is not defined")]),
    (manifest("# entry = 'g'") + "g = 5", [(5, "error", "'g' cannot be called")]),
    (manifest("# entry = 'g'") + "g = lambda: 5", []),
    (manifest("# entry = 'g'") + "if True:\n  def g(): 1", []),
    (manifest("# entry = 'g'") + "class g: pass", []),
    (manifest("# entry = 'g'") + "from os import *", []),
    (manifest("# entry = 'g'") + "async def g(): 1", [(5, "error", "'g' is async")]),
    ("def f():\n  yield 1", [(1, "error", "has a yield")]),
    ("def f():\n  def g(): yield 1\n  return list(g())", []),
    ("def f(*, a, b=1): 1", [(1, "note", "needs a by name")]),
    # imports
    ("import json, os.path, requests.adapters\ndef f(): 1", []),
    ("def f():\n  import numpy", [(2, "error", "imports numpy")]),
    ("try:\n  import numpy\nexcept ImportError:\n  numpy = None\ndef f(): 1", [(2, "note", "imports numpy")]),
    ("try:\n  import numpy\nexcept ValueError:\n  pass\ndef f(): 1", [(2, "error", "imports numpy")]),
    ("from typing import TYPE_CHECKING", [(0, "error", "defines no"), (1, "error", "imports typing")]),
    ("TYPE_CHECKING = False\nif TYPE_CHECKING:\n  import numpy\ndef f(): 1", []),
    ("from . import x\ndef f(): 1", [(1, "error", "travels alone")]),
    ("import subprocess\ndef f(): 1", [(1, "note", "can start no programs")]),
    (manifest(above="dependencies = ['Requests>=2', 'numpy']") + "def f(): 1", [(2, "error", "depends on numpy")]),
    # what api has
    ("def f():\n  api.send(1); api.recv; api.args", []),
    ("def f():\n  api.say(1)", [(2, "error", "api has no 'say'; it has args")]),
    ("def f():\n  api.receive()", [(2, "error", "api has no 'receive' (did you mean 'recv'?); it has args")]),
    ("def f():\n  api.store.put('a', b'')", [(2, "error", "api.store needs the key 'store' in a manifest")]),
    ("def f(): return api.host()", [(1, "error", "needs the key 'host'")]),
    ("def f(): api.connect('a', 1)", [(1, "error", "needs the key 'egress'")]),
    (manifest("# store = true") + "def f(): api.store.get('a').x", []),
    (manifest("# store = true") + "def f(): api.store.post('a')", [(5, "error", "api.store has no 'post'; it has")]),
    (manifest("# tor = ['connect']") + "def f(): api.tor.connect('a', 1)", []),
    (manifest("# tor = ['connect']") + "def f(): api.tor.publish(1)", [(5, "error", "'publish' in the list 'tor'")]),
    (manifest("# tor = ['conect']") + "def f(): 1", [(3, "error", "no Tor routine 'conect'; there are circuits")]),
    (manifest("# egress = 'none'") + "def f(): api.connect", [(5, "error", "'egress' in the manifest (line 1)")]),
    ("import json as api\ndef f(): api.dumps(1)", [(1, "note", "gives the name api to something else")]),
    # the manifest
    (
        manifest("# memory = 'lots'", "# egress = 'wifi'", "# nokey = 1", above="dependencies = [1]") + "def f(: 1",
        [
            (2, "error", "a dependency that is none"),
            (4, "error", "Expected `int`"),
            (5, "error", "Invalid enum value 'wifi'"),
            (6, "error", "unknown key 'nokey' in [tool.bento]; there are entry, image,"),
            (8, "error", "is not Python"),
        ],
    ),
    ("\n" + manifest("# memory = = 1") + "def f(): 1", [(4, "error", "is not TOML: Invalid value")]),
    (manifest("# entry = 'f'").removesuffix("# ///\n") + "def f(): 1", [(1, "error", "is not closed")]),
    (
        manifest("# tool = 1", "# bento = 2") + "def f(): 1",
        [(3, "error", "unknown key 'tool'"), (4, "error", "unknown key 'bento'")],
    ),
    ("# /// script\n# tool = 1\n# ///\ndef f(): 1", []),
    ("# /// script\n# tool = {bento = 1}\n# ///\ndef f(): 1", [(1, "error", "Expected `object`")]),
    (manifest("# hosts = ['a']") + "def f(): 1", [(3, "note", "names hosts, and asks for no egress")]),
    (manifest("# image = 'odd'") + "import numpy\ndef f(): 1", [(3, "note", "'odd' is not on this machine")]),
    # other texts that a client takes
    (manifest("# memory = -1").replace("\n", "\r\n") + "def f(): 1", [(3, "error", "Expected `int` >= 0")]),
]


@pytest.mark.parametrize(("text", "found"), FOUND, ids=range(len(FOUND)))
def test_what_is_found(text: str, found: list[tuple[int, str, str]]) -> None:
    checked = check(text)
    assert [(each.line, each.grade) for each in checked.findings] == [each[:2] for each in found], checked.findings
    for finding, (_, _, words) in zip(checked.findings, found, strict=True):
        assert words in finding.text
    assert checked.fits is not any(grade == "error" for _, grade, _ in found)


@pytest.mark.parametrize("text", [text for text, _ in FOUND])
def test_a_manifest_is_taken_exactly_where_the_client_takes_it(text: str) -> None:
    try:
        taken = source.read(text)
    except ConfigError:
        taken = None
    assert check(text).maybe_manifest == taken


def test_each_reason_of_a_policy_is_told() -> None:
    text = manifest("# memory = 999", "# store = true", "# host = 'full'") + "def f(): 1"
    found = check(text, Surroundings(HERE.image_of, Policy())).findings
    assert [finding.line for finding in found] == [3, 4, 5]
    assert all(finding.text.startswith("does not fit the policy: it asks for ") for finding in found)


def test_more_than_anybody_reads_is_cut() -> None:
    found = check("def f():\n" + "  api.x\n" * 5000).findings
    assert len(found) == 101
    assert found[-1] == Finding(0, "error", "and 4900 more findings")


def test_what_api_has_is_what_the_sandbox_makes() -> None:
    verbs = offered.verbs()
    assert {"send", "recv", "poll", "args", "pad", "log", "host", "connect", "store.put", "tor.publish"} <= set(verbs)
    assert (verbs["send"].key, verbs["connect"].key, verbs["store.get"].key) == ("", "egress", "store")
    assert verbs["store.put"].signature.startswith("(name: ")


# --- hostile texts ---------------------------------------------------------------------------------------------------


def nested_finally(depth: int) -> str:
    """Each level doubles what the compiler has to do."""
    levels = "".join(f"{' ' * level}try: pass\n{' ' * level}finally:\n" for level in range(1, depth))
    return f"def f():\n{levels}{' ' * depth}pass\n"


HOSTILE = [
    ("brackets", "(" * 900_000, "too many nested parentheses"),
    ("minus signs", "-" * 900_000 + "1", "nested too deeply"),
    ("a chain of names", "a" + ".b" * 400_000, "recursion depth"),
    ("a sum", "1" + "+1" * 400_000, "recursion depth"),
    ("calls", "a" + "()" * 400_000, "recursion depth"),
    ("lambdas", "lambda:" * 100_000 + "1", "nested too deeply"),
    ("indentation", "".join(f"{' ' * n}if 1:\n" for n in range(200)), "too many levels of indentation"),
    ("finally in finally", nested_finally(60), "memory"),  # or time, whichever it runs out of first
    ("a null byte", "def f():\n  x = '\0'", "null byte"),
    ("a number of 5000 digits", "x = " + "1" * 5000, "Exceeds the limit"),
    ("8000 manifests begun", "# /// script\n" * 8000, "is not closed"),
    ("8000 manifests", manifest() * 8000, "is longer than"),
    ("a long manifest", manifest(*["# a = 1"] * 8000), "is longer than"),
    ("a deep manifest", manifest("# a = " + "[" * 3000), "is not TOML"),
    ("a control character", "def f(): \x1b[31m", "invalid non-printable character"),
    ("a long name", f"def f(): api.{'x' * 900_000}", "api has no 'xxx"),
    ("a long name in a message", f"def f():\n  def g(): nonlocal {'x' * 900_000}", "no binding for nonlocal"),
    ("imports without end", "".join(f"import m{n}\n" for n in range(70_000)), ""),
    ("words without end", "def f():\n" + "".join(f" api.w{n}\n" for n in range(70_000)), ""),
    ("lone returns", "\r" * 500_000, "defines no function"),
]


@pytest.mark.parametrize(("text", "words"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_hostile_text_gets_a_sentence_in_bounded_time(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_S", 1 if words == "memory" else 10)
    begun = time.process_time()
    checked = check(text)
    assert not checked.fits
    assert any(words in finding.text for finding in checked.findings), checked.findings
    assert max(len(finding.text) for finding in checked.findings) <= 400
    # All of the work is in the other process.
    assert time.process_time() - begun < 1.0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # In one piece: what is small may fit into what this process has had before.
    big = 64 << 20
    assert bounded.bounded(lambda: str(len(bytearray(big))).encode()) == str(big).encode()
    monkeypatch.setattr(bounded, "MEMORY_BYTES", big // 4)
    with pytest.raises(bounded.GaveUp):
        bounded.bounded(lambda: str(len(bytearray(big))).encode())


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_S", 1)
    with pytest.raises(bounded.GaveUp):
        bounded.bounded(lambda: bytes(sum(1 for _ in iter(int, 1))))


def test_an_interpreter_that_dies_is_no_answer() -> None:
    def die() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with pytest.raises(bounded.GaveUp):
        bounded.bounded(die)


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 10 * 1024 * 1024])
def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "f.py").write_bytes(b"#" * size)
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        source.read_text(str(tmp_path / "f.py"))


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        source.read_text("/dev/zero")


def test_a_file_of_exactly_the_most_is_taken_with_a_mark_before_it(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_bytes(b"\xef\xbb\xbf" + b"#" * 1024 * 1024)
    assert len(source.read_text(str(tmp_path / "f.py"))[1]) == 1024 * 1024
