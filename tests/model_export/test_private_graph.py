"""`train_private` in LiteRT: held against a float64 gradient for each row, and against what its definition promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export import reference
from model_export.conformance import EXPOSING_RATE, private_trial
from model_export.network import BATCH, LENGTH

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


def a_batch(size, seed=21):
    rng = np.random.Generator(np.random.PCG64(seed))
    return {
        "tokens": rng.integers(0, size.words, (BATCH, LENGTH)).astype(np.int32),
        "targets": rng.integers(0, size.words, (BATCH, LENGTH)).astype(np.int32),
        "weights": np.ones((BATCH, LENGTH), np.float32),
        "output_mask": np.ones((LENGTH, size.width, BATCH), np.float32),
    }


def step(interpreter, layout, tensors, batch, clip, rate=EXPOSING_RATE):
    """Return (norms, the change of each tensor divided by the rate, float64)."""
    packed = layout.pack(tensors)
    scalars = {"learning_rate": np.array(rate, np.float32), "example_clip": np.array(clip, np.float32)}
    outputs = interpreter.run("train_private", {**batch, **scalars, **packed})
    trained = layout.unpack({name: outputs[f"trained_{name}"] for name in packed})
    return outputs["norms"], {
        name: (tensors[name].astype(np.float64) - trained[name]) / rate for name in tensors
    }  # fmt: skip


def length_of(change):
    return float(np.sqrt(sum(float((value**2).sum()) for value in change.values())))


def largest_error(change, exact):
    return max(float(np.abs(change[name] - exact[name]).max() / np.abs(exact[name]).max()) for name in exact)


def test_norms_and_the_clipped_step_are_those_of_sixteen_float64_gradients(interpreter, tensors, layout, size):
    trial = private_trial(tensors, layout, size, np.random.Generator(np.random.PCG64(5)))
    findings = trial.judge(interpreter.run("train_private", trial.case.inputs))
    assert len(findings) == 8
    assert [finding for finding in findings if not finding.holds] == []


@pytest.mark.parametrize("name", ["norms", "trained_projection"])
def test_the_judge_sees_what_is_wrong_by_one_part_in_ten_thousand(interpreter, tensors, layout, size, name):
    trial = private_trial(tensors, layout, size, np.random.Generator(np.random.PCG64(5)))
    outputs = interpreter.run("train_private", trial.case.inputs)
    before = trial.case.inputs.get("projection") if name == "trained_projection" else np.float32(0)
    outputs[name] = before + (outputs[name] - before) * np.float32(1.0001)
    assert len([finding for finding in trial.judge(outputs) if not finding.holds]) == 1


@pytest.mark.parametrize("case", ["one word throughout", "targets are the inputs", "some words twice"])
def test_words_that_come_twice_in_a_row_are_counted_with_their_products(interpreter, tensors, layout, size, case):
    batch = a_batch(size)
    if case == "one word throughout":
        batch["tokens"][:] = 17
        batch["targets"][:] = 17
    elif case == "targets are the inputs":
        batch["targets"] = np.roll(batch["tokens"], -1, axis=1)
    else:
        batch["tokens"] %= 7
        batch["targets"] %= 5
    clip = 0.5
    norms, change = step(interpreter, layout, tensors, batch, clip)
    exact = reference.private_gradient(
        tensors, batch["tokens"], batch["targets"], batch["weights"], batch["output_mask"], clip
    )
    np.testing.assert_allclose(norms, exact.norms, rtol=5e-6)
    assert (norms > clip).all()
    assert largest_error(change, exact.tensors) < 5e-6


def test_without_a_bound_the_step_is_the_plain_sum_over_the_batch(interpreter, tensors, layout, size):
    batch = a_batch(size)
    _, change = step(interpreter, layout, tensors, batch, 1e9)
    mean = reference.gradient(tensors, batch["tokens"], batch["targets"], batch["weights"], batch["output_mask"])
    scale = batch["weights"].sum() / BATCH
    assert largest_error(change, {name: value * scale for name, value in mean.tensors.items()}) < 5e-6


@pytest.mark.parametrize("clip", [1e-3, 0.1, 3.0])
def test_one_row_moves_the_sum_by_its_norm_or_the_bound_whichever_is_less(interpreter, tensors, layout, size, clip):
    batch = a_batch(size)
    batch["weights"][1:] = 0.0
    norms, change = step(interpreter, layout, tensors, batch, clip)
    assert norms[0] > 0
    assert length_of(change) * BATCH == pytest.approx(min(float(norms[0]), clip), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    row=st.integers(0, BATCH - 1),
    clip=st.floats(0.015625, 64.0, width=32),
    crowded=st.booleans(),
)
def test_a_row_more_or_less_moves_the_sum_by_its_norm_or_the_bound(
    interpreter, tensors, layout, size, seed, row, clip, crowded
):
    batch = a_batch(size, seed)
    if crowded:
        batch["tokens"] %= 9
        batch["targets"] %= 6
    norms, whole = step(interpreter, layout, tensors, batch, clip)
    without = {**batch, "weights": batch["weights"].copy()}
    without["weights"][row] = 0.0
    other_norms, rest = step(interpreter, layout, tensors, without, clip)
    moved = length_of({name: whole[name] - rest[name] for name in whole}) * BATCH
    assert moved <= clip * (1 + 1e-5)
    assert moved == pytest.approx(min(float(norms[row]), clip), rel=1e-4)
    assert other_norms[row] == 0.0
    # The other rows' norms do not know of it.
    np.testing.assert_allclose(np.delete(other_norms, row), np.delete(norms, row), rtol=1e-6)


def test_rows_of_weight_zero_have_the_norm_zero_and_their_words_are_not_touched(interpreter, tensors, layout, size):
    batch = a_batch(size)
    batch["weights"][3:] = 0.0
    norms, change = step(interpreter, layout, tensors, batch, 1.0)
    assert (norms[3:] == 0.0).all()
    assert all(np.isfinite(value).all() for value in change.values())
    batch["tokens"][3:] = 9
    batch["targets"][3:] = 11
    _, other = step(interpreter, layout, tensors, batch, 1.0)
    assert largest_error(other, change) < 1e-6


def test_a_batch_without_any_weight_changes_nothing(interpreter, tensors, layout, size):
    batch = a_batch(size)
    batch["weights"][:] = 0.0
    norms, change = step(interpreter, layout, tensors, batch, 1.0)
    assert (norms == 0.0).all()
    assert length_of(change) == 0.0


def test_a_bound_of_zero_gives_the_weights_back_unchanged(interpreter, tensors, layout, size):
    _, change = step(interpreter, layout, tensors, a_batch(size), 0.0)
    assert length_of(change) == 0.0


def test_the_loss_is_the_weighted_mean_that_train_reports(interpreter, tensors, layout, size):
    batch, packed = a_batch(size), layout.pack(tensors)
    batch["weights"][:, 12:] = 0.25
    plain = interpreter.run("train", {**batch, "learning_rate": np.float32(0.1), **packed})
    private = interpreter.run(
        "train_private", {**batch, "learning_rate": np.float32(0.1), "example_clip": np.float32(1.0), **packed}
    )
    assert float(private["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-6)


@pytest.mark.parametrize("factor", [5, 20, 100])
def test_huge_weights_keep_norms_and_weights_finite(interpreter, tensors, layout, size, factor):
    huge = {**tensors, "embedding": tensors["embedding"] * np.float32(factor)}
    norms, change = step(interpreter, layout, huge, a_batch(size), 1.0, rate=0.1)
    assert np.isfinite(norms).all()
    assert all(np.isfinite(value).all() for value in change.values())


def test_an_unlikely_target_overflows_no_square(interpreter, tensors, layout, size):
    # The target is 60 nats behind the best word: its exponentials are e^60, and their squares would not fit.
    biased = {**tensors, "output_bias": tensors["output_bias"].copy()}
    biased["output_bias"][5] += 60.0
    batch = a_batch(size)
    batch["targets"][batch["targets"] == 5] = 6
    norms, _ = step(interpreter, layout, biased, batch, 1.0)
    exact = reference.private_gradient(
        biased, batch["tokens"], batch["targets"], batch["weights"], batch["output_mask"], 1.0
    )
    np.testing.assert_allclose(norms, exact.norms, rtol=5e-6)


@pytest.mark.parametrize("certainty", [5.0, 8.0, 10.0, 12.0, 15.0, 20.0])
def test_a_row_whose_targets_are_all_but_certain_is_clipped_early_and_never_late(
    interpreter, tensors, layout, size, certainty
):
    biased = {**tensors, "output_bias": tensors["output_bias"].copy(), "embedding": tensors["embedding"] * 0.25}
    biased["output_bias"][7] += certainty
    batch = a_batch(size)
    batch["targets"][:] = 7
    batch["weights"][1:] = 0.0
    given = (biased, batch["tokens"], batch["targets"], batch["weights"], batch["output_mask"])
    exact = reference.private_gradient(*given, np.inf)
    # A bound just below the row's norm: whoever underestimates the norm lets the row through.
    clip = float(exact.norms[0]) / 2
    _, change = step(interpreter, layout, biased, batch, clip)
    assert 0 < length_of(change) * BATCH <= clip * (1 + 1e-5)
