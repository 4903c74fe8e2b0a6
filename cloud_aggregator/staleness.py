"""How much an update counts that was trained on an older version.

Weight 1/sqrt(1 + s) for a staleness s of 0 to 3 (FedBuff, Nguyen et al. 2022, section 5), refused above. The four
weights are constants, correctly rounded to binary64, so that every machine scales alike and sums stay bitwise equal.
"""

from typing import Final

MAXIMUM: Final = 3
WEIGHTS: Final = (
    1.0,
    float.fromhex("0x1.6a09e667f3bcdp-1"),
    float.fromhex("0x1.279a74590331cp-1"),
    0.5,
)


def weight(staleness: int) -> float:
    """Return the weight of an update that is `staleness` steps behind. Raises `ValueError` outside 0..3."""
    if not 0 <= staleness <= MAXIMUM:
        raise ValueError(f"staleness is 0 to {MAXIMUM}, got {staleness}")
    return WEIGHTS[staleness]
