"""`edge-runtime explain --trace`: what a recorded night's looks decide, stretch by stretch."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_contract.errors import CommandError
from edge_runtime.eligibility import Moment, Reading, Usage
from edge_runtime.explain_commands import UNSEEN, explain_trace, stretches
from edge_runtime.trace import Look, encode_look
from tests.edge_runtime.fakes import GOOD
from tests.edge_runtime.test_eligibility import NIGHT, POLICY

EAGER = dataclasses.replace(POLICY, settle_s=0.0)
UNPLUGGED = dataclasses.replace(GOOD, charging=Reading(False))


def look(elapsed, readings=GOOD, *, now=None):
    moment = Moment(NIGHT + elapsed if now is None else now, elapsed)
    return encode_look(Look(moment=moment, readings=readings, usage=Usage(), training=False))


def told(*lines, policy=EAGER):
    return [(each.code, each.seconds) for each in stretches(iter(lines), policy)]


def test_an_answer_lasts_until_the_next_look_and_the_same_answers_are_one_stretch():
    lines = look(0.0), look(30.0), look(60.0, UNPLUGGED), look(90.0)
    assert told(*lines) == [("", 60.0), ("unplugged", 30.0), ("", 0.0)]


def test_the_day_between_two_recorded_nights_is_no_time_in_which_it_might_have_trained():
    lines = look(0.0), look(30.0), look(50_000.0), look(50_030.0)
    assert told(*lines) == [("", 30.0), (UNSEEN, 49_970.0), ("window", 30.0)]


def test_a_device_that_started_anew_begins_a_new_stretch():
    lines = look(9000.0), look(9030.0), look(5.0, now=NIGHT + 9060.0), look(35.0, now=NIGHT + 9090.0)
    assert told(*lines) == [("", 30.0), (UNSEEN, 30.0), ("", 30.0)]


def test_a_clock_that_is_set_right_meanwhile_makes_no_stretch_longer_or_shorter():
    lines = look(0.0), look(30.0, now=NIGHT + 3000.0), look(60.0, now=NIGHT - 3000.0)
    assert told(*lines) == [("", 60.0)]


@given(st.lists(st.tuples(st.floats(0, 110), st.booleans()), max_size=20))
def test_the_stretches_of_an_unbroken_trace_are_as_long_together_as_the_trace(steps):
    elapsed, lines = 0.0, []
    for passed, plugged in steps:
        elapsed += passed
        lines.append(look(elapsed, GOOD if plugged else UNPLUGGED))
    begun = steps[0][0] if steps else 0.0
    assert sum(seconds for _, seconds in told(*lines)) == pytest.approx(elapsed - begun, abs=1e-6)


def test_what_might_have_been_trained_is_summed_and_a_broken_trace_is_an_error_with_its_line(tmp_path):
    (tmp_path / "settings.toml").write_text('[policy]\nnight_start = "00:00"\nnight_end = "00:00"\nsettle_s = 0\n')
    trace = tmp_path / "trace"
    trace.write_bytes(look(0.0) + look(30.0) + look(60.0, UNPLUGGED))
    assert explain_trace(tmp_path, trace).data["might_train_s"] == 60.0
    trace.write_bytes(look(0.0) + look(30.0)[:-20])
    with pytest.raises(CommandError, match="line 2"):
        explain_trace(tmp_path, trace)
    with pytest.raises(CommandError, match="no such trace"):
        explain_trace(tmp_path, tmp_path / "none")
