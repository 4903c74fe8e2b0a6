"""The L2 norm of a vector, the same number on every machine.

It decides what is admitted, it is recorded with each update, and a replay compares it bit for bit. So it is numpy's own
pairwise sum of rounded squares, in blocks of a fixed length: no BLAS, whose `dot` of more than 10,000 values is split
over threads (another order of addition on a machine with other cores, and milliseconds of waiting for them under load);
no `einsum` either, which fuses product and sum where the processor can.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# A block of squares takes 512 kB, so the norm of a whole model costs no second one.
_BLOCK: Final = 65_536


def l2_norm(vector: NDArray[Any]) -> float:
    """Return the L2 norm of a vector of numbers, squared and summed in float64; 0 for an empty one."""
    total = 0.0
    for start in range(0, len(vector), _BLOCK):
        squares = np.square(vector[start : start + _BLOCK], dtype=np.float64)
        total += float(np.sum(squares))
    return float(np.sqrt(total))
