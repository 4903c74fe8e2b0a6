import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapters.sensors import recorder
from edge_runtime.adapters.sensors.recorder import RecordingSensors
from edge_runtime.eligibility import Moment, Policy, Reading, Standing, Usage, decide
from edge_runtime.trace import LAST_S, MAX_LINE_BYTES, Look, TraceInvalid, decode_looks, encode_look, replay
from tests.edge_runtime.fakes import GOOD, FakeClock, FakeSensors, Fuse
from tests.edge_runtime.test_eligibility import NIGHT, POLICY, READINGS

LOOK = Look(moment=Moment(NIGHT, 5.0), readings=GOOD, usage=Usage(1.0, 2, 3.0, 4, 1), training=False)


def test_a_look_is_a_line_of_json_that_says_the_same_again():
    line = encode_look(LOOK)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert list(decode_looks([line, b"\n", line])) == [LOOK, LOOK]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"{", "line 2"),
        (b"[]", "line 2"),
        (encode_look(LOOK).replace(b'"training":false', b'"training":"no"'), "training"),
        (encode_look(LOOK).replace(b'"training"', b'"resting"'), "resting"),
        (encode_look(LOOK).replace(str(NIGHT).encode(), b"1e300"), "1970 and 9998"),
        (b" " * MAX_LINE_BYTES + b"{}", str(MAX_LINE_BYTES)),
        (b"[" * 4000, "line 2"),
    ],
)
def test_what_is_no_look_is_refused_with_its_line(line, word):
    with pytest.raises(TraceInvalid, match="line 2") as refused:
        list(decode_looks([encode_look(LOOK), line]))
    assert word in str(refused.value)


@given(st.lists(st.tuples(READINGS, st.booleans(), st.floats(0, 300)), max_size=20))
def test_a_replay_of_a_trace_gives_the_decisions_that_the_device_made(looks):
    standing, elapsed, lines, made = Standing(), 5.0, [], []
    for readings, training, passed in looks:
        elapsed += passed
        moment = Moment(NIGHT + elapsed, elapsed)
        standing, decision = decide(standing, readings, POLICY, Usage(), moment, training=training)
        made.append(decision)
        lines.append(encode_look(Look(moment=moment, readings=readings, usage=Usage(), training=training)))
    replayed = [decision for _, decision in replay(decode_looks(lines), POLICY)]
    assert replayed == made


def test_another_policy_can_be_tried_on_last_nights_trace():
    looks = [dataclasses_look(at, readings=dataclasses.replace(GOOD, idle_s=Reading(60.0))) for at in range(0, 240, 30)]
    assert not any(decision.may_train for _, decision in replay(looks, POLICY))
    lenient = dataclasses.replace(POLICY, minimum_idle_s=30.0)
    assert [decision.may_train for _, decision in replay(looks, lenient)] == [False] * 4 + [True] * 4


def dataclasses_look(at, **changes):
    fields = {"moment": Moment(NIGHT + at, float(at)), "readings": GOOD, "usage": Usage(), "training": False, **changes}
    return Look(**fields)


def recording(path):
    clock, sensors = FakeClock(NIGHT), FakeSensors(Fuse())
    wrapped = RecordingSensors(sensors, clock, path, usage=lambda now: Usage(starts=1), training=lambda: True)
    return clock, sensors, wrapped


def test_a_recording_misses_no_flip_and_repeats_nothing_within_seconds(tmp_path):
    clock, sensors, wrapped = recording(tmp_path / "trace")
    sensors.good_reads = 30
    for _ in range(40):
        assert wrapped.read(clock.now()) in (GOOD, sensors.afterwards)
        clock.time += 0.5
    looks = list(decode_looks((tmp_path / "trace").read_bytes().splitlines()))
    assert [look.moment.now - NIGHT for look in looks] == [0.0, 5.0, 10.0, 15.0]
    assert [look.readings.charging.value for look in looks] == [True, True, True, False]
    assert all(look.training and look.usage.starts == 1 for look in looks)


class SettingClock(FakeClock):
    believed = False

    def trusted(self):
        return self.believed


def test_a_recording_misses_not_the_moment_in_which_the_clock_is_believed(tmp_path):
    clock = SettingClock(NIGHT)
    wrapped = RecordingSensors(
        FakeSensors(Fuse()), clock, tmp_path / "trace", usage=lambda now: Usage(), training=lambda: False
    )
    for clock.believed in (False, False, True, True):
        wrapped.read(clock.now())
        clock.time += 0.5
    looks = list(decode_looks((tmp_path / "trace").read_bytes().splitlines()))
    assert [(look.moment.now - NIGHT, look.moment.trusted) for look in looks] == [(0.0, False), (1.0, True)]


def test_a_recording_ends_where_its_file_would_grow_too_large_and_the_night_goes_on(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(bytes(recorder.MAX_BYTES - 10))
    clock, _, wrapped = recording(path)
    assert wrapped.read(clock.now()) == GOOD
    assert str(recorder.MAX_BYTES) in wrapped.ended and path.stat().st_size == recorder.MAX_BYTES - 10
    clock.time += 60.0
    assert wrapped.read(clock.now()) == GOOD


def test_a_recording_that_cannot_be_written_is_no_reason_not_to_train(tmp_path):
    clock, _, wrapped = recording(tmp_path / "none" / "trace")
    assert wrapped.read(clock.now()) == GOOD and "none" in wrapped.ended
    assert not (tmp_path / "none").exists()


def test_the_longest_look_fits_its_line():
    reading = Reading(1.2345678901234567e-300, 1.2345678901234567e-300, "x" * 64)
    names = ("charging", "battery", "celsius", "idle_s", "metered", "load", "under_voltage", "battery_celsius")
    look = dataclasses_look(0, readings=dataclasses.replace(GOOD, **dict.fromkeys(names, reading)))
    assert len(encode_look(look)) < MAX_LINE_BYTES


def test_a_policy_with_no_wait_decides_on_a_single_look():
    [(_, decision)] = list(replay([LOOK], Policy(night_start=0, night_end=0, settle_s=0.0)))
    assert decision.may_train


def test_a_look_at_the_end_of_time_is_read_in_every_zone_and_a_later_one_is_refused():
    last = dataclasses.replace(LOOK.moment, now=LAST_S)
    line = encode_look(msgspec.structs.replace(LOOK, moment=last))
    for zone in ("Pacific/Kiritimati", "Etc/GMT+12"):
        for start, end in ((23 * 60, 6 * 60), (0, 0)):
            policy = Policy(time_zone=zone, night_start=start, night_end=end)
            assert len(list(replay(decode_looks([line]), policy))) == 1
    later = dataclasses.replace(last, now=LAST_S + 1)
    with pytest.raises(TraceInvalid, match="1970 and 9998"):
        list(decode_looks([encode_look(msgspec.structs.replace(LOOK, moment=later))]))
