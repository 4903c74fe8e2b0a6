"""The whole way of a Keras model: judged, converted, its weights written in, asked for its golden vectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.array_model import ArrayTemplate
from model_export.bundle import make_array_manifest
from model_export.convert import ConversionError
from model_export.flatbuffer import UnexpectedFile
from model_export.interpreter import Interpreter
from model_export.keras_graph.agreement import as_called, draw_examples, judge
from model_export.keras_graph.array_signatures import VariableInGraph
from model_export.keras_graph.array_template import convert_arrays, fleet_tensors
from model_export.keras_graph.examine import Examined
from model_export.keras_graph.refusal import Refusal, Refused
from model_export.keras_graph.synthetic import synthetic_examples
from model_export.lineage import export_lineage
from wire_contract.golden_choice import array_vectors
from wire_contract.manifest import ArraySpec, GoldenVector, Manifest

JUDGE_SEED = 1
ASKED_EXAMPLES = 16


@dataclass(frozen=True, slots=True)
class ExportedArrays:
    """Version 1 and what was measured of it. `int8_error`: the largest change of an output that int8 made, relative to
    the largest output."""

    model: bytes
    manifest: Manifest
    frozen_parameters: int
    gradient_error: float
    int8_error: float


def export_arrays(
    model: Any,
    examined: Examined,
    source: bytes,
    *,
    batch: int,
    population: str,
    now: int,
    valid_s: int,
    minimum_runtime: str = "",
    progress: Callable[[str], None] = lambda name: None,
) -> ExportedArrays | Refused:
    """Return version 1's file and manifest, or the first layer whose exported form is not Keras's.

    source: the bytes that the model was read from; their hash goes into the lineage. Raises `Malformed`.
    """
    progress("comparing with Keras")
    agreement = judge(model, examined, np.random.Generator(np.random.PCG64(JUDGE_SEED)))
    if isinstance(agreement, Refused):
        return agreement
    progress("converting")
    try:
        template = convert_arrays(examined, agreement, batch)
    except (ConversionError, UnexpectedFile, VariableInGraph) as e:
        change = "this is a fault of the exporter: please report it"
        return Refused((Refusal(str(model.name), type(model).__name__, str(e), change),))
    error = round(_int8_error(model, examined, template), 7)
    lineage = export_lineage([source], {"int8_error": error, "gradient_error": agreement.gradient_error})
    settings = {"population": population, "now": now, "valid_s": valid_s, "minimum_runtime": minimum_runtime}
    tensors = fleet_tensors(examined)
    data, _ = make_array_manifest(template, tensors, **settings)  # type: ignore[arg-type]
    vectors = golden_vectors(data, examined.inputs)
    data, manifest = make_array_manifest(
        template, tensors, golden_vectors=vectors, lineage=lineage, **settings  # type: ignore[arg-type]
    )  # fmt: skip
    frozen = sum(int(np.prod(w.variable.shape)) for w in examined.frozen if w.key in agreement.used)
    return ExportedArrays(data, manifest, frozen, agreement.gradient_error, error)


def golden_vectors(model: bytes, inputs: "tuple[ArraySpec, ...]") -> tuple[GoldenVector, ...]:
    """Return the vectors that the file is shipped with; none where its outputs are all alike."""
    run = Interpreter(model).run

    def ask(number: int) -> list[float]:
        answer: list[float] = run("predict", synthetic_examples(inputs, number, 1))["outputs"].ravel().tolist()
        return answer

    return array_vectors(ask, ASKED_EXAMPLES)


def _int8_error(model: Any, examined: Examined, template: ArrayTemplate) -> float:
    """Return how far `predict` lies from Keras's own float outputs, relative to the largest of them."""
    data, _ = make_array_manifest(template, fleet_tensors(examined), population="measured", now=0, valid_s=1)
    run = Interpreter(data).run
    arrays = draw_examples(examined, ASKED_EXAMPLES, np.random.Generator(np.random.PCG64(JUDGE_SEED)))
    expected = _keras_outputs(model, examined, arrays)
    got = np.concatenate(
        [
            run("predict", {spec.name: arrays[spec.name][i : i + 1] for spec in examined.inputs})["outputs"]
            for i in range(ASKED_EXAMPLES)
        ]
    )
    return float(np.max(np.abs(got - expected)) / max(float(np.max(np.abs(expected))), 1e-6))


def _keras_outputs(model: Any, examined: Examined, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    outputs = model(as_called(model, examined, arrays), training=False)
    if examined.bare < 0 and examined.loss.last_activation:
        outputs = examined.loss.prediction(outputs)
    return np.asarray(outputs.numpy(), np.float64)
