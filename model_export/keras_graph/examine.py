"""Can this model train on a phone, and how is each layer exported? Answered before anything is converted.

The rules:
- everything that has to change is said at once, each with the layer's name, the reason and the change;
- a layer is known by Keras's own class in the table, not by a name that somebody gave to another class;
- what is left out (dropout, augmentation, penalties on weights) is said in the notes;
- the loss takes logits, so a last softmax or sigmoid is taken off for training and put on again in `predict`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.keras_graph.activations import ACTIVATIONS, activation_name
from model_export.keras_graph.graph import GraphInput, ModelGraph, Step, flatten, is_layer, refs
from model_export.keras_graph.losses import LOSSES, Loss
from model_export.keras_graph.refusal import Refusal, Refused
from model_export.keras_graph.table import Use, rules
from wire_contract.manifest import MAX_EXAMPLE_VALUES, MAX_MODEL_BYTES, ArraySpec

ALIASES = {"mse": "mean_squared_error"}
TRANSPARENT = frozenset(
    {
        "Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout",
        "GaussianNoise", "ActivityRegularization",
    }
)  # fmt: skip
MOVING = frozenset({"Reshape", "Flatten", "Permute", "RepeatVector", "ops.Reshape", "ops.Squeeze", "ops.ExpandDims"})
_UNNAMED = re.compile(r"(input_layer|keras_tensor)(_\d+)?")
_RESERVED = frozenset({"example_weights", "learning_rate", "loss", "hits", "count", "outputs"})
_CHANGES = {
    "Lambda": "write it with keras.ops, or with layers of the table",
    "RNN": "use LSTM, GRU or SimpleRNN",
    "StringLookup": "do it before the model: a device is given numbers",
    "TextVectorization": "do it before the model: a device is given numbers",
    "IntegerLookup": "do it before the model, and give the ids to an Embedding",
    "Hashing": "do it before the model, and give the ids to an Embedding",
    "CategoryEncoding": "use an Embedding",
    "Discretization": "do it before the model",
    "Resizing": "give the model images of one size",
    "Conv3D": "use Conv2D",
}
_LOSS_CHANGES = {
    "categorical_crossentropy": "use sparse_categorical_crossentropy, with class numbers as targets",
}


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What is said of one layer: whether it learns, its values, how it is exported."""

    name: str
    kind: str
    trainable: bool
    parameters: int
    how: str


@dataclass(frozen=True, slots=True)
class Weight:
    """One Keras variable and the fleet's name for it; `key` finds it: (step, place among the layer's weights)."""

    name: str
    variable: Any
    key: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as a fleet tensor: one to four dimensions."""
        shape = tuple(int(n) for n in self.variable.shape)
        if not shape:
            return (1,)
        return shape if len(shape) <= 4 else (_count(shape[:-1]), shape[-1])


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that can be exported. `bare` is the step whose last activation the loss takes off (-1: none)."""

    graph: ModelGraph
    loss: Loss
    inputs: tuple[ArraySpec, ...]
    target: ArraySpec
    trainable: tuple[Weight, ...]
    frozen: tuple[Weight, ...]
    bare: int
    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...]

    @property
    def examples(self) -> tuple[ArraySpec, ...]:
        """The arrays of one example, the target last."""
        return (*self.inputs, self.target)


def _count(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= int(n)
    return total


def plain_name(text: str, longest: int = 56) -> str:
    """Return a name as signatures and manifests write it: lower case, digits, underscores, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:longest]
    return name if name[:1].isalpha() else f"w_{name}".rstrip("_")


def _free_name(wanted: str, taken: set[str]) -> str:
    name, n = wanted, 1
    while name in taken or name in _RESERVED or name.startswith("trained_"):
        n += 1
        name = f"{'own_' if wanted.startswith('trained_') else ''}{wanted}_{n}"
    taken.add(name)
    return name


def examine(model: Any, loss: str, frozen: Collection[str] = (), train_head: int | None = None) -> Examined | Refused:
    """Return what the export of a Keras model needs, or everything that has to change.

    loss: Keras's name of one of `LOSSES`. frozen: layers (also nested models) whose weights stay as they are;
    train_head: only the last so many layers that have weights to learn stay trainable.
    """
    graph = flatten(model)
    if isinstance(graph, Refused):
        return graph
    refusals = [refusal for step in graph.steps for refusal in _refusals_of(step, graph)]
    inputs, input_refusals = _inputs(graph)
    refusals += input_refusals
    chosen = LOSSES.get(ALIASES.get(loss, loss))
    bare = -1
    if chosen is None:
        change = _LOSS_CHANGES.get(loss, f"use one of {', '.join(LOSSES)}")
        refusals.append(Refusal("loss", loss, "is not one that a device can train", change))
    else:
        bare, output_refusals = _last(graph, chosen)
        refusals += output_refusals
    kept, frozen_refusals = _trainable_steps(graph, frozen, train_head)
    refusals += frozen_refusals
    trainable, fixed = _weights(graph, kept, {spec.name for spec in inputs})
    if not trainable and not frozen_refusals:
        refusals.append(
            Refusal(
                model.name, type(model).__name__, "has no weight to learn", "leave a layer trainable, or freeze fewer"
            )
        )
    refusals += _not_finite(graph)
    size = sum(_count(weight.shape) for weight in (*trainable, *fixed))
    if size > MAX_MODEL_BYTES:
        reason = f"has {size} values of a byte or more, and a device takes {MAX_MODEL_BYTES} bytes"
        refusals.append(Refusal(model.name, type(model).__name__, reason, "make its layers narrower"))
    if refusals or chosen is None:
        return Refused(tuple(dict.fromkeys(refusals)))
    taken = {spec.name for spec in inputs} | {weight.name for weight in trainable}
    target = ArraySpec(
        name=_free_name("target", taken), shape=_target_shape(graph, chosen), dtype=chosen.target_dtype, role="target"
    )
    rows, notes = _rows(graph, {weight.key for weight in trainable})
    return Examined(graph, chosen, inputs, target, trainable, fixed, bare, rows, notes)


def _refusals_of(step: Step, graph: ModelGraph) -> Iterator[Refusal]:
    for reason, change in _complaints(step, graph):
        yield Refusal(step.name, step.kind, reason, change)


def _complaints(step: Step, graph: ModelGraph) -> Iterator[tuple[str, str]]:
    operation, found = step.operation, rules().get(step.kind)
    if found is None or not type(operation).__module__.startswith("keras."):
        kind = type(operation).__name__
        yield (
            "has no form that trains on a device",
            _CHANGES.get(kind, "replace it by layers that docs/export-your-model.md lists"),
        )
        return
    yield from found.refuse(operation)
    shapes = tuple(graph.shapes[number] for number in refs((step.args, dict(step.kwargs))))
    yield from found.refuse_call(Use(operation, step.args, step.kwargs, shapes))
    # Augmenting layers say so by themselves.
    if step.kwargs.get("training") and not step.kind.startswith("Random"):
        yield "is called with training=True, and a device runs it as for inference", "leave training out of the call"
    if step.kwargs.get("mask") is not None:
        yield "is called with a mask", "leave the mask out"
    if step.kind == "Embedding" and _float_ids(step, graph):
        yield "takes its ids from computed floats", "give the ids an Input of their own with dtype='int32'"
    for layer in _with_inner(operation) if is_layer(operation) else ():
        yield from _layer_complaints(layer)


def _with_inner(layer: Any) -> Iterator[Any]:
    yield layer
    for name in ("layer", "forward_layer", "backward_layer"):
        inner = getattr(layer, name, None)
        if inner is not None and is_layer(inner):
            yield inner


def _layer_complaints(layer: Any) -> Iterator[tuple[str, str]]:
    for attribute in ("activation", "recurrent_activation"):
        if hasattr(layer, attribute) and activation_name(getattr(layer, attribute)) not in ACTIVATIONS:
            name = activation_name(getattr(layer, attribute))
            yield f"has no exported form of the {attribute} {name}", f"use one of {', '.join(ACTIVATIONS)}"
    policy = getattr(getattr(layer, "dtype_policy", None), "name", "float32")
    if policy != "float32" and type(layer).__name__ != "InputLayer":
        yield f"computes in {policy}, and a device trains in float32", "build it with dtype='float32'"
    for name in sorted(vars(layer)):
        if name.endswith("_constraint") and getattr(layer, name) is not None:
            yield f"has a {name}, which a device's step does not keep", f"leave {name} out"
    if getattr(layer, "lora_enabled", False):
        yield "has a low-rank adapter beside its weights", "merge it, and save the model again"


def _float_ids(step: Step, graph: ModelGraph) -> bool:
    """Whether an Embedding reads what is neither an input of the model nor of whole numbers."""
    inputs = {given.number for given in graph.inputs}
    read = refs((step.args, dict(step.kwargs)))
    return any(number not in inputs and not graph.dtypes[number].startswith("int") for number in read)


def _maker(number: int, graph: ModelGraph) -> Step | None:
    return next((step for step in graph.steps if number in step.outputs), None)


def _inputs(graph: ModelGraph) -> tuple[tuple[ArraySpec, ...], list[Refusal]]:
    refusals: list[Refusal] = []
    specs: list[ArraySpec] = []
    taken: set[str] = set()
    for position, given in enumerate(graph.inputs, start=1):
        refusals += [Refusal(given.name, "InputLayer", *complaint) for complaint in _input_complaints(given, graph)]
        unnamed = "input" if len(graph.inputs) == 1 else f"input_{position}"
        name = _free_name(unnamed if _UNNAMED.fullmatch(given.name) else plain_name(given.name), taken)
        shape = tuple(n or 1 for n in given.shape)
        specs.append(ArraySpec(name=name, shape=shape, dtype="int32" if _is_ids(given, graph) else "float32"))
    return tuple(specs), refusals


def _readers(number: int, graph: ModelGraph) -> list[Step]:
    return [step for step in graph.steps if number in refs((step.args, dict(step.kwargs)))]


def _is_ids(given: GraphInput, graph: ModelGraph) -> bool:
    readers = _readers(given.number, graph)
    return given.dtype.startswith("int") or (bool(readers) and all(step.kind == "Embedding" for step in readers))


def _input_complaints(given: GraphInput, graph: ModelGraph) -> Iterator[tuple[str, str]]:
    if None in given.shape:
        yield f"every axis has a fixed size, got {given.shape}", "give keras.Input the whole shape"
    if graph.shapes[given.number][0] is not None:
        yield "the batch has any size", "leave batch_size out of keras.Input"
    if given.dtype not in ("float32", "int32", "int64"):
        yield f"a device is given float32 or int32, got {given.dtype}", "use keras.Input(dtype='float32' or 'int32')"
    elif (
        given.dtype == "float32"
        and not _is_ids(given, graph)
        and any(step.kind == "Embedding" for step in _readers(given.number, graph))
    ):
        yield "is read as ids and as numbers", "give the ids an Input of their own with dtype='int32'"
    if _count([n or 1 for n in given.shape]) > MAX_EXAMPLE_VALUES or len(given.shape) > 6:
        yield f"an example has at most {MAX_EXAMPLE_VALUES} values in 6 axes, got {given.shape}", "make it smaller"
    if not _readers(given.number, graph):
        yield "is read by no layer", "leave it out of keras.Model"


def _activation_of_step(step: Step) -> str:
    """Return the activation that a step ends in: `softmax`, `linear`; of a step that has none, `linear`."""
    layer = step.operation
    if step.kind in ("Softmax", "ops.Softmax"):
        return "softmax"
    if step.kind == "ops.Sigmoid":
        return "sigmoid"
    if step.kind == "TimeDistributed":
        layer = layer.layer
    if step.kind in ("LSTM", "GRU", "SimpleRNN", "Bidirectional"):
        return "linear"
    return activation_name(getattr(layer, "activation", None))


def _last(graph: ModelGraph, loss: Loss) -> tuple[int, list[Refusal]]:
    """Return the place of the step that is asked bare, or -1, and what is wrong with the output."""
    refusals: list[Refusal] = []
    number, moved = graph.output, False
    step = _maker(number, graph)
    while step is not None and (step.kind in TRANSPARENT | MOVING):
        moved |= step.kind in MOVING
        number = next(refs((step.args, dict(step.kwargs))))
        step = _maker(number, graph)
    if step is None:
        refusals.append(Refusal("output", "InputLayer", "is an input of the model", "add a layer that learns"))
        return -1, refusals
    activation = _activation_of_step(step)

    def refuse(reason: str, change: str) -> None:
        refusals.append(Refusal(step.name, step.kind, reason, change))

    shape = graph.output_shape
    if loss.name == "sparse_categorical_crossentropy" and (not shape or shape[-1] is None or shape[-1] < 2):
        refuse(f"{loss.name} takes 2 or more classes along the last axis, got {shape}", "use binary_crossentropy")
    if None in shape:
        refuse(f"every axis of the output has a fixed size, got {shape}", "give keras.Input the whole shape")
    if not loss.last_activation or activation == "linear":
        return -1, refusals
    if activation != loss.last_activation:
        wanted = f"{loss.last_activation} or none (logits)"
        refuse(f"{loss.name} takes a last activation of {wanted}, got {activation}", f"end in {wanted}")
        return -1, refusals
    if moved and activation == "softmax":
        refuse("its softmax is reshaped afterwards", "let the softmax be the last layer")
    if len(_readers(number, graph)) > (0 if number == graph.output else 1):
        refuse(f"its {activation} is read by another layer, too", "give the output a layer of its own")
    return graph.steps.index(step), refusals


def _target_shape(graph: ModelGraph, loss: Loss) -> tuple[int, ...]:
    shape = tuple(int(n or 1) for n in graph.output_shape)
    if loss.name == "sparse_categorical_crossentropy" or shape[-1:] == (1,):
        return shape[:-1]
    return shape


def _trainable_steps(
    graph: ModelGraph, frozen: Collection[str], train_head: int | None
) -> tuple[set[int], list[Refusal]]:
    """Return the ids of the layers that learn."""
    named: dict[str, Any] = {}
    for step in graph.steps:
        if is_layer(step.operation):
            named.setdefault(step.name, step.operation)
    refusals = [
        Refusal(name, "layer", "is no layer of this model", f"name one of {', '.join(list(named)[:20])}")
        for name in frozen
        if not any(_under(layer, name) for layer in named)
    ]
    kept = [
        layer for name, layer in named.items()
        if layer.trainable_variables and not any(_under(name, stop) for stop in frozen)
    ]  # fmt: skip
    if train_head is not None:
        if not 1 <= train_head <= len(kept):
            change = f"name a number from 1 to {len(kept)}"
            refusals.append(Refusal("model", "head", f"has {len(kept)} layers that learn, got {train_head}", change))
        kept = kept[len(kept) - train_head :] if train_head > 0 else []
    return {id(layer) for layer in kept}, refusals


def _under(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}/")


def _weights(graph: ModelGraph, kept: set[int], taken_names: set[str]) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    trainable: list[Weight] = []
    fixed: list[Weight] = []
    seen: set[int] = set()
    names, fixed_names = set(taken_names), set[str]()
    for number, step in enumerate(graph.steps):
        if not is_layer(step.operation):
            continue
        learns = {id(v) for v in step.operation.trainable_variables} if id(step.operation) in kept else set()
        for place, variable in enumerate(step.operation.weights):
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            wanted = plain_name(f"{step.name}/{_own_path(variable, step)}", 120)
            if id(variable) in learns:
                trainable.append(Weight(_free_name(wanted, names), variable, (number, place)))
            else:
                fixed.append(Weight(_free_name(wanted, fixed_names), variable, (number, place)))
    return tuple(trainable), tuple(fixed)


def _not_finite(graph: ModelGraph) -> list[Refusal]:
    """Return a refusal for each layer that training has ruined: nothing compares with a NaN, and no step mends it."""
    found: dict[int, Refusal] = {}
    for step in graph.steps:
        for variable in step.operation.weights if is_layer(step.operation) else ():
            values = np.asarray(variable)
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                reason = f"{_own_path(variable, step)} holds values that are not finite"
                change = "train it again with a smaller learning rate, or clipped gradients"
                found.setdefault(id(step.operation), Refusal(step.name, step.kind, reason, change))
    return list(found.values())


def _own_path(variable: Any, step: Step) -> str:
    """Return a variable's path below its layer: `kernel`, `lstm_cell/kernel`."""
    path = str(variable.path)
    head = f"{step.operation.name}/"
    return path[path.rindex(head) + len(head) :] if head in path else str(variable.name)


def _rows(graph: ModelGraph, learns: Collection[tuple[int, int]]) -> tuple[tuple[LayerRow, ...], tuple[str, ...]]:
    table = rules()
    rows: dict[int, LayerRow] = {}
    notes: dict[str, None] = {}
    numbers = {number for number, _ in learns}
    for number, step in enumerate(graph.steps):
        operation, how = step.operation, table[step.kind].how
        if "left out" in how:
            notes[f"{step.name}: {how}"] = None
        if not is_layer(operation):
            rows[id(operation)] = LayerRow(step.name, step.kind, False, 0, how)
            continue
        for layer in _with_inner(operation):
            notes.update(dict.fromkeys(f"{step.name}: {note}" for note in _left_out(layer)))
        count = sum(_count(variable.shape) for variable in operation.weights)
        if id(operation) not in rows:
            rows[id(operation)] = LayerRow(step.name, step.kind, number in numbers, count, how)
    return tuple(rows.values()), tuple(notes)


def _left_out(layer: Any) -> Iterator[str]:
    for name in ("dropout", "recurrent_dropout", "_dropout"):
        rate = getattr(layer, name, 0)
        if isinstance(rate, int | float) and rate:
            yield f"its {name.strip('_').replace('_', ' ')} of {rate} is left out"
    for name in sorted(vars(layer)):
        if name.endswith("_regularizer") and getattr(layer, name) is not None:
            yield f"its {name} is left out of the loss"
