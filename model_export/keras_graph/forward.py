"""The exported form of a model as a function of arrays and weights, in any float dtype."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from model_export.keras_graph.examine import Examined
from model_export.keras_graph.graph import Step, refs
from model_export.keras_graph.table import Call, rules

WeightOf = Callable[[Any], Any]


def differentiated(examined: Examined) -> frozenset[int]:
    """Return the steps (by id) that a training step's gradient goes through: what learns, and all behind it."""
    numbers = {weight.key[0] for weight in examined.trainable}
    layers = {id(examined.graph.steps[number].operation) for number in numbers}
    moving: set[int] = set()
    steps = set()
    for step in examined.graph.steps:
        if id(step.operation) in layers or moving & set(refs((step.args, dict(step.kwargs)))):
            steps.add(id(step))
            moving |= set(step.outputs)
    return frozenset(steps)


NOTHING: frozenset[int] = frozenset()


def emitted(
    examined: Examined,
    step: Step,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    weight: WeightOf,
    dtype: Any,
    live: frozenset[int],
) -> Any:
    """Return the outputs of one step; the step named by `examined.bare` without its last activation."""
    bare = examined.bare >= 0 and step is examined.graph.steps[examined.bare]
    return rules()[step.kind].emit(Call(step.operation, args, kwargs, weight, dtype, bare, id(step) in live))


def forward(
    examined: Examined,
    arrays: Mapping[str, Any],
    weight: WeightOf,
    dtype: Any = tf.float32,
    live: frozenset[int] = NOTHING,
) -> Any:
    """Return the model's output, before the activation that the loss takes off.

    arrays: by the names of `examined.inputs`, each [batch, *shape]; weight: the tensor that stands for a variable;
    live: the steps that a gradient will go through, see `differentiated`.
    """
    values = {given.name: arrays[spec.name] for given, spec in zip(examined.graph.inputs, examined.inputs, strict=True)}
    made = examined.graph.run(
        values, lambda step, args, kwargs: emitted(examined, step, args, kwargs, weight, dtype, live)
    )
    output = made[examined.graph.output]
    return output if output.dtype == dtype else tf.cast(output, dtype)


def mean_loss(examined: Examined, output: Any, target: Any, example_weights: Any) -> Any:
    """Return sum(weight * loss) / max(sum(weight), 1): what one training step descends."""
    losses = examined.loss.per_example(output, target)
    return tf.reduce_sum(example_weights * losses) / tf.maximum(tf.reduce_sum(example_weights), 1.0)
