"""What the file's number format costs each tensor, and what other formats would: errors in numpy, without a run.

The rules:
- an error is relative: the norm of (stored - float) over the norm of float, in float64;
- a code is saturated where it is 127 or -127; with one scale a tensor at least one is, by definition;
- a scale a row (per channel, axis 0 of the fleet tensor's shape) and 4 bits a row are simulated: nothing of the file is
  changed, and what a runtime would make of them is asked elsewhere (`weight_formats`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest, TensorEntry
from wire_contract.patch import SMALLEST_SCALE, read_tensors, stored_codes, stored_scale

LARGEST_CODE = {8: 127, 4: 7}


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One fleet tensor as it stands in the file.

    size_bytes: at all its places, scales counted. share: of the file. scale, saturated: None where it is not int8.
    error: relative to the float weights. row_scales_error: the same with a scale a row; None for a vector.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    size_bytes: int
    share: float
    scale: float | None
    saturated: float | None
    error: float
    row_scales_error: float | None


def report_tensors(data: bytes, manifest: Manifest, floats: Tensors) -> list[TensorReport]:
    """Return a report for each tensor. Raises the contract's `Malformed` for a file that is not the manifest's."""
    stored = read_tensors(data, manifest)
    return [_report(entry, data, stored[entry.name], floats[entry.name]) for entry in manifest.tensors]


def _report(entry: TensorEntry, data: bytes, stored: NDArray[np.float32], floats: NDArray[np.float32]) -> TensorReport:
    size_bytes = entry.size_bytes * len(entry.offsets) + 4 * len(entry.scale_offsets)
    is_int8 = entry.kind == "int8"
    codes = stored_codes(data, entry) if is_int8 else np.zeros(0, np.int8)
    return TensorReport(
        name=entry.name,
        shape=entry.shape,
        kind=entry.kind,
        size_bytes=size_bytes,
        share=size_bytes / len(data),
        scale=float(stored_scale(data, entry)) if is_int8 else None,
        saturated=float(np.mean(np.abs(codes.astype(np.int16)) == 127)) if is_int8 else None,
        error=relative_error(stored, floats),
        row_scales_error=relative_error(rows_rounded(floats, 8), floats) if floats.ndim == 2 else None,
    )


def relative_error(stored: NDArray[np.float32], floats: NDArray[np.float32]) -> float:
    """Return the norm of the difference over the norm of `floats`; 0 where both are zero."""
    exact = floats.astype(np.float64)
    difference = float(np.linalg.norm(stored.astype(np.float64) - exact))
    return difference / max(float(np.linalg.norm(exact)), float(SMALLEST_SCALE)) if difference else 0.0


def rows_rounded(floats: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return a matrix as symmetric codes of `bits` bits with a scale a row would give it back."""
    exact = floats.astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    scales = np.maximum(largest / LARGEST_CODE[bits], float(SMALLEST_SCALE)).astype(np.float32).astype(np.float64)
    codes = np.clip(np.rint(exact / scales), -LARGEST_CODE[bits], LARGEST_CODE[bits])
    return np.asarray(codes * scales, np.float32)


def row_scale_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Return the bytes of a matrix with `bits` bits a value and a float32 scale a row."""
    rows, columns = shape
    return rows * -(-columns * bits // 8) + 4 * rows
