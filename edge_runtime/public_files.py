"""The public files that plans name, on this device: HOME/index_sets/SHA256.efi, HOME/bases/SHA256.efb.

The rules:
- a plan names a file by hash; it gets its name here only after size and hash agree, so the broker, the HTTP side and a
  cache between are not believed;
- the two newest of a kind stay: the one of a training that goes on another night, and the next task's;
- a file that has rotted since counts as not here, and is fetched again;
- this module imports no numpy: a file is read when a training begins (`training_task`), not before.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_runtime.adapters.files import remove, write_atomically
from edge_runtime.model_slots import VersionRefused
from wire_contract.messages import MAX_BASIS_BYTES, MAX_INDEX_SET_BYTES, CodecPlan

KEPT_OF_A_KIND: Final = 2

Fetch = Callable[[str, int], bytes]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a plan can name: the word for it, where it lies here and on the HTTP side, and its refusal's name."""

    word: str
    folder: str
    suffix: str
    url: str
    limit_bytes: int
    refusal: str

    def path(self, home: Path, sha256: str) -> Path:
        """Where the file of this hash lies."""
        return home / self.folder / f"{sha256}{self.suffix}"


INDEX_SET: Final = Kind("index set", "index_sets", ".efi", "/v1/index-sets", MAX_INDEX_SET_BYTES, "index_set_hash")
BASIS: Final = Kind("basis", "bases", ".efb", "/v1/bases", MAX_BASIS_BYTES, "basis_hash")


def named(plan: CodecPlan) -> Iterator[tuple[Kind, str]]:
    """Yield what this plan needs: kind and hash."""
    if plan.mode == "shared":
        yield INDEX_SET, plan.index_set
    if plan.basis:
        yield BASIS, plan.basis


def read(home: Path, kind: Kind, sha256: str) -> bytes | None:
    """Return a file's bytes if it is here and hashes to its name."""
    try:
        data = kind.path(home, sha256).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def ensure(home: Path, kind: Kind, sha256: str, fetch: Fetch) -> None:
    """Have the file of this hash on the disk, fetching it if need be.

    `fetch` takes a path and the most bytes that may come (`ModelSlots.fetch`). Raises what it does, `VersionRefused`
    where the bytes are others, `StorageFull`.
    """
    if read(home, kind, sha256) is not None:
        return
    data = fetch(f"{kind.url}/{sha256}", kind.limit_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise VersionRefused(kind.refusal, f"the {kind.word} hashes to {digest[:16]}..., the plan says {sha256[:16]}")
    path = kind.path(home, sha256)
    write_atomically(path, data)
    others = (other for other in path.parent.glob(f"*{kind.suffix}") if other != path)
    for old in sorted(others, key=lambda other: other.stat().st_mtime)[: 1 - KEPT_OF_A_KIND]:
        remove(old)
