"""The exporter's Ed25519 key: a PEM file that only its owner may read."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

MAX_KEY_BYTES = 16_384


class BadKey(Exception):  # noqa: N818 - named for what the file is
    """A key file is not what the exporter signs with; the message says why."""


def create_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it with mode 0600. Raises `FileExistsError`: a key is never overwritten."""
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        out.flush()
        os.fsync(out.fileno())
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`. Raises `BadKey` if others may read it or it is no unencrypted Ed25519 PEM."""
    if path.stat().st_mode & 0o077:
        raise BadKey(f"{path}: a signing key is readable by its owner only (chmod 600), got mode "
                     f"{path.stat().st_mode & 0o777:o}")  # fmt: skip
    try:
        key = load_pem_private_key(path.read_bytes()[:MAX_KEY_BYTES], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise BadKey(f"{path}: a signing key is an unencrypted PEM: {str(e).splitlines()[0]}") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{path}: a signing key is Ed25519, got {type(key).__name__}")
    return key
