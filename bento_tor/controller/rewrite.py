"""Files that are wholly old or wholly new, whenever one looks and whatever ends us.

A new content is staged beside its file (owner, mode and extended attributes as they shall be, on disk), then put in
its place by one rename. Owns no meaning of what is in them.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from bento_tor.errors import ConfigError


def staged(path: Path) -> Path:
    """Where the new content of `path` waits. A dot in front: no %include of a folder takes it."""
    return path.with_name(f".{path.name}.bento-new")


def stage(path: Path, content: bytes, like: Path | None) -> None:
    """Write the new content of `path`, with owner, mode and attributes of `like`; None: for us alone.

    Raises ConfigError; nothing of it is left then."""
    temporary = staged(path)
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            if like is not None:
                _copy_rights(like, fd)
            file.flush()
            os.fsync(fd)
    except OSError as why:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, why) from why


def put_in_place(path: Path) -> None:
    """The staged content becomes the file's, at once and for good. Raises ConfigError."""
    try:
        staged(path).rename(path)
        sync_folder(path.parent)
    except OSError as why:
        raise unwritable(path, why) from why


def write(path: Path, content: bytes, like: Path | None) -> None:
    """Both in one. Raises ConfigError."""
    stage(path, content, like)
    put_in_place(path)


def remove(path: Path) -> None:
    """Remove a file, where it is there. Raises ConfigError."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)
    except OSError as why:
        raise unwritable(path, why) from why


def make_folder(path: Path) -> None:
    """Make a folder where there is none, with owner and mode of the one above. Raises ConfigError."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    except OSError as why:
        raise unwritable(path, why) from why
    try:
        above = path.parent.stat()
        os.chown(path, above.st_uid, above.st_gid)
        path.chmod(stat.S_IMODE(above.st_mode))
        sync_folder(path.parent)
    except OSError as why:
        raise unwritable(path, why) from why


def sync_folder(path: Path) -> None:
    """A rename or a removal is on disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unwritable(path: Path, why: OSError) -> ConfigError:
    """The error for a file that cannot be changed."""
    hint = "free some space" if why.errno in (errno.ENOSPC, errno.EDQUOT) else "run setup-relay as root"
    return ConfigError(f"{path} cannot be written: {why.strerror or why}", hint=hint)


def _copy_rights(like: Path, fd: int) -> None:
    found = like.stat()
    os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    with suppress(OSError):  # a file system without them
        for name in os.listxattr(like):
            os.setxattr(fd, name, os.getxattr(like, name))
