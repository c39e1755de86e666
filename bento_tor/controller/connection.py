"""Find a running tor and authenticate, or say exactly why not.

`connect` either uses the endpoint that it was given, or looks at the usual places; it never falls back from
the one to the other. It proves knowledge of tor's cookie file and sends neither a password nor the cookie
itself.
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import os
import pwd
import re
import stat
import time
from pathlib import Path

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.events import split_words
from bento_tor.controller.tor import Tor
from bento_tor.controller.wire import Wire
from bento_tor.errors import TorError

USUAL_PLACES = (
    Endpoint.unix(Path("/run/tor/control")),
    Endpoint.tcp("127.0.0.1", 9051),
    Endpoint.tcp("127.0.0.1", 9151),
)
_COOKIE_BYTES = 32
# control-spec, 3.24
_SERVER_KEY = b"Tor safe cookie authentication server-to-controller hash"
_CLIENT_KEY = b"Tor safe cookie authentication controller-to-server hash"


def connect(endpoint: Endpoint | None = None, *, timeout_s: float = 10.0) -> Tor:
    """An authenticated connection to the tor at `endpoint`; None: the first of the usual places that lets us
    in.

    Raises TorError that says for each place tried what happened there."""
    if endpoint is not None:
        return _connect_one(endpoint, timeout_s)
    failures: list[TorError] = []
    for place in USUAL_PLACES:
        try:
            return _connect_one(place, timeout_s)
        except TorError as why:
            failures.append(why)
    hints = [why.hint for why in failures if why.hint and not why.hint.startswith("is tor running")]
    tried = "; ".join(why.message for why in failures)
    hint = hints[0] if hints else "start tor with a control port, or name it with --control"
    raise TorError(f"no tor to control was found: {tried}", hint=hint)


def _connect_one(endpoint: Endpoint, timeout_s: float) -> Tor:
    deadline = time.monotonic() + timeout_s
    try:
        wire = Wire.open(endpoint, timeout_s)
    except OSError as why:
        raise _unreachable(endpoint, why) from why
    try:
        _authenticate(wire, deadline)
        version = _ask(wire, "GETINFO version", deadline)[0].removeprefix("version=")
    except BaseException:
        wire.close()
        raise
    return Tor(wire, version)


def _unreachable(endpoint: Endpoint, why: OSError) -> TorError:
    if isinstance(why, PermissionError) and endpoint.path is not None:
        return TorError(f"{endpoint}: no permission to use this socket", hint=_access_hint(endpoint.path))
    hint = f"is tor running, with its control port at {endpoint}?"
    if isinstance(why, TimeoutError):
        return TorError(f"{endpoint}: no answer", hint=hint)
    return TorError(f"{endpoint}: nothing there ({why.strerror or why})", hint=hint)


def _authenticate(wire: Wire, deadline: float) -> None:
    methods, cookie_file = _protocol_info(wire, deadline)
    if "NULL" in methods:
        _ask(wire, "AUTHENTICATE", deadline)
    elif "SAFECOOKIE" in methods and cookie_file is not None:
        _prove_cookie(wire, cookie_file, deadline)
    elif "HASHEDPASSWORD" in methods:
        hint = "put 'CookieAuthentication 1' into its torrc: bento-tor keeps no passwords"
        raise TorError(f"{wire.endpoint}: this tor wants a password", hint=hint)
    else:
        raise TorError(f"{wire.endpoint}: this tor offers no way to authenticate that bento-tor knows")


def _protocol_info(wire: Wire, deadline: float) -> tuple[set[str], Path | None]:
    """The methods that tor offers, and its cookie file. Raises TorError where this is no control port."""
    try:
        reply = wire.ask("PROTOCOLINFO 1", max(deadline - time.monotonic(), 0.1))
    except TorError as why:
        raise _no_control_port(wire.endpoint) from why
    for line in reply.lines:
        if reply.ok and line.startswith("AUTH "):
            values = dict(split_words(line)[1])
            cookie = values.get("COOKIEFILE")
            return set(values.get("METHODS", "").split(",")), Path(cookie) if cookie else None
    raise _no_control_port(wire.endpoint)


def _no_control_port(endpoint: Endpoint) -> TorError:
    return TorError(
        f"{endpoint}: something listens there, but it is no control port",
        hint="it may be tor's SOCKS port: its control port is another (often 9051, or unix:/run/tor/control)",
    )


def _prove_cookie(wire: Wire, cookie_file: Path, deadline: float) -> None:
    cookie = _read_cookie(wire.endpoint, cookie_file)
    ours = os.urandom(32)
    answer = _ask(wire, f"AUTHCHALLENGE SAFECOOKIE {ours.hex()}", deadline)[0]
    theirs = _hex_values(wire.endpoint, answer)
    secret = cookie + ours + theirs["SERVERNONCE"]
    expected = hmac.digest(_SERVER_KEY, secret, hashlib.sha256)
    if not hmac.compare_digest(expected, theirs["SERVERHASH"]):
        # Also what a program looks like that only pretends to be this tor.
        raise _wrong_cookie(wire.endpoint, cookie_file)
    proof = hmac.digest(_CLIENT_KEY, secret, hashlib.sha256)
    reply = wire.ask(f"AUTHENTICATE {proof.hex()}", max(deadline - time.monotonic(), 0.1))
    if not reply.ok:
        raise _wrong_cookie(wire.endpoint, cookie_file)


def _hex_values(endpoint: Endpoint, answer: str) -> dict[str, bytes]:
    values = dict(split_words(answer)[1])
    for name in ("SERVERNONCE", "SERVERHASH"):
        if not re.fullmatch(r"(?:[0-9A-Fa-f]{2}){32}", values.get(name, "")):
            raise TorError(f"{endpoint}: a malformed AUTHCHALLENGE reply")
    return {name: bytes.fromhex(values[name]) for name in ("SERVERNONCE", "SERVERHASH")}


def _wrong_cookie(endpoint: Endpoint, cookie_file: Path) -> TorError:
    return TorError(
        f"{endpoint}: the cookie in {cookie_file} is not this tor's",
        hint="another tor may have written that file: give each its own DataDirectory or CookieAuthFile",
    )


def _read_cookie(endpoint: Endpoint, cookie_file: Path) -> bytes:
    try:
        # Size first: a hostile port may name any file as its cookie, to learn something about what is in it.
        if cookie_file.stat().st_size != _COOKIE_BYTES:
            raise TorError(f"{endpoint}: {cookie_file} is no cookie of tor's: not {_COOKIE_BYTES} bytes")
        return cookie_file.read_bytes()
    except PermissionError as why:
        message = f"{endpoint}: the cookie {cookie_file} cannot be read ({_owner(cookie_file)})"
        raise TorError(message, hint=_access_hint(cookie_file)) from why
    except OSError as why:
        raise TorError(f"{endpoint}: the cookie {cookie_file} cannot be read: {why.strerror}") from why


def _owner(path: Path) -> str:
    shown = _nearest_visible(path)
    found = shown.stat()
    owner = f"{_user_name(found.st_uid)}:{_group_name(found.st_gid)}"
    return f"{shown} belongs to {owner}, mode {stat.S_IMODE(found.st_mode):o}"


def _access_hint(path: Path) -> str:
    """What to do about a file or socket that we may not use."""
    shown = _nearest_visible(path)
    found = shown.stat()
    group, owner = _group_name(found.st_gid), _user_name(found.st_uid)
    wanted = stat.S_IXGRP if shown.is_dir() else stat.S_IRGRP
    if found.st_mode & wanted and found.st_gid != 0:
        return f"join the group {group} (adduser USER {group}, then log in again), or run this as {owner}"
    options = "CookieAuthFileGroupReadable 1, ControlSocketsGroupWritable 1"
    return f"run this as {owner}, or let tor's group in ({options})"


def _nearest_visible(path: Path) -> Path:
    for candidate in (path, *path.parents):
        try:
            candidate.stat()
        except OSError:
            continue
        return candidate
    return Path("/")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _ask(wire: Wire, command: str, deadline: float) -> tuple[str, ...]:
    reply = wire.ask(command, max(deadline - time.monotonic(), 0.1))
    if not reply.ok:
        raise TorError(f"{wire.endpoint}: tor refused {command.split(' ', 1)[0]}: {reply.lines[-1]}")
    return reply.lines
