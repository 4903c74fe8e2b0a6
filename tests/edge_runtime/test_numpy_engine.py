"""The engine for machines without an interpreter, judged by float64 formulas and by the interpreter that is here."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters.numpy_runtime import NumpyRuntime
from edge_runtime.evaluation import score
from edge_runtime.numpy_engine.inference import likeliest
from edge_runtime.numpy_engine.output_layer import OutputLayer
from edge_runtime.ports import RuntimeFailed
from tests.edge_runtime.fakes import RUNTIME
from tests.edge_runtime.numpy_model import logits_of, norm_of, row_gradient, score_of
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, PACKED, STREAM
from wire_contract.layout import Layout
from wire_contract.manifest import ARRAY_FAMILY, SignatureSpec, signature_family
from wire_contract.patch import read_tensors

WORDS, WIDTH, CELLS = MANIFEST.vocabulary_words, 16, 72
BATCH, LENGTH = 16, 20
RATE = 1e4
TOLERANCE = 5e-6
LAYOUT = Layout.of(MANIFEST)
# Untrained weights move little: twice as large, every path of the gradient counts.
TENSORS = {name: value * np.float32(2.0) for name, value in read_tensors(MODEL, MANIFEST).items()}
LARGE = LAYOUT.pack(TENSORS)
VARIANTS = {
    "train_private": SignatureSpec(batch=BATCH, length=LENGTH),
    "train_b4_l9": SignatureSpec(batch=4, length=9),
    "train_private_b1_l12": SignatureSpec(batch=1, length=12),
    "train_sampled_b3_l5": SignatureSpec(batch=3, length=5, candidates=40),
}
WIDER = msgspec.structs.replace(MANIFEST, signatures={**MANIFEST.signatures, **VARIANTS})
ENGINE = NumpyRuntime().version(WIDER, lambda: MODEL)


def batch_of(rng, batch=BATCH, length=LENGTH, words=WORDS):
    """Ids that repeat as in text, some positions without weight, one row without any, half the state masked."""
    ids = (words * rng.random((batch, length + 1)) ** 2).astype(np.int32)
    weights = (rng.random((batch, length)) > 0.2).astype(np.float32)
    if batch > 3:
        weights[3] = 0.0
    mask = ((rng.random((length, WIDTH, batch)) > 0.3) / 0.7).astype(np.float32)
    return {
        "tokens": ids[:, :-1].copy(), "targets": ids[:, 1:].copy(), "weights": weights,
        "learning_rate": np.array(RATE, np.float32), "output_mask": mask,
    }  # fmt: skip


def row_gradients(inputs):
    return [
        row_gradient(TENSORS, *(inputs[name][b] for name in ("tokens", "targets", "weights")),
                     inputs["output_mask"][:, :, b])
        for b in range(len(inputs["tokens"]))
    ]  # fmt: skip


def exposed(outputs, names=("output_rows", "kernel_rows", "projection")):
    """Return the gradient that a step of a huge rate shows, by fleet tensor."""
    steps = {
        name: ((LARGE[name].astype(np.float64) - outputs[f"trained_{name}"]) / RATE).astype(np.float32)
        for name in names
    }
    return LAYOUT.unpack(steps)


def assert_near(found, expected, tolerance=TOLERANCE):
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


def test_the_judges_own_gradient_is_the_slope_of_its_loss():
    rng = np.random.default_rng(3)
    inputs = batch_of(rng, batch=1, length=7)
    row = [inputs[name][0] for name in ("tokens", "targets", "weights")] + [inputs["output_mask"][:, :, 0]]
    tensors = {name: value.astype(np.float64) for name, value in TENSORS.items()}
    _, gradient = row_gradient(tensors, *row)
    for name in tensors:
        direction = rng.normal(size=tensors[name].shape)
        losses = [row_gradient({**tensors, name: tensors[name] + e * direction}, *row)[0] for e in (1e-6, -1e-6)]
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float((gradient[name] * direction).sum()), rel=1e-6)


@pytest.mark.parametrize(("name", "batch", "length"), [("train", BATCH, LENGTH), ("train_b4_l9", 4, 9)])
def test_an_exact_steps_gradient_is_float64s(name, batch, length):
    inputs = batch_of(np.random.default_rng(1), batch, length)
    outputs = ENGINE.run(name, {**inputs, **LARGE})
    rows, total = row_gradients(inputs), inputs["weights"].sum()
    assert_near(exposed(outputs), {t: sum(g[t] for _, g in rows) / total for t in TENSORS})
    assert outputs["loss"] == pytest.approx(sum(loss for loss, _ in rows) / total, rel=1e-6)
    assert (outputs["trained_output_rows"][:, -1] == 1.0).all()


def test_a_sampled_steps_gradient_is_that_of_the_same_network_over_the_candidates():
    rng = np.random.default_rng(2)
    inputs = batch_of(rng, 3, 5)
    chosen = np.sort(rng.permutation(WORDS)[:40])
    shift = rng.uniform(0.0, 6.0, 40).astype(np.float32)
    rows = LARGE["output_rows"][chosen].copy()
    rows[:, WIDTH] -= shift
    tokens = inputs.pop("tokens")
    inputs["targets"] = rng.integers(0, 40, (3, 5)).astype(np.int32)
    given_rows = np.ascontiguousarray(LARGE["output_rows"][tokens.T.reshape(-1), :WIDTH])
    outputs = ENGINE.run("train_sampled_b3_l5", {
        **inputs, "input_rows": given_rows, "candidate_rows": rows,
        "kernel_rows": LARGE["kernel_rows"], "projection": LARGE["projection"],
    })  # fmt: skip
    # Read words behind the candidates, so that one embedding holds both and their gradients stay apart.
    tensors = {
        **TENSORS, "embedding": np.concatenate([rows[:, :WIDTH], given_rows]),
        "output_bias": np.concatenate([rows[:, WIDTH], np.full(15, -1e9, np.float32)]),
    }  # fmt: skip
    total, grads, loss = inputs["weights"].sum(), {}, 0.0
    for b in range(3):
        read = 40 + np.arange(5) * 3 + b
        row = row_gradient(tensors, read, inputs["targets"][b], inputs["weights"][b], inputs["output_mask"][:, :, b])
        loss += row[0] / total
        grads = {name: grads.get(name, 0.0) + value / total for name, value in row[1].items()}
    moved = (rows.astype(np.float64) - outputs["trained_candidate_rows"]) / RATE
    found = {
        **exposed(outputs | {"trained_output_rows": LARGE["output_rows"]}), "embedding": moved[:, :WIDTH],
        "output_bias": moved[:, WIDTH], "read": outputs["input_rows_step"] / RATE,
    }  # fmt: skip
    expected = {
        **grads, "embedding": grads["embedding"][:40], "output_bias": grads["output_bias"][:40],
        "read": grads["embedding"][40:],
    }  # fmt: skip
    assert_near(found, expected)
    assert outputs["loss"] == pytest.approx(loss, rel=1e-6)
    assert (moved[:, -1] == 0.0).all()


@pytest.mark.parametrize(("name", "batch", "length"), [("train_private", 16, 20), ("train_private_b1_l12", 1, 12)])
def test_a_private_step_clips_each_rows_own_gradient_over_all_tensors_together(name, batch, length):
    inputs = batch_of(np.random.default_rng(4), batch, length)
    inputs["weights"] /= np.float32(length)
    rows = row_gradients(inputs)
    norms = np.array([norm_of(gradient) for _, gradient in rows])
    clip = np.median(norms[norms > 0]) * 0.999
    outputs = ENGINE.run(name, {**inputs, **LARGE, "example_clip": np.array(clip, np.float32)})
    np.testing.assert_allclose(outputs["norms"], norms, rtol=TOLERANCE, atol=1e-30)
    factors = [min(1.0, clip / norm) if norm else 1.0 for norm in norms]
    assert min(factors) < 1.0 and (batch == 1 or max(factors) == 1.0)
    clipped = {t: sum(f * g[t] for f, (_, g) in zip(factors, rows, strict=True)) / batch for t in TENSORS}
    assert_near(exposed(outputs), clipped)
    assert norm_of(exposed(outputs)) <= clip * (1 + 1e-5)
    total = max(1.0, inputs["weights"].sum())
    assert outputs["loss"] == pytest.approx(sum(loss for loss, _ in rows) / total, rel=1e-6)


def test_a_row_without_weight_moves_nothing_and_is_no_nan():
    inputs = batch_of(np.random.default_rng(5))
    inputs["weights"][:] = 0.0
    outputs = ENGINE.run("train_private", {**inputs, **LARGE, "example_clip": np.array(0.5, np.float32)})
    assert (outputs["norms"] == 0.0).all() and outputs["loss"] == 0.0
    for name, value in LARGE.items():
        assert np.array_equal(outputs[f"trained_{name}"], value)


def test_private_and_exact_steps_agree_where_no_row_reaches_the_clip():
    inputs = batch_of(np.random.default_rng(6))
    inputs["learning_rate"] = np.array(0.5, np.float32)
    exact = ENGINE.run("train", {**inputs, **LARGE})
    # sum w L / sum w at a rate, and sum over rows / batch at another one.
    rate = 0.5 * BATCH / inputs["weights"].sum()
    private = ENGINE.run(
        "train_private",
        {**inputs, **LARGE, "learning_rate": np.array(rate, np.float32), "example_clip": np.array(1e6, np.float32)},
    )
    for name, value in LARGE.items():
        np.testing.assert_allclose(
            private[f"trained_{name}"] - value, exact[f"trained_{name}"] - value, atol=5e-7, err_msg=name
        )


def call_of(name, spec):
    """Return arguments of a signature or a variant of one."""
    rng = np.random.default_rng(7)
    batch, length, family = spec.batch, spec.length, signature_family(name)
    exact = {**batch_of(rng, batch, length), **PACKED, "learning_rate": np.array(0.5, np.float32)}
    step = {name: exact[name] for name in ("weights", "learning_rate", "output_mask", "kernel_rows", "projection")}
    states = {"state_h": rng.normal(size=(WIDTH, batch)), "state_c": rng.normal(size=(CELLS, batch))}
    states = {name: value.astype(np.float32) for name, value in states.items()}
    if family == "train":
        return exact
    if family == "train_private":
        return {**exact, "example_clip": np.array(0.02, np.float32)}
    if family == "train_sampled":
        return {
            **step, "targets": exact["targets"] % spec.candidates,
            "candidate_rows": PACKED["output_rows"][: spec.candidates].copy(),
            "input_rows": np.ascontiguousarray(PACKED["output_rows"][exact["tokens"].T.reshape(-1), :WIDTH]),
        }  # fmt: skip
    if family == "evaluate":
        return {**{name: exact[name] for name in ("tokens", "targets", "weights", *PACKED)}, **states}
    if family == "suggest":
        one = {name: np.ascontiguousarray(value.T) for name, value in states.items()}
        return {"token": np.array([9], np.int32), **one}
    return {"tokens": np.array(MANIFEST.golden.tokens, np.int32)}


@pytest.mark.parametrize("name", sorted(MANIFEST.signatures))
def test_names_shapes_types_and_values_are_the_interpreters(name):
    inputs = call_of(name, MANIFEST.signatures[name])
    theirs = RUNTIME.version(MANIFEST, lambda: MODEL).run(name, inputs)
    ours = ENGINE.run(name, inputs)
    assert {key: (np.shape(value), np.asarray(value).dtype) for key, value in ours.items()} == {
        key: (np.shape(value), np.asarray(value).dtype) for key, value in theirs.items()
    }
    int8 = name.startswith("suggest")
    for key, value in theirs.items():
        if key == "ids":
            continue
        tolerance = MANIFEST.golden.logit_tolerance if int8 else 3e-6
        np.testing.assert_allclose(ours[key], value, atol=tolerance, rtol=tolerance, err_msg=key)


def test_the_first_three_are_the_interpreters_where_the_margin_is_wider_than_int8s_error():
    # The largest difference of a log probability over these contexts is 0.006.
    theirs, margin, compared = RUNTIME.version(MANIFEST, lambda: MODEL), 0.02, 0
    for number in range(60):
        context = np.random.default_rng(number).integers(4, WORDS, LENGTH).astype(np.int32)
        ours = ENGINE.run("suggest_context", {"tokens": context})
        best = np.sort(ours["log_probs"])[::-1][:4]
        if -np.diff(best).max() > margin:
            compared += 1
            assert ours["ids"].tolist() == theirs.run("suggest_context", {"tokens": context})["ids"].tolist()
    assert compared > 10


def test_suggestions_are_those_of_float64_on_the_dequantized_weights():
    tensors = read_tensors(MODEL, MANIFEST)
    context = [11, 50, 7, 300, 4]
    logits = logits_of(tensors, context)[-1, 4:]
    expected = logits - np.log(np.exp(logits).sum())
    padded = np.array([0] * (LENGTH - len(context)) + context, np.int32)
    whole = ENGINE.run("suggest_context", {"tokens": padded})
    np.testing.assert_allclose(whole["log_probs"][4:], expected, atol=2e-6)
    assert (whole["log_probs"][:4] == np.float32(-1e9)).all()
    assert whole["ids"].tolist() == (np.argsort(-expected)[:3] + 4).tolist()
    state = {"state_h": np.zeros((1, WIDTH), np.float32), "state_c": np.zeros((1, CELLS), np.float32)}
    for token in context:
        step = ENGINE.run("suggest", {"token": np.array([token], np.int32), **state})
        state = {"state_h": step["next_state_h"], "state_c": step["next_state_c"]}
    assert step["ids"].tolist() == whole["ids"].tolist()
    np.testing.assert_allclose(step["scores"], np.exp(np.sort(expected)[::-1][:3]), rtol=1e-5)


def test_a_pad_inside_a_context_empties_the_state_as_the_graph_does():
    context = np.array(MANIFEST.golden.tokens, np.int32)
    context[10] = 0
    after = np.concatenate([np.zeros(11, np.int32), context[11:]])
    assert np.array_equal(
        ENGINE.run("suggest_context", {"tokens": context})["log_probs"],
        ENGINE.run("suggest_context", {"tokens": after})["log_probs"],
    )


def test_recall_on_streams_is_what_counting_word_by_word_gives():
    streams = [STREAM[:70], STREAM[100:131], STREAM[200:203], [5]]
    found = score(ENGINE, MANIFEST.signatures["evaluate"], PACKED, streams)
    count, hits1, hits3, loss = score_of(read_tensors(MODEL, MANIFEST), streams)
    assert (found.count, found.hits1, found.hits3) == (count, hits1, hits3)
    assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("factor", [5.0, 100.0, 1e6])
def test_weights_that_explode_overflow_nothing(factor):
    inputs = {**batch_of(np.random.default_rng(8)), "learning_rate": np.array(0.1, np.float32)}
    rows = LARGE["output_rows"] * np.float32(factor)
    rows[:, -1] = 1.0
    for name in ("train", "train_private"):
        given_ = {**inputs, **LARGE, "output_rows": rows}
        if name == "train_private":
            given_["example_clip"] = np.array(1.0, np.float32)
        outputs = ENGINE.run(name, given_)
        assert all(np.isfinite(value).all() for value in outputs.values()), name


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(0, 700 * 1000), st.integers(0, 2**32))
def test_chunks_and_what_is_kept_of_them_change_nothing_but_the_last_bits(chunk_words, kept_bytes, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, 10)).astype(np.float32)
    rows[:, -1] = 1.0
    states, targets = rng.normal(size=(8, 12)).astype(np.float32), rng.integers(0, 300, 12).astype(np.int32)
    share = rng.random(12).astype(np.float32)
    one = OutputLayer(rows, states, targets, chunk_words=300)
    many = OutputLayer(rows, states, targets, chunk_words=chunk_words, kept_bytes=kept_bytes)
    np.testing.assert_allclose(many.losses(), one.losses(), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(many.states_gradient(share), one.states_gradient(share), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
        many.stepped_rows(share, np.float32(0.5)), one.stepped_rows(share, np.float32(0.5)), rtol=1e-5, atol=2e-6
    )
    assert sum(q.nbytes for q in many._kept) <= kept_bytes


@given(st.lists(st.integers(-4, 4), min_size=3, max_size=50))
def test_of_equal_logits_the_lower_place_comes_first(values):
    logits = np.array(values, np.float32)
    assert likeliest(logits).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:3]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_state_that_overflowed_still_gives_three_words(value):
    state = {"state_h": np.full((1, WIDTH), value, np.float32), "state_c": np.full((1, CELLS), value, np.float32)}
    outputs = ENGINE.run("suggest", {"token": np.array([9], np.int32), **state})
    assert len(set(outputs["ids"].tolist())) == 3 and (outputs["ids"] >= 4).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": np.zeros((16, 20), np.int64)}, "tokens is int32 of shape"),
        ({"tokens": np.zeros((16, 19), np.int32)}, r"\(16, 20\), got int32 of shape \(16, 19\)"),
        ({"tokens": np.full((16, 20), -1, np.int32)}, "ids from 0 to 599, got -1"),
        ({"targets": np.full((16, 20), WORDS, np.int32)}, "ids from 0 to 599, got 600"),
        ({"learning_rate": np.array([0.5], np.float32)}, "learning_rate is float32 of shape"),
        ({"learning_rate": 0.5}, "learning_rate is float32"),
        ({"tokens": [[1, 2], [3]]}, "tokens is int32 of shape .*, got no array"),
        ({"weights": "many"}, "weights is float32"),
        ({"extra": np.zeros(1, np.float32)}, r"unknown \['extra'\]"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_the_rule_and_what_came(change, says):
    with pytest.raises(RuntimeFailed, match=f"'train' does not run: .*{says}"):
        ENGINE.run("train", {**batch_of(np.random.default_rng(1)), **PACKED, **change})


def test_a_missing_argument_is_named():
    inputs = batch_of(np.random.default_rng(1))
    with pytest.raises(RuntimeFailed, match=r"missing are \['kernel_rows', 'output_rows', 'projection'\]"):
        ENGINE.run("train", inputs)


def test_another_family_and_another_cut_of_the_weights_are_refused_by_name():
    runtime = NumpyRuntime()
    arrays = msgspec.structs.replace(MANIFEST, family=ARRAY_FAMILY)
    other = msgspec.structs.replace(MANIFEST, train_inputs=MANIFEST.train_inputs[:2])
    for open_ in (runtime.template, runtime.version):
        with pytest.raises(RuntimeFailed, match="runs the next-word family, got arrays: install ai-edge-litert"):
            open_(arrays, lambda: MODEL)
        with pytest.raises(RuntimeFailed, match="knows the train inputs"):
            open_(other, lambda: MODEL)


def test_a_call_changes_none_of_its_arguments():
    for name, spec in WIDER.signatures.items():
        inputs = call_of(name, spec)
        before = {key: np.array(value) for key, value in inputs.items()}
        outputs = ENGINE.run(name, inputs)
        for key, value in inputs.items():
            assert np.array_equal(value, before[key]), (name, key)
            assert not any(np.shares_memory(value, output) for output in outputs.values()), (name, key)
