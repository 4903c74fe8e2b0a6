"""Gaussian noise that only this device can know: what `example-noise` adds to a step's clipped gradient.

The rules:
- the aggregator draws the training's seed, so nothing of the noise may come from it. The key is HKDF-SHA256 (RFC 5869)
  over the device's own key and the whole offer. The offer holds the nonce that the device drew for its check-in: an
  aggregator that sends one lease twice, with other weights or another plan, does not get the same noise twice, whose
  difference would be bare gradients;
- one offer and step give one noise, so that a training that goes on another night ends in the same bytes;
- bits are ChaCha20's (RFC 8439), not those of a generator made for simulations; values are Box and Muller's (1958) in
  float64, 53 bits each, so no value lies further out than 8.6.

What it is not: noise in floating point. Its values are a subset of the doubles and leave a pattern behind that an
attacker who knows the mechanism may use (Mironov 2012, "On significance of the least significant bits"); they are
rounded to float32 and added to rounded sums, which makes that harder to use and proves nothing. Snapping or discrete
noise is not built.
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from wire_contract.messages import TaskOffer, encode_message

SECRET_BYTES = 32
_CONTEXT = b"edge-federation example-noise v1\n"
_COUNTER_BYTES, _NONCE_BYTES = 4, 12


def secret_of(key: Ed25519PrivateKey, offer: TaskOffer) -> bytes:
    """Return the 32 bytes that this device's noise under one offer is made of."""
    info = _CONTEXT + hashlib.sha256(encode_message(offer)).digest()
    return HKDF(hashes.SHA256(), SECRET_BYTES, salt=None, info=info).derive(key.private_bytes_raw())


class Normals:
    """The standard normal values of one step, in the order in which they are drawn."""

    def __init__(self, secret: bytes, step: int) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a noise's secret has {SECRET_BYTES} bytes, got {len(secret)}")
        nonce = bytes(_COUNTER_BYTES) + step.to_bytes(_NONCE_BYTES, "big")
        self._bits = Cipher(ChaCha20(secret, nonce), mode=None).encryptor()

    def draw(self, count: int) -> NDArray[np.float64]:
        """Return the next `count` values; of an odd number the last pair's second one is lost."""
        pairs = -(-count // 2)
        bits = np.frombuffer(self._bits.update(bytes(16 * pairs)), "<u8") >> np.uint64(11)
        # (0, 1], because the logarithm is taken.
        radius = (bits[:pairs].astype(np.float64) + 1.0) * 2.0**-53
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = bits[pairs:].astype(np.float64) * (2.0**-53 * 2.0 * np.pi)
        values = np.empty(2 * pairs, np.float64)
        np.multiply(radius, np.cos(angle), out=values[:pairs])
        np.multiply(radius, np.sin(angle), out=values[pairs:])
        return values[:count]
