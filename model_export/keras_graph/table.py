"""The table of what can be exported: a rule for each kind of layer and operation, and who computes it.

A rule says in plain words how a layer is exported, which configurations it refuses, and holds the function that makes
the layer's outputs of its inputs and weights. The rules of these functions:
- weights come in by `Call.weight`, never from a variable: a variable in an exported graph would be NaN on a device;
- shapes are static; the gradient of what is differentiated is made of operations that TensorFlow Lite has built in: no
  ReluGrad, no Conv2DBackpropFilter, no StridedSliceGrad, no loop;
- any float dtype works alike, so that the graph can be judged in float64.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Complaint = tuple[str, str]
Emit = Callable[["Call"], Any]
Refuse = Callable[[Any], Iterator[Complaint]]
RefuseCall = Callable[["Use"], Iterator[Complaint]]


@dataclass(frozen=True, slots=True)
class Use:
    """One call before anything is computed: its arguments with `Ref` for tensors, and these tensors' shapes."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: tuple[tuple[int | None, ...], ...]

    def argument(self, position: int, name: str) -> Any:
        """Return an argument that was given by position or by name; None if it was not."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one layer: the layer, its arguments as tensors, and where its weights come from.

    `dtype` is the graph's float. `bare` asks for the value before the layer's own activation: the loss takes logits.
    `differentiated` says whether a gradient goes through here; where none does, TensorFlow Lite's own convolutions and
    pooling are faster than patches.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    weight_of: Callable[[Any], Any]
    dtype: Any
    bare: bool = False
    differentiated: bool = True

    @property
    def x(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def weight(self, variable: Any) -> Any:
        """Return the tensor that stands for a Keras variable."""
        return self.weight_of(variable)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that was given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    kind: str
    how: str
    emit: Emit
    refuse: Refuse
    refuse_call: RefuseCall


def _nothing(layer: Any) -> Iterator[Complaint]:
    yield from ()


_RULES: dict[str, Rule] = {}


def rule(
    kinds: str, how: str, refuse: Refuse = _nothing, *, refuse_call: RefuseCall = _nothing
) -> Callable[[Emit], Emit]:
    """Register the function below for the space-separated kinds."""

    def register(emit: Emit) -> Emit:
        for kind in kinds.split():
            if kind in _RULES:
                raise ValueError(f"a kind has one rule, got two for {kind}")
            _RULES[kind] = Rule(kind, how, emit, refuse, refuse_call)
        return emit

    return register


def rules() -> Mapping[str, Rule]:
    """Return the whole table by kind: `Dense`, `ops.Mean`."""
    from model_export.keras_graph import (  # noqa: F401 - each registers its rules
        attention,
        convolutions,
        dense,
        identities,
        merging,
        normalization,
        operations,
        pooling,
        recurrence,
        shaping,
    )

    return _RULES
