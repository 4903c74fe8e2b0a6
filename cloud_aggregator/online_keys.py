"""The service's own keys for the online roles of the signed repository; this module imports no TUF library.

Which key a role is signed with, the metadata say: the service looks for the private half among its own. So a new key
can lie ready before the holders name it, and the old one is of no use from the moment that they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wire_contract.envelope import public_bytes


class OnlineKeys(Protocol):
    """The service's own private keys for the online roles."""

    def find(self, public_keys: Sequence[bytes]) -> Ed25519PrivateKey | None:
        """Return the private half of one of these 32-byte public keys; None if none is ours. Raises `Refused`."""


@dataclass(frozen=True, slots=True)
class HeldOnlineKeys:
    """Keys in memory, by their public halves; none for a service without a repository."""

    keys: Mapping[bytes, Ed25519PrivateKey] = field(default_factory=dict)

    @classmethod
    def of(cls, *private: Ed25519PrivateKey) -> "HeldOnlineKeys":
        """Return these keys."""
        return cls({public_bytes(key): key for key in private})

    def find(self, public_keys: Sequence[bytes]) -> Ed25519PrivateKey | None:
        return next((self.keys[key] for key in public_keys if key in self.keys), None)
