"""Taking out of a `.tflite` what no interpreter reads: about a third of what the graphs take beside the weights.

Used on every file that the converter makes, before the places of its weights are looked up. The graph itself stays:
the same ops in the same order on the same constants, so every output is the same bit for bit. The rules:
- names of tensors and subgraphs, the description, metadata and quantization tables without a scale go; the names of
  signatures, of their arguments and results stay;
- tensors without data refer to buffer 0, which the format keeps empty for that;
- equal shapes, operands, options and data-free tensors are written once (a flatbuffer may refer to a table twice);
- what a version patches is never shared: neither data other than whole numbers, nor a scale, so that two weights that
  happen to be equal in a template stay two;
- data stand on multiples of 16 bytes, as the converter puts them: XNNPACK reads them where they stand.
"""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

IDENTIFIER = b"TFL3"
DATA_ALIGNMENT = 16
_WHOLE_NUMBERS = (schema.TensorType.INT32, schema.TensorType.INT64, schema.TensorType.BOOL)
_ROOM = 65_536


class NotAModel(ValueError):  # noqa: N818 - named for what the bytes are
    """The bytes are no `.tflite`, or one that keeps data outside the flatbuffer; the message says which."""


def slim(data: bytes) -> bytes:
    """Return the same model in fewer bytes; slimming what is slim already changes nothing. Raises `NotAModel`."""
    if data[4:8] != IDENTIFIER:
        raise NotAModel(f"a .tflite has the identifier {IDENTIFIER.decode()}, got {bytes(data[4:8])!r}")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    if any(buffer.offset or buffer.size for buffer in model.buffers) or model.externalBuffers:
        raise NotAModel("a model keeps its data inside the flatbuffer, and this one does not")
    model.description = model.metadata = model.metadataBuffer = None
    memo: dict[object, int] = {}
    for subgraph in model.subgraphs:
        subgraph.name = None
        subgraph.debugMetadataIndex = -1
        for tensor in subgraph.tensors:
            _strip(tensor)
        for operator in subgraph.operators or []:
            operator.debugMetadataIndex = -1
            for name in ("builtinOptions", "builtinOptions2"):
                options = getattr(operator, name)
                if options is not None:
                    setattr(operator, name, _Shared(options, memo))
    model.buffers = _used_buffers(model)
    for subgraph in model.subgraphs:
        subgraph.tensors = [_Shared(tensor, memo) if _shareable(tensor) else tensor for tensor in subgraph.tensors]
    builder = _SharingBuilder(len(data) + _ROOM)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _strip(tensor: Any) -> None:
    tensor.name = None
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is None and quantization.details is None:
        tensor.quantization = None


def _shareable(tensor: Any) -> bool:
    return tensor.quantization is None and tensor.sparsity is None and not tensor.variantTensors


def _used_buffers(model: Any) -> list[Any]:
    """Return the buffers that hold data behind the empty one, and let the tensors refer to them."""
    buffers = [schema.BufferT()]
    places: dict[object, int] = {}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            buffer = model.buffers[tensor.buffer]
            if buffer.data is None or not len(buffer.data):
                tensor.buffer = 0
                continue
            key: object = tensor.buffer
            if tensor.type in _WHOLE_NUMBERS:
                key = bytes(buffer.data)
            if key not in places:
                places[key] = len(buffers)
                buffers.append(buffer)
            tensor.buffer = places[key]
    return buffers


def _identity(value: Any) -> object:
    """Return what two objects of the schema have in common exactly if they are written alike."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        return tuple(_identity(item) for item in value)
    if hasattr(value, "Pack"):
        return type(value).__name__, tuple((name, _identity(field)) for name, field in sorted(vars(value).items()))
    return value


class _Shared:
    """An object of the schema that is packed once for all that equal it."""

    def __init__(self, value: Any, memo: dict[object, int]) -> None:
        self._value = value
        self._memo = memo

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's name
        key = _identity(self._value)
        if key not in self._memo:
            self._memo[key] = int(self._value.Pack(builder))
        return self._memo[key]


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc] # flatbuffers ships no types
    """Writes equal int32 vectors once, and bytes on multiples of 16."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[bytes, int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802 - the builder's name
        if x.dtype == np.int32:
            key = x.tobytes()
            if key not in self._vectors:
                self._vectors[key] = int(super().CreateNumpyVector(x))
            return self._vectors[key]
        if x.dtype != np.uint8:
            return int(super().CreateNumpyVector(x))
        self.StartVector(1, x.size, DATA_ALIGNMENT)
        start = self.Head() - x.size
        self.head = start
        self.Bytes[start : start + x.size] = x.tobytes()
        return int(self.EndVector())
