"""Writing files so that a reader, or a restart after a power cut, sees the old bytes or the new ones, never a mixture.

The rules:
- a whole file is written beside its place, synced, renamed, and its directory synced;
- a file that grows (`append_durably`) is synced before anybody is told, and believed only after its hash was checked;
- a directory that is made is synced in its parent: a file in a directory that a power cut can take is not durable;
- what was removed may come back after a power cut, unless `remove_durably` removed it;
- a full disk is `StorageFull` and leaves no litter; a killed process leaves `.NAME.PID.tmp`, see `sweep_litter`;
- everything goes through a `FileLayer`, so that tests put a recording or a failing disk in its place (`use`).

SQLite does its own writing, by the same rules; `adapters.state_store` reports how much, by `count_written`.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from edge_runtime.ports import StorageFailed, StorageFull

PAGE_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LITTER = re.compile(r"\..+\.(\d+)\.tmp")


class OpenFile(Protocol):
    """A file that is being written. Every method raises `OSError`."""

    def write(self, data: bytes) -> None:
        """Write all of `data` where the last write ended."""

    def sync(self) -> None:
        """Return when what was written is on the disk."""

    def close(self) -> None:
        """Let go of the file, synced or not."""


class FileLayer(Protocol):
    """What the functions below do to the disk, one operation at a time. Every method raises `OSError`."""

    def create(self, path: Path, mode: int) -> OpenFile:
        """Make an empty file, or empty the one that is there."""

    def open_at(self, path: Path, start: int) -> OpenFile:
        """Open a file to write from byte `start` on, cut off there; made if there is none."""

    def allocate(self, path: Path, size: int) -> None:
        """Make a private file of `size` bytes whose blocks are its own."""

    def make_folder(self, path: Path) -> None:
        """Make one directory whose parent is there; one that is there already is no error."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of a file that has it."""

    def remove(self, path: Path) -> None:
        """Delete a file. Raises `FileNotFoundError` if there is none."""

    def sync_directory(self, path: Path) -> None:
        """Return when names made, changed and deleted in the directory are on the disk."""


class _SystemFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unsynced = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.write(self._descriptor, view)
            view = view[done:]
            self._unsynced += done

    def sync(self) -> None:
        os.fsync(self._descriptor)
        self._count()

    def close(self) -> None:
        self._count()
        os.close(self._descriptor)

    def _count(self) -> None:
        # A disk writes pages: of a file of ten bytes, one.
        count_written(-(-self._unsynced // PAGE_BYTES) * PAGE_BYTES)
        self._unsynced = 0


class SystemFiles:
    """The operating system's files."""

    def create(self, path: Path, mode: int) -> OpenFile:
        """See `FileLayer.create`."""
        return _SystemFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode))

    def open_at(self, path: Path, start: int) -> OpenFile:
        """See `FileLayer.open_at`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, start)
            os.lseek(descriptor, start, os.SEEK_SET)
        except OSError:
            os.close(descriptor)
            raise
        return _SystemFile(descriptor)

    def allocate(self, path: Path, size: int) -> None:
        """See `FileLayer.allocate`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """See `FileLayer.make_folder`."""
        path.mkdir(exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        """See `FileLayer.rename`."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """See `FileLayer.remove`."""
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """See `FileLayer.sync_directory`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_layer: FileLayer = SystemFiles()
_durable_folders: set[Path] = set()
_written = 0


@contextmanager
def use(layer: FileLayer) -> Iterator[FileLayer]:
    """Put another layer in the system's place, for the whole process, while the block runs."""
    global _layer, _durable_folders
    before = _layer, _durable_folders
    _layer, _durable_folders = layer, set()
    try:
        yield layer
    finally:
        _layer, _durable_folders = before


def count_written(count: int) -> None:
    """Count bytes that another part of this process (SQLite) wrote."""
    global _written
    _written += count


def take_written_bytes() -> int:
    """Return how many bytes this process has written since the last call, in whole pages.

    It is what the files and SQLite's log and database took, the file system's own journal left out; docs/durability.md
    compares it with what the kernel counts. The same in every run, so a simulation may decide by it.
    """
    global _written
    count, _written = _written, 0
    return count


def storage_error(error: OSError, what: str) -> StorageFull | StorageFailed:
    """Return the port's error for a failed write of `what`."""
    if error.errno in _FULL:
        return StorageFull(f"no room on the disk for {what}: {error.strerror}")
    return StorageFailed(f"{what} cannot be written: {error}")


def sync_directory(path: Path) -> None:
    """Make renames and deletions in a directory durable. Raises `OSError`."""
    _layer.sync_directory(path)


def make_folder(path: Path) -> None:
    """Make a directory and those above it, durably. Raises `OSError`."""
    if path in _durable_folders and path.exists():
        return
    if not path.exists():
        make_folder(path.parent)
        _layer.make_folder(path)
    # One that is there may have been made by a process that was killed before it could do this.
    with suppress(PermissionError):
        # A parent that may not be opened is not ours, and neither was it made here.
        _layer.sync_directory(path.parent)
    _durable_folders.add(path)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`, whose directory is made if need be. Raises `StorageFull` or `StorageFailed`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        file = _layer.create(temporary, mode)
        try:
            file.write(data)
            file.sync()
        finally:
            file.close()
        _layer.rename(temporary, path)
        _layer.sync_directory(path.parent)
    except OSError as e:
        with suppress(OSError):
            _layer.remove(temporary)
        raise storage_error(e, str(path)) from e


def append_durably(path: Path, start: int, pieces: Iterable[bytes]) -> None:
    """Cut the file at `path` off at byte `start`, write `pieces` from there, and sync; the file is made if need be.

    Use it for a download: it holds the directory, the open file and one piece at a time. Whatever `pieces` raises
    passes through, and what had come until then stays, unsynced: whoever goes on with it checks a hash in the end.
    Raises `StorageFull` or `StorageFailed`.
    """
    try:
        fresh = not path.exists()
        make_folder(path.parent)
        file = _layer.open_at(path, start)
        try:
            for piece in pieces:
                file.write(piece)
            file.sync()
        finally:
            file.close()
        if fresh:
            _layer.sync_directory(path.parent)
    except OSError as e:
        raise storage_error(e, str(path)) from e


def rename_durably(old: Path, new: Path) -> None:
    """Give a synced file its final name in the same directory. Raises `StorageFull` or `StorageFailed`."""
    try:
        _layer.rename(old, new)
        _layer.sync_directory(new.parent)
    except OSError as e:
        raise storage_error(e, str(new)) from e


def make_empty(path: Path, mode: int) -> None:
    """Make an empty file with this mode, durably, unless there is a file. Raises `StorageFull` or `StorageFailed`."""
    try:
        make_folder(path.parent)
        if not path.exists():
            _layer.create(path, mode).close()
            _layer.sync_directory(path.parent)
    except OSError as e:
        raise storage_error(e, str(path)) from e


def allocate(path: Path, size_bytes: int) -> None:
    """Have a file of `size_bytes` bytes there, whose content does not matter. Raises `StorageFull`, `StorageFailed`."""
    try:
        make_folder(path.parent)
        _layer.allocate(path, size_bytes)
    except OSError as e:
        raise storage_error(e, str(path)) from e


def remove(path: Path) -> None:
    """Delete a file that may be gone already; a power cut may bring it back. Raises `StorageFailed`."""
    try:
        with suppress(FileNotFoundError):
            _layer.remove(path)
    except OSError as e:
        raise StorageFailed(f"{path} cannot be deleted: {e}") from e


def remove_durably(*paths: Path) -> None:
    """Delete files that may be gone already, so that no power cut brings them back. Raises `StorageFailed`.

    A file whose deletion another process did not make durable is not noticed, so the directory is synced in any case.
    """
    for path in paths:
        remove(path)
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            if folder.exists():
                _layer.sync_directory(folder)
        except OSError as e:
            raise StorageFailed(f"what was deleted in {folder} may come back: {e}") from e


def sweep_litter(home: Path) -> int:
    """Delete what killed processes left half-written in `home` and its folders; return how many files that were.

    Call it when the agent starts. A file of a process that lives is left alone. Raises `StorageFailed`.
    """
    count = 0
    try:
        paths = [path for pattern in (".*.tmp", "*/.*.tmp") for path in home.glob(pattern)]
    except OSError as e:
        raise StorageFailed(f"{home} cannot be read: {e}") from e
    for path in paths:
        match = _LITTER.fullmatch(path.name)
        # This process writes nothing now; in a container every life of the agent has the same id.
        if match and (int(match[1]) == os.getpid() or not _lives(int(match[1]))):
            remove(path)
            count += 1
    return count


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
