"""Local training of a model of arrays: examples in a drawn order, then SGD steps through `train`, one at a time.

The rules, beside those of `local_training` for text:
- of the store's examples at most `plan.rows` are drawn, in an order that the seed gives; a checkpoint's rows are their
  numbers, int32 [n, 1], and a training whose examples are not all there any more begins anew;
- every epoch has an order of its own; the last, short batch is filled up with zeros that weigh 0, and its rate is
  scaled by the share of the batch that holds an example;
- the graph's own step is the step, or `local_optimizer` steps where a rule of the plan is about the direction;
- one seed gives one training, to the bit, however often it was stopped between two steps;
- a dropout other than 0 is refused, for the exporter leaves dropout layers out; so is any signature but `train`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import local_rules
from edge_runtime.array_examples import ArrayExamples
from edge_runtime.local_optimizer import PROBE, Gradient, LocalOptimizer
from edge_runtime.local_rules import PlanRefused
from edge_runtime.local_training import Checkpoint, generator
from edge_runtime.ports import SignatureRunner
from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest
from wire_contract.messages import Plan

SIGNATURE = "train"
WEIGHTS = "example_weights"
_ROWS, _ORDER = 0, 1


def check_plan(plan: Plan, manifest: Manifest) -> None:
    """Raise `PlanRefused` for a rule, signature or dropout that is not to be had here."""
    local_rules.check_rules(plan, [entry.name for entry in manifest.tensors])
    if plan.signature != SIGNATURE or SIGNATURE not in manifest.signatures:
        raise PlanRefused(f"a model of arrays trains by {SIGNATURE!r}, the plan asks for {plan.signature!r}")
    if plan.dropout != 0.0:
        raise PlanRefused(f"this model has its dropout left out: the plan's dropout is 0, got {plan.dropout}")


def begin(
    examples: ArrayExamples, packed: Tensors, plan: Plan, manifest: Manifest, seed: int,
    base: Mapping[str, NDArray[np.float32]] | None = None,
) -> Checkpoint:  # fmt: skip
    """Return the training's first checkpoint. Raises `PlanRefused` if there are fewer than the plan's minimum.

    `base` is `packed` as it can be had again later; without it, `packed` itself.
    """
    check_plan(plan, manifest)
    drawn = generator(seed, _ROWS).permutation(examples.numbers)[: plan.rows]
    if len(drawn) < plan.minimum_examples or not len(drawn):
        wanted = max(1, plan.minimum_examples)
        raise PlanRefused(f"the plan asks for {wanted} examples or more, the device has {len(drawn)}")
    return Checkpoint(packed, drawn.astype(np.int32).reshape(-1, 1), 0, 0.0, 0.0, packed if base is None else base)


def total_steps(checkpoint: Checkpoint, plan: Plan, manifest: Manifest) -> int:
    """Return how many steps the whole training has."""
    an_epoch = -(-len(checkpoint.rows) // manifest.signatures[SIGNATURE].batch)
    return local_rules.most_steps(plan, plan.epochs * an_epoch)


def fill(batch: int, taken: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
    """Return the inputs of one call: up to `batch` examples [n, *shape], zeros after them, and who counts."""
    count = len(next(iter(taken.values())))
    inputs: dict[str, Any] = {WEIGHTS: (np.arange(batch) < count).astype(np.float32)}
    for name, array in taken.items():
        padded = np.zeros((batch, *array.shape[1:]), array.dtype)
        padded[:count] = array
        inputs[name] = padded
    return inputs


class ArrayStepper:
    """One step after another through `train`: plain SGD, or as an `optimizer` has it.

    `packed` (the train inputs) are copied once, unless they are the stepper's to `keep`; read them between steps.
    """

    def __init__(
        self, runner: SignatureRunner, manifest: Manifest, packed: Tensors, optimizer: LocalOptimizer | None = None, *,
        keep: bool = False,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._optimizer = optimizer
        self.batch = manifest.signatures[SIGNATURE].batch
        self.packed: Tensors = dict(packed) if keep else {name: np.array(value) for name, value in packed.items()}

    def step(self, taken: Mapping[str, NDArray[np.generic]], learning_rate: float) -> float:
        """Train on up to `batch` examples; return their mean loss before the step."""
        inputs = fill(self.batch, taken)
        share = float(inputs[WEIGHTS].mean())
        rate = learning_rate * share if self._optimizer is None else PROBE
        inputs["learning_rate"] = np.array(rate, dtype=np.float32)
        outputs = self._runner.run(SIGNATURE, {**inputs, **self.packed})
        if self._optimizer is None:
            self.packed = {name: outputs[f"trained_{name}"] for name in self.packed}
        else:
            gradients = {name: self._gradient(name, outputs[f"trained_{name}"]) for name in self.packed}
            self._optimizer.step(self.packed, gradients, learning_rate, share)
        return float(outputs["loss"])

    def _gradient(self, name: str, trained: NDArray[np.float32]) -> Gradient:
        np.subtract(self.packed[name], trained, out=trained)
        trained *= np.float32(1.0 / PROBE)
        return Gradient(trained)


def steps(
    runner: SignatureRunner, examples: ArrayExamples, checkpoint: Checkpoint, plan: Plan, manifest: Manifest, seed: int,
    *, keep: bool = False,
) -> Iterator[Checkpoint]:  # fmt: skip
    """Yield a checkpoint after each step that is still to do; the last one is the finished training.

    The checkpoints share the stepper's arrays: write one to disk, or drop it, before asking for the next. With `keep`
    the first one's weights are used up, too. The examples must hold the checkpoint's rows.
    """
    rows, base, done, first = checkpoint.rows, checkpoint.base, checkpoint.steps, checkpoint.loss_before
    total, optimizer = total_steps(checkpoint, plan, manifest), None
    if local_rules.directs(plan):
        optimizer = LocalOptimizer(plan, manifest, base, checkpoint.velocity)
    stepper = ArrayStepper(runner, manifest, checkpoint.packed, optimizer, keep=keep)
    del checkpoint
    an_epoch = -(-len(rows) // stepper.batch)
    for number in range(done, total):
        epoch, place = divmod(number, an_epoch)
        order = generator(seed, _ORDER, epoch).permutation(len(rows))
        chosen = rows[order[place * stepper.batch : (place + 1) * stepper.batch], 0]
        loss = stepper.step(examples.take(chosen), local_rules.rate(plan, number, total))
        first = loss if number == 0 else first
        velocity = None if optimizer is None else optimizer.velocity
        yield Checkpoint(stepper.packed, rows, number + 1, first, loss, base, velocity)
