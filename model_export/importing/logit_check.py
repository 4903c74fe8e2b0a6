"""Does the imported network answer as the source did? Logits compared, word by word.

A source states its answers as an .npz with `tokens` [rows, length] in its own ids, and `logits` [rows, length, words]
(after each token) or [rows, words] (after the last one). The judge is this package's float64 forward on the imported
weights, so a wrong transpose, gate order or row is found whatever the shapes say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export import reference
from model_export.importing.refusal import BadImport
from model_export.importing.vocabulary_file import Rows
from wire_contract.layout import Tensors

LOGIT_TOLERANCE = 1e-4
MAX_TOKENS = 4096
SAMPLE_ROWS, SAMPLE_LENGTH = 4, 12
# Four words in a hundred thousand may be near-twins of each other; a logit is not allowed to be one of them by chance.
SMALLEST_SPREAD = 100 * LOGIT_TOLERANCE


@dataclass(frozen=True, slots=True)
class Answers:
    """What a source gave: tokens [rows, length] in its ids, logits [rows, length or 1, words] in its columns."""

    tokens: NDArray[np.int64]
    logits: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Logits compared, and the largest absolute difference."""

    logits: int
    worst: float


def sample_tokens(words: int) -> NDArray[np.int64]:
    """Return the token rows that a program is asked for: fixed, in the source's ids, first and last id among them."""
    count = SAMPLE_ROWS * SAMPLE_LENGTH
    ids = (np.arange(count, dtype=np.int64) * 7919 + 1) % words
    ids[0], ids[-1] = 0, words - 1
    return ids.reshape(SAMPLE_ROWS, SAMPLE_LENGTH)


def answers_of(arrays: Mapping[str, NDArray[np.generic]], words: int) -> Answers:
    """Return the answers that `tokens` and `logits` of an .npz state. Raises `BadImport`."""
    if set(arrays) != {"tokens", "logits"}:
        raise BadImport(f"a check holds the arrays tokens and logits, got {sorted(arrays)[:8]}")
    tokens, logits = arrays["tokens"], arrays["logits"]
    if tokens.dtype.kind not in "iu" or tokens.ndim != 2 or not 1 <= tokens.size <= MAX_TOKENS:
        raise BadImport(f"tokens are 1 to {MAX_TOKENS} integers [rows, length], got {tokens.dtype} {tokens.shape}")
    if logits.ndim == 2:
        logits = logits[:, np.newaxis]
    fits = {(tokens.shape[0], tokens.shape[1], words), (tokens.shape[0], 1, words)}
    if logits.dtype.kind != "f" or logits.shape not in fits:
        raise BadImport(f"logits are floats of one of the shapes {sorted(fits)}, got {logits.dtype} {logits.shape}")
    if tokens.min() < 0 or tokens.max() >= words:
        raise BadImport(f"tokens are ids below {words}, got {int(tokens.min())}..{int(tokens.max())}")
    exact = logits.astype(np.float64)
    if not np.isfinite(exact).all():
        raise BadImport("logits are finite, got NaN or Inf")
    if np.ptp(exact) < SMALLEST_SPREAD:
        raise BadImport(f"logits differ by at least {SMALLEST_SPREAD:g} or prove nothing, got {np.ptp(exact):g}")
    return Answers(tokens.astype(np.int64), exact)


def compare(tensors: Tensors, rows: Rows, answers: Answers, tolerance: float = LOGIT_TOLERANCE) -> Agreement:
    """Return how well the imported network agrees. Raises `BadImport` above `tolerance`, naming the worst logit."""
    ours_of = rows.our_ids()
    logits = reference.logits_of(tensors, ours_of[answers.tokens].astype(np.int32)).transpose(1, 0, 2)
    got = logits[:, -answers.logits.shape[1] :, ours_of]
    error = np.abs(got - answers.logits)
    worst = float(error.max())
    if not worst <= tolerance:
        row, position, column = (int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
        after = answers.tokens.shape[1] - answers.logits.shape[1] + position
        word = rows.vocabulary.words[int(ours_of[column])]
        raise BadImport(
            f"the imported network's logits are the source's within {tolerance:g}, got {worst:.3g} at row {row}, after "
            f"token {after}, for {word!r} (source id {column}): here {got[row, position, column]:.6g}, there "
            f"{answers.logits[row, position, column]:.6g}"
        )
    return Agreement(error.size, worst)
