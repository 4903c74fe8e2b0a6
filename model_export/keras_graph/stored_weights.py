"""Weights inside the file: at places that are known, read in a way that no optimizer takes apart.

All int8 codes stand in one constant of rows of 256, all float32 values in one of rows of 16, all scales in one vector.
A signature gathers a tensor's rows by constant numbers plus a zero that it computes from an input, so nothing is
folded, fused or doubled: a tensor has one place, and a version is made by writing there. What a signature computes is
the float graph on the dequantized weights, on every interpreter alike; the file pays one byte a weight.

The rules:
- a tensor of 1024 values or more is int8 (`wire_contract.patch.quantize`), a smaller one float32;
- fleet tensors have one scale each, as the contract has it; frozen ones, which nobody patches, one for each entry of
  their last axis where that has 16 values or more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from wire_contract.patch import quantize

SMALLEST_INT8_VALUES = 1024
CODES_A_ROW, FLOATS_A_ROW = 256, 16
_SMALLEST_CHANNEL = 16


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor's values stand: its first row and their number; int8 ones with their scale's position."""

    shape: tuple[int, ...]
    kind: str
    row: int
    rows: int
    scale: int = -1
    channel_scale: "StoredTensor | None" = None


def zero_of(array: Any) -> Any:
    """Return an int32 zero that depends on an input: no size is below -1, not even that of NaN."""
    first = tf.cast(tf.reshape(array, [-1])[0], tf.float32)
    return tf.cast(tf.abs(first) < -1.0, tf.int32)


class StoredWeights:
    """Tensors laid out for a file. `codes`, `floats` and `scales` are the constants; empty ones are not made."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], *, by_channel: bool) -> None:
        self._codes: list[NDArray[np.int8]] = []
        self._floats: list[NDArray[np.float32]] = []
        self._scales: list[np.float32] = []
        self._by_channel = by_channel
        self.tensors = {name: self._add(value) for name, value in tensors.items()}
        self.codes = _rows(self._codes, CODES_A_ROW, np.int8)
        self.floats = _rows(self._floats, FLOATS_A_ROW, np.float32)
        self.scales = np.array(self._scales, np.float32)

    def _add(self, value: NDArray[np.float32]) -> StoredTensor:
        if value.size < SMALLEST_INT8_VALUES:
            return self._add_floats(value)
        row = sum(len(part) for part in self._codes)
        if self._by_channel and value.shape[-1] > 1 and value.size // value.shape[-1] >= _SMALLEST_CHANNEL:
            columns = [quantize(column) for column in value.reshape(-1, value.shape[-1]).T]
            codes = np.stack([column for column, _ in columns], axis=-1)
            scale = self._add_floats(np.array([scale for _, scale in columns], np.float32))
            padded = _padded(codes.reshape(-1), CODES_A_ROW)
            self._codes.append(padded)
            return StoredTensor(value.shape, "int8", row, len(padded), channel_scale=scale)
        codes, one = quantize(value)
        padded = _padded(codes.reshape(-1), CODES_A_ROW)
        self._codes.append(padded)
        self._scales.append(one)
        return StoredTensor(value.shape, "int8", row, len(padded), scale=len(self._scales) - 1)

    def _add_floats(self, value: NDArray[np.float32]) -> StoredTensor:
        row = sum(len(part) for part in self._floats)
        padded = _padded(np.asarray(value, np.float32).reshape(-1), FLOATS_A_ROW)
        self._floats.append(padded)
        return StoredTensor(value.shape, "float32", row, len(padded))

    def constants(self) -> dict[str, NDArray[Any]]:
        """Return the constants that are not empty, by name."""
        made = {"codes": self.codes, "floats": self.floats, "scales": self.scales}
        return {name: value for name, value in made.items() if value.size}

    def values(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as a signature reads it."""
        return self._value(self.tensors[name])

    def _value(self, stored: StoredTensor) -> NDArray[np.float32]:
        if stored.kind == "float32":
            return _taken(self.floats, stored)
        codes = _taken(self.codes, stored).astype(np.float32)
        if stored.channel_scale is not None:
            return np.asarray(codes * _taken(self.floats, stored.channel_scale), np.float32)
        return np.asarray(codes * self.scales[stored.scale], np.float32)

    def read(self, zero: Any) -> dict[str, Any]:
        """Return every tensor as it is read inside a signature; call it once in each."""
        made = {name: tf.constant(value) for name, value in self.constants().items()}
        return {name: _read(stored, made, zero) for name, stored in self.tensors.items()}


def _padded(values: NDArray[Any], width: int) -> NDArray[Any]:
    rows = -(-len(values) // width)
    padded = np.zeros(rows * width, values.dtype)
    padded[: len(values)] = values
    return padded.reshape(rows, width)


def _rows(parts: Sequence[NDArray[Any]], width: int, dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros((0, width), dtype)


def _taken(rows: NDArray[Any], stored: StoredTensor) -> NDArray[Any]:
    size = int(np.prod(stored.shape))
    return np.ascontiguousarray(rows[stored.row : stored.row + stored.rows]).reshape(-1)[:size].reshape(stored.shape)


def _read(stored: StoredTensor, constants: Mapping[str, Any], zero: Any) -> Any:
    source = constants["codes" if stored.kind == "int8" else "floats"]
    numbers = tf.constant(np.arange(stored.row, stored.row + stored.rows, dtype=np.int32))
    rows = tf.reshape(tf.gather(source, numbers + zero), [-1])
    size = int(np.prod(stored.shape))
    values = tf.reshape(rows[:size] if size != rows.shape[0] else rows, stored.shape)
    if stored.kind == "float32":
        return values
    floats = tf.cast(values, tf.float32)
    if stored.channel_scale is not None:
        return floats * _read(stored.channel_scale, constants, zero)
    return floats * tf.gather(constants["scales"], tf.constant(stored.scale, tf.int32) + zero)
