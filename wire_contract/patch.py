"""Reading a version's weights out of its `.tflite` and writing other weights in, in place, without TensorFlow.

Cloud and phone do this alike, byte for byte: the cloud makes the next version, the phone its personal copy.
int8 is symmetric with one scale a tensor: scale = max|w| / 127, code = round-half-even(w / scale), computed in
float64 and rounded once, so that x86 and ARM agree. A float16 value is likewise rounded once, half to even; one that
would become infinite is refused.

A published version is patched into the file of the version before with *hysteresis* (`keep`), so that the difference
of the two files is small:
- a code stays what it was until its weight has moved `keep` codes away from it;
- a scale stays while the largest weight fits it and uses at least half of it; a new one leaves room to grow, for it
  moves every code: then a code stays what the new scale makes of the old code;
- a float32 value moves on a grid of 2^-10, likewise only once it has moved `keep` grid steps;
- a float16 value does the same, and what lies on the grid is then rounded to float16 (from 2 on its own steps are the
  coarser ones).
The master weights stay float32 in the server's optimizer, so nothing is lost: what is held back moves later.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from wire_contract.errors import Malformed
from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest, TensorEntry

Value = TypeVar("Value", bound=np.generic)

# An all-zero tensor still needs a positive scale: TFLite divides by it.
SMALLEST_SCALE = np.float32(2.0**-40)
GRID_STEPS: Final = 1024.0
# Below half a code the nearest code is the only one near enough.
SMALLEST_KEEP: Final = 0.5
MAX_KEEP: Final = 4.0
# A sixteenth of room costs a sixteenth of a code's precision, and spares a new scale at every growth.
_ROOM: Final = 1.0 + 2.0**-4
_LARGEST_FITTING: Final = 127.5
_SMALLEST_FITTING: Final = 63.0
# Halfway between the largest float16 (65504) and what would be the next one: from here on rounding gives infinity.
FLOAT16_OVERFLOW: Final = 65_520.0


def read_tensors(data: bytes, manifest: Manifest) -> Tensors:
    """Return the float32 fleet tensors of a version's file (int8 ones dequantized).

    Raises `Malformed` where the file is shorter than the manifest says, or holds a scale or bias that is not finite.
    """
    if len(data) != manifest.size_bytes:
        raise Malformed(f"the manifest says {manifest.size_bytes} bytes, the file has {len(data)}")
    return {tensor.name: _read(data, tensor) for tensor in manifest.tensors}


def _read(data: bytes, tensor: TensorEntry) -> NDArray[np.float32]:
    if tensor.kind == "int8":
        scale = stored_scale(data, tensor)
        with np.errstate(over="ignore"):
            values: NDArray[np.float32] = stored_codes(data, tensor).astype(np.float32) * scale
        if not np.isfinite(values).all():
            raise Malformed(f"weights are finite, got a scale of {scale} for {tensor.name}")
        return values
    return stored_halves(data, tensor) if tensor.kind == "float16" else stored_floats(data, tensor)


def stored_codes(data: bytes, tensor: TensorEntry) -> NDArray[np.int8]:
    """Return an int8 tensor's codes in its own shape."""
    return _stored(np.frombuffer(data, np.int8, count=tensor.size, offset=tensor.offsets[0]), tensor)


def stored_floats(data: bytes, tensor: TensorEntry) -> NDArray[np.float32]:
    """Return a float32 tensor's values in its own shape. Raises `Malformed` if one is not finite."""
    raw = np.frombuffer(data, "<f4", count=tensor.size, offset=tensor.offsets[0]).astype(np.float32)
    if not np.isfinite(raw).all():
        raise Malformed(f"weights are finite, got NaN or Inf in {tensor.name}")
    return _stored(raw, tensor)


def stored_halves(data: bytes, tensor: TensorEntry) -> NDArray[np.float32]:
    """Return a float16 tensor's values as float32, in its own shape. Raises `Malformed` if one is not finite."""
    raw = np.frombuffer(data, "<f2", count=tensor.size, offset=tensor.offsets[0]).astype(np.float32)
    if not np.isfinite(raw).all():
        raise Malformed(f"weights are finite, got NaN or Inf in {tensor.name}")
    return _stored(raw, tensor)


def stored_scale(data: bytes, tensor: TensorEntry) -> np.float32:
    """Return an int8 tensor's scale. Raises `Malformed` unless it is finite and positive."""
    scale = np.float32(np.frombuffer(data, "<f4", count=1, offset=tensor.scale_offsets[0])[0])
    if not (np.isfinite(scale) and scale > 0):
        raise Malformed(f"a scale is finite and positive, got {scale} for {tensor.name}")
    return scale


def _stored(raw: NDArray[Value], tensor: TensorEntry) -> NDArray[Value]:
    shaped = raw.reshape(tensor.shape[::-1] if tensor.transposed else tensor.shape)
    return np.ascontiguousarray(shaped.T if tensor.transposed else shaped)


def quantize(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Return int8 codes and the float32 scale of one tensor; the error of a value is at most scale / 2.

    Raises `Malformed` if a value is NaN or infinite.
    """
    exact = _exact(values)
    scale = max(np.float32(_largest(exact) / 127.0), SMALLEST_SCALE)
    return _codes(exact / np.float64(scale)), scale


def requantize(
    values: NDArray[np.float32], codes: NDArray[np.int8], scale: np.float32, keep: float
) -> tuple[NDArray[np.int8], np.float32]:
    """Return int8 codes and scale of one tensor, as near to the `codes` and `scale` before as hysteresis allows.

    The error of a value is below `keep` * scale where its code stays, at most scale / 2 where it moves.
    Raises `Malformed` if a value is NaN or infinite.
    """
    exact = _exact(values)
    largest, fresh = _largest(exact), scale
    if not _SMALLEST_FITTING <= largest / np.float64(scale) <= _LARGEST_FITTING:
        fresh = max(np.float32(largest * _ROOM / 127.0), SMALLEST_SCALE)
    before, position = rescale(codes, scale, fresh), exact / np.float64(fresh)
    return np.where(np.abs(position - before) < keep, before, _codes(position)), fresh


def rescale(codes: NDArray[np.int8], scale: np.float32, fresh: np.float32) -> NDArray[np.int8]:
    """Return what codes become under another scale, nearest; the codes themselves under the same one."""
    if scale == fresh:
        return codes
    return _codes(codes.astype(np.float64) * np.float64(scale) / np.float64(fresh))


def snap(values: NDArray[np.float32], before: NDArray[np.float32], keep: float) -> NDArray[np.float32]:
    """Return float32 values on the grid of 2^-10, those of `before` where they have moved less than `keep` steps."""
    exact = _exact(values)
    # The sum turns -0.0 into 0.0, so that one value has one form.
    nearest = np.rint(exact * GRID_STEPS) / GRID_STEPS + 0.0
    stays = np.abs(exact - before) * GRID_STEPS < keep
    return np.where(stays, before, nearest).astype(np.float32)


def halve(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """Return values as float16, rounded once and half to even (IEEE 754-2019, 4.3.1).

    Raises `Malformed` if one is NaN, infinite, or so large that it would become infinite.
    """
    exact = _exact(values)
    if _largest(exact) >= FLOAT16_OVERFLOW:
        raise Malformed(f"a float16 weight is below {FLOAT16_OVERFLOW:g}, got {_largest(exact):g} in {name}")
    return exact.astype(np.float16)


def _exact(values: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise Malformed("weights are finite, got NaN or Inf")
    return exact


def _largest(exact: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(exact))) if exact.size else 0.0


def _codes(position: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.clip(np.rint(position), -127, 127).astype(np.int8)


def patch(data: bytes, manifest: Manifest, tensors: Mapping[str, NDArray[np.float32]], *, keep: float = 0.0) -> bytes:
    """Return `data` (any version of the manifest's template) with `tensors` written in.

    `keep` 0 writes every weight as exactly as the form allows: a personal copy, a first version. With `keep` (0.5 to 4
    codes) `data` is the version before, and the result differs from it as little as hysteresis allows: what the cloud
    publishes. Nothing outside the manifest's ranges changes. Raises `Malformed` on a wrong shape, size, `keep`, or a
    value not finite.
    """
    if len(data) != manifest.size_bytes:
        raise Malformed(f"the manifest says {manifest.size_bytes} bytes, the file has {len(data)}")
    if keep != 0.0 and not SMALLEST_KEEP <= keep <= MAX_KEEP:
        raise Malformed(f"keep is 0 or from {SMALLEST_KEEP} to {MAX_KEEP} codes, got {keep}")
    out = bytearray(data)
    for tensor in manifest.tensors:
        value = tensors.get(tensor.name)
        if value is None or tuple(value.shape) != tensor.shape:
            raise Malformed(f"tensor {tensor.name} has shape {tensor.shape}, got {getattr(value, 'shape', None)}")
        raw, scale = _written(data, tensor, value, keep)
        for offset in tensor.scale_offsets:
            out[offset : offset + 4] = scale
        for offset in tensor.offsets:
            out[offset : offset + len(raw)] = raw
    return bytes(out)


def _written(data: bytes, tensor: TensorEntry, value: NDArray[np.float32], keep: float) -> tuple[bytes, bytes]:
    """Return the bytes of a tensor and of its scale."""
    if tensor.kind == "float16":
        wide = snap(value, stored_halves(data, tensor), keep) if keep else value
        halves = halve(wide, tensor.name)
        return (halves.T if tensor.transposed else halves).astype("<f2").tobytes(), b""
    if tensor.kind == "float32":
        floats = snap(value, stored_floats(data, tensor), keep) if keep else _exact(value).astype(np.float32)
        return (floats.T if tensor.transposed else floats).astype("<f4").tobytes(), b""
    if keep:
        codes, scale = requantize(value, stored_codes(data, tensor), stored_scale(data, tensor), keep)
    else:
        codes, scale = quantize(value)
    return (codes.T if tensor.transposed else codes).tobytes(), scale.astype("<f4").tobytes()
