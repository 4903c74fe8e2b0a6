from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.checkpoint_timing import INTERVAL_S, JOB_BYTES, begin


def test_the_first_comes_a_quarter_of_an_hour_after_the_start_and_the_next_one_after_that():
    timing = begin(100.0)
    assert not timing.due(999.9) and timing.due(1000.0)
    timing = timing.written(1000.0, 5)
    assert not timing.due(1899.9) and timing.due(1900.0)


@given(st.lists(st.integers(1, JOB_BYTES // 2), min_size=1, max_size=60))
def test_a_job_never_writes_more_than_its_budget_and_the_last_one_has_room(sizes):
    timing, elapsed, largest, total = begin(0.0), 0.0, 0, 0
    for size in sizes:
        # A checkpoint of one training grows little by little; what it may grow from one to the next is its own size.
        size = min(max(size, largest), 2 * largest or size)
        elapsed += INTERVAL_S
        if timing.due(elapsed):
            timing, total, largest = timing.written(elapsed, size), total + size, size
    assert total <= JOB_BYTES + largest


@given(st.integers(1, 4_000_000))
def test_checkpoints_of_one_size_leave_room_for_the_one_at_the_end(size):
    timing, total = begin(0.0), 0
    for number in range(1, 200):
        if timing.due(number * INTERVAL_S):
            timing, total = timing.written(number * INTERVAL_S, size), total + size
    assert total + size <= JOB_BYTES and (total // size >= 6 or size > 4_000_000)
