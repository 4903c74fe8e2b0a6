"""The received weights as the train signatures take them, made of the version's file one input at a time. Pure.

A version's file holds most weights as int8, a quarter of what they are as float32: a training that looks at them only
when a checkpoint is written need not hold them in between.
"""

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from wire_contract.layout import Layout
from wire_contract.manifest import Manifest
from wire_contract.patch import read_tensors


class PackedBase(Mapping[str, NDArray[np.float32]]):
    """`Layout.pack` of a version's tensors; each look makes the array anew. A look raises `Malformed` as they do."""

    def __init__(self, data: bytes, manifest: Manifest) -> None:
        self._data = data
        self._manifest = manifest
        self._inputs = {each.name: each for each in manifest.train_inputs}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return one train input."""
        spec = self._inputs[name]
        parts = {part.tensor for part in spec.parts}
        tensors = tuple(entry for entry in self._manifest.tensors if entry.name in parts)
        part = msgspec.structs.replace(self._manifest, tensors=tensors, train_inputs=(spec,))
        return Layout.of(part).pack(read_tensors(self._data, part))[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the inputs' names."""
        return iter(self._inputs)

    def __len__(self) -> int:
        """Return how many inputs there are."""
        return len(self._inputs)
