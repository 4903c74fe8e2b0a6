"""Exporting a named model in a test, and judging its file: against Keras's own tape in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.conformance import EXPOSING_RATE, GRADIENT_TOLERANCE, LOSS_TOLERANCE, Case, Finding, Trial
from model_export.keras_graph import agreement, array_export
from model_export.keras_graph.agreement import as_called
from model_export.keras_graph.array_template import base_weights
from model_export.keras_graph.examine import Examined, examine
from model_export.keras_graph.graph import flatten
from tests.model_export.keras_models.named import NAMED, built
from wire_contract.layout import Layout
from wire_contract.patch import read_tensors

BATCH = 4
NOW = 1_800_000_000


@dataclass(frozen=True)
class Export:
    model: Any
    examined: Examined
    file: array_export.ExportedArrays

    @property
    def layout(self) -> Layout:
        return Layout.of(self.file.manifest)


def export_named(name: str) -> Export:
    model = built(name)
    examined = examine(model, NAMED[name].loss, NAMED[name].frozen)
    assert isinstance(examined, Examined), examined.lines()
    file = array_export.export_arrays(
        model, examined, name.encode(), batch=BATCH, population="test", now=NOW, valid_s=86_400
    )
    assert isinstance(file, array_export.ExportedArrays), file.lines()
    return Export(model, examined, file)


def keras_twin(export: Export) -> Any:
    """Return Keras's own model in float64 with the weights that stand in the file: the judge of every number."""
    twin = agreement.twin_of(export.model)
    graph = flatten(twin)
    held = read_tensors(export.file.model, export.file.manifest)
    for weight in export.examined.trainable:
        variable = graph.steps[weight.key[0]].operation.weights[weight.key[1]]
        variable.assign(held[weight.name].reshape(variable.shape))
    read = frozenset(weight.key for weight in export.examined.frozen)
    base = base_weights(export.examined, read)
    for weight in export.examined.frozen:
        if "seed_generator" not in weight.variable.path:
            variable = graph.steps[weight.key[0]].operation.weights[weight.key[1]]
            variable.assign(base.values(weight.name).reshape(variable.shape))
    return twin


def trials_of(export: Export, seed: int) -> list[Trial]:
    """Return a training step at an exposing rate, an evaluation and predictions, each with its judge."""
    rng = np.random.Generator(np.random.PCG64(seed))
    examined, layout = export.examined, export.layout
    twin = keras_twin(export)
    arrays = agreement.draw_examples(examined, BATCH, rng)
    shares = np.array([1.0, 0.5, 0.0, 0.8], np.float32)
    tensors = read_tensors(export.file.model, export.file.manifest)
    packed = layout.pack(tensors)
    loss, gradients = agreement.keras_gradient(examined, flatten(twin), arrays, shares)
    outputs = np.asarray(twin(as_called(twin, examined, arrays), training=False), np.float64)

    def judge_train(got):
        found = {name: _exposed(packed[name], got[f"trained_{name}"]) for name in packed}
        errors = agreement.gradient_errors(found, gradients)
        return [
            Finding("train loss", abs(float(got["loss"]) - loss) / abs(loss), LOSS_TOLERANCE),
            *[Finding(f"train gradient {name}", errors[name], GRADIENT_TOLERANCE) for name in errors],
        ]

    def judge_evaluate(got):
        shown = np.asarray(examined.loss.prediction(got["outputs"].astype(np.float64)))
        if examined.bare < 0 and examined.loss.last_activation:
            shown = got["outputs"].astype(np.float64)
        return [
            Finding("evaluate loss", abs(float(got["loss"]) / 2.3 - loss) / abs(loss), LOSS_TOLERANCE),
            Finding("evaluate count", abs(float(got["count"]) - 2.3), 1e-6),
            Finding("evaluate hits", abs(float(got["hits"]) - _hits(export, outputs, arrays, shares)), 1e-4),
            Finding("evaluate outputs", _relative(shown, outputs), GRADIENT_TOLERANCE),
        ]

    def judge_predict(got):
        expected = outputs[:1]
        if examined.bare < 0 and examined.loss.last_activation:
            expected = np.asarray(examined.loss.prediction(expected))
        return [Finding("predict outputs", _relative(got["outputs"], expected), GRADIENT_TOLERANCE)]

    examples = {spec.name: arrays[spec.name] for spec in examined.examples}
    first = {spec.name: arrays[spec.name][:1] for spec in examined.inputs}
    rate = np.array(EXPOSING_RATE, np.float32)
    return [
        Trial(Case("train", {**examples, "example_weights": shares, "learning_rate": rate, **packed}), judge_train),
        Trial(Case("evaluate", {**examples, "example_weights": shares, **packed}), judge_evaluate),
        Trial(Case("predict", first), judge_predict),
    ]


def _exposed(before, after):
    return (before.astype(np.float64) - after.astype(np.float64)) / EXPOSING_RATE


def _relative(got, expected):
    return float(np.max(np.abs(got.astype(np.float64) - expected)) / np.max(np.abs(expected)))


def _hits(export: Export, outputs, arrays, shares) -> float:
    """What `hits` must be, from Keras's outputs by plain numpy."""
    target = arrays[export.examined.target.name]
    name = export.examined.loss.name
    if name == "sparse_categorical_crossentropy":
        right = (outputs.argmax(axis=-1) == target).astype(np.float64)
    elif name == "binary_crossentropy":
        middle = 0.0 if export.examined.bare < 0 else 0.5
        right = ((outputs.reshape(target.shape) >= middle) == (target == 1)).astype(np.float64)
    else:
        right = (outputs.reshape(target.shape) - target) ** 2
    return float((shares * right.reshape(len(shares), -1).mean(axis=1)).sum())
