"""HOME/ballast: room that is kept for the moment when the disk is full.

The rules:
- its blocks are allocated, not only its length: `posix_fallocate`;
- `release` gives the room back to the home's other files in one deletion, which itself needs none;
- `reserve` lays it out again only where there is room (`edge_runtime.room`), and never raises for want of it;
- nothing is ever read from it, so it needs no sync: if a power cut takes it, it is laid out again.
It helps on a disk that has blocks to give back; on a file system that copies on write (btrfs) a deletion may itself
need room, and what it does there was not measured.
"""

import os
from contextlib import suppress
from pathlib import Path

from edge_runtime import room
from edge_runtime.adapters import files
from edge_runtime.ports import StorageFailed, StorageFull

BALLAST_FILE = "ballast"


def free_bytes(home: Path) -> int:
    """Return how many bytes this user may still write there. Raises `StorageFailed`."""
    try:
        found = os.statvfs(home)
    except OSError as e:
        raise StorageFailed(f"the room at {home} cannot be told: {e}") from e
    return found.f_bavail * found.f_frsize


def held_bytes(home: Path) -> int:
    """Return how many bytes the ballast really takes; 0 if there is none."""
    try:
        return (home / BALLAST_FILE).stat().st_blocks * 512
    except OSError:
        return 0


def reserve(home: Path, size_bytes: int = room.BALLAST_BYTES, *, model_bytes: int = 0) -> bool:
    """Have the ballast lie there if there is room for it beside a training; return whether it does.

    Call it when the agent starts and after a night; 0 bytes: none is wanted, and an older one is deleted. Raises
    `StorageFailed` for a disk that is broken in another way than full.
    """
    if size_bytes <= 0:
        release(home)
        return False
    if held_bytes(home) >= size_bytes:
        return True
    if not room.enough_for_ballast(free_bytes(home), model_bytes, size_bytes):
        return False
    try:
        files.allocate(home / BALLAST_FILE, size_bytes)
    except StorageFull:
        # Somebody else was faster. A part of it would be of use, but then nobody could say how much is kept.
        with suppress(StorageFailed):
            release(home)
        return False
    return True


def release(home: Path) -> bool:
    """Give the room back; return whether there was any. Call it after `StorageFull`, then write the state again.

    Raises `StorageFailed`.
    """
    there = held_bytes(home) > 0
    files.remove(home / BALLAST_FILE)
    return there
