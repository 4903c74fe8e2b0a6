import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_contract.golden_choice import (
    ARRAY_MARGIN,
    MARGIN,
    array_vectors,
    choose,
    choose_positions,
    context,
    padded,
    text_vectors,
)
from wire_contract.vocabulary import PAD, SPECIALS, START

NEVER = [-1e9] * len(SPECIALS)
VALUES = st.lists(st.floats(-20, 0), min_size=4, max_size=40)


@given(words=st.integers(5, 70_000), length=st.integers(2, 64), number=st.integers(0, 2000))
def test_a_context_begins_a_sentence_and_holds_ordinary_words_that_fit(words, length, number):
    ids = context(words, length, number)
    assert ids == context(words, length, number) and ids[0] == START and 2 <= len(ids) <= length
    assert all(len(SPECIALS) <= i < words for i in ids[1:])
    assert padded(ids, length)[-len(ids) :] == ids and set(padded(ids, length)[: -len(ids)]) <= {PAD}


def test_contexts_are_the_same_for_ever():
    assert context(9906, 20, 0) == (1, 165, 5519)[:2] or len(context(9906, 20, 0)) == 2
    assert context(600, 8, 3) == context(600, 8, 3) != context(600, 8, 10)


@pytest.mark.parametrize(("words", "length"), [(4, 20), (600, 1)])
def test_without_ordinary_words_or_room_there_is_no_context(words, length):
    with pytest.raises(ValueError, match="ordinary words"):
        context(words, length, 0)


def test_a_context_longer_than_the_signature_is_refused():
    with pytest.raises(ValueError, match="1 to 3"):
        padded((1, 5, 6, 7), 3)


@given(VALUES, st.data())
def test_an_answer_that_was_chosen_survives_every_error_below_half_the_margin(values, data):
    log_probs = NEVER + values
    chosen = choose(log_probs)
    if chosen is None:
        return
    errors = data.draw(st.lists(st.floats(-0.49 * MARGIN, 0.49 * MARGIN), min_size=len(values), max_size=len(values)))
    moved = NEVER + [value + error for value, error in zip(values, errors, strict=True)]
    assert tuple(sorted(range(len(moved)), key=moved.__getitem__, reverse=True)[:3]) == chosen


@pytest.mark.parametrize(
    "values",
    [
        [-1.0, -1.2, -2.0, -3.0],
        [-1.0, -2.0, -3.0, -3.2],
        [-1.0, -2.0, -3.0, float("nan")],
        [-1.0, float("-inf"), float("-inf"), float("-inf")],
        [-1.0, -2.0],
    ],
)
def test_an_answer_that_another_interpreter_may_order_otherwise_is_not_chosen(values):
    assert choose(NEVER + values) is None


def test_a_special_is_never_part_of_an_answer():
    assert choose([0.0, -1e9, -1e9, -1e9, -1.0, -2.0, -3.0, -4.0]) is None
    assert choose([*NEVER, -1.0, -2.0, -3.0, -4.0]) == (4, 5, 6)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20))
def test_positions_of_arrays_are_the_largest_and_lie_apart(outputs):
    chosen = choose_positions(outputs)
    if chosen is None:
        return
    order = sorted(outputs, reverse=True)
    least = ARRAY_MARGIN * max(map(abs, outputs))
    assert [outputs[i] for i in chosen] == order[: len(chosen)]
    assert all(order[i] - order[i + 1] >= least for i in range(len(chosen)))


@pytest.mark.parametrize("outputs", [[0.5], [0.0, 0.0], [0.5, 0.49, 0.1], [float("nan"), 1.0], []])
def test_outputs_that_do_not_lie_apart_give_no_vector(outputs):
    assert choose_positions(outputs) is None


def test_the_first_candidates_that_are_fit_are_taken_and_no_more_is_asked():
    asked = []

    def ask(tokens):
        asked.append(tokens)
        return NEVER + ([-1.0, -2.0, -3.0, -4.0] if len(asked) % 2 == 0 else [-1.0] * 4)

    vectors = text_vectors(8, 5, ask, count=3)
    assert len(vectors) == 3 and len(asked) == 6 and {vector.ids for vector in vectors} == {(4, 5, 6)}
    assert [padded(vector.context, 5) for vector in vectors] == asked[1::2]


def test_a_model_that_is_sure_of_nothing_has_no_vectors():
    assert text_vectors(8, 5, lambda tokens: NEVER + [-1.0] * 4) == ()
    assert array_vectors(lambda number: [0.5, 0.5]) == ()


def test_an_array_models_vectors_name_the_examples_that_were_asked():
    vectors = array_vectors(lambda number: [0.0, float(number % 2), 0.3], count=2)
    assert [(v.example, v.ids) for v in vectors] == [(0, (2,)), (1, (1, 2, 0)[:2])]
