import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import backoff
from edge_runtime.send_window import SendWindow, chunk_bytes, measured_rate


def test_the_window_opens_on_a_quick_link_and_closes_on_a_slow_one():
    window = SendWindow()
    sizes = []
    for after_s in (0.01, 0.01, 0.01, 0.01, 2.0, 4.5, 2.0, 0.5):
        window = window.acknowledged(after_s)
        sizes.append(window.size)
    assert sizes == [3, 4, 4, 4, 4, 2, 2, 3]


@given(st.integers(0, 70_000), st.lists(st.floats(0, 100), max_size=50))
def test_the_window_is_never_over_four_nor_over_the_brokers_receive_maximum(most, waits):
    window = SendWindow().limited(most)
    for after_s in waits:
        window = window.acknowledged(after_s)
        assert 1 <= window.size <= max(1, min(4, most))


@given(st.integers(1024, 48 * 1024), st.floats(0, 1e8), st.integers(0, 1 << 28))
def test_a_chunk_passes_in_a_quarter_of_the_keepalive_and_fits_the_brokers_packet(wanted, rate, limit):
    size = chunk_bytes(wanted, rate, 60.0, limit)
    assert 1024 <= size <= wanted
    assert rate == 0.0 or size <= rate * 15 or size == 1024
    assert size + 320 <= limit or size == 1024


@pytest.mark.parametrize(
    ("rate", "size"), [(0.0, 32_768), (100_000.0, 32_768), (5000.0, 32_768), (1000.0, 8192), (20.0, 1024)]
)
def test_only_a_link_below_two_kilobytes_a_second_needs_smaller_chunks(rate, size):
    assert chunk_bytes(32_768, rate, 60.0, 1 << 20) == size


def test_a_rate_is_learnt_from_uploads_that_are_long_enough_to_tell():
    assert measured_rate(0.0, 1000, 1.0) == 0.0
    assert measured_rate(0.0, 1 << 20, 0.0) == 0.0
    assert measured_rate(0.0, 100_000, 10.0) == 10_000.0
    assert measured_rate(10_000.0, 100_000, 50.0) == 6000.0


@given(st.floats(0, 2e9), st.floats(0, 86_400))
def test_a_night_begins_within_the_spread_and_at_the_same_moment_after_a_restart(opened, spread):
    begin = backoff.night_start("d" * 32, opened, spread)
    assert opened <= begin <= opened + spread
    assert begin == backoff.night_start("d" * 32, opened, spread)


def test_a_thousand_devices_do_not_arrive_together_when_the_night_opens():
    per_minute = [0] * 15
    for device in range(1000):
        share = backoff.night_start(f"{device:032x}", 1_800_000_000.0, 900.0) - 1_800_000_000.0
        per_minute[int(share // 60)] += 1
    assert max(per_minute) < 110 and min(per_minute) > 30
    tomorrow = [backoff.night_start(f"{d:032x}", 1_800_086_400.0, 900.0) - 1_800_086_400.0 for d in range(1000)]
    today = [backoff.night_start(f"{d:032x}", 1_800_000_000.0, 900.0) - 1_800_000_000.0 for d in range(1000)]
    assert sum(abs(a - b) < 1.0 for a, b in zip(today, tomorrow, strict=True)) < 20


def test_waits_after_failures_reach_ten_minutes_and_are_jittered_over_all_of_it():
    assert [backoff.longest_wait(n) for n in (0, 1, 6, 7, 99)] == [5, 10, 320, 600, 600]
    assert backoff.wait(99, 0.0) == 0.0 and backoff.wait(99, 0.5) == 300.0
