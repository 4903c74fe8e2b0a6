"""Reading a version's weights out of its `.tflite` and writing other weights in, in place, without TensorFlow.

Cloud and phone do this alike, byte for byte: the cloud makes the next version, the phone its personal copy.
int8 is symmetric with one scale a tensor: scale = max|w| / 127, code = round-half-even(w / scale), computed in
float64 and rounded once, so that x86 and ARM agree.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wire_contract.errors import Malformed
from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest, TensorEntry

# An all-zero tensor still needs a positive scale: TFLite divides by it.
SMALLEST_SCALE = np.float32(2.0**-40)


def read_tensors(data: bytes, manifest: Manifest) -> Tensors:
    """Return the float32 fleet tensors of a version's file (int8 ones dequantized).

    Raises `Malformed` where the file is shorter than the manifest says, or holds a scale or bias that is not finite.
    """
    if len(data) != manifest.size_bytes:
        raise Malformed(f"the manifest says {manifest.size_bytes} bytes, the file has {len(data)}")
    return {tensor.name: _read(data, tensor) for tensor in manifest.tensors}


def _read(data: bytes, tensor: TensorEntry) -> NDArray[np.float32]:
    dtype = np.dtype(np.int8) if tensor.kind == "int8" else np.dtype("<f4")
    stored = tensor.shape[::-1] if tensor.transposed else tensor.shape
    raw = np.frombuffer(data, dtype, count=tensor.size, offset=tensor.offsets[0]).reshape(stored)
    values = raw.astype(np.float32)
    if tensor.kind == "int8":
        scale = np.frombuffer(data, "<f4", count=1, offset=tensor.scale_offsets[0])[0]
        if not (np.isfinite(scale) and scale > 0):
            raise Malformed(f"a scale is finite and positive, got {scale} for {tensor.name}")
        values = values * scale
    elif not np.isfinite(values).all():
        raise Malformed(f"weights are finite, got NaN or Inf in {tensor.name}")
    return np.ascontiguousarray(values.T if tensor.transposed else values)


def quantize(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Return int8 codes and the float32 scale of one tensor; the error of a value is at most scale / 2.

    Raises `Malformed` if a value is NaN or infinite.
    """
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise Malformed("weights are finite, got NaN or Inf")
    largest = float(np.max(np.abs(exact))) if exact.size else 0.0
    scale = max(np.float32(largest / 127.0), SMALLEST_SCALE)
    codes = np.clip(np.rint(exact / np.float64(scale)), -127, 127).astype(np.int8)
    return codes, scale


def patch(data: bytes, manifest: Manifest, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return `data` (any version of the manifest's template) with `tensors` written in.

    Nothing outside the manifest's ranges changes. Raises `Malformed` on a wrong shape, size or a value not finite.
    """
    if len(data) != manifest.size_bytes:
        raise Malformed(f"the manifest says {manifest.size_bytes} bytes, the file has {len(data)}")
    out = bytearray(data)
    for tensor in manifest.tensors:
        value = tensors.get(tensor.name)
        if value is None or tuple(value.shape) != tensor.shape:
            raise Malformed(f"tensor {tensor.name} has shape {tensor.shape}, got {getattr(value, 'shape', None)}")
        if tensor.kind == "int8":
            codes, scale = quantize(value)
            raw = (codes.T if tensor.transposed else codes).tobytes()
            for offset in tensor.scale_offsets:
                out[offset : offset + 4] = scale.astype("<f4").tobytes()
        else:
            if not np.isfinite(value).all():
                raise Malformed(f"weights are finite, got NaN or Inf in {tensor.name}")
            raw = (value.T if tensor.transposed else value).astype("<f4").tobytes()
        for offset in tensor.offsets:
            out[offset : offset + len(raw)] = raw
    return bytes(out)
