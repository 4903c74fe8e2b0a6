"""Entropy that a seed fixes, so that a simulated fleet has the same keys, leases and draws each time."""

import hashlib
from collections.abc import Callable


def seeded_entropy(seed: bytes) -> Callable[[int], bytes]:
    """Return an endless stream of bytes that a seed fixes: SHA-256 over seed and counter. For simulations only."""
    counter = 0

    def draw(count: int) -> bytes:
        nonlocal counter
        out = b""
        while len(out) < count:
            out += hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
            counter += 1
        return out[:count]

    return draw
