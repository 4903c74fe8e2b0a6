"""What SQLite does to the disk, seen and failed one operation at a time: a VFS over SQLite's own, by ctypes.

While `watching` is open, databases that are opened tell a `Watcher` of every write, truncation, sync, creation and
deletion before it happens; an answer other than 0 is the SQLite error that happens instead. Files without a name
(VACUUM's scratch) and the shared-memory index, which no restart reads, are left out.

The names and the order of the fields are those of sqlite3.h: https://www.sqlite.org/c3ref/vfs.html and io_methods.html.
"""

import _sqlite3
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, Protocol

FULL, CANNOT_OPEN, WRITE_FAILED, SYNC_FAILED, TRUNCATE_FAILED, DELETE_FAILED = 13, 14, 778, 1034, 1546, 2570
_OPEN_MAIN_JOURNAL, _OPEN_WAL, _OPEN_CREATE = 0x800, 0x80000, 0x4


class Watcher(Protocol):
    """Told before SQLite does it; returns 0 to let it happen."""

    def created(self, path: Path) -> int:
        """A new file is about to be made."""

    def written(self, path: Path, offset: int, data: bytes) -> int:
        """Bytes are about to be written."""

    def cut(self, path: Path, size: int) -> int:
        """The file is about to be cut to `size` bytes."""

    def synced(self, path: Path, with_name: bool) -> int:
        """The file is about to be synced, and if `with_name`, its directory too."""

    def deleted(self, path: Path, synced: bool) -> int:
        """The file is about to be deleted, and if `synced`, its directory to be synced."""


_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_Close = CFUNCTYPE(c_int, c_void_p)
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_Delete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)


class _Methods(Structure):
    _fields_ = [
        ("version", c_int), ("close", _Close), ("read", c_void_p), ("write", _Write), ("truncate", _Truncate),
        ("sync", _Sync), ("others", c_void_p * 12),
    ]  # fmt: skip


class _Vfs(Structure):
    _fields_ = [
        ("version", c_int), ("file_size", c_int), ("longest_path", c_int), ("next", c_void_p), ("name", c_char_p),
        ("data", c_void_p), ("open", _Open), ("delete", _Delete), ("others", c_void_p * 14),
    ]  # fmt: skip


class _File(Structure):
    _fields_ = [("methods", POINTER(_Methods))]


def library() -> Any:
    """Return the SQLite that Python uses. Raises `AttributeError` where its symbols are hidden."""
    found = ctypes.CDLL(_sqlite3.__file__)
    found.sqlite3_vfs_find.restype = POINTER(_Vfs)
    found.sqlite3_vfs_register.argtypes = [POINTER(_Vfs), c_int]
    found.sqlite3_vfs_unregister.argtypes = [POINTER(_Vfs)]
    return found


class _Watching:
    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.library = library()
        self.base = self.library.sqlite3_vfs_find(None).contents
        self.paths: dict[int, tuple[Path, bool]] = {}
        self.tables: dict[int, tuple[_Methods, _Methods]] = {}
        self.of_file: dict[int, _Methods] = {}
        self.vfs = _Vfs.from_buffer_copy(self.base)
        self.vfs.name, self.vfs.next = b"watching", None
        self.vfs.open, self.vfs.delete = _Open(self.open), _Delete(self.delete)

    def let_go(self) -> None:
        """Give what is still open back to SQLite's own VFS: it may be closed when no Python can be called any more."""
        for file, theirs in self.of_file.items():
            ctypes.cast(file, POINTER(_File)).contents.methods = ctypes.pointer(theirs)
        self.vfs.open, self.vfs.delete = self.base.open, self.base.delete
        # A connection that is still open points to the structure.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def open(self, vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = Path(ctypes.string_at(name).decode()) if name else None
        fresh = path is not None and bool(flags & _OPEN_CREATE) and not path.exists()
        if fresh and path is not None and (code := self.watcher.created(path)):
            ctypes.cast(file, POINTER(_File)).contents.methods = POINTER(_Methods)()
            return code
        code = int(self.base.open(vfs, name, file, flags, out))
        if code == 0 and path is not None:
            held = ctypes.cast(file, POINTER(_File)).contents
            address = ctypes.addressof(held.methods.contents)
            if address not in self.tables:
                self.tables[address] = (self.ours(held.methods.contents), held.methods.contents)
            ours, theirs = self.tables[address]
            self.paths[file] = (path, fresh and bool(flags & (_OPEN_MAIN_JOURNAL | _OPEN_WAL)))
            self.of_file[file] = theirs
            held.methods = ctypes.pointer(ours)
        return code

    def ours(self, theirs: _Methods) -> _Methods:
        table = _Methods.from_buffer_copy(theirs)
        table.close, table.write = _Close(self.close), _Write(self.write)
        table.truncate, table.sync = _Truncate(self.truncate), _Sync(self.sync)
        return table

    def close(self, file: int) -> int:
        self.paths.pop(file)
        return int(self.of_file.pop(file).close(file))

    def write(self, file: int, data: int, count: int, offset: int) -> int:
        code = self.watcher.written(self.paths[file][0], offset, ctypes.string_at(data, count))
        return code or int(self.of_file[file].write(file, data, count, offset))

    def truncate(self, file: int, size: int) -> int:
        return self.watcher.cut(self.paths[file][0], size) or int(self.of_file[file].truncate(file, size))

    def sync(self, file: int, flags: int) -> int:
        path, with_name = self.paths[file]
        code = self.watcher.synced(path, with_name) or int(self.of_file[file].sync(file, flags))
        if code == 0:
            # SQLite syncs the directory with the first sync of a log or journal that it made.
            self.paths[file] = (path, False)
        return code

    def delete(self, vfs: int, name: int, sync_directory: int) -> int:
        path = Path(ctypes.string_at(name).decode())
        if path.exists() and (code := self.watcher.deleted(path, bool(sync_directory))):
            return code
        return int(self.base.delete(vfs, name, sync_directory))


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the databases that are opened in the block; close them before it ends."""
    seen = _Watching(watcher)
    seen.library.sqlite3_vfs_register(ctypes.byref(seen.vfs), 1)
    try:
        yield
    finally:
        seen.library.sqlite3_vfs_unregister(ctypes.byref(seen.vfs))
        seen.let_go()
