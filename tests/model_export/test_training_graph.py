"""The train signatures in LiteRT, held against float64 numpy and TensorFlow's tape."""

from dataclasses import dataclass

import numpy as np
import pytest

from model_export import reference
from model_export.conformance import EXPOSING_RATE, GRADIENT_TOLERANCE, sampled_trial, train_trial
from model_export.network import BATCH, LENGTH

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


@dataclass
class Batch:
    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    output_mask: np.ndarray

    def inputs(self, learning_rate):
        return {**vars(self), "learning_rate": np.array(learning_rate, np.float32)}


def a_batch(size, seed=11):
    rng = np.random.Generator(np.random.PCG64(seed))
    return Batch(
        rng.integers(0, size.words, (BATCH, LENGTH)).astype(np.int32),
        rng.integers(0, size.words, (BATCH, LENGTH)).astype(np.int32),
        np.ones((BATCH, LENGTH), np.float32),
        np.ones((LENGTH, size.width, BATCH), np.float32),
    )


def failed(findings):
    return [finding for finding in findings if not finding.holds]


def test_the_exact_step_exposes_the_float64_gradient_of_all_five_tensors(interpreter, tensors, layout, size):
    trial = train_trial(tensors, layout, size, np.random.Generator(np.random.PCG64(5)))
    findings = trial.judge(interpreter.run("train", trial.case.inputs))
    assert sum("gradient" in finding.name for finding in findings) == 5
    assert failed(findings) == []


def test_the_sampled_step_exposes_the_float64_gradient_of_rows_and_recurrence(interpreter, tensors, layout, size):
    trial = sampled_trial(tensors, layout, size, size.words, np.random.Generator(np.random.PCG64(6)))
    findings = trial.judge(interpreter.run("train_sampled", trial.case.inputs))
    assert sum("gradient" in finding.name for finding in findings) == 6
    assert failed(findings) == []


def test_the_judge_sees_a_gradient_that_is_wrong_by_one_part_in_ten_thousand(interpreter, tensors, layout, size):
    trial = train_trial(tensors, layout, size, np.random.Generator(np.random.PCG64(5)))
    outputs = interpreter.run("train", trial.case.inputs)
    before = trial.case.inputs["projection"]
    outputs["trained_projection"] = before + (outputs["trained_projection"] - before) * np.float32(1.0001)
    assert [finding.name for finding in failed(trial.judge(outputs))] == ["train gradient projection"]


def test_tensorflows_tape_agrees_with_float64_and_with_the_exported_step(interpreter, tensors, layout, size):
    from model_export.tape import tape_gradient

    trial = train_trial(tensors, layout, size, np.random.Generator(np.random.PCG64(8)))
    given = trial.case.inputs
    batch = [given[name] for name in ("tokens", "targets", "weights", "output_mask")]
    taped, exact = tape_gradient(tensors, *batch), reference.gradient(tensors, *batch)
    trained = layout.unpack(
        {
            name.removeprefix("trained_"): value
            for name, value in interpreter.run("train", given).items()
            if name != "loss"
        }
    )
    for name, value in exact.tensors.items():
        largest = np.abs(value).max()
        assert np.abs(taped.tensors[name] - value).max() <= GRADIENT_TOLERANCE * largest
        exposed = (tensors[name].astype(np.float64) - trained[name]) / EXPOSING_RATE
        assert np.abs(exposed - taped.tensors[name]).max() <= 2 * GRADIENT_TOLERANCE * largest


def test_the_ones_column_stays_exactly_one_over_many_violent_steps(interpreter, tensors, layout, size):
    packed, batch = layout.pack(tensors), a_batch(size)
    for _ in range(20):
        outputs = interpreter.run("train", {**batch.inputs(2.0), **packed})
        packed = {name: outputs[f"trained_{name}"] for name in packed}
    assert (packed["output_rows"][:, -1] == 1.0).all()


def test_training_lowers_the_loss_of_a_batch_that_it_sees_again(interpreter, tensors, layout, size):
    packed, batch, losses = layout.pack(tensors), a_batch(size), []
    for _ in range(15):
        outputs = interpreter.run("train", {**batch.inputs(1.0), **packed})
        packed = {name: outputs[f"trained_{name}"] for name in packed}
        losses.append(float(outputs["loss"]))
    assert losses[-1] < losses[0] - 0.2


def test_a_learning_rate_of_zero_gives_the_weights_back_unchanged(interpreter, tensors, layout, size):
    packed = layout.pack(tensors)
    outputs = interpreter.run("train", {**a_batch(size).inputs(0.0), **packed})
    for name, value in packed.items():
        assert np.array_equal(outputs[f"trained_{name}"], value)


def test_the_mask_acts_on_the_output_only_and_the_recurrence_goes_on(interpreter, tensors, layout, size):
    batch, packed = a_batch(size), layout.pack(tensors)
    # The output layer sees nothing of the first 19 steps; only the last position counts.
    batch.weights[:, :-1] = 0.0
    plain = interpreter.run("train", {**batch.inputs(1.0), **packed})
    batch.output_mask[:-1] = 0.0
    masked = interpreter.run("train", {**batch.inputs(1.0), **packed})
    assert float(masked["loss"]) == pytest.approx(float(plain["loss"]), abs=1e-6)
    np.testing.assert_allclose(masked["trained_kernel_rows"], plain["trained_kernel_rows"], atol=1e-6)


def test_a_state_that_is_masked_out_leaves_only_the_output_bias(interpreter, tensors, layout, size):
    batch = a_batch(size)
    batch.output_mask[:] = 0.0
    outputs = interpreter.run("train", {**batch.inputs(1.0), **layout.pack(tensors)})
    log_p = reference.log_softmax(tensors["output_bias"].astype(np.float64))
    assert float(outputs["loss"]) == pytest.approx(-log_p[batch.targets].mean(), abs=1e-5)
    assert np.array_equal(outputs["trained_projection"], tensors["projection"])


def test_positions_of_weight_zero_contribute_nothing(interpreter, tensors, layout, size):
    batch, packed = a_batch(size), layout.pack(tensors)
    batch.weights[4:] = 0.0
    batch.weights[:4, 10:] = 0.0
    before = interpreter.run("train", {**batch.inputs(1.0), **packed})
    batch.tokens[4:] = 7
    batch.targets[4:] = 9
    batch.tokens[:4, 10:] = 3
    after = interpreter.run("train", {**batch.inputs(1.0), **packed})
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=2e-6)


def test_a_batch_without_any_weight_changes_nothing(interpreter, tensors, layout, size):
    batch, packed = a_batch(size), layout.pack(tensors)
    batch.weights[:] = 0.0
    outputs = interpreter.run("train", {**batch.inputs(1.0), **packed})
    assert float(outputs["loss"]) == 0.0
    for name, value in packed.items():
        assert np.array_equal(outputs[f"trained_{name}"], value)


@pytest.mark.parametrize("factor", [5, 20, 100, 1e4])
def test_huge_weights_keep_loss_and_weights_finite(interpreter, tensors, layout, size, factor):
    huge = {**tensors, "embedding": tensors["embedding"] * np.float32(factor)}
    outputs = interpreter.run("train", {**a_batch(size).inputs(0.1), **layout.pack(huge)})
    for value in outputs.values():
        assert np.isfinite(value).all()


def test_moderately_large_logits_still_have_the_softmaxs_loss(interpreter, tensors, layout, size):
    large = {**tensors, "embedding": tensors["embedding"] * np.float32(4)}
    batch = a_batch(size)
    outputs = interpreter.run("train", {**batch.inputs(0.1), **layout.pack(large)})
    exact = reference.gradient(large, batch.tokens, batch.targets, batch.weights, batch.output_mask)
    assert float(outputs["loss"]) == pytest.approx(exact.loss, rel=1e-5)


def test_with_the_whole_vocabulary_as_candidates_the_sampled_step_is_the_exact_one(interpreter, tensors, layout, size):
    batch, packed = a_batch(size), layout.pack(tensors)
    exact = interpreter.run("train", {**batch.inputs(0.5), **packed})
    sampled = interpreter.run(
        "train_sampled",
        {
            "input_rows": packed["output_rows"][batch.tokens.T.reshape(-1), : size.width],
            "candidate_rows": packed["output_rows"],
            "targets": batch.targets,
            "weights": batch.weights,
            "learning_rate": np.array(0.5, np.float32),
            "output_mask": batch.output_mask,
            "kernel_rows": packed["kernel_rows"],
            "projection": packed["projection"],
        },
    )
    rows = sampled["trained_candidate_rows"].copy()
    np.subtract.at(rows[:, : size.width], batch.tokens.T.reshape(-1), sampled["input_rows_step"])
    assert float(sampled["loss"]) == pytest.approx(float(exact["loss"]), abs=1e-6)
    np.testing.assert_allclose(rows, exact["trained_output_rows"], atol=1e-6)
    np.testing.assert_allclose(sampled["trained_kernel_rows"], exact["trained_kernel_rows"], atol=1e-6)
    np.testing.assert_allclose(sampled["trained_projection"], exact["trained_projection"], atol=1e-6)
