"""A Keras model as a flat list of steps: nested models opened, shared layers called as often as they are.

The rules:
- a step is one call of one layer or `keras.ops` operation; its arguments name earlier values by number (`Ref`);
- steps stand in an order in which each finds its arguments made;
- a model whose graph Keras does not know (a subclassed one, one that was never built) is refused by name.

Keras is met by its objects only, so this module imports neither it nor TensorFlow.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from model_export.keras_graph.refusal import Refusal, Refused


@dataclass(frozen=True, slots=True)
class Ref:
    """The value number `number`."""

    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """One call: `operation(*args, **kwargs)` makes the values `outputs`."""

    name: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int, ...]

    @property
    def kind(self) -> str:
        """`Dense` for a layer, `ops.Mean` for an operation of keras.ops."""
        name = type(self.operation).__name__
        return name if is_layer(self.operation) else f"ops.{name}"


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One input of the model: Keras's name, the shape of one example, Keras's dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    number: int


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """Inputs, steps, and the number of the one output."""

    inputs: tuple[GraphInput, ...]
    steps: tuple[Step, ...]
    output: int
    output_shape: tuple[int | None, ...]
    shapes: Mapping[int, tuple[int | None, ...]]
    dtypes: Mapping[int, str]

    def run(
        self, values: Mapping[str, Any], call: Callable[[Step, tuple[Any, ...], dict[str, Any]], Any]
    ) -> dict[int, Any]:
        """Return every value, by number: `call(step, args, kwargs)` makes the outputs of a step."""
        made = {given.number: values[given.name] for given in self.inputs}
        for step in self.steps:
            args, kwargs = filled(step.args, made), filled(dict(step.kwargs), made)
            made.update(zip(step.outputs, flat(call(step, args, kwargs)), strict=True))
        return made


def is_layer(operation: Any) -> bool:
    """Whether this is a Keras layer (it has weights and a dtype policy), not an operation of keras.ops."""
    return hasattr(operation, "trainable_variables")


def flat(value: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts, in Keras's order (dicts by key)."""
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    return [value]


def filled(value: Any, made: Mapping[int, Any]) -> Any:
    """Return `value` with each `Ref` replaced by what was made under its number."""
    return _mapped(value, lambda leaf: made[leaf.number] if isinstance(leaf, Ref) else leaf)


def refs(value: Any) -> Iterator[int]:
    """Yield the numbers that nested arguments name."""
    yield from (leaf.number for leaf in flat(value) if isinstance(leaf, Ref))


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, leaf) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, leaf) for key, item in value.items()}
    return leaf(value)


def functional_of(model: Any) -> Any | None:
    """Return the Keras graph of a model or nested model; None if it has none."""
    if hasattr(model, "_nodes_by_depth"):
        return model
    # A Sequential keeps its graph beside itself, once it knows its input's shape.
    return getattr(model, "_functional", None)


@dataclass(slots=True)
class _Flattening:
    steps: list[Step] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    shapes: dict[int, tuple[int | None, ...]] = field(default_factory=dict)
    dtypes: dict[int, str] = field(default_factory=dict)

    def number(self, tensor: Any) -> int:
        """Return a fresh number for a value like this KerasTensor."""
        made = len(self.shapes)
        self.shapes[made], self.dtypes[made] = tuple(tensor.shape), str(tensor.dtype)
        return made

    def open(self, functional: Any, numbers: dict[int, int], prefix: str) -> list[int]:
        """Append the steps of a graph whose inputs (KerasTensors, by id) have numbers; return its outputs' numbers."""
        by_depth = functional._nodes_by_depth
        for depth in sorted(by_depth, reverse=True):
            for node in by_depth[depth]:
                wanted = [id(tensor) for tensor in node.arguments.keras_tensors]
                if node.is_input or any(tensor not in numbers for tensor in wanted):
                    continue
                args, kwargs = node.arguments.convert(
                    lambda value: Ref(numbers[id(value)]) if id(value) in numbers else value
                )
                made = self._call(node, args, kwargs, prefix)
                numbers.update(zip((id(tensor) for tensor in node.outputs), made, strict=True))
        return [numbers[id(tensor)] for tensor in functional.outputs]

    def _call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> list[int]:
        operation = node.operation
        name = f"{prefix}{operation.name}"
        inner = functional_of(operation)
        if inner is not None:
            given = [leaf.number for leaf in flat((args, kwargs)) if isinstance(leaf, Ref)]
            tensors = [id(tensor) for tensor in inner.inputs]
            return self.open(inner, dict(zip(tensors, given, strict=True)), f"{name}/")
        if hasattr(operation, "layers") and hasattr(operation, "train_step"):
            self.refusals.append(subclassed(name, operation))
        outputs = tuple(self.number(tensor) for tensor in node.outputs)
        self.steps.append(Step(name, operation, args, kwargs, outputs))
        return list(outputs)


def subclassed(name: str, model: Any) -> Refusal:
    """Return the refusal of a model whose graph Keras does not know."""
    kind = type(model).__name__
    if kind == "Sequential":
        return Refusal(name, kind, "was never built, so its layers have no shapes", "begin it with keras.Input(shape)")
    return Refusal(
        name,
        kind,
        "is a subclassed model: its `call` is code, not a graph of layers",
        "write it with the functional API: keras.Model(inputs, outputs)",
    )


def flatten(model: Any) -> ModelGraph | Refused:
    """Return the steps of a Keras model; what has no graph, or several outputs, is refused."""
    functional = functional_of(model)
    if functional is None:
        return Refused((subclassed(getattr(model, "name", "model"), model),))
    flattening = _Flattening()
    inputs = tuple(
        GraphInput(
            tensor._keras_history.operation.name,
            tuple(tensor.shape[1:]),
            str(tensor.dtype),
            flattening.number(tensor),
        )
        for tensor in functional.inputs
    )
    numbers = {id(tensor): given.number for tensor, given in zip(functional.inputs, inputs, strict=True)}
    outputs = flattening.open(functional, numbers, "")
    refusals = flattening.refusals
    if len(outputs) != 1:
        reason = f"has {len(outputs)} outputs, and one is trained"
        refusals.append(Refusal(model.name, type(model).__name__, reason, "give keras.Model the one output to learn"))
    if refusals:
        return Refused(tuple(refusals))
    shape = tuple(functional.outputs[0].shape[1:])
    return ModelGraph(inputs, tuple(flattening.steps), outputs[0], shape, flattening.shapes, flattening.dtypes)
