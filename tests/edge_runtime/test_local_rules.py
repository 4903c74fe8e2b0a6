import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import candidates, local_rules, local_training
from edge_runtime.adapters.checkpoints import Checkpoints
from edge_runtime.local_optimizer import of_rows
from edge_runtime.local_rules import PlanRefused, check_rules
from edge_runtime.local_training import begin, draw_rows, generator, result_of, steps, total_steps
from tests.edge_runtime.fakes import RUNTIME
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, PACKED, RUNNER, STREAM
from wire_contract.layout import Layout
from wire_contract.messages import LOCAL_RULES, LocalRule, Plan

TENSORS = [entry.name for entry in MANIFEST.tensors]
HEAD_ONLY = LocalRule(name="freeze", tensors=tuple(name for name in TENSORS if name != "output_bias"))


def rule(name, value=0.0, *tensors):
    return LocalRule(name=name, value=value, tensors=tensors)


EVERY_RULE = {
    "momentum": (rule("momentum", 0.9),),
    "nesterov": (rule("nesterov", 0.8),),
    "proximal": (rule("proximal", 0.5),),
    "clip": (rule("clip", 0.25),),
    "freeze": (HEAD_ONLY,),
    "schedule-linear": (rule("schedule-linear", 0.1),),
    "schedule-cosine": (rule("schedule-cosine"),),
    "warm-up": (rule("warm-up", 3),),
    "max-steps": (rule("max-steps", 4),),
    "all together": (
        rule("freeze", 0.0, TENSORS[0]), rule("proximal", 0.5), rule("clip", 0.5), rule("momentum", 0.7),
        rule("warm-up", 2), rule("schedule-cosine", 0.1), rule("max-steps", 5),
    ),
}  # fmt: skip


def plan_with(*rules, signature="train_sampled", **changes):
    settings = {"rows": 40, "epochs": 2, "learning_rate": 0.5, "dropout": 0.2, **changes}
    return Plan(signature=signature, rules=tuple(rules), **settings)


def train(plan, runner=RUNNER, seed=9):
    last = begin(STREAM, PACKED, plan, MANIFEST, seed)
    for checkpoint in steps(runner, last, plan, MANIFEST, seed):
        last = checkpoint
    return last


class Bowl:
    """A runner whose gradient is known: that of 1/2 norm(w - target)^2, whatever the text says.

    In `train` every value has it. In `train_sampled` candidates and read rows have a gradient that is a function of
    their place in the call, so that rows repeat and add up.
    """

    def __init__(self):
        rng = np.random.default_rng(4)
        self.targets = {name: rng.normal(size=value.shape) for name, value in PACKED.items()}
        self.targets["output_rows"][:, -1] = 1.0
        self.calls = []

    def run(self, name, inputs):
        rate = float(inputs["learning_rate"])
        outputs = {"loss": np.float32(1.0)}
        for tensor in ("kernel_rows", "projection", *(("output_rows",) if name == "train" else ())):
            weights = inputs[tensor].astype(np.float64)
            outputs[f"trained_{tensor}"] = (weights - rate * (weights - self.targets[tensor])).astype(np.float32)
        if name == "train_sampled":
            rows = inputs["candidate_rows"].astype(np.float64)
            said = np.sin(np.arange(rows.size).reshape(rows.shape))
            said[:, -1] = 0.0
            read = np.cos(np.arange(inputs["input_rows"].size).reshape(inputs["input_rows"].shape))
            outputs["trained_candidate_rows"] = (rows - rate * said).astype(np.float32)
            outputs["input_rows_step"] = (rate * read).astype(np.float32)
            self.calls.append((said, read))
        return outputs


class Watcher:
    """Passes calls on to a runner, and remembers the candidates and tokens of each."""

    def __init__(self, inner):
        self.inner = inner
        self.shares = []

    def run(self, name, inputs):
        self.shares.append(float(inputs["weights"].mean()))
        return self.inner.run(name, inputs)


def judged(plan, gradient_of, shares):
    """Return the weights after the plan's steps, in float64, by the formulas in `local_rules`' docstring."""
    w0 = {name: value.astype(np.float64) for name, value in PACKED.items()}
    w = {name: value.copy() for name, value in w0.items()}
    v = {name: np.zeros_like(value) for name, value in w0.items()}
    values = {each.name: each.value for each in plan.rules}
    beta = values.get("momentum", values.get("nesterov", 0.0))
    for n, share in enumerate(shares):
        eta = plan.learning_rate * min(1.0, (n + 1) / values.get("warm-up", 1.0))
        if "schedule-linear" in values:
            eta *= 1 + (values["schedule-linear"] - 1) * n / len(shares)
        if "schedule-cosine" in values:
            low = values["schedule-cosine"]
            eta *= low + 0.5 * (1 - low) * (1 + math.cos(n * math.pi / len(shares)))
        d = gradient_of(n, w)
        for each in plan.rules:
            if each.name == "freeze":
                for tensor in each.tensors:
                    d = zeroed(d, tensor)
            if each.name == "proximal":
                d = {name: d[name] + each.value * (w[name] - w0[name]) for name in d}
            if each.name == "clip":
                norm = math.sqrt(sum(float((value**2).sum()) for value in d.values()))
                d = {name: value * min(1.0, each.value / norm) for name, value in d.items()}
        v = {name: beta * v[name] + share * d[name] for name in d}
        move = {name: share * d[name] + beta * v[name] for name in d} if "nesterov" in values else v
        w = {name: w[name] - eta * move[name] for name in w}
    return w


def zeroed(packed, tensor):
    layout = Layout.of(MANIFEST)
    marks = {e.name: np.full(e.shape, float(e.name != tensor), np.float32) for e in MANIFEST.tensors}
    return {name: value * layout.pack(marks)[name] for name, value in packed.items()}


@pytest.mark.parametrize("name", EVERY_RULE)
def test_a_rule_does_what_its_formula_says_in_float64(name):
    plan = plan_with(*EVERY_RULE[name], signature="train", dropout=0.0)
    bowl = Bowl()
    watcher = Watcher(bowl)
    found = train(plan, watcher)
    expected = judged(plan, lambda n, w: {t: w[t] - bowl.targets[t] for t in w}, watcher.shares)
    assert found.steps == len(watcher.shares) == min(6, {"max-steps": 4, "all together": 5}.get(name, 6))
    for tensor, value in expected.items():
        np.testing.assert_allclose(found.packed[tensor], value, atol=3e-6, err_msg=tensor)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "proximal", "clip", "freeze", "all together"])
def test_a_rule_does_the_same_where_only_some_rows_have_a_gradient(name):
    plan = plan_with(*EVERY_RULE[name], dropout=0.0)
    bowl = Bowl()
    watcher = Watcher(bowl)
    found = train(plan, watcher)
    rows = draw_rows(STREAM, rows=40, length=20, rng=generator(9, 0))

    def gradient_of(n, w):
        said, read = bowl.calls[n]
        epoch, place = divmod(n, 3)
        batch = rows[generator(9, 1, epoch).permutation(40)[place * 16 : place * 16 + 16]]
        padded = np.zeros((16, 21), np.int32)
        padded[: len(batch)] = batch
        random = generator(9, 2, n)
        targets = padded[:, 1:]
        ids = candidates.choose(targets, targets > 0, size=512, words=600, rng=random).ids
        output_rows = np.zeros_like(w["output_rows"])
        for place, word in enumerate(ids):
            output_rows[word] += said[place]
        for t in range(20):
            for b in range(16):
                output_rows[padded[b, t], : read.shape[1]] += read[t * 16 + b]
        dense = {t: w[t] - bowl.targets[t] for t in ("kernel_rows", "projection")}
        return {**dense, "output_rows": output_rows}

    expected = judged(plan, gradient_of, watcher.shares)
    for tensor, value in expected.items():
        np.testing.assert_allclose(found.packed[tensor], value, atol=2e-5, rtol=2e-5, err_msg=tensor)


@pytest.mark.parametrize("signature", ["train", "train_sampled"])
def test_the_gradient_that_the_rules_see_is_the_graphs_own(signature):
    # A bound that nothing reaches leaves the plain step, up to float32's rounding of the difference.
    plain = train(plan_with(signature=signature))
    ruled = train(plan_with(rule("clip", 1e5), signature=signature))
    for tensor, value in plain.packed.items():
        np.testing.assert_allclose(ruled.packed[tensor], value, atol=2e-6, err_msg=tensor)
    assert ruled.loss_before == plain.loss_before


@pytest.mark.parametrize("signature", ["train", "train_sampled"])
@pytest.mark.parametrize("name", EVERY_RULE)
def test_a_ruled_training_that_was_stopped_anywhere_ends_in_the_same_bytes(name, signature, tmp_path):
    plan = plan_with(*EVERY_RULE[name], signature=signature)
    whole = train(plan)
    for stop in range(1, whole.steps):
        for checkpoint in steps(RUNNER, begin(STREAM, PACKED, plan, MANIFEST, 9), plan, MANIFEST, 9):
            if checkpoint.steps == stop:
                Checkpoints(tmp_path, lease="1", base_sha256="2", times_forgotten=0).save(checkpoint)
                break
        resumed = Checkpoints(tmp_path, lease="1", base_sha256="2", times_forgotten=0).load(PACKED)
        assert (resumed.velocity is not None) == local_rules.has_velocity(plan)
        *_, last = steps(RUNNER, resumed, plan, MANIFEST, 9)
        for tensor, value in whole.packed.items():
            assert last.packed[tensor].tobytes() == value.tobytes(), (stop, tensor)
        assert result_of(last).steps == whole.steps


@pytest.mark.parametrize("signature", ["train", "train_sampled"])
@pytest.mark.parametrize("extra", [(), (rule("momentum", 0.9),), (rule("proximal", 0.5), rule("clip", 0.1))])
def test_head_only_leaves_every_other_tensor_bit_for_bit(signature, extra):
    layout = Layout.of(MANIFEST)
    before, after = (
        layout.unpack(PACKED),
        layout.unpack(train(plan_with(HEAD_ONLY, *extra, signature=signature)).packed),
    )
    for name in TENSORS:
        assert (before[name].tobytes() == after[name].tobytes()) == (name != "output_bias"), name


def test_rows_that_no_batch_touched_stay_bit_for_bit_under_every_rule():
    stream = [int(i) for i in np.random.default_rng(1).integers(1, 50, 300)]
    for name, rules in EVERY_RULE.items():
        plan = plan_with(*rules, rows=4, epochs=3)
        begun = begin(stream, PACKED, plan, MANIFEST, 3)
        touched = set(begun.rows.reshape(-1).tolist())
        for n in range(total_steps(begun, plan, MANIFEST)):
            order = generator(3, 1, n).permutation(len(begun.rows))
            targets = np.zeros((16, 20), np.int32)
            targets[: len(order)] = begun.rows[order][:, 1:]
            random = generator(3, 2, n)
            local_training.output_mask((20, 16, 16), plan.dropout, random)
            touched |= set(candidates.choose(targets, targets > 0, size=512, words=600, rng=random).ids.tolist())
        *_, last = steps(RUNNER, begun, plan, MANIFEST, 3)
        untouched = np.setdiff1d(np.arange(600), list(touched))
        assert len(untouched), name
        before, after = (each["output_rows"][untouched] for each in (PACKED, last.packed))
        assert before.tobytes() == after.tobytes(), name


def test_a_schedule_of_the_rate_alone_leaves_the_step_to_the_graph():
    assert not local_rules.directs(plan_with(rule("schedule-linear"), rule("warm-up", 2), rule("max-steps", 3)))
    rates = []

    class Rates:
        def run(self, name, inputs):
            rates.append(float(inputs["learning_rate"]) / float(inputs["weights"].mean()))
            return RUNNER.run(name, inputs)

    train(plan_with(rule("schedule-linear"), learning_rate=0.6), Rates())
    np.testing.assert_allclose(rates, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_a_schedule_is_stretched_over_the_steps_that_happen():
    plan = plan_with(rule("schedule-cosine"), rule("max-steps", 4))
    assert total_steps(begin(STREAM, PACKED, plan, MANIFEST, 9), plan, MANIFEST) == 4
    assert [round(local_rules.rate(plan, n, 4), 6) for n in range(4)] == [0.5, 0.426777, 0.25, 0.073223]


@given(st.integers(1, 500), st.floats(0.0, 0.99), st.integers(1, 600))
def test_a_rate_lies_above_zero_and_never_above_the_plans(steps_, low, warm_up):
    for name in ("schedule-linear", "schedule-cosine"):
        plan = plan_with(rule(name, low), rule("warm-up", warm_up))
        rates = [local_rules.rate(plan, n, steps_) for n in range(steps_)]
        assert all(0.0 < each <= 0.5 for each in rates)


@given(st.integers(0, 499), st.integers(1, 500))
def test_without_rules_the_rate_is_exactly_the_plans(step, steps_):
    assert local_rules.rate(plan_with(learning_rate=0.3), step, steps_) == 0.3


NAN = float("nan")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([rule("adam", 0.9)], "'adam'"),
        ([rule("momentum", 0.9), rule("momentum", 0.8)], "once, got 'momentum' twice"),
        ([rule("momentum", 0.0)], "0 < value < 1, got 0.0"),
        ([rule("momentum", 1.0)], "got 1.0"),
        ([rule("momentum", NAN)], "got nan"),
        ([rule("clip", 0.0)], "'clip' takes a value"),
        ([rule("proximal", 0.0)], "'proximal' takes a value"),
        ([rule("proximal", 3.0)], "learning rate x value <= 1, got 0.5 x 3.0"),
        ([rule("warm-up", 2.5)], "whole number of steps, got 2.5"),
        ([rule("warm-up", 0.0)], "'warm-up' takes a value"),
        ([rule("max-steps", 0.5)], "'max-steps' takes a value"),
        ([rule("schedule-linear", 1.0)], "'schedule-linear' takes a value"),
        ([rule("freeze", 0.0)], "names one tensor or more"),
        ([rule("freeze", 0.0, "head")], r"got \['head'\]"),
        ([rule("freeze", 0.0, TENSORS[0], TENSORS[0])], "each once"),
        ([rule("freeze", 0.0, *TENSORS)], "leaves a tensor to train"),
        ([rule("freeze", 1.0, TENSORS[0])], "'freeze' takes no value, got 1.0"),
        ([rule("clip", 1.0, TENSORS[0])], "'clip' is about no tensors"),
        ([rule("momentum", 0.9), rule("nesterov", 0.9)], "exclude each other"),
        ([rule("schedule-linear"), rule("warm-up", 2), rule("schedule-cosine")], "exclude each other"),
        ([rule("momentum", 0.9), rule("clip", 1.0)], "'clip' stands before 'momentum'"),
        ([rule("clip", 1.0), HEAD_ONLY], "'freeze' stands before 'clip'"),
    ],
)
def test_what_cannot_be_done_or_is_said_twice_is_refused_by_name(rules, says):
    plan = plan_with(*rules)
    with pytest.raises(PlanRefused, match=says):
        check_rules(plan, TENSORS)
    with pytest.raises(PlanRefused, match=says):
        begin(STREAM, PACKED, plan, MANIFEST, 1)


def test_clip_and_proximal_stand_in_either_order_and_mean_different_things():
    one, other = rule("clip", 0.2), rule("proximal", 1.0)
    a, b = train(plan_with(one, other)), train(plan_with(other, one))
    assert not np.array_equal(a.packed["kernel_rows"], b.packed["kernel_rows"])


def test_every_rule_is_a_capability_and_every_capability_a_rule():
    assert {name.removeprefix("rule:") for name in local_rules.CAPABILITIES} == {*local_rules.RULES, "sgd"}
    # What stands and falls with `train_private` has a suite of its own, test_private_training.
    private = {"example-clip", "example-noise"}
    assert set(EVERY_RULE) - {"all together"} | private == set(local_rules.RULES) == set(LOCAL_RULES)


def test_the_names_are_to_be_had_without_numpy():
    code = "import sys, edge_runtime.local_rules as r; assert r.CAPABILITIES; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_rows_that_repeat_add_up(ids):
    ids = np.array(ids, np.int64)
    values = np.arange(1, 2 * len(ids) + 1, dtype=np.float32).reshape(-1, 2)
    summed = of_rows((7, 3), [(ids, values), (ids[:1], np.ones((1, 3), np.float32))])
    dense, expected = np.zeros((7, 3), np.float32), np.zeros((7, 3))
    summed.add_to(dense)
    for place, row in enumerate(ids):
        expected[row, :2] += values[place]
    expected[ids[0]] += 1
    assert np.array_equal(dense, expected) and len(set(summed.rows.tolist())) == len(summed.rows)


def test_the_same_file_trains_alike_in_a_runner_of_its_own():
    plan = plan_with(rule("momentum", 0.9))
    own = RUNTIME.version(MANIFEST, lambda: MODEL)
    assert np.array_equal(train(plan, own).packed["projection"], train(plan).packed["projection"])
