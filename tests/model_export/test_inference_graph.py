"""`evaluate`, `suggest` and `suggest_context`, held against plain numpy."""

import numpy as np
import pytest

from model_export import reference
from model_export.bundle import LOSS_TOLERANCE
from model_export.network import BATCH, LENGTH
from wire_contract.patch import read_tensors

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


@pytest.fixture(scope="module")
def version(bundle_parts):
    """(interpreter on the patched file, the dequantized weights in it)."""
    from model_export.interpreter import Interpreter

    model, manifest = bundle_parts
    return Interpreter(model), read_tensors(model, manifest)


def evaluate(interpreter, layout, size, tensors, tokens, targets, weights, state=None):
    h, c = state or (np.zeros((size.width, BATCH), np.float32), np.zeros((size.cells, BATCH), np.float32))
    return interpreter.run(
        "evaluate",
        {"tokens": tokens, "targets": targets, "weights": weights, "state_h": h, "state_c": c, **layout.pack(tensors)},
    )


def likely_targets(tensors, tokens, rng, *, first, last):
    logits = reference.logits_of(tensors, tokens)
    order = np.argsort(-logits, axis=-1)
    pick = rng.integers(first, last, (LENGTH, BATCH, 1))
    return np.take_along_axis(order, pick, axis=-1)[..., 0].T.astype(np.int32)


def test_hits_loss_and_count_are_numpys(interpreter, tensors, layout, size):
    rng = np.random.Generator(np.random.PCG64(1))
    tokens = rng.integers(0, size.words, (BATCH, LENGTH)).astype(np.int32)
    targets = likely_targets(tensors, tokens, rng, first=0, last=6)
    weights = rng.choice([0.0, 1.0, 0.5], (BATCH, LENGTH)).astype(np.float32)
    got = evaluate(interpreter, layout, size, tensors, tokens, targets, weights)
    expected = reference.score(reference.logits_of(tensors, tokens), targets, weights)
    assert 0 < expected.hits1 < expected.hits3 < expected.count
    assert float(got["hits1"]) == pytest.approx(expected.hits1)
    assert float(got["hits3"]) == pytest.approx(expected.hits3)
    assert float(got["count"]) == pytest.approx(expected.count)
    assert float(got["loss"]) == pytest.approx(expected.loss, rel=1e-6)


def test_a_special_is_never_a_hit_and_never_in_the_way(interpreter, tensors, layout, size):
    biased = {**tensors, "output_bias": tensors["output_bias"].copy()}
    biased["output_bias"][:4] = 30.0
    rng = np.random.Generator(np.random.PCG64(2))
    tokens = rng.integers(0, size.words, (BATCH, LENGTH)).astype(np.int32)
    ones = np.ones((BATCH, LENGTH), np.float32)
    specials = np.full((BATCH, LENGTH), 2, np.int32)
    assert float(evaluate(interpreter, layout, size, biased, tokens, specials, ones)["hits3"]) == 0.0
    # The four specials are ahead of every word now; the best word is fifth and still a hit.
    best = likely_targets(biased, tokens, rng, first=4, last=5)
    assert float(evaluate(interpreter, layout, size, biased, tokens, best, ones)["hits1"]) == BATCH * LENGTH


def test_the_state_carries_on_from_one_call_to_the_next(interpreter, tensors, layout, size):
    rng = np.random.Generator(np.random.PCG64(3))
    text = rng.integers(0, size.words, (BATCH, 2 * LENGTH)).astype(np.int32)
    ones = np.ones((BATCH, LENGTH), np.float32)
    first = evaluate(interpreter, layout, size, tensors, text[:, :LENGTH], text[:, :LENGTH], ones)
    state = (first["next_state_h"], first["next_state_c"])
    second = evaluate(interpreter, layout, size, tensors, text[:, LENGTH:], text[:, LENGTH:], ones, state)
    whole = reference.logits_of(tensors, text)[LENGTH:]
    got = second["logits"].reshape(LENGTH, BATCH, size.words)
    np.testing.assert_allclose(got, whole, atol=2e-5)


def test_the_synthetic_check_gives_the_loss_that_the_manifest_states(interpreter, bundle_parts, size):
    _, manifest = bundle_parts
    tokens, targets = reference.synthetic_batch(size.words)
    outputs = interpreter.run(
        "evaluate",
        {
            "tokens": tokens,
            "targets": targets,
            "weights": np.ones((BATCH, LENGTH), np.float32),
            "state_h": np.zeros((size.width, BATCH), np.float32),
            "state_c": np.zeros((size.cells, BATCH), np.float32),
            **reference.synthetic_train_inputs(size),
        },
    )
    assert abs(float(outputs["loss"] / outputs["count"]) - manifest.golden.template_loss) < LOSS_TOLERANCE / 10


def test_the_ones_column_does_not_change_an_evaluation(interpreter, tensors, layout, size):
    tokens, targets = reference.synthetic_batch(size.words)
    packed = layout.pack(tensors)
    common = {
        "tokens": tokens,
        "targets": targets,
        "weights": np.ones((BATCH, LENGTH), np.float32),
        "state_h": np.zeros((size.width, BATCH), np.float32),
        "state_c": np.zeros((size.cells, BATCH), np.float32),
    }
    plain = interpreter.run("evaluate", {**common, **packed})
    packed["output_rows"][:, -1] = -3.0
    assert np.array_equal(interpreter.run("evaluate", {**common, **packed})["logits"], plain["logits"])


@pytest.mark.parametrize("words", [1, 2, 5, 19, 20])
def test_a_left_padded_context_gives_what_the_words_alone_give(version, bundle_parts, size, words):
    interpreter, weights = version
    rng = np.random.Generator(np.random.PCG64(words))
    context = np.zeros(LENGTH, np.int32)
    context[LENGTH - words :] = rng.integers(1, size.words, words)
    outputs = interpreter.run("suggest_context", {"tokens": context})
    exact = reference.suggestion_log_probs(reference.context_logits(weights, context))
    assert np.abs(outputs["log_probs"][4:] - exact).max() < bundle_parts[1].golden.logit_tolerance / 3
    assert (outputs["log_probs"][:4] < -1e6).all()
    assert np.exp(outputs["log_probs"].astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)


def test_stepping_word_by_word_suggests_what_the_whole_context_suggests(version, size):
    interpreter, _ = version
    rng = np.random.Generator(np.random.PCG64(8))
    context = rng.integers(4, size.words, LENGTH).astype(np.int32)
    h, c = np.zeros((1, size.width), np.float32), np.zeros((1, size.cells), np.float32)
    for token in context:
        step = interpreter.run("suggest", {"token": np.array([token], np.int32), "state_h": h, "state_c": c})
        h, c = step["next_state_h"], step["next_state_c"]
    whole = interpreter.run("suggest_context", {"tokens": context})
    assert step["ids"].tolist() == whole["ids"].tolist()
    np.testing.assert_allclose(step["scores"], whole["scores"], rtol=1e-4)


def test_suggestions_are_three_ordinary_words_best_first_even_if_the_specials_are_likelier(
    template, bundle_parts, size
):
    from model_export.interpreter import Interpreter
    from wire_contract.patch import patch

    model, manifest = bundle_parts
    weights = read_tensors(model, manifest)
    weights["output_bias"][:4] = 25.0
    interpreter = Interpreter(patch(model, manifest, weights))
    outputs = interpreter.run("suggest_context", {"tokens": np.arange(LENGTH, dtype=np.int32)})
    assert outputs["ids"].min() >= 4
    assert len(set(outputs["ids"].tolist())) == 3
    assert outputs["scores"][0] >= outputs["scores"][1] >= outputs["scores"][2] > 0
    assert outputs["log_probs"][outputs["ids"]].tolist() == np.sort(outputs["log_probs"])[::-1][:3].tolist()
