"""The aggregator's own secrets: what it signs with, what updates are sealed to, and the seed of lease ids."""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloud_aggregator.online_keys import HeldOnlineKeys, OnlineKeys
from wire_contract.envelope import public_bytes


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """Make one with `adapters.key_files`. `seed`: 32 secret bytes that lease ids and training seeds are drawn from.

    `online`: the keys of the signed repository's online roles; none without a repository.
    """

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey
    seed: bytes
    online: OnlineKeys = field(default_factory=HeldOnlineKeys)

    @property
    def public(self) -> bytes:
        """The 32 bytes that devices pin as the aggregator's key."""
        return public_bytes(self.signing)

    @property
    def sealing_public(self) -> bytes:
        """The 32 bytes that updates are sealed to."""
        return public_bytes(self.sealing)
