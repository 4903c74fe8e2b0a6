"""The person's own suggestions: a fine-tuned copy, their n-gram cache, and the shared model, mixed.

The rules (accuracy.md 2):
- fine-tuning is SGD on `train`, one epoch, small batches, each gradient clipped to norm 1 by scaling the step;
- a copy is accepted only if it makes the held-out last fifth of the person's text more likely;
- suggestions are the three likeliest words of the weighted sum; specials have no probability;
- nothing of this leaves the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.evaluation import score, windows
from edge_runtime.local_training import Stepper, draw_rows, generator
from edge_runtime.ngram_cache import NgramCache, Prediction
from edge_runtime.ports import SignatureRunner
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import Manifest
from wire_contract.vocabulary import SPECIALS

LEARNING_RATE = 0.3
BATCH_ROWS = 8
CLIP = 1.0
HEAD = 0.8
MOST_ROWS = 2000
SUGGESTIONS = 3
_ROWS, _STEP = 100, 101


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights of the shared model, the fine-tuned copy and the n-gram cache; they sum to 1."""

    shared: float = 0.35
    copy: float = 0.5
    cache: float = 0.15

    def __post_init__(self) -> None:
        weights = (self.shared, self.copy, self.cache)
        if min(weights) < 0.0 or abs(sum(weights) - 1.0) > 1e-9:
            raise ValueError(f"weights are not negative and sum to 1, got {weights}")

    def mix(
        self, shared: NDArray[np.float64], copy: NDArray[np.float64] | None, cache: Prediction
    ) -> NDArray[np.float64]:
        """Return the mixed distribution [V]; without a copy its weight goes to the shared model.

        The cache's leftover mass goes to the other two in their proportion.
        """
        neural = self.shared + self.copy
        if copy is None or neural == 0.0:
            base = shared
        else:
            share = self.copy / neural
            base = (1.0 - share) * shared + share * copy
        mixed: NDArray[np.float64] = base * (neural + self.cache * cache.leftover)
        mixed[cache.ids] += self.cache * cache.probabilities
        return mixed


def fit_mixture(target_probabilities: NDArray[np.float64], rounds: int = 50) -> NDArray[np.float64]:
    """Return the weights under which targets are likeliest, by EM; input [targets, components]."""
    weights = np.full(target_probabilities.shape[1], 1.0 / target_probabilities.shape[1])
    for _ in range(rounds):
        shares = target_probabilities * weights
        weights = np.mean(shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300), axis=0)
    return weights


def probabilities_of(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return softmax [..., V] over the ordinary words; the four specials get 0. Takes logits or log probabilities."""
    values = np.asarray(logits, dtype=np.float64).copy()
    values[..., : len(SPECIALS)] = -np.inf
    values -= values.max(axis=-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=-1, keepdims=True)
    return values


def top_ids(distribution: NDArray[np.float64], count: int = SUGGESTIONS) -> tuple[int, ...]:
    """Return the ids of the likeliest ordinary words, most likely first; ties go to the lower id."""
    ordinary = distribution[len(SPECIALS) :]
    places = np.argpartition(-ordinary, min(count, len(ordinary) - 1))[: count + 1]
    threshold = np.sort(ordinary[places])[::-1][:count][-1]
    candidates = np.flatnonzero(ordinary >= threshold)
    best = candidates[np.lexsort((candidates, -ordinary[candidates]))][:count]
    return tuple(int(i) + len(SPECIALS) for i in best)


def suggest(
    context: Sequence[int],
    shared: SignatureRunner,
    copy: SignatureRunner | None,
    cache: NgramCache,
    mixture: Mixture = Mixture(),
) -> tuple[int, ...]:
    """Return the three suggestions after `context`, the last 20 ids, left-padded with `<pad>`.

    `shared` and `copy` are runners of files with int8 weights (`suggest_context`). Raises `RuntimeFailed`.
    """
    tokens = np.asarray(context, dtype=np.int32)
    distribution = probabilities_of(shared.run("suggest_context", {"tokens": tokens})["log_probs"])
    own = None if copy is None else probabilities_of(copy.run("suggest_context", {"tokens": tokens})["log_probs"])
    present = [int(i) for i in tokens if i]
    return top_ids(mixture.mix(distribution, own, cache.predict(present)))


@dataclass(frozen=True, slots=True)
class Copy:
    """A fine-tuned copy, and the held-out loss (nats a word) that the gate judged: of the received weights, and its."""

    tensors: Tensors
    accepted: bool
    loss_received: float
    loss_copy: float


def fine_tune(
    runner: SignatureRunner,
    manifest: Manifest,
    packed: Tensors,
    stream: Sequence[int],
    *,
    seed: int,
    learning_rate: float = LEARNING_RATE,
    batch_rows: int = BATCH_ROWS,
    signature: str = "train",
) -> Tensors:
    """Return the packed weights after one epoch over `stream`; `packed` stays what it was. Raises `RuntimeFailed`."""
    stepper = Stepper(runner, manifest, packed, signature)
    rows = draw_rows(stream, rows=MOST_ROWS, length=stepper.length, rng=generator(seed, _ROWS))
    for number, start in enumerate(range(0, len(rows), batch_rows)):
        batch = rows[start : start + batch_rows]
        before = {name: value.copy() for name, value in stepper.packed.items()}
        # A whole small batch steps by the full rate: the stepper scales by its share of the graph's batch.
        rate = learning_rate * stepper.batch / batch_rows
        stepper.step(batch, rate, 0.0, generator(seed, _STEP, number))
        _clip_step(stepper.packed, before, learning_rate * CLIP)
    return stepper.packed


def _clip_step(packed: Tensors, before: Tensors, limit: float) -> None:
    """Shorten the step from `before` to `packed` to norm `limit`, in place: a gradient clip of limit / rate."""
    steps = {name: value - before[name] for name, value in packed.items()}
    norm = float(np.sqrt(sum(float(np.vdot(step, step)) for step in steps.values())))
    if norm > limit:
        for name, step in steps.items():
            packed[name] = before[name] + step * np.float32(limit / norm)


def make_copy(
    runner: SignatureRunner,
    manifest: Manifest,
    tensors: Tensors,
    stream: Sequence[int],
    *,
    seed: int,
    learning_rate: float = LEARNING_RATE,
    batch_rows: int = BATCH_ROWS,
    signature: str = "train",
) -> Copy:
    """Fine-tune on the first four fifths of `stream`, judge on the last; an accepted copy then learns the last, too."""
    layout, spec = Layout.of(manifest), manifest.signatures["evaluate"]
    received = layout.pack(tensors)
    cut = int(len(stream) * HEAD)
    held_out = windows(stream, spec.batch, spec.length, first_scored=cut)
    tails, first = [window.ids for window in held_out], [window.first_scored for window in held_out]
    before = score(runner, spec, received, tails, first_scored=first)
    tuned = fine_tune(
        runner, manifest, received, stream[:cut],
        seed=seed, learning_rate=learning_rate, batch_rows=batch_rows, signature=signature,
    )  # fmt: skip
    after = score(runner, spec, tuned, tails, first_scored=first)
    accepted = after.count > 0 and after.mean_loss < before.mean_loss
    if accepted:
        tuned = fine_tune(
            runner, manifest, tuned, stream[cut:],
            seed=seed + 1, learning_rate=learning_rate, batch_rows=batch_rows, signature=signature,
        )  # fmt: skip
    return Copy(layout.unpack(tuned if accepted else received), accepted, before.mean_loss, after.mean_loss)
