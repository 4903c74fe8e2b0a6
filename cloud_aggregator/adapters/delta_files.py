"""Deltas on disk, each named by the two files that it lies between: a cache, for each can be made again.

Written to a temporary name and renamed, so that a file is there whole or not at all; an empty file says that the pair's
delta would be no smaller than the version's file. Nothing is flushed: what a power cut damages does not hash to the
manifest's word on the device, which then takes the whole file.
"""

import os
import re
import tempfile
from pathlib import Path

from cloud_aggregator.deltas import Pair
from cloud_aggregator.errors import StorageFailed

_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})")


class DeltaFiles:
    """`ports.DeltaCache` in a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".new-*"):
                left.unlink()
        except OSError as e:
            raise StorageFailed(f"{folder}: the directory of deltas cannot be made: {e}") from e

    def path(self, pair: Pair) -> Path | None:
        path = self._folder / _name(pair)
        return path if path.is_file() else None

    def put(self, pair: Pair, data: bytes) -> Path:
        target = self._folder / _name(pair)
        try:
            # Whoever needs room may delete the directory beside a running service.
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".new-", dir=self._folder)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                temporary.chmod(0o644)
                temporary.rename(target)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as e:
            raise StorageFailed(f"{target}: {len(data)} bytes cannot be stored: {e}") from e
        return target

    def pairs(self) -> set[Pair]:
        found = (_NAME.fullmatch(path.name) for path in self._folder.glob("*"))
        return {Pair(match[1], match[2]) for match in found if match}

    def drop(self, pair: Pair) -> None:
        try:
            (self._folder / _name(pair)).unlink(missing_ok=True)
        except OSError as e:
            raise StorageFailed(f"{self._folder / _name(pair)}: cannot be deleted: {e}") from e


def _name(pair: Pair) -> str:
    name = f"{pair.base}-{pair.target}"
    if not _NAME.fullmatch(name):
        raise StorageFailed(f"a delta is named by two hashes of 64 hex digits, got {name[:140]!r}")
    return name
