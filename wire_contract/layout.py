"""The order of a model's values: from named tensors to one float32 vector and back, and to the train inputs.

Client updates, residuals and sums are vectors in this order. Tensors are stored so that the busy ones lie together
(the LSTM kernel is kept units-major), which is what makes index gaps small.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wire_contract.errors import Malformed
from wire_contract.manifest import Manifest, TensorEntry, TrainInput, fingerprint

Vector = NDArray[np.float32]
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and order of the fleet tensors of one model family."""

    tensors: tuple[TensorEntry, ...]
    train_inputs: tuple[TrainInput, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> "Layout":
        """Return the layout that a (checked) manifest states."""
        return cls(manifest.tensors, manifest.train_inputs)

    @cached_property
    def size(self) -> int:
        """Number of values."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """See `manifest.fingerprint`."""
        return fingerprint(self.tensors)

    def flatten(self, tensors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """Return all tensors as one float32 vector of `size` values. Raises `Malformed` on a missing name or shape."""
        parts = []
        for entry in self.tensors:
            value = tensors.get(entry.name)
            if value is None or tuple(value.shape) != entry.shape:
                got = None if value is None else value.shape
                raise Malformed(f"tensor {entry.name} has shape {entry.shape}, got {got}")
            parts.append(np.asarray(value, dtype=np.float32).reshape(-1))
        return np.concatenate(parts)

    def unflatten(self, vector: Vector) -> Tensors:
        """Return named views into `vector`; inverse of `flatten`."""
        if vector.shape != (self.size,):
            raise Malformed(f"a vector of this layout has {self.size} values, got shape {vector.shape}")
        tensors, start = {}, 0
        for entry in self.tensors:
            tensors[entry.name] = vector[start : start + entry.size].reshape(entry.shape)
            start += entry.size
        return tensors

    def pack(self, tensors: Mapping[str, NDArray[np.float32]]) -> Tensors:
        """Return the train signatures' weight inputs, made of the fleet tensors; inverse of `unpack`."""
        packed = {}
        for spec in self.train_inputs:
            if len(spec.parts) == 1 and tensors[spec.parts[0].tensor].shape == spec.shape:
                packed[spec.name] = np.ascontiguousarray(tensors[spec.parts[0].tensor], dtype=np.float32)
                continue
            array = np.full(spec.shape, spec.fill, dtype=np.float32)
            for part in spec.parts:
                value = tensors[part.tensor]
                array[:, part.start : part.stop] = value.reshape(spec.shape[0], -1)
            packed[spec.name] = array
        return packed

    def unpack(self, packed: Mapping[str, NDArray[np.float32]]) -> Tensors:
        """Return the fleet tensors (copies) out of the train signatures' weight inputs or outputs."""
        shapes = {entry.name: entry.shape for entry in self.tensors}
        tensors = {}
        for spec in self.train_inputs:
            for part in spec.parts:
                array = packed[spec.name]
                columns = array if shapes[part.tensor] == spec.shape else array[:, part.start : part.stop]
                tensors[part.tensor] = np.array(columns, dtype=np.float32).reshape(shapes[part.tensor])
        return tensors
