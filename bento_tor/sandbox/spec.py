"""From what a session may have to bubblewrap's command line. Pure: nothing is opened, nothing is started.

All a function can see is listed here. There is no /proc, no network but an empty namespace, and one directory
that can be written, /data.
"""

from __future__ import annotations

from dataclasses import dataclass

from bento_tor.policy.limits import Limits
from bento_tor.sandbox.images import Image

BWRAP = "bwrap"
DRIVER = "/driver.py"
PACKAGES = "/packages"
INSIDE_ID = "1000"
# Extra files that Python's standard library looks for. They may be missing on a small machine.
_OPTIONAL = ("/usr/share/zoneinfo", "/etc/ssl/certs/ca-certificates.crt")
# To the kernel a tmpfs of size 0 is one without a limit.
_MIN_DATA_BYTES = 4096
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass(frozen=True, slots=True)
class Fds:
    """The descriptors that bubblewrap inherits, besides the standard three. Only `control` reaches the
    function."""

    control: int
    driver: int
    info: int
    block: int

    def all(self) -> tuple[int, ...]:
        """Every one, to be passed on."""
        return (self.control, self.driver, self.info, self.block)


@dataclass(frozen=True, slots=True)
class Spec:
    """One sandbox."""

    image: Image
    limits: Limits
    fds: Fds

    def argv(self) -> list[str]:
        """The command line that makes it."""
        return [BWRAP, *_namespaces(), *self._root(), *self._start(), "--", *self._interpreter()]

    def _root(self) -> list[str]:
        image = self.image
        shown = [image.python, image.stdlib, image.libraries]
        args = [part for path in shown for part in ("--ro-bind", path, path)]
        # Machines whose loader is not below /usr/lib have it in /usr/lib64.
        args += ["--ro-bind-try", "/usr/lib64", "/usr/lib64"]
        args += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
        args += [part for path in _OPTIONAL for part in ("--ro-bind-try", path, path)]
        # Where the system's OpenSSL looks for its roots first.
        args += ["--symlink", "/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem"]
        args += ["--ro-bind", str(image.packages), PACKAGES]
        # Handed in by descriptor: nothing of ours outside the image need be readable for a session's user id.
        args += ["--ro-bind-data", str(self.fds.driver), DRIVER]
        args += [part for path in _DEVICES for part in ("--dev-bind", path, path)]
        data_bytes = max(self.limits.data_bytes, _MIN_DATA_BYTES)
        args += ["--perms", "0700", "--size", str(data_bytes), "--tmpfs", "/data"]
        return [*args, "--remount-ro", "/", "--chdir", "/data"]

    def _start(self) -> list[str]:
        # The process waits on `block` until it is in its cgroups: no code runs without limits.
        return ["--info-fd", str(self.fds.info), "--block-fd", str(self.fds.block)]

    def _interpreter(self) -> list[str]:
        flags = ("-I", "-S", "-B", "-X", "utf8")
        return [self.image.python, *flags, DRIVER, str(self.fds.control), PACKAGES]


def _namespaces() -> list[str]:
    kinds = ("user", "pid", "net", "ipc", "uts", "cgroup")
    args = [f"--unshare-{kind}" for kind in kinds]
    # A user namespace of the function's own would open it the kernel's netfilter and mount code.
    args += ["--disable-userns", "--uid", INSIDE_ID, "--gid", INSIDE_ID, "--hostname", "box"]
    # --new-session: no TIOCSTI into the operator's terminal (CVE-2017-5226).
    return [*args, "--clearenv", "--cap-drop", "ALL", "--new-session", "--die-with-parent"]
