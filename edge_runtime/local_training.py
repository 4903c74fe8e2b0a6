"""Local training: rows out of a person's id stream, then SGD steps through the interpreter, one at a time.

The rules (accuracy.md 1):
- a row is length + 1 tokens, so that every token is a target once; rows begin at a random offset; at most plan.rows of
  them are drawn; the short rows at both ends are padded and their padding weighs nothing;
- a step takes the batch's weights to be 1 for a token and 0 for padding; its learning rate is scaled by the share of
  positions that hold a token, so a last, small batch steps in proportion;
- dropout is inverted (0 or 1/(1-p)) on the output state only;
- every random choice comes from (seed, what it is for, its number): one seed gives one training, and a training that
  was stopped between steps and goes on another night ends in the same bytes as one that was not;
- without rules in the plan the graph's own step is the step; with one about the direction the graph gives the gradient
  and `local_optimizer` steps;
- a plan names a signature or a variant of it with other static shapes (`train_b4_l20`), whose length the rows have;
- `train_private` takes a token's weight to be 1 / length: a row's gradient is that of its mean loss, the sum has a
  fixed divisor, and nothing scales by how many tokens came (`local_rules`, private steps);
- a rule or signature that is not known is refused by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import candidates, local_rules
from edge_runtime.example_noise import Normals
from edge_runtime.local_optimizer import PROBE, Gradient, LocalOptimizer, of_rows
from edge_runtime.local_rules import PlanRefused as PlanRefused
from edge_runtime.ports import SignatureRunner
from wire_contract.layout import Tensors
from wire_contract.manifest import TRAIN_FAMILIES, Manifest, signature_family
from wire_contract.messages import Plan
from wire_contract.vocabulary import PAD

_ROWS, _ORDER, _STEP = 0, 1, 2
_TAKEN = Gradient(np.zeros((0, 0), np.float32))
OUTPUT_ROWS, KERNEL_ROWS, PROJECTION = "output_rows", "kernel_rows", "projection"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training between two steps: the packed weights, received (`base`, perhaps made anew at each look) and as they
    are, the rows in their drawn order, how far it is, and the velocity where a rule has one."""

    packed: Tensors
    rows: NDArray[np.int32]
    steps: int
    loss_before: float
    loss_after: float
    base: Mapping[str, NDArray[np.float32]]
    velocity: Tensors | None = None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Trained fleet tensors. The losses are those of the first and the last batch, each before its own step and as
    the plan's signature measures it: a sign of life, not a score; 0 where noise is asked for, which is not in them.
    `examples` is the number of rows."""

    packed: Tensors
    steps: int
    loss_before: float
    loss_after: float
    examples: int


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Return the random stream of one purpose under a seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *purpose))))


def draw_rows(stream: Sequence[int], *, rows: int, length: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return int32 [n, length + 1], n <= `rows`, in random order; PAD fills the ends. Empty if there is no target.

    With room for all of them, each token of the stream but the first is a target in exactly one row.
    """
    ids = np.asarray(stream, dtype=np.int32)
    if len(ids) < 2:
        return np.zeros((0, length + 1), np.int32)
    offset = int(rng.integers(0, length))
    starts = np.arange(offset - length if offset else 0, len(ids) - 1, length)
    if len(starts) > rows:
        # Short rows at the ends are worth less than whole ones.
        whole = starts[(starts >= 0) & (starts + length < len(ids))]
        starts = whole if len(whole) >= rows else starts
    chosen = rng.permutation(starts)[:rows]
    drawn = np.full((len(chosen), length + 1), PAD, dtype=np.int32)
    for row, start in zip(drawn, chosen, strict=True):
        first, stop = max(0, int(start)), min(len(ids), int(start) + length + 1)
        row[: stop - first] = ids[first:stop]
    return drawn


def check_plan(plan: Plan, manifest: Manifest) -> None:
    """Raise `PlanRefused` for a rule or signature that is not to be had here."""
    local_rules.check_rules(plan, [entry.name for entry in manifest.tensors])
    if signature_family(plan.signature) not in TRAIN_FAMILIES or plan.signature not in manifest.signatures:
        known = tuple(sorted(name for name in manifest.signatures if signature_family(name) in TRAIN_FAMILIES))
        raise PlanRefused(f"this model trains by {known}, the plan asks for {plan.signature!r}")
    spec = manifest.signatures[plan.signature]
    most = min(spec.batch * spec.length, manifest.vocabulary_words)
    if signature_family(plan.signature) == "train_sampled" and spec.candidates < most:
        raise PlanRefused(
            f"{plan.signature!r} needs as many candidates as its batch may have targets, {most}, got {spec.candidates}"
        )


class Stepper:
    """One step after another through one of the train signatures: plain SGD, or as an `optimizer` has it.

    `example_clip` is for `train_private` and only for it, whose step is always an optimizer's. `packed` (the train
    inputs, see `Layout.pack`) are copied once, unless they are the stepper's to `keep`; read them between steps.
    """

    def __init__(
        self, runner: SignatureRunner, manifest: Manifest, packed: Tensors, signature: str,
        optimizer: LocalOptimizer | None = None, *, keep: bool = False, example_clip: float | None = None,
    ) -> None:  # fmt: skip
        spec = manifest.signatures[signature]
        self._runner = runner
        self._signature, self._family = signature, signature_family(signature)
        private = self._family == local_rules.PRIVATE_FAMILY
        if private != (example_clip is not None) or (private and optimizer is None):
            raise ValueError(f"a private step, and no other, takes a clip and an optimizer, got {signature!r}")
        self._example_clip = example_clip
        self._optimizer = optimizer
        self.batch, self.length, self._candidates = spec.batch, spec.length, spec.candidates
        self.packed: Tensors = dict(packed) if keep else {name: np.array(value) for name, value in packed.items()}
        self._words = self.packed[OUTPUT_ROWS].shape[0]
        self._width = self.packed[PROJECTION].shape[0]

    def step(
        self, rows: NDArray[np.int32], learning_rate: float, dropout: float, rng: np.random.Generator,
        normals: Normals | None = None,
    ) -> float:  # fmt: skip
        """Train on up to `batch` rows [n, length + 1]; return the mean loss a token before the step."""
        padded = np.full((self.batch, self.length + 1), PAD, dtype=np.int32)
        padded[: len(rows)] = rows
        tokens, targets = np.ascontiguousarray(padded[:, :-1]), np.ascontiguousarray(padded[:, 1:])
        weights = (targets != PAD).astype(np.float32)
        share = float(weights.mean())
        plain = self._optimizer is None
        inputs: dict[str, Any] = {
            "targets": targets,
            "weights": weights,
            "learning_rate": np.array(learning_rate * share if plain else PROBE, dtype=np.float32),
            "output_mask": output_mask((self.length, self._width, self.batch), dropout, rng),
            KERNEL_ROWS: self.packed[KERNEL_ROWS],
            PROJECTION: self.packed[PROJECTION],
        }
        if self._family == "train_sampled":
            outputs, rows_gradient = self._sampled(inputs, tokens, targets, weights > 0, rng)
        else:
            inputs |= {"tokens": tokens, OUTPUT_ROWS: self.packed[OUTPUT_ROWS]}
            if self._example_clip is not None:
                inputs["weights"] = weights / np.float32(self.length)
                inputs["example_clip"] = np.array(self._example_clip, dtype=np.float32)
            outputs = self._runner.run(self._signature, inputs)
            rows_gradient = self._exact_rows(outputs)
        if self._optimizer is None:
            self.packed[KERNEL_ROWS] = outputs["trained_kernel_rows"]
            self.packed[PROJECTION] = outputs["trained_projection"]
        else:
            gradients = {name: self._gradient(name, outputs[f"trained_{name}"]) for name in (KERNEL_ROWS, PROJECTION)}
            gradients[OUTPUT_ROWS] = rows_gradient
            private = self._example_clip is not None
            self._optimizer.step(self.packed, gradients, learning_rate, 1.0 if private else share, normals)
            if private:
                # The graph divides by the sum of the weights, or by 1 where that is less.
                return float(outputs["loss"]) / min(1.0, float(inputs["weights"].sum()))
        return float(outputs["loss"])

    def _gradient(self, name: str, trained: NDArray[np.float32]) -> Gradient:
        """Return the gradient that a step of rate `PROBE` has made; uses up `trained`."""
        np.subtract(self.packed[name], trained, out=trained)
        trained *= np.float32(1.0 / PROBE)
        return Gradient(trained)

    def _exact_rows(self, outputs: dict[str, Any]) -> Gradient:
        """Take the step in all rows, or leave it to the optimizer and return their gradient."""
        trained = outputs[f"trained_{OUTPUT_ROWS}"]
        if self._optimizer is not None:
            return self._gradient(OUTPUT_ROWS, trained)
        self.packed[OUTPUT_ROWS] = trained
        return _TAKEN

    def _sampled(
        self,
        inputs: dict[str, Any],
        tokens: NDArray[np.int32],
        targets: NDArray[np.int32],
        counted: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> tuple[dict[str, Any], Gradient]:
        width, output_rows = self._width, self.packed[OUTPUT_ROWS]
        chosen = candidates.choose(targets, counted, size=self._candidates, words=self._words, rng=rng)
        candidate_rows = output_rows[chosen.ids]
        candidate_rows[:, width] -= chosen.log_inclusion
        by_position = tokens.T.reshape(-1)
        given = {
            **inputs,
            "targets": chosen.positions,
            "input_rows": np.ascontiguousarray(output_rows[by_position, :width]),
            "candidate_rows": candidate_rows,
        }
        outputs = self._runner.run(self._signature, given)
        # The difference, because adding the correction back to the bias would round words that did not move.
        moved = outputs["trained_candidate_rows"] - candidate_rows
        if self._optimizer is not None:
            read = outputs["input_rows_step"] * np.float32(1.0 / PROBE)
            said = ((chosen.ids, moved * np.float32(-1.0 / PROBE)), (by_position.astype(np.int64), read))
            return outputs, of_rows(output_rows.shape, said)
        output_rows[chosen.ids] += moved
        np.subtract.at(output_rows[:, :width], by_position, outputs["input_rows_step"])
        return outputs, _TAKEN


def output_mask(shape: tuple[int, int, int], dropout: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return inverted-dropout values, 0 or 1/(1 - dropout); all ones without dropout."""
    if dropout == 0.0:
        return np.ones(shape, np.float32)
    kept = rng.random(shape, dtype=np.float32) >= dropout
    return kept.astype(np.float32) * np.float32(1.0 / (1.0 - dropout))


def begin(
    stream: Sequence[int], packed: Tensors, plan: Plan, manifest: Manifest, seed: int,
    base: Mapping[str, NDArray[np.float32]] | None = None,
) -> Checkpoint:  # fmt: skip
    """Return the training's first checkpoint. Raises `PlanRefused` if the text is less than the plan's minimum.

    `base` is `packed` as it can be had again later; without it, `packed` itself.
    """
    check_plan(plan, manifest)
    length = manifest.signatures[plan.signature].length
    rows = draw_rows(stream, rows=plan.rows, length=length, rng=generator(seed, _ROWS))
    if len(rows) < plan.minimum_examples:
        raise PlanRefused(f"the plan asks for {plan.minimum_examples} examples or more, the text has {len(rows)}")
    return Checkpoint(packed, rows, 0, 0.0, 0.0, packed if base is None else base)


def total_steps(checkpoint: Checkpoint, plan: Plan, manifest: Manifest) -> int:
    """Return how many steps the whole training has."""
    a_epoch = -(-len(checkpoint.rows) // manifest.signatures[plan.signature].batch)
    return local_rules.most_steps(plan, plan.epochs * a_epoch)


def steps(
    runner: SignatureRunner, checkpoint: Checkpoint, plan: Plan, manifest: Manifest, seed: int, *, keep: bool = False,
    secret: bytes = b"",
) -> Iterator[Checkpoint]:  # fmt: skip
    """Yield a checkpoint after each step that is still to do; the last one is the finished training.

    `secret` (`example_noise.secret_of`) is what a plan's noise is made of; without such a rule it is not looked at.
    The checkpoints share the stepper's arrays: write one to disk, or drop it, before asking for the next. With `keep`
    the first one's weights are used up, too: a copy less in memory.
    """
    rows, base, done, first = checkpoint.rows, checkpoint.base, checkpoint.steps, checkpoint.loss_before
    total, optimizer = total_steps(checkpoint, plan, manifest), None
    if local_rules.directs(plan):
        optimizer = LocalOptimizer(plan, manifest, base, checkpoint.velocity)
    clip = local_rules.value_of(plan, "example-clip")
    noisy = bool(local_rules.value_of(plan, "example-noise"))
    stepper = Stepper(runner, manifest, checkpoint.packed, plan.signature, optimizer, keep=keep, example_clip=clip)
    del checkpoint
    a_epoch = -(-len(rows) // stepper.batch)
    for number in range(done, total):
        epoch, place = divmod(number, a_epoch)
        order = generator(seed, _ORDER, epoch).permutation(len(rows))
        batch = rows[order[place * stepper.batch : (place + 1) * stepper.batch]]
        rate = local_rules.rate(plan, number, total)
        normals = Normals(secret, number) if noisy else None
        loss = stepper.step(batch, rate, plan.dropout, generator(seed, _STEP, number), normals)
        if noisy:
            # The update's header says the losses to the aggregator, and no noise is in them.
            loss = 0.0
        first = loss if number == 0 else first
        velocity = None if optimizer is None else optimizer.velocity
        yield Checkpoint(stepper.packed, rows, number + 1, first, loss, base, velocity)


def result_of(checkpoint: Checkpoint) -> TrainingResult:
    """Return what a finished training's last checkpoint means."""
    return TrainingResult(
        packed=checkpoint.packed,
        steps=checkpoint.steps,
        loss_before=checkpoint.loss_before,
        loss_after=checkpoint.loss_after,
        examples=len(checkpoint.rows),
    )
