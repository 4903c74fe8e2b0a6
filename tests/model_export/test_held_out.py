"""Held-out text: which words are asked, and how answers are counted, beside a slow count by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export import held_out, reference
from model_export.network import NetworkSize
from tests.model_export.conftest import lively_tensors
from wire_contract.vocabulary import NUMBER, PAD, START, UNKNOWN

SIZE = NetworkSize(words=70, width=16, cells=64)
TENSORS = lively_tensors(SIZE, seed=4)


def slow_log_probs(tensors, context):
    return reference.suggestion_log_probs(reference.context_logits(tensors, context))


@given(st.lists(st.lists(st.integers(1, 69), max_size=30), min_size=1, max_size=4), st.integers(1, 40))
def test_questions_are_the_words_of_the_text_with_what_stands_before_them(streams, limit):
    scored = [(w, t) for w, s in enumerate(streams) for t in range(1, len(s)) if s[t] not in (PAD, START, NUMBER)]
    if not scored:
        with pytest.raises(ValueError, match="words to predict, got none"):
            held_out.questions(streams, 6, limit)
        return
    asked = held_out.questions(streams, 6, limit)
    assert len(asked) == min(limit, len(scored))
    if limit >= len(scored):
        for (who, t), context, target in zip(scored, asked.contexts, asked.targets, strict=True):
            before = streams[who][max(0, t - 6) : t]
            assert context.tolist() == [PAD] * (6 - len(before)) + before
            assert target == streams[who][t]


def test_a_smaller_number_is_taken_evenly_over_everybody():
    streams = [[1, *range(10, 60)], [1, *range(10, 20)]]
    targets = held_out.questions(streams, 5, 12).targets.tolist()
    assert targets == [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 10, 15]


def test_the_judge_is_the_float64_formulas_whatever_lengths_stand_in_a_batch():
    rng = np.random.default_rng(3)
    contexts = rng.integers(1, 70, (9, 6)).astype(np.int32)
    for row in range(9):
        contexts[row, : row % 6] = PAD
    got = held_out.float_answer(TENSORS)(contexts)
    for row, context in enumerate(contexts):
        assert np.abs(got[row] - slow_log_probs(TENSORS, context)).max() < 1e-12


def test_scores_are_those_of_a_slow_count_by_hand():
    rng = np.random.default_rng(5)
    streams = [[1, *rng.integers(2, 70, 90).tolist()] for _ in range(2)]
    asked = held_out.questions(streams, 6, 150)
    other = {**TENSORS, "kernel": TENSORS["kernel"] + rng.normal(0, 0.05, TENSORS["kernel"].shape).astype(np.float32)}
    # Likely targets in half of the places, or there would be hardly a hit to count.
    for i in range(0, len(asked), 2):
        asked.targets[i] = 4 + int(np.argsort(-slow_log_probs(TENSORS, asked.contexts[i]))[i % 4])
    asked.targets[1] = UNKNOWN
    judged, scores = held_out.compare(asked, held_out.float_answer(TENSORS), {"other": held_out.float_answer(other)})
    hits1 = hits3 = same = 0
    losses, differences, likely = [], [], []
    for context, target in zip(asked.contexts, asked.targets, strict=True):
        exact, got = slow_log_probs(TENSORS, context), slow_log_probs(other, context)
        best = [int(i) + 4 for i in np.argsort(-got)[:3]]
        hits1 += best[0] == target
        hits3 += target in best
        same += int(np.argmax(exact)) + 4 == best[0]
        differences.append(np.abs(got - exact))
        likely.append(np.abs(got - exact)[np.argsort(-exact)[:8]].max())
        if target >= 4:
            losses.append(-got[target - 4])
    score, count = scores["other"], len(asked)
    assert (score.top1, score.top3) == pytest.approx((100 * hits1 / count, 100 * hits3 / count))
    assert 10 < hits1 < hits3 < count
    assert score.agrees1 == pytest.approx(100 * same / count) and score.agrees1 < 100
    assert score.perplexity == pytest.approx(math.exp(np.mean(losses)))
    assert score.worst == pytest.approx(np.max(differences))
    assert score.worst_likely == pytest.approx(max(likely))
    assert score.p99 == pytest.approx(np.quantile(np.concatenate(differences), 0.99), abs=2e-3)
    assert (judged.worst, judged.p99, judged.agrees1) == (0, 0, 100)


def test_a_target_outside_the_vocabulary_is_a_miss_and_leaves_perplexity_alone():
    context = np.array([[PAD, 1, 20]], np.int32)
    best = 4 + int(np.argmax(slow_log_probs(TENSORS, context[0])))
    known = held_out.Questions(np.repeat(context, 2, 0), np.array([best, best], np.int32))
    half = held_out.Questions(np.repeat(context, 2, 0), np.array([best, UNKNOWN], np.int32))
    answer = held_out.float_answer(TENSORS)
    (all_known, _), (half_known, _) = (held_out.compare(asked, answer, {}) for asked in (known, half))
    assert (all_known.top1, half_known.top1) == (100, 50)
    assert all_known.perplexity == pytest.approx(half_known.perplexity)
