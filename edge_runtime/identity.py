"""Who the device is: an Ed25519 key that is made on it and never leaves, and what enrolment answered.

HOME/device_key     32 bytes as hex, mode 0600
HOME/enrolled.bin   the signed answer to the enrolment, whose keys and addresses the device pins
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.adapters.files import write_atomically
from edge_runtime.ports import Entropy, StorageFailed
from wire_contract import envelope
from wire_contract.errors import ContractError, Untrusted
from wire_contract.messages import Enrolled, decode_message

KEY_FILE, ENROLLED_FILE = "device_key", "enrolled.bin"
KIND = "enrolled"


class NotEnrolled(Exception):  # noqa: N818 - a precondition, mended by `edge-runtime enrol`
    """The home holds no key or no enrolment."""


@dataclass(frozen=True)
class Identity:
    """The device's key; its id is the key's name."""

    key: Ed25519PrivateKey

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""
        return envelope.public_bytes(self.key)

    @property
    def device(self) -> str:
        """32 hex digits."""
        return envelope.key_id(self.public_key)


def load_or_make(home: Path, entropy: Entropy) -> Identity:
    """Return the home's identity; the first time 32 bytes of `entropy` make it. Raises `StorageFailed`."""
    path = home / KEY_FILE
    if not path.exists():
        write_atomically(path, entropy(32).hex().encode() + b"\n", mode=0o600)
    return load(home)


def load(home: Path) -> Identity:
    """Return the home's identity. Raises `NotEnrolled` without one, `StorageFailed` if the file is broken."""
    path = home / KEY_FILE
    try:
        if path.stat().st_mode & 0o077:
            raise StorageFailed(f"{path} is readable by others: a device key has mode 0600")
        return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip())))
    except FileNotFoundError as e:
        raise NotEnrolled(f"{home} is not enrolled: it holds no device key") from e
    except (OSError, ValueError) as e:
        raise StorageFailed(f"{path} holds 64 hex digits: {e}") from e


def read_enrolled(signed: bytes, pinned: bytes | None) -> Enrolled:
    """Return the signed answer to an enrolment; trust on first use unless a key is `pinned` already.

    Raises a `ContractError`; `Untrusted` if another than the pinned key signed it.
    """
    body = envelope.read_envelope(signed).body
    enrolled = decode_message(body, Enrolled)
    if pinned is not None and enrolled.aggregator_key != pinned:
        raise Untrusted(
            f"the aggregator's pinned key is {envelope.key_id(pinned)}, the answer names "
            f"{envelope.key_id(enrolled.aggregator_key)}"
        )
    envelope.verify(signed, KIND, enrolled.aggregator_key)
    return enrolled


def save_enrolled(home: Path, signed: bytes) -> None:
    """Keep a checked answer."""
    write_atomically(home / ENROLLED_FILE, signed, mode=0o600)


def load_enrolled(home: Path) -> Enrolled:
    """Return the kept answer. Raises `NotEnrolled` or `StorageFailed`."""
    path = home / ENROLLED_FILE
    try:
        return read_enrolled(path.read_bytes(), None)
    except FileNotFoundError as e:
        raise NotEnrolled(f"{home} is not enrolled") from e
    except (OSError, ContractError) as e:
        raise StorageFailed(f"{path} cannot be used, enrol again: {e}") from e


def system_entropy(count: int) -> bytes:
    """Return `count` bytes from the operating system."""
    return os.urandom(count)
