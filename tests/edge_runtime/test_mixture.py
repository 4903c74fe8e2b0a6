import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.mixture import (
    BUCKETS,
    COMPONENTS,
    LEAST,
    STEP,
    Mixture,
    Parts,
    bucket_of,
    exponentiated,
    fit_row,
)
from edge_runtime.ngram_cache import ORDERS, NgramCache, Prediction
from edge_runtime.recency import KEPT_WORDS, Recency

NOTHING = Prediction(np.zeros(0, np.int64), np.zeros(0), 1.0)
NGRAM = Prediction(np.array([5, 7]), np.array([0.5, 0.2]), 0.3, 2)
RECENT = Prediction(np.array([4, 5]), np.array([0.25, 0.75]), 0.0)


def rows():
    return st.lists(st.floats(0.001, 1), min_size=4, max_size=4).map(lambda row: tuple(w / sum(row) for w in row))


@given(rows(), st.booleans(), st.sampled_from([NGRAM, NOTHING]), st.sampled_from([RECENT, NOTHING]))
def test_a_mixture_of_distributions_is_a_distribution_and_each_word_is_its_parts_weighted_sum(row, with_copy, ng, rec):
    shared, copy = np.full(10, 0.1), np.eye(10)[4] * 0.5 + np.eye(10)[5] * 0.5
    parts = Parts(shared, copy if with_copy else None, ng, rec)
    mixed = parts.mix(row)
    assert abs(mixed.sum() - 1.0) < 1e-9 and (mixed >= 0).all()
    for word in range(10):
        assert abs(mixed[word] - float(np.dot(row, parts.of_word(word, row)))) < 1e-12


def test_without_a_copy_its_weight_is_the_shared_models_and_what_caches_leave_over_belongs_to_the_models():
    shared, copy = np.array([0.8, 0.2]), np.array([0.2, 0.8])
    row = (0.3, 0.1, 0.4, 0.2)
    np.testing.assert_allclose(Parts(shared, None, NOTHING, NOTHING).mix(row), shared)
    np.testing.assert_allclose(Parts(shared, copy, NOTHING, NOTHING).mix(row), 0.75 * shared + 0.25 * copy)


@given(rows(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_step_is_the_exponentiated_gradient_of_the_log_loss(row, given_):
    learned = exponentiated(row, given_, STEP)
    mixed = sum(w * p for w, p in zip(row, given_, strict=True))
    if mixed == 0.0:
        assert learned == row
        return
    # The gradient of -log(sum w p) with regard to w is -p / sum w p, taken numerically here.
    raised = []
    for i in range(4):
        nudged = [w + (1e-6 * mixed if i == j else 0.0) for j, w in enumerate(row)]
        gain = np.log(sum(w * p for w, p in zip(nudged, given_, strict=True)) / mixed) / (1e-6 * mixed)
        raised.append(row[i] * np.exp(STEP * gain))
    expected = np.maximum(np.array(raised) / sum(raised), LEAST)
    np.testing.assert_allclose(learned, expected / expected.sum(), rtol=1e-3)
    assert abs(sum(learned) - 1.0) < 1e-9 and min(learned) >= LEAST * 0.99


def test_the_component_that_knows_the_person_gets_the_weight_and_another_can_come_back():
    mixture, bucket = Mixture(), bucket_of(3000, 2)
    for _ in range(3000):
        mixture = mixture.learned(bucket, (0.01, 0.02, 0.6, 0.01))
    assert mixture.rows[bucket][2] > 0.9
    assert [row for i, row in enumerate(mixture.rows) if i != bucket] == [
        row for i, row in enumerate(Mixture().rows) if i != bucket
    ]
    for _ in range(3000):
        mixture = mixture.learned(bucket, (0.6, 0.02, 0.01, 0.01))
    assert mixture.rows[bucket][0] > 0.9


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=4, max_size=4), min_size=1, max_size=200), rows())
def test_what_is_learned_online_loses_little_against_the_start_on_any_sequence(words, row):
    """Learning is harmless: by the bound of Kivinen and Warmuth the regret to any fixed row is small in each step."""
    fixed = online = 0.0
    learned = row
    for given_ in words:
        fixed -= np.log(np.dot(row, given_))
        online -= np.log(np.dot(learned, given_))
        learned = exponentiated(learned, given_, STEP)
    # Each factor p / (w p) is at most 1 / 0.001 here; the floor moves at most four times LEAST a step.
    assert online <= fixed + len(words) * 0.06 + 1e-9


def test_buckets_are_by_amount_of_text_and_by_how_long_a_context_was_known():
    assert len(BUCKETS) == 3 * (ORDERS + 1) == len(Mixture().rows)
    assert {bucket_of(words, order) for words in (0, 399, 400, 1999, 2000, 10**6) for order in range(9)} == set(
        range(len(BUCKETS))
    )
    assert bucket_of(399, 1) != bucket_of(400, 1) == bucket_of(1999, 1) != bucket_of(2000, 1)
    assert BUCKETS[bucket_of(500, 3)] == (1, 3)


@pytest.mark.parametrize(
    "rows_",
    [
        (),
        ((0.5, 0.5, 0.0, 0.1),) * 15,
        ((1.5, -0.5, 0.0, 0.0),) * 15,
        ((float("nan"), 1.0, 0.0, 0.0),) * 15,
        ((0.5, 0.5),) * 15,
    ],
)
def test_weights_that_are_no_mixture_are_refused(rows_):
    with pytest.raises(ValueError, match="got"):
        Mixture(rows_)


def test_em_finds_the_component_that_knows_the_person():
    rng = np.random.default_rng(1)
    targets = np.stack([rng.uniform(0.0, 0.1, 500), rng.uniform(0.2, 0.9, 500), np.full(500, 0.01)], axis=1)
    weights = fit_row(targets)
    assert abs(weights.sum() - 1.0) < 1e-9 and weights[1] > 0.9


@given(st.lists(st.integers(0, 12), max_size=60), st.floats(1.0, 200.0))
def test_recency_is_the_decayed_share_of_each_word(stream, decay):
    found = Recency(stream, decay_words=decay).predict()
    words = [word for word in stream if word >= 4]
    expected = {}
    for age, word in enumerate(reversed(words)):
        expected[word] = expected.get(word, 0.0) + np.exp(-age / decay)
    total = sum(expected.values())
    got = dict(zip(found.ids.tolist(), found.probabilities.tolist(), strict=True))
    assert got.keys() == expected.keys()
    for word, mass in expected.items():
        assert abs(got[word] - mass / total) < 1e-9
    assert found.leftover == (0.0 if words else 1.0)


def test_recency_holds_no_more_than_its_window():
    found = Recency([9] + [5] * KEPT_WORDS).predict()
    assert found.ids.tolist() == [5]
    with pytest.raises(ValueError, match="positive number"):
        Recency(decay_words=0.0)


def test_an_n_gram_prediction_says_how_long_a_context_it_knew():
    cache = NgramCache([1, 10, 11, 12, 13])
    assert [cache.predict(context).order for context in ([1, 10, 11, 12], [1, 99, 11], [1, 99], [])] == [4, 2, 1, 1]
    assert NgramCache().predict([1, 10]).order == 0
    assert COMPONENTS == ("shared", "copy", "ngram", "recency")
