"""Examples that every device can make for itself, to check its interpreter and a version.

The rules (a device makes the same; its weights are those of the manifest's train inputs, value i of the flattened
input = 0.05 * ((7919 i) mod 201 - 100) / 100):
- value i of a float32 array is ((7919 i) mod 201 - 100) / 100, computed in float64 and rounded once;
- value i of an int32 array is i mod 2: a valid id and a valid class everywhere;
- i counts over [examples, *shape] in C order, so example n is row n of a batch that never ends; targets are made alike;
- all example weights are 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire_contract.manifest import ArraySpec


def synthetic_array(spec: ArraySpec, first: int, count: int) -> NDArray[Any]:
    """Return examples `first` to `first + count` of one array: [count, *shape]."""
    size = int(np.prod(spec.shape, dtype=np.int64))
    i = np.arange(first * size, (first + count) * size, dtype=np.int64)
    values: NDArray[Any] = i % 2 if spec.dtype == "int32" else ((i * 7919) % 201 - 100) / 100
    return values.astype(spec.dtype).reshape(count, *spec.shape)


def synthetic_examples(specs: Sequence[ArraySpec], first: int, count: int) -> dict[str, NDArray[Any]]:
    """Return examples `first` to `first + count` of all arrays, by name."""
    return {spec.name: synthetic_array(spec, first, count) for spec in specs}


def synthetic_weights(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the synthetic values of one train input that holds one tensor."""
    i = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)
    return (0.05 * ((i * 7919) % 201 - 100) / 100).astype(np.float32).reshape(tuple(shape))
