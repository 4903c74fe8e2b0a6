import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import candidates, local_training
from edge_runtime.adapters.checkpoints import Checkpoints
from edge_runtime.local_rules import PlanRefused
from edge_runtime.local_training import Stepper, begin, draw_rows, generator, result_of, steps
from tests.edge_runtime.fakes import RUNTIME, TINY
from wire_contract.envelope import read_envelope
from wire_contract.layout import Layout
from wire_contract.manifest import decode_manifest
from wire_contract.messages import Plan
from wire_contract.patch import read_tensors

MANIFEST = decode_manifest(read_envelope((TINY / "manifest.bin").read_bytes()).body)
MODEL = (TINY / "model.tflite").read_bytes()
PACKED = Layout.of(MANIFEST).pack(read_tensors(MODEL, MANIFEST))
RUNNER = RUNTIME.template(MANIFEST, lambda: MODEL)
STREAM = [int(i) for i in np.random.default_rng(3).zipf(1.3, 1500).clip(1, 599)]
PLAN = Plan(signature="train_sampled", rows=40, epochs=2, learning_rate=0.5, dropout=0.2)


def train(plan=PLAN, seed=9, stream=STREAM):
    last = begin(stream, PACKED, plan, MANIFEST, seed)
    for checkpoint in steps(RUNNER, last, plan, MANIFEST, seed):
        last = checkpoint
    return result_of(last)


def checkpoints_in(folder):
    return Checkpoints(folder, lease="1" * 32, base_sha256="2" * 64, times_forgotten=0)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


@given(st.lists(st.integers(1, 99), max_size=200), st.integers(0, 2**32))
def test_every_token_but_the_first_is_a_target_exactly_once(stream, seed):
    rows = draw_rows(stream, rows=1000, length=20, rng=generator(seed))
    targets = Counter(int(t) for row in rows for t in row[1:] if t != 0)
    assert targets == Counter(stream[1:])
    pairs = Counter((int(a), int(b)) for row in rows for a, b in itertools.pairwise(row.tolist()) if b != 0)
    assert pairs == Counter(itertools.pairwise(stream))


def test_no_more_rows_are_drawn_than_the_plan_says_and_whole_ones_first():
    rows = draw_rows(STREAM, rows=40, length=20, rng=generator(1))
    assert rows.shape == (40, 21) and (rows != 0).all()
    assert len({row.tobytes() for row in rows}) == 40


@pytest.mark.parametrize("signature", ["train", "train_sampled"])
def test_one_seed_gives_one_training_and_another_seed_another(signature):
    plan = Plan(signature=signature, rows=20, learning_rate=0.5)
    first = train(plan)
    assert same(first.packed, train(plan).packed)
    assert not same(first.packed, train(plan, seed=10).packed)
    assert not same(first.packed, PACKED)


@pytest.mark.parametrize("signature", ["train", "train_sampled"])
def test_a_training_that_was_stopped_anywhere_ends_in_the_same_bytes(signature, tmp_path):
    plan = Plan(signature=signature, rows=40, epochs=2, learning_rate=0.5, dropout=0.2)
    whole = train(plan)
    assert whole.steps == 6 and whole.examples == 40
    for stop in range(1, 6):
        for checkpoint in steps(RUNNER, begin(STREAM, PACKED, plan, MANIFEST, 9), plan, MANIFEST, 9):
            if checkpoint.steps == stop:
                checkpoints_in(tmp_path).save(checkpoint)
                break
        resumed = checkpoints_in(tmp_path).load(PACKED)
        *_, last = steps(RUNNER, resumed, plan, MANIFEST, 9)
        again = result_of(last)
        assert same(again.packed, whole.packed)
        assert (again.steps, again.loss_before, again.loss_after) == (6, whole.loss_before, whole.loss_after)


def test_training_makes_the_text_more_likely():
    result = train(Plan(signature="train", rows=60, epochs=6, learning_rate=1.0, dropout=0.0))
    assert result.loss_after < result.loss_before - 0.5


def test_the_ones_column_stays_exactly_one():
    for signature in ("train", "train_sampled"):
        assert (train(Plan(signature=signature, rows=40, learning_rate=1.0)).packed["output_rows"][:, -1] == 1.0).all()


def test_a_small_last_batch_steps_in_proportion_and_its_padding_weighs_nothing():
    rows = draw_rows(STREAM, rows=4, length=20, rng=generator(1))
    small, whole = (Stepper(RUNNER, MANIFEST, PACKED, "train") for _ in range(2))
    small.step(rows, 1.0, 0.0, generator(1))
    # Four times the same rows fill the batch: the same mean gradient at four times the rate.
    whole.step(np.concatenate([rows] * 4), 1.0, 0.0, generator(1))
    for name, start in PACKED.items():
        np.testing.assert_allclose(
            (small.packed[name] - start) * 4, whole.packed[name] - start, atol=2e-6 * 4, err_msg=name
        )


def test_the_steppers_weights_are_its_own():
    before = {name: value.copy() for name, value in PACKED.items()}
    train()
    assert same(PACKED, before)


def test_dropout_values_are_zero_or_the_inverse_of_what_is_kept():
    mask = local_training.output_mask((20, 16, 16), 0.2, generator(1))
    assert set(np.unique(mask)) == {np.float32(0.0), np.float32(1.25)}
    assert abs(mask.mean() - 1.0) < 0.02
    assert (local_training.output_mask((2, 3, 4), 0.0, generator(1)) == 1.0).all()


@pytest.mark.parametrize("change", [{"rule": "fedprox"}, {"signature": "train_private"}, {"minimum_examples": 100}])
def test_what_the_device_cannot_do_is_refused_by_name(change):
    plan = Plan(**{"rows": 80, **change})
    with pytest.raises(PlanRefused, match=str(next(iter(change.values())))):
        begin(STREAM[:60], PACKED, plan, MANIFEST, 1)


def test_the_candidate_set_holds_every_target_once_and_knows_its_place():
    rng = generator(5)
    targets = rng.integers(1, 5000, (16, 20)).astype(np.int32)
    counted = rng.random((16, 20)) < 0.9
    chosen = candidates.choose(targets, counted, size=512, words=10_000, rng=rng)
    assert len(set(chosen.ids.tolist())) == 512 and 0 not in chosen.ids
    assert (chosen.ids[chosen.positions[counted]] == targets[counted]).all()
    assert (chosen.positions[~counted] == 0).all()


def test_the_correction_is_the_log_of_how_often_a_word_gets_in():
    targets, counted = np.ones((16, 20), np.int32), np.zeros((16, 20), np.bool_)
    seen, stated, rounds = np.zeros(2000), np.zeros(2000), 400
    for seed in range(rounds):
        chosen = candidates.choose(targets, counted, size=256, words=2000, rng=generator(seed))
        seen[chosen.ids] += 1
        stated[chosen.ids] += np.exp(chosen.log_inclusion)
    for low, high in ((1, 20), (20, 100), (100, 500), (500, 2000)):
        # A word's stated probability, averaged over the sets that it is in, is its frequency in them.
        mean = (stated[low:high] / np.maximum(seen[low:high], 1))[seen[low:high] > 0].mean()
        assert abs(mean / (seen[low:high].mean() / rounds) - 1.0) < 0.1


def test_a_vocabulary_as_large_as_the_set_needs_no_correction():
    targets = np.array([[3, 7]], np.int32)
    chosen = candidates.choose(targets, targets > 0, size=50, words=50, rng=generator(1))
    assert (chosen.ids == np.arange(50)).all() and (chosen.log_inclusion == 0).all()
    assert (chosen.positions == targets).all()


def test_a_set_that_is_one_short_of_the_vocabulary_can_still_be_filled():
    targets = np.array([[3, 7]], np.int32)
    for size in (48, 49):
        chosen = candidates.choose(targets, targets > 0, size=size, words=50, rng=generator(1))
        assert len(set(chosen.ids.tolist())) == size
    with pytest.raises(ValueError, match="does not hold"):
        candidates.choose(
            np.arange(20, dtype=np.int32)[None], np.ones((1, 20), bool), size=8, words=50, rng=generator(1)
        )


class Recorder:
    """A runner that moves every candidate by 0.5 and asks for a step of 1, 2, 3, ... at the positions."""

    def run(self, name, inputs):
        self.inputs = {key: np.array(value) for key, value in inputs.items()}
        steps = np.arange(1, 321, dtype=np.float32)[:, None] * np.ones((1, 16), np.float32)
        moved = inputs["candidate_rows"].copy()
        moved[:, :-1] += 0.5
        return {
            "loss": np.float32(1.0), "trained_candidate_rows": moved, "input_rows_step": steps,
            "trained_kernel_rows": inputs["kernel_rows"], "trained_projection": inputs["projection"],
        }  # fmt: skip


def test_the_host_part_of_a_sampled_step_is_what_a_plain_loop_does():
    rows = draw_rows(STREAM, rows=16, length=20, rng=generator(1))
    recorder, before = Recorder(), PACKED["output_rows"]
    stepper = Stepper(recorder, MANIFEST, PACKED, "train_sampled")
    stepper.step(rows, 0.5, 0.0, generator(2))
    local_training.output_mask((20, 16, 16), 0.0, rng := generator(2))
    targets = rows[:, 1:]
    chosen = candidates.choose(targets, targets > 0, size=512, words=600, rng=rng)
    given = recorder.inputs
    assert (chosen.log_inclusion < -1e-3).any()
    np.testing.assert_array_equal(given["candidate_rows"][:, -2], before[chosen.ids, -2] - chosen.log_inclusion)
    np.testing.assert_array_equal(given["candidate_rows"][:, :-2], before[chosen.ids, :-2])
    expected = before.astype(np.float64)
    for place in chosen.ids:
        expected[place, :-1] += 0.5
    for t in range(20):
        for b in range(16):
            position = t * 16 + b
            assert np.array_equal(given["input_rows"][position], before[rows[b, t], :16])
            expected[rows[b, t], :16] -= position + 1
    np.testing.assert_allclose(stepper.packed["output_rows"], expected, atol=2e-3)
    untouched = np.setdiff1d(np.arange(600), np.union1d(chosen.ids, rows[:, :-1]))
    assert len(untouched) and np.array_equal(stepper.packed["output_rows"][untouched], before[untouched])


def test_sampled_steps_follow_the_exact_ones():
    exact, sampled = (Stepper(RUNNER, MANIFEST, PACKED, signature) for signature in ("train", "train_sampled"))
    rows = draw_rows(STREAM, rows=64, length=20, rng=generator(1))
    for number in range(40):
        batch = rows[(number * 16) % 64 : (number * 16) % 64 + 16]
        exact.step(batch, 0.5, 0.0, generator(2, number))
        sampled.step(batch, 0.5, 0.0, generator(2, number))
    probe = Stepper(RUNNER, MANIFEST, sampled.packed, "train")
    by_exact, by_sampled = exact.step(rows[:16], 0.0, 0.0, generator(1)), probe.step(rows[:16], 0.0, 0.0, generator(1))
    start = Stepper(RUNNER, MANIFEST, PACKED, "train").step(rows[:16], 0.0, 0.0, generator(1))
    assert start - by_exact > 0.3
    assert abs(by_sampled - by_exact) < 0.15 * (start - by_exact)
