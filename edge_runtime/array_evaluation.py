"""The score of weights on examples of arrays, by the `evaluate` signature. Pure but for the runner.

The signature sums what counts: `loss` in nats (or squared error), `hits` the examples whose likeliest class, or whose
yes or no, is the target, `count` the examples. For a mean squared error there is no hit or miss, and `hits` is 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.array_examples import ExamplesRefused
from edge_runtime.array_training import fill
from edge_runtime.ports import RuntimeFailed, SignatureRunner
from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest

SIGNATURE = "evaluate"
SQUARED, CLASSES = "mean_squared_error", "sparse_categorical_crossentropy"


@dataclass(frozen=True, slots=True)
class ArrayScore:
    """Examples scored, how many were hit, and the summed loss; `outputs` [count, ...] are logits or values."""

    count: int
    hits: int
    loss: float
    outputs: NDArray[np.float32]

    @property
    def mean_loss(self) -> float:
        """The loss of one example."""
        return self.loss / max(1, self.count)

    @property
    def accuracy(self) -> float:
        """Percent of examples hit."""
        return 100.0 * self.hits / max(1, self.count)


def score(
    runner: SignatureRunner, manifest: Manifest, packed: Tensors, arrays: Mapping[str, NDArray[np.generic]]
) -> ArrayScore:
    """Return the score of weights (`packed`: the train inputs) on examples by name, [n, *shape], n >= 1.

    Raises `RuntimeFailed`.
    """
    batch = manifest.signatures[SIGNATURE].batch
    total = len(next(iter(arrays.values())))
    sums, outputs = np.zeros(3), []
    for start in range(0, total, batch):
        taken = {name: array[start : start + batch] for name, array in arrays.items()}
        said = runner.run(SIGNATURE, {**fill(batch, taken), **packed})
        sums += [float(said[name]) for name in ("count", "hits", "loss")]
        outputs.append(np.asarray(said["outputs"], np.float32)[: total - start])
    hits = 0 if manifest.loss == SQUARED else round(sums[1])
    return ArrayScore(round(sums[0]), hits, float(sums[2]), np.concatenate(outputs))


def try_examples(
    runner: SignatureRunner, manifest: Manifest, packed: Tensors, arrays: Mapping[str, NDArray[np.generic]]
) -> ArrayScore:
    """Return the score, if the model can be run on every example and has every class among the targets.

    Use it before examples are stored: a class that the model lacks would teach it nonsense without a word, and an index
    that an embedding lacks would end every night's training. Raises `ExamplesRefused`.
    """
    try:
        found = score(runner, manifest, packed, arrays)
    except RuntimeFailed as e:
        raise ExamplesRefused(f"the model cannot be run on these examples: {e}") from e
    check_classes(manifest, arrays, found)
    if not np.isfinite(found.loss):
        raise ExamplesRefused(f"the model's loss on these examples is a number, got {found.loss}")
    return found


def check_classes(manifest: Manifest, arrays: Mapping[str, NDArray[np.generic]], found: ArrayScore) -> None:
    """Raise `ExamplesRefused` where a target is a class that the model lacks; its loss is a number all the same."""
    if manifest.loss != CLASSES:
        return
    name = next(spec.name for spec in manifest.examples if spec.role == "target")
    classes, highest = found.outputs.shape[-1], int(np.max(arrays[name]))
    if highest >= classes:
        raise ExamplesRefused(f"{name} is a class below {classes}, for the model has so many, got {highest}")
