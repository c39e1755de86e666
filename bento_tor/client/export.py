"""A keyring as one file that travels to another machine: sealed under a passphrase or not, and merged there.

Owns the form of that file and the rules of merging. It reads no keyring and writes none: values in, values out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from bento_tor.client.keyring import RUNNING, KeptSession, Keyring
from bento_tor.errors import ConfigError

FORM = 1
MAX_FILE_BYTES = 64 * 1024 * 1024
# RFC 7914's parameters for files: 128 MiB and about half a second for each guess of a passphrase.
_COST, _BLOCK, _LANES = 2**17, 8, 1
_SALT_BYTES, _NONCE_BYTES = 16, 12
# What is sealed says which form it has: a file of another form cannot be passed off as this one.
_BOUND_TO = b"bento-tor keyring 1"


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in a sealed file. The cost of a guess is fixed: a file cannot ask for memory that is not there."""

    salt: bytes
    nonce: bytes
    box: bytes


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two is there."""

    form: int = msgspec.field(name="bento-tor-keyring")
    sealed: Sealed | None = None
    plain: Keyring | None = None


@dataclass
class Merged:
    """What an import did, by name: `renamed` are those whose name was taken by something else."""

    added: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    # Boxes whose policy the other keyring knows by another digest. Ours stays.
    policies_differ: list[str] = field(default_factory=list)


def write(ring: Keyring, passphrase: str | None) -> bytes:
    """The file; without a passphrase every token is readable in it."""
    if passphrase is None:
        return msgspec.json.format(msgspec.json.encode(File(FORM, plain=ring)))
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    box = AESGCM(_key(passphrase, salt)).encrypt(nonce, msgspec.json.encode(ring), _BOUND_TO)
    return msgspec.json.format(msgspec.json.encode(File(FORM, sealed=Sealed(salt, nonce, box))))


def read(data: bytes, passphrase: Callable[[], str]) -> Keyring:
    """What a file holds; `passphrase` is asked only where it is sealed. Raises ConfigError where it cannot be used."""
    try:
        file = msgspec.json.decode(data, type=File)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as why:
        raise ConfigError("this is no exported keyring", hint="'bento-tor client keys export' makes one") from why
    if file.form != FORM or (file.sealed is None) == (file.plain is None):
        raise ConfigError("this exported keyring has a form that is not known", hint="is it from a newer bento-tor?")
    return file.plain if file.plain is not None else _open(file.sealed, passphrase())


def merge(ours: Keyring, theirs: Keyring) -> Merged:
    """Take into `ours` what it has not. What is there already stays; a name that is taken gets a number."""
    done = Merged()
    new_names = _merge_functions(ours, theirs, done)
    for name, kept in theirs.sessions.items():
        _merge_session(ours, name, kept, new_names.get(kept.function, ""), done)
    for box, digest in theirs.policies.items():
        if ours.policies.setdefault(box, digest) != digest:
            done.policies_differ.append(box)
    for box, onion in theirs.pins.items():
        ours.pins.setdefault(box, onion)
    # That a box has signed once is only ever added: to forget it would let somebody leave its signature out.
    ours.signed.extend(box for box in theirs.signed if box not in ours.signed)
    return done


def _merge_functions(ours: Keyring, theirs: Keyring, done: Merged) -> dict[str, str]:
    """Their functions; the names that they have with us."""
    names = {}
    for name, kept in theirs.functions.items():
        token = (kept.box, kept.invocation)
        same = [key for key, value in ours.functions.items() if (value.box, value.invocation) == token]
        if same:
            names[name] = same[0]
            done.known.append(name)
            if ours.functions[same[0]].shutdown is None:
                ours.functions[same[0]] = kept
            continue
        names[name] = _add(ours, name, done)
        ours.functions[names[name]] = kept
    return names


def _merge_session(ours: Keyring, name: str, kept: KeptSession, function: str, done: Merged) -> None:
    maybe_same = ours.maybe_session(kept.box, kept.session)
    if maybe_same is None:
        # Where its function is not in that file, it is none of ours of the same name: at the end of such a session the
        # function would be erased.
        once = kept.once and bool(function)
        ours.sessions[_add(ours, name, done)] = msgspec.structs.replace(kept, function=function, once=once, pid=0)
        return
    done.known.append(name)
    mine = ours.sessions[maybe_same]
    # The box has forgotten what was read there; and what has ended does not run again.
    newest = kept if mine.state == RUNNING else mine
    ours.sessions[maybe_same] = msgspec.structs.replace(
        mine, offset=max(mine.offset, kept.offset), state=newest.state, log=newest.log
    )


def _add(ours: Keyring, name: str, done: Merged) -> str:
    free = ours.free_name(name)
    if free == name:
        done.added.append(name)
    else:
        done.renamed[name] = free
    return free


def _open(sealed: Sealed | None, passphrase: str) -> Keyring:
    wrong = ConfigError("the passphrase is wrong, or the file is damaged")
    if sealed is None or len(sealed.salt) != _SALT_BYTES or len(sealed.nonce) != _NONCE_BYTES:
        raise wrong
    try:
        data = AESGCM(_key(passphrase, sealed.salt)).decrypt(sealed.nonce, sealed.box, _BOUND_TO)
        return msgspec.json.decode(data, type=Keyring)
    except (InvalidTag, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as why:
        raise wrong from why


def _key(passphrase: str, salt: bytes) -> bytes:
    # A passphrase read from a file or a terminal may hold bytes that are no text.
    return Scrypt(salt, 32, _COST, _BLOCK, _LANES).derive(passphrase.encode(errors="surrogateescape"))
