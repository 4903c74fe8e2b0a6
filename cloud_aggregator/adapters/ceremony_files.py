"""The folder of a key ceremony, as `model-export keys` leaves it: metadata and the files that `targets` names.

Only names of the known forms are read, each within its limit; a holder's folder that lies beside them is not looked
into. Nothing here is believed: `repository_import.accept` judges it.
"""

import re
from hashlib import sha256
from pathlib import Path
from typing import Final

from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.repository_import import Offered
from wire_contract import trust_roles as roles
from wire_contract.envelope import MAX_ENVELOPE_BYTES

MAX_FILES: Final = 4096
_METADATA = re.compile(r"([1-9]\d{0,8})\.(root|targets|offline)\.json")
_TEMPLATE = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}\.bin")


def read_ceremony(folder: Path) -> Offered:
    """Read every root, the newest `targets` and `offline`, and the files. Raises `NotFound` or `Refused`."""
    found: dict[str, dict[int, Path]] = {role: {} for role in roles.OFFLINE_ROLES}
    for path in _listed(folder / "metadata"):
        match = _METADATA.fullmatch(path.name)
        if match is not None:
            found[match[2]][int(match[1])] = path
    for role, versions in found.items():
        if not versions:
            raise NotFound(
                f"{folder / 'metadata'} holds no {role} metadata: is it the folder of model-export keys init?"
            )
    newest = {role: found[role][max(found[role])] for role in (roles.TARGETS, roles.OFFLINE)}
    templates = folder / "targets" / "templates"
    folders = [path for path in _listed(templates) if path.is_dir()] if templates.is_dir() else []
    paths = [path for folder in folders for path in _listed(folder) if _TEMPLATE.fullmatch(path.name)]
    contents = [_read(path, MAX_ENVELOPE_BYTES) for path in paths]
    return Offered(
        {version: _read(path, roles.MAX_ROOT_BYTES) for version, path in found[roles.ROOT].items()},
        _read(newest[roles.TARGETS], roles.MAX_METADATA_BYTES),
        _read(newest[roles.OFFLINE], roles.MAX_METADATA_BYTES),
        {sha256(content).hexdigest(): content for content in contents},
    )


def _listed(folder: Path) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as e:
        raise NotFound(f"{folder}: cannot be read: {e.strerror}") from e
    if len(paths) > MAX_FILES:
        raise Refused(f"{folder} holds at most {MAX_FILES} files, got {len(paths)}")
    return paths


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise NotFound(f"{path}: cannot be read: {e.strerror}") from e
    if len(data) > limit:
        raise Refused(f"{path} has at most {limit} bytes")
    return data
