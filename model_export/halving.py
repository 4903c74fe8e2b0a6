"""Weights as float16 constants in the graphs that suggest: a fallback for a network that loses too much in int8.

Used before `slimming.slim` on a file converted without quantization. The converter's own float16 mode would round the
train signatures' constants too (1e-30 becomes 0); here only the matrices of the named signatures change, each behind
one DEQUANTIZE, which all runtimes do once when they prepare the graph. Biases stay float32.
"""

from collections.abc import Collection
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from model_export.slimming import IDENTIFIER

SMALLEST_VALUES = 1024


def halve(data: bytes, signatures: Collection[str]) -> bytes:
    """Return the model with the constant float32 matrices of those signatures' graphs as float16."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    halved: dict[int, int] = {}
    for signature in model.signatureDefs:
        if signature.signatureKey.decode() in signatures:
            _halve_graph(model, model.subgraphs[signature.subgraphIndex], halved)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _halve_graph(model: Any, graph: Any, halved: dict[int, int]) -> None:
    """Put a float16 constant and a DEQUANTIZE before each matrix; `halved` maps buffers to their float16 ones."""
    opened = []
    for index in range(len(graph.tensors)):
        tensor = graph.tensors[index]
        buffer = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or buffer is None or len(tensor.shape) != 2:
            continue
        if int(np.prod(tensor.shape)) < SMALLEST_VALUES:
            continue
        if tensor.buffer not in halved:
            halved[tensor.buffer] = len(model.buffers)
            values = np.frombuffer(bytes(buffer), "<f4").astype("<f2")
            model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        graph.tensors.append(
            schema.TensorT(
                shape=tensor.shape, type=schema.TensorType.FLOAT16, buffer=halved[tensor.buffer], hasRank=True
            )
        )
        tensor.buffer = 0
        opened.append(
            schema.OperatorT(
                opcodeIndex=_dequantize(model),
                inputs=np.array([len(graph.tensors) - 1], np.int32),
                outputs=np.array([index], np.int32),
            )
        )
    graph.operators = [*opened, *graph.operators]


def _dequantize(model: Any) -> int:
    """Return the index of DEQUANTIZE, which is listed if it is not yet; version 3 reads float16."""
    code = schema.BuiltinOperator.DEQUANTIZE
    for index, listed in enumerate(model.operatorCodes):
        if listed.builtinCode == code and listed.version >= 3:
            return index
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=3))
    return len(model.operatorCodes) - 1
