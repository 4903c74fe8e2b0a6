"""Writing a file so that a reader, or a restart after a power cut, sees the old bytes or the new ones, never a mixture.

Temporary file beside it, fsync, rename, fsync of the directory. A full disk is `StorageFull` and leaves no litter.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from edge_runtime.ports import StorageFailed, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(error: OSError, what: str) -> StorageFull | StorageFailed:
    """Return the port's error for a failed write of `what`."""
    if error.errno in _FULL:
        return StorageFull(f"no room on the disk for {what}: {error.strerror}")
    return StorageFailed(f"{what} cannot be written: {error}")


def sync_directory(path: Path) -> None:
    """Make renames and deletions in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`, whose directory is made if need be. Raises `StorageFull` or `StorageFailed`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink()
        raise storage_error(e, str(path)) from e


def remove(path: Path) -> None:
    """Delete a file that may be gone already."""
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise StorageFailed(f"{path} cannot be deleted: {e}") from e
