import numpy as np

from edge_runtime.mixture import Mixture
from edge_runtime.suggestions import MOST_TAUGHT_WORDS, Suggestions, probabilities_of, top_ids
from tests.edge_runtime.fakes import RUNTIME
from tests.edge_runtime.test_local_training import MANIFEST, MODEL

MODEL_RUNNER = RUNTIME.version(MANIFEST, lambda: MODEL)
CONTEXT = [0] * 17 + [1, 300, 301]


def test_specials_have_no_probability_and_ties_go_to_the_lower_id():
    distribution = probabilities_of(np.array([9.0, 9, 9, 9, 1, 2, 2, 2, 1]))
    assert (distribution[:4] == 0).all() and abs(distribution.sum() - 1.0) < 1e-12
    assert top_ids(distribution) == (5, 6, 7)


def test_without_text_the_suggestions_are_the_shared_models_own():
    own = MODEL_RUNNER.run("suggest_context", {"tokens": np.array(CONTEXT, np.int32)})["ids"].tolist()
    assert list(Suggestions(MODEL_RUNNER).suggest(CONTEXT)) == own


def test_the_persons_phrase_is_suggested_where_the_shared_model_would_not():
    phrase = [1, 300, 301, 302]
    assert 302 not in Suggestions(MODEL_RUNNER).suggest(CONTEXT)
    mine = Suggestions(MODEL_RUNNER, None, phrase * 5)
    assert 302 in mine.suggest(CONTEXT)
    distribution = mine.distribution(CONTEXT)
    assert abs(distribution.sum() - 1.0) < 1e-9 and (distribution[:4] == 0).all()


def test_what_is_typed_counts_at_once_and_teaches_the_mixture_before_the_caches_know_it():
    mine, phrase = Suggestions(MODEL_RUNNER), [1, 300, 301, 302]
    mine.learn(phrase)
    first = mine.mixture
    # The caches knew nothing yet: every component gave each word what the shared model gave it.
    np.testing.assert_allclose(first.rows, Mixture().rows, atol=2e-3)
    for _ in range(200):
        mine.learn(phrase)
    assert mine.suggest(CONTEXT)[0] == 302
    gains = [row[2] - before[2] for row, before in zip(mine.mixture.rows, Mixture().rows, strict=True)]
    assert max(gains) > 0.3, "the n-grams were right, and gained weight"


def test_a_page_that_is_pasted_costs_no_more_runs_than_its_last_words():
    runs = []

    class Counted:
        def run(self, name, inputs):
            runs.append(name)
            return MODEL_RUNNER.run(name, inputs)

    mine = Suggestions(Counted())
    mine.learn([1, *range(10, 500)])
    assert len(runs) == MOST_TAUGHT_WORDS
    assert mine.suggest([0] * 17 + [10, 11, 12])[0] == 13, "all of it is in the caches"
