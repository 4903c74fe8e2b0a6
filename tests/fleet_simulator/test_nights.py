from collections import Counter

import pytest

from fleet_simulator.nights import SHARES, play_nights


def script(seed=7):
    return play_nights(seed, devices=60, nights=30, visits_a_tick=24, first_midnight=1_800_057_600)


def test_one_seed_gives_one_script_and_another_seed_another():
    assert script() == script()
    assert script() != script(8)


def test_every_fate_is_met_and_devices_come_about_equally_often():
    visits = [visit for tick in script() for visit in tick.visits]
    assert {visit.fate for visit in visits} == set(SHARES)
    counts = Counter(visit.device for visit in visits)
    assert set(counts) == set(range(60))
    assert max(counts.values()) - min(counts.values()) <= 4


def test_a_device_whose_update_waits_does_not_come_before_it_has_gone():
    waiting: dict[int, int] = {}
    for number, tick in enumerate(script()):
        for device in tick.freed:
            assert waiting.pop(device) == number
        assert not {visit.device for visit in tick.visits} & waiting.keys()
        waiting |= {visit.device: number + visit.late for visit in tick.visits if visit.fate == "metered"}
        assert len({visit.device for visit in tick.visits}) == len(tick.visits) == 24


def test_time_rises_and_every_tick_lies_in_the_night():
    times = [tick.at for tick in script()]
    assert times == sorted(times)
    assert all((at % 86_400) // 3600 in (1, 3) for at in times)


def test_more_visits_than_devices_are_refused():
    with pytest.raises(ValueError, match="got 5 of 4"):
        play_nights(1, devices=4, nights=1, visits_a_tick=5, first_midnight=0)
