"""The activation's table: what it can do, what it cannot, and that the page draws it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.activation import (
    BOOTS,
    MOST_BAD,
    TABLE,
    BootBegun,
    CameUp,
    Healthy,
    Installed,
    Lost,
    RolledBack,
    Slot,
    Stage,
    StepRefused,
    Unhealthy,
    step,
)
from edge_runtime.activation_diagram import diagram

A, B, C = "a" * 64, "b" * 64, "c" * 64


def after(*events, slot=None):
    slot = slot or Slot()
    for event in events:
        slot = step(slot, event)
    return slot


def up(count=1):
    return [BootBegun(), CameUp()] * count


SETTLED = after(Installed(A, 1), *up())
TRIAL = after(Installed(B, 2), slot=SETTLED)


def test_the_first_version_is_confirmed_when_it_came_up_once():
    assert after(Installed(A, 1)).stage is Stage.TRIAL
    assert (SETTLED.stage, SETTLED.current, SETTLED.floor) == (Stage.SETTLED, A, 1)


def test_b_is_used_at_once_and_the_floor_stays_with_a_until_it_is_confirmed():
    assert (TRIAL.current, TRIAL.previous, TRIAL.version, TRIAL.floor) == (B, A, 2, 1)
    tried = after(*up(BOOTS), slot=TRIAL)
    assert tried.ready and tried.floor == 1
    confirmed = step(tried, Healthy("0.98 times the perplexity"))
    assert (confirmed.stage, confirmed.floor, confirmed.floor_sha256) == (Stage.SETTLED, 2, B)


def test_before_three_boots_came_up_health_is_not_asked_for():
    assert not after(*up(BOOTS - 1), slot=TRIAL).ready


def test_three_starts_that_do_not_come_up_end_in_a():
    crashed = after(*[BootBegun()] * BOOTS, slot=TRIAL)
    assert crashed.stage is Stage.TRIAL
    back = step(crashed, BootBegun())
    assert (back.stage, back.current, back.version, back.bad) == (Stage.SETTLED, A, 1, (B,))
    assert "did_not_come_up" in back.said


def test_a_start_that_failed_is_forgiven_when_a_later_one_comes_up():
    slot = after(*([BootBegun()] * (BOOTS - 1) + up()) * BOOTS, slot=TRIAL)
    assert slot.ready and slot.current == B


def test_a_first_version_that_never_comes_up_leaves_nothing_in_use():
    slot = after(Installed(A, 1), *[BootBegun()] * (BOOTS + 1))
    assert (slot.stage, slot.current, slot.bad, slot.version) == (Stage.EMPTY, "", (A,), 0)


def test_what_was_rolled_back_is_never_installed_again_under_any_number():
    back = step(TRIAL, Unhealthy("too_slow"))
    assert (back.current, back.version, back.floor) == (A, 1, 1)
    for version in (2, 3, 100):
        with pytest.raises(StepRefused) as caught:
            step(back, Installed(B, version))
        assert caught.value.reason == "rolled_back"
    assert step(back, Installed(C, 3)).stage is Stage.TRIAL


def test_a_newer_version_takes_the_place_of_one_on_trial_and_a_stays_the_one_to_go_back_to():
    slot = after(*up(2), Installed(C, 3), slot=TRIAL)
    assert (slot.current, slot.previous, slot.came_up) == (C, A, 0)


def test_an_undo_to_what_was_confirmed_ends_the_trial():
    slot = step(TRIAL, Installed(A, 3))
    assert (slot.stage, slot.current, slot.floor, slot.previous) == (Stage.SETTLED, A, 3, "")


def test_an_undo_to_the_version_before_is_not_tried_again():
    confirmed = after(*up(BOOTS), Healthy(), slot=TRIAL)
    slot = step(confirmed, Installed(A, 3))
    assert (slot.stage, slot.current, slot.previous, slot.floor) == (Stage.SETTLED, A, B, 3)


def test_a_lost_file_goes_back_without_blame():
    slot = step(TRIAL, Lost())
    assert (slot.current, slot.bad) == (A, ()) and step(slot, Installed(B, 2)).stage is Stage.TRIAL


def test_by_hand_one_goes_back_once_and_the_floor_stays():
    confirmed = after(*up(BOOTS), Healthy(), slot=TRIAL)
    slot = step(confirmed, RolledBack())
    assert (slot.current, slot.floor, slot.bad) == (A, 2, (B,))
    with pytest.raises(StepRefused) as caught:
        step(slot, RolledBack())
    assert caught.value.reason == "no_previous"


def test_training_versions_are_settled_at_once():
    slot = after(Installed(A, 1, tried=True), Installed(B, 2, tried=True))
    assert (slot.stage, slot.current, slot.previous, slot.floor) == (Stage.SETTLED, B, A, 2)


@pytest.mark.parametrize("slot", [Slot(), SETTLED], ids=["empty", "settled"])
@pytest.mark.parametrize("event", [BootBegun(), CameUp(), Healthy(), Unhealthy("x"), Lost()])
def test_a_step_that_the_table_does_not_list_is_refused(slot, event):
    with pytest.raises(StepRefused) as caught:
        step(slot, event)
    assert caught.value.reason == "no_such_step"


HASHES = [letter * 64 for letter in "abcdef"]
EVENTS = st.one_of(
    st.builds(Installed, st.sampled_from(HASHES), st.integers(1, 9)),
    st.sampled_from([BootBegun(), CameUp(), Healthy(), Unhealthy("too_slow"), Lost(), RolledBack()]),
)


@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_the_floor_never_falls_and_nothing_bad_or_unconfirmed_is_gone_back_to(events):
    slot, confirmed, seen = Slot(), set(), set()
    for event in events:
        try:
            following = step(slot, event)
        except StepRefused:
            continue
        assert following.floor >= slot.floor
        assert set(slot.bad) <= set(following.bad) and following.current not in following.bad
        if not following.on_trial and following.current:
            confirmed.add(following.current)
        # Whatever is in use is on trial, or was confirmed.
        assert not following.current or following.on_trial or following.current in confirmed
        assert not following.previous or following.previous in confirmed
        assert following.current != following.previous or not following.current
        assert following.begun - following.came_up <= BOOTS
        seen.add((slot.stage, type(event), following.stage))
        slot = following
    assert seen <= {(row.stage, row.event, row.target) for row in TABLE}


def test_every_arrow_of_the_table_can_be_taken():
    first = after(Installed(A, 1))
    confirmed = after(*up(BOOTS), Healthy(), slot=TRIAL)
    crashed, crashed_first = (after(*[BootBegun()] * BOOTS, slot=slot) for slot in (TRIAL, first))
    steps = [
        (Slot(), Installed(A, 1)), (Slot(), Installed(A, 1, tried=True)), (SETTLED, Installed(B, 2)),
        (SETTLED, Installed(A, 2)), (TRIAL, Installed(C, 3)), (TRIAL, Installed(A, 3)), (TRIAL, BootBegun()),
        (crashed, BootBegun()), (crashed_first, BootBegun()), (after(BootBegun(), slot=TRIAL), CameUp()),
        (after(BootBegun(), slot=first), CameUp()), (TRIAL, Healthy()), (TRIAL, Unhealthy("x")),
        (first, Unhealthy("x")), (TRIAL, Lost()), (first, Lost()), (TRIAL, RolledBack()), (first, RolledBack()),
        (confirmed, RolledBack()),
    ]  # fmt: skip
    taken = {(slot.stage, type(event), step(slot, event).stage) for slot, event in steps}
    assert taken == {(row.stage, row.event, row.target) for row in TABLE}


def test_the_list_of_what_was_bad_is_bounded():
    slot = SETTLED
    for number in range(MOST_BAD + 5):
        slot = after(Installed(f"{number:064x}", number + 2), Unhealthy("x"), slot=slot)
    assert len(slot.bad) == MOST_BAD and slot.bad[0] == f"{MOST_BAD + 4:064x}"


def test_the_page_shows_the_table_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "activation.md").read_text()
    assert f"```mermaid\n{diagram()}```" in page, "python -m edge_runtime.activation_diagram"


@pytest.mark.parametrize("event", [CameUp(B), Healthy("0.98 times the perplexity", B), Unhealthy("too_slow", B)])
def test_what_was_found_of_one_version_is_never_said_of_the_one_that_took_its_place(event):
    """While the trainer judges B, somebody plugs in C over USB."""
    third = after(*up(BOOTS), Installed(C, 3), slot=TRIAL)
    with pytest.raises(StepRefused) as caught:
        step(third, event)
    assert caught.value.reason == "another_version"
    assert (third.current, third.floor, third.came_up, third.bad) == (C, 1, 0, ())


def test_a_lower_version_never_takes_the_place_of_one_on_trial():
    with pytest.raises(StepRefused) as caught:
        step(after(Installed(C, 3), slot=SETTLED), Installed(B, 2))
    assert caught.value.reason == "lower_version"
