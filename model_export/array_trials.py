"""Does a model of arrays compute on a device's interpreter what its manifest says? The trials that `verify` asks.

There is no second implementation of somebody's own model, so the judges are: the template's loss, which the exporter
measured on synthetic weights and examples; `evaluate` with the version's own weights against `predict`, two float
graphs over the same numbers; and the golden vectors. A wrong place of a weight, or a wrong op, differs in one of them.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model_export.bundle import Bundle
from model_export.conformance import Case, Finding, Judge, Trial
from model_export.keras_graph.synthetic import synthetic_examples, synthetic_weights
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest
from wire_contract.patch import read_tensors

Arrays = Mapping[str, NDArray[np.generic]]
PREDICTED = 4


def array_trials(bundle: Bundle) -> list[Trial]:
    """Return the trials of a version of the family arrays, in an order in which they may be judged."""
    manifest = bundle.manifest
    version = _Version(manifest)
    packed = Layout.of(manifest).pack(read_tensors(bundle.model, manifest))
    rows = min(PREDICTED, manifest.signatures["evaluate"].batch)
    return [
        _template_trial(manifest),
        Trial(Case("evaluate", _evaluated(manifest, packed)), version.remember),
        *[Trial(_predicted(manifest, row), version.judge(row)) for row in range(rows)],
        *[_golden_trial(manifest, number) for number in range(len(manifest.golden_vectors))],
    ]


def _evaluated(manifest: Manifest, packed: Arrays) -> dict[str, NDArray[np.generic]]:
    batch = manifest.signatures["evaluate"].batch
    return {
        **synthetic_examples(manifest.examples, 0, batch),
        "example_weights": np.ones(batch, np.float32),
        **packed,
    }


def _predicted(manifest: Manifest, example: int) -> Case:
    inputs = [spec for spec in manifest.examples if spec.role == "input"]
    return Case("predict", dict(synthetic_examples(inputs, example, 1)))


def _template_trial(manifest: Manifest) -> Trial:
    golden = manifest.golden

    def judge(outputs: Arrays) -> list[Finding]:
        loss = float(outputs["loss"]) / float(outputs["count"])
        return [Finding("evaluate template loss", abs(loss - golden.template_loss), golden.loss_tolerance)]

    packed = {spec.name: synthetic_weights(spec.shape) for spec in manifest.train_inputs}
    return Trial(Case("evaluate", _evaluated(manifest, packed)), judge)


class _Version:
    """`evaluate`'s outputs with the version's weights, kept until `predict`'s are held against them."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._outputs: NDArray[np.float64] | None = None

    def remember(self, outputs: Arrays) -> list[Finding]:
        """Keep the outputs, which must be finite."""
        self._outputs = np.asarray(outputs["outputs"], np.float64)
        return [Finding("evaluate outputs not finite", float(np.sum(~np.isfinite(self._outputs))), 0.0)]

    def judge(self, row: int) -> Judge:
        """Return the judge of `predict` on one example."""

        def judged(outputs: Arrays) -> list[Finding]:
            if self._outputs is None:
                return [Finding(f"predict example {row}", float("inf"), 0.0)]
            expected = _activated(self._manifest.loss, self._outputs[row])
            got = np.asarray(outputs["outputs"], np.float64).reshape(expected.shape)
            allowed = self._manifest.golden.logit_tolerance * max(1.0, float(np.max(np.abs(expected))))
            return [Finding(f"predict example {row}", float(np.max(np.abs(got - expected))), allowed)]

        return judged


def _activated(loss: str, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    if loss == "sparse_categorical_crossentropy":
        shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * outputs))) if loss == "binary_crossentropy" else outputs


def _golden_trial(manifest: Manifest, number: int) -> Trial:
    vector = manifest.golden_vectors[number]

    def judge(outputs: Arrays) -> list[Finding]:
        flat = np.asarray(outputs["outputs"], np.float64).ravel()
        got = np.argsort(-flat, kind="stable")[: len(vector.ids)]
        wrong = sum(int(a) != b for a, b in zip(got, vector.ids, strict=True))
        return [Finding(f"golden vector {number}", float(wrong), 0.0)]

    return Trial(_predicted(manifest, vector.example), judge)
