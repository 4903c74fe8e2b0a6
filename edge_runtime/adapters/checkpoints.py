"""A training that was stopped between two steps, HOME/checkpoint.npz: one at most, for one lease.

The rules:
- the file is written whole (see `files`): arrays as `numpy.savez` writes them, then the SHA-256 of those bytes;
- a file of another lease, or one whose bytes are not those that were written, counts as none: the same seed trains the
  same again;
- it holds the person's rows, so it is private, and `edge-runtime forget` deletes it.
numpy is loaded when a checkpoint is written or read, so that an idle agent stays small.
"""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.adapters.files import remove, write_atomically

if TYPE_CHECKING:
    from edge_runtime.local_training import Checkpoint

CHECKPOINT_FILE = "checkpoint.npz"
DIGEST_BYTES = 32


def save(home: Path, lease: str, checkpoint: "Checkpoint") -> None:
    """Keep a checkpoint. Raises `StorageFull` or `StorageFailed`; the one before stays then."""
    import numpy as np

    buffer = io.BytesIO()
    weights = {f"packed/{name}": value for name, value in checkpoint.packed.items()}
    progress = np.array([checkpoint.steps, checkpoint.loss_before, checkpoint.loss_after], dtype=np.float64)
    np.savez(buffer, lease=np.array(lease), rows=checkpoint.rows, progress=progress, **weights)  # type: ignore[arg-type]
    data = buffer.getvalue()
    write_atomically(home / CHECKPOINT_FILE, data + hashlib.sha256(data).digest(), mode=0o600)


def load(home: Path, lease: str) -> "Checkpoint | None":
    """Return the lease's checkpoint, or None."""
    import numpy as np

    from edge_runtime.local_training import Checkpoint

    try:
        stored = (home / CHECKPOINT_FILE).read_bytes()
    except OSError:
        return None
    data, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
    # The zip format has more ways to be broken than a reader has exceptions; what has this digest was written above.
    if hashlib.sha256(data).digest() != digest:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if str(arrays["lease"]) != lease:
            return None
        steps, before, after = (float(value) for value in arrays["progress"])
        packed = {name.removeprefix("packed/"): arrays[name] for name in arrays.files if name.startswith("packed/")}
        return Checkpoint(packed, arrays["rows"].astype(np.int32), int(steps), before, after)


def drop(home: Path) -> None:
    """Delete the checkpoint, if there is one."""
    remove(home / CHECKPOINT_FILE)
