"""The residual on disk, a file in HOME/vectors that a row of state.db names, and the kept vector's bytes.

The rules:
- a file is written whole (see `files`) under its own hash, then a transaction names it: a row never names half a file;
- what is in it is `edge_runtime.residual`'s;
- a residual belongs to one layout fingerprint; asked for under another, there is none;
- files that no row names are deleted after the transaction, and at the next sweep if the process died in between.
"""

import hashlib
import sqlite3
from pathlib import Path

import numpy as np

from edge_runtime import residual as residuals
from edge_runtime.adapters import vector_files
from edge_runtime.adapters.files import write_atomically
from edge_runtime.adapters.state_store import StateStore, translate
from edge_runtime.ports import StorageFailed
from edge_runtime.residual import Residual
from wire_contract.codec import SparseVector

RESIDUAL = "residual"
SUFFIX = ".efr"
_KEPT = np.dtype([("index", "<u4"), ("value", "<f8")])


def pack_kept(sent: SparseVector) -> bytes:
    """Return the bytes of what an update says, exactly as a decoder sees it, zeros left out; see `unpack_kept`."""
    says = sent.values != 0.0
    array = np.empty(int(np.count_nonzero(says)), dtype=_KEPT)
    array["index"] = sent.indices[says]
    array["value"] = sent.values[says]
    return array.tobytes()


def unpack_kept(data: bytes, size: int) -> SparseVector:
    """Return a kept vector of a model of `size` values. Raises `StorageFailed` if the bytes are none."""
    if len(data) % _KEPT.itemsize:
        raise StorageFailed(f"a kept vector has {_KEPT.itemsize} bytes a value, got {len(data)} bytes")
    array = np.frombuffer(data, dtype=_KEPT)
    if len(array) and int(array["index"].max()) >= size:
        raise StorageFailed(f"a kept vector's indices lie below {size}, got {int(array['index'].max())}")
    return SparseVector(size, array["index"].astype(np.int64), array["value"].astype(np.float64))


class Vectors:
    """Files under `folder`, names in `store`."""

    def __init__(self, folder: Path, store: StateStore) -> None:
        self._folder = folder
        self._store = store

    def write(self, residual: Residual) -> str:
        """Write a residual to a file of its own; return the name that a row may hold. Raises `StorageFull`."""
        data = residuals.pack(residual)
        name = hashlib.sha256(data).hexdigest()[:32] + SUFFIX
        if not (self._folder / name).exists():
            write_atomically(self._folder / name, data, mode=0o600)
        return name

    def read(self, name: str) -> Residual:
        """Return a file's residual. Raises `StorageFailed` if its bytes are not those that were written."""
        try:
            data = (self._folder / name).read_bytes()
        except OSError as e:
            raise StorageFailed(f"{self._folder / name} cannot be read: {e}") from e
        if hashlib.sha256(data).hexdigest()[:32] != name.removesuffix(SUFFIX):
            raise StorageFailed(f"{self._folder / name} does not hash to its name")
        return residuals.unpack(data)

    def residual(self, layout: str, size: int) -> Residual | None:
        """Return the residual of a layout, or None: none kept, another layout's, or its file broke."""
        try:
            row = self._store.connection.execute(
                "SELECT file FROM vector WHERE name = ? AND layout = ?", (RESIDUAL, layout)
            ).fetchone()
        except sqlite3.Error as e:
            raise translate(e, "the residual") from e
        if row is None:
            return None
        try:
            found = self.read(row[0])
        except StorageFailed:
            return None
        return found if len(found.vector) == size else None

    def name_residual(self, connection: sqlite3.Connection, file: str, layout: str) -> None:
        """Make `file` the residual, inside the caller's transaction."""
        connection.execute("INSERT OR REPLACE INTO vector VALUES (?, ?, ?)", (RESIDUAL, file, layout))

    def sweep(self) -> None:
        """Delete the files that no row names. Raises `StorageFailed` if one cannot be deleted."""
        vector_files.sweep(self._folder, self._store)
