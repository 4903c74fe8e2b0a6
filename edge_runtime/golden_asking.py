"""The golden vectors that a version is to be shipped with, by this device's interpreter (see `golden_choice`).

`edge-runtime evaluate --golden N` prints them: the cloud, which has no interpreter, asks so for a release's vectors.
"""

import numpy as np

from edge_runtime import model_check_arrays
from edge_runtime.ports import SignatureRunner
from wire_contract import golden_choice
from wire_contract.manifest import ARRAY_FAMILY, GoldenVector, Manifest


def ask(version: SignatureRunner, manifest: Manifest, count: int) -> tuple[GoldenVector, ...]:
    """Return up to `count` vectors of a version's own file. Raises `RuntimeFailed`."""
    if manifest.family == ARRAY_FAMILY:
        return golden_choice.array_vectors(
            lambda number: model_check_arrays.predict(version, manifest, number).ravel().tolist(), count
        )
    length = manifest.signatures["suggest_context"].length

    def log_probs(tokens: tuple[int, ...]) -> list[float]:
        outputs = version.run("suggest_context", {"tokens": np.array(tokens, np.int32)})
        answer: list[float] = outputs["log_probs"].tolist()
        return answer

    return golden_choice.text_vectors(manifest.vocabulary_words, length, log_probs, count)


def as_items(vectors: tuple[GoldenVector, ...]) -> list[dict[str, object]]:
    """Return vectors as a command prints them: the fields of `GoldenVector`, by name."""
    return [{"context": list(v.context), "example": v.example, "ids": list(v.ids)} for v in vectors]
