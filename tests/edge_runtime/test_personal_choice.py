from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.personal_choice import SIGNIFICANCE, chance_of, choose


@given(st.integers(0, 7), st.integers(0, 7))
def test_the_chance_is_that_of_throwing_coins_counted_one_by_one(worse, better):
    throws = list(product((0, 1), repeat=worse + better))
    assert chance_of(worse, better) == sum(sum(throw) >= worse for throw in throws) / len(throws)


def test_the_previous_version_stays_only_if_the_newer_one_is_significantly_worse():
    same = [True, False] * 40
    assert not choose(same, same).keeps_previous
    # 5 lost against 0 won has a chance of 1/32; 4 against 0 one of 1/16.
    assert choose([False] * 5 + same, [True] * 5 + same).keeps_previous
    assert not choose([False] * 4 + same, [True] * 4 + same).keeps_previous
    assert not choose([True] * 30 + same, [False] * 30 + same).keeps_previous
    assert not choose([], []).keeps_previous and choose([], []).chance == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=120))
def test_words_where_both_versions_do_the_same_change_nothing(pairs):
    newer, previous = [a for a, _ in pairs], [b for _, b in pairs]
    verdict = choose(newer, previous)
    differing = [(a, b) for a, b in pairs if a != b]
    assert verdict == choose([a for a, _ in differing], [b for _, b in differing])
    assert verdict.keeps_previous == (verdict.chance <= SIGNIFICANCE)
    assert not (verdict.keeps_previous and choose(previous, newer).keeps_previous)


@given(st.integers(0, 200), st.integers(0, 200))
def test_more_lost_words_are_never_less_significant(worse, better):
    assert chance_of(worse + 1, better) <= chance_of(worse, better) <= chance_of(worse, better + 1)
    assert 0.0 <= chance_of(worse, better) <= 1.0


def test_words_that_are_not_the_same_ones_are_refused():
    with pytest.raises(ValueError):
        choose([True], [True, False])
    with pytest.raises(ValueError, match="not negative"):
        chance_of(-1, 2)


def test_the_sentence_names_both_versions_and_the_counts():
    told = choose([False] * 6, [True] * 6).told(13, 12)
    assert "13" in told and "stays with 12" in told and "6 of your held-out words" in told
    assert "not significantly worse" in choose([True], [True]).told(13, 12)
