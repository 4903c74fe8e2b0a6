"""From an examined model to one `.tflite` of three signatures, and where in it the fleet's tensors stand.

The rules:
- TFLITE_BUILTINS only, and no variable: both are looked for again in the finished file;
- the fleet's tensors are converted with the same synthetic values whatever the model's are, then written in as the
  cloud and the phone do it: the template's hash depends on the model's shape and its frozen layers only;
- places are found by structure (the constant that a GATHER reads) and by content, each exactly once, and tried: with
  other weights written in, `predict` must give what the rewritten model computes on them.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from model_export.array_model import ArrayTemplate
from model_export.convert import ConversionError
from model_export.flatbuffer import UnexpectedFile, operators
from model_export.keras_graph.agreement import Agreement, draw_examples
from model_export.keras_graph.array_signatures import ArraySignatures
from model_export.keras_graph.examine import Examined, Weight
from model_export.keras_graph.forward import forward
from model_export.keras_graph.losses import LOSSES
from model_export.keras_graph.stored_weights import CODES_A_ROW, FLOATS_A_ROW, StoredTensor, StoredWeights
from model_export.keras_graph.synthetic import synthetic_examples, synthetic_weights
from model_export.slimming import slim
from wire_contract.layout import Tensors
from wire_contract.manifest import TensorEntry

TEMPLATE_SEED = 1
VARIABLE_OPERATORS = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
PATCH_TOLERANCE = 1e-4
_BUFFER_DATA_FIELD = 4


def fleet_tensors(examined: Examined) -> Tensors:
    """Return the model's own values of the tensors that the fleet trains."""
    return {
        w.name: np.asarray(tf.convert_to_tensor(w.variable.value), np.float32).reshape(w.shape)
        for w in examined.trainable
    }


def base_weights(examined: Examined, used: frozenset[tuple[int, int]]) -> StoredWeights:
    """Return the frozen weights that the graph reads, as they stand in the file."""
    return StoredWeights(
        {
            w.name: np.asarray(tf.convert_to_tensor(w.variable.value), np.float32)
            for w in examined.frozen
            if w.key in used
        },
        by_channel=True,
    )


def template_weights(examined: Examined) -> StoredWeights:
    """Return the values that every template of this shape is converted with."""
    rng = np.random.Generator(np.random.PCG64(TEMPLATE_SEED))
    drawn = {w.name: rng.uniform(-0.9, 0.9, w.shape).astype(np.float32) for w in examined.trainable}
    return StoredWeights(drawn, by_channel=False)


def convert_arrays(examined: Examined, agreement: Agreement, batch: int) -> ArrayTemplate:
    """Return the template. Raises `ConversionError`, `UnexpectedFile` or `VariableInGraph`."""
    base, fleet = base_weights(examined, agreement.used), template_weights(examined)
    data = slim(_converted(ArraySignatures(examined, base, fleet, batch).functions()))
    check_operators(data)
    tensors = _places(data, examined, fleet)
    template = ArrayTemplate(
        data, tensors, examined.examples, examined.loss.name, batch, _template_loss(examined, base, batch)
    )
    _try_other_weights(template, examined, base)
    return template


def _converted(functions: Mapping[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="model-export-") as folder:
        # Gradients are in the graphs already; saving each function's own again takes longer than the conversion.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(tf.Module(), folder, signatures=dict(functions), options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except Exception as e:
            # The converter raises its own classes and plain ones alike.
            raise ConversionError(f"the TensorFlow Lite converter failed: {str(e).strip().splitlines()[-1]}") from e


def check_operators(data: bytes) -> None:
    """Raise `UnexpectedFile` if a signature of the file has an operator of its own, or a variable."""
    for signature, counts in operators(data).items():
        wrong = [op for op in counts if op.startswith(("CUSTOM", "DELEGATE")) or op in VARIABLE_OPERATORS]
        if wrong:
            raise UnexpectedFile(f"a signature has built-in ops and no variable, got {signature}: {wrong}")


def _places(data: bytes, examined: Examined, fleet: StoredWeights) -> tuple[TensorEntry, ...]:
    model = schema.Model.GetRootAs(data, 0)
    at = {name: _place(model, name, value) for name, value in fleet.constants().items()}
    return tuple(_entry(w, fleet.tensors[w.name], at) for w in examined.trainable)


def _entry(weight: Weight, stored: StoredTensor, at: Mapping[str, int]) -> TensorEntry:
    if stored.kind == "float32":
        offset = at["floats"] + stored.row * FLOATS_A_ROW * 4
        return TensorEntry(name=weight.name, shape=weight.shape, kind="float32", offsets=(offset,))
    return TensorEntry(
        name=weight.name, shape=weight.shape, kind="int8", offsets=(at["codes"] + stored.row * CODES_A_ROW,),
        scale_offsets=(at["scales"] + 4 * stored.scale,),
    )  # fmt: skip


def _place(model: Any, name: str, value: NDArray[Any]) -> int:
    """Return the position of a constant: the one buffer with these bytes, read by GATHER and nothing else."""
    wanted = value.astype(value.dtype.newbyteorder("<")).tobytes()
    buffers = [
        i
        for i in range(model.BuffersLength())
        if model.Buffers(i).DataLength() == len(wanted) and model.Buffers(i).DataAsNumpy().tobytes() == wanted
    ]
    if len(buffers) != 1:
        raise UnexpectedFile(f"the fleet's {name} stand once in the file, got {len(buffers)} places")
    readers = set(_readers(model, buffers[0]))
    if readers != {("GATHER", 0)}:
        raise UnexpectedFile(f"the fleet's {name} are read by GATHER only, got {sorted(readers)}")
    table = model.Buffers(buffers[0])
    return int(table._tab.Vector(table._tab.Offset(_BUFFER_DATA_FIELD)))


def _readers(model: Any, buffer: int) -> Any:
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for s in range(model.SubgraphsLength()):
        graph = model.Subgraphs(s)
        tensors = {i for i in range(graph.TensorsLength()) if graph.Tensors(i).Buffer() == buffer}
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            code = model.OperatorCodes(operator.OpcodeIndex())
            for k in range(operator.InputsLength()):
                if operator.Inputs(k) in tensors:
                    yield names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], k
        yield from (("a result", i) for i in range(graph.OutputsLength()) if graph.Outputs(i) in tensors)


def rewritten(
    examined: Examined, base: StoredWeights, tensors: Mapping[str, NDArray[np.float32]], arrays: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the rewritten model's output in float64, before the activation that the loss takes off.

    tensors: the fleet's; the frozen ones are those that stand in the file.
    """
    by_id = {id(w.variable): tensors[w.name].reshape(tuple(w.variable.shape)) for w in examined.trainable}
    by_id |= {id(w.variable): base.values(w.name) for w in examined.frozen if w.name in base.tensors}
    given = {
        spec.name: tf.constant(arrays[spec.name], tf.float64 if spec.dtype == "float32" else tf.int32)
        for spec in examined.inputs
    }
    output = forward(examined, given, lambda variable: tf.constant(by_id[id(variable)], tf.float64), tf.float64)
    return np.asarray(output, np.float64)


def _template_loss(examined: Examined, base: StoredWeights, batch: int) -> float:
    """Return loss / count of `evaluate` on synthetic weights and examples, in float64."""
    arrays = synthetic_examples(examined.examples, 0, batch)
    output = rewritten(examined, base, {w.name: synthetic_weights(w.shape) for w in examined.trainable}, arrays)
    target = arrays[examined.target.name]
    wanted = tf.constant(target, tf.float64 if target.dtype == np.float32 else tf.int32)
    losses = LOSSES[examined.loss.name].per_example(tf.constant(output), wanted)
    return float(np.mean(np.asarray(losses)))


def _try_other_weights(template: ArrayTemplate, examined: Examined, base: StoredWeights) -> None:
    """Raise `UnexpectedFile` unless other weights, written in at the places found, are what `predict` computes with."""
    from model_export.interpreter import Interpreter

    rng = np.random.Generator(np.random.PCG64(TEMPLATE_SEED + 1))
    drawn = {w.name: rng.uniform(-0.4, 0.7, w.shape).astype(np.float32) for w in examined.trainable}
    stored = StoredWeights(drawn, by_channel=False)
    data = bytearray(template.data)
    for entry in template.tensors:
        _write(data, entry, stored)
    arrays = draw_examples(examined, 1, rng)
    got = Interpreter(bytes(data)).run("predict", {spec.name: arrays[spec.name] for spec in examined.inputs})["outputs"]
    held = {name: stored.values(name) for name in stored.tensors}
    output = tf.constant(rewritten(examined, base, held, arrays))
    expected = np.asarray(LOSSES[examined.loss.name].prediction(output))
    error = float(np.max(np.abs(got - expected))) / max(1.0, float(np.max(np.abs(expected))))
    if not error <= PATCH_TOLERANCE:
        raise UnexpectedFile(
            f"`predict` follows weights written into the file within {PATCH_TOLERANCE}, got {error:.2g}"
        )


def _write(data: bytearray, entry: TensorEntry, stored: StoredWeights) -> None:
    held = stored.tensors[entry.name]
    if entry.kind == "float32":
        raw = stored.floats[held.row : held.row + held.rows].tobytes()[: entry.size_bytes]
    else:
        raw = stored.codes[held.row : held.row + held.rows].tobytes()[: entry.size]
        data[entry.scale_offsets[0] : entry.scale_offsets[0] + 4] = stored.scales[held.scale].astype("<f4").tobytes()
    data[entry.offsets[0] : entry.offsets[0] + len(raw)] = raw
