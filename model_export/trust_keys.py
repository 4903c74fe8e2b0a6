"""The folder of a key ceremony: holders' private keys, the public metadata, and the files that `targets` names.

    holder-1/root-1.pem       the key that version 1 of the root brought; mode 0600, never overwritten. Each holder
    holder-1/targets-1.pem    takes their own folder away; what is signed later finds the keys that are at hand
    holder-1/offline-1.pem
    metadata/1.root.json      public: this is what travels between holders, and what the service imports
    metadata/1.targets.json
    metadata/1.offline.json
    targets/templates/...     public: the files that `targets` names, by the hash of their content

The rules: a key is never overwritten; metadata are written beside their name, flushed and renamed; a next version is
made only of one that enough holders have signed.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from model_export import trust_metadata as meta
from model_export.signing_key import create_key, load_key
from model_export.trust_metadata import BadMetadata, PublicKey, Standing
from wire_contract import trust_roles as roles

_METADATA_FILE = re.compile(r"([1-9]\d{0,8})\.(root|targets|offline)\.json")
MAX_VERSIONS = 4096


@dataclass(frozen=True, slots=True)
class Ceremony:
    """The folder. Reading checks no signature: `standing` says what counts."""

    folder: Path

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    def exists(self) -> bool:
        """Whether there is a first root."""
        return (self.metadata / "1.root.json").exists()

    def newest(self, role: str) -> bytes:
        """Return the role's metadata of the highest version. Raises `BadMetadata` where there are none."""
        found = versions(self.metadata, role)
        if not found:
            raise BadMetadata(f"{self.metadata} holds no {role} metadata: see model-export keys init")
        return _read(self.metadata / f"{found[-1]}.{role}.json", role)

    def roots(self) -> list[bytes]:
        """Return every root, from version 1. Raises `BadMetadata` where one is missing."""
        found = versions(self.metadata, roles.ROOT)
        if found != list(range(1, len(found) + 1)) or not found:
            raise BadMetadata(f"{self.metadata} holds every root from 1.root.json on, got versions {found}")
        return [_read(self.metadata / f"{version}.root.json", roles.ROOT) for version in found]

    def authorities(self, role: str) -> list[bytes]:
        """Return the metadata that name who signs the newest of `role`."""
        return authorities(self.metadata, role, versions(self.metadata, role)[-1])

    def standing(self, role: str) -> Standing:
        """Return how far the newest metadata of a role are signed."""
        return meta.standing(self.newest(role), role, self.authorities(role))

    def check_complete(self, role: str) -> bytes:
        """Return the role's newest metadata. Raises `BadMetadata` where a threshold is not reached yet."""
        found = self.standing(role)
        if not found.complete:
            raise BadMetadata(f"{found.told()}: finish it first, with model-export keys sign")
        return self.newest(role)

    def keys_at_hand(self) -> list[Ed25519PrivateKey]:
        """Return the private keys that lie in the holders' folders here. Raises `signing_key.BadKey`."""
        return [load_key(path) for path in sorted(self.folder.glob("holder-*/*.pem"))]

    def make_key(self, role: str, holder: int, version: int) -> PublicKey:
        """Return a holder's new key for a role, which `version` of the metadata will name; made unless it is there.

        It is there if an earlier attempt ended before its metadata were written. Raises `signing_key.BadKey`.
        """
        place = self.folder / f"holder-{holder}"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = place / f"{role}-{version}.pem"
        return PublicKey.of(load_key(path) if path.exists() else create_key(path), holder)

    def store(self, role: str, data: bytes) -> Standing:
        """Sign metadata with the keys at hand, write them as a new file, and return how far they are signed."""
        version = meta.version_of(data, role)
        path = self.metadata / f"{version}.{role}.json"
        if path.exists():
            raise FileExistsError(f"{path} exists already and is never overwritten")
        # A root is one of its own authorities, and is not on disk yet.
        named = [data] if role == roles.ROOT and version == 1 else authorities(self.metadata, role, version, data)
        signed = meta.sign(data, role, self.keys_at_hand(), named)
        write_whole(path, signed)
        return meta.standing(signed, role, named)

    def put_target(self, path: str, content: bytes) -> None:
        """Keep a file that metadata name at `path`."""
        name = Path(path)
        write_whole(self.folder / "targets" / name.parent / f"{_sha256(content)}.{name.name}", content)


def versions(folder: Path, role: str) -> list[int]:
    """Return the versions of a role's metadata in a folder, rising. Raises `BadMetadata` for more than 4,096."""
    if not folder.is_dir():
        return []
    found = [m for path in folder.iterdir() if (m := _METADATA_FILE.fullmatch(path.name)) and m[2] == role]
    if len(found) > MAX_VERSIONS:
        raise BadMetadata(f"{folder} holds at most {MAX_VERSIONS} versions of a role, got {len(found)}")
    return sorted(int(match[1]) for match in found)


def authorities(folder: Path, role: str, version: int, data: bytes = b"") -> list[bytes]:
    """Return the metadata in `folder` that name who signs `version` of `role`: for a root the one before and itself.

    `data`: the root itself, where it is not written yet.
    """
    if role == roles.ROOT:
        itself = data or _read(folder / f"{version}.root.json", role)
        return [itself] if version == 1 else [_read(folder / f"{version - 1}.root.json", role), itself]
    above = meta.NAMED_BY[role]
    found = versions(folder, above)
    if not found:
        raise BadMetadata(f"{folder} holds no {above} metadata, which name the keys of {role}")
    return [_read(folder / f"{found[-1]}.{above}.json", above)]


def name_of(path: Path) -> tuple[str, int]:
    """Return role and version of a metadata file by its name. Raises `BadMetadata`."""
    match = _METADATA_FILE.fullmatch(path.name)
    if match is None:
        raise BadMetadata(f"a metadata file is named like 2.root.json, 3.targets.json or 1.offline.json: {path.name}")
    return match[2], int(match[1])


def add_signature(path: Path, key: Ed25519PrivateKey) -> Standing:
    """Add one holder's signature to a metadata file and return how far it is signed.

    The metadata that name the role's keys lie beside it. Raises `BadMetadata` for a key that they do not name.
    """
    role, version = name_of(path)
    data = _read(path, role)
    if meta.version_of(data, role) != version:
        raise BadMetadata(f"{path.name} holds the version of its name, got {meta.version_of(data, role)}")
    named = authorities(path.parent, role, version)
    if PublicKey.of(key).id not in {each.id for authority in named for each in meta.quorum_of(authority, role).keys}:
        raise BadMetadata(f"the key {PublicKey.of(key).id[:8]} is no key of the role {role}, and signs nothing of it")
    signed = meta.sign(data, role, [key], named)
    write_whole(path, signed)
    return meta.standing(signed, role, named)


def at_hand(keys: Sequence[Ed25519PrivateKey], wanted: PublicKey) -> bool:
    """Whether the private half of `wanted` is among `keys`."""
    return any(PublicKey.of(key).data == wanted.data for key in keys)


def write_whole(path: Path, data: bytes) -> None:
    """Write a public file so that it is there whole or not at all, after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path, role: str) -> bytes:
    limit = meta.LIMITS[role]
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as e:
        raise BadMetadata(f"{path}: no such metadata") from e
    if len(data) > limit:
        raise BadMetadata(f"{path.name} has at most {limit} bytes")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parse_public(text: str) -> bytes:
    """Return the 32 bytes of a public key written as 64 hex digits. Raises `BadMetadata`."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise BadMetadata(f"a public key is 64 hex digits, got {text.strip()[:70]!r}")
    return key
