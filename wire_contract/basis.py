"""A basis: an orthogonal turn of the model's width, in which a delta is sparser than in the axes it was trained in.

The axes of embedding and state are arbitrary: a network whose matrices are all turned alike computes the same. In the
principal axes of the embedding (eigenvectors of E^T E) the energy of a delta gathers in fewer values: the 2,000 largest
of the kernel's hold 57 % of it instead of 38 % (ADR 11). So a plan may name a basis, public and the same for every
device: `topk` then selects and sends turned values, sums are sums of turned values, and the aggregator turns the mean
back once a step. The turn is linear and keeps every L2 norm: clipping and sums mean what they mean without it.

File, little-endian: magic "EFB1" | body, a MessagePack map (`BasisFile`). Its SHA-256 is its name. The rules:
- the matrix [W, W] is finite float32 and orthogonal within 1e-3 in each entry of R^T R;
- each turned tensor is named once, with the axis that is turned, whose length is a multiple of W (blocks of W);
- turning back is the fleet's arithmetic, not a library's: one product and one sum at a time in float64, so that a
  replay on another machine gives the same bits. Turning on the device may use whatever is quick.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from wire_contract.errors import Malformed
from wire_contract.layout import Layout, Vector
from wire_contract.messages import MAX_BASIS_BYTES

MAGIC: Final = b"EFB1"
ID_BYTES: Final = 8
NO_BASIS: Final = bytes(ID_BYTES)
MAX_WIDTH: Final = 1024
ORTHOGONAL_WITHIN: Final = 1e-3


class Turned(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor, and which of its axes is turned."""

    tensor: Annotated[str, msgspec.Meta(max_length=200)]
    axis: Annotated[int, msgspec.Meta(ge=0, le=3)]


class BasisFile(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a basis file: `matrix` holds W x W little-endian float32, row by row; a column is a new axis."""

    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_WIDTH)]
    turned: Annotated[tuple[Turned, ...], msgspec.Meta(min_length=1, max_length=64)]
    matrix: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """`matrix` float32 [W, W], orthogonal; the tensors that are turned; the file's SHA-256."""

    matrix: NDArray[np.float32]
    turned: tuple[Turned, ...]
    sha256: str

    @property
    def width(self) -> int:
        """W, the number of axes that are turned together."""
        return len(self.matrix)


def basis_id(sha256: str) -> bytes:
    """Return the first 8 bytes of a basis's hash, zeros where there is none: what a residual says of its axes."""
    return bytes.fromhex(sha256)[:ID_BYTES] if sha256 else NO_BASIS


def encode_basis(matrix: NDArray[np.float32], turned: tuple[Turned, ...]) -> bytes:
    """Return the file of a basis; inverse of `decode_basis`. Raises `Malformed` where a rule is broken."""
    body = BasisFile(width=len(matrix), turned=turned, matrix=matrix.astype("<f4").tobytes())
    data = MAGIC + msgspec.msgpack.encode(body)
    decode_basis(data)
    return data


def decode_basis(data: bytes) -> Basis:
    """Read a basis file. Raises `Malformed`, whatever the bytes; that its hash is the wanted one is the caller's."""
    if not len(MAGIC) < len(data) <= MAX_BASIS_BYTES:
        raise Malformed(f"a basis has {len(MAGIC) + 1} to {MAX_BASIS_BYTES} bytes, got {len(data)}")
    if data[: len(MAGIC)] != MAGIC:
        raise Malformed(f"a basis begins with {MAGIC!r}, got {data[: len(MAGIC)]!r}")
    try:
        body = msgspec.msgpack.decode(data[len(MAGIC) :], type=BasisFile)
    except (msgspec.DecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"a basis is a MessagePack map of the contract's fields: {e}") from e
    if len(body.matrix) != 4 * body.width**2:
        raise Malformed(f"a basis of width {body.width} has {4 * body.width**2} bytes, got {len(body.matrix)}")
    names = [each.tensor for each in body.turned]
    if len(set(names)) != len(names):
        raise Malformed(f"a tensor is turned once, got {names}")
    matrix = np.frombuffer(body.matrix, "<f4").reshape(body.width, body.width).astype(np.float32)
    if not np.isfinite(matrix).all():
        raise Malformed("a basis is finite, got NaN or Inf")
    with np.errstate(over="ignore", invalid="ignore"):
        off = float(np.max(np.abs(matrix.T.astype(np.float64) @ matrix - np.eye(body.width))))
    if not off <= ORTHOGONAL_WITHIN:
        raise Malformed(f"a basis is orthogonal within {ORTHOGONAL_WITHIN}, got {off:.3g}")
    matrix.setflags(write=False)
    return Basis(matrix, body.turned, hashlib.sha256(data).hexdigest())


def check_fits(basis: Basis, layout: Layout) -> None:
    """Raise `Malformed` unless every turned tensor is the layout's, with an axis of a multiple of W."""
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    for each in basis.turned:
        shape = shapes.get(each.tensor)
        if shape is None or each.axis >= len(shape) or shape[each.axis] % basis.width:
            raise Malformed(f"axis {each.axis} of {each.tensor} is a multiple of {basis.width}, got shape {shape}")


def turn(vector: Vector, layout: Layout, basis: Basis) -> Vector:
    """Return the float32 vector (layout order) in the basis's axes. Raises `Malformed` if the basis does not fit."""
    check_fits(basis, layout)
    turned = vector.astype(np.float32)
    tensors = layout.unflatten(turned)
    for each in basis.turned:
        blocks = _blocks(tensors[each.tensor], each.axis, basis.width)
        blocks[...] = blocks @ basis.matrix
    return turned


def turn_back(vector: Vector, layout: Layout, basis: Basis) -> Vector:
    """Return a turned float32 vector in the model's own axes; inverse of `turn` up to rounding."""
    check_fits(basis, layout)
    whole = vector.astype(np.float32)
    tensors = layout.unflatten(whole)
    matrix = basis.matrix.astype(np.float64)
    for each in basis.turned:
        blocks = _blocks(tensors[each.tensor], each.axis, basis.width)
        columns = np.ascontiguousarray(np.moveaxis(blocks, -1, 0)).astype(np.float64)
        for old in range(basis.width):
            total = np.zeros_like(columns[0])
            for new in range(basis.width):
                total += columns[new] * matrix[old, new]
            blocks[..., old] = total.astype(np.float32)
    return whole


def _blocks(tensor: NDArray[np.float32], axis: int, width: int) -> NDArray[np.float32]:
    """Return a view of the tensor whose last axis is one block of W values along `axis`."""
    shape = tensor.shape
    split = tensor.reshape(*shape[:axis], shape[axis] // width, width, *shape[axis + 1 :])
    return np.moveaxis(split, axis + 1, -1)
