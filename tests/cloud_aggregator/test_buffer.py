"""The buffer's laws: exact, order-free, the same for every shard tree; judged by Python's integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.admission import NORM_SLACK
from cloud_aggregator.buffer import MAX_MAGNITUDE, MAX_UPDATES, Buffer, close, fold, merge
from cloud_aggregator.config import PopulationSettings, check_population
from cloud_aggregator.errors import InvalidSetting
from cloud_aggregator.staleness import WEIGHTS, weight
from wire_contract.codec import SparseVector
from wire_contract.messages import LocalRule, Plan

SIZE = 12
WEIGHT = st.sampled_from(WEIGHTS) | st.floats(2.0**-20, 1.0)
UPDATE = st.tuples(
    st.dictionaries(st.integers(0, SIZE - 1), st.floats(-64, 64), max_size=SIZE).map(
        lambda entries: SparseVector(
            SIZE,
            np.array(sorted(entries), dtype=np.int64),
            np.array([entries[i] for i in sorted(entries)], dtype=np.float64),
        )
    ),
    WEIGHT,
)


def folded(updates):
    buffer = Buffer.empty(SIZE)
    for vector, share in updates:
        buffer = fold(buffer, vector, share)
    return buffer


@given(st.lists(UPDATE, max_size=8), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_bitwise_the_same_sum(updates, rng):
    shuffled = list(updates)
    rng.shuffle(shuffled)
    assert folded(updates).sums.tobytes() == folded(shuffled).sums.tobytes()


@given(st.lists(UPDATE, min_size=1, max_size=9), st.data())
def test_any_tree_of_shards_gives_bitwise_the_same_sum(updates, data):
    parts = [folded([update]) for update in updates]
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [merge(parts[i], parts[i + 1])]
    whole = folded(updates)
    assert parts[0].sums.tobytes() == whole.sums.tobytes()
    assert parts[0].count == whole.count == len(updates)
    assert close(parts[0], 4).tobytes() == close(whole, 4).tobytes()


@given(st.floats(-64, 64), WEIGHT)
def test_an_entry_is_rounded_once_half_to_even(value, share):
    vector = SparseVector(1, np.array([0]), np.array([value]))
    exact = Fraction(value * share) * (1 << 32)
    assert int(fold(Buffer.empty(1), vector, share).sums[0]) == round(exact)


def test_close_divides_by_the_goal_count_and_not_by_the_updates():
    vector = SparseVector(2, np.array([0, 1]), np.array([1.0, -3.0]))
    buffer = fold(fold(Buffer.empty(2), vector, 1.0), vector, 0.5)
    assert close(buffer, 8).tolist() == [1.5 / 8, -4.5 / 8]
    assert close(buffer, 8).dtype == np.float32


def test_the_largest_buffer_that_the_bounds_allow_does_not_overflow():
    vector = SparseVector(1, np.array([0]), np.array([64.0]))
    one = fold(Buffer.empty(1), vector, 1.0)
    full = Buffer(one.sums * MAX_UPDATES, MAX_UPDATES)
    assert close(full, 1)[0] == 64.0 * MAX_UPDATES
    with pytest.raises(ValueError, match="at most 1048576 updates"):
        fold(full, vector, 1.0)
    with pytest.raises(ValueError, match="at most 1048576 updates"):
        merge(full, one)


def test_folding_leaves_the_old_buffer_as_it_was():
    before = Buffer.empty(1)
    fold(before, SparseVector(1, np.array([0]), np.array([1.0])), 1.0)
    assert before.sums[0] == 0
    assert before.count == 0


@pytest.mark.parametrize("value", [64.1, -65.0, float("nan"), float("inf")])
def test_a_value_out_of_range_is_refused_and_named(value):
    with pytest.raises(ValueError, match=r"within 64\.0, got"):
        fold(Buffer.empty(1), SparseVector(1, np.array([0]), np.array([value])), 1.0)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="a weight is above 0 and at most 1"):
        fold(Buffer.empty(1), SparseVector(1, np.array([0]), np.array([1.0])), share)


def test_another_models_update_is_refused():
    with pytest.raises(ValueError, match="holds 3 values, the update 2"):
        fold(Buffer.empty(3), SparseVector(2, np.array([0]), np.array([1.0])), 1.0)
    with pytest.raises(ValueError, match="one size"):
        merge(Buffer.empty(3), Buffer.empty(2))


@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
def test_staleness_weights_are_one_over_the_square_root_correctly_rounded(staleness):
    # w is the binary64 nearest to 1/sqrt(n) if 1/n lies between the squares of the midpoints beside it.
    share, n = Fraction(weight(staleness)), staleness + 1
    below = Fraction(np.nextafter(weight(staleness), 0))
    above = Fraction(np.nextafter(weight(staleness), 2))
    assert ((share + below) / 2) ** 2 < Fraction(1, n) < ((share + above) / 2) ** 2


@pytest.mark.parametrize("staleness", [-1, 4, 1000])
def test_a_staleness_outside_the_table_has_no_weight(staleness):
    with pytest.raises(ValueError, match=f"0 to 3, got {staleness}"):
        weight(staleness)


def test_the_clip_norm_of_a_population_stays_below_the_buffers_bound():
    check_population(PopulationSettings(plan=Plan(clip_norm=63.0)))
    assert 63.0 * (1 + NORM_SLACK) < MAX_MAGNITUDE
    with pytest.raises(InvalidSetting, match=r"plan\.clip_norm is at most 63\.0, got 64\.0"):
        check_population(PopulationSettings(plan=Plan(clip_norm=64.0)))


def test_a_rule_that_no_device_knows_is_refused_by_its_name_before_it_starves_a_fleet():
    check_population(PopulationSettings(plan=Plan(rules=(LocalRule(name="momentum", value=0.9),))))
    with pytest.raises(InvalidSetting, match="momentun"):
        check_population(PopulationSettings(plan=Plan(rules=(LocalRule(name="momentun", value=0.9),))))
