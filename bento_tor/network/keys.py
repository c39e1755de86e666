"""The keys of authorities and relays, made by tor's own programs, all of them at once.

A relay would make its own at its start; made here, its fingerprint is known before the first vote."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bento_tor.controller.processes import find_program
from bento_tor.errors import TorError
from bento_tor.network.plan import Node, Role

_TIMEOUT_S = 60
# A year: tor-gencert counts in months.
_LIFETIME_MONTHS = "12"
# `tor --list-fingerprint` wants to know an authority, and does not talk to it.
_NOBODY = "nobody 127.0.0.1:1 ffffffffffffffffffffffffffffffffffffffff"


@dataclass(frozen=True)
class Identity:
    """What the others must know of a server: its fingerprint, and an authority's v3 identity (else empty)."""

    node: Node
    fingerprint: str
    v3ident: str = ""

    @property
    def dir_authority(self) -> str:
        """The value of the DirAuthority line."""
        ports = f"orport={self.node.or_port} no-v2 v3ident={self.v3ident} 127.0.0.1:{self.node.dir_port}"
        return f"{self.node.name} {ports} {self.fingerprint}"


def make_keys(servers: Sequence[Node], defaults: Path) -> tuple[Identity, ...]:
    """Make the keys in each server's directory. `defaults`: an empty file. Raises TorError.

    Whatever happens, no program is left running."""
    running: list[tuple[Node, subprocess.Popen[str]]] = []
    try:
        for node in servers:
            if node.role is Role.AUTHORITY:
                (node.directory / "keys").mkdir(mode=0o700)
                running.append((node, _start(_certificate_argv(node))))
            running.append((node, _start(_fingerprint_argv(node, defaults))))
        for node, program in running:
            _finish(node, program)
    finally:
        for _, program in running:
            program.kill()
            program.communicate()
    return tuple(_read_identity(node) for node in servers)


def _certificate_argv(node: Node) -> list[str]:
    keys = node.directory / "keys"
    return [
        find_program("tor-gencert", "tor"),
        "--create-identity-key",
        *("-m", _LIFETIME_MONTHS, "-a", f"127.0.0.1:{node.dir_port}", "--passphrase-fd", "0"),
        *("-i", str(keys / "authority_identity_key")),
        *("-s", str(keys / "authority_signing_key")),
        *("-c", str(keys / "authority_certificate")),
    ]


def _fingerprint_argv(node: Node, defaults: Path) -> list[str]:
    return [
        find_program("tor", "tor"),
        *("--defaults-torrc", str(defaults), "-f", str(defaults), "--quiet", "--list-fingerprint"),
        *("--orport", "1", "--dirserver", _NOBODY, "--nickname", node.name),
        *("--datadirectory", str(node.directory)),
    ]


def _start(argv: list[str]) -> subprocess.Popen[str]:
    # In a session of its own: Ctrl-C is for us, and we end it.
    pipe = subprocess.PIPE
    program = subprocess.Popen(
        argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    return program


def _finish(node: Node, program: subprocess.Popen[str]) -> None:
    # The identity key lies on the disk under a passphrase that nobody keeps: it is never used again.
    try:
        said, _ = program.communicate(secrets.token_hex(16) + "\n", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as why:
        raise TorError(f"making the keys of {node.name} took more than {_TIMEOUT_S} s") from why
    if program.returncode != 0:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise TorError(f"the keys of {node.name} could not be made: {last[0]}")


def _read_identity(node: Node) -> Identity:
    fingerprint = _read(node, "fingerprint", rf"^{node.name} ([0-9A-F]{{40}})$")
    if node.role is not Role.AUTHORITY:
        return Identity(node, fingerprint)
    return Identity(node, fingerprint, _read(node, "keys/authority_certificate", "^fingerprint ([0-9A-F]{40})$"))


def _read(node: Node, name: str, pattern: str) -> str:
    found = re.search(pattern, (node.directory / name).read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise TorError(f"tor made keys for {node.name} that cannot be read: {name}")
    return found[1]
