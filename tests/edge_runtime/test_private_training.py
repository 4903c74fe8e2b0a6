"""Plans that name `train_private`, and plans that name a variant: what a device does with them."""

import textwrap
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import local_rules, local_training
from edge_runtime.adapters.checkpoints import Checkpoints
from edge_runtime.adapters.numpy_runtime import NumpyRuntime
from edge_runtime.local_optimizer import noise_deviation
from edge_runtime.local_rules import PlanRefused
from edge_runtime.local_training import Stepper, begin, generator, result_of, steps, total_steps
from edge_runtime.offer_terms import CAPABILITIES
from tests.edge_runtime.fakes import RUNTIME
from tests.edge_runtime.numpy_model import norm_of, row_gradient
from tests.edge_runtime.test_local_training import MANIFEST as TINY_MANIFEST
from tests.edge_runtime.test_local_training import MODEL, PACKED, STREAM
from wire_contract.layout import Layout
from wire_contract.manifest import SignatureSpec
from wire_contract.messages import LocalRule, Plan, capabilities_needed

SPECS = {
    "train_private": SignatureSpec(batch=16, length=20),
    "train_b4_l8": SignatureSpec(batch=4, length=8),
    "train_sampled_b4_l8": SignatureSpec(batch=4, length=8, candidates=64),
    "train_sampled_b64_l20": SignatureSpec(batch=64, length=20, candidates=64),
    "train_private_b4_l8": SignatureSpec(batch=4, length=8),
}
MANIFEST = msgspec.structs.replace(TINY_MANIFEST, signatures={**TINY_MANIFEST.signatures, **SPECS})
RUNNER = NumpyRuntime().template(MANIFEST, lambda: MODEL)
LAYOUT = Layout.of(MANIFEST)
SECRET, CLIP, NOISE = bytes(range(32)), 0.05, 0.7


def rule(name, value=0.0, *tensors):
    return LocalRule(name=name, value=value, tensors=tensors)


def private_plan(*rules, clip=CLIP, noise=None, **changes):
    private = [rule("example-clip", clip), *([] if noise is None else [rule("example-noise", noise)])]
    given = {"signature": "train_private", "rows": 40, "epochs": 2, "learning_rate": 0.5, "dropout": 0.0}
    given |= {"residual_keep": 0.0, **changes}
    return Plan(rules=(*private, *rules), **given)


def train(plan, seed=9, secret=SECRET, runner=RUNNER):
    last = begin(STREAM, PACKED, plan, MANIFEST, seed)
    for checkpoint in steps(runner, last, plan, MANIFEST, seed, secret=secret):
        last = checkpoint
    return last


class Watcher:
    """Passes calls on and keeps their inputs."""

    def __init__(self):
        self.calls = []

    def run(self, name, inputs):
        self.calls.append((name, {key: np.array(value) for key, value in inputs.items()}))
        return RUNNER.run(name, inputs)


def clipped_mean(inputs, clip):
    """Return what the plan's rule means, in float64, for one recorded call: sum of clipped row gradients / batch."""
    tensors = LAYOUT.unpack({name: inputs[name] for name in PACKED})
    total = {name: np.zeros(value.shape) for name, value in tensors.items()}
    for b in range(len(inputs["tokens"])):
        row = [inputs[name][b] for name in ("tokens", "targets", "weights")] + [inputs["output_mask"][:, :, b]]
        _, gradient = row_gradient(tensors, *row)
        norm = norm_of(gradient)
        for name, value in gradient.items():
            total[name] += value * (min(1.0, clip / norm) if norm else 1.0) / len(inputs["tokens"])
    return total


def test_a_private_training_is_sgd_on_the_mean_of_clipped_row_gradients():
    watcher = Watcher()
    plan = private_plan()
    found = train(plan, runner=watcher)
    assert len(watcher.calls) == found.steps == 6
    expected = {name: value.astype(np.float64) for name, value in LAYOUT.unpack(PACKED).items()}
    for _, inputs in watcher.calls:
        assert inputs["example_clip"] == np.float32(CLIP)
        assert set(np.unique(inputs["weights"])) <= {np.float32(0.0), np.float32(1 / 20)}
        for name, value in clipped_mean(inputs, CLIP).items():
            expected[name] -= 0.5 * value
    for name, value in LAYOUT.unpack(found.packed).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


@pytest.mark.skipif(
    "train_private" not in TINY_MANIFEST.signatures, reason="the fixture's file was exported without train_private"
)
def test_the_interpreters_private_training_is_the_numpy_engines():
    plan = private_plan(noise=NOISE, dropout=0.2)
    theirs, ours = train(plan, runner=RUNTIME.template(TINY_MANIFEST, lambda: MODEL)), train(plan)
    for name, value in ours.packed.items():
        np.testing.assert_allclose(theirs.packed[name], value, atol=2e-6, err_msg=name)


def test_noise_is_added_to_every_value_of_every_tensor_once_a_step_and_is_the_devices():
    watcher, plan = Watcher(), private_plan(noise=NOISE)
    found = train(plan, runner=watcher)
    deviation = NOISE * np.float32(CLIP) / 16
    assert noise_deviation(plan, MANIFEST) == pytest.approx(deviation)
    befores, steps_noise = [inputs for _, inputs in watcher.calls], []
    for number, inputs in enumerate(befores):
        after = befores[number + 1] if number + 1 < len(befores) else found.packed
        moved = {name: (np.float64(inputs[name]) - after[name]) / 0.5 for name in PACKED}
        assert (moved["output_rows"][:, -1] == 0.0).all()
        moved = LAYOUT.unpack({name: value.astype(np.float32) for name, value in moved.items()})
        noise = {name: moved[name] - value for name, value in clipped_mean(inputs, CLIP).items()}
        for name, value in noise.items():
            standard = value.ravel() / deviation
            assert abs(standard.std() - 1.0) < 5 / np.sqrt(2 * standard.size), name
            assert abs(standard.mean()) < 5 / np.sqrt(standard.size), name
            assert np.unique(np.round(standard, 2)).size > min(50, standard.size // 4), name
        steps_noise.append(noise["kernel"].ravel())
    # What two steps share would be known from their difference.
    assert abs(np.corrcoef(steps_noise)[~np.eye(len(steps_noise), dtype=bool)]).max() < 0.1


def test_the_noise_does_not_come_from_the_seed_that_the_aggregator_drew():
    plan = private_plan(noise=NOISE)
    one, other = train(plan), train(plan, secret=bytes(32))
    assert not np.array_equal(one.packed["projection"], other.packed["projection"])
    with pytest.raises(ValueError, match="32 bytes, got 0"):
        train(plan, secret=b"")
    # Without noise the secret is nobody's business.
    without, with_one = train(private_plan(), secret=b""), train(private_plan())
    assert np.array_equal(without.packed["projection"], with_one.packed["projection"])


def test_the_losses_of_a_noisy_training_are_not_told():
    assert result_of(train(private_plan())).loss_before > 1.0
    told = result_of(train(private_plan(noise=NOISE)))
    assert (told.loss_before, told.loss_after, told.steps, told.examples) == (0.0, 0.0, 6, 40)


@pytest.mark.parametrize("stream", [1500, 5])
def test_the_loss_of_a_private_step_is_the_mean_over_its_tokens(stream):
    rows = local_training.draw_rows(STREAM[:stream], rows=5, length=20, rng=generator(1))
    plan = private_plan()
    optimizer = local_training.LocalOptimizer(plan, MANIFEST, PACKED)
    private = Stepper(RUNNER, MANIFEST, PACKED, "train_private", optimizer, example_clip=1.0)
    exact = Stepper(RUNNER, MANIFEST, PACKED, "train")
    losses = [each.step(rows, 0.1, 0.0, generator(2)) for each in (private, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


EXTRAS = {
    "alone": (),
    "momentum": (rule("momentum", 0.9),),
    "clip and schedule": (rule("clip", 0.01), rule("schedule-cosine", 0.1)),
    "head only": (rule("freeze", 0.0, *[entry.name for entry in MANIFEST.tensors if entry.name != "output_bias"]),),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_noisy_training_that_was_stopped_and_goes_on_ends_in_the_same_bytes(name, tmp_path):
    plan = private_plan(*EXTRAS[name], noise=NOISE, dropout=0.2)
    whole = train(plan)
    for stop in (1, whole.steps - 1):
        kept = Checkpoints(tmp_path, lease="1", base_sha256="2", times_forgotten=0)
        for checkpoint in steps(RUNNER, begin(STREAM, PACKED, plan, MANIFEST, 9), plan, MANIFEST, 9, secret=SECRET):
            if checkpoint.steps == stop:
                kept.save(checkpoint)
                break
        *_, last = steps(RUNNER, kept.load(PACKED), plan, MANIFEST, 9, secret=SECRET)
        for tensor, value in whole.packed.items():
            assert last.packed[tensor].tobytes() == value.tobytes(), (stop, tensor)


def test_what_is_frozen_gets_no_noise():
    trained = train(private_plan(*EXTRAS["head only"], noise=1.0))
    before, after = LAYOUT.unpack(PACKED), LAYOUT.unpack(trained.packed)
    for name, value in before.items():
        assert (value.tobytes() == after[name].tobytes()) == (name != "output_bias"), name


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(signature="train_private"), "'train_private' needs the rule 'example-clip'"),
        (Plan(signature="train_private_b4_l8"), "'train_private_b4_l8' needs the rule 'example-clip'"),
        (Plan(signature="train_private", rules=(rule("example-noise", 1.0),)), "needs the rule 'example-clip'"),
        (Plan(signature="train", rules=(rule("example-clip", 1.0),)), "'example-clip' needs the signature"),
        (Plan(signature="train", rules=(rule("example-noise", 1.0),)), "'example-noise' needs the signature"),
        (private_plan(clip=0.0), "'example-clip' takes a value with 0 < value"),
        (private_plan(clip=float("nan")), "got nan"),
        (private_plan(noise=float("inf")), "got inf"),
        (private_plan(noise=-0.5), r"0 <= value < 1e\+06, got -0.5"),
        (
            Plan(signature="train_private", rules=(rule("clip", 1.0), rule("example-clip", 1.0))),
            "'example-clip' stands before 'clip'",
        ),
        (
            Plan(signature="train_private", rules=(rule("example-noise", 1.0), rule("example-clip", 1.0))),
            "'example-clip' stands before 'example-noise'",
        ),
        (private_plan(rule("example-clip", 2.0)), "stands in a plan once"),
        (private_plan(noise=1.0, residual_keep=0.5), "'example-noise' needs residual_keep 0, got 0.5"),
        (Plan(signature="train_b5_l8"), "the plan asks for 'train_b5_l8'"),
        (Plan(signature="evaluate"), "the plan asks for 'evaluate'"),
        (Plan(signature="train_sampled_b64_l20"), "as its batch may have targets, 600, got 64"),
    ],
)
def test_what_is_no_private_plan_or_no_variant_of_this_model_is_refused_by_name(plan, says):
    with pytest.raises(PlanRefused, match=says):
        begin(STREAM, PACKED, plan, MANIFEST, 1)


def test_a_step_without_its_clip_or_with_one_that_is_not_asked_for_is_a_mistake():
    for signature, clip in (("train_private", None), ("train", 1.0)):
        with pytest.raises(ValueError, match="a private step, and no other"):
            Stepper(RUNNER, MANIFEST, PACKED, signature, example_clip=clip)


@pytest.mark.parametrize("signature", ["train_b4_l8", "train_sampled_b4_l8", "train_private_b4_l8"])
def test_a_variant_trains_on_rows_of_its_own_length_and_batch(signature):
    rules = (rule("example-clip", 10.0),) if "private" in signature else ()
    plan = Plan(signature=signature, rows=10, epochs=2, learning_rate=0.5, dropout=0.0, rules=rules)
    watcher = Watcher()
    first = begin(STREAM, PACKED, plan, MANIFEST, 3)
    assert first.rows.shape == (10, 9) and total_steps(first, plan, MANIFEST) == 6
    *_, last = steps(watcher, first, plan, MANIFEST, 3)
    assert {name for name, _ in watcher.calls} == {signature} and last.steps == 6
    assert all(inputs["targets"].shape == (4, 8) for _, inputs in watcher.calls)
    assert last.loss_after < 7.0 and not np.array_equal(last.packed["projection"], PACKED["projection"])


def test_the_variants_step_is_the_familys_on_the_same_rows():
    rows = local_training.draw_rows(STREAM, rows=4, length=8, rng=generator(1))
    small = Stepper(RUNNER, MANIFEST, PACKED, "train_b4_l8")
    small.step(rows, 0.5, 0.0, generator(1))
    # In the family's own shape the same rows are a tenth of the batch, and step in proportion.
    padded = np.zeros((4, 21), np.int32)
    padded[:, :9] = rows
    whole = Stepper(RUNNER, MANIFEST, PACKED, "train")
    whole.step(padded, 0.5 * 10, 0.0, generator(1))
    for name, value in PACKED.items():
        np.testing.assert_allclose(small.packed[name] - value, whole.packed[name] - value, atol=2e-6, err_msg=name)


def test_an_offer_asks_for_the_family_and_a_variant_for_devices_that_know_variants():
    plain, variant = (capabilities_needed(Plan(signature=name)) for name in ("train", "train_b4_l8"))
    assert variant - plain == {"plan:variant"} and "signature:train" in variant
    private = capabilities_needed(private_plan(noise=1.0))
    assert {"signature:train_private", "rule:example-clip", "rule:example-noise"} <= private
    assert (private | variant) <= set(CAPABILITIES)
    assert {f"rule:{name}" for name in local_rules.RULES} <= set(CAPABILITIES)


def test_the_plan_that_the_page_shows_is_one_that_a_device_takes():
    page = (Path(__file__).parents[2] / "docs" / "numpy-engine.md").read_text()
    shown = page[page.index("    [plan]") :].split("\n- `example-clip`")[0]
    plan = msgspec.convert(tomllib.loads(textwrap.dedent(shown))["plan"], Plan)
    assert [each.name for each in plan.rules] == ["example-clip", "example-noise"]
    assert begin(STREAM, PACKED, plan, MANIFEST, 1).steps == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-4, 10.0), st.integers(0, 15))
def test_one_row_more_moves_the_clipped_sum_by_the_clip_norm_at_most(seed, clip, place):
    """The law that noise is measured by: neighbours differ in one row, whatever the others are."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, MANIFEST.vocabulary_words, (16, 21)).astype(np.int32)
    weights = (rng.random((16, 20)) > 0.3).astype(np.float32) / np.float32(20)
    without = weights.copy()
    without[place] = 0.0
    step = {
        "tokens": ids[:, :-1].copy(), "targets": ids[:, 1:].copy(), "output_mask": np.ones((20, 16, 16), np.float32),
        "learning_rate": np.array(1e4, np.float32), "example_clip": np.array(clip, np.float32), **PACKED,
    }  # fmt: skip
    one, other = (RUNNER.run("train_private", {**step, "weights": each}) for each in (weights, without))
    moved = {name: one[f"trained_{name}"].astype(np.float64) - other[f"trained_{name}"] for name in PACKED}
    norm = norm_of(moved) / 1e4 * 16
    assert norm <= clip * (1 + 1e-4) + 1e-9
    if one["norms"][place] > clip:
        assert norm == pytest.approx(clip, rel=1e-3)
