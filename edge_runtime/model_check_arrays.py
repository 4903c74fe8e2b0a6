"""`model_check` for a model of arrays: the same questions, on examples that the device makes for itself.

The rules:
- value i of a float32 array is ((7919 i) mod 201 - 100) / 100, of an int32 array i mod 2, i over [examples, *shape] in
  C order: example n is row n of a batch that never ends. Weights are `model_check.synthetic`'s, all examples weigh 1;
- template: `evaluate` on them gives the manifest's `template_loss` a counted example, within `loss_tolerance`;
- version: `predict` of the first examples lies within `logit_tolerance` of what `evaluate` computes on the weights that
  are read from the same file, with the loss's last activation; relative to the largest value, if that is above 1;
- a golden vector names the positions of the largest outputs of `predict`, largest first;
- everything is finite.
"""

import numpy as np
from numpy.typing import NDArray

from edge_runtime.model_check import CheckFailed, check_vectors, synthetic
from edge_runtime.ports import SignatureRunner
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import ArraySpec, Manifest
from wire_contract.patch import read_tensors

CHECKED_EXAMPLES = 4
_LAST = {"sparse_categorical_crossentropy": "softmax", "binary_crossentropy": "sigmoid", "mean_squared_error": ""}

Arrays = dict[str, NDArray[np.generic]]


def synthetic_examples(specs: tuple[ArraySpec, ...], first: int, count: int) -> Arrays:
    """Return examples `first` to `first` + `count`, by name: [count, *shape]."""
    made: Arrays = {}
    for spec in specs:
        size = int(np.prod(spec.shape, dtype=np.int64))
        i = np.arange(first * size, (first + count) * size, dtype=np.int64)
        values = i % 2 if spec.dtype == "int32" else ((i * 7919) % 201 - 100) / 100
        made[spec.name] = values.astype(spec.dtype).reshape(count, *spec.shape)
    return made


def check_template(runner: SignatureRunner, manifest: Manifest) -> None:
    """Raise `CheckFailed` if the interpreter computes the template's loss otherwise."""
    packed = {train_input.name: synthetic(train_input) for train_input in manifest.train_inputs}
    outputs = _evaluate(runner, manifest, packed)
    loss = float(outputs["loss"]) / float(outputs["count"])
    golden = manifest.golden
    if not abs(loss - golden.template_loss) <= golden.loss_tolerance:
        raise CheckFailed(
            "template_loss",
            f"this interpreter's loss on the synthetic weights is {golden.template_loss} "
            f"within {golden.loss_tolerance}, got {loss}",
        )


def check_version(template: SignatureRunner, version: SignatureRunner, data: bytes, manifest: Manifest) -> None:
    """Raise `CheckFailed` if the file's own weights are not in place, or a golden vector comes out otherwise."""
    packed = Layout.of(manifest).pack(read_tensors(data, manifest))
    floats = np.asarray(_evaluate(template, manifest, packed)["outputs"], np.float64)
    for number in range(min(CHECKED_EXAMPLES, len(floats))):
        expected = _last_activation(floats[number], manifest.loss)
        error = np.max(np.abs(predict(version, manifest, number).reshape(expected.shape) - expected), initial=0.0)
        limit = manifest.golden.logit_tolerance * max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        if not error <= limit:
            raise CheckFailed("logit_tolerance", f"predict lies within {limit} of the float graph, got {error}")
    check_vectors(
        manifest, lambda vector: largest(predict(version, manifest, vector.example), len(vector.ids)).tolist()
    )


def predict(version: SignatureRunner, manifest: Manifest, number: int) -> NDArray[np.float64]:
    """Return the outputs for one synthetic example, [1, ...]. Raises `RuntimeFailed`."""
    inputs = tuple(spec for spec in manifest.examples if spec.role == "input")
    return np.asarray(version.run("predict", synthetic_examples(inputs, number, 1))["outputs"], np.float64)


def largest(outputs: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the positions of the `count` largest outputs, flat, largest first, ties by position."""
    return np.argsort(-outputs.ravel(), kind="stable")[:count]


def _evaluate(runner: SignatureRunner, manifest: Manifest, packed: Tensors) -> dict[str, NDArray[np.generic]]:
    batch = manifest.signatures["evaluate"].batch
    examples = synthetic_examples(manifest.examples, 0, batch)
    weights = np.ones(batch, np.float32)
    return runner.run("evaluate", {**examples, "example_weights": weights, **packed})


def _last_activation(outputs: NDArray[np.float64], loss: str) -> NDArray[np.float64]:
    kind = _LAST.get(loss)
    if kind is None:
        raise CheckFailed("unknown_loss", f"this release knows the losses {sorted(_LAST)}, got {loss[:40]!r}")
    if kind == "softmax":
        shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        softmax: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
        return softmax
    if kind == "sigmoid":
        with np.errstate(over="ignore"):
            sigmoid: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-outputs))
        return sigmoid
    return outputs
