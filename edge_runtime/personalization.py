"""The person's own copy of a version: fine-tuned on their text, on their device, if that is better for them.

The rules (accuracy.md 2):
- fine-tuning is SGD, one epoch, small batches, each gradient clipped to norm 1 by scaling the step;
- a copy is accepted only if it makes the held-out last fifth of the person's text more likely;
- a copy of an older version may be carried over: what it had learned is added to the newer version;
- nothing of this leaves the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.evaluation import score, windows
from edge_runtime.local_training import Stepper, draw_rows, generator
from edge_runtime.ports import SignatureRunner
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import Manifest

LEARNING_RATE = 0.3
BATCH_ROWS = 8
CLIP = 1.0
HEAD = 0.8
MOST_ROWS = 2000
_ROWS, _STEP = 100, 101


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


def carried(newer: Tensors, copy: Tensors, older: Tensors) -> Tensors:
    """Return the newer version with what `copy` had learned beyond `older`, the version that it was made of."""
    return {name: value + (copy[name] - older[name]) for name, value in newer.items()}
