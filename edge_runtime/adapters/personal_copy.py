"""The person's own int8 copy on disk: HOME/personal/copy-SHA256.tflite, named by the version that it was tuned from.

The copy is that version's file with other weights patched in, written whole; made of another version, it counts as
none. Its name says what it was made of, so that a power cut leaves the old copy or the new one, and never one under
another version's name. `edge-runtime forget` deletes it, and everything else in HOME/personal.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.adapters import personal_records
from edge_runtime.adapters.files import remove_durably, write_atomically
from edge_runtime.model_slots import Held
from edge_runtime.ports import StorageFailed

if TYPE_CHECKING:
    from wire_contract.layout import Tensors

# The last two are an earlier release's.
_COPY = re.compile(r"copy-([0-9a-f]{64})\.tflite|copy\.tflite|base")


def _path(home: Path, base_sha256: str) -> Path:
    return home / personal_records.FOLDER / f"copy-{base_sha256}.tflite"


def _copies(home: Path) -> list[Path]:
    try:
        paths = list((home / personal_records.FOLDER).iterdir())
    except FileNotFoundError:
        return []
    except OSError as e:
        raise StorageFailed(f"{home / personal_records.FOLDER} cannot be read: {e}") from e
    return [path for path in paths if _COPY.fullmatch(path.name)]


def write(home: Path, held: Held, tensors: "Tensors", keep: Collection[str] = ()) -> bytes:
    """Patch `tensors` into the version `held` and keep the file; return its bytes.

    `keep` are hashes of versions whose copies stay beside it: the one before a version on trial may come back.

    Whoever writes beside other processes does so in a transaction (see `personal_records`). Raises `StorageFull`,
    `StorageFailed`, `Malformed`.
    """
    # Here and not above: the supervisor deletes copies and has no need of numpy.
    from wire_contract.patch import patch

    data = patch(held.data, held.manifest, tensors)
    path = _path(home, held.manifest.sha256)
    write_atomically(path, data, mode=0o600)
    kept = {path, *(_path(home, sha256) for sha256 in keep if sha256)}
    remove_durably(*(other for other in _copies(home) if other not in kept))
    return data


def base_of(home: Path) -> str:
    """Return the hash of the version that the copy here was made of; empty if there is no copy."""
    try:
        # Two are there if the power went while one took the other's place.
        named = sorted((path.stat().st_mtime, path.name) for path in _copies(home))
    except (OSError, StorageFailed):
        return ""
    bases = [match[1] for _, name in named if (match := _COPY.fullmatch(name)) and match[1]]
    return bases[-1] if bases else ""


def read(home: Path, base_sha256: str) -> bytes | None:
    """Return the copy that was made of this version, or None."""
    try:
        return _path(home, base_sha256).read_bytes()
    except OSError:
        return None


def drop(home: Path) -> None:
    """Delete the copy alone: it is of no use any more. Raises `StorageFailed`."""
    remove_durably(*_copies(home))


def forget(home: Path) -> None:
    """Delete the copy and all else that was made of the person's text for their suggestions. Raises `StorageFailed`."""
    personal_records.forget(home)
