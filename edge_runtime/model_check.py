"""What a device runs before it uses a version: does the interpreter compute this graph right, are the weights in place?

The rules:
- template: `evaluate` on synthetic weights must give the manifest's `template_loss` within `loss_tolerance`, so a wrong
  interpreter is found. Each train input holds 0.05 * ((7919 i mod 201) - 100) / 100 at flat index i; columns that no
  tensor takes hold their fill value; tokens[b, t] = 4 + (17 b + 5 t) mod (V - 4), targets with 13 and 7;
- version: the int8 `suggest_context` of the golden context must lie within `logit_tolerance` of float `evaluate` on the
  weights read from the same file, compared as log probabilities of the ordinary words, so a wrong patch is found;
  likewise the three scores of `suggest`, stepped through the same context (each signature has scales of its own);
- the manifest's golden vectors come out exactly: the ids that `suggest_context` gives, best first. They were chosen
  with room to spare (`wire_contract.golden_choice`): an interpreter that gives others computes something else;
- everything is finite.
A model of arrays is checked likewise (`model_check_arrays`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.ports import ModelRuntime, RuntimeFailed, SignatureRunner
from wire_contract.errors import ContractError
from wire_contract.golden_choice import padded
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import ARRAY_FAMILY, GoldenVector, Manifest, TrainInput, promises_hash
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import SPECIALS


class CheckFailed(Exception):  # noqa: N818 - an answer, not a fault
    """A version is of no use here; `reason` is its stable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check(data: bytes, manifest: Manifest, runtime: ModelRuntime) -> None:
    """Raise `CheckFailed` unless the file and this device's interpreter pass every rule; passing is remembered."""
    name = promises_hash(manifest)
    if runtime.checked(name):
        return
    try:
        template = runtime.template(manifest, lambda: data)
        version = runtime.version(manifest, lambda: data)
        check_template, check_version = _rules(manifest)
        if not runtime.checked(manifest.template_sha256):
            check_template(template, manifest)
            runtime.mark_checked(manifest.template_sha256)
        check_version(template, version, data, manifest)
    except (RuntimeFailed, ContractError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as e:
        # A manifest may be signed and still say what cannot be computed; were that to end the trainer, the version
        # would be tried for ever.
        raise CheckFailed("does_not_run", f"version {manifest.version} does not run here: {e}") from e
    runtime.mark_checked(name)


CheckTemplate = Callable[[SignatureRunner, Manifest], None]
CheckVersion = Callable[[SignatureRunner, SignatureRunner, bytes, Manifest], None]


def _rules(manifest: Manifest) -> tuple[CheckTemplate, CheckVersion]:
    if manifest.family != ARRAY_FAMILY:
        return _check_template, _check_version
    # Here and not above: it needs `CheckFailed`.
    from edge_runtime import model_check_arrays

    return model_check_arrays.check_template, model_check_arrays.check_version


def synthetic(train_input: TrainInput) -> NDArray[np.float32]:
    """Return the synthetic weights of one train input."""
    count = int(np.prod(train_input.shape))
    steps = (np.arange(count, dtype=np.int64) * 7919) % 201 - 100
    values = (0.05 * steps / 100).astype(np.float32).reshape(train_input.shape)
    if len(train_input.shape) == 2:
        taken = np.zeros(train_input.shape[1], dtype=np.bool_)
        for part in train_input.parts:
            taken[part.start : part.stop] = True
        values[:, ~taken] = train_input.fill
    return values


def zero_states(packed: Tensors, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return the states that a person's text begins with, for `evaluate`."""
    width, cells = packed["projection"].shape
    return {"state_h": np.zeros((width, batch), np.float32), "state_c": np.zeros((cells, batch), np.float32)}


def _check_template(runner: SignatureRunner, manifest: Manifest) -> None:
    spec, words = manifest.signatures["evaluate"], manifest.vocabulary_words
    packed = {train_input.name: synthetic(train_input) for train_input in manifest.train_inputs}
    b, t = np.arange(spec.batch)[:, None], np.arange(spec.length)[None, :]
    ordinary = words - len(SPECIALS)
    outputs = runner.run(
        "evaluate",
        {
            "tokens": (len(SPECIALS) + (17 * b + 5 * t) % ordinary).astype(np.int32),
            "targets": (len(SPECIALS) + (13 * b + 7 * t) % ordinary).astype(np.int32),
            "weights": np.ones((spec.batch, spec.length), np.float32),
            **zero_states(packed, spec.batch),
            **packed,
        },
    )
    loss = float(outputs["loss"]) / float(outputs["count"])
    if not abs(loss - manifest.golden.template_loss) <= manifest.golden.loss_tolerance:
        raise CheckFailed(
            "template_loss",
            f"this interpreter's loss on the synthetic weights is {manifest.golden.template_loss} "
            f"within {manifest.golden.loss_tolerance}, got {loss}",
        )


def _check_version(template: SignatureRunner, version: SignatureRunner, data: bytes, manifest: Manifest) -> None:
    spec, context = manifest.signatures["evaluate"], manifest.golden.tokens
    if len(context) != spec.length or manifest.signatures["suggest_context"].length != spec.length:
        raise CheckFailed("golden", f"a golden context has {spec.length} tokens, got {len(context)}")
    packed = Layout.of(manifest).pack(read_tensors(data, manifest))
    tokens = np.zeros((spec.batch, spec.length), np.int32)
    tokens[0] = context
    floats = template.run(
        "evaluate",
        {
            "tokens": tokens,
            "targets": np.zeros_like(tokens),
            "weights": np.zeros((spec.batch, spec.length), np.float32),
            **zero_states(packed, spec.batch),
            **packed,
        },
    )
    quantized = version.run("suggest_context", {"tokens": np.array(context, np.int32)})
    expected = _ordinary_log_probs(floats["logits"][(spec.length - 1) * spec.batch])
    errors = {"suggest_context": np.abs(expected - _ordinary_log_probs(quantized["log_probs"]))}
    ids, scores = _stepped(version, context, packed)
    errors["suggest"] = np.abs(expected[ids - len(SPECIALS)] - np.log(np.maximum(scores, 1e-30)))
    for name, error in errors.items():
        worst = float(np.max(error))
        if not worst <= manifest.golden.logit_tolerance:
            raise CheckFailed(
                "logit_tolerance",
                f"{name} lies within {manifest.golden.logit_tolerance} of the float graph, got {worst}",
            )
    check_vectors(manifest, lambda vector: _suggested(version, vector, spec.length))


def _suggested(version: SignatureRunner, vector: GoldenVector, length: int) -> Sequence[int]:
    tokens = np.array(padded(vector.context, length), np.int32)
    ids: Sequence[int] = version.run("suggest_context", {"tokens": tokens})["ids"]
    return ids[: len(vector.ids)]


def check_vectors(manifest: Manifest, answer: Callable[[GoldenVector], Sequence[int]]) -> None:
    """Raise `CheckFailed` unless `answer` gives every golden vector's ids."""
    for number, vector in enumerate(manifest.golden_vectors):
        got = tuple(int(i) for i in answer(vector))
        if got != vector.ids:
            raise CheckFailed("golden_vector", f"golden vector {number} answers {vector.ids}, got {got}")


def _stepped(
    version: SignatureRunner, context: tuple[int, ...], packed: Tensors
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the ids and scores of `suggest` after the context, one token at a time."""
    states = {name: np.ascontiguousarray(state.T) for name, state in zero_states(packed, 1).items()}
    outputs: dict[str, Any] = {}
    for token in context:
        outputs = version.run("suggest", {"token": np.array([token], np.int32), **states})
        states = {"state_h": outputs["next_state_h"], "state_c": outputs["next_state_c"]}
    return outputs["ids"], outputs["scores"].astype(np.float64)


def _ordinary_log_probs(logits: NDArray[Any]) -> NDArray[np.float64]:
    ordinary = np.asarray(logits, dtype=np.float64)[len(SPECIALS) :]
    largest = ordinary.max()
    log_probs: NDArray[np.float64] = ordinary - (largest + np.log(np.sum(np.exp(ordinary - largest))))
    return log_probs
