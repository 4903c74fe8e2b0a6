"""Does the rewritten model compute what Keras computes? Judged in float64, before anything is converted.

Keras's own layers are made again in float64 with the same weights (the twin). The rules:
- every step's output equals its layer's within 1e-4 of its largest value; the first that does not is named;
- the gradient of the loss at every weight that learns equals that of Keras's tape on the twin within 5e-6 of the
  weight's largest entry (or of a hundredth of the model's largest, where a weight's own gradient is zero but for
  rounding: an attention's key bias).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model_export.keras_graph.examine import MOVING, Examined
from model_export.keras_graph.forward import NOTHING, differentiated, emitted, forward, mean_loss
from model_export.keras_graph.graph import ModelGraph, Step, filled, flat, flatten, functional_of, refs
from model_export.keras_graph.refusal import Refusal, Refused

FORWARD_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 5e-6
SMALLEST_SHARE = 1e-2
EXAMPLES = 3
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was measured: the largest relative errors of an output and of a gradient, and the weights that are read."""

    forward_error: float
    gradient_error: float
    used: frozenset[tuple[int, int]]


def twin_of(model: Any) -> Any:
    """Return the model made again in float64, with the same weights."""
    twin = keras.saving.deserialize_keras_object(_doubled(keras.saving.serialize_keras_object(model)))
    twin.set_weights(model.get_weights())
    return twin


def _doubled(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(_doubled(item) for item in config)
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": "float64"}}
    doubled = {key: _doubled(value) for key, value in config.items()}
    if doubled.get("dtype") == "float32":
        doubled["dtype"] = "float64"
    return doubled


def draw_examples(examined: Examined, count: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Return random examples: floats around 0, ids that every Embedding has, targets that the loss has."""
    arrays: dict[str, NDArray[Any]] = {}
    for spec, given in zip(examined.inputs, examined.graph.inputs, strict=True):
        if spec.dtype == "int32":
            arrays[spec.name] = rng.integers(0, _ids(examined, given.number), (count, *spec.shape)).astype(np.int32)
        else:
            arrays[spec.name] = rng.normal(0, 1, (count, *spec.shape)).astype(np.float32)
    target = examined.target
    if target.dtype == "int32":
        classes = int(examined.graph.output_shape[-1] or 2) if examined.loss.last_activation == "softmax" else 2
        arrays[target.name] = rng.integers(0, classes, (count, *target.shape)).astype(np.int32)
    else:
        arrays[target.name] = rng.normal(0, 1, (count, *target.shape)).astype(np.float32)
    return arrays


def _ids(examined: Examined, number: int) -> int:
    """Return how many ids an input may name: what the smallest Embedding that reads it has, 2 if computed on."""
    as_it_is, computed, rows = {number}, set[int](), [2**31 - 1]
    for step in examined.graph.steps:
        read = set(refs((step.args, dict(step.kwargs))))
        if step.kind == "Embedding":
            rows += [int(step.operation.input_dim)] if read & as_it_is else [2] if read & computed else []
        elif read & as_it_is and step.kind in MOVING | {"ops.GetItem"}:
            as_it_is |= set(step.outputs)
        elif read & (as_it_is | computed):
            computed |= set(step.outputs)
    return min(rows) if len(rows) > 1 else 2


def as_called(model: Any, examined: Examined, arrays: Arrays) -> Any:
    """Return the inputs as the Keras model is called with them: one array, or several by Keras's own structure."""
    given = [arrays[spec.name] for spec in examined.inputs]
    functional: Any = functional_of(model)
    return keras.tree.pack_sequence_as(functional._inputs_struct, given)


def judge(model: Any, examined: Examined, rng: np.random.Generator) -> Agreement | Refused:
    """Return how well the rewritten model agrees with Keras, or the first layer that does not."""
    graph = flatten(twin_of(model))
    if isinstance(graph, Refused):
        return graph
    arrays = draw_examples(examined, EXAMPLES, rng)
    found = _Steps(examined, graph)
    errors = []
    # Both forms of a layer: the one that a gradient goes through, and the one of `evaluate` and `predict`.
    for live in (differentiated(examined), NOTHING):
        error = found.compare(arrays, live)
        if isinstance(error, Refused):
            return error
        errors.append(error)
    gradient = _gradient_error(examined, graph, arrays)
    return gradient if isinstance(gradient, Refused) else Agreement(max(errors), gradient, frozenset(found.used))


class _Steps:
    """Both forms side by side, step for step."""

    def __init__(self, examined: Examined, twin: ModelGraph) -> None:
        self.examined, self.twin = examined, twin
        self.used: set[tuple[int, int]] = set()
        weights = (*examined.trainable, *examined.frozen)
        self._keys = {id(weight.variable): weight.key for weight in weights}

    def weight(self, variable: Any) -> Any:
        key = self._keys[id(variable)]
        self.used.add(key)
        return tf.convert_to_tensor(self.twin.steps[key[0]].operation.weights[key[1]].value)

    def compare(self, arrays: Arrays, live: frozenset[int]) -> float | Refused:
        worst = 0.0
        ours = {given.number: _double(arrays[spec.name]) for given, spec in self._inputs()}
        theirs = dict(ours)
        for step, original in zip(self.examined.graph.steps, self.twin.steps, strict=True):
            try:
                expected = flat(_called(original, filled(original.args, theirs), filled(dict(original.kwargs), theirs)))
                theirs.update(zip(original.outputs, expected, strict=True))
                made = flat(self._emitted(step, ours, live))
                ours.update(zip(step.outputs, made, strict=True))
                error = max(_error(a, b) for a, b in zip(self._shown(step, made), expected, strict=True))
            except (ValueError, TypeError, tf.errors.InvalidArgumentError) as e:
                return _differs(step, f"its exported form does not run: {str(e).splitlines()[0][:200]}")
            if not error <= FORWARD_TOLERANCE:
                return _differs(step, f"its exported form differs from Keras by {error:.2g} of the largest value")
            worst = max(worst, error)
        return worst

    def _inputs(self) -> Any:
        return zip(self.examined.graph.inputs, self.examined.inputs, strict=True)

    def _emitted(self, step: Step, values: Mapping[int, Any], live: frozenset[int]) -> Any:
        args, kwargs = filled(step.args, values), filled(dict(step.kwargs), values)
        return emitted(self.examined, step, args, kwargs, self.weight, tf.float64, live)

    def _shown(self, step: Step, made: list[Any]) -> list[Any]:
        """Return a step's outputs as its layer shows them: what the loss took off is put on again."""
        at = self.examined.bare
        if at < 0 or self.examined.graph.steps.index(step) < at:
            return made
        # Behind the bare step stand only layers that do nothing.
        return [self.examined.loss.prediction(value) for value in made]


def _double(array: NDArray[Any]) -> Any:
    return tf.constant(array, tf.float64 if array.dtype == np.float32 else tf.int32)


def _called(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what Keras's own layer gives, as for inference."""
    return step.operation(*args, **({**kwargs, "training": False} if "training" in kwargs else kwargs))


def _error(a: Any, b: Any) -> float:
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        return float("inf")
    return float(np.max(np.abs(left - right), initial=0.0) / max(float(np.max(np.abs(right), initial=0.0)), 1e-6))


def _differs(step: Step, reason: str) -> Refused:
    return Refused((Refusal(step.name, step.kind, reason, "this is a fault of the exporter: please report it"),))


def keras_gradient(
    examined: Examined, twin: ModelGraph, arrays: Arrays, example_weights: NDArray[np.float32]
) -> tuple[float, dict[str, NDArray[np.float64]]]:
    """Return loss and gradients by Keras's layers, Keras's loss and TensorFlow's tape, in float64: the judge."""
    variables = {w.name: twin.steps[w.key[0]].operation.weights[w.key[1]] for w in examined.trainable}
    values = {
        given.name: _double(arrays[spec.name])
        for given, spec in zip(examined.graph.inputs, examined.inputs, strict=True)
    }
    names = {given.name: ours.name for given, ours in zip(twin.inputs, examined.graph.inputs, strict=True)}
    with tf.GradientTape() as tape:
        for variable in variables.values():
            tape.watch(variable.value)
        made = twin.run({name: values[ours] for name, ours in names.items()}, _called)
        target = tf.constant(arrays[examined.target.name])
        losses = _keras_losses(examined, made[twin.output], target)
        weights = tf.constant(example_weights, tf.float64)
        loss = tf.reduce_sum(weights * losses) / tf.maximum(tf.reduce_sum(weights), 1.0)
    gradients = tape.gradient(
        loss, [v.value for v in variables.values()], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return float(loss), {
        name: np.asarray(tf.convert_to_tensor(value), np.float64)
        for name, value in zip(variables, gradients, strict=True)
    }


def _keras_losses(examined: Examined, output: Any, target: Any) -> Any:
    """Return Keras's loss of each example [batch]."""
    bare = examined.bare < 0
    name = examined.loss.name
    if name == "sparse_categorical_crossentropy":
        values = keras.losses.sparse_categorical_crossentropy(target, output, from_logits=bare)
    elif name == "binary_crossentropy":
        shaped = tf.reshape(output, [output.shape[0], -1])
        wanted = tf.cast(tf.reshape(target, shaped.shape), output.dtype)
        values = keras.losses.binary_crossentropy(wanted, shaped, from_logits=bare)
    else:
        wanted = tf.cast(tf.reshape(target, output.shape), output.dtype)
        values = keras.losses.mean_squared_error(wanted, output)
    return tf.reduce_mean(tf.reshape(values, [output.shape[0], -1]), axis=1)


def _gradient_error(examined: Examined, twin: ModelGraph, arrays: Arrays) -> float | Refused:
    example_weights = np.linspace(0.5, 1.0, EXAMPLES).astype(np.float32)
    _, expected = keras_gradient(examined, twin, arrays, example_weights)
    steps = _Steps(examined, twin)
    variables = {w.name: steps.weight(w.variable) for w in examined.trainable}
    by_id = {id(w.variable): variables[w.name] for w in examined.trainable}
    values = {spec.name: _double(arrays[spec.name]) for spec in examined.examples}
    with tf.GradientTape() as tape:
        tape.watch(list(variables.values()))
        output = forward(
            examined, values, lambda v: by_id[id(v)] if id(v) in by_id else steps.weight(v), tf.float64,
            differentiated(examined),
        )  # fmt: skip
        loss = mean_loss(examined, output, values[examined.target.name], tf.constant(example_weights, tf.float64))
    gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    got = {name: np.asarray(tf.convert_to_tensor(value), np.float64) for name, value in gradients.items()}
    errors = gradient_errors(got, expected)
    for weight in examined.trainable:
        if not errors[weight.name] <= GRADIENT_TOLERANCE:
            step = examined.graph.steps[weight.key[0]]
            return _differs(step, f"the gradient at {weight.name} differs from Keras's by {errors[weight.name]:.2g}")
    return max(errors.values())


def gradient_errors(
    got: Mapping[str, NDArray[np.float64]], expected: Mapping[str, NDArray[np.float64]]
) -> dict[str, float]:
    """Return each gradient's largest error, relative to its largest entry (at least a hundredth of the model's)."""
    largest = max(float(np.max(np.abs(value))) for value in expected.values())
    errors = {}
    for name, value in expected.items():
        scale = max(float(np.max(np.abs(value))), SMALLEST_SHARE * largest, 1e-30)
        errors[name] = float(np.max(np.abs(got[name].reshape(value.shape) - value))) / scale
    return errors
