"""Is a version's file what its manifest says, byte range by byte range? Asked before anything reads its graphs.

`read_bundle` has compared hashes; whoever signs can still sign nonsense, or be given a file of another exporter. The
rules:
- the bytes are a TFLite flatbuffer, version 3; every table, vector and buffer that is read lies inside them;
- there are no more graphs, tensors, operators and buffers than this exporter would ever make;
- its signatures are the manifest's, by name and by the shapes that the manifest states, and their ops are built in;
- a weight of the family next-word is a constant of its own: its offset is where that begins, and the lengths agree; one
  of the family arrays lies inside a constant of its kind, which may hold several. A scale is one of a tensor's
  quantization, or lies in a float32 constant. So a manifest that lies about offsets patches nothing else;
- nothing but `UnexpectedFile` comes out, whatever the bytes.
"""

import struct
from bisect import bisect_right
from typing import Any, Final

from ai_edge_litert import schema_py_generated as schema

from model_export.flatbuffer import UnexpectedFile, check_rules, operators
from wire_contract.manifest import TEXT_FAMILY, Manifest, SignatureSpec, signature_family

VERSION: Final = 3
IDENTIFIER: Final = b"TFL3"
MAX_GRAPHS, MAX_ITEMS = 256, 200_000
_BUFFER_DATA_FIELD, _SCALE_FIELD = 4, 8
_FLOAT32: Final = schema.TensorType.FLOAT32
_STORED: Final = {"int8": "INT8", "float16": "FLOAT16", "float32": "FLOAT32"}
# What Python's flatbuffer accessors raise on bytes that lead outside the file or are no table.
_BROKEN: Final = (
    struct.error, IndexError, ValueError, TypeError, AttributeError, KeyError, OverflowError, UnicodeError,
)  # fmt: skip


def check_structure(data: bytes, manifest: Manifest) -> None:
    """Raise `UnexpectedFile` unless every rule holds."""
    if data[4:8] != IDENTIFIER:
        raise UnexpectedFile(f"a .tflite has the identifier {IDENTIFIER.decode()}, got {bytes(data[4:8])!r}")
    try:
        _check(data, manifest)
        _check_operators(data, manifest)
    except _BROKEN as e:
        raise UnexpectedFile(f"every table lies inside the file, got {type(e).__name__}: {str(e)[:120]}") from e


def _check(data: bytes, manifest: Manifest) -> None:
    model = schema.Model.GetRootAs(data, 0)
    if model.Version() != VERSION:
        raise UnexpectedFile(f"a .tflite has version {VERSION}, got {model.Version()}")
    graphs = [model.Subgraphs(i) for i in range(_count("graphs", model.SubgraphsLength(), MAX_GRAPHS))]
    _check_signatures(model, len(graphs), manifest)
    constants = _buffers(model, data)
    codes = _count("operator codes", model.OperatorCodesLength(), MAX_ITEMS)
    left = MAX_ITEMS
    scales: set[int] = set()
    types: dict[int, set[int]] = {}
    for graph in graphs:
        tensors = _count("tensors", graph.TensorsLength(), left)
        operators = _count("operators", graph.OperatorsLength(), left - tensors)
        left -= tensors + operators
        for i in range(tensors):
            _read_tensor(graph.Tensors(i), data, constants, scales, types)
        for i in range(operators):
            _check_operator(graph.Operators(i), tensors, codes)
    _check_places(manifest, constants, scales, types)


def _count(what: str, count: int, most: int) -> int:
    if not 0 <= count <= most:
        raise UnexpectedFile(f"a file has at most {most} {what} here, got {count}")
    return count


def _check_signatures(model: Any, graphs: int, manifest: Manifest) -> None:
    names: set[str] = set()
    for i in range(_count("signatures", model.SignatureDefsLength(), MAX_GRAPHS)):
        signature = model.SignatureDefs(i)
        name = signature.SignatureKey().decode()
        names.add(name)
        if not 0 <= signature.SubgraphIndex() < graphs:
            raise UnexpectedFile(f"a signature's graph is one of {graphs}, got {signature.SubgraphIndex()}")
        if name in manifest.signatures:
            _check_shapes(name, manifest.signatures[name], _inputs(model, signature))
    if names != set(manifest.signatures):
        raise UnexpectedFile(
            f"the file's signatures are the manifest's, got {sorted(names ^ set(manifest.signatures))}"
        )


def _inputs(model: Any, signature: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a signature's arguments by name."""
    graph = model.Subgraphs(signature.SubgraphIndex())
    shapes = {}
    for i in range(_count("arguments", signature.InputsLength(), 256)):
        argument = signature.Inputs(i)
        if not 0 <= argument.TensorIndex() < graph.TensorsLength():
            raise UnexpectedFile(f"an argument is one of {graph.TensorsLength()} tensors, got {argument.TensorIndex()}")
        tensor = graph.Tensors(argument.TensorIndex())
        rank = _count("dimensions", tensor.ShapeLength(), 8)
        shapes[argument.Name().decode()] = tuple(tensor.Shape(axis) for axis in range(rank))
    return shapes


def _check_shapes(name: str, spec: SignatureSpec, inputs: dict[str, tuple[int, ...]]) -> None:
    stated = {
        "targets": (spec.batch, spec.length),
        "tokens": (spec.length,) if signature_family(name) == "suggest_context" else (spec.batch, spec.length),
        "example_weights": (spec.batch,),
    }
    for argument, shape in stated.items():
        if inputs.get(argument, shape) != shape:
            raise UnexpectedFile(f"{name} takes {argument} {shape} by the manifest, got {inputs[argument]}")
    rows = inputs.get("candidate_rows", (spec.candidates,))
    if rows[:1] != (spec.candidates,):
        raise UnexpectedFile(f"{name} takes {spec.candidates} candidates by the manifest, got {rows}")


def _buffers(model: Any, data: bytes) -> dict[int, tuple[int, int]]:
    """Return (start, length) of each buffer's bytes by its number; an empty one has none."""
    places = {}
    for number in range(_count("buffers", model.BuffersLength(), MAX_ITEMS)):
        buffer = model.Buffers(number)
        if buffer.Offset() or buffer.Size():
            raise UnexpectedFile(f"weights stand inside the flatbuffer, got buffer {number} outside it")
        length = buffer.DataLength()
        if not length:
            continue
        start = _vector(buffer, _BUFFER_DATA_FIELD)
        if not 0 <= start <= start + length <= len(data):
            raise UnexpectedFile(f"a buffer lies inside the file of {len(data)} bytes, got {start}..{start + length}")
        places[number] = (start, length)
    return places


def _vector(table: Any, field: int) -> int:
    return int(table._tab.Vector(table._tab.Offset(field)))


def _read_tensor(
    tensor: Any,
    data: bytes,
    constants: dict[int, tuple[int, int]],
    scales: set[int],
    types: dict[int, set[int]],
) -> None:
    if tensor.Buffer() in constants:
        types.setdefault(constants[tensor.Buffer()][0], set()).add(tensor.Type())
    _count("dimensions", tensor.ShapeLength(), 8)
    quantization = tensor.Quantization()
    count = 0 if quantization is None else _count("scales of a tensor", quantization.ScaleLength(), MAX_ITEMS)
    if count == 1:
        start = _vector(quantization, _SCALE_FIELD)
        if not 0 <= start <= len(data) - 4:
            raise UnexpectedFile(f"a scale lies inside the file of {len(data)} bytes, got {start}")
        scales.add(start)


def _check_operators(data: bytes, manifest: Manifest) -> None:
    if manifest.family == TEXT_FAMILY:
        check_rules(data)
        return
    # A frozen layer of somebody's own model is a FULLY_CONNECTED in its train signature, too.
    for signature, counts in operators(data).items():
        custom = [op for op in counts if op.startswith(("CUSTOM", "DELEGATE"))]
        if custom:
            raise UnexpectedFile(f"a signature uses built-in ops only, got {signature}: {custom}")


def _check_operator(operator: Any, tensors: int, codes: int) -> None:
    if not 0 <= operator.OpcodeIndex() < codes:
        raise UnexpectedFile(f"an operator's code is one of {codes}, got {operator.OpcodeIndex()}")
    for length, at in ((operator.InputsLength(), operator.Inputs), (operator.OutputsLength(), operator.Outputs)):
        for i in range(_count("operands", length, 4096)):
            if not -1 <= at(i) < tensors:
                raise UnexpectedFile(f"an operand is one of {tensors} tensors, got {at(i)}")


def _check_places(
    manifest: Manifest, constants: dict[int, tuple[int, int]], scales: set[int], types: dict[int, set[int]]
) -> None:
    ranges = sorted(constants.values())
    starts = [start for start, _ in ranges]

    def holder(start: int) -> tuple[int, int] | None:
        number = bisect_right(starts, start) - 1
        return ranges[number] if number >= 0 else None

    for tensor in manifest.tensors:
        for offset in tensor.offsets:
            held = holder(offset)
            fits = held is not None and (
                held == (offset, tensor.size_bytes)
                if manifest.family == TEXT_FAMILY
                else offset + tensor.size_bytes <= sum(held)
            )
            if not fits or held is None:
                raise UnexpectedFile(
                    f"a weight is a constant of the file, got {tensor.name} with {tensor.size_bytes} bytes at {offset}"
                )
            if types.get(held[0]) != {getattr(schema.TensorType, _STORED[tensor.kind])}:
                raise UnexpectedFile(f"{tensor.name} is stored as {tensor.kind}, got types {types.get(held[0])}")
        for offset in tensor.scale_offsets:
            held = holder(offset)
            in_floats = held is not None and offset + 4 <= sum(held) and types.get(held[0]) == {_FLOAT32}
            if offset not in scales and not in_floats:
                raise UnexpectedFile(f"a scale stands in a tensor's quantization, got {tensor.name} at {offset}")
