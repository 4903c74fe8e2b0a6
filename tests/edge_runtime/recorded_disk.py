"""A disk that writes down what is done to it, file by file and by SQLite, and may refuse.

While `recording` is open, everything that `adapters.files` and SQLite do below a folder is an `Operation` in `log`,
with its call site; before each, `before` is asked: it may look at the log (and fork), and it returns the error number
that is to happen instead, or 0. Replaying the whole log must give the folder as it is, byte for byte: whatever wrote
past the layer would show there. An operation about which the disk `lies` is not logged: so the judge of the states can
be shown a device that does not sync.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.adapters import files
from edge_runtime.adapters.ballast import BALLAST_FILE
from edge_runtime.adapters.files import FileLayer, OpenFile, SystemFiles
from tests.edge_runtime import sqlite_vfs

# The functions that write for others: the site is who asked them.
_WRITERS = ("adapters/files.py", "adapters/database.py", "adapters/state_store.py")


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing done to the disk. `path` and `target` are relative to the recorded folder.

    kind: make_folder, create, write (`data` at `offset`), cut (to `offset` bytes), sync, rename (to `target`), remove,
    sync_directory. `by` is "files" or "sqlite".
    """

    kind: str
    path: str
    site: str
    by: str = "files"
    offset: int = 0
    data: bytes = b""
    target: str = ""


def call_site() -> str:
    """Return module.function of the edge runtime's code that wants something written."""
    frame, fallback = sys._getframe(1), "test"
    while frame is not None:
        name = frame.f_code.co_filename
        if "/edge_runtime/" in name and "/tests/" not in name:
            place = f"{Path(name).stem}.{frame.f_code.co_name}"
            if not name.endswith(_WRITERS):
                return place
            fallback = place
        frame = frame.f_back
    return fallback


Before = Callable[[Operation], int]
Lies = Callable[[Operation], bool]


def honest(operation: Operation) -> bool:
    """A disk that lies about nothing."""
    return False


# What SQLite's own VFS makes of an error of the system; a write that finds no room is SQLITE_FULL.
_SQLITE_ERRORS = {
    "write": sqlite_vfs.WRITE_FAILED,
    "sync": sqlite_vfs.SYNC_FAILED,
    "sync_directory": sqlite_vfs.SYNC_FAILED,
    "cut": sqlite_vfs.TRUNCATE_FAILED,
    "create": sqlite_vfs.CANNOT_OPEN,
    "remove": sqlite_vfs.DELETE_FAILED,
}


class RecordedDisk:
    """Implements `FileLayer` and `sqlite_vfs.Watcher` over the system's files below `root`."""

    def __init__(self, root: Path, before: Before = lambda operation: 0, lies: Lies = honest) -> None:
        self.root = root
        self.before = before
        self.lies = lies
        self.log: list[Operation] = []
        self.active = True
        self._system: FileLayer = SystemFiles()

    def _name(self, path: Path) -> str | None:
        """Return the path below the root, or None for what is not recorded."""
        # Of the ballast nothing is ever read.
        if not self.active or not path.is_relative_to(self.root) or path.name == BALLAST_FILE:
            return None
        return str(path.relative_to(self.root))

    def ask(self, operation: Operation) -> int:
        """Return the error number that is to happen instead; 0: none, and the operation is in the log."""
        code = self.before(operation)
        if code == 0 and not self.lies(operation):
            self.log.append(operation)
        return code

    def _note(self, kind: str, path: Path, *, offset: int = 0, data: bytes = b"", target: Path | None = None) -> None:
        name = self._name(path)
        if name is None:
            return
        goal = str(target.relative_to(self.root)) if target is not None else ""
        code = self.ask(Operation(kind, name, call_site(), "files", offset, data, goal))
        if code:
            raise OSError(code, os.strerror(code), str(path))

    # FileLayer

    def create(self, path: Path, mode: int) -> OpenFile:
        self._note("create", path)
        return _RecordedFile(self, path, 0, self._system.create(path, mode))

    def open_at(self, path: Path, start: int) -> OpenFile:
        if not path.exists():
            self._note("create", path)
        elif path.stat().st_size != start:
            self._note("cut", path, offset=start)
        return _RecordedFile(self, path, start, self._system.open_at(path, start))

    def allocate(self, path: Path, size: int) -> None:
        if not path.exists():
            self._note("create", path)
        self._note("cut", path, offset=size)
        self._system.allocate(path, size)

    def make_folder(self, path: Path) -> None:
        self._note("make_folder", path)
        self._system.make_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename", old, target=new)
        self._system.rename(old, new)

    def remove(self, path: Path) -> None:
        if path.exists():
            self._note("remove", path)
        self._system.remove(path)

    def sync_directory(self, path: Path) -> None:
        self._note("sync_directory", path)
        self._system.sync_directory(path)

    # sqlite_vfs.Watcher

    def _tell(self, kind: str, path: Path, offset: int = 0, data: bytes = b"") -> int:
        name = self._name(path)
        if name is None:
            return 0
        code = self.ask(Operation(kind, name, call_site(), "sqlite", offset, data))
        if code == errno.ENOSPC and kind == "write":
            return sqlite_vfs.FULL
        return _SQLITE_ERRORS[kind] if code else 0

    def created(self, path: Path) -> int:
        return self._tell("create", path)

    def written(self, path: Path, offset: int, data: bytes) -> int:
        return self._tell("write", path, offset, data)

    def cut(self, path: Path, size: int) -> int:
        return self._tell("cut", path, size)

    def synced(self, path: Path, with_name: bool) -> int:
        code = self._tell("sync", path)
        return code or (self._tell("sync_directory", path.parent) if with_name else 0)

    def deleted(self, path: Path, synced: bool) -> int:
        code = self._tell("remove", path)
        return code or (self._tell("sync_directory", path.parent) if synced else 0)


class _RecordedFile:
    def __init__(self, disk: RecordedDisk, path: Path, start: int, file: OpenFile) -> None:
        self._disk, self._path, self._place, self._file = disk, path, start, file

    def write(self, data: bytes) -> None:
        self._disk._note("write", self._path, offset=self._place, data=bytes(data))
        self._file.write(data)
        self._place += len(data)

    def sync(self) -> None:
        self._disk._note("sync", self._path)
        self._file.sync()

    def close(self) -> None:
        self._file.close()


@contextmanager
def recording(root: Path, before: Before = lambda operation: 0, lies: Lies = honest) -> Iterator[RecordedDisk]:
    """Record what is done below `root`, which is there, until the block ends."""
    disk = RecordedDisk(root, before, lies)
    with files.use(disk), sqlite_vfs.watching(disk):
        yield disk
        disk.active = False


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below `root`, without what no restart reads: SQLite's shared-memory index, the ballast."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.endswith("-shm") and path.name != BALLAST_FILE
    }
