"""The aggregator's keys on disk: raw 32-byte files, mode 0600, made once.

A key file is never overwritten: a new signing key would lock every enrolled device out.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloud_aggregator.errors import NotFound, Refused, StorageFailed
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.ports import Entropy

FILES = ("aggregator.key", "sealing.key", "service.seed")


def make_keys(folder: Path, entropy: Entropy) -> ServiceKeys:
    """Draw the three secrets from `entropy` into `folder`. Raises `Refused` if one is there already."""
    for name in FILES:
        write_secret(folder / name, entropy(32))
    return load_keys(folder)


def load_keys(folder: Path) -> ServiceKeys:
    """Read the secrets. Raises `NotFound` before `init`, `Refused` where others may read them or they are cut."""
    signing, sealing, seed = (_read_secret(folder / name) for name in FILES)
    return ServiceKeys(
        Ed25519PrivateKey.from_private_bytes(signing), X25519PrivateKey.from_private_bytes(sealing), seed
    )


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
