import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.ngram_cache import NgramCache

IDS = st.integers(1, 9)


def brute_force(stream, context, discount, orders):
    """Recount everything for one context, from the definition."""
    if 1 in context:
        context = context[len(context) - 1 - context[::-1].index(1) :]

    def following(history):
        counts = {}
        for place in range(len(stream)):
            sentence = stream[:place]
            if 1 in sentence:
                sentence = sentence[len(sentence) - 1 - sentence[::-1].index(1) :]
            before = sentence[len(sentence) - len(history) :] if len(sentence) >= len(history) else None
            if stream[place] >= 4 and before is not None and list(before) == list(history):
                counts[stream[place]] = counts.get(stream[place], 0) + 1
        return counts

    def probability(word, history):
        counts = following(history)
        total = sum(counts.values())
        lower = probability(word, history[1:]) if history else 0.0
        if not total:
            return lower
        return max(counts.get(word, 0) - discount, 0.0) / total + discount * len(counts) / total * lower

    history = tuple(context[-(orders - 1) :]) if orders > 1 else ()
    return {word: probability(word, history) for word in range(4, 10)}


@given(st.lists(IDS, max_size=40), st.lists(IDS, max_size=6))
def test_probabilities_are_those_of_the_definition_and_leave_the_rest(stream, context):
    prediction = NgramCache(stream, discount=0.5).predict(context)
    expected = brute_force(stream, context, 0.5, 4)
    found = dict(zip(prediction.ids.tolist(), prediction.probabilities.tolist(), strict=True))
    for word, probability in expected.items():
        assert abs(found.get(word, 0.0) - probability) < 1e-12
    assert abs(sum(found.values()) + prediction.leftover - 1.0) < 1e-9
    assert prediction.leftover > 0


@given(st.lists(IDS, max_size=30), st.lists(IDS, max_size=30), st.lists(IDS, max_size=5))
def test_adding_in_two_parts_is_adding_at_once(first, second, context):
    parts = NgramCache(first)
    parts.add(second)
    one, two = parts.predict(context), NgramCache(first + second).predict(context)
    assert dict(zip(one.ids, one.probabilities, strict=True)) == dict(zip(two.ids, two.probabilities, strict=True))


def test_specials_are_never_predicted_and_an_empty_cache_leaves_everything():
    prediction = NgramCache([1, 5, 2, 3, 6] * 10).predict([1, 5])
    assert set(prediction.ids.tolist()) == {5, 6}
    empty = NgramCache().predict([1, 5])
    assert len(empty.ids) == 0 and empty.leftover == 1.0


def test_a_phrase_that_was_typed_before_comes_first():
    prediction = NgramCache([1, 10, 11, 12, 13] * 5 + [1, 20, 11, 14] * 20).predict([1, 10, 11])
    assert prediction.ids[np.argmax(prediction.probabilities)] == 12


@pytest.mark.parametrize("arguments", [{"orders": 0}, {"discount": 0.0}, {"discount": 1.0}])
def test_nonsense_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="discount between 0 and 1"):
        NgramCache(**arguments)
