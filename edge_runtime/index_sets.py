"""The public index sets on this device, HOME/index_sets/SHA256.efi: what `shared` plans write to (`wire_contract`).

The rules:
- a plan names a set by hash; a file gets its name only after size and hash agree, so the broker, the HTTP side and a
  cache between are not believed;
- the two newest stay: the one of a training that goes on another night, and the next task's;
- a file that has rotted since counts as not here, and is fetched again;
- this module imports no numpy: a set is read when a training begins (`training_task`), not before.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_runtime.adapters.files import remove, write_atomically
from edge_runtime.model_slots import VersionRefused
from wire_contract.messages import MAX_INDEX_SET_BYTES

KEPT_SETS: Final = 2
FOLDER: Final = "index_sets"
SUFFIX: Final = ".efi"

Fetch = Callable[[str, int], bytes]


def read(home: Path, sha256: str) -> bytes | None:
    """Return a set's file if it is here and hashes to its name."""
    path = home / FOLDER / f"{sha256}{SUFFIX}"
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def ensure(home: Path, sha256: str, fetch: Fetch) -> None:
    """Have the set of this hash on the disk, fetching it if need be.

    `fetch` takes a path and the most bytes that may come (`ModelSlots.fetch`). Raises what it does, `VersionRefused`
    where the bytes are others, `StorageFull`.
    """
    if read(home, sha256) is not None:
        return
    data = fetch(f"/v1/index-sets/{sha256}", MAX_INDEX_SET_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise VersionRefused("index_set_hash", f"the index set hashes to {digest[:16]}..., the plan says {sha256[:16]}")
    path = home / FOLDER / f"{sha256}{SUFFIX}"
    write_atomically(path, data)
    others = (other for other in path.parent.glob(f"*{SUFFIX}") if other != path)
    for old in sorted(others, key=lambda other: other.stat().st_mtime)[: 1 - KEPT_SETS]:
        remove(old)
