import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import array_evaluation, array_training
from edge_runtime.adapters.checkpoints import Checkpoints
from edge_runtime.array_examples import ExamplesRefused, encode_records, of_records
from edge_runtime.local_rules import PlanRefused
from edge_runtime.local_training import result_of
from tests.edge_runtime import array_model
from tests.edge_runtime.array_model import BATCH, SPECS, WEIGHTS, ArrayRunner, forward, gradient
from wire_contract.messages import LocalRule, Plan

MANIFEST, FILE = array_model.make()
PACKED = array_model.packed_of(MANIFEST, FILE)
PLAN = Plan(signature="train", rows=200, epochs=2, learning_rate=0.5, dropout=0.0)


def examples(count=18, seed=1, first=1):
    records = encode_records(array_model.draw(count, seed), SPECS)
    return of_records(enumerate(records, start=first), SPECS)


def train(plan=PLAN, seed=9, held=None, packed=PACKED, runner=None):
    held = examples() if held is None else held
    last = array_training.begin(held, packed, plan, MANIFEST, seed)
    for after in array_training.steps(runner or ArrayRunner(MANIFEST), held, last, plan, MANIFEST, seed):
        last = after
    return result_of(last)


def same(a, b):
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def reference(plan, seed, held):
    """Train in float64 by the rules as they are written, in one loop."""
    rows = array_training.generator(seed, 0).permutation(held.numbers)[: plan.rows]
    weights = {name: PACKED[name].astype(np.float64) for name in WEIGHTS}
    for epoch in range(plan.epochs):
        order = array_training.generator(seed, 1, epoch).permutation(len(rows))
        for start in range(0, len(rows), BATCH):
            numbers = rows[order[start : start + BATCH]]
            taken = {
                name: np.stack([array[list(held.numbers).index(n)] for n in numbers])
                for name, array in held.arrays.items()
            }
            slopes = gradient(taken, weights, np.ones(len(numbers)))
            for name in WEIGHTS:
                weights[name] -= plan.learning_rate * len(numbers) / BATCH * slopes[name]
    return weights


@pytest.mark.parametrize("count", [3, 4, 18])
def test_training_is_what_the_rules_say_to_the_last_short_batch(count):
    held = examples(count, first=40)
    trained, expected = train(held=held), reference(PLAN, 9, held)
    assert trained.steps == 2 * -(-count // BATCH) and trained.examples == count
    for name in WEIGHTS:
        np.testing.assert_allclose(trained.packed[name], expected[name], rtol=3e-5, atol=3e-6)


def test_padding_weighs_nothing():
    runner = ArrayRunner(MANIFEST)
    train(held=examples(6), runner=runner)
    short = [call for call in runner.calls if call["example_weights"].sum() == 2]
    assert len(short) == 2
    for call in short:
        assert call["example_weights"].tolist() == [1, 1, 0, 0] and call["learning_rate"] == np.float32(0.25)
        assert not call["pixels"][2:].any() and not call["target"][2:].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_an_epoch_sees_each_drawn_example_once_and_no_more_than_the_plan_says(count, rows, seed):
    runner, held = ArrayRunner(MANIFEST), examples(count)
    train(Plan(signature="train", rows=rows, learning_rate=0.1, dropout=0.0), seed, held, runner=runner)
    seen = [
        row.tobytes()
        for call in runner.calls
        for row, counts in zip(call["pixels"], call["example_weights"], strict=True) if counts
    ]  # fmt: skip
    assert len(seen) == len(set(seen)) == min(count, rows)


def test_one_seed_gives_one_training_and_another_seed_another():
    first = train()
    assert same(first.packed, train().packed)
    assert not same(first.packed, train(seed=10).packed) and not same(first.packed, PACKED)


@pytest.mark.parametrize("rules", [(), (LocalRule(name="momentum", value=0.9), LocalRule(name="schedule-cosine"))])
def test_a_training_that_was_stopped_anywhere_ends_in_the_same_bytes(rules, tmp_path):
    plan, held = Plan(signature="train", rows=14, epochs=2, learning_rate=0.3, dropout=0.0, rules=rules), examples()
    whole = train(plan)
    assert whole.steps == 8
    for stop in range(1, 8):
        begun = array_training.begin(held, PACKED, plan, MANIFEST, 9)
        for checkpoint in array_training.steps(ArrayRunner(MANIFEST), held, begun, plan, MANIFEST, 9):
            if checkpoint.steps == stop:
                kept = Checkpoints(tmp_path, lease="1" * 32, base_sha256="2" * 64, times_forgotten=0)
                kept.save(checkpoint)
                break
        resumed = Checkpoints(tmp_path, lease="1" * 32, base_sha256="2" * 64, times_forgotten=0).load(PACKED)
        assert resumed.rows.dtype == np.int32 and resumed.rows.shape == (14, 1)
        *_, last = array_training.steps(ArrayRunner(MANIFEST), held, resumed, plan, MANIFEST, 9)
        again = result_of(last)
        assert same(again.packed, whole.packed)
        assert (again.steps, again.loss_before, again.loss_after) == (8, whole.loss_before, whole.loss_after)


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 2, 3), (4, 3, 2, 6)])
def test_a_checkpoint_holds_tensors_of_one_to_four_dimensions_bit_for_bit(shape, tmp_path):
    rng = np.random.default_rng(len(shape))
    base = {"w": rng.normal(size=shape).astype(np.float32)}
    packed = {"w": base["w"].copy()}
    packed["w"][2] += np.float32(1e-3)
    kept = Checkpoints(tmp_path, lease="1" * 32, base_sha256="2" * 64, times_forgotten=0)
    begun = array_training.Checkpoint(packed, np.array([[3]], np.int32), 1, 1.0, 0.5, base, {"w": packed["w"] * 2})
    kept.save(begun)
    back = kept.load(base)
    assert same(back.packed, packed) and same(back.velocity, {"w": packed["w"] * 2}) and back.packed["w"].shape == shape


def test_the_pull_of_a_proximal_rule_is_its_formula():
    mu, held = 0.8, examples(4)
    plan = Plan(signature="train", rows=4, epochs=2, learning_rate=0.25, dropout=0.0,
                rules=(LocalRule(name="proximal", value=mu),))  # fmt: skip
    first = {
        name: PACKED[name] - 0.25 * slope
        for name, slope in gradient(held.arrays, PACKED, np.ones(4)).items()
    }  # fmt: skip
    second = gradient(held.arrays, first, np.ones(4))
    trained = train(plan, held=held)
    for name in WEIGHTS:
        expected = first[name] - 0.25 * (second[name] + mu * (first[name] - PACKED[name]))
        np.testing.assert_allclose(trained.packed[name], expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_tensor_stays_bit_for_bit_and_the_others_learn():
    frozen = ("hidden_kernel", "hidden_bias")
    trained = train(Plan(signature="train", rows=18, epochs=2, learning_rate=0.3, dropout=0.0,
                         rules=(LocalRule(name="freeze", tensors=frozen),)))  # fmt: skip
    for name in WEIGHTS:
        assert (trained.packed[name].tobytes() == PACKED[name].tobytes()) == (name in frozen)


def test_training_makes_the_examples_likelier():
    held = examples(200)
    trained = train(Plan(signature="train", rows=200, epochs=12, learning_rate=0.5, dropout=0.0), held=held)
    before, after = (float(forward(held.arrays, w)[0].mean()) for w in (PACKED, trained.packed))
    assert after < 0.7 * before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dropout": 0.2}, "has its dropout left out"),
        ({"signature": "train_sampled"}, "trains by 'train', the plan asks for 'train_sampled'"),
        ({"signature": "train_private"}, "'train_private'"),
        ({"rule": "fedprox"}, "fedprox"),
        ({"rules": (LocalRule(name="freeze", tensors=("embedding",)),)}, "embedding"),
        ({"minimum_examples": 19}, "19 examples or more, the device has 18"),
    ],
)
def test_what_a_model_of_arrays_cannot_do_is_refused_by_name(change, told):
    values = {"signature": "train", "dropout": 0.0, **change}
    with pytest.raises(PlanRefused, match=told):
        array_training.begin(examples(), PACKED, Plan(**values), MANIFEST, 1)


def test_a_device_without_examples_has_nothing_to_train_on():
    with pytest.raises(PlanRefused, match="1 examples or more, the device has 0"):
        array_training.begin(of_records([], SPECS), PACKED, PLAN, MANIFEST, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 23))
def test_a_score_is_every_examples_own_whatever_the_batch(count):
    arrays = array_model.draw(count, 7)
    found = array_evaluation.score(ArrayRunner(MANIFEST), MANIFEST, PACKED, arrays)
    losses, chances, logits, *_ = forward(arrays, PACKED)
    hits = int((chances.argmax(axis=1) == arrays["target"]).sum())
    assert (found.count, found.hits) == (count, hits)
    assert found.mean_loss == pytest.approx(losses.mean(), rel=1e-5) and found.accuracy == 100 * hits / count
    np.testing.assert_allclose(found.outputs, logits, rtol=1e-5, atol=1e-6)


def test_a_model_that_predicts_numbers_has_no_hits():
    manifest, _ = array_model.make("mean_squared_error")
    assert array_evaluation.score(ArrayRunner(manifest), manifest, PACKED, array_model.draw(5)).hits == 0


def test_a_score_on_classes_that_the_model_lacks_is_no_score():
    arrays = array_model.draw(9)
    found = array_evaluation.score(ArrayRunner(MANIFEST), MANIFEST, PACKED, arrays)
    array_evaluation.check_classes(MANIFEST, arrays, found)
    with pytest.raises(ExamplesRefused, match="target is a class below 3, for the model has so many, got 7"):
        array_evaluation.check_classes(MANIFEST, {**arrays, "target": np.full(9, 7, np.int32)}, found)
    numbers, _ = array_model.make("mean_squared_error")
    array_evaluation.check_classes(numbers, {**arrays, "target": np.full(9, 7, np.float32)}, found)


def test_examples_that_the_model_cannot_learn_from_are_refused_before_they_are_stored():
    arrays = array_model.draw(9)
    runner = ArrayRunner(MANIFEST)
    assert array_evaluation.try_examples(runner, MANIFEST, PACKED, arrays).count == 9
    strange = {**arrays, "target": np.where(np.arange(9) == 4, 3, arrays["target"]).astype(np.int32)}
    with pytest.raises(ExamplesRefused, match="target is a class below 3, for the model has so many, got 3"):
        array_evaluation.try_examples(_OneHot(MANIFEST), MANIFEST, PACKED, strange)
    with pytest.raises(ExamplesRefused, match="cannot be run on these examples"):
        array_evaluation.try_examples(runner, MANIFEST, PACKED, {**arrays, "pixels": arrays["pixels"][:, :1]})
    broken = {**PACKED, "head_bias": np.array([np.inf, 0, 0], np.float32)}
    with pytest.raises(ExamplesRefused, match="loss on these examples is a number"), np.errstate(all="ignore"):
        array_evaluation.try_examples(runner, MANIFEST, broken, arrays)


class _OneHot(ArrayRunner):
    """An interpreter's graph takes a class that the model lacks for no class at all."""

    def run(self, name, inputs):
        known = np.minimum(inputs["target"], array_model.CLASSES - 1)
        return super().run(name, {**inputs, "target": known})
