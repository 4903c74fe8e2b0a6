"""Every state that a power cut may leave on a disk, from the log of what was done to it. Pure.

The model is the one of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014) for a file system
that keeps what POSIX promises and little more:
- what a `sync` of a file covered is there: its bytes and its length, but not its name;
- a name that was made, changed or deleted is so for sure only after a `sync_directory` of its directory; until then
  each such change may have happened or not, in any order, each of them whole: a rename shows the old or the new name;
- of the writes to a file since its last sync each may have happened or not, in any order, and each may be torn; a file
  may have its new length and zeros where the bytes have not come (delayed allocation);
- a directory that was made is there only after its parent was synced.

All subsets would be too many, so of what is pending these are taken: all; none; each one alone; all but each one; every
prefix; the last write torn in five places; zeros in place of each file's unsynced bytes; and these for the bytes with
all names and with none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

Tree = dict[str, bytes]
"""Files by path. A directory without a file in it is not told apart from none: every writer makes it anew."""

SECTOR = 512


@dataclass
class _Inode:
    """A file's bytes on the disk, and what was done to it since: ("write", offset, data) or ("cut", size, b"")."""

    durable: bytes = b""
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)

    def bytes_after(self, steps: Iterable[tuple[str, int, bytes]]) -> bytes:
        data = bytearray(self.durable)
        for kind, offset, written in steps:
            if kind == "cut":
                del data[offset:]
                data.extend(bytes(offset - len(data)))
            else:
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(written)] = written
        return bytes(data)


@dataclass(frozen=True)
class _Change:
    """One change of names in one directory: `old` loses its name, `new` names `inode`."""

    folder: str
    old: str = ""
    new: str = ""
    inode: int = -1
    made_folder: bool = False


class Disk:
    """What is durable and what is pending after some operations; `apply` the next, ask for `states`."""

    def __init__(self) -> None:
        self._inodes: dict[int, _Inode] = {}
        self._names: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._folders: set[str] = {"."}
        self._changes: list[_Change] = []
        self._next = 0

    def apply(self, operation: Any) -> None:
        """Take one `recorded_disk.Operation` into account."""
        path, folder = operation.path, str(PurePosixPath(operation.path).parent)
        if operation.kind in ("write", "cut", "sync", "rename", "remove") and path not in self._now:
            raise ValueError(f"{path} was made past the layer: {operation.kind} by {operation.site}")
        match operation.kind:
            case "make_folder":
                if path not in self._folders and all(c.new != path for c in self._changes if c.made_folder):
                    self._changes.append(_Change(folder, new=path, made_folder=True))
            case "create":
                if path in self._now:
                    self._inodes[self._now[path]].pending.append(("cut", 0, b""))
                else:
                    self._inodes[self._next] = _Inode()
                    self._now[path] = self._next
                    self._changes.append(_Change(folder, new=path, inode=self._next))
                    self._next += 1
            case "write":
                self._inodes[self._now[path]].pending.append(("write", operation.offset, operation.data))
            case "cut":
                self._inodes[self._now[path]].pending.append(("cut", operation.offset, b""))
            case "sync":
                inode = self._inodes[self._now[path]]
                inode.durable, inode.pending = inode.bytes_after(inode.pending), []
            case "rename":
                number = self._now.pop(path)
                self._now[operation.target] = number
                self._changes.append(_Change(folder, old=path, new=operation.target, inode=number))
            case "remove":
                del self._now[path]
                self._changes.append(_Change(folder, old=path))
            case "sync_directory":
                self._name(self._names, self._folders, [c for c in self._changes if c.folder == path])
                self._changes = [c for c in self._changes if c.folder != path]
            case other:
                raise ValueError(f"an operation is one of a recorded disk's, got {other}")

    @staticmethod
    def _name(names: dict[str, int], folders: set[str], changes: Iterable[_Change]) -> None:
        for change in changes:
            if change.made_folder:
                folders.add(change.new)
                continue
            if change.old:
                names.pop(change.old, None)
            if change.new:
                names[change.new] = change.inode

    def now(self) -> Tree:
        """Return the files as a process sees them: everything pending done."""
        return {path: self._whole(number) for path, number in self._now.items()}

    def _whole(self, number: int) -> bytes:
        inode = self._inodes[number]
        return inode.bytes_after(inode.pending)

    def states(self) -> Iterator[tuple[str, Tree]]:
        """Yield (how it came about, files) of what a power cut at this moment may leave; each tree once."""
        seen: set[tuple[tuple[str, int], ...]] = set()
        for how, tree in self._all():
            key = tuple(sorted((path, hash(data)) for path, data in tree.items()))
            if key not in seen:
                seen.add(key)
                yield how, tree

    def _all(self) -> Iterator[tuple[str, Tree]]:
        named = list(_subsets(self._changes))
        for how, data in self._data():
            # With all names and with none; every choice of names with all bytes and with none.
            for which, changes in named if how in ("all bytes", "no bytes") else named[:2]:
                yield f"{how}, {which}", self._tree(changes, data)

    def _tree(self, changes: list[_Change], data: dict[int, bytes]) -> Tree:
        names, folders = dict(self._names), set(self._folders)
        self._name(names, folders, changes)
        return {
            path: data[number] if number in data else self._inodes[number].durable
            for path, number in names.items()
            if all(str(parent) in folders for parent in PurePosixPath(path).parents)
        }

    def _data(self) -> Iterator[tuple[str, dict[int, bytes]]]:
        dirty = {number: inode for number, inode in self._inodes.items() if inode.pending}
        whole = {number: self._whole(number) for number in dirty}
        yield "all bytes", whole
        yield "no bytes", {}
        for number, inode in dirty.items():
            others = {n: data for n, data in whole.items() if n != number}
            for how, steps in _subsets(inode.pending):
                yield f"{how} of one file", {**others, number: inode.bytes_after(steps)}
            zeros = [(kind, offset, bytes(len(data))) for kind, offset, data in inode.pending]
            yield "its length and zeros of one file", {**others, number: inode.bytes_after(zeros)}
            kind, offset, data = inode.pending[-1]
            if kind == "write":
                cuts = {1, len(data) // 2, len(data) - 1, len(data) // SECTOR * SECTOR, SECTOR}
                for cut in sorted(c for c in cuts if 0 < c < len(data)):
                    torn = [*inode.pending[:-1], (kind, offset, data[:cut])]
                    yield "a torn write of one file", {**others, number: inode.bytes_after(torn)}


def _subsets(pending: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    yield "all", pending
    yield "none", []
    for i in range(len(pending)):
        yield "all but one", pending[:i] + pending[i + 1 :]
        yield "one", [pending[i]]
        yield "a prefix", pending[:i]
