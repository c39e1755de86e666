"""Where a port of tor's is: HOST:PORT or unix:PATH. Owns the text form, opens nothing."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from bento_tor.errors import ConfigError

# sun_path of Linux's struct sockaddr_un is 108 bytes, the closing zero included.
MAX_SOCKET_PATH_BYTES = 107

_HINT = "write HOST:PORT, [IPV6]:PORT or unix:/PATH, for example 127.0.0.1:9050 or unix:/run/tor/control"
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Endpoint:
    """A TCP port (`host`, `port`) or a unix socket (`path`; then `host` is empty)."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """The endpoint that `text` names. Raises ConfigError where it names none."""
        if text.startswith("unix:"):
            return cls.unix(Path(text.removeprefix("unix:")))
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ConfigError(f"{text!r} is no HOST:PORT", hint=_HINT)
        return cls.tcp(_checked_host(host, text), int(port))

    @classmethod
    def tcp(cls, host: str, port: int) -> Endpoint:
        """A TCP port."""
        return cls(host=host, port=port)

    @classmethod
    def unix(cls, path: Path) -> Endpoint:
        """A unix socket. Raises ConfigError where no socket can have that path."""
        if not path.is_absolute() or "\0" in str(path):
            raise ConfigError(f"{str(path)!r} is no absolute path of a socket", hint=_HINT)
        if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"the socket path {path} has {len(bytes(path))} bytes; {MAX_SOCKET_PATH_BYTES} is the most",
                hint="choose a directory with a shorter path",
            )
        return cls(path=path)

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return self.path is not None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _checked_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError as why:
            raise ConfigError(f"{text!r} holds no IPv6 address in its brackets", hint=_HINT) from why
    if not _HOST_NAME.fullmatch(host):
        raise ConfigError(f"{text!r} is no HOST:PORT", hint=_HINT)
    return host
