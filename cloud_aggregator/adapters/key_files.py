"""The aggregator's keys on disk: raw 32-byte files, mode 0600, made once.

A key file is never overwritten: a new signing key would lock every enrolled device out. The keys of the signed
repository's online roles lie in `trust/`, several of a role if one is to follow another: the metadata say which counts.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloud_aggregator.errors import NotFound, Refused, StorageFailed
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.ports import Entropy
from wire_contract.envelope import public_bytes
from wire_contract.trust_roles import ONLINE_ROLES

FILES = ("aggregator.key", "sealing.key", "service.seed")
ONLINE_FOLDER = "trust"
_ONLINE_FILE = re.compile(r"(snapshot|timestamp|refreshes)-([1-9]\d{0,3})\.key")


def make_keys(folder: Path, entropy: Entropy) -> ServiceKeys:
    """Draw the three secrets from `entropy` into `folder`. Raises `Refused` if one is there already."""
    for name in FILES:
        write_secret(folder / name, entropy(32))
    return load_keys(folder)


def load_keys(folder: Path) -> ServiceKeys:
    """Read the secrets. Raises `NotFound` before `init`, `Refused` where others may read them or they are cut."""
    signing, sealing, seed = (_read_secret(folder / name) for name in FILES)
    return ServiceKeys(
        Ed25519PrivateKey.from_private_bytes(signing),
        X25519PrivateKey.from_private_bytes(sealing),
        seed,
        OnlineKeyFiles(folder / ONLINE_FOLDER),
    )


@dataclass(frozen=True, slots=True)
class OnlineKeyFiles:
    """`online_keys.OnlineKeys` in a folder, read when a key is looked for: a new one counts without a restart."""

    folder: Path

    def find(self, public_keys: Sequence[bytes]) -> Ed25519PrivateKey | None:
        for role in ONLINE_ROLES:
            for key in self._keys(role):
                if public_bytes(key) in public_keys:
                    return key
        return None

    def newest(self, role: str) -> Ed25519PrivateKey | None:
        """Return the key of a role that was made last."""
        keys = self._keys(role)
        return keys[-1] if keys else None

    def make(self, role: str, entropy: Entropy) -> Ed25519PrivateKey:
        """Make a role's next key. Raises `StorageFailed`."""
        write_secret(self.folder / f"{role}-{max(self._numbers(role), default=0) + 1}.key", entropy(32))
        return self._keys(role)[-1]

    def _keys(self, role: str) -> list[Ed25519PrivateKey]:
        paths = [self.folder / f"{role}-{number}.key" for number in self._numbers(role)]
        return [Ed25519PrivateKey.from_private_bytes(_read_secret(path)) for path in paths]

    def _numbers(self, role: str) -> list[int]:
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StorageFailed(f"{self.folder}: cannot be read: {e}") from e
        found = [match for name in names if (match := _ONLINE_FILE.fullmatch(name)) and match[1] == role]
        return sorted(int(match[2]) for match in found)


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that only its owner reads. Raises `Refused` if it exists."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as e:
        raise Refused(f"{path} exists already and is never overwritten") from e
    except OSError as e:
        raise StorageFailed(f"{path}: cannot be written: {e}") from e


def _read_secret(path: Path) -> bytes:
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError as e:
        raise NotFound(f"{path}: no such key") from e
    except OSError as e:
        raise StorageFailed(f"{path}: cannot be read: {e}") from e
    if mode & 0o077:
        raise Refused(f"{path} may be read by its owner only, its mode is {mode & 0o777:o}", f"chmod 600 {path}")
    if len(data) != 32:
        raise Refused(f"{path} holds 32 bytes, got {len(data)}")
    return data
