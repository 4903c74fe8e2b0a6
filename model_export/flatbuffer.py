"""Reading an exported `.tflite`: which ops a signature uses, and where in the file each weight stands.

Weights are found by structure, not by searching for bytes: the suggest graphs take the embedding by GATHER, and each
matrix as the constant side of a FULLY_CONNECTED; a bias is that op's third input. The rules:
- a tensor stands once or more, as it is or transposed; every place is reported, so that none is left stale;
- a float16 matrix is the constant side of a DEQUANTIZE in front of those ops;
- a scale is reported wherever a tensor of that buffer, or one gathered from it, carries it;
- what does not fit this picture (another dtype, a zero point, several scales, weights kept outside the flatbuffer) is
  refused by name.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from model_export.network import EMBEDDING, KERNEL, KERNEL_BIAS, OUTPUT_BIAS, PROJECTION, NetworkSize
from wire_contract.manifest import VALUE_BYTES, TensorEntry

SUGGEST_SIGNATURES = ("suggest", "suggest_context")
BIAS_OF = {KERNEL: KERNEL_BIAS, EMBEDDING: OUTPUT_BIAS}
_BUFFER_DATA_FIELD = 4
_QUANTIZATION_SCALE_FIELD = 8


class UnexpectedFile(Exception):  # noqa: N818 - named for what the file is
    """The converter made something that the exporter does not understand; the message names it."""


@dataclass(frozen=True, slots=True)
class Subgraph:
    """One signature's graph."""

    signature: str
    graph: Any


def _op_names() -> dict[int, str]:
    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def _subgraphs(model: Any) -> list[Subgraph]:
    return [
        Subgraph(signature.SignatureKey().decode(), model.Subgraphs(signature.SubgraphIndex()))
        for signature in (model.SignatureDefs(i) for i in range(model.SignatureDefsLength()))
    ]


def _op(model: Any, operator: Any, names: dict[int, str]) -> str:
    code = model.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if names[number] == "CUSTOM":
        return f"CUSTOM {code.CustomCode().decode()}"
    return names[number]


def operators(data: bytes) -> dict[str, dict[str, int]]:
    """Return, for each signature, how often each op occurs; a custom (also a Flex) op is named `CUSTOM <name>`."""
    model = schema.Model.GetRootAs(data, 0)
    names = _op_names()
    counts: dict[str, dict[str, int]] = {}
    for subgraph in _subgraphs(model):
        tally: dict[str, int] = defaultdict(int)
        for i in range(subgraph.graph.OperatorsLength()):
            tally[_op(model, subgraph.graph.Operators(i), names)] += 1
        counts[subgraph.signature] = dict(sorted(tally.items()))
    return counts


def _field_offset(table: Any, field: int) -> int:
    """Return the absolute position of a vector field's first element."""
    return int(table._tab.Vector(table._tab.Offset(field)))


Kind = Literal["int8", "float16", "float32"]
_KINDS: dict[int, Kind] = {
    schema.TensorType.INT8: "int8", schema.TensorType.FLOAT16: "float16", schema.TensorType.FLOAT32: "float32",
}  # fmt: skip


class _Places:
    """Where each fleet tensor's bytes and scales stand, collected over the suggest graphs."""

    def __init__(self, model: Any, size: NetworkSize) -> None:
        self.model = model
        self.size = size
        self.offsets: dict[str, set[int]] = defaultdict(set)
        self.scale_offsets: dict[str, set[int]] = defaultdict(set)
        self.transposed: dict[str, set[bool]] = defaultdict(set)
        self.kinds: dict[str, set[Kind]] = defaultdict(set)

    def add_constant(self, name: str, tensor: Any, *, transposed: bool) -> None:
        """Record the constant `tensor` as a place of `name`, and its scale if it is int8."""
        buffer = self.model.Buffers(tensor.Buffer())
        shape = self.size.tensor_shapes[name]
        allowed = ("float32",) if len(shape) == 1 else ("int8", "float16")
        kind = _KINDS.get(tensor.Type())
        if kind is None or kind not in allowed:
            raise UnexpectedFile(f"{name} is stored as {' or '.join(allowed)}, got type {tensor.Type()}")
        expected_bytes = int(np.prod(shape)) * VALUE_BYTES[kind]
        if buffer.DataLength() != expected_bytes:
            raise UnexpectedFile(f"{name} stands inside the file in {expected_bytes} bytes, got {buffer.DataLength()}")
        self.offsets[name].add(_field_offset(buffer, _BUFFER_DATA_FIELD))
        self.transposed[name].add(transposed)
        self.kinds[name].add(kind)
        if kind == "int8":
            self.add_scale(name, tensor)

    def add_scale(self, name: str, tensor: Any) -> None:
        """Record the one scale of an int8 tensor."""
        quantization = tensor.Quantization()
        scales = 0 if quantization is None else quantization.ScaleLength()
        if scales != 1:
            raise UnexpectedFile(f"{name} has one scale, got {scales}")
        if any(quantization.ZeroPoint(i) for i in range(quantization.ZeroPointLength())):
            raise UnexpectedFile(f"{name} is quantized symmetrically, got zero point {quantization.ZeroPoint(0)}")
        self.scale_offsets[name].add(_field_offset(quantization, _QUANTIZATION_SCALE_FIELD))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))


def _name_of_matrix(size: NetworkSize, shape: tuple[int, ...]) -> tuple[str, bool]:
    fits = [
        (name, transposed)
        for name in (EMBEDDING, KERNEL, PROJECTION)
        for transposed in (False, True)
        if (size.tensor_shapes[name][::-1] if transposed else size.tensor_shapes[name]) == shape
    ]
    if len(fits) != 1:
        raise UnexpectedFile(f"a constant matrix is one of the fleet's tensors, got shape {shape} which fits {fits}")
    return fits[0]


def weight_places(data: bytes, size: NetworkSize) -> tuple[TensorEntry, ...]:
    """Return every fleet tensor with its offsets, in the order of the layout. Raises `UnexpectedFile`."""
    model = schema.Model.GetRootAs(data, 0)
    names = _op_names()
    places = _Places(model, size)
    for subgraph in _subgraphs(model):
        if subgraph.signature not in SUGGEST_SIGNATURES:
            continue
        graph = subgraph.graph
        # A float16 constant is used through its DEQUANTIZE.
        constants: dict[int, Any] = {}
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            op = _op(model, operator, names)
            if op == "DEQUANTIZE" and graph.Tensors(operator.Inputs(0)).Type() == schema.TensorType.FLOAT16:
                constants[operator.Outputs(0)] = graph.Tensors(operator.Inputs(0))
                continue
            inputs = [constants.get(index) or graph.Tensors(index) if index >= 0 else None
                      for index in (operator.Inputs(k) for k in range(operator.InputsLength()))]  # fmt: skip
            if op == "GATHER" and _shape(inputs[0]) == size.tensor_shapes[EMBEDDING]:
                places.add_constant(EMBEDDING, inputs[0], transposed=False)
                gathered = graph.Tensors(operator.Outputs(0))
                if gathered.Type() == schema.TensorType.INT8:
                    places.add_scale(EMBEDDING, gathered)
            elif op == "FULLY_CONNECTED":
                name, transposed = _name_of_matrix(size, _shape(inputs[1]))
                places.add_constant(name, inputs[1], transposed=transposed)
                bias = inputs[2] if len(inputs) > 2 else None
                if name in BIAS_OF:
                    if bias is None:
                        raise UnexpectedFile(f"{BIAS_OF[name]} is the bias of its FULLY_CONNECTED, got none")
                    places.add_constant(BIAS_OF[name], bias, transposed=False)
    return tuple(_entry(places, name) for name in size.tensor_shapes)


def _entry(places: _Places, name: str) -> TensorEntry:
    if not places.offsets[name]:
        raise UnexpectedFile(f"{name} stands in the suggest graphs, got no place for it")
    if len(places.transposed[name]) != 1:
        raise UnexpectedFile(f"{name} is stored one way round, got both")
    if len(places.kinds[name]) != 1:
        raise UnexpectedFile(f"{name} is stored as one kind, got {sorted(places.kinds[name])}")
    return TensorEntry(
        name=name,
        shape=places.size.tensor_shapes[name],
        kind=places.kinds[name].pop(),
        offsets=tuple(sorted(places.offsets[name])),
        scale_offsets=tuple(sorted(places.scale_offsets[name])),
        transposed=places.transposed[name].pop(),
    )


def check_rules(data: bytes) -> None:
    """Raise `UnexpectedFile` unless all ops are built in and no train signature has a FULLY_CONNECTED."""
    for signature, counts in operators(data).items():
        custom = [op for op in counts if op.startswith(("CUSTOM", "DELEGATE"))]
        if custom:
            raise UnexpectedFile(f"a signature uses built-in ops only, got {signature}: {custom}")
        if signature.startswith("train") and counts.get("FULLY_CONNECTED", 0):
            raise UnexpectedFile(f"{signature} has no FULLY_CONNECTED, got {counts['FULLY_CONNECTED']}")
