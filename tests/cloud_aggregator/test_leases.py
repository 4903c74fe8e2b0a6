"""Leases, pace and rounds: their rules one by one, and ten thousand phones against them in virtual time."""

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.leases import draw_lease, is_offered_again, may_offer
from cloud_aggregator.pace import retry_window
from cloud_aggregator.rounds import RoundRules, close_cause
from cloud_aggregator.staleness import MAXIMUM

SEED = bytes(32)


def lease_of(counter=0, **changes):
    values = {"task": "44" * 8, "device": "01" * 16, "base": (5, "ab" * 32), "now": 1000, "lease_s": 600, **changes}
    return draw_lease(SEED, counter=counter, **values)


def test_leases_go_out_while_fewer_than_twice_the_goal_count_are_in_flight():
    assert [may_offer(n, 20) for n in (0, 39, 40, 41)] == [True, True, False, False]


def test_the_same_secret_draws_the_same_leases_and_another_secret_others():
    assert lease_of() == lease_of()
    other = draw_lease(
        b"x" * 32, counter=0, task="44" * 8, device="01" * 16, base=(5, "ab" * 32), now=1000, lease_s=600
    )
    assert len({lease_of().lease, lease_of(1).lease, lease_of(device="02" * 16).lease, other.lease}) == 4
    assert lease_of().seed != lease_of(1).seed


@given(st.integers(0, 10_000))
def test_a_seed_fits_the_offers_range(counter):
    assert 0 <= lease_of(counter).seed < 1 << 63


@pytest.mark.parametrize(
    ("current", "held", "now", "again"),
    [(5, 0, 1100, True), (6, 5, 1100, True), (6, 0, 1100, False), (9, 5, 1100, True), (5, 5, 1600, False)],
)
def test_a_live_lease_is_offered_again_while_its_base_can_be_had(current, held, now, again):
    assert is_offered_again(lease_of(), current_version=current, held_version=held, now=now) is again


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 10**4), st.integers(0, 10**5))
def test_the_retry_window_lies_between_its_bounds_and_widens_with_the_load(waiting, room, minimum, more):
    window = retry_window(500, waiting=waiting, room=room, minimum_s=minimum, maximum_s=minimum + more)
    assert 500 + minimum == window.earliest <= window.latest <= 500 + minimum + more
    busier = retry_window(500, waiting=waiting + room, room=room, minimum_s=minimum, maximum_s=minimum + more)
    assert busier.latest >= window.latest


RULES = RoundRules(goal_count=20, minimum_updates=5, report_deadline_s=3600)


@pytest.mark.parametrize(
    ("updates", "now", "cause"),
    [
        (20, 100, "goal count"),
        (19, 3699, None),
        (19, 3700, "report deadline"),
        (5, 3700, "report deadline"),
        (4, 99_999, None),
        (0, 99_999, None),
    ],
)
def test_a_round_closes_at_the_goal_or_at_the_deadline_with_enough(updates, now, cause):
    assert close_cause(RULES, updates=updates, opened_at=100, now=now) == cause


def simulate(phones, goal_count, nights, limited, seed=1):
    """Nights of phones that check in, train for a while and answer; returns accepted, refused as stale, turned away."""
    rng = np.random.default_rng(seed)
    lease_s, step, filled = 6 * 3600, 0, 0
    accepted = stale = turned_away = 0
    in_flight: dict[int, tuple[int, int]] = {}
    events: list[tuple[float, int, str]] = []
    for night in range(nights):
        for phone, hour in enumerate(rng.uniform(0, 6, size=phones)):
            heapq.heappush(events, (night * 86_400 + hour * 3600, phone, "check-in"))
    while events:
        now, phone, what = heapq.heappop(events)
        if what == "gone":
            if phone in in_flight and in_flight[phone][1] <= now:
                del in_flight[phone]
            continue
        if what == "answer":
            if phone not in in_flight:
                continue
            base, _ = in_flight.pop(phone)
            if step - base > MAXIMUM:
                stale += 1
                continue
            accepted, filled = accepted + 1, filled + 1
            rules = RoundRules(goal_count, 5, 86_400)
            if close_cause(rules, updates=filled, opened_at=0, now=0) is not None:
                step, filled = step + 1, 0
            continue
        if now % 86_400 > 6 * 3600 or phone in in_flight:
            continue
        if limited and not may_offer(len(in_flight), goal_count):
            turned_away += 1
            window = retry_window(
                int(now), waiting=max(1, phones // 100), room=2 * goal_count, minimum_s=900, maximum_s=7200
            )
            heapq.heappush(events, (rng.uniform(window.earliest, window.latest), phone, "check-in"))
            continue
        in_flight[phone] = (step, now + lease_s)
        heapq.heappush(events, (now + lease_s, phone, "gone"))
        if rng.uniform() > 0.1:
            # Minutes of training and waiting for the link: log-normal, median 15 minutes, one in twenty beyond an hour.
            heapq.heappush(events, (now + 900 * float(rng.lognormal(0.0, 0.8)), phone, "answer"))
    return accepted, stale, turned_away, step


def test_of_ten_thousand_phones_fewer_than_five_percent_are_refused_as_stale():
    accepted, stale, turned_away, steps = simulate(10_000, 200, nights=2, limited=True)
    assert accepted > 5_000
    assert steps > 20
    assert turned_away > 0
    assert stale / (accepted + stale) < 0.05


def test_without_the_lease_limit_the_same_phones_would_be_refused_in_masses():
    accepted, stale, _, _ = simulate(10_000, 20, nights=1, limited=False)
    assert stale / (accepted + stale) > 0.5
