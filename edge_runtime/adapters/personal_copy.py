"""The person's own int8 copy on disk: HOME/personal/copy.tflite, and the hash of the version that it was tuned from.

The copy is that version's file with other weights patched in, written whole; made of another version, it counts as
none. `edge-runtime forget` deletes it.
"""

from pathlib import Path

from edge_runtime.adapters.files import remove, write_atomically
from edge_runtime.model_slots import Held
from wire_contract.layout import Tensors
from wire_contract.patch import patch

COPY_FILE, BASE_FILE = "copy.tflite", "base"


def write(home: Path, held: Held, tensors: Tensors) -> bytes:
    """Patch `tensors` into the version `held` and keep the file; return its bytes.

    Raises `StorageFull`, `StorageFailed`, `Malformed`.
    """
    data = patch(held.data, held.manifest, tensors)
    folder = home / "personal"
    # In this order a power cut leaves no name, so no copy, rather than a copy under another version's name.
    remove(folder / BASE_FILE)
    write_atomically(folder / COPY_FILE, data, mode=0o600)
    write_atomically(folder / BASE_FILE, held.manifest.sha256.encode(), mode=0o600)
    return data


def read(home: Path, base_sha256: str) -> bytes | None:
    """Return the copy that was made of this version, or None."""
    try:
        if (home / "personal" / BASE_FILE).read_text() != base_sha256:
            return None
        return (home / "personal" / COPY_FILE).read_bytes()
    except OSError:
        return None


def forget(home: Path) -> None:
    """Delete the copy."""
    for name in (BASE_FILE, COPY_FILE):
        remove(home / "personal" / name)
