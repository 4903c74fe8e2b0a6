"""Measuring two versions for `model_health`: the trainer's part, where numpy and the interpreter are.

The rules:
- the contexts are `golden_choice`'s, or synthetic examples: the same for both, one after the other, so that whatever
  slows the device down slows both; the first answer of each is not timed, for it makes the interpreter ready;
- what is compared on the person's text is held out, and both versions cut it with the same vocabulary; a version with
  another vocabulary answers another question, so the third rule is skipped;
- a version that cannot be run says so by its reason, `does_not_run`; where A cannot be run any more, B has only to
  come up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_runtime import array_evaluation, evaluation, model_check_arrays
from edge_runtime.array_examples import ArrayExamples
from edge_runtime.model_health import CONTEXTS, LEAST_WORDS, Health, Measured, judge
from edge_runtime.model_slots import Held
from edge_runtime.ports import ModelRuntime, RuntimeFailed, SignatureRunner
from wire_contract.errors import ContractError
from wire_contract.golden_choice import context, padded
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import ARRAY_FAMILY, Manifest
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import SPECIALS

MOST_WORDS = 1000
"""Of the person's held-out text, so many words at most, the newest: some ten calls of `evaluate` for each version."""


class HeldOut(Protocol):
    """What the person's device holds out for one version's manifest: id streams, or examples of arrays."""

    def streams(self, manifest: Manifest) -> Sequence[Sequence[int]]:
        """Return id streams, the oldest first."""

    def arrays(self, manifest: Manifest) -> ArrayExamples:
        """Return examples."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One version under test: how it is asked, and what it answers."""

    held: Held
    runner: SignatureRunner

    def ask(self, number: int) -> bool:
        """Answer context `number`; return whether the answer is finite."""
        manifest = self.held.manifest
        if manifest.family == ARRAY_FAMILY:
            return bool(np.isfinite(model_check_arrays.predict(self.runner, manifest, number)).all())
        length = manifest.signatures["suggest_context"].length
        tokens = np.array(padded(context(manifest.vocabulary_words, length, number), length), np.int32)
        outputs = self.runner.run("suggest_context", {"tokens": tokens})
        return _finite(outputs["scores"]) and _finite(outputs["log_probs"][len(SPECIALS) :])


def run(
    held: Held, before: Held | None, runtime: ModelRuntime, elapsed: Callable[[], float], held_out: HeldOut
) -> Health:
    """Return the health of `held` against the version `before`; without that, whether it comes up and answers."""
    try:
        new = _Asked(held, runtime.version(held.manifest, lambda: held.data))
        finite = new.ask(0)
        old = None if before is None else _open_old(before, runtime)
        if before is None or old is None:
            return judge(Measured(finite=finite and all(new.ask(number) for number in range(1, CONTEXTS))), None)
        seconds, answered = _timed(new, old, elapsed)
        if not (finite and answered):
            return judge(Measured(finite=False), None)
        words = (0, 0.0), (0, 0.0)
        if held.manifest.vocabulary_sha256 == before.manifest.vocabulary_sha256:
            words = _loss(held, runtime, held_out), _loss(before, runtime, held_out)
        return judge(Measured(seconds[0], *words[0]), Measured(seconds[1], *words[1]))
    except (RuntimeFailed, ContractError, KeyError, ValueError) as e:
        return Health("does_not_run", f"version {held.manifest.version} does not run here: {e}")


def _open_old(before: Held, runtime: ModelRuntime) -> _Asked | None:
    try:
        old = _Asked(before, runtime.version(before.manifest, lambda: before.data))
        old.ask(0)
    except (RuntimeFailed, KeyError):
        # It was confirmed, and what has become of it is not the new one's fault.
        return None
    return old


def _timed(new: _Asked, old: _Asked, elapsed: Callable[[], float]) -> tuple[tuple[list[float], list[float]], bool]:
    """Return the seconds of both, context by context, and whether all that the new one answered was finite."""
    taken: tuple[list[float], list[float]] = ([], [])
    finite = True
    for number in range(1, 1 + CONTEXTS):
        # Taking turns at being first.
        for side in (0, 1) if number % 2 else (1, 0):
            began = elapsed()
            answered = (new, old)[side].ask(number)
            taken[side].append(elapsed() - began)
            finite = finite and (answered or side == 1)
    return taken, finite


def _loss(held: Held, runtime: ModelRuntime, held_out: HeldOut) -> tuple[int, float]:
    """Return how many words, or examples, are held out, and their summed loss; of too few nothing is computed."""
    manifest = held.manifest
    if manifest.family == ARRAY_FAMILY:
        examples = held_out.arrays(manifest)
        if len(examples) < LEAST_WORDS:
            return len(examples), 0.0
        counted = array_evaluation.score(_template(held, runtime), manifest, _weights(held), examples.arrays)
        return counted.count, counted.loss
    streams = held_out.streams(manifest)
    words = sum(len(stream) - 1 for stream in streams)
    if words < LEAST_WORDS:
        return words, 0.0
    score = evaluation.score(_template(held, runtime), manifest.signatures["evaluate"], _weights(held), streams)
    return score.count, score.loss


def _template(held: Held, runtime: ModelRuntime) -> SignatureRunner:
    return runtime.template(held.manifest, lambda: held.data)


def _weights(held: Held) -> Tensors:
    return Layout.of(held.manifest).pack(read_tensors(held.data, held.manifest))


def _finite(values: Any) -> bool:
    return bool(np.isfinite(np.asarray(values)).all())
