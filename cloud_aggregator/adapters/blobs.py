"""Model files and vocabularies on disk, named by their SHA-256.

Written to a temporary name, flushed, renamed, and the directory flushed too: after a power cut a file is there whole or
not at all.
"""

import errno
import hashlib
import os
import re
import tempfile
from pathlib import Path

from cloud_aggregator.errors import NotFound, StorageFailed, StorageFull

_NAME = re.compile(r"[0-9a-f]{64}")


class FileBlobs:
    """`ports.Blobs` in a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StorageFailed(f"{folder}: the blob directory cannot be made: {e}") from e

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        target = self._folder / sha256
        if target.exists():
            return sha256
        try:
            handle, name = tempfile.mkstemp(prefix=".new-", dir=self._folder)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.rename(target)
            finally:
                temporary.unlink(missing_ok=True)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as e:
            kind = StorageFull if e.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailed
            raise kind(f"{target}: {len(data)} bytes cannot be stored: {e}") from e
        return sha256

    def get(self, sha256: str) -> bytes:
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as e:
            raise StorageFailed(f"{path}: cannot be read: {e}") from e
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise StorageFailed(f"{path}: its bytes hash to {found}, the file was damaged")
        return data

    def path(self, sha256: str) -> Path:
        if not _NAME.fullmatch(sha256):
            raise NotFound(f"a blob's name is 64 lower-case hex digits, got {sha256[:80]!r}")
        path = self._folder / sha256
        if not path.is_file():
            raise NotFound(f"no blob {sha256}")
        return path

    def drop(self, sha256: str) -> None:
        try:
            self.path(sha256).unlink(missing_ok=True)
        except NotFound:
            return
        except OSError as e:
            raise StorageFailed(f"{self._folder / sha256}: cannot be deleted: {e}") from e
