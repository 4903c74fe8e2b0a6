"""A training that was stopped between two steps, HOME/checkpoint.npz: one at most, for one lease.

Written whole (see `files`); a file of another lease, or one that cannot be read, counts as none: the same seed trains
the same again. It holds the person's rows, so it is private, and `edge-runtime forget` deletes it.
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from edge_runtime.adapters.files import remove, write_atomically
from edge_runtime.local_training import Checkpoint

CHECKPOINT_FILE = "checkpoint.npz"


def save(home: Path, lease: str, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint. Raises `StorageFull` or `StorageFailed`; the one before stays then."""
    buffer = io.BytesIO()
    weights = {f"packed/{name}": value for name, value in checkpoint.packed.items()}
    progress = np.array([checkpoint.steps, checkpoint.loss_before, checkpoint.loss_after], dtype=np.float64)
    np.savez(buffer, lease=np.array(lease), rows=checkpoint.rows, progress=progress, **weights)  # type: ignore[arg-type]
    write_atomically(home / CHECKPOINT_FILE, buffer.getvalue(), mode=0o600)


def load(home: Path, lease: str) -> Checkpoint | None:
    """Return the lease's checkpoint, or None."""
    try:
        with np.load(home / CHECKPOINT_FILE, allow_pickle=False) as arrays:
            if str(arrays["lease"]) != lease:
                return None
            steps, before, after = (float(value) for value in arrays["progress"])
            packed = {name.removeprefix("packed/"): arrays[name] for name in arrays.files if name.startswith("packed/")}
            return Checkpoint(packed, arrays["rows"].astype(np.int32), int(steps), before, after)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def drop(home: Path) -> None:
    """Delete the checkpoint, if there is one."""
    remove(home / CHECKPOINT_FILE)
