"""Golden vectors: what the exported file answers to fixed contexts, and whether a device's interpreter answers alike.

Which contexts, and which answers are fit to be demanded exactly, is `wire_contract.golden_choice`'s rule. They are
asked of the final file, so that a device finds a wrong patch, a wrong interpreter or a flipped bit before it uses it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.conformance import Case, Finding, Trial
from wire_contract.golden_choice import padded, text_vectors
from wire_contract.manifest import GoldenVector, Manifest

Run = Callable[[str, Mapping[str, NDArray[np.generic]]], Mapping[str, NDArray[np.generic]]]
SIGNATURE = "suggest_context"


def golden_vectors(run: Run, words: int, length: int) -> tuple[GoldenVector, ...]:
    """Return the vectors that the final file is shipped with; none where it answers nothing with conviction.

    run: one signature on named arrays, in the interpreter that devices have. words: of the vocabulary; length: tokens
    that `suggest_context` takes.
    """

    def ask(tokens: Sequence[int]) -> list[float]:
        outputs = run(SIGNATURE, {"tokens": np.array(tokens, np.int32)})
        log_probs: list[float] = np.asarray(outputs["log_probs"], np.float64).ravel().tolist()
        return log_probs

    return text_vectors(words, length, ask)


def golden_trials(manifest: Manifest) -> list[Trial]:
    """Return a trial for each vector: the ids must come out exactly, on every runtime."""
    length = manifest.signatures[SIGNATURE].length
    return [_trial(number, vector, length) for number, vector in enumerate(manifest.golden_vectors)]


def _trial(number: int, vector: GoldenVector, length: int) -> Trial:
    def judge(outputs: Mapping[str, NDArray[np.generic]]) -> list[Finding]:
        got = tuple(int(i) for i in np.asarray(outputs["ids"]).ravel())
        wrong = sum(a != b for a, b in zip(got, vector.ids, strict=False)) + abs(len(got) - len(vector.ids))
        return [Finding(f"golden vector {number}", float(wrong), 0.0)]

    tokens = np.array(padded(vector.context, length), np.int32)
    return Trial(Case(SIGNATURE, {"tokens": tokens}), judge)
