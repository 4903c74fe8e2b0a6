"""The keys that examples are encrypted under: one from the device's secret, and below it a random one for each day.

    storage key = HKDF-SHA256(device secret)                                   (RFC 5869), never stored
    wrapped     = ChaCha20-Poly1305(storage key, day key), data: device | "day key" | number      (RFC 8439)
    sealed      = ChaCha20-Poly1305(day key, record),      data: device | record | number

The rules:
- a day's key is made at its first record and seals for 24 hours from then on, so that everything under it is at most a
  day apart; deleting the wrapped key is what makes all of it unreadable, wherever the disk kept copies of its blocks;
- a number belongs to one key for ever, and is bound into every seal: a record moved to another place, day or device
  does not open;
- nonces are 96 random bits, and a key seals far fewer than 2^32 records, so that two are never alike (the bound of NIST
  SP 800-38D, 8.3).
Pure: randomness comes in as bytes.
"""

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DAY_S = 86_400.0
KEY_BYTES = 32
NONCE_BYTES = 12
_INFO = b"edge-federation example store v1"


class DoesNotOpen(Exception):  # noqa: N818 - what the seal answers
    """Not sealed under this key for this place, or changed since."""


class DayKey:
    """One day's key: seals and opens that day's records. `number` is its own for ever."""

    def __init__(self, device: str, number: int, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a day's key has {KEY_BYTES} bytes, got {len(key)}")
        self.number = number
        self._cipher = ChaCha20Poly1305(key)
        self._before = f"{device}|".encode()
        self._after = f"|{number}".encode()

    def seal(self, record: bytes, plain: bytes, nonce: bytes) -> bytes:
        """Return `nonce` and the ciphertext of `plain`, bound to the record's name; `nonce` is never used again."""
        return nonce + self._cipher.encrypt(nonce, plain, self._before + record + self._after)

    def open(self, record: bytes, sealed: bytes) -> bytes:
        """Return the plain bytes; inverse of `seal`. Raises `DoesNotOpen`."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._before + record + self._after)
        except (InvalidTag, ValueError, TypeError) as e:
            raise DoesNotOpen(f"a record does not open under day key {self.number}") from e


@dataclass(frozen=True, slots=True)
class StorageKey:
    """The device's key for its own disk; its bytes are in memory only."""

    device: str
    key: bytes = field(repr=False)

    @classmethod
    def derive(cls, device_secret: bytes, device: str) -> "StorageKey":
        """Return the key that belongs to the device's secret (32 bytes) and id."""
        if len(device_secret) != KEY_BYTES:
            raise ValueError(f"a device's secret has {KEY_BYTES} bytes, got {len(device_secret)}")
        return cls(device, HKDF(hashes.SHA256(), KEY_BYTES, None, _INFO).derive(device_secret))

    def wrap(self, name: bytes, secret: bytes, nonce: bytes) -> bytes:
        """Return a named secret, sealed under this key."""
        return nonce + ChaCha20Poly1305(self.key).encrypt(nonce, secret, self._bound(name))

    def unwrap(self, name: bytes, wrapped: bytes) -> bytes:
        """Return the secret; inverse of `wrap`. Raises `DoesNotOpen`, as for another device's disk."""
        try:
            return ChaCha20Poly1305(self.key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], self._bound(name))
        except (InvalidTag, ValueError, TypeError) as e:
            raise DoesNotOpen(f"{name.decode(errors='replace')} does not open under this device's key") from e

    def _bound(self, name: bytes) -> bytes:
        return self.device.encode() + b"|" + name

    def wrap_day(self, number: int, day_key: bytes, nonce: bytes) -> bytes:
        """Return a day's key as it may lie on the disk."""
        return self.wrap(b"day key|%d" % number, day_key, nonce)

    def unwrap_day(self, number: int, wrapped: bytes) -> DayKey:
        """Return a day's key; inverse of `wrap_day`. Raises `DoesNotOpen`."""
        return DayKey(self.device, number, self.unwrap(b"day key|%d" % number, wrapped))


def seals_at(began: float, now: float) -> bool:
    """Whether a key that began at `began` seals what comes at `now` (both Unix seconds)."""
    return began <= now < began + DAY_S
