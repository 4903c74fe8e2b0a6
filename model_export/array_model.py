"""The template of a model of arrays: its file, where the fleet's tensors stand, what one example is made of."""

from dataclasses import dataclass

from wire_contract.manifest import ArraySpec, TensorEntry


@dataclass(frozen=True, slots=True)
class ArrayTemplate:
    """What `keras_graph.array_template` made. `template_loss`: loss / count of `evaluate` on synthetic examples."""

    data: bytes
    tensors: tuple[TensorEntry, ...]
    examples: tuple[ArraySpec, ...]
    loss: str
    batch: int
    template_loss: float
