"""The signatures of a model of arrays: `train`, `evaluate`, `predict`.

- `train`: each array of an example by name [batch, *shape], `example_weights` [batch], `learning_rate` [], every
  weight by name -> `loss` (sum of weight * loss / max(sum of weights, 1), before the step), `trained_NAME` for each
  weight: one plain step of gradient descent.
- `evaluate`: the same without `learning_rate` -> `loss` (sum of weight * loss), `hits` (sum of weight * correct; for
  mean_squared_error of weight * squared error), `count` (sum of weights), `outputs` (before the last activation).
- `predict`: the inputs of one example -> `outputs` with the last activation; the weights stand inside the file.

No variable stands in any of them: one that is never assigned would be NaN on a device, without a word.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from model_export.keras_graph.examine import Examined, Weight
from model_export.keras_graph.forward import differentiated, forward, mean_loss
from model_export.keras_graph.stored_weights import StoredWeights, zero_of
from wire_contract.manifest import ArraySpec

EXAMPLE_WEIGHTS, LEARNING_RATE, TRAINED = "example_weights", "learning_rate", "trained_"


class VariableInGraph(Exception):  # noqa: N818 - named for what was found
    """A variable was left in a signature; the message names it."""


def concrete(function: Callable[..., Any], arguments: Mapping[str, tuple[tuple[int, ...], Any]]) -> Any:
    """Return `function` over named arguments as a concrete function. Raises `VariableInGraph`."""
    specs = {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in arguments.items()}
    made = tf.function(lambda **given: function(given)).get_concrete_function(**specs)
    refuse_variables(made)
    return made


def refuse_variables(function: Any) -> None:
    """Raise `VariableInGraph` if a concrete function reads or holds a variable.

    The converter drops the initial value of a variable that no signature assigns, and the device reads NaN.
    """
    held = [variable.name for variable in function.graph.variables]
    held += [op.name for op in function.graph.get_operations() if any(t.dtype == tf.resource for t in op.outputs)]
    if held:
        raise VariableInGraph(f"weights come in as arguments or stand as constants, got the variable {held[0]}")


def _array(spec: ArraySpec, batch: int) -> tuple[tuple[int, ...], Any]:
    return (batch, *spec.shape), tf.as_dtype(spec.dtype)


class ArraySignatures:
    """Makes the three functions of one examined model."""

    def __init__(self, examined: Examined, base: StoredWeights, fleet: StoredWeights, batch: int) -> None:
        self._examined, self._base, self._fleet, self._batch = examined, base, fleet, batch
        self._live = differentiated(examined)

    def functions(self) -> dict[str, Any]:
        """Return the concrete functions by signature. Raises `VariableInGraph`."""
        weights: dict[str, tuple[tuple[int, ...], Any]] = {
            w.name: (w.shape, tf.float32) for w in self._examined.trainable
        }
        examples = {spec.name: _array(spec, self._batch) for spec in self._examined.examples}
        shares = {EXAMPLE_WEIGHTS: ((self._batch,), tf.float32)}
        rate: dict[str, tuple[tuple[int, ...], Any]] = {LEARNING_RATE: ((), tf.float32)}
        inputs = {spec.name: _array(spec, 1) for spec in self._examined.inputs}
        return {
            "train": concrete(self.train, {**examples, **shares, **rate, **weights}),
            "evaluate": concrete(self.evaluate, {**examples, **shares, **weights}),
            "predict": concrete(self.predict, inputs),
        }

    def _weight_of(self, given: Mapping[str, Any], zero: Any) -> Callable[[Any], Any]:
        """Return what stands for a variable: a weight that was given, or a frozen one out of the file."""
        frozen = self._base.read(zero)
        by_id = {id(w.variable): _as_variable(given[w.name], w) for w in self._examined.trainable}
        by_id |= {id(w.variable): frozen[w.name] for w in self._examined.frozen if w.name in frozen}
        return lambda variable: by_id[id(variable)]

    def _zero(self, given: Mapping[str, Any]) -> Any:
        return zero_of(given[self._examined.inputs[0].name])

    def train(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See the module."""
        weights = {w.name: given[w.name] for w in self._examined.trainable}
        with tf.GradientTape() as tape:
            tape.watch(weights)
            output = forward(self._examined, given, self._weight_of(weights, self._zero(given)), live=self._live)
            loss = mean_loss(self._examined, output, given[self._examined.target.name], given[EXAMPLE_WEIGHTS])
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        trained = {TRAINED + name: value - given[LEARNING_RATE] * gradients[name] for name, value in weights.items()}
        return {"loss": loss, **trained}

    def evaluate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See the module."""
        output = forward(self._examined, given, self._weight_of(given, self._zero(given)))
        target, shares = given[self._examined.target.name], given[EXAMPLE_WEIGHTS]
        return {
            "loss": tf.reduce_sum(shares * self._examined.loss.per_example(output, target)),
            "hits": tf.reduce_sum(shares * self._examined.loss.correct(output, target)),
            "count": tf.reduce_sum(shares),
            "outputs": output,
        }

    def predict(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See the module."""
        zero = self._zero(given)
        output = forward(self._examined, given, self._weight_of(self._fleet.read(zero), zero))
        return {"outputs": self._examined.loss.prediction(output)}


def _as_variable(value: Any, weight: Weight) -> Any:
    shape = list(weight.variable.shape)
    return value if list(value.shape) == shape else tf.reshape(value, shape)
