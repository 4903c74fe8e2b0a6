"""What one training learns from: a person's text, or their arrays. Two forms, which answer the same questions alike.

A task need not know which family its model is of: it asks whether the plan can be had, begins, and steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import array_training, local_training
from edge_runtime.array_examples import ArrayExamples
from edge_runtime.local_training import Checkpoint
from edge_runtime.ports import SignatureRunner
from wire_contract.manifest import Manifest
from wire_contract.messages import Plan

Base = Mapping[str, NDArray[np.float32]]


class Examples(Protocol):
    """Use one for one training. `check_plan` and `begin` raise `PlanRefused`."""

    def check_plan(self, plan: Plan, manifest: Manifest) -> None:
        """Raise unless the plan can be had here."""

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether what the checkpoint was learning from is still here."""

    def begin(self, base: Base, plan: Plan, manifest: Manifest, seed: int) -> Checkpoint:
        """Return the first checkpoint; `base` are the received train inputs, made anew at each look."""

    def total_steps(self, checkpoint: Checkpoint, plan: Plan, manifest: Manifest) -> int:
        """Return how many steps the whole training has."""

    def steps(
        self, runner: SignatureRunner, checkpoint: Checkpoint, plan: Plan, manifest: Manifest, seed: int, secret: bytes
    ) -> Iterator[Checkpoint]:
        """Yield a checkpoint after each step that is still to do; the given one's weights are used up.

        `secret` is `example_noise.secret_of` the offer: what a plan's noise is made of.
        """


@dataclass(frozen=True, slots=True)
class OfText:
    """The person's text as ids of the version's vocabulary, see `local_training`."""

    stream: Sequence[int]

    def check_plan(self, plan: Plan, manifest: Manifest) -> None:
        """See `Examples`."""
        local_training.check_plan(plan, manifest)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Yes: a checkpoint of text keeps its rows itself."""
        return True

    def begin(self, base: Base, plan: Plan, manifest: Manifest, seed: int) -> Checkpoint:
        """See `Examples`."""
        return local_training.begin(self.stream, dict(base), plan, manifest, seed, base)

    def total_steps(self, checkpoint: Checkpoint, plan: Plan, manifest: Manifest) -> int:
        """See `Examples`."""
        return local_training.total_steps(checkpoint, plan, manifest)

    def steps(
        self, runner: SignatureRunner, checkpoint: Checkpoint, plan: Plan, manifest: Manifest, seed: int, secret: bytes
    ) -> Iterator[Checkpoint]:
        """See `Examples`."""
        return local_training.steps(runner, checkpoint, plan, manifest, seed, keep=True, secret=secret)


@dataclass(frozen=True, slots=True)
class OfArrays:
    """The device's arrays, see `array_training`."""

    arrays: ArrayExamples

    def check_plan(self, plan: Plan, manifest: Manifest) -> None:
        """See `Examples`."""
        array_training.check_plan(plan, manifest)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether retention has left every example that the checkpoint's order names."""
        return self.arrays.holds(checkpoint.rows[:, 0])

    def begin(self, base: Base, plan: Plan, manifest: Manifest, seed: int) -> Checkpoint:
        """See `Examples`."""
        return array_training.begin(self.arrays, dict(base), plan, manifest, seed, base)

    def total_steps(self, checkpoint: Checkpoint, plan: Plan, manifest: Manifest) -> int:
        """See `Examples`."""
        return array_training.total_steps(checkpoint, plan, manifest)

    def steps(
        self, runner: SignatureRunner, checkpoint: Checkpoint, plan: Plan, manifest: Manifest, seed: int, secret: bytes
    ) -> Iterator[Checkpoint]:
        """See `Examples`. No plan for arrays asks for noise: `array_training` refuses the signature that it needs."""
        return array_training.steps(runner, self.arrays, checkpoint, plan, manifest, seed, keep=True)
