"""From what a session may have to bubblewrap's command line. Pure: nothing is opened, nothing is started.

All a function can see is listed here. There is no network but an empty namespace, one directory that can be written,
/data, and no /proc, but for what an image needs of it (proc.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from bento_tor.policy.limits import Limits
from bento_tor.sandbox.images import Image

BWRAP = "bwrap"
DRIVER = "/driver.py"
PACKAGES = "/packages"
DOOR, GATE, COURIER = "/run/egress.sock", "/run/tor.sock", "/run/box.sock"
INSIDE_ID = "1000"
# Extra files that Python's standard library looks for. They may be missing on a small machine.
_OPTIONAL = ("/usr/share/zoneinfo", "/etc/ssl/certs/ca-certificates.crt")
# To the kernel a tmpfs of size 0 is one without a limit.
_MIN_DATA_BYTES = 4096
_DEVICES = ("null", "zero", "urandom", "random")
# Where the outer step (outer.py) arranges what bubblewrap takes, in the session's own mount namespace. A directory
# that every system has (Filesystem Hierarchy Standard), and that bubblewrap needs for nothing.
STAGE = "/srv"
_CERTIFICATES = "/etc/ssl/certs"


@dataclass(frozen=True, slots=True)
class Fds:
    """The descriptors that bubblewrap inherits, besides the standard three. Only `control` reaches the
    function; `filter` reaches the driver, which closes it."""

    control: int
    driver: int
    filter: int
    info: int
    block: int

    def all(self) -> tuple[int, ...]:
        """Every one, to be passed on."""
        return (self.control, self.driver, self.filter, self.info, self.block)


@dataclass(frozen=True, slots=True)
class Stage:
    """What the outer step arranges besides /data: the image through an overlay, device nodes. Neither without root."""

    overlay: bool = True
    devices: bool = True

    def lowers(self, image: Image) -> dict[str, str]:
        """The directories that go through an overlay: name below STAGE -> path."""
        if not self.overlay:
            return {}
        return {"usr": "/usr", "certs": _CERTIFICATES, "packages": str(image.packages)}

    def source(self, path: str) -> str:
        """Where bubblewrap finds what the sandbox has at `path`."""
        if not self.overlay:
            return path
        if path.startswith(f"{_CERTIFICATES}/"):
            return f"{STAGE}/certs{path.removeprefix(_CERTIFICATES)}"
        return f"{STAGE}{path}" if path.startswith("/usr/") else path


@dataclass(frozen=True, slots=True)
class Spec:
    """One sandbox."""

    image: Image
    limits: Limits
    fds: Fds
    maybe_door: str | None = None
    stage: Stage = Stage()
    maybe_gate: str | None = None
    maybe_courier: str | None = None

    @property
    def data_bytes(self) -> int:
        """The size of /data."""
        return max(self.limits.data_bytes, _MIN_DATA_BYTES)

    def argv(self) -> list[str]:
        """The command line that makes it."""
        return [BWRAP, *_namespaces(), *self._root(), *self._start(), "--", *self._interpreter()]

    def _root(self) -> list[str]:
        image = self.image
        shown = [image.python, image.stdlib, image.libraries, *image.programs]
        source = self.stage.source
        args = [part for path in shown for part in ("--ro-bind", source(path), path)]
        # Machines whose loader is not below /usr/lib have it in /usr/lib64.
        args += ["--ro-bind-try", source("/usr/lib64"), "/usr/lib64"]
        args += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
        args += [part for path in _OPTIONAL for part in ("--ro-bind-try", source(path), path)]
        # Where the system's OpenSSL looks for its roots first.
        args += ["--symlink", "/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem"]
        args += ["--ro-bind", f"{STAGE}/packages" if self.stage.overlay else str(image.packages), PACKAGES]
        # Handed in by descriptor: nothing of ours outside the image need be readable for a session's user id.
        args += ["--ro-bind-data", str(self.fds.driver), DRIVER]
        devices = f"{STAGE}/dev" if self.stage.devices else "/dev"
        args += [part for name in _DEVICES for part in ("--dev-bind", f"{devices}/{name}", f"/dev/{name}")]
        if self.maybe_door is not None:
            # Read-only is the mount; connecting to a socket is no writing.
            args += ["--ro-bind", self.maybe_door, DOOR]
        if self.maybe_gate is not None:
            args += ["--ro-bind", self.maybe_gate, GATE]
        if image.browser:
            args += _proc()
        if self.maybe_courier is not None:
            args += ["--ro-bind", self.maybe_courier, COURIER]
        # The outer step's tmpfs, the one place that can be written.
        args += ["--bind", f"{STAGE}/data", "/data"]
        return [*args, "--remount-ro", "/", "--chdir", "/data"]

    def _start(self) -> list[str]:
        # The process waits on `block` until it is in its cgroups: no code runs without limits.
        return ["--info-fd", str(self.fds.info), "--block-fd", str(self.fds.block)]

    def _interpreter(self) -> list[str]:
        flags = ("-I", "-S", "-B", "-X", "utf8")
        return [self.image.python, *flags, DRIVER, str(self.fds.control), PACKAGES, str(self.fds.filter)]


def _proc() -> list[str]:
    """The session's own processes, and nothing of the kernel's (proc.py). Not the first one, bubblewrap: no filter
    holds for it, so who could write its memory would be free of his."""
    return ["--proc", "/proc", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1"]


def _namespaces() -> list[str]:
    kinds = ("user", "pid", "net", "ipc", "uts", "cgroup")
    args = [f"--unshare-{kind}" for kind in kinds]
    # A user namespace of the function's own would open it the kernel's netfilter and mount code.
    args += ["--disable-userns", "--uid", INSIDE_ID, "--gid", INSIDE_ID, "--hostname", "box"]
    # --new-session: no TIOCSTI into the operator's terminal (CVE-2017-5226).
    return [*args, "--clearenv", "--cap-drop", "ALL", "--new-session", "--die-with-parent"]
