"""Does the exported file compute what the formulas say, on the interpreters that devices have?

Cases are made from the bundle's own weights and a seed, run by a device's interpreter in a process without TensorFlow
(`PYTHON -m edge_runtime.cli conformance MODEL CASES.npz RESULTS.npz --runtime NAME`), and judged by float64 numpy.

The rules:
- the gradient is exposed by a learning rate of 1e4: (before - after) / 1e4, so that an error of 1 part in 200,000 of
  its largest entry is seen; the absolute difference of weights after an ordinary step would hide it;
- dropout values and zero weights are in every training case;
- the int8 suggestion is compared as log probabilities, both sides without the specials.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export import reference
from model_export.bundle import Bundle
from model_export.network import (
    BATCH,
    EMBEDDING,
    KERNEL,
    KERNEL_BIAS,
    LENGTH,
    OUTPUT_BIAS,
    PROJECTION,
    NetworkSize,
    size_of,
)
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import signature_family
from wire_contract.patch import read_tensors

Arrays = Mapping[str, NDArray[np.generic]]
RUNTIMES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}
EXPOSING_RATE = 1e4
GRADIENT_TOLERANCE = 5e-6
LOSS_TOLERANCE = 1e-5
STATE_TOLERANCE = 1e-5
CONTEXTS = 8
TIMEOUT_S = 300


class ConformanceError(Exception):
    """The device's interpreter could not be asked; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call of one signature."""

    signature: str
    inputs: dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured error and what it may be; `error` is relative to the largest entry where the name says gradient."""

    name: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the file conforms here; an error that is not a number does not."""
        return bool(self.error <= self.allowed)


Judge = Callable[[Arrays], list[Finding]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A case and who judges its outputs."""

    case: Case
    judge: Judge


def make_trials(bundle: Bundle, seed: int) -> list[Trial]:
    """Return the trials of a bundle: every signature that its manifest names; the same seed makes the same cases."""
    rng = np.random.Generator(np.random.PCG64(seed))
    layout = Layout.of(bundle.manifest)
    tensors = read_tensors(bundle.model, bundle.manifest)
    size = size_of(tensors)
    tolerance = bundle.manifest.golden.logit_tolerance
    trials: list[Trial] = []
    for name, spec in bundle.manifest.signatures.items():
        family = signature_family(name)
        shape = (spec.batch, spec.length)
        if family == "train":
            trials.append(train_trial(tensors, layout, size, rng, name, shape))
        elif family == "train_sampled":
            trials.append(sampled_trial(tensors, layout, size, spec.candidates, rng, name, shape))
        elif family == "train_private":
            trials.append(private_trial(tensors, layout, size, rng, name, shape))
        elif family == "evaluate":
            trials.append(evaluate_trial(tensors, layout, size, rng))
        elif family == "suggest_context":
            contexts = (*range(1, CONTEXTS), LENGTH)
            trials += [context_trial(tensors, size, words, tolerance, rng) for words in contexts]
        elif family == "suggest":
            trials.append(suggest_trial(tensors, size, tolerance, rng))
    return trials


@dataclass(frozen=True, slots=True)
class _Batch:
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    mask: NDArray[np.float32]

    @property
    def inputs(self) -> dict[str, NDArray[np.generic]]:
        """What all train signatures are given alike."""
        return {
            "targets": self.targets,
            "weights": self.weights,
            "learning_rate": np.array(EXPOSING_RATE, np.float32),
            "output_mask": self.mask,
        }


def _batch(size: NetworkSize, rng: np.random.Generator, shape: tuple[int, int] = (BATCH, LENGTH)) -> _Batch:
    # Squares of uniforms crowd low ids, so that words repeat in a batch as they do in text.
    tokens = (size.words * rng.random(shape) ** 2).astype(np.int32)
    targets = (size.words * rng.random(shape) ** 2).astype(np.int32)
    weights = (rng.random(shape) > 0.2).astype(np.float32)
    mask = ((rng.random((shape[1], size.width, shape[0])) > 0.3) / 0.7).astype(np.float32)
    return _Batch(tokens, targets, weights, mask)


def _relative(error: NDArray[np.floating], scale: NDArray[np.floating]) -> float:
    return float(np.max(np.abs(error)) / np.max(np.abs(scale)))


def _exposed(before: NDArray[np.generic], after: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray((before.astype(np.float64) - after.astype(np.float64)) / EXPOSING_RATE)


def _weight_findings(
    name: str, tensors: Tensors, layout: Layout, outputs: Arrays, exact: Mapping[str, NDArray[np.float64]]
) -> list[Finding]:
    """Hold the step of a signature that takes and gives all weights against its exact gradient."""
    inputs = [train_input.name for train_input in layout.train_inputs]
    trained = layout.unpack({key: np.asarray(outputs[f"trained_{key}"], np.float32) for key in inputs})
    ones = np.asarray(outputs["trained_output_rows"][:, -1], np.float64)
    return [
        Finding(f"{name} ones column", float(np.max(np.abs(ones - 1.0))), 0.0),
        *[
            Finding(
                f"{name} gradient {key}",
                _relative(_exposed(tensors[key], trained[key]) - exact[key], exact[key]),
                GRADIENT_TOLERANCE,
            )
            for key in tensors
        ],
    ]


def train_trial(
    tensors: Tensors,
    layout: Layout,
    size: NetworkSize,
    rng: np.random.Generator,
    name: str = "train",
    shape: tuple[int, int] = (BATCH, LENGTH),
) -> Trial:
    """One exact step against the float64 gradient of all five tensors. shape: (batch, length) of the signature."""
    batch = _batch(size, rng, shape)

    def judge(outputs: Arrays) -> list[Finding]:
        exact = reference.gradient(tensors, batch.tokens, batch.targets, batch.weights, batch.mask)
        return [
            Finding(f"{name} loss", abs(float(outputs["loss"]) - exact.loss) / abs(exact.loss), LOSS_TOLERANCE),
            *_weight_findings(name, tensors, layout, outputs, exact.tensors),
        ]

    return Trial(Case(name, {"tokens": batch.tokens, **batch.inputs, **layout.pack(tensors)}), judge)


def private_trial(
    tensors: Tensors,
    layout: Layout,
    size: NetworkSize,
    rng: np.random.Generator,
    name: str = "train_private",
    shape: tuple[int, int] = (BATCH, LENGTH),
) -> Trial:
    """One step on clipped gradients of single rows against as many float64 gradients; half of the rows are clipped.

    The last of several rows carries no weight.
    """
    batch = _batch(size, rng, shape)
    if shape[0] > 1:
        batch.weights[-1] = 0.0
    exact = reference.private_gradient(tensors, batch.tokens, batch.targets, batch.weights, batch.mask)

    def judge(outputs: Arrays) -> list[Finding]:
        got = np.asarray(outputs["norms"], np.float64)
        return [
            Finding(f"{name} loss", abs(float(outputs["loss"]) - exact.loss) / abs(exact.loss), LOSS_TOLERANCE),
            # Each norm by itself: a small one is clipped as exactly as a large one.
            Finding(
                f"{name} norms",
                float(np.max(np.abs(got - exact.norms) / np.where(exact.norms > 0.0, exact.norms, 1.0))),
                GRADIENT_TOLERANCE,
            ),
            *_weight_findings(name, tensors, layout, outputs, exact.tensors),
        ]

    inputs = {
        "tokens": batch.tokens,
        "example_clip": np.array(exact.clip, np.float32),
        **batch.inputs,
        **layout.pack(tensors),
    }
    return Trial(Case(name, inputs), judge)


def candidate_set(
    targets: NDArray[np.int32], words: int, candidates: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return (candidates [K], local targets): the distinct targets, filled up with other words drawn at random."""
    distinct = np.unique(targets)
    others = rng.permutation(np.setdiff1d(np.arange(words, dtype=np.int32), distinct))
    chosen = np.sort(np.concatenate([distinct, others[: candidates - len(distinct)]])).astype(np.int32)
    return chosen, np.searchsorted(chosen, targets).astype(np.int32)


def sampled_trial(
    tensors: Tensors,
    layout: Layout,
    size: NetworkSize,
    candidates: int,
    rng: np.random.Generator,
    name: str = "train_sampled",
    shape: tuple[int, int] = (BATCH, LENGTH),
) -> Trial:
    """One step over a candidate set, with a correction of the biases, against float64."""
    batch = _batch(size, rng, shape)
    # A batch has at most as many distinct targets as the set has places.
    targets = batch.targets % max(1, min(size.words, candidates * 3 // 4))
    chosen, local = candidate_set(targets, size.words, candidates, rng)
    shift = rng.uniform(0.0, 6.0, len(chosen)).astype(np.float32)
    packed = layout.pack(tensors)
    rows = packed["output_rows"][chosen].copy()
    rows[:, size.width] += shift
    input_rows = tensors[EMBEDDING][batch.tokens.T].reshape(-1, size.width)
    inputs = {
        **batch.inputs,
        "input_rows": input_rows,
        "candidate_rows": rows,
        "targets": local,
        "kernel_rows": packed["kernel_rows"],
        "projection": packed["projection"],
    }

    def judge(outputs: Arrays) -> list[Finding]:
        exact = reference.sampled_gradient(tensors, batch.tokens, chosen, shift, local, batch.weights, batch.mask)
        new_rows = _exposed(rows, outputs["trained_candidate_rows"])
        new_kernel = _exposed(packed["kernel_rows"], outputs["trained_kernel_rows"])
        got = {
            EMBEDDING: new_rows[:, : size.width],
            OUTPUT_BIAS: new_rows[:, size.width],
            KERNEL: new_kernel[:, : 2 * size.width],
            KERNEL_BIAS: new_kernel[:, 2 * size.width],
            PROJECTION: _exposed(packed["projection"], outputs["trained_projection"]),
        }
        step = np.asarray(outputs["input_rows_step"], np.float64) / EXPOSING_RATE
        return [
            Finding(f"{name} loss", abs(float(outputs["loss"]) - exact.loss) / abs(exact.loss), LOSS_TOLERANCE),
            Finding(f"{name} ones column", float(np.max(np.abs(new_rows[:, -1]))), 0.0),
            Finding(
                f"{name} gradient input rows",
                _relative(step - exact.input_rows, exact.input_rows),
                GRADIENT_TOLERANCE,
            ),
            *[
                Finding(
                    f"{name} gradient {key}",
                    _relative(value - exact.tensors[key], exact.tensors[key]),
                    GRADIENT_TOLERANCE,
                )
                for key, value in got.items()
            ],
        ]

    return Trial(Case(name, {**inputs}), judge)


def evaluate_trial(tensors: Tensors, layout: Layout, size: NetworkSize, rng: np.random.Generator) -> Trial:
    """Loss, hits and logits from the zero state; near-ties may fall either way in float32, so hits may differ by 1."""
    batch = _batch(size, rng)
    logits = reference.logits_of(tensors, batch.tokens)
    # Likely targets in a third of the places, or untrained weights would count no hit at all.
    likely = np.argsort(-logits[..., 4:], axis=-1)[..., :6] + 4
    pick = np.take_along_axis(likely, rng.integers(0, 6, (LENGTH, BATCH, 1)), axis=-1)[..., 0].T
    targets = np.where(rng.random((BATCH, LENGTH)) < 0.34, pick, batch.targets).astype(np.int32)
    expected = reference.score(logits, targets, batch.weights)
    inputs = {
        "tokens": batch.tokens,
        "targets": targets,
        "weights": batch.weights,
        "state_h": np.zeros((size.width, BATCH), np.float32),
        "state_c": np.zeros((size.cells, BATCH), np.float32),
        **layout.pack(tensors),
    }

    def judge(outputs: Arrays) -> list[Finding]:
        got = np.asarray(outputs["logits"], np.float64).reshape(LENGTH, BATCH, size.words)
        return [
            Finding("evaluate loss", abs(float(outputs["loss"]) - expected.loss) / expected.loss, LOSS_TOLERANCE),
            Finding("evaluate logits", _relative(got - logits, logits), GRADIENT_TOLERANCE),
            Finding("evaluate hits1", abs(float(outputs["hits1"]) - expected.hits1), 1.0),
            Finding("evaluate hits3", abs(float(outputs["hits3"]) - expected.hits3), 1.0),
            Finding("evaluate count", abs(float(outputs["count"]) - expected.count), 0.0),
        ]

    return Trial(Case("evaluate", {**inputs}), judge)


def context_trial(tensors: Tensors, size: NetworkSize, words: int, tolerance: float, rng: np.random.Generator) -> Trial:
    """A left-padded context of `words` words against the float64 network on the dequantized weights."""
    context = np.zeros(LENGTH, np.int32)
    context[LENGTH - words :] = rng.integers(1, size.words, words)

    def judge(outputs: Arrays) -> list[Finding]:
        exact = reference.suggestion_log_probs(reference.context_logits(tensors, context))
        log_probs = np.asarray(outputs["log_probs"], np.float64)
        best = np.sort(log_probs)[::-1][:3]
        own = float(np.max(np.abs(log_probs[outputs["ids"]] - best)))
        scores = np.asarray(outputs["scores"], np.float64)
        return [
            Finding(f"suggest_context {words} words", log_prob_error(log_probs, exact), tolerance),
            Finding(f"suggest_context {words} words, top 3 of its own", own, 0.0),
            Finding(f"suggest_context {words} words, scores", float(np.max(np.abs(np.exp(best) - scores))), 1e-5),
        ]

    return Trial(Case("suggest_context", {"tokens": context}), judge)


def log_prob_error(log_probs: NDArray[np.floating], exact: NDArray[np.floating]) -> float:
    """Return the largest difference of two sets of log probabilities; `log_probs` has the four specials, `exact` not.

    Both sum to one over the ordinary words, so the comparison is of logits with each one's log-sum-exp removed.
    """
    ordinary = np.asarray(log_probs, np.float64)[-len(exact) :]
    return float(np.max(np.abs(ordinary - exact)))


def suggest_trial(tensors: Tensors, size: NetworkSize, tolerance: float, rng: np.random.Generator) -> Trial:
    """One int8 step from a state that a context left, against float64."""
    exact = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    before = rng.integers(4, size.words, (1, 5)).astype(np.int32)
    zero_h, zero_c = np.zeros((1, size.width)), np.zeros((1, size.cells))
    forward = reference.run_cells(exact, exact[EMBEDDING][before.T], zero_h, zero_c)
    state_h, state_c = forward.states[-1].astype(np.float32), forward.cells[-1].astype(np.float32)
    token = rng.integers(4, size.words, 1).astype(np.int32)

    def judge(outputs: Arrays) -> list[Finding]:
        after = reference.run_cells(
            exact, exact[EMBEDDING][token][np.newaxis], state_h.astype(np.float64), state_c.astype(np.float64)
        )
        logits = after.states[0, 0] @ exact[EMBEDDING].T + exact[OUTPUT_BIAS]
        log_probs = reference.suggestion_log_probs(logits)
        chosen = log_probs[np.asarray(outputs["ids"]) - 4]
        scores = np.log(np.asarray(outputs["scores"], np.float64))
        shortfall = float(np.max(np.sort(log_probs)[::-1][:3] - chosen))
        return [
            Finding("suggest scores", float(np.max(np.abs(scores - chosen))), tolerance),
            Finding("suggest ids", shortfall, 2 * tolerance),
            Finding("suggest state h", float(np.max(np.abs(outputs["next_state_h"] - after.states[0]))), tolerance),
            Finding("suggest state c", float(np.max(np.abs(outputs["next_state_c"] - after.cells[0]))), tolerance),
        ]

    return Trial(Case("suggest", {"token": token, "state_h": state_h, "state_c": state_c}), judge)


def write_cases(cases: Sequence[Case], path: Path) -> None:
    """Write the .npz that the device command reads."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for i, case in enumerate(cases):
        arrays[f"case/{i}/signature"] = np.array(case.signature)
        for name, value in case.inputs.items():
            arrays[f"case/{i}/input/{name}"] = value
    # numpy's stub takes the first keyword for its own `allow_pickle`.
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_results(path: Path, count: int) -> list[dict[str, NDArray[np.generic]]]:
    """Return each case's outputs from the .npz that the device command wrote. Raises `ConformanceError`."""
    results: list[dict[str, NDArray[np.generic]]] = [{} for _ in range(count)]
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                _, i, _, name = key.split("/", 3)
                results[int(i)][name] = archive[key]
    except (OSError, ValueError, IndexError, KeyError) as e:
        raise ConformanceError(f"the results are an .npz of case/<i>/output/<name>: {e}") from e
    return results


def runtimes_of(device_python: Path) -> list[str]:
    """Return which of the interpreters that Python environment has. Raises `ConformanceError`."""
    code = (
        f"import json, importlib.util as u; print(json.dumps([n for n, m in {RUNTIMES!r}.items() if u.find_spec(m)]))"
    )
    done = _run([str(device_python), "-c", code])
    return [str(name) for name in json.loads(done.stdout)]


def run_on_device(device_command: Sequence[str], model: Path, cases: Sequence[Case], runtime: str) -> list[Arrays]:
    """Run all cases in a process of their own and return the outputs. Raises `ConformanceError`."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        asked, answered = Path(folder) / "cases.npz", Path(folder) / "results.npz"
        write_cases(cases, asked)
        _run([*device_command, "conformance", str(model), str(asked), str(answered), "--runtime", runtime])
        return [*read_results(answered, len(cases))]


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except OSError as e:
        raise ConformanceError(f"{command[0]} cannot be started: {e.strerror}") from e
    except subprocess.TimeoutExpired as e:
        raise ConformanceError(f"{command[0]} answers within {TIMEOUT_S} s, and did not") from e
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ConformanceError(f"{command[0]} exited with {done.returncode}: {said}")
    return done


def judge_all(trials: Sequence[Trial], outputs: Sequence[Arrays]) -> list[Finding]:
    """Return every finding of a run; an output that is missing is one that does not hold."""
    findings: list[Finding] = []
    for trial, output in zip(trials, outputs, strict=True):
        try:
            findings += trial.judge(output)
        except KeyError as e:
            findings.append(Finding(f"{trial.case.signature} output {e.args[0]}", float("inf"), 0.0))
    return findings


def measure_logit_error(run: Callable[[str, Arrays], Arrays], tensors: Tensors, contexts: int, seed: int) -> float:
    """Return the largest int8-against-float64 difference of log probabilities over random contexts."""
    rng = np.random.Generator(np.random.PCG64(seed))
    size = size_of(tensors)
    largest = 0.0
    for _ in range(contexts):
        context = (4 + (size.words - 4) * rng.random(LENGTH) ** 3).astype(np.int32)
        exact = reference.suggestion_log_probs(reference.context_logits(tensors, context))
        outputs = run("suggest_context", {"tokens": context})
        largest = max(largest, log_prob_error(np.asarray(outputs["log_probs"], np.float64), exact))
    return largest
