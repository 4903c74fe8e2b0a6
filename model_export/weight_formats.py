"""The suggestions converted with other formats of the same weights, and who can run them. Imports TensorFlow.

    float32        as they are
    float16        rounded once; DEQUANTIZE in the graph
    int8-tensor    one scale a tensor: what bundles hold
    int8-channel   one scale a row, the converter's default: FULLY_CONNECTED version 12, the embedding kept twice
    int4-embedding int8-tensor with the embedding in 4 bits, two codes a byte: the converter makes no such file, so the
                   constant and what is gathered from it are rewritten here; one scale a tensor, as one constant serves
                   GATHER and FULLY_CONNECTED alike

Only `suggest` and `suggest_context` are converted: the training signatures hold no weights and are the same in each.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from model_export.conformance import Case, ConformanceError, run_on_device
from model_export.convert import ConversionError
from model_export.network import EMBEDDING
from model_export.quiet import quiet
from model_export.slimming import IDENTIFIER, slim
from wire_contract.layout import Tensors

FORMATS: Final = ("float32", "float16", "int8-tensor", "int8-channel", "int4-embedding")
_LARGEST_4_BITS = 7


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Whether a runtime runs a file; `why` holds its last words where it does not."""

    runtime: str
    accepted: bool
    why: str


def convert_format(tensors: Tensors, name: str) -> bytes:
    """Return the suggestions' file with these weights in one of `FORMATS`. Raises `ConversionError`."""
    if name == "int4-embedding":
        return four_bits(convert_format(tensors, "int8-tensor"), tensors[EMBEDDING])
    with quiet():
        import tensorflow as tf

        from model_export.signatures import suggestion_signatures

        functions = dict(suggestion_signatures(tensors))
        with tempfile.TemporaryDirectory(prefix="weight-formats-") as folder:
            tf.saved_model.save(tf.Module(), folder, signatures=functions)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            if name != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if name == "float16":
                converter.target_spec.supported_types = [tf.float16]
            converter._experimental_disable_per_channel_quantization_for_dense_layers = name == "int8-tensor"
            try:
                return slim(bytes(converter.convert()))
            except Exception as e:
                # The converter raises its own classes and plain ones alike.
                raise ConversionError(f"{name}: the converter failed: {str(e).strip().splitlines()[-1]}") from e


def four_bits(data: bytes, embedding: NDArray[np.float32]) -> bytes:
    """Return the file with its int8 embedding rewritten as 4-bit codes under one scale."""
    exact = embedding.astype(np.float64).ravel()
    scale = float(np.abs(exact).max()) / _LARGEST_4_BITS
    codes = np.clip(np.rint(exact / scale), -_LARGEST_4_BITS, _LARGEST_4_BITS).astype(np.int8)
    low, high = np.append(codes, np.int8(0))[: len(codes) + len(codes) % 2].reshape(-1, 2).T
    packed = ((low & 0xF) | ((high & 0xF) << 4)).astype(np.uint8)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for graph in model.subgraphs:
        constants = {
            i for i, tensor in enumerate(graph.tensors)
            if tensor.type == schema.TensorType.INT8 and tuple(tensor.shape) == embedding.shape
        }  # fmt: skip
        gathered = {o.outputs[0] for o in graph.operators if o.inputs[0] in constants and _is_gather(model, o)}
        for i in constants | gathered:
            graph.tensors[i].type = schema.TensorType.INT4
            graph.tensors[i].quantization.scale = np.array([scale], np.float32)
        for i in constants:
            model.buffers[graph.tensors[i].buffer].data = packed
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return slim(bytes(builder.Output()))


def _is_gather(model: Any, operator: Any) -> bool:
    code = model.operatorCodes[operator.opcodeIndex]
    return bool(max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.GATHER)


def accepts(device_python: Path, runtime: str, data: bytes, context: Mapping[str, NDArray[np.generic]]) -> Acceptance:
    """Ask an interpreter in a process of its own to run `suggest_context` once."""
    with tempfile.TemporaryDirectory(prefix="weight-formats-") as folder:
        model = Path(folder) / "model.tflite"
        model.write_bytes(data)
        command = [str(device_python), "-m", "edge_runtime.cli"]
        try:
            (outputs,) = run_on_device(command, model, [Case("suggest_context", dict(context))], runtime)
        except ConformanceError as e:
            return Acceptance(runtime, False, str(e).rsplit(": ", 1)[-1][:160])
    sound = "log_probs" in outputs and bool(np.isfinite(np.asarray(outputs["log_probs"], np.float64)).all())
    return Acceptance(runtime, sound, "" if sound else "answers are not finite")
