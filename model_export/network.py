"""The next-word network's size and the shape of its tensors, without TensorFlow.

A CIFG-LSTM (coupled input and forget gate: Greff et al. 2017, arXiv 1503.04069) with a recurrent projection (Sak et
al. 2014, arXiv 1402.1128) and one embedding for input and output (Press and Wolf 2017, arXiv 1608.05859), as in Hard
et al. 2018 (arXiv 1811.03604):

    z = kernel [x_t; h] + kernel_bias          kernel rows: forget | output | candidate
    f, o = sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
    c = f c + (1 - f) g;  h = projection (o tanh c);  logits = embedding h + output_bias

The rules:
- the fleet's tensors and their order are `tensor_shapes`; whoever changes them makes another layout;
- weights are the left operand and kept units-major, so a unit's values lie together (short index gaps in an update);
- the train signatures take them packed side by side (`train_inputs`), a bias being one more column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import TRAIN_FAMILIES, Part, SignatureSpec, TensorEntry, TrainInput, signature_name

BATCH = 16
LENGTH = 20
CANDIDATES = 512
SUGGESTIONS = 3
FAMILIES = (*TRAIN_FAMILIES, "evaluate", "suggest", "suggest_context")
SMALLEST_INT8_VALUES = 1024
EMBEDDING, KERNEL, PROJECTION = "embedding", "kernel", "projection"
KERNEL_BIAS, OUTPUT_BIAS = "kernel_bias", "output_bias"


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """Words of the vocabulary (the four specials among them), width of embedding and state, LSTM cells."""

    words: int
    width: int
    cells: int

    def __post_init__(self) -> None:
        smallest = min(self.words * self.width, 6 * self.cells * self.width, self.width * self.cells)
        if smallest < SMALLEST_INT8_VALUES:
            # The converter keeps smaller constants in float32, and there would be no int8 bytes to patch.
            raise ValueError(f"every matrix has at least {SMALLEST_INT8_VALUES} values, got {smallest} in {self}")

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The fleet tensors' shapes in the order of the layout."""
        return {
            EMBEDDING: (self.words, self.width),
            KERNEL: (3 * self.cells, 2 * self.width),
            PROJECTION: (self.width, self.cells),
            KERNEL_BIAS: (3 * self.cells,),
            OUTPUT_BIAS: (self.words,),
        }

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(int(np.prod(shape)) for shape in self.tensor_shapes.values())


PRESETS = {
    "reference": NetworkSize(words=10_000, width=96, cells=670),
    "small": NetworkSize(words=10_000, width=64, cells=192),
    # For tests: a whole bundle in 350 kB.
    "tiny": NetworkSize(words=600, width=16, cells=72),
}


def train_inputs(size: NetworkSize) -> tuple[TrainInput, ...]:
    """Return the weight inputs of the train signatures; the ones column of `output_rows` carries the stabiliser."""
    words, width, cells = size.words, size.width, size.cells
    return (
        TrainInput(
            name="output_rows",
            shape=(words, width + 2),
            parts=(
                Part(tensor=EMBEDDING, start=0, stop=width),
                Part(tensor=OUTPUT_BIAS, start=width, stop=width + 1),
            ),
            fill=1.0,
        ),
        TrainInput(
            name="kernel_rows",
            shape=(3 * cells, 2 * width + 1),
            parts=(
                Part(tensor=KERNEL, start=0, stop=2 * width),
                Part(tensor=KERNEL_BIAS, start=2 * width, stop=2 * width + 1),
            ),
        ),
        TrainInput(name="projection", shape=(width, cells), parts=(Part(tensor=PROJECTION, start=0, stop=cells),)),
    )


def signature_specs(
    candidates: int = CANDIDATES,
    variants: Sequence[tuple[int, int]] = (),
    families: Sequence[str] = FAMILIES,
) -> dict[str, SignatureSpec]:
    """Return the static shapes of every signature, as the manifest states them.

    `variants` are (batch, length) pairs: each adds one signature of every train family among `families`, named by
    `manifest.signature_name`. Raises `ValueError` for a family that is not known, or a variant that is no such pair.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        raise ValueError(f"the families are {FAMILIES}, got {unknown}")
    if any(not (1 <= batch <= 4096 and 1 <= length <= 4096) for batch, length in variants):
        raise ValueError(f"a variant is (batch, length), each from 1 to 4096, got {list(variants)}")
    specs = {}
    for family in families:
        sampled = candidates if family == "train_sampled" else 0
        if family == "suggest":
            specs[family] = SignatureSpec(batch=1, length=1)
        elif family == "suggest_context":
            specs[family] = SignatureSpec(batch=1, length=LENGTH)
        else:
            specs[family] = SignatureSpec(batch=BATCH, length=LENGTH, candidates=sampled)
        if family in TRAIN_FAMILIES:
            for batch, length in variants:
                specs[signature_name(family, batch, length)] = SignatureSpec(
                    batch=batch, length=length, candidates=sampled
                )
    return specs


def layout_without_file(size: NetworkSize) -> Layout:
    """Return the layout of `size` before a file exists: good for pack, unpack, flatten; its offsets mean nothing."""
    entries = tuple(
        TensorEntry(name=name, shape=shape, kind="float32", offsets=(0,)) for name, shape in size.tensor_shapes.items()
    )
    return Layout(entries, train_inputs(size))


def size_of(tensors: Mapping[str, NDArray[np.generic]]) -> NetworkSize:
    """Return the size that a set of fleet tensors has; raises `ValueError` where their shapes do not fit together."""
    size = NetworkSize(
        words=tensors[EMBEDDING].shape[0], width=tensors[EMBEDDING].shape[1], cells=tensors[PROJECTION].shape[1]
    )
    for name, shape in size.tensor_shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {shape} beside this embedding, got {tensors[name].shape}")
    return size


def initial_tensors(size: NetworkSize, rng: np.random.Generator) -> Tensors:
    """Return float32 tensors to begin training with: uniform by fan-in and fan-out, the forget gate open by 1."""
    tensors: Tensors = {}
    for name, shape in size.tensor_shapes.items():
        if len(shape) == 2:
            limit = 0.1 if name == EMBEDDING else float(np.sqrt(6.0 / sum(shape)))
            tensors[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, np.float32)
    tensors[KERNEL_BIAS][: size.cells] = 1.0
    return tensors
